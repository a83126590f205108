"""Spacings of N + 1 even points up from the clean end, which is not visited: N timesteps or flow sigmas, noisiest first.

As the authors of DPM-Solver space their multistep methods; no published equation.
"""

import numpy as np

from anystep._array import Float64
from anystep.spacings._timesteps import check_steps
from anystep.spacings.flow import shift_flow

__all__ = ["open_flow", "open_flow_down", "open_leading", "open_linspace", "open_trailing"]


def open_linspace(count: int, steps: int) -> Float64:
    """Rounded, from the last of ``count`` timesteps; where there are more steps than timesteps, some are visited twice.

    Examples
    --------
    >>> open_linspace(1000, 4)
    array([999., 749., 500., 250.])
    """
    return np.round(np.linspace(0, count - 1, check_steps(steps) + 1))[:0:-1]


def open_leading(train_timesteps: int, count: int, steps: int, offset: int = 0) -> Float64:
    """Multiples of ``count`` // (N + 1), plus an offset.

    Examples
    --------
    >>> open_leading(1000, 1000, 4, offset=1)
    array([801., 601., 401., 201.])
    """
    stride = count // (check_steps(steps) + 1)
    times = np.arange(1, steps + 1)[::-1] * stride + offset
    if not stride or times[0] >= train_timesteps or times[-1] < 0:
        raise ValueError(
            f"steps={steps} of leading spacing, steps_offset={offset}: there are no such timesteps in "
            f"[0, {train_timesteps - 1}]; use fewer steps, a smaller offset, or trailing spacing."
        )
    return times.astype(np.float64)


def open_trailing(train_timesteps: int, count: int, steps: int) -> Float64:
    """Every (T / N)-th timestep down from ``count``, less one; N values where ``count`` is T, else fewer.

    Examples
    --------
    >>> open_trailing(1000, 1000, 4), open_trailing(1000, 500, 4)
    (array([999., 749., 499., 249.]), array([499., 249.]))
    """
    stride = train_timesteps / check_steps(steps, train_timesteps)
    # Counted in integers, because the range may run one value past the last where the stride is rounded down.
    times = np.arange(count, 0, -stride)[: -(-count * steps // train_timesteps)]
    return np.maximum(np.round(times) - 1, 0.0)


def open_flow(train_timesteps: int, steps: int, shift: float = 1.0) -> Float64:
    """Even from 1 - 1 / T toward 0, then shifted; see `shift_flow`.

    Examples
    --------
    >>> open_flow(1000, 3).round(3)
    array([0.999, 0.666, 0.333])
    """
    even = 1.0 - np.linspace(1, 1 / train_timesteps, check_steps(steps) + 1)
    return shift_flow(even, shift)[:0:-1]


def open_flow_down(train_timesteps: int, steps: int) -> Float64:
    """Even from 1 toward 1 / T.

    Examples
    --------
    >>> open_flow_down(1000, 3).round(3)
    array([1.   , 0.667, 0.334])
    """
    return np.linspace(1, 1 / train_timesteps, check_steps(steps) + 1)[:-1]
