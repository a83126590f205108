"""What token steps ask of arrays: logarithms that may be of zero, and gathers along the axis of classes."""

import math
from typing import Any

import numpy as np

from anystep._array import Array, kind, namespace, place
from anystep.schedules.vq import Transition

__all__ = ["TINY", "beside", "levels", "linear", "log", "log_add", "log_sum", "pick", "wide", "working"]

TINY = 1e-30
"""What diffusers adds to an argument of a logarithm, and so the probability that it gives to the impossible."""


def working(log_p_x0: Array, x_t: Array, names: tuple[str, str] = ("log_p_x0", "x_t")) -> tuple[Array, Any]:
    """The log-probabilities in their working dtype, and the namespace; raises for what does not fit together."""
    found = kind(log_p_x0, names[0])
    xp = found.xp
    if not hasattr(x_t, "dtype"):
        raise TypeError(f"{names[1]}={x_t!r}: expected an array of integers.")
    if type(x_t) is not type(log_p_x0):
        namespace(log_p_x0, x_t)  # two libraries; a tracer beside an array is one
    if not xp.isdtype(x_t.dtype, "integral"):
        raise TypeError(
            f"{names[1]} has dtype {x_t.dtype}: expected an integer dtype; cast the classes, for example to int64."
        )
    if log_p_x0.ndim != 3 or (log_p_x0.shape[0], log_p_x0.shape[2]) != tuple(x_t.shape):
        raise ValueError(
            f"{names[0]} has shape {tuple(log_p_x0.shape)}, {names[1]} {tuple(x_t.shape)}: expected (B, K, L) and (B, L); "
            "reshape to a batch of sequences."
        )
    return wide(log_p_x0), xp


def wide(x: Array) -> Array:
    """In the working dtype."""
    found = kind(x, "log-probabilities")
    return found.xp.astype(x, found.work, copy=False) if found.rounds else x


def log(value: float) -> float:
    return math.log(value) if value else -math.inf


def linear(transition: Transition) -> tuple[float, float, float]:
    a, b, c = (math.exp(float(part)) for part in transition)
    return a, b, c


def beside(transition: Transition, x: Array) -> tuple[Any, ...]:
    """The three numbers as floats or 0-d arrays, or, one per sample, with axes to broadcast over (B, C, L)."""

    def fit(value: Any) -> Any:
        if isinstance(value, int | float | np.number):
            return float(value)
        return namespace(value, x).reshape(value, (-1, 1, 1)) if value.ndim else value

    return tuple(map(fit, transition))


def levels(xp: Any, x: Array, count: int) -> Array:
    """0 .. count - 1 along the axis of classes, beside tokens."""
    return xp.reshape(xp.arange(count, dtype=x.dtype, device=place(x)), (1, count, 1))


def pick(xp: Any, values: Array, index: Array) -> Array:
    """values[b, index[b, l], l], shape (B, L), without a pass over the rest."""
    size, count, length = values.shape
    rows = xp.reshape(xp.arange(size, device=place(index)) * (count * length), (-1, 1))
    column = xp.reshape(xp.arange(length, device=place(index)), (1, -1))
    flat = rows + xp.astype(index, rows.dtype, copy=False) * length + column
    return xp.reshape(xp.take(xp.reshape(values, (-1,)), xp.reshape(flat, (-1,))), (size, length))


def log_sum(xp: Any, x: Array) -> Array:
    """Logarithm of the sum over classes of exponentials, the axis kept."""
    top = xp.max(x, axis=1, keepdims=True)
    top = xp.where(top > -math.inf, top, xp.zeros_like(top))
    return top + xp.log(xp.sum(xp.exp(x - top), axis=1, keepdims=True))


def log_add(xp: Any, x: Array, y: Any) -> Array:
    """Logarithm of exp(x) + exp(y); with a Python number no array is made of it."""
    if not isinstance(y, float):
        return xp.logaddexp(x, xp.zeros_like(x) + y)
    if y == -math.inf:
        return x
    return xp.clip(x, min=y) + xp.log1p(xp.exp(-xp.abs(x - y)))
