"""Multistep DPM-Solver begun at any row, as diffusers' DPMSolverMultistepScheduler may be."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler
from anystep.samplers.dpm_solver import DPMSolver, dpm_rows

__all__ = ["HeldDPMSolver"]


@dataclass(frozen=True)
class HeldDPMSolver(Sampler):
    """`anystep.DPMSolver` whose first estimate is made at row ``begun``.

    Parameters
    ----------
    solver
        The method.
    begun
        Row i has i - ``begun`` earlier estimates; rows before it have none.
    kept
        Number of estimates carried to the next call, the present one included, >= 1.
    third_as_authors
        Whether the third-order term is that of the authors' multistep code, or, for x̂₀ of the SDE, that of diffusers:
        D″ is taken for half of what it is, and for the SDE alpha_nxt h² D″ / 2 is subtracted too. No published source.
    """

    solver: DPMSolver
    begun: int
    kept: int
    third_as_authors: bool = False
    bounds_noise: ClassVar[bool] = True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the formula."""
        lowered = 1 if self.solver.stochastic else 2
        return lowered if self.third_as_authors and self.solver.order == 3 else self.solver.order

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, earlier estimates, z)."""
        lessened = self.third_as_authors and (self.solver.integrand == "x0" or not self.solver.stochastic)
        third = self._third if lessened else None
        held = np.maximum(np.arange(levels.steps) - self.begun, 0)
        return dpm_rows(levels, self.solver, held, self.kept, third)

    def _third(self, factor: Float64, alpha_t: Float64, h: Float64) -> Float64:
        return factor / 2 - np.where(self.solver.stochastic & (h >= 0), alpha_t * h**2 / 2, 0.0)
