"""Fresh random numbers from a generator of the user's."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anystep._array import Array, backend_of, kind, like, loaded

__all__ = ["draw", "draw_uniform"]


def draw(x: Array, generator: Any, index: int = 0) -> Array:
    """Standard normals like ``x`` (shape, dtype, device).

    Parameters
    ----------
    x
        The array whose like is wanted.
    generator
        A generator of the library of ``x``, a `numpy.random.Generator` (drawn on the host and moved), a `CounterNoise`
        (the same numbers whatever draws them), a list with one of them per sample, or None for the library's global one
        if it has one.
    index
        Number of the draw in a run, of which JAX's keys and `CounterNoise` make their noise; the others advance by
        themselves. The first step's is 0: a start sample is another draw, such as ``CounterNoise(seed).normal(x)``.

    Raises
    ------
    ValueError, TypeError
        If the generator does not fit, or none was given and the library has no global one.
    """
    generator = _single(generator)
    if _is_counter(generator):
        return generator.normal(x, index)
    if _counts(generator):
        return _rows(x, generator, lambda row, one: draw(row, one, index))
    found = backend_of(x)
    if found is not None:
        return found.normal(x.shape, generator=generator, like=x, index=index)
    _numpy_only(x, generator)
    wide = like(generator.standard_normal(x.shape, dtype=np.float32), x)
    return kind(x).xp.astype(wide, x.dtype, copy=False)


def draw_uniform(x: Array, shape: tuple[int, ...], generator: Any, index: int = 0) -> Array:
    """Uniform numbers in [0, 1) on the device of ``x``, float64 beside float64, else float32.

    The other arguments and the errors are those of `draw`.
    """
    generator = _single(generator)
    if _is_counter(generator):
        return generator.uniform(x, index, shape=shape)
    if _counts(generator):
        return _rows(x, generator, lambda row, one: draw_uniform(row, (1, *shape[1:]), one, index))
    found = backend_of(x)
    if found is not None:
        return found.uniform(shape, generator=generator, like=x, index=index)
    _numpy_only(x, generator)
    double = str(x.dtype).endswith("float64")
    return like(generator.random(shape, dtype=np.float64 if double else np.float32), x)


def _is_counter(generator: Any) -> bool:
    """Whether it is a `CounterNoise`; none is where nobody has imported it."""
    noise = loaded("anystep.noise")
    return noise is not None and isinstance(generator, noise.CounterNoise)


def _single(generator: Any) -> Any:
    """A list of one is the one in it, as in the backends."""
    return generator[0] if isinstance(generator, list | tuple) and len(generator) == 1 else generator


def _counts(generators: Any) -> bool:
    """Whether one of a list is a `CounterNoise`, which no backend knows."""
    return isinstance(generators, list | tuple) and any(map(_is_counter, generators))


def _rows(x: Array, generators: Sequence[Any], draw_row: Callable[[Array, Any], Array]) -> Array:
    """One draw for each row of ``x``."""
    if not x.ndim or len(generators) != x.shape[0]:
        raise ValueError(
            f"generator is a list of {len(generators)} for shape={tuple(x.shape)}: expected one per sample, "
            "as many as shape[0]; pass a list of that length, or a single generator."
        )
    rows = [draw_row(x[i : i + 1, ...], one) for i, one in enumerate(generators)]
    return kind(x).xp.concat(rows, axis=0)


def _numpy_only(x: Array, generator: Any) -> None:
    if not isinstance(generator, np.random.Generator):
        raise TypeError(
            f"generator={generator!r}: no backend knows {type(x).__module__} arrays; pass a numpy.random.Generator, or the noise."
        )
