"""A row of a plan as NumPy ufuncs that write in place: the bits of the plain path, and one new array for each output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep import Plan
from anystep._combination import Row

from ._fused import Combination, Step, Writer, combined, flat, given, stepper

__all__ = ["fuse"]

Values = npt.NDArray[Any]

BLOCK = 2**15
"""Elements that are summed at a time where arrays do not fit a cache."""
LARGE = 2**19
"""Elements from which blocks are faster."""


def fuse(plan: Plan, i: int, x: Values) -> Step | None:
    """Row ``i`` for arrays like ``x``; None where the plain path must do it."""
    if x.__class__ is not np.ndarray or x.dtype.char not in "fd":
        return None
    dtype, count = x.dtype, given(plan, i)
    write = partial(_write, dtype)

    def large() -> Step:
        return stepper(plan, i, lambda row: _combination(row, dtype, combined(row, count, write, _UFUNCS)))

    return flat(plan, i, write, _UFUNCS, f"v0.size >= {LARGE}", large)


_UFUNCS = {"add": np.add, "multiply": np.multiply, "subtract": np.subtract}


def _write(dtype: npt.DTypeLike, writer: Writer, row: Row, total: str, out: str) -> None:
    """The ufuncs of a row; ``out`` is a pair of arrays, for the sum and for its terms."""
    into, spare = (f", {out}[0]", f", {out}[1]") if out else ("", "")

    def product(term: tuple[int, float], place: str) -> str:
        # Coefficients as 0-d arrays: NumPy takes 0.4 µs longer over a Python float.
        return f"multiply(v{term[0]}, {writer.number(np.asarray(term[1], dtype))}{place})"

    first, *rest = row.terms or ((0, 0.0),)
    writer(f"{total} = {product(first, into)}")
    writer(*(f"add({total}, {product(term, spare)}, {total})" for term in rest))
    if row.base is not None:
        base = f"subtract(v{row.base}, v1{spare})" if row.opposed else f"v{row.base}"
        writer(f"add({base}, {total}, {total})")
    writer(*(f"add({total}, {product(term, spare)}, {total})" for term in row.late))
    if row.scale != 1.0:
        writer(f"multiply({total}, {writer.number(np.asarray(row.scale, dtype))}, {total})")


def _combination(row: Row, dtype: npt.DTypeLike, whole: Combination) -> Combination:
    loop: Combination | None = None

    def combination(arrays: Sequence[Values], out: Values | None) -> Values:
        size = arrays[0].size
        if size < LARGE or not all(array.flags.c_contiguous for array in arrays):
            total = whole(arrays, _NEW)
            if out is None:
                return total
            out[...] = total
            return out
        if (make := _numba()) is not None:
            nonlocal loop
            if loop is None:
                loop = make(row, dtype)
            assert loop is not None
            return loop(arrays, out)
        result = np.empty_like(arrays[0]) if out is None else out
        pieces, ends = [array.reshape(-1) for array in arrays], result.reshape(-1)
        scratch, spare = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
        for begin in range(0, size, BLOCK):
            here = slice(begin, begin + BLOCK)
            end = ends[here]
            total = end if out is None else scratch[: end.size]  # ``out`` may be x, which is still to be read
            whole([array[here] for array in pieces], (total, spare[: end.size]))
            if out is not None:
                end[...] = total
        return result

    return combination


_NEW = (None, None)
"""Room for neither the sum nor its terms: both are made."""


@cache
def _numba() -> Any:
    """What compiles a combination, if Numba is installed."""
    try:
        from ._numba_fused import compiled
    except ImportError:
        return None
    return compiled
