"""What a schedule is: a forward process t -> (alpha_t, sigma_t), and its inverse in the noise-to-signal
ratio.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from anystep._array import Array
from anystep.levels import Level

__all__ = ["Schedule"]


class Schedule(ABC):
    """A forward process x_t = alpha_t x_0 + sigma_t ε, t in the unit that the model is told."""

    @property
    @abstractmethod
    def t_range(self) -> tuple[float, float]:
        """Least and most noisy t at which a model may be called."""

    @property
    def train_timesteps(self) -> int | None:
        """Number T of training timesteps 0 .. T - 1, or None if t is continuous."""
        return None

    @abstractmethod
    def level(self, t: Any) -> Level:
        """Level at t: a number or NumPy array, in float64.

        Or an array of any library, computed there in its own precision.
        """

    @abstractmethod
    def timestep(self, karras_sigma: Any) -> Any:
        """The t whose level has this noise-to-signal ratio (NumPy, float64); clamped to ``t_range``."""

    @property
    def sigma_min(self) -> float:
        """``karras_sigma`` of the least noisy level of ``t_range``."""
        return float(self.level(self.t_range[0]).karras_sigma)

    @property
    def sigma_max(self) -> float:
        """``karras_sigma`` of the noisiest level; infinite for pure noise."""
        return float(self.level(self.t_range[1]).karras_sigma)

    def warp(self, progress: Any) -> Any:
        """The t at even progress in [0, 1] from clean to noise."""
        low, high = self.t_range
        return low + (high - low) * np.asarray(progress, dtype=np.float64)

    def at(self, karras_sigma: Any) -> Level:
        """Level with this noise-to-signal ratio, 0 included.

        Raises
        ------
        ValueError
            If a ratio lies outside [sigma_min, sigma_max] and is not 0: the model was not trained there.
        """
        ratio = np.asarray(karras_sigma, dtype=np.float64)
        slack = 1e-9  # ends computed by another formula still count as ends
        outside = (ratio != 0) & (
            (ratio < self.sigma_min * (1 - slack)) | (ratio > self.sigma_max * (1 + slack))
        )
        if outside.any():
            raise ValueError(
                f"karras_sigma={np.atleast_1d(ratio)[np.atleast_1d(outside)][0]:g} is outside the schedule's range "
                f"[{self.sigma_min:g}, {self.sigma_max:g}]: choose levels inside it, or another schedule."
            )
        return self._level_of(ratio, self.timestep(ratio))

    def _checked(self, t: Any) -> Array:
        """Numbers and NumPy values as float64 and inside the process; an array of another library as it is."""
        times, end = host_or_array(t), self.t_range[1]
        if not isinstance(times, np.ndarray):
            return times
        outside = ~((times >= 0) & (times <= end * (1 + 1e-9)))
        if outside.any():
            raise ValueError(
                f"t={np.atleast_1d(times)[np.atleast_1d(outside)][0]:g} is outside [0, {end:g}]."
            )
        return times

    def _level_of(self, ratio: Any, t: Any) -> Level:
        """Level of a variance-preserving process; others say how theirs splits the ratio."""
        with np.errstate(divide="ignore"):
            return Level(t, 1 / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**-2.0))


def host_or_array(t: Any) -> Array:
    """Numbers and NumPy values as float64; an array of another library as it is."""
    known = isinstance(t, (int, float, list, tuple, np.ndarray, np.generic))
    return np.asarray(t, dtype=np.float64) if known else t
