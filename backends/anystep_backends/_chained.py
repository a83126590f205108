"""A call of several outputs in fewer terms: outputs that are already made take the place of what they are made of.

UniPC's next sample, for one, is a sum of five arrays, and so is its corrected sample; but of the estimate x̂₀, which is
made anyway, the corrected sample needs only one term in place of two, and of both the next sample is a sum of three.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anystep import Plan
from anystep._combination import Combination

from ._fused import Output

__all__ = ["chained"]

Float64 = npt.NDArray[np.float64]

ROUNDING = 1e-13
"""What is left of a coefficient that vanishes, of the numbers that it is the difference of."""
_KEY = -3, Plan, None
"""Where a plan keeps its chain."""
GROWTH = 1.25
"""How much larger Σ|c| may get by the way of an output, which is how much larger its rounding is."""


def chained(plan: Plan, i: int) -> list[Output]:
    """The outputs of call ``i``, in the order in which they are to be made; the sample last."""
    kept = plan.fused.get(_KEY)
    if kept is None:
        kept = plan.fused[_KEY] = _Chain(plan)
    return kept.outputs(i)


class _Chain:
    def __init__(self, plan: Plan) -> None:
        self._plan, folded, states = plan, plan.folded, 3 + plan.memories
        count, outputs, _ = folded.shape
        # Columns: x, m, none, memories, outputs, noises.
        table = np.zeros((count, outputs, states + outputs + plan.noises))
        table[:, :, :states], table[:, :, states + outputs :] = folded[:, :, :states], folded[:, :, states:]
        whole = np.abs(table).sum(axis=-1)
        sums = [k for k in range(1, outputs) if any(moves[k] is None for moves in plan.moves)]
        # From the shortest on, so that what is made of few arrays may stand for them.
        self._order = [*sorted(sums, key=lambda k: int(np.count_nonzero(table[:, k]))), 0]
        for n, output in enumerate(self._order):
            for made in self._order[:n]:
                _substitute(table, whole, output, made, states + made)
        self._rows = {k: Combination(table[:, k], plan.memories + outputs) for k in self._order}
        self._states, self._made = states, range(states, states + outputs)

    def outputs(self, i: int) -> list[Output]:
        moves, given = self._plan.moves[i], self._states - 1
        given += self._plan.noises if self._plan.stochastic[i] else 0

        def position(column: int) -> int:
            if column in self._made:
                return given + column - self._made.start
            return column - (column > 2) - (len(self._made) if column >= self._made.stop else 0)

        found: list[Output] = []
        for number, move in enumerate(moves):
            if move is not None:
                found.append(
                    Output(number, position(move + (len(self._made) if move >= self._states else 0)))
                )
        for number in self._order:
            if moves[number] is None:
                row = self._rows[number].row(i)
                terms, late = (tuple([(position(c), v) for c, v in part]) for part in (row.terms, row.late))
                base = None if row.base is None else position(row.base)
                found.append(Output(number, row._replace(base=base, terms=terms, late=late)))
        return found


def _substitute(table: Float64, whole: Float64, output: int, made: int, column: int) -> None:
    """Write rows of one output with another as a term, where that takes fewer terms."""
    row, other = table[:, output], table[:, made]
    best, least = row.copy(), np.count_nonzero(row, axis=-1)
    for pivot in np.flatnonzero((other != 0).any(axis=0)):
        known = other[:, pivot] != 0
        factor = np.divide(row[:, pivot], other[:, pivot], out=np.zeros(len(row)), where=known)
        product = factor[:, None] * other
        rest = row - product
        rest[np.abs(rest) <= ROUNDING * (np.abs(row) + np.abs(product))] = 0.0
        grown = np.abs(factor) * whole[:, made] + np.abs(rest).sum(axis=-1)
        rest[:, column] = factor
        count = np.count_nonzero(rest, axis=-1)
        better = (factor != 0) & (count < least) & (grown <= GROWTH * whole[:, output])
        best[better], least = rest[better], np.where(better, count, least)
    table[:, output] = best
