"""Flow matching with a level of its own for each token, such as frames of a video of which some are given.

The levels are arrays on the device of the sample, and nothing is read from it.
"""

from typing import Any

import numpy as np

from anystep._array import Array, kind, like, namespace
from anystep._checks import reals

__all__ = ["next_levels", "token_step"]

_APART = 1e-6
"""How far below a token's level the next must be, since the level may have been rounded to float32."""


def next_levels(table: Array, timesteps: Any, time_scale: float, x: Array) -> tuple[Array, Array]:
    """The level of each token and the highest of the table that lies below it, or 0; both with a last axis of 1 to meet ``x``.

    Parameters
    ----------
    table
        Flow sigmas in any order, shape (N,): an array that meets ``x``.
    timesteps
        One for each token, shape (B, tokens) or broadcastable to it: an array of the library of ``x``, or host values.
    time_scale
        Timestep of sigma = 1; negative, sigma is 1 + timestep / time_scale, as where inverted sigmas are told.
    x
        The tokens, shape (B, tokens, features).

    Raises
    ------
    TypeError, ValueError
        If the timesteps are of another library, or do not broadcast to the tokens.

    Examples
    --------
    >>> now, then = next_levels(np.asarray([1.0, 0.5, 0.0]), [[8.0, 4.0, 1.0, 0.0]], 8, np.zeros((1, 4, 2)))
    >>> now[..., 0].tolist(), then[..., 0].tolist()
    ([[1.0, 0.5, 0.125, 0.0]], [[0.5, 0.0, 0.0, 0.0]])
    """
    found = kind(x)
    if isinstance(timesteps, np.ndarray | list | tuple):
        timesteps = like(reals("per_token_timesteps", timesteps), x)
    elif not hasattr(timesteps, "dtype") or namespace(timesteps) is not found.xp:
        raise TypeError(
            f"per_token_timesteps is a {type(timesteps).__module__} {type(timesteps).__name__}: "
            "expected an array of the sample's library."
        )
    # A product: libraries differ in how they divide.
    now = found.xp.astype(timesteps, found.work, copy=False)[..., None] * (1.0 / time_scale)
    now = now + 1.0 if time_scale < 0 else now
    try:
        fits = np.broadcast_shapes(tuple(now.shape), tuple(x.shape)) == tuple(x.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"per_token_timesteps has shape {tuple(timesteps.shape)}: expected {tuple(x.shape[:-1])}, "
            "one for each token of the sample."
        )
    rows = found.xp.reshape(table, (-1,) + (1,) * now.ndim)
    below = rows < now[None, ...] - _APART
    return now, found.xp.max(found.xp.where(below, rows, found.xp.zeros_like(rows)), axis=0)


def token_step(x: Array, velocity: Array, now: Array, then: Array, noise: Array | None = None) -> Array:
    """Move to x + (then - now) v or, with a noise z, (1 - then) (x - now v) + then z: shape, dtype and device of ``x``."""
    found = kind(x)
    if kind(velocity, "model_output").xp is not found.xp or velocity.shape != x.shape:
        raise ValueError(
            f"model_output is a {type(velocity).__module__} array of shape {tuple(velocity.shape)}: "
            f"expected one of the sample's library and shape, {tuple(x.shape)}."
        )
    wide, v = (found.xp.astype(part, found.work, copy=False) for part in (x, velocity))
    moved = wide + v * (then - now) if noise is None else (wide - v * now) * (1.0 - then) + noise * then
    return found.xp.astype(moved, x.dtype, copy=False)
