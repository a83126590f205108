"""A row of a plan as one CuPy kernel for each output: every array is read once, and written once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import cupy as cp  # pyright: ignore[reportMissingImports]

from anystep import Plan
from anystep._combination import Row

from ._fused import Combination, Step, stepper

__all__ = ["fuse"]


class _Form(NamedTuple):
    """What of a combination is compiled in; its numbers are arguments, so that all rows of this form share a kernel."""

    columns: tuple[int, ...]
    base: int | None
    opposed: bool
    scaled: bool
    late: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """The arrays that it reads."""
        base = () if self.base is None else (self.base,)
        return tuple(sorted({*self.columns, *self.late, *base, *((1,) if self.opposed else ())}))

    def source(self) -> str:
        """The combination in C, from arrays v0, v1, ... and coefficients c0, c1, ... of the working type."""
        total = " + ".join(f"c{n} * (W)v{k}" for n, k in enumerate(self.columns)) or "(W)0"
        if self.base is not None:
            base = f"(W)v{self.base}"
            total = f"{f'({base} - (W)v1)' if self.opposed else base} + ({total})"
        total = " + ".join(
            [f"({total})", *(f"c{len(self.columns) + n} * (W)v{k}" for n, k in enumerate(self.late))]
        )
        return f"out = (T)({f'scale * ({total})' if self.scaled else total})"


def fuse(plan: Plan, i: int, x: Any) -> Step | None:
    """Row ``i`` for arrays like ``x``; None where the plain path must do it."""
    return stepper(plan, i, _combination) if x.__class__ is cp.ndarray else None


def _combination(row: Row) -> Combination:
    terms, late = (tuple([k for k, _ in part]) for part in (row.terms, row.late))
    form = _Form(terms, row.base, row.opposed, row.scale != 1.0, late)
    numbers = [c for _, c in (*row.terms, *row.late)] + ([row.scale] if form.scaled else [])
    reads = form.reads

    def combination(arrays: Sequence[Any], out: Any) -> Any:
        kernel = _kernel(form, arrays[0].dtype.char)
        given = [arrays[k] for k in reads or (0,)]
        return kernel(*given, *numbers) if out is None else kernel(*given, *numbers, out)

    return combination


@cache
def _kernel(form: _Form, char: str) -> Any:
    """Compiled once for each form and dtype; the working type is float32 for half precision."""
    # CuPy takes NumPy's names for parameters, where "float" would be 64 bits, and C's in the source.
    work, in_c = ("float64", "double") if char == "d" else ("float32", "float")
    arrays = [f"T v{k}" for k in form.reads or (0,)]
    numbers = [f"{work} c{n}" for n in range(len(form.columns) + len(form.late))] + (
        [f"{work} scale"] if form.scaled else []
    )
    source = form.source().replace("(W)", f"({in_c})")
    return cp.ElementwiseKernel(", ".join(arrays + numbers), "T out", source, "anystep_combination")
