"""Methods of solving the reverse process, one per file, named as in their papers: levels in, plan out."""

from anystep.samplers._base import Sampler
from anystep.samplers.ddim import DDIM
from anystep.samplers.ddpm import DDPM
from anystep.samplers.euler import Euler

__all__ = ["DDIM", "DDPM", "Euler", "Sampler"]
