"""anystep: diffusion-model schedulers for every array library.

A scheduler is a table of numbers, made once on the host (`anystep.plan`), and a linear combination of arrays
at each step (`anystep.update`). Two faces use them: the diffusers-named classes (`DDIMScheduler`, ...), and
free composition of a schedule, a spacing, a sampler and a prediction. Names are loaded when they are first
used.
"""

# pyright: reportUnusedImport=false

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anystep._version import __version__

if TYPE_CHECKING:
    from anystep._draw import draw
    from anystep._update import State, estimate, init, scale_input, update
    from anystep.forward import add_noise, scale_noise, snr, target, velocity
    from anystep.levels import Level, Levels
    from anystep.plan import Plan
    from anystep.predictions import EDM, Epsilon, Flow, Prediction, Sample, Score, Velocity
    from anystep.samplers import DDIM, DDPM, Euler, Sampler
    from anystep.sampling import sample
    from anystep.schedulers import (
        ConfigMixin,
        DDIMScheduler,
        DDPMScheduler,
        EulerDiscreteScheduler,
        KarrasDiffusionSchedulers,
        SchedulerMixin,
        SchedulerOutput,
    )
    from anystep.schedules import VE, VP, BetaSchedule, Cosine, Crash, EDMSchedule, RectifiedFlow, Schedule
    from anystep.spacings import (
        Beta,
        Exponential,
        Karras,
        Leading,
        Linspace,
        Lu,
        Shifted,
        Sigmas,
        Spacing,
        Timesteps,
        Trailing,
        dynamic_shift,
    )
    from anystep.thresholding import Clip, DynamicThreshold, Threshold

_HOMES = {
    "_draw": "draw",
    "forward": "add_noise scale_noise snr target velocity",
    "levels": "Level Levels",
    "plan": "Plan",
    "predictions": "EDM Epsilon Flow Prediction Sample Score Velocity",
    "samplers": "DDIM DDPM Euler Sampler",
    "sampling": "sample",
    "schedulers": "ConfigMixin DDIMScheduler DDPMScheduler EulerDiscreteScheduler KarrasDiffusionSchedulers SchedulerMixin "
    "SchedulerOutput",
    "schedules": "VE VP BetaSchedule Cosine Crash EDMSchedule RectifiedFlow Schedule",
    "spacings": "Beta Exponential Karras Leading Linspace Lu Shifted Sigmas Spacing Timesteps Trailing dynamic_shift",
    "thresholding": "Clip DynamicThreshold Threshold",
    "_update": "State estimate init scale_input update",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'anystep' has no attribute {name!r}")
    value = getattr(import_module(f"anystep.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
