"""Spacings even in time: Lin et al. 2024, https://arxiv.org/abs/2305.08891, table 2.

A discrete process is visited at integer timesteps, a continuous one evenly in progress.
"""

from dataclasses import dataclass

import numpy as np

from anystep.levels import Level
from anystep.schedules import Schedule
from anystep.spacings._base import Spacing
from anystep.spacings._timesteps import check_steps, leading, linspace, trailing

__all__ = ["Leading", "Linspace", "Trailing", "leading", "linspace", "trailing"]


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
