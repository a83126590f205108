"""Which levels to visit: even in time, even in some function of sigma, shifted, or listed."""

# pyright: reportUnusedImport=false

from typing import TYPE_CHECKING

from anystep._lazy import attach

if TYPE_CHECKING:
    from anystep.spacings._base import Spacing
    from anystep.spacings.custom import Sigmas, Timesteps
    from anystep.spacings.flow import Shifted, dynamic_shift
    from anystep.spacings.sigma import Beta, Exponential, Karras, Lu
    from anystep.spacings.time import Leading, Linspace, Trailing

_HOMES = {
    "_base": "Spacing",
    "custom": "Sigmas Timesteps",
    "flow": "Shifted dynamic_shift",
    "sigma": "Beta Exponential Karras Lu",
    "time": "Leading Linspace Trailing",
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
