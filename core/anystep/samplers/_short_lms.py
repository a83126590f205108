"""LMS whose history may be shorter than its coefficients assume, as in diffusers' LMSDiscreteScheduler; no published source."""

from dataclasses import dataclass

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler
from anystep.samplers.lms import lms_rows

__all__ = ["ShortLMS"]


@dataclass(frozen=True)
class ShortLMS(Sampler):
    """`anystep.LMS` with coefficients for ``nodes`` calls of which the ``used`` latest are summed; a whole history has
    ``used`` = ``nodes``.

    Parameters
    ----------
    nodes
        As ``order_max`` of `anystep.LMS`.
    used
        Number of calls summed, in [1, nodes].
    kept
        Number of noise estimates carried to the next call, the present one included, >= used - 1.
    """

    nodes: int
    used: int
    kept: int

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """0 where a part of the history is missing: the step then has another length than the levels."""
        return self.nodes if self.used == self.nodes else 0

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, earlier ε̂)."""
        return lms_rows(levels, self.nodes, self.used, self.kept)
