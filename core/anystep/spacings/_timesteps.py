"""Integer timesteps of a discrete process, as numbers alone: what the classes of `anystep.spacings` and the facades share."""

import numpy as np

from anystep._array import Float64
from anystep._checks import integer

__all__ = ["check_steps", "leading", "linspace", "trailing"]


def check_steps(steps: int | None, train_timesteps: int | None = None) -> int:
    """The number of steps as an int in [1, T]."""
    return integer("steps", steps, 1, train_timesteps, "the number of training timesteps")


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
