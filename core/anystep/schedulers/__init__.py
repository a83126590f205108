"""The diffusers-named classes.

Config to (schedule, spacing, sampler, prediction), and methods of the same names.
"""

from anystep.schedulers._config import ConfigMixin
from anystep.schedulers._mixin import KarrasDiffusionSchedulers, SchedulerMixin
from anystep.schedulers._outputs import SchedulerOutput
from anystep.schedulers.ddim import DDIMScheduler
from anystep.schedulers.ddpm import DDPMScheduler
from anystep.schedulers.euler_discrete import EulerDiscreteScheduler

__all__ = [
    "ConfigMixin",
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "KarrasDiffusionSchedulers",
    "SchedulerMixin",
    "SchedulerOutput",
]
