"""Heun begun at the second call of a step, as in diffusers' HeunDiscreteScheduler; no published source."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler
from anystep.samplers.heun import Heun

__all__ = ["LateHeun"]

X, START = 0, 3
"""Columns."""


@dataclass(frozen=True)
class LateHeun(Sampler):
    """x_nxt = x: calls are paired from the second of `anystep.Heun` on, and both of such a pair are at one level.

    Parameters
    ----------
    corrects
        Whether the call is the second of its pair, which begins again where the first began.
    """

    corrects: bool
    order: ClassVar[int] = 0

    def calls(self, levels: Levels) -> Levels:
        """Those of `anystep.Heun`."""
        return Heun().calls(levels)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, start), a row for each model call."""
        rows = np.zeros((2 * levels.steps - 1, 2, 4))
        rows[:, :, START if self.corrects else X] = 1.0
        return rows
