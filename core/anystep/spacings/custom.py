"""Spacings that list their levels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anystep.levels import Level, check_descending
from anystep.schedules import Schedule
from anystep.spacings._base import Spacing

__all__ = ["Sigmas", "Timesteps"]


@dataclass(frozen=True)
class Timesteps(Spacing):
    """At given timesteps.

    Parameters
    ----------
    timesteps
        Strictly descending, in the schedule's unit.
    """

    timesteps: Sequence[float]

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels of the timesteps."""
        times = _checked("timesteps", self.timesteps, steps)
        low, high = schedule.t_range
        if times[0] > high * (1 + 1e-9) or times[-1] < low * (1 - 1e-9):
            raise ValueError(
                f"timesteps={times.tolist()[:5]}: some are outside [{low:g}, {high:g}], the schedule's range."
            )
        return schedule.level(times)


@dataclass(frozen=True)
class Sigmas(Spacing):
    """At given karras_sigmas, the final one not among them.

    Parameters
    ----------
    sigmas
        Strictly descending, > 0.

    Examples
    --------
    >>> from anystep import EDMSchedule
    >>> Sigmas([10.0, 1.0]).levels(EDMSchedule()).nxt.sigma_t
    array([1., 0.])
    """

    sigmas: Sequence[float]

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels at the sigmas."""
        return schedule.at(_checked("sigmas", self.sigmas, steps))


def _checked(name: str, values: Sequence[float], steps: int | None) -> np.ndarray:
    check_descending(name, values)
    if not len(values):
        raise ValueError(f"{name} is empty: expected at least one level.")
    if steps is not None and steps != len(values):
        raise ValueError(f"steps={steps}, but {name} lists {len(values)} levels: leave steps out.")
    return np.asarray(values, dtype=np.float64)
