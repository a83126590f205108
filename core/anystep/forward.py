"""The forward process on data: noising, training targets and weights, at one timestep per sample."""

from typing import Any

import numpy as np

from anystep._array import Array, expand, kind, like, namespace
from anystep._checks import reals
from anystep.predictions import Prediction, prediction
from anystep.schedules import BetaSchedule, Schedule

__all__ = ["add_noise", "mix", "scale_noise", "snr", "target", "velocity"]


def add_noise(schedule: Schedule, original: Array, noise: Array, timesteps: Any) -> Array:
    """x_t = alpha_t x_0 + sigma_t ε.

    Parameters
    ----------
    schedule
        The forward process.
    original
        Clean samples x_0, shape (B, ...).
    noise
        Standard normals ε of the same shape.
    timesteps
        One per sample, shape (B,), or one for all: a number, a list, or an array of any library. On a
        `BetaSchedule`, integer arrays of the sample's own library are looked up where they are.

    Returns
    -------
    Array
        Shape, dtype and device of ``original``; half precision is combined in float32 and rounded once.

    Raises
    ------
    ValueError
        If shapes differ, or a timestep known on the host lies outside the schedule.

    Examples
    --------
    >>> from anystep import RectifiedFlow
    >>> add_noise(RectifiedFlow(), np.ones((2, 1)), np.zeros((2, 1)), [0, 250])
    array([[1.  ],
           [0.75]])
    """
    return mix(original, noise, *level_of(schedule, timesteps, original))


def velocity(schedule: Schedule, original: Array, noise: Array, timesteps: Any) -> Array:
    """V = alpha_t ε - sigma_t x_0 (Salimans, Ho 2022, https://arxiv.org/abs/2202.00512, section 4).

    Parameters of `add_noise`.
    """
    alpha_t, sigma_t = level_of(schedule, timesteps, original)
    return mix(original, noise, -sigma_t, alpha_t)


def scale_noise(schedule: Schedule, sample: Array, timesteps: Any, noise: Array) -> Array:
    """`add_noise` in the argument order of flow-matching schedulers.

    On `RectifiedFlow` it is (1 - sigma) x_0 + sigma ε.
    """
    return add_noise(schedule, sample, noise, timesteps)


def target(
    schedule: Schedule, predicts: str | Prediction, original: Array, noise: Array, timesteps: Any
) -> Array:
    """What a model with this prediction should return for x_t; parameters of `add_noise`, timesteps known on
    the host.

    Examples
    --------
    >>> from anystep import RectifiedFlow
    >>> target(RectifiedFlow(), "flow_prediction", np.ones((1, 2)), np.full((1, 2), 3.0), 100)
    array([[2., 2.]])
    """
    p, q = prediction(predicts).target(schedule.level(reals("timesteps", timesteps)))
    return mix(original, noise, like(np.asarray(p), original), like(np.asarray(q), original))


def snr(schedule: Schedule, timesteps: Any) -> Any:
    """Signal-to-noise ratio alpha_t² / sigma_t² at timesteps known on the host, float64.

    The usual loss weights are made of it.
    """
    level = schedule.level(reals("timesteps", timesteps))
    with np.errstate(divide="ignore"):
        return (np.asarray(level.alpha_t) / level.sigma_t) ** 2


def mix(original: Array, noise: Array, a: Any, b: Any) -> Array:
    """``a * original + b * noise`` with one coefficient per sample or for all, in working precision, rounded
    once.
    """
    found = kind(original)
    if kind(noise, "noise").xp is not found.xp:
        raise ValueError(
            f"noise is a {type(noise).__module__} array, the samples are not: convert one of them."
        )
    if noise.shape != original.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}: expected an array like the samples, {tuple(original.shape)}."
        )
    for coefficient in (a, b):
        if getattr(coefficient, "ndim", 0) and (
            original.ndim == 0 or coefficient.shape[0] not in (1, original.shape[0])
        ):
            raise ValueError(
                f"timesteps has shape {tuple(coefficient.shape)}: expected one per sample, ({original.shape[:1]})."
            )
    first, second = (found.xp.astype(part, found.work, copy=False) for part in (original, noise))
    total = first * _spread(a, first) + second * _spread(b, second)
    return found.xp.astype(found.xp.asarray(total), original.dtype, copy=False)


def _spread(coefficient: Any, x: Array) -> Any:
    return float(coefficient) if isinstance(coefficient, int | float) else expand(coefficient, x)


def level_of(schedule: Schedule, timesteps: Any, x: Array) -> tuple[Array, Array]:
    """(alpha_t, sigma_t) as arrays that meet ``x``, flat or 0-d.

    Timesteps on the sample's own device stay there, unless a table is to be read between its entries.
    """
    found = kind(x)
    if not isinstance(timesteps, _HOST) and namespace(timesteps) is found.xp:
        flat = timesteps if timesteps.ndim == 0 else found.xp.reshape(timesteps, (-1,))
        if not isinstance(schedule, BetaSchedule):
            level = schedule.level(found.xp.astype(flat, found.work, copy=False))
            return level.alpha_t, level.sigma_t
        if found.xp.isdtype(timesteps.dtype, "integral"):
            # The integer type that every library can index with.
            index = found.xp.astype(found.xp.reshape(timesteps, (-1,)), found.xp.int32, copy=False)
            rows = found.xp.take(like(schedule.coefficients, x), index, axis=0)
            return rows[..., 0], rows[..., 1]
    times = reals("timesteps", timesteps)
    level = schedule.level(times if times.ndim == 0 else np.ravel(times))
    return like(level.alpha_t, x), like(level.sigma_t, x)


_HOST = (int, float, list, tuple, range, np.ndarray, np.generic)
