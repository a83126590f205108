"""A row of a plan as one CuPy kernel for each output: every array is read once, and written once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import cupy as cp  # pyright: ignore[reportMissingImports]

from anystep import Plan
from anystep._combination import Row

from ._fused import Combination, Form, Step, stepper

__all__ = ["fuse"]


def fuse(plan: Plan, i: int, x: Any) -> Step | None:
    """Row ``i`` for arrays like ``x``; None where the plain path must do it."""
    return stepper(plan, i, _combination) if x.__class__ is cp.ndarray else None


def _combination(row: Row) -> Combination:
    form, numbers = Form.of(row), Form.numbers(row)
    reads = form.reads

    def combination(arrays: Sequence[Any], out: Any) -> Any:
        kernel = _kernel(form, arrays[0].dtype.char)
        given = [arrays[k] for k in reads]
        return kernel(*given, *numbers) if out is None else kernel(*given, *numbers, out)

    return combination


@cache
def _kernel(form: Form, char: str) -> Any:
    """Compiled once for each form and dtype; the working type is float32 for half precision."""
    # CuPy takes NumPy's names for parameters, where "float" would be 64 bits, and C's in the source.
    work, in_c = ("float64", "double") if char == "d" else ("float32", "float")
    arrays = [f"T v{k}" for k in form.reads]
    numbers = [f"{work} c{n}" for n in range(len(form.columns) + len(form.late) + 1)]
    total = form.source(lambda k: f"({in_c})v{k}", lambda n: f"c{n}")
    return cp.ElementwiseKernel(
        ", ".join(arrays + numbers), "T out", f"out = (T)({total})", "anystep_combination"
    )
