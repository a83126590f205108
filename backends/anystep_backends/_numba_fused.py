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

from ._fused import Combination, Form

__all__ = ["compiled"]


def compiled(row: Row, dtype: npt.DTypeLike) -> Combination:
    """The row on C-ordered arrays; compiled when a row of its form is first applied, which takes some 0.3 s."""
    form, numbers = Form.of(row), np.asarray(Form.numbers(row), dtype)
    reads = form.reads

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
def _loop(form: Form) -> Any:
    """The loop of a form, for any numbers and either dtype."""
    total = form.source(lambda k: f"v{k}[i]", lambda n: f"c[{n}]")
    arrays = ", ".join(f"v{k}" for k in form.reads)
    found: dict[str, Any] = {}
    exec(f"def loop(out, c, {arrays}):\n    for i in range(out.size):\n        out[i] = {total}\n", found)
    return numba.njit(found["loop"])
