"""The diffusers-named classes.

Config to (schedule, spacing, sampler, prediction), and methods of the same names.
"""

# pyright: reportUnusedImport=false

from typing import TYPE_CHECKING

from anystep._lazy import attach

if TYPE_CHECKING:
    from anystep.schedulers._config import ConfigMixin
    from anystep.schedulers._mixin import KarrasDiffusionSchedulers, SchedulerMixin
    from anystep.schedulers._outputs import (
        DDIMSchedulerOutput,
        DDPMSchedulerOutput,
        EulerAncestralDiscreteSchedulerOutput,
        EulerDiscreteSchedulerOutput,
        FlowMatchEulerDiscreteSchedulerOutput,
        HeunDiscreteSchedulerOutput,
        KarrasVeOutput,
        LMSDiscreteSchedulerOutput,
        RePaintSchedulerOutput,
        SchedulerOutput,
        SdeVeOutput,
        VQDiffusionSchedulerOutput,
    )
    from anystep.schedulers.ddim import DDIMScheduler
    from anystep.schedulers.ddpm import DDPMScheduler
    from anystep.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
    from anystep.schedulers.euler_ancestral_discrete import EulerAncestralDiscreteScheduler
    from anystep.schedulers.euler_discrete import EulerDiscreteScheduler
    from anystep.schedulers.flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from anystep.schedulers.heun_discrete import HeunDiscreteScheduler
    from anystep.schedulers.ipndm import IPNDMScheduler
    from anystep.schedulers.karras_ve import KarrasVeScheduler
    from anystep.schedulers.lms_discrete import LMSDiscreteScheduler
    from anystep.schedulers.pndm import PNDMScheduler
    from anystep.schedulers.repaint import RePaintScheduler
    from anystep.schedulers.sde_ve import ScoreSdeVeScheduler
    from anystep.schedulers.sde_vp import ScoreSdeVpScheduler
    from anystep.schedulers.unipc_multistep import UniPCMultistepScheduler
    from anystep.schedulers.vq_diffusion import VQDiffusionScheduler

_HOMES = {
    "_config": "ConfigMixin",
    "_mixin": "KarrasDiffusionSchedulers SchedulerMixin",
    "_outputs": "DDIMSchedulerOutput DDPMSchedulerOutput EulerAncestralDiscreteSchedulerOutput "
    "EulerDiscreteSchedulerOutput FlowMatchEulerDiscreteSchedulerOutput HeunDiscreteSchedulerOutput "
    "KarrasVeOutput LMSDiscreteSchedulerOutput RePaintSchedulerOutput SchedulerOutput SdeVeOutput "
    "VQDiffusionSchedulerOutput",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver_multistep": "DPMSolverMultistepScheduler",
    "euler_ancestral_discrete": "EulerAncestralDiscreteScheduler",
    "euler_discrete": "EulerDiscreteScheduler",
    "flow_match_euler_discrete": "FlowMatchEulerDiscreteScheduler",
    "heun_discrete": "HeunDiscreteScheduler",
    "ipndm": "IPNDMScheduler",
    "karras_ve": "KarrasVeScheduler",
    "lms_discrete": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "repaint": "RePaintScheduler",
    "sde_ve": "ScoreSdeVeScheduler",
    "sde_vp": "ScoreSdeVpScheduler",
    "unipc_multistep": "UniPCMultistepScheduler",
    "vq_diffusion": "VQDiffusionScheduler",
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
