"""Forward processes, t -> (alpha_t, sigma_t): tables of betas and closed forms in continuous time."""

# pyright: reportUnusedImport=false

from typing import TYPE_CHECKING

from anystep._lazy import attach

if TYPE_CHECKING:
    from anystep.schedules._base import Schedule
    from anystep.schedules.betas import BETAS, BetaSchedule
    from anystep.schedules.continuous import VE, VP, Cosine, Crash, EDMSchedule, RectifiedFlow
    from anystep.schedules.vq import MaskAndReplace

_HOMES = {
    "_base": "Schedule",
    "betas": "BETAS BetaSchedule",
    "continuous": "VE VP Cosine Crash EDMSchedule RectifiedFlow",
    "vq": "MaskAndReplace",
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
