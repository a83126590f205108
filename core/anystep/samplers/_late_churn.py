"""Euler with churn added after the model call, as diffusers' EulerDiscreteScheduler does; no published
source.

Karras et al. 2022, algorithm 2, add it before: `anystep.Euler` does.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from anystep._array import Float64
from anystep.levels import Level, Levels
from anystep.plan import Plan, compose
from anystep.predictions import Epsilon, Prediction, prediction
from anystep.samplers._base import one_step_rows

if TYPE_CHECKING:
    from anystep.thresholding import Threshold

__all__ = ["LateChurnEuler"]


@dataclass(frozen=True)
class LateChurnEuler:
    """x̂ = x + √(σ̂² - σ²) s_noise z, x_nxt = x̂ + (σ_nxt - σ̂) (x̂ - x̂₀) / σ̂, with x̂₀ made of x̂ and of
    the model's output at x.

    Parameters
    ----------
    s_churn, s_tmin, s_tmax, s_noise
        As for `anystep.Euler`; ``count`` takes the place of N in the factor that raises a level.
    count
        Number that s_churn is divided by; None means N.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = np.inf
    s_noise: float = 1.0
    count: int | None = None

    def plan(self, levels: Levels, predicts: str | Prediction, threshold: "Threshold | None" = None) -> Plan:
        """See `anystep.Sampler.plan`. Only the ε-prediction is read at the raised level."""
        predicts = prediction(predicts)
        at, sigma, raised = levels, levels.cur.sigma_t, self.raised(levels)
        if self.s_churn and isinstance(predicts, Epsilon):
            at = replace(levels, cur=Level(levels.cur.t, levels.cur.alpha_t, raised))
        keep = levels.nxt.sigma_t / raised
        noise = None
        if self.s_churn:
            slope = predicts.to_sample(at.model_level)[0] * levels.scale
            noise = self.s_noise * np.sqrt(raised**2 - sigma**2) * (keep + (1 - keep) * slope)
        return compose(at, predicts, one_step_rows(keep, np.zeros_like(keep), 1 - keep, noise), threshold)

    def raised(self, levels: Levels) -> Float64:
        """σ̂ of each step."""
        sigma = levels.cur.sigma_t
        if not self.s_churn:
            return sigma
        inside = (sigma >= self.s_tmin) & (sigma <= self.s_tmax)
        return sigma * (1 + min(self.s_churn / (self.count or levels.steps), 2**0.5 - 1) * inside)
