"""Which levels to visit: even in time, even in some function of sigma, shifted, or listed."""

from anystep.spacings._base import Spacing
from anystep.spacings.custom import Sigmas, Timesteps
from anystep.spacings.flow import Shifted, dynamic_shift
from anystep.spacings.sigma import Beta, Exponential, Karras, Lu
from anystep.spacings.time import Leading, Linspace, Trailing

__all__ = [
    "Beta",
    "Exponential",
    "Karras",
    "Leading",
    "Linspace",
    "Lu",
    "Shifted",
    "Sigmas",
    "Spacing",
    "Timesteps",
    "Trailing",
    "dynamic_shift",
]
