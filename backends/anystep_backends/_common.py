"""What the adapters share: host values rounded once, NumPy's generators everywhere, lists of generators."""

from __future__ import annotations  # else every call of a nested function's maker evaluates them

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ._protocol import Array

__all__ = [
    "absent_device",
    "default_generator",
    "host",
    "is_double",
    "normal",
    "refuse_generator",
    "uniform",
    "view_index",
]

_DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_HOST = (np.random.Generator, np.random.RandomState)


def _bfloat16() -> np.dtype[Any]:
    """NumPy's bfloat16, which ml_dtypes adds."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "dtype='bfloat16': NumPy has it through ml_dtypes; pip install ml_dtypes, or ask for float32."
        ) from error
    return np.dtype(ml_dtypes.bfloat16)


def host(values: npt.ArrayLike, dtype: str | None = None) -> npt.NDArray[Any]:
    """A private, writable, C-ordered, native-endian copy of host values, rounded to ``dtype`` once, here.

    Libraries round float64 to float16 differently (torch by way of float32), so they are never asked to.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(_DTYPES)}; pass one of these names.")
    array = np.array(values, order="C")
    if dtype is None:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.astype(_bfloat16() if dtype == "bfloat16" else dtype, copy=False)


def is_double(dtype: Any) -> bool:
    """Whether noise of a dtype is drawn in float64; narrower dtypes are drawn in float32 and rounded."""
    name = str(dtype).split(".")[-1]
    if name not in _FLOATS:
        raise TypeError(
            f"like has dtype {dtype}: expected one of {', '.join(_FLOATS)}; cast it, for example to float32."
        )
    return name == "float64"


@cache
def default_generator() -> np.random.Generator:
    """The process-wide generator behind ``generator=None`` where the library has none of its own."""
    return np.random.default_rng()


def normal(
    shape: Sequence[int],
    generator: Any,
    *,
    double: bool,
    native: Callable[[tuple[int, ...], Any], Array],
    move: Callable[[npt.NDArray[Any]], Array],
    join: Callable[[list[Array]], Array],
) -> Array:
    """Standard normals from a generator, or from a list with one per sample; a list of one is the one in it.

    NumPy's generators draw on the host, in float32 or, for ``double``, float64, and ``move`` brings the draw
    to the library: one seed gives the same noise everywhere. Any other generator goes to ``native``. ``join``
    concatenates rows.
    """
    drawn = np.float64 if double else np.float32

    def on_host(shape: tuple[int, ...], generator: Any) -> npt.NDArray[Any]:
        options = {"dtype": drawn} if isinstance(generator, np.random.Generator) else {}
        return np.asarray(generator.standard_normal(shape, **options), dtype=drawn)

    return _each(tuple(shape), generator, on_host, native, move, join)


def uniform(
    shape: Sequence[int],
    generator: Any,
    *,
    double: bool,
    native: Callable[[tuple[int, ...], Any], Array],
    move: Callable[[npt.NDArray[Any]], Array],
    join: Callable[[list[Array]], Array],
) -> Array:
    """Uniform numbers in [0, 1); see `normal`."""

    def on_host(shape: tuple[int, ...], generator: Any) -> npt.NDArray[Any]:
        if isinstance(generator, np.random.Generator):
            return np.asarray(generator.random(shape, dtype=np.float64 if double else np.float32))
        draw = np.asarray(generator.random_sample(shape))
        # Cut to the digits of float32, because rounding could give 1.
        return draw if double else (np.floor(draw * 2**24) * 2.0**-24).astype(np.float32)

    return _each(tuple(shape), generator, on_host, native, move, join)


def _each(
    shape: tuple[int, ...],
    generator: Any,
    on_host: Callable[[tuple[int, ...], Any], npt.NDArray[Any]],
    native: Callable[[tuple[int, ...], Any], Array],
    move: Callable[[npt.NDArray[Any]], Array],
    join: Callable[[list[Array]], Array],
) -> Array:
    """Draws of one generator, or of one per sample."""

    def draw(shape: tuple[int, ...], generator: Any) -> Array:
        return move(on_host(shape, generator)) if isinstance(generator, _HOST) else native(shape, generator)

    if not isinstance(generator, (list, tuple)):
        return draw(shape, generator)
    if len(generator) == 1:
        return draw(shape, generator[0])
    if not shape or not generator or len(generator) != shape[0]:
        raise ValueError(
            f"generator is a list of {len(generator)} for shape={shape}: expected one per sample, "
            "as many as shape[0]; pass a list of that length, or a single generator."
        )
    return join([draw((1, *shape[1:]), one) for one in generator])


def refuse_generator(generator: Any, expected: str, make: str) -> NoReturn:
    """Raise TypeError for a generator of another library."""
    kind = f"{type(generator).__module__}.{type(generator).__qualname__}"
    raise TypeError(
        f"generator={generator!r} of type {kind}: expected {expected}, numpy.random.Generator, or a list "
        f"with one per sample; make one with {make}."
    )


def absent_device(name: Any, library: str, present: Sequence[str]) -> ValueError:
    """The error for a device that is not on this machine."""
    here = ", ".join(map(repr, present)) or "no device"
    return ValueError(
        f"device={name!r}: {library} has {here} on this machine; pass one of these, or None for the default."
    )


def view_index(offset: int, stride: int, length: int) -> int | None:
    """Which of ``length`` entries, ``stride`` apart, begins at ``offset``; None if none does."""
    if stride == 0:
        return None
    index, rest = divmod(offset, stride)
    return index if rest == 0 and 0 <= index < length else None
