"""A row of a plan as PyTorch kernels that scale and add at once: k of them for k terms, k - 1 if the sample's weight is 1.

The order of summation is chosen for accuracy at that number of kernels: in x + Σ c_k v_k, with c the largest c_k, first
u = v + Σ (c_k / c) v_k and then x + c u, so that only small numbers are rounded before x is met once. With fused
multiply-add, a float32 trajectory ends within 5 % of the error of float64 sums rounded once a step; summing into x, with
the same number of kernels, is 1.3 to 1.9 times as far off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch

from anystep import Plan
from anystep._combination import Row

from ._fused import Combination, Form, Step, stepper

__all__ = ["fuse"]

Tensors = Sequence[torch.Tensor]

BLOCK = 2**17
"""Elements that are widened and summed at a time, for each thread."""
LARGE = 2**19
"""Elements from which blocks are faster, where each block needs room beside its result."""


def fuse(plan: Plan, i: int, x: torch.Tensor) -> Step | None:
    """Row ``i`` for tensors like ``x``; None while compiling, since a compiler fuses by itself."""
    if torch.compiler.is_compiling():
        return None
    half = x.dtype in (torch.float16, torch.bfloat16)
    step = stepper(plan, i, _rounded if half else _combination)
    make = _triton() if x.is_cuda else None
    return step if make is None else make(plan, i, step)


@cache
def _triton() -> Any:
    """What makes one kernel of a whole row on CUDA, where Triton is installed, as it is with PyTorch's CUDA builds."""
    try:
        from ._triton_fused import fuse as one_kernel
    except ImportError:
        return None
    return one_kernel


def _combination(row: Row) -> Combination:
    if row.late:
        return _late(row)
    if row.base is None:
        return partial(_sum, row.terms or ((0, 0.0),))
    if not row.opposed and row.scale == 1.0:
        return _increment(row)
    return _opposed(row) if row.opposed else partial(_scaled, row.terms[0], row.terms[1:], _scalar(row.scale))


def _late(row: Row) -> Combination:
    """What is added last, before the scale."""
    early = _combination(row._replace(scale=1.0, late=()))
    scale = None if row.scale == 1.0 else _scalar(row.scale)

    def combination(arrays: Tensors, out: torch.Tensor | None) -> torch.Tensor:
        total = early(arrays, out)
        for k, value in row.late:
            total.add_(arrays[k], alpha=value)
        return total if scale is None else total.mul_(scale)

    return combination


def _scalar(value: float) -> torch.Tensor:
    """A 0-d tensor: it does not promote, and takes 2 µs less than a Python float."""
    return torch.tensor(value, dtype=torch.float64)


def _sum(terms: Sequence[tuple[int, Any]], arrays: Tensors, out: torch.Tensor | None) -> torch.Tensor:
    (first, c), *rest = terms
    total = torch.mul(arrays[first], c, out=out)  # x comes first, where it is among them
    for k, value in rest:
        total.add_(arrays[k], alpha=value)
    return total


def _scaled(first: Any, rest: Any, scale: Any, arrays: Tensors, out: torch.Tensor | None) -> torch.Tensor:
    total = torch.add(arrays[0], arrays[first[0]], alpha=first[1], out=out)
    for k, value in rest:
        total.add_(arrays[k], alpha=value)
    return total.mul_(scale)


def _opposed(row: Row) -> Combination:
    """Of s (x - m) + ...: one kernel takes the difference, as in m + s (x - m), and the next takes the m back."""
    terms = {1: 0.0} | dict(row.terms)
    terms = [(k, row.scale * value - (k == 1)) for k, value in terms.items()]

    def combination(arrays: Tensors, out: torch.Tensor | None) -> torch.Tensor:
        total = torch.lerp(arrays[1], arrays[0], row.scale, out=out)
        for k, value in terms:
            total.add_(arrays[k], alpha=value)
        return total

    return combination


def _increment(row: Row) -> Combination:
    base = row.base or 0
    p, c = max(row.terms, key=lambda term: abs(term[1]))
    others = [(k, value / c) for k, value in row.terms if k != p]
    if not others:
        return lambda arrays, out: torch.add(arrays[base], arrays[p], alpha=c, out=out)
    (first, ratio), *rest = others

    def combination(arrays: Tensors, out: torch.Tensor | None) -> torch.Tensor:
        total = torch.add(arrays[p], arrays[first], alpha=ratio)
        for k, value in rest:
            total.add_(arrays[k], alpha=value)
        return torch.add(arrays[base], total, alpha=c, out=total if out is None else out)

    return partial(_in_blocks, combination, True)


def _rounded(row: Row) -> Combination:
    """Half precision: combined in float32, rounded once."""
    wide = _combination(row)
    used = Form.of(row).reads

    def combination(arrays: Tensors, out: torch.Tensor | None) -> torch.Tensor:
        total = wide([array.float() if k in used else array for k, array in enumerate(arrays)], None)
        return total.to(arrays[0].dtype) if out is None else out.copy_(total)

    return partial(_in_blocks, combination, False)


def _in_blocks(
    combination: Combination, only_in_place: bool, arrays: Tensors, out: torch.Tensor | None
) -> torch.Tensor:
    """A combination that needs room beside its result, done piece by piece where that would not fit a cache."""
    x = arrays[0]
    if (
        (only_in_place and out is None)
        or x.numel() < LARGE
        or x.device.type != "cpu"
        or any(array.requires_grad or not array.is_contiguous() for array in arrays)
    ):
        return combination(arrays, out)
    result = torch.empty_like(x) if out is None else out
    size = BLOCK * torch.get_num_threads()
    for end, *parts in zip(*(array.view(-1).split(size) for array in (result, *arrays)), strict=True):
        combination(parts, end)
    return result
