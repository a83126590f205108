"""A row of a plan as one Triton kernel for CUDA tensors: every array is read once, every output written once.

The kernel is written for the structure of the row (which arrays are read, how they are summed) and compiled once for it; the
coefficients are an array on the device, because Triton takes Python floats for 32-bit ones.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from anystep import Plan, State
from anystep._combination import Row

from ._fused import Step

__all__ = ["fuse"]

BLOCK = 1024
"""Elements of a program."""
_WORK = {torch.float64: tl.float64}


class _Form(NamedTuple):
    """A combination without its numbers."""

    columns: tuple[int, ...]
    base: int | None
    opposed: bool
    late: tuple[int, ...]

    @property
    def reads(self) -> set[int]:
        """The arrays that it reads."""
        base = () if self.base is None else (self.base,)
        return {*self.columns, *self.late, *base, *((1,) if self.opposed else ())}


def _form(row: Row) -> _Form:
    terms, late = (tuple([k for k, _ in part]) for part in (row.terms, row.late))
    return _Form(terms, row.base, row.opposed, late)


def fuse(plan: Plan, i: int, plain: Step) -> Step:
    """Row ``i`` for CUDA tensors; ``plain`` does what is not contiguous."""
    outputs = plan.outputs(i)
    rows = [one for one in outputs if not isinstance(one, int)]
    numbers = [value for row in rows for value in (*(c for _, c in (*row.terms, *row.late)), row.scale)]
    kernel, reads = _kernel(tuple(map(_form, rows)))
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
def _kernel(forms: tuple[_Form, ...]) -> tuple[Any, tuple[int, ...]]:
    """The kernel of these combinations, and the arrays that it takes."""
    reads = tuple(sorted(set().union(*(form.reads for form in forms)))) or (0,)
    source, name = _source(forms, reads), f"<anystep combination {forms}>"
    # Triton reads the source of what it compiles, so it must be found under the name of its file.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    found: dict[str, Any] = {"tl": tl}
    exec(compile(source, name, "exec"), found)
    return triton.jit(found["combination"]), reads


def _source(forms: tuple[_Form, ...], reads: tuple[int, ...]) -> str:
    """The kernel in Python, for outputs o0, o1, ... and arrays p0, p1, ... by column."""
    outputs, arrays = [f"o{n}" for n in range(len(forms))], [f"p{k}" for k in reads]
    lines = [
        f"def combination({', '.join([*outputs, *arrays])}, c, size, WORK: tl.constexpr, BLOCK: tl.constexpr):",
        "    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "    inside = at < size",
        *(f"    v{k} = tl.load(p{k} + at, mask=inside).to(WORK)" for k in reads),
    ]
    n = 0
    for output, form in zip(outputs, forms, strict=True):
        terms = [f"tl.load(c + {n + j}) * v{k}" for j, k in enumerate((*form.columns, *form.late))]
        total = " + ".join(terms[: len(form.columns)]) or f"v{reads[0]} * 0"
        if form.base is not None:
            base = f"(v{form.base} - v1)" if form.opposed else f"v{form.base}"
            total = f"{base} + ({total})" if form.columns else base
        total = " + ".join([f"({total})", *terms[len(form.columns) :]])
        n += len(terms)
        lines.append(
            f"    tl.store({output} + at, (({total}) * tl.load(c + {n})).to({output}.dtype.element_ty), mask=inside)"
        )
        n += 1
    return "\n".join(lines) + "\n"
