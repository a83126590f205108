"""A combination of large NumPy arrays as one compiled loop: every array is read once, the result written once.

The products and sums are those of the plain path in its order, and nothing lets the compiler contract them: the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numba  # pyright: ignore[reportMissingImports]
import numpy as np
import numpy.typing as npt

from anystep._combination import Row

from ._fused import Combination

__all__ = ["compiled"]


def compiled(row: Row, dtype: npt.DTypeLike) -> Combination:
    """The row on C-ordered arrays; compiled when a row of its form is first applied, which takes some 0.3 s."""
    terms, late = (tuple([k for k, _ in part]) for part in (row.terms, row.late))
    reads = tuple(
        sorted({*terms, *late, *(() if row.base is None else (row.base,)), *((1,) if row.opposed else ())})
    )
    numbers = np.asarray([*(c for _, c in (*row.terms, *row.late)), row.scale], dtype)
    form = terms, late, row.base, row.opposed, row.scale != 1.0, reads

    def combination(arrays: Sequence[npt.NDArray[Any]], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        given = [arrays[k].reshape(-1) for k in reads]
        loop = _loop(form)
        if out is None:
            out = np.empty_like(arrays[0])
            loop(out.reshape(-1), numbers, *given)
            return out
        # By way of a block that is none of the arrays: where the result may be one of them, no vector instructions are used.
        ends, block = out.reshape(-1), np.empty(BLOCK, dtype)
        for begin in range(0, ends.size, BLOCK):
            here = slice(begin, begin + BLOCK)
            made = block[: ends[here].size]
            loop(made, numbers, *(array[here] for array in given))
            ends[here] = made
        return out

    return combination


BLOCK = 2**16
"""Elements of that block: few enough for a core's second cache."""


@cache
def _loop(form: Any) -> Any:
    """The loop of a form, for any numbers and either dtype."""
    terms, late, base, opposed, scaled, reads = form
    products = [f"c[{n}] * v{k}[i]" for n, k in enumerate((*terms, *late))]
    total = " + ".join(products[: len(terms)]) or "c[0] * 0"
    if base is not None:
        start = f"(v{base}[i] - v1[i])" if opposed else f"v{base}[i]"
        total = f"{start} + ({total})" if terms else start
    total = " + ".join([f"({total})", *products[len(terms) :]])
    total = f"({total}) * c[{len(products)}]" if scaled else total
    arrays = ", ".join(f"v{k}" for k in reads)
    found: dict[str, Any] = {}
    exec(f"def loop(out, c, {arrays}):\n    for i in range(out.size):\n        out[i] = {total}\n", found)
    return numba.njit(found["loop"])
