"""A row as one Triton kernel: on a GPU where there is one, else in Triton's interpreter. Skipped without Triton."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from anystep import State, reproducible, update
from anystep_backends import _triton_fused
from anystep_conformance.compare import compare
from anystep_conformance.subjects import SUBJECTS, random_plan, scale_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LINEAR = [subject for subject in SUBJECTS if subject.threshold is None]
RANDOM = [random_plan(2, m, r, seed=7 * m + r + k) for m in range(4) for r in range(3) for k in range(4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 700), (0, 4), (1,)], ids=str)
def test_close_to_the_plain_path(dtype, shape):
    for plan in [*(subject.plan(4) for subject in LINEAR), *RANDOM]:
        for i in range(len(plan)):
            count = 2 + plan.memories + (plan.noises if plan.stochastic[i] else 0)
            generator = torch.Generator().manual_seed(i)
            x, m, *rest = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(count))
            memory, noise = rest[: plan.memories], rest[plan.memories :]
            found = _triton_fused.fuse(plan, i, None)((x, m, *rest), False)
            with reproducible():
                plain = update(plan, i, State(x, tuple(memory)), m, noise or None)
            unused = [np.zeros(shape)] * (plan.noises - len(noise))
            scales = scale_of(plan, i, [*(v.double().cpu().numpy() for v in (x, m, *rest)), *unused])
            for one, other, scale in zip(
                (found.x, *found.memory), (plain.x, *plain.memory), scales, strict=True
            ):
                if dtype in (torch.float32, torch.float64):
                    compare(one, other, scale=scale, ulp=3)
                else:  # a float32 sum near the middle of two values may be rounded to either
                    compare(one, other, ulp=1)


def test_views_and_donated_memory():
    plan = random_plan(1, 1, 0, seed=3)
    asked = []
    step = _triton_fused.fuse(plan, 0, lambda arrays, donate: asked.append(donate))
    square = torch.ones(4, 4, device=DEVICE)
    step((square.T, square.T, square.T), True)
    assert asked == [True]
    x = square.clone()
    expected = step((x, square, square), False).x
    assert torch.equal(x, square) and expected.data_ptr() != x.data_ptr()
    found = step((x, square, square), True).x
    kept = 0 in [one for one in plan.outputs(0) if isinstance(one, int)]
    assert (found.data_ptr() == x.data_ptr()) != kept and torch.equal(found, expected)
