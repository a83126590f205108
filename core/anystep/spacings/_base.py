"""What a spacing is: which N levels of a schedule to call the model at, and where to end."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from anystep.levels import Level, Levels
from anystep.schedules import Schedule

__all__ = ["Spacing", "check_steps", "final_level"]


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
        return Levels.chain(*(np.append(a, b) for a, b in _pairs(points, end)))

    @abstractmethod
    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """The N levels at which the model is called."""


def _pairs(points: Level, end: Level) -> list[tuple[object, object]]:
    return [(points.t, end.t), (points.alpha_t, end.alpha_t), (points.sigma_t, end.sigma_t)]


def final_level(schedule: Schedule, final: str | float) -> Level:
    """The level that ``final`` names."""
    if final == "zero":
        return schedule.at(0.0)
    if final == "sigma_min":
        return schedule.level(schedule.t_range[0])
    if isinstance(final, str):
        raise ValueError(f"final={final!r}: expected 'zero', 'sigma_min' or a karras_sigma.")
    return schedule.at(final)


def check_steps(steps: int | None, at_most: int | None = None) -> int:
    """The number of steps as an int in [1, at_most].

    Examples
    --------
    >>> check_steps(0)
    Traceback (most recent call last):
    ...
    ValueError: steps=0: expected an integer >= 1.
    """
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps={steps!r}: expected an integer >= 1.")
    if at_most is not None and steps > at_most:
        raise ValueError(
            f"steps={steps}: expected at most {at_most}, since the schedule has {at_most} training timesteps."
        )
    return int(steps)
