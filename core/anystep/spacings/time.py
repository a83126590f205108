"""Spacings even in time: Lin et al. 2024, https://arxiv.org/abs/2305.08891, table 2.

The functions give integer timesteps of a discrete process; the classes also space a continuous one, evenly in
progress.
"""

from dataclasses import dataclass

import numpy as np

from anystep._array import Float64
from anystep.levels import Level
from anystep.schedules import Schedule
from anystep.spacings._base import Spacing, check_steps

__all__ = ["Leading", "Linspace", "Trailing", "leading", "linspace", "trailing"]


def leading(train_timesteps: int, steps: int, offset: int = 0) -> Float64:
    """Every (T // N)-th timestep from 0, plus an offset; the noisiest timesteps are left out.

    Examples
    --------
    >>> leading(1000, 4, offset=1)
    array([751., 501., 251.,   1.])
    """
    stride = train_timesteps // check_steps(steps, train_timesteps)
    times = np.arange(steps)[::-1] * stride + offset
    if times[0] >= train_timesteps or times[-1] < 0:
        raise ValueError(
            f"steps_offset={offset} moves timesteps of steps={steps} outside [0, {train_timesteps - 1}]: "
            "use fewer steps, a smaller offset, or trailing spacing."
        )
    return times.astype(np.float64)


def trailing(train_timesteps: int, steps: int) -> Float64:
    """Every (T / N)-th timestep down from T, less one: the noisiest timestep is always there, and N values
    for every N.

    Examples
    --------
    >>> trailing(1000, 4)
    array([999., 749., 499., 249.])
    """
    stride = train_timesteps / check_steps(steps, train_timesteps)
    # The range may run one value past the last where the stride is rounded down; the count is N all the same.
    return np.asarray(np.round(np.arange(train_timesteps, 0, -stride)[:steps]) - 1, dtype=np.float64)


def linspace(train_timesteps: int, steps: int, *, rounded: bool = True) -> Float64:
    """N timesteps evenly from T - 1 to 0, both included; a single step starts from T - 1.

    Examples
    --------
    >>> linspace(1000, 4)
    array([999., 666., 333.,   0.])
    """
    if check_steps(steps, train_timesteps) == 1:
        return np.asarray([train_timesteps - 1.0])
    times = np.linspace(0, train_timesteps - 1, steps)[::-1]
    return np.round(times) if rounded else times


@dataclass(frozen=True)
class Leading(Spacing):
    """Multiples of T // N from 0, plus an offset.

    Parameters
    ----------
    steps_offset
        Added to each timestep of a discrete schedule, >= 0; latent diffusion models use 1.

    Examples
    --------
    >>> from anystep import BetaSchedule
    >>> Leading().levels(BetaSchedule.named("linear"), steps=4).cur.t
    array([750., 500., 250.,   0.])
    """

    steps_offset: int = 0

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels of the timesteps."""
        if schedule.train_timesteps is None:
            count = check_steps(steps)
            return schedule.level(schedule.warp(np.arange(count)[::-1] / count))
        return schedule.level(leading(schedule.train_timesteps, check_steps(steps), self.steps_offset))


@dataclass(frozen=True)
class Trailing(Spacing):
    """Down from T in strides of T / N, less one."""

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels of the timesteps."""
        count = check_steps(steps)
        if schedule.train_timesteps is None:
            return schedule.level(schedule.warp(1 - np.arange(count) / count))
        return schedule.level(trailing(schedule.train_timesteps, count))


@dataclass(frozen=True)
class Linspace(Spacing):
    """Evenly from the noisiest to the least noisy timestep, both included.

    Parameters
    ----------
    rounded
        Whether timesteps of a discrete schedule are rounded to the integers it was trained at.
    """

    rounded: bool = True

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels of the timesteps."""
        count = check_steps(steps)
        if schedule.train_timesteps is None:
            return schedule.level(schedule.warp(np.linspace(1, 0, count)))
        return schedule.level(linspace(schedule.train_timesteps, count, rounded=self.rounded))
