"""Linear combinations of arrays, one per plan row: all the arithmetic that ever touches a user's array.

How a row c_x x + c_m m + Σ c_k v_k is summed decides how much of it float32 loses, because a coefficient is rounded
once and then wrong in the same direction at every step. With c_x the coefficient of the sample x and c_m that of the
model's output m:

- c_x below 1/2, or alone: as it stands;
- c_x in [1/2, 2): x + ((c_x - 1) x + c_m m + Σ c_k v_k). c_x - 1 is exact in float64 and small, and x goes unrounded;
- c_x from 2: c_x (x + (c_m / c_x) m + ...). Such a row takes a large multiple of a small difference, as
  x̂₀ = (x - σ ε) / α does at high noise, and an error of c_x only scales the result. Where the ratio r = c_m / c_x is near
  -1, it is carried too: c_x ((x - m) + (r + 1) m + ...).

Where c_x is below 1/2, the first memory with a coefficient in [1/2, 2) takes the place of x in the second form: methods of
several stages keep there the sample that a step started from. In both carried forms a noise whose coefficient is below
c_m / 256 is added last: where the step goes from much noise to little, x cancels most of c_m m, and what was added to c_m m
before would have lost those digits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from anystep._array import Array, Float64, expand, kind, like, place

__all__ = ["Combination", "Row"]

_MEMORY = 3
"""Column of the first memory."""


class Row(NamedTuple):
    """One combination, ready to apply: scale * ((the base, - m if opposed) + the sum of the terms + the late ones)."""

    scale: float
    base: int | None
    """Column of the array that is added as it is, or None."""
    opposed: bool
    terms: tuple[tuple[int, float], ...]
    """(column, coefficient) of each further term, none of them 0."""
    late: tuple[tuple[int, float], ...] = ()
    """Those that are added one by one to the sum of base and terms."""


class Combination:
    """N combinations of the same columns, of which column 0 is the sample x and column 1 the model's output m.

    Parameters
    ----------
    table
        Coefficients, shape (N, columns).
    memories
        How many columns from the fourth on are memories; noises follow.

    Examples
    --------
    >>> x, m = np.asarray([2.0, 4.0]), np.asarray([1.0, 0.0])
    >>> Combination(np.asarray([[0.75, -0.5]]))(0, (x, m), x)
    array([1., 3.])
    """

    def __init__(self, table: Float64, memories: int = 0) -> None:
        count, width = table.shape
        used = (table != 0).any(axis=0)
        # Decided by each row alone, so that a row is summed alike whatever plan it stands in.
        first = np.where((table[:, 1:] != 0).any(axis=1), table[:, 0], 0.0)
        base = np.where(first >= 0.5, 0, -1)
        if memories:
            states = table[:, _MEMORY : _MEMORY + memories]
            known = (states >= 0.5) & (states < 2.0)
            begun = known.any(axis=1) & (base < 0) & ((table != 0).sum(axis=1) > 1)
            base[begun] = _MEMORY + known[begun].argmax(axis=1)
        self._scales = np.where(first >= 2.0, first, 1.0)
        self._terms = table / self._scales[:, None]
        self._bases = np.zeros((count, width))
        self._bases[base >= 0, base[base >= 0]] = 1.0
        opposed = np.zeros(count, dtype=bool)
        if width > 1:
            opposed = (first >= 2.0) & (self._terms[:, 1] > -2.0) & (self._terms[:, 1] <= -0.5)
            self._bases[opposed, 1] = -1.0
        self._terms -= self._bases
        self._late = np.zeros((count, width))
        noises = slice(_MEMORY + memories, None)
        small = np.abs(self._terms[:, noises]) < np.abs(self._terms[:, 1:2]) / 256
        self._late[:, noises] = np.where(small & (base >= 0)[:, None], self._terms[:, noises], 0.0)
        self._terms -= self._late
        self.columns: tuple[int, ...] = tuple(np.flatnonzero(used).tolist())
        self._base_columns: tuple[int, ...] = tuple(np.flatnonzero((self._bases != 0).any(axis=0)).tolist())
        # Plain lists, so that a compiler that traces a step meets no NumPy.
        self._listed = (
            self._scales.tolist(),
            base.tolist(),
            opposed.tolist(),
            self._terms.tolist(),
            self._late.tolist(),
        )
        self._late_columns: tuple[int, ...] = tuple(np.flatnonzero((self._late != 0).any(axis=0)).tolist())
        self._needs_scale = bool((self._scales != 1.0).any())
        self._rows: dict[int, Row] = {}
        self._gathered: dict[Any, Array] = {}

    @classmethod
    def source(cls, table: Float64) -> int | None:
        """The column that every row passes on unchanged, if there is one."""
        column = int(np.argmax(table[0] != 0))
        unit = np.zeros(table.shape[1])
        unit[column] = 1.0
        return column if (table == unit).all() else None

    def __call__(self, i: Any, arrays: Sequence[Array], x: Array) -> Array:
        """Combination ``i`` of arrays in working precision: an int, or an integer array in the library of ``x``."""
        if not isinstance(i, int):
            return self._gather(i, arrays, x)
        row = self.row(i)
        total = None
        for column, coefficient in row.terms:
            term = arrays[column] * coefficient
            total = term if total is None else total + term
        if row.base is not None:
            base = arrays[row.base] - arrays[1] if row.opposed else arrays[row.base]
            total = base if total is None else base + total
        if total is None:
            return arrays[0] * 0.0
        for column, coefficient in row.late:
            total = total + arrays[column] * coefficient
        # Never an input itself, so that a caller may write to the result.
        return total * row.scale if row.scale != 1.0 or not row.terms else total

    def row(self, i: int) -> Row:
        """Combination ``i`` in the form in which it is summed."""
        row = self._rows.get(i)
        if row is None:
            scales, bases, opposed, *tables = self._listed
            terms, late = (tuple([(c, t[i][c]) for c in self.columns if t[i][c] != 0]) for t in tables)
            base = bases[i] if bases[i] >= 0 else None
            row = self._rows[i] = Row(scales[i], base, opposed[i], terms, late)
        return row

    def _gather(self, i: Array, arrays: Sequence[Array], x: Array) -> Array:
        """The same sum, in the same order, with coefficients read by index on the device; unused terms count 0."""
        xp = kind(x).xp
        rows = xp.take(self.table(x), xp.reshape(i, (-1,)), axis=0)
        if i.ndim == 0:
            rows = rows[0, ...]

        def coefficient(k: int) -> Array:
            return expand(rows[..., k], x)

        base = total = None
        for k, column in enumerate(self._base_columns):
            term = arrays[column] * coefficient(k)
            base = term if base is None else base + term
        scale = len(self._base_columns)
        for k, column in enumerate(self.columns):
            term = arrays[column] * coefficient(scale + 1 + k)
            total = term if total is None else total + term
        if total is None:
            return arrays[0] * 0.0
        total = total if base is None else base + total
        for k, column in enumerate(self._late_columns):
            total = total + arrays[column] * coefficient(scale + 1 + len(self.columns) + k)
        return total * coefficient(scale) if self._needs_scale else total

    def table(self, x: Array) -> Array:
        """Coefficients on the device of ``x``, made once: of the base, the scale, the terms, and the late ones."""
        values = np.column_stack(
            [
                self._bases[:, list(self._base_columns)],
                self._scales,
                self._terms[:, list(self.columns)],
                self._late[:, list(self._late_columns)],
            ]
        )
        where = place(x)
        if where is None:  # JAX: a table made while tracing belongs to that trace alone
            return like(values, x)
        key = (type(x), x.dtype, str(where))
        if key not in self._gathered:
            self._gathered[key] = like(values, x)
        return self._gathered[key]
