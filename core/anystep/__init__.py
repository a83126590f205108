"""anystep: diffusion-model schedulers for every array library.

A scheduler is a table of numbers, made once on the host (`anystep.plan`), and a linear combination of arrays
at each step (`anystep.update`). Two faces use them: the diffusers-named classes (`DDIMScheduler`, ...), and
free composition of a schedule, a spacing, a sampler and a prediction. Names are loaded when they are first
used.
"""

# pyright: reportUnusedImport=false

from typing import TYPE_CHECKING

from anystep._lazy import attach
from anystep._version import __version__

if TYPE_CHECKING:
    from anystep._draw import draw
    from anystep._update import State, estimate, init, reproducible, scale_input, update
    from anystep.forward import add_noise, scale_noise, snr, target, velocity
    from anystep.langevin import langevin_step, predictor_corrector
    from anystep.levels import Level, Levels
    from anystep.noise import CounterNoise
    from anystep.plan import Plan
    from anystep.predictions import EDM, Epsilon, Flow, Prediction, Sample, Score, Velocity
    from anystep.repaint import inpaint, inpaint_step, resampling, undo_step
    from anystep.samplers import (
        DDIM,
        DDPM,
        IPNDM,
        LMS,
        PNDM,
        DPMSolver,
        Euler,
        EulerAncestral,
        EulerMaruyama,
        Heun,
        MultistepConsistency,
        ReverseDiffusion,
        Sampler,
        UniPC,
    )
    from anystep.sampling import sample
    from anystep.schedulers import (
        ConfigMixin,
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        HeunDiscreteScheduler,
        IPNDMScheduler,
        KarrasDiffusionSchedulers,
        KarrasVeScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        RePaintScheduler,
        SchedulerMixin,
        SchedulerOutput,
        ScoreSdeVeScheduler,
        ScoreSdeVpScheduler,
        UniPCMultistepScheduler,
        VQDiffusionScheduler,
    )
    from anystep.schedules import (
        VE,
        VP,
        BetaSchedule,
        Cosine,
        Crash,
        EDMSchedule,
        MaskAndReplace,
        RectifiedFlow,
        Schedule,
    )
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
    "langevin": "langevin_step predictor_corrector",
    "levels": "Level Levels",
    "noise": "CounterNoise",
    "plan": "Plan",
    "predictions": "EDM Epsilon Flow Prediction Sample Score Velocity",
    "repaint": "inpaint inpaint_step resampling undo_step",
    "samplers": "DDIM DDPM DPMSolver Euler EulerAncestral EulerMaruyama Heun IPNDM LMS "
    "MultistepConsistency PNDM ReverseDiffusion Sampler UniPC",
    "sampling": "sample",
    "schedulers": "ConfigMixin DDIMScheduler DDPMScheduler DPMSolverMultistepScheduler "
    "EulerAncestralDiscreteScheduler EulerDiscreteScheduler "
    "FlowMatchEulerDiscreteScheduler HeunDiscreteScheduler IPNDMScheduler KarrasDiffusionSchedulers KarrasVeScheduler "
    "LMSDiscreteScheduler PNDMScheduler "
    "RePaintScheduler SchedulerMixin SchedulerOutput VQDiffusionScheduler ScoreSdeVeScheduler ScoreSdeVpScheduler "
    "UniPCMultistepScheduler",
    "schedules": "VE VP BetaSchedule Cosine Crash EDMSchedule MaskAndReplace RectifiedFlow Schedule",
    "spacings": "Beta Exponential Karras Leading Linspace Lu Shifted Sigmas Spacing Timesteps Trailing dynamic_shift",
    "thresholding": "Clip DynamicThreshold Threshold",
    "_update": "State estimate init reproducible scale_input update",
}
__getattr__, __dir__, _names = attach(__name__, _HOMES)

__all__ = ["__version__", *_names]  # pyright: ignore[reportUnsupportedDunderAll]
