"""Learned variances of DDPM: elementwise, so not a matter of a plan's scalars.

The plan of ``DDPM(variance="unit")`` adds its noise with coefficient 1; these functions give that noise its
standard deviation.
"""

import numpy as np

from anystep._array import Array, Float64, kind
from anystep.levels import Levels
from anystep.samplers._base import added_std, posterior_std

__all__ = ["learned_noise", "learned_range_noise", "log_variance_range"]


def log_variance_range(levels: Levels, floor: float = 1e-20) -> tuple[Float64, Float64]:
    """Log of the smallest and of the largest sensible variance of each step, shape (N,): of the posterior,
    and of the added noise.

    Nichol, Dhariwal 2021, https://arxiv.org/abs/2102.09672, section 3.1. ``floor`` keeps the log finite where
    the posterior is a point.
    """
    return np.log(np.maximum(posterior_std(levels) ** 2, floor)), np.log(
        np.maximum(added_std(levels) ** 2, floor)
    )


def learned_noise(log_variance: Array, noise: Array) -> Array:
    """Noise times the standard deviation exp(v / 2) for a model that returns the log variance v.

    The result is in the working precision of the noise, so that half precision is rounded only once, by the update.
    """
    kind(log_variance, "log_variance")
    found = kind(noise, "noise")
    wide, fresh = (found.xp.astype(part, found.work, copy=False) for part in (log_variance, noise))
    return found.xp.exp(wide * 0.5) * fresh


def learned_range_noise(fraction: Array, noise: Array, log_small: float, log_large: float) -> Array:
    """Noise for a model that returns where between two log variances, -1 to 1, its own lies.

    Equation 15 of the same. The result is as of `learned_noise`.
    """
    kind(fraction, "fraction")
    found = kind(noise, "noise")
    half_width, middle = (
        0.5 * (float(log_large) - float(log_small)),
        0.5 * (float(log_large) + float(log_small)),
    )
    return learned_noise(found.xp.astype(fraction, found.work, copy=False) * half_width + middle, noise)
