"""Methods of solving the reverse process, one per file, named as in their papers: levels in, plan out."""

# pyright: reportUnusedImport=false

from typing import TYPE_CHECKING

from anystep._lazy import attach

if TYPE_CHECKING:
    from anystep.samplers._base import Sampler
    from anystep.samplers.ddim import DDIM
    from anystep.samplers.ddpm import DDPM
    from anystep.samplers.dpm_solver import DPMSolver
    from anystep.samplers.euler import Euler
    from anystep.samplers.euler_ancestral import EulerAncestral
    from anystep.samplers.euler_maruyama import EulerMaruyama
    from anystep.samplers.heun import Heun
    from anystep.samplers.ipndm import IPNDM
    from anystep.samplers.lms import LMS
    from anystep.samplers.multistep_consistency import MultistepConsistency
    from anystep.samplers.pndm import PNDM
    from anystep.samplers.reverse_diffusion import ReverseDiffusion
    from anystep.samplers.unipc import UniPC

_HOMES = {
    "_base": "Sampler",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpm_solver": "DPMSolver",
    "euler": "Euler",
    "euler_ancestral": "EulerAncestral",
    "euler_maruyama": "EulerMaruyama",
    "heun": "Heun",
    "ipndm": "IPNDM",
    "lms": "LMS",
    "multistep_consistency": "MultistepConsistency",
    "pndm": "PNDM",
    "reverse_diffusion": "ReverseDiffusion",
    "unipc": "UniPC",
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
