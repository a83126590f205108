"""UniPC of a run that begins at a later row, as image-to-image loops do in diffusers' UniPCMultistepScheduler."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler
from anystep.samplers.unipc import UniPC

__all__ = ["LateUniPC"]


@dataclass(frozen=True)
class LateUniPC(Sampler):
    """`anystep.UniPC` on the levels from row ``first`` on; rows before it are 0.

    Parameters
    ----------
    solver
        The method, with a corrector; ``skip_corrector`` counts all rows.
    first
        Row of the run's first call, >= 0.
    """

    solver: UniPC
    first: int = 0
    bounds_noise: ClassVar[bool] = True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the formulas."""
        return self.solver.order

    def rows(self, levels: Levels) -> Float64:
        """Coefficients as of `UniPC.rows`."""
        first, skipped = self.first, self.solver.skip_corrector
        if not first:
            return self.solver.rows(levels)
        rest = replace(self.solver, skip_corrector=[step - first for step in skipped if step >= first])
        found = rest.rows(Levels(levels.cur[first:], levels.nxt[first:]))
        return np.concatenate([np.zeros((first, *found.shape[1:])), found])
