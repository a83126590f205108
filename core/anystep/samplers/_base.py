"""What a sampler is: levels in, rows of coefficients out."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.plan import Plan, compose
from anystep.predictions import Prediction, prediction

if TYPE_CHECKING:
    from anystep.thresholding import Threshold

__all__ = ["Sampler"]


class Sampler(ABC):
    """Abstract: one method of solving the reverse process."""

    order: ClassVar[int]
    """Order of convergence of its deterministic form, as tested."""
    bounds_noise: ClassVar[bool] = False
    """Whether a threshold bounds ε̂ too, which is then made of the bounded x̂₀: so it is where ε̂ is remembered."""

    def plan(self, levels: Levels, predicts: str | Prediction, threshold: "Threshold | None" = None) -> Plan:
        """The table that `anystep.update` runs.

        Parameters
        ----------
        levels
            From a spacing, or made by hand.
        predicts
            What the model returns: a `Prediction` or its name.
        threshold
            Bound on the estimate of the clean sample, or None.
        """
        with np.errstate(all="ignore"):  # a number that overflows is refused by name
            calls, rows = self.calls(levels), self.rows(levels)
            if threshold is not None and self.bounds_noise:
                rows = from_estimate(rows, calls)
            return compose(calls, prediction(predicts), rows, threshold)

    def calls(self, levels: Levels) -> Levels:
        """The level of each model call, and the level that x is at after it: those of the steps, if a step is one call."""
        return levels

    @abstractmethod
    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, memories, noises), shape (N, 1 + K, 3 + K + R).

        See `anystep.plan.compose`.
        """


def one_step_rows(x: Float64, noise_estimate: Float64, x0: Float64, noise: Float64 | None = None) -> Float64:
    """Rows of a method without memory: four columns, or three if no row adds noise."""
    noisy = noise is not None and noise.any()
    rows = np.empty((len(x), 1, 4 if noisy else 3))
    rows[:, 0, 0], rows[:, 0, 1], rows[:, 0, 2] = x, noise_estimate, x0
    if noisy:
        rows[:, 0, 3] = noise
    return rows


def posterior_std(levels: Levels) -> Float64:
    """Standard deviation of x at the next level given x and x_0.

    Ho, Jain, Abbeel 2020, equation 7, for any process: with alpha = alpha_cur / alpha_nxt the part of the
    signal that the step kept, √(sigma_cur² - alpha² sigma_nxt²) sigma_nxt / sigma_cur.
    """
    return added_std(levels) * levels.nxt.sigma_t / levels.cur.sigma_t


def added_std(levels: Levels) -> Float64:
    """Standard deviation of the noise that the forward process adds from ``nxt`` to ``cur``."""
    kept = levels.cur.alpha_t / levels.nxt.alpha_t
    return np.sqrt(np.maximum(levels.cur.sigma_t**2 - (kept * levels.nxt.sigma_t) ** 2, 0.0))


def from_estimate(rows: Float64, calls: Levels) -> Float64:
    """Rows with every ε̂ made of x and x̂₀, so that a bound on x̂₀ bounds it too; ``calls`` are the levels of the rows."""
    table = rows.copy()
    noise = table[:, :, 1].copy()
    table[:, :, 1] = 0.0
    table[:, :, 0] += noise / calls.cur.sigma_t[:, None]
    table[:, :, 2] -= noise * (calls.cur.alpha_t / calls.cur.sigma_t)[:, None]
    return table
