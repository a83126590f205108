"""Fresh random numbers from a generator of the user's."""

from typing import Any

import numpy as np

from anystep._array import Array, backend_of, kind, like

__all__ = ["draw", "draw_uniform"]


def draw(x: Array, generator: Any, index: int = 0) -> Array:
    """Standard normals like ``x`` (shape, dtype, device).

    Parameters
    ----------
    x
        The array whose like is wanted.
    generator
        A generator of the library of ``x``, a `numpy.random.Generator` (drawn on the host and moved), a list
        with one of them per sample, or None for the library's global one if it has one.
    index
        Number of the step; see `anystep_backends` for what JAX does with it.

    Raises
    ------
    ValueError, TypeError
        If the generator does not fit, or none was given and the library has no global one.
    """
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
    found = backend_of(x)
    if found is not None:
        return found.uniform(shape, generator=generator, like=x, index=index)
    _numpy_only(x, generator)
    double = str(x.dtype).endswith("float64")
    return like(generator.random(shape, dtype=np.float64 if double else np.float32), x)


def _numpy_only(x: Array, generator: Any) -> None:
    if not isinstance(generator, np.random.Generator):
        raise TypeError(
            f"generator={generator!r}: no backend knows {type(x).__module__} arrays; pass a numpy.random.Generator, or the noise."
        )
