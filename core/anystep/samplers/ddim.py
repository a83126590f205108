"""DDIM: denoising diffusion implicit models (Song, Meng, Ermon 2020), first order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler, one_step_rows, posterior_std

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Sampler):
    """x_nxt = alpha_nxt x̂₀ + √(sigma_nxt² - s²) ε̂ + s z, with s = eta times the posterior's standard
    deviation.

    Parameters
    ----------
    eta
        Scale of the added noise's standard deviation, in [0, 1]: 0 is the ODE step, 1 is `DDPM` with its
        small variance.
    reestimate_noise
        Take ε̂ from the bounded x̂₀, so that the two agree with x, instead of from the model's output. Makes
        no difference without a threshold. Used by GLIDE.

    Raises
    ------
    ValueError
        If ``eta`` is outside [0, 1].

    Notes
    -----
    The formula is the same in every coordinate system, so on levels in Karras coordinates eta = 0 is `Euler`.

    References
    ----------
    Jiaming Song, Chenlin Meng, Stefano Ermon. Denoising Diffusion Implicit Models, 2020,
    https://arxiv.org/abs/2010.02502, equations 12 and 16. They write alpha for alpha_t².

    Examples
    --------
    >>> from anystep.levels import Levels
    >>> levels = Levels.chain([1, 0], [0.6, 1.0], [0.8, 0.0])
    >>> DDIM().rows(levels).tolist()  # the last step returns the estimate
    [[[0.0, 0.0, 1.0]]]
    """

    eta: float = 0.0
    reestimate_noise: bool = False
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} is outside [0, 1]: 0 is the ODE step, 1 is DDPM.")

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z)."""
        cur, nxt = levels.cur, levels.nxt
        # The ODE step has no posterior to ask for, which is undefined between two levels of pure noise.
        std = self.eta * posterior_std(levels) if self.eta else np.zeros(levels.steps)
        direction = np.sqrt(np.maximum(nxt.sigma_t**2 - std**2, 0.0))
        zero = np.zeros_like(direction)
        if not self.reestimate_noise:
            return one_step_rows(zero, direction, nxt.alpha_t, std)
        ratio = direction / cur.sigma_t
        return one_step_rows(ratio, zero, nxt.alpha_t - ratio * cur.alpha_t, std)
