"""IPNDM as in diffusers' IPNDMScheduler, which leaves the model's output at pure noise out; no published source."""

from dataclasses import dataclass

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler
from anystep.samplers.ipndm import ipndm_rows

__all__ = ["BlindIPNDM"]


@dataclass(frozen=True)
class BlindIPNDM(Sampler):
    """`anystep.IPNDM` that takes the clean sample for 0 where alpha_cur = 0, because (x - e) / alpha is 0 / 0 there.

    Parameters
    ----------
    used
        As ``order_max`` of `anystep.IPNDM`.
    kept
        Number of noise estimates carried to the next call, the present one included, >= used - 1.
    blind
        False is `anystep.IPNDM`.
    """

    used: int
    kept: int
    blind: bool = True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As of `anystep.IPNDM`."""
        return min(self.used, 2)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, earlier ε̂)."""
        rows = ipndm_rows(levels, self.used, self.kept)
        if self.blind:
            rows[np.asarray(levels.cur.alpha_t) == 0, 0, 2] = 0.0
        return rows
