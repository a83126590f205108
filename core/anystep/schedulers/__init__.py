"""The diffusers-named classes.

Config to (schedule, spacing, sampler, prediction), and methods of the same names.
"""

from anystep.schedulers._config import ConfigMixin
from anystep.schedulers._mixin import KarrasDiffusionSchedulers, SchedulerMixin
from anystep.schedulers._outputs import (
    DDIMSchedulerOutput,
    DDPMSchedulerOutput,
    EulerAncestralDiscreteSchedulerOutput,
    EulerDiscreteSchedulerOutput,
    KarrasVeOutput,
    LMSDiscreteSchedulerOutput,
    RePaintSchedulerOutput,
    SchedulerOutput,
    SdeVeOutput,
    VQDiffusionSchedulerOutput,
)
from anystep.schedulers.ddim import DDIMScheduler
from anystep.schedulers.ddpm import DDPMScheduler
from anystep.schedulers.euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from anystep.schedulers.euler_discrete import EulerDiscreteScheduler
from anystep.schedulers.ipndm import IPNDMScheduler
from anystep.schedulers.karras_ve import KarrasVeScheduler
from anystep.schedulers.lms_discrete import LMSDiscreteScheduler
from anystep.schedulers.pndm import PNDMScheduler
from anystep.schedulers.repaint import RePaintScheduler
from anystep.schedulers.sde_ve import ScoreSdeVeScheduler
from anystep.schedulers.sde_vp import ScoreSdeVpScheduler
from anystep.schedulers.vq_diffusion import VQDiffusionScheduler

__all__ = [
    "ConfigMixin",
    "DDIMScheduler",
    "DDIMSchedulerOutput",
    "DDPMScheduler",
    "DDPMSchedulerOutput",
    "EulerAncestralDiscreteScheduler",
    "EulerAncestralDiscreteSchedulerOutput",
    "EulerDiscreteScheduler",
    "EulerDiscreteSchedulerOutput",
    "IPNDMScheduler",
    "KarrasDiffusionSchedulers",
    "KarrasVeOutput",
    "KarrasVeScheduler",
    "LMSDiscreteScheduler",
    "LMSDiscreteSchedulerOutput",
    "PNDMScheduler",
    "RePaintScheduler",
    "RePaintSchedulerOutput",
    "SchedulerMixin",
    "SchedulerOutput",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "SdeVeOutput",
    "VQDiffusionScheduler",
    "VQDiffusionSchedulerOutput",
]
