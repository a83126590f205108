"""DDPM: ancestral sampling from the Gaussian posterior (Ho, Jain, Abbeel 2020), first order in its mean."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler, added_std, one_step_rows, posterior_std

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM(Sampler):
    """x_nxt = E[x_nxt | x, x̂₀] + s z.

    The mean is k sigma_nxt² / sigma_cur² x + alpha_nxt b² / sigma_cur² x̂₀, where k = alpha_cur / alpha_nxt
    is the part of the signal that the step kept and b² = sigma_cur² - k² sigma_nxt² the variance it added.

    Parameters
    ----------
    variance
        ``"small"``: s is the posterior's standard deviation b sigma_nxt / sigma_cur, right if the data are
        one point. ``"large"``: s = b, right if the data are standard normal. ``"unit"``: s = 1, for a caller
        who scales the noise with a learned variance (see `anystep.variance`).
    last_noise
        Whether ``"large"`` and ``"unit"`` add noise at a step that ends at sigma = 0 too, unless it starts at
        t = 0. No paper does; diffusers does.

    Raises
    ------
    ValueError
        If ``variance`` is none of these.

    References
    ----------
    Jonathan Ho, Ajay Jain, Pieter Abbeel. Denoising Diffusion Probabilistic Models, 2020,
    https://arxiv.org/abs/2006.11239, equation 7 and section 3.2; written here for any alpha and sigma.

    Examples
    --------
    >>> from anystep import DDIM, Levels
    >>> levels = Levels.chain([1, 0], [0.6, 0.8], [0.8, 0.6])
    >>> small, eta_1 = DDPM().plan(levels, "epsilon").folded, DDIM(eta=1.0).plan(levels, "epsilon").folded
    >>> bool(np.allclose(small, eta_1, rtol=1e-14))
    True
    """

    variance: Literal["small", "large", "unit"] = "small"
    last_noise: bool = False
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large", "unit"):
            raise ValueError(f"variance={self.variance!r}: expected 'small', 'large' or 'unit'.")

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z)."""
        cur, nxt = levels.cur, levels.nxt
        added = added_std(levels)
        kept = cur.alpha_t / nxt.alpha_t
        ends = np.asarray(cur.t) == 0 if self.last_noise else nxt.sigma_t == 0
        std = {
            "small": posterior_std(levels),
            "large": np.where(ends, 0.0, added),
            "unit": np.where(ends, 0.0, 1.0),
        }
        x = kept * (nxt.sigma_t / cur.sigma_t) ** 2
        x0 = nxt.alpha_t * (added / cur.sigma_t) ** 2
        return one_step_rows(x, np.zeros_like(x), x0, std[self.variance])
