"""What a spacing is: which N levels of a schedule to call the model at, and where to end."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from anystep.levels import Level, Levels
from anystep.schedules import Schedule

__all__ = ["Spacing", "final_level"]


@dataclass(frozen=True)
class Spacing(ABC):
    """Abstract.

    Parameters
    ----------
    final
        Where the last step ends: ``"zero"`` (no noise), ``"sigma_min"`` (the schedule's least noisy level),
        or a karras_sigma.
    """

    final: str | float = field(default="zero", kw_only=True)

    def levels(self, schedule: Schedule, steps: int | None = None) -> Levels:
        """N strictly descending levels and the final one, in the coordinates of the schedule.

        Parameters
        ----------
        schedule
            The forward process.
        steps
            Number N of steps, >= 1; None where the spacing itself lists its levels.

        Raises
        ------
        ValueError
            If N such levels do not exist, saying why.
        """
        points = self.points(schedule, steps)
        end = final_level(schedule, self.final)
        sigma = np.append(points.karras_sigma, end.karras_sigma)
        with np.errstate(invalid="ignore"):
            meet = np.flatnonzero(~(sigma[1:] < sigma[:-1] * (1 - _APART)))
        if meet.size:
            i = int(meet[0])
            last = i == len(sigma) - 2
            raise ValueError(
                f"{self} has no {len(sigma) - 1} distinct levels on this schedule: karras_sigma={sigma[i + 1]:g}, "
                f"{f'the final level (final={self.final!r}),' if last else f'level {i + 2},'} is not below level {i + 1}, "
                f"{sigma[i]:g}. The model can be called between karras_sigma {schedule.sigma_min:g}, the least noisy "
                f"(t or u_min), and {schedule.sigma_max:g}: use fewer steps, another final level, or another spacing."
            )
        return Levels.chain(
            np.append(points.t, end.t),
            np.append(points.alpha_t, end.alpha_t),
            np.append(points.sigma_t, end.sigma_t),
        )

    @abstractmethod
    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """The N levels at which the model is called."""


_APART = 1e-9
"""Levels closer than this, relatively, are one level that rounding has split."""


def final_level(schedule: Schedule, final: str | float) -> Level:
    """The level that ``final`` names."""
    if final == "zero":
        return schedule.at(0.0)
    if final == "sigma_min":
        return schedule.level(schedule.t_range[0])
    if isinstance(final, str) or not final >= 0:
        raise ValueError(f"final={final!r}: expected 'zero', 'sigma_min' or a karras_sigma.")
    return schedule.at(final)
