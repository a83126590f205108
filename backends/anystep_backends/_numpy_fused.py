"""A row of a plan as NumPy ufuncs that write in place: the bits of the plain path, and one new array for each output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep import Plan
from anystep._combination import Row

from ._fused import Combination, Step, stepper

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
    return stepper(plan, i, lambda row: _combination(row, x.dtype))


def _combination(row: Row, dtype: npt.DTypeLike) -> Combination:
    # Coefficients as 0-d arrays: NumPy takes 0.4 µs longer over a Python float.
    terms = [(k, np.asarray(c, dtype)) for k, c in row.terms or [(0, 0.0)]]
    late = [(k, np.asarray(c, dtype)) for k, c in row.late]
    (first, factor), *rest = terms
    base, opposed, scale = (
        row.base,
        row.opposed,
        None if row.scale == 1.0 else np.asarray(row.scale, dtype),
    )

    def apply(arrays: Sequence[Values], total: Values | None, spare: Values | None) -> Values:
        total = np.multiply(arrays[first], factor, total)
        for k, c in rest:
            np.add(total, np.multiply(arrays[k], c, spare), total)
        if base is not None:
            np.add(np.subtract(arrays[base], arrays[1], spare) if opposed else arrays[base], total, total)
        for k, c in late:
            np.add(total, np.multiply(arrays[k], c, spare), total)
        return total if scale is None else np.multiply(total, scale, total)

    loop: Combination | None = None
    multiply, add, lone = (
        np.multiply,
        np.add,
        base is not None and not (rest or late or opposed or scale is not None),
    )

    def combination(arrays: Sequence[Values], out: Values | None) -> Values:
        size = arrays[0].size
        if lone and base is not None and size < LARGE:  # the commonest: x + c v
            total = multiply(arrays[first], factor)
            return add(arrays[base], total, total if out is None else out)
        if size < LARGE or not all(array.flags.c_contiguous for array in arrays):
            if out is None:
                return apply(arrays, None, None)
            out[...] = apply(arrays, None, None)
            return out
        if (make := _numba()) is not None:
            nonlocal loop
            if loop is None:
                loop = make(row, dtype)
            assert loop is not None
            return loop(arrays, out)
        result = np.empty_like(arrays[0]) if out is None else out
        flat, ends = [array.reshape(-1) for array in arrays], result.reshape(-1)
        scratch, spare = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
        for begin in range(0, size, BLOCK):
            here = slice(begin, begin + BLOCK)
            end = ends[here]
            total = end if out is None else scratch[: end.size]  # ``out`` may be x, which is still to be read
            apply([array[here] for array in flat], total, spare[: end.size])
            if out is not None:
                end[...] = total
        return result

    return combination


@cache
def _numba() -> Any:
    """What compiles a combination, if Numba is installed."""
    try:
        from ._numba_fused import compiled
    except ImportError:
        return None
    return compiled
