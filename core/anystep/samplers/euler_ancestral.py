"""Euler ancestral: Euler's method to below the next level, and noise back up to it (K. Crowson 2022), first order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler, one_step_rows, posterior_std

__all__ = ["EulerAncestral"]


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """x_nxt = x + (sigma_down - sigma_cur) (x - x̂₀) / sigma_cur + s_noise sigma_up z, where alpha = 1.

    sigma_up = min(sigma_nxt, eta sigma_nxt √(sigma_cur² - sigma_nxt²) / sigma_cur), and sigma_down² =
    sigma_nxt² - sigma_up². Written for any coordinates, with sigma_up = eta times the posterior's standard
    deviation, x̂₀ has the coefficient alpha_nxt - alpha_cur sigma_down / sigma_cur.

    Parameters
    ----------
    eta
        Scale of the added noise's standard deviation, >= 0: 0 is `Euler`, 1 draws from the posterior as
        `DDPM` does. Above 1 all noise may be new.
    s_noise
        Scale of the noise alone, >= 0; 1 keeps the level exact.

    Raises
    ------
    ValueError
        If an option is out of range.

    Notes
    -----
    The step of `DDIM` with this ``eta`` and ``reestimate_noise``, which comes from another derivation and
    allows no ``eta`` above 1.

    References
    ----------
    No published source: ``sample_euler_ancestral`` and ``get_ancestral_step`` of k-diffusion. At eta = 1 the
    posterior of Jonathan Ho, Ajay Jain, Pieter Abbeel, Denoising Diffusion Probabilistic Models, 2020,
    https://arxiv.org/abs/2006.11239, equation 7.

    Examples
    --------
    >>> from anystep import DDPM
    >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [4.0, 2.0, 0.0])
    >>> bool(np.allclose(EulerAncestral().rows(levels), DDPM().rows(levels), rtol=1e-14))
    True
    """

    eta: float = 1.0
    s_noise: float = 1.0
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("eta", "s_noise"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a number >= 0; 0 adds no noise, 1 is usual."
                )

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z)."""
        cur, nxt = levels.cur, levels.nxt
        up = np.minimum(nxt.sigma_t, self.eta * posterior_std(levels))
        ratio = cur.alpha_t / nxt.alpha_t * nxt.sigma_t / cur.sigma_t
        # sigma_down² / sigma_nxt² as a sum, since 1 - up² / sigma_nxt² cancels where steps are long
        kept = np.maximum((1 - self.eta) * (1 + self.eta) + (self.eta * ratio) ** 2, 0.0)
        x = np.sqrt(kept) * nxt.sigma_t / cur.sigma_t
        return one_step_rows(x, np.zeros_like(x), nxt.alpha_t - cur.alpha_t * x, self.s_noise * up)
