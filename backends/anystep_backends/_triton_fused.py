"""A row of a plan as one Triton kernel for CUDA tensors: every array is read once, every output written once.

The kernel is written for the structure of the row (which arrays are read, how they are summed) and compiled once for it; the
coefficients are an array on the device, because Triton takes Python floats for 32-bit ones.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from anystep import Plan, State

from ._fused import Form, Step

__all__ = ["fuse"]

BLOCK = 1024
"""Elements of a program."""
_WORK = {torch.float64: tl.float64}


def fuse(plan: Plan, i: int, plain: Step) -> Step:
    """Row ``i`` for CUDA tensors; ``plain`` does what is not contiguous."""
    outputs = plan.outputs(i)
    rows = [one for one in outputs if not isinstance(one, int)]
    numbers = [value for row in rows for value in Form.numbers(row)]
    kernel, reads = _kernel(tuple(map(Form.of, rows)))
    keeps = any(one == 0 for one in outputs if isinstance(one, int))
    tables: dict[Any, torch.Tensor] = {}

    def step(arrays: Sequence[torch.Tensor], donate: bool) -> State:
        x = arrays[0]
        if not all(arrays[k].is_contiguous() for k in reads):
            return plain(arrays, donate)
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        table = tables.get((x.device, work))
        if table is None:
            table = tables[x.device, work] = torch.tensor(numbers, dtype=work, device=x.device)
        # Each element is read before any output of it is written, so the sample's memory may take the next one.
        made = [x if donate and not keeps and n == 0 else torch.empty_like(x) for n in range(len(rows))]
        grid = (triton.cdiv(x.numel(), BLOCK),)
        if x.numel():
            kernel[grid](
                *made,
                *(arrays[k] for k in reads),
                table,
                x.numel(),
                WORK=_WORK.get(x.dtype, tl.float32),
                BLOCK=BLOCK,
            )
        fresh = iter(made)
        first, *memory = [arrays[one] if isinstance(one, int) else next(fresh) for one in outputs]
        return State(first, tuple(memory))

    return step


@cache
def _kernel(forms: tuple[Form, ...]) -> tuple[Any, tuple[int, ...]]:
    """The kernel of these combinations, and the arrays that it takes."""
    reads = tuple(sorted({k for form in forms for k in form.reads}))
    source, name = _source(forms, reads), f"<anystep combination {forms}>"
    # Triton reads the source of what it compiles, so it must be found under the name of its file.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    found: dict[str, Any] = {"tl": tl}
    exec(compile(source, name, "exec"), found)
    return triton.jit(found["combination"]), reads


def _source(forms: tuple[Form, ...], reads: tuple[int, ...]) -> str:
    """The kernel in Python, for outputs o0, o1, ... and arrays p0, p1, ... by column."""
    outputs, arrays = [f"o{n}" for n in range(len(forms))], [f"p{k}" for k in reads]
    lines = [
        f"def combination({', '.join([*outputs, *arrays])}, c, size, WORK: tl.constexpr, BLOCK: tl.constexpr):",
        "    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "    inside = at < size",
        *(f"    v{k} = tl.load(p{k} + at, mask=inside).to(WORK)" for k in reads),
    ]
    first = 0
    for output, form in zip(outputs, forms, strict=True):
        total = form.source(lambda k: f"v{k}", lambda n, first=first: f"tl.load(c + {first + n})")
        lines.append(f"    tl.store({output} + at, ({total}).to({output}.dtype.element_ty), mask=inside)")
        first += len(form.columns) + len(form.late) + 1
    return "\n".join(lines) + "\n"
