"""Reverse diffusion: the forward step's discretization, backward (Song et al. 2021), first order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler, added_std, one_step_rows

__all__ = ["ReverseDiffusion"]


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """x_nxt = (2 - a) x - g² ε̂ / sigma_cur + g z, where the forward step is x_cur = a x_nxt + g z.

    a = alpha_cur / alpha_nxt and g² = sigma_cur² - a² sigma_nxt². For the variance-exploding process a = 1, and the step is
    x + (sigma_cur² - sigma_nxt²) score + √(sigma_cur² - sigma_nxt²) z; for DDPM's table a = √(1 - β) and g = √β.

    Parameters
    ----------
    s_noise
        Scale of the noise's standard deviation, >= 0; 0 gives the mean of the step.
    last_noise
        Whether a last step that ends at the clean sample adds noise too; the noise it adds is not removed again.

    Raises
    ------
    ValueError
        If ``s_noise`` is below 0.

    References
    ----------
    Yang Song et al. Score-Based Generative Modeling through Stochastic Differential Equations, 2021,
    https://arxiv.org/abs/2011.13456, equation 46; algorithms 2 (VE) and 3 (VP). Their last step adds noise; the original code
    ends with its mean.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [5.0, 3.0, 0.0])
    >>> ReverseDiffusion().plan(levels, "score").folded[0, 0].tolist()  # x + 16 score + 4 z
    [1.0, 16.0, 0.0, 4.0]
    """

    s_noise: float = 1.0
    last_noise: bool = False
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.s_noise < np.inf:
            raise ValueError(f"s_noise={self.s_noise}: expected a number >= 0; 0 is the mean, 1 is usual.")

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z)."""
        kept = levels.cur.alpha_t / levels.nxt.alpha_t
        std = added_std(levels)
        noise = self.s_noise * std
        if not self.last_noise:
            noise = np.where(levels.nxt.sigma_t == 0, 0.0, noise)
        return one_step_rows(2 - kept, -(std**2) / levels.cur.sigma_t, np.zeros_like(std), noise)
