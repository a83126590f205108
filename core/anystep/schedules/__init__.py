"""Forward processes, t -> (alpha_t, sigma_t): tables of betas and closed forms in continuous time."""

from anystep.schedules._base import Schedule
from anystep.schedules.betas import BETAS, BetaSchedule
from anystep.schedules.continuous import VE, VP, Cosine, Crash, EDMSchedule, RectifiedFlow
from anystep.schedules.vq import MaskAndReplace

__all__ = [
    "BETAS",
    "VE",
    "VP",
    "BetaSchedule",
    "Cosine",
    "Crash",
    "EDMSchedule",
    "MaskAndReplace",
    "RectifiedFlow",
    "Schedule",
]
