"""Methods of solving the reverse process, one per file, named as in their papers: levels in, plan out."""

from anystep.samplers._base import Sampler
from anystep.samplers.ddim import DDIM
from anystep.samplers.ddpm import DDPM
from anystep.samplers.euler import Euler
from anystep.samplers.euler_ancestral import EulerAncestral
from anystep.samplers.euler_maruyama import EulerMaruyama
from anystep.samplers.heun import Heun
from anystep.samplers.ipndm import IPNDM
from anystep.samplers.lms import LMS
from anystep.samplers.pndm import PNDM
from anystep.samplers.reverse_diffusion import ReverseDiffusion

__all__ = [
    "DDIM",
    "DDPM",
    "IPNDM",
    "LMS",
    "PNDM",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "Heun",
    "ReverseDiffusion",
    "Sampler",
]
