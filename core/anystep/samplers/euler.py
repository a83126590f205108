"""Euler's method with churn (Karras et al. 2022), first order."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Level, Levels
from anystep.plan import Plan
from anystep.predictions import Prediction
from anystep.samplers._base import Sampler, one_step_rows
from anystep.schedules import Schedule

if TYPE_CHECKING:
    from anystep.thresholding import Threshold

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(Sampler):
    """x_nxt = x + (sigma_nxt - sigma_cur) (x - x̂₀) / sigma_cur, where alpha = 1.

    Written for any coordinates: (sigma_nxt / sigma_cur) x + (alpha_nxt - alpha_cur sigma_nxt / sigma_cur)
    x̂₀.

    Parameters
    ----------
    s_churn
        Amount of noise added before model calls, >= 0; each call raises its karras_sigma by the factor
        1 + min(s_churn / N, √2 - 1). 0 is the ODE.
    s_tmin, s_tmax
        Range of karras_sigma in which noise is added.
    s_noise
        Scale of the added noise's standard deviation, >= 0; 1 keeps the level exact, the paper also uses
        1.003 to 1.007.
    schedule
        The process of the levels, needed with churn, since the model is then called at raised levels.

    Raises
    ------
    ValueError
        If an option is out of range, or churn is asked for without a schedule or on levels where alpha is not
        1.

    Notes
    -----
    Algorithm 2 raises the level, then calls the model. A plan's row begins with a model call, so the noise
    that raises call i + 1 is added at the end of row i, and the start sample of a plan with churn has the
    raised ``plan.sigma[0]``.

    References
    ----------
    Tero Karras, Miika Aittala, Timo Aila, Samuli Laine. Elucidating the Design Space of Diffusion-Based
    Generative Models, 2022, https://arxiv.org/abs/2206.00364, algorithm 2 without the second-order
    correction.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [4.0, 2.0, 0.0])
    >>> Euler().plan(levels, "epsilon").folded[0, 0].tolist()  # x + (2 - 4) ε
    [1.0, -2.0, 0.0]
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = np.inf
    s_noise: float = 1.0
    schedule: Schedule | None = None
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a number >= 0; s_churn=0 is the ODE."
                )
        if self.s_churn and self.schedule is None:
            raise ValueError(f"s_churn={self.s_churn} needs schedule=: the model is called at raised levels.")

    def plan(self, levels: Levels, predicts: str | Prediction, threshold: "Threshold | None" = None) -> Plan:
        """See `Sampler.plan`; with churn, model calls are at the raised levels."""
        return super().plan(self.raised(levels), predicts, threshold)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z) for levels already raised."""
        cur, nxt = levels.cur, levels.nxt
        x = nxt.sigma_t / cur.sigma_t
        x0 = nxt.alpha_t - cur.alpha_t * x
        noise = None
        if self.s_churn:  # of what lies between the end of this step and the raised start of the next
            gap = np.append(cur.sigma_t[1:] ** 2 - nxt.sigma_t[:-1] ** 2, 0.0)
            noise = self.s_noise * np.sqrt(np.maximum(gap, 0.0))
        return one_step_rows(x, np.zeros_like(x), x0, noise)

    def raised(self, levels: Levels) -> Levels:
        """Levels whose starts are raised by churn; the ends stay."""
        if not self.s_churn or self.schedule is None:
            return levels
        sigma = levels.cur.sigma_t
        if (levels.cur.alpha_t != 1).any():
            raise ValueError(f"s_churn={self.s_churn} needs levels with alpha = 1: use levels.to_karras().")
        gamma = min(self.s_churn / levels.steps, 2**0.5 - 1) * (
            (sigma >= self.s_tmin) & (sigma <= self.s_tmax)
        )
        high = np.minimum(sigma * (1 + gamma), np.maximum(self.schedule.sigma_max, sigma))
        model = self.schedule.at(high)
        return replace(levels, cur=Level(model.t, np.ones_like(high), high), scale=np.asarray(model.alpha_t))
