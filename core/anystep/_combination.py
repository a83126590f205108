"""Linear combinations of arrays, one per plan row: all the arithmetic that ever touches a user's array.

A coefficient c >= 1/2 of x is applied as x + (c - 1) x, where the other terms are added to (c - 1) x before
the sum meets x. c - 1 is exact in float64 and small near 1, so x is carried over unrounded; c x would round
it by the error of c in float32, at every step in the same direction. Below 1/2 there is nothing to gain.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from anystep._array import Array, Float64, expand, kind, like, place

__all__ = ["Combination"]


class _Row(NamedTuple):
    """One combination, ready to apply."""

    carried: bool
    """Whether x is added once as it is, beside the terms."""
    terms: tuple[tuple[int, float], ...]
    """(column, coefficient) of each further term, none of them 0."""


class Combination:
    """N combinations of the same columns, of which column 0 is the sample x.

    Parameters
    ----------
    table
        Coefficients, shape (N, columns).

    Examples
    --------
    >>> x, m = np.asarray([2.0, 4.0]), np.asarray([1.0, 0.0])
    >>> Combination(np.asarray([[0.75, -0.5]]))(0, (x, m), x)
    array([1., 3.])
    """

    def __init__(self, table: Float64) -> None:
        used = (table != 0).any(axis=0)
        self.columns: tuple[int, ...] = tuple(np.flatnonzero(used).tolist())
        self._carried = (table[:, 0] >= 0.5) & bool(used[1:].any())
        self._increments = table.copy()
        self._increments[:, 0] -= self._carried
        self._rows: dict[int, _Row] = {}
        self._gathered: dict[Any, Array] = {}

    @classmethod
    def source(cls, table: Float64) -> int | None:
        """The column that every row passes on unchanged, if there is one."""
        column = int(np.argmax(table[0] != 0))
        unit = np.zeros(table.shape[1])
        unit[column] = 1.0
        return column if (table == unit).all() else None

    def __call__(self, i: Any, arrays: Sequence[Array], x: Array) -> Array:
        """Combination ``i`` (an int, or an integer array of the library of ``x``) of working-precision arrays
        like ``x``.
        """
        if isinstance(i, int):
            row = self._rows.get(i) or self._row(i)
            total = None
            for column, coefficient in row.terms:
                term = arrays[column] * coefficient
                total = term if total is None else total + term
            if not row.carried:
                return arrays[0] * 0.0 if total is None else total
            return arrays[0] * 1.0 if total is None else arrays[0] + total
        return self._gather(i, arrays, x)

    def _row(self, i: int) -> _Row:
        terms = tuple((c, float(self._increments[i, c])) for c in self.columns if self._increments[i, c] != 0)
        row = self._rows[i] = _Row(bool(self._carried[i]), terms)
        return row

    def _gather(self, i: Array, arrays: Sequence[Array], x: Array) -> Array:
        """The same sum with coefficients read by index on the device.

        Unused terms count 0 and the order is the same.
        """
        xp = kind(x).xp
        rows = xp.take(self._table(x), xp.reshape(i, (-1,)), axis=0)
        if i.ndim == 0:
            rows = rows[0, ...]

        def coefficient(k: int) -> Array:
            return expand(rows[..., k], x)

        total = None
        for k, column in enumerate(self.columns):
            term = arrays[column] * coefficient(k)
            total = term if total is None else total + term
        carried = arrays[0] * coefficient(len(self.columns))
        return carried if total is None else carried + total

    def _table(self, x: Array) -> Array:
        """Coefficients of the used columns, then whether x is carried, on the device of ``x``."""
        values = np.column_stack([self._increments[:, list(self.columns)], self._carried])
        where = place(x)
        if where is None:  # JAX: a table made while tracing belongs to that trace alone
            return like(values, x)
        key = (type(x), x.dtype, str(where))
        if key not in self._gathered:
            self._gathered[key] = like(values, x)
        return self._gathered[key]
