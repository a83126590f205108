"""Euler and Maruyama's method on the reverse stochastic differential equation (Song et al. 2021), first order."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, kind, like, namespace
from anystep.forward import mix
from anystep.levels import Levels
from anystep.samplers._base import Sampler, one_step_rows
from anystep.schedules import VE, VP

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """x_nxt = x - (f x + g² ε̂ / sigma_cur) h + g √h z, where dx = f x dt + g dw is the process and h the time of the step.

    Parameters
    ----------
    schedule
        The process of the levels, in its own coordinates: `VP` (f = -β / 2, g² = β) or `VE` (f = 0).
    last_noise
        Whether a last step that ends at the clean sample adds noise too.

    Raises
    ------
    ValueError
        If levels are in other coordinates than the schedule's.

    Notes
    -----
    A last step to the clean sample goes to t = 0, where `VE` leaves noise of its least sigma.

    References
    ----------
    Yang Song et al. Score-Based Generative Modeling through Stochastic Differential Equations, 2021,
    https://arxiv.org/abs/2011.13456, equations 6 and 11, solved as in section 4.1.

    Examples
    --------
    >>> from anystep import Linspace
    >>> levels = Linspace().levels(VP(u_min=0.9), steps=2)
    >>> EulerMaruyama(VP()).rows(levels)[0, 0].round(3).tolist()  # 1 + β h / 2, -β h / sigma, √(β h)
    [2.0, -2.0, 0.0, 1.414]
    """

    schedule: VP | VE
    last_noise: bool = False
    order: ClassVar[int] = 1

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z)."""
        if (levels.scale != 1).any():
            raise ValueError(
                "levels are in Karras coordinates: EulerMaruyama solves the schedule's own equation; leave out to_karras()."
            )
        end = np.where(levels.nxt.sigma_t > 0, levels.nxt.t, 0.0)
        growth, slope, std = self.increments(levels.cur.t, levels.cur.t - end)
        if not self.last_noise:
            std = np.where(levels.nxt.sigma_t == 0, 0.0, std)
        return one_step_rows(1 + growth, slope, np.zeros_like(std), std)

    def increments(self, t: Any, h: Any) -> tuple[Any, Any, Any]:
        """What a step of width h from t adds, per x, ε̂ and z: float64 for host values, else in the library and dtype of ``t``."""
        level = self.schedule.level(t)
        drift, squared = self.schedule.rates(level.t)
        return -drift * h, -squared * h / level.sigma_t, namespace(level.t).sqrt(squared * h)

    def step(self, x: Array, noise_estimate: Array, noise: Array, t: Any, h: Any) -> tuple[Array, Array]:
        """One step of a batch whose samples may each be at another, continuous t, and its mean.

        Parameters
        ----------
        x, noise_estimate, noise
            The samples, ε̂ and fresh standard normals, shape (B, ...); unchanged.
        t, h
            Time and width of the step: a number, host values of shape (B,), or an array of the library of ``x``, not read.

        Returns
        -------
        tuple of array
            x_nxt and its mean, with shape, dtype and device of ``x``.
        """
        xp, work, _ = kind(x)
        growth, slope, std = (
            like(part, x) if isinstance(part, np.ndarray | np.generic) else xp.astype(part, work, copy=False)
            for part in self.increments(t, h)
        )
        wide = xp.astype(x, work, copy=False)
        mean = wide + mix(wide, noise_estimate, growth, slope)
        moved = mix(mean, noise, 1.0, std)
        return xp.astype(moved, x.dtype, copy=False), xp.astype(mean, x.dtype, copy=False)
