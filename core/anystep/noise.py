"""Noise that is a function of its name: (seed, stream, step, sample, element) gives one number, whatever draws it.

A counter-based generator has no state to advance. Threefry-2x32-20 turns the counters into bits, and tables whose products are
exact turn the bits into normals, so that NumPy, PyTorch, JAX, CuPy and any other array library get the same numbers to the last
bit, eager or compiled, on any device, in any order of the batch, in any number of shards. `docs/noise.md` has the layout, the
accuracy, the statistics and what it costs.
"""

import math
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from anystep._array import Array, backend_of, kind, namespace, place
from anystep._checks import integer
from anystep._counter import LAW_BIT, generate
from anystep._threefry import low_bits

__all__ = ["CounterNoise"]

_HOST = (int, list, tuple, range, np.ndarray, np.generic)


@final
@dataclass(frozen=True, eq=False)
class CounterNoise:
    """A generator that gives the same noise on every array library; accepted wherever ``generator`` is.

    With T for Threefry, a step has the key k = T(seed, (step, law and stream)), and elements 2p and 2p + 1 of sample i are made
    of the two words of T(k, (i, p)). T is a bijection of counters: no two keys of one seed are equal, no two blocks of one key.

    Parameters
    ----------
    seed
        0 <= seed < 2^64.
    samples
        Names of the rows of the batch, one an index along the first axis, 0 <= id < 2^32: a sequence, a NumPy array, or
        an integer array of the library drawn in, traced or not, which is taken modulo 2^32 without being read. None numbers
        the rows from 0. A shard or a permuted batch that keeps its samples' names draws what the whole batch would.
    stream
        0 <= stream < 2^28: independent noise of the same seed, for a second use in the same run.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range, or the samples are no integers.

    References
    ----------
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
    https://doi.org/10.1145/2063384.2063405. The tables have no published source.

    Examples
    --------
    >>> noise = CounterNoise(seed=7)
    >>> noise.normal((2, 3))
    array([[-0.73540014,  1.9481552 ,  0.55866826],
           [ 0.60622054,  1.7491686 , -0.55342066]], dtype=float32)
    >>> CounterNoise(seed=7, samples=[1]).normal((1, 3))  # the second row, drawn alone
    array([[ 0.60622054,  1.7491686 , -0.55342066]], dtype=float32)
    """

    seed: int
    samples: Any = field(default=None, kw_only=True)
    stream: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", integer("seed", self.seed, 0, 2**64 - 1))
        object.__setattr__(self, "stream", integer("stream", self.stream, 0, 2**LAW_BIT - 1))
        if self.samples is not None and isinstance(self.samples, _HOST):
            ids = _integers("samples", self.samples, 0, 2**32 - 1, "names of rows")
            object.__setattr__(self, "samples", ids)

    def normal(self, like: Array | tuple[int, ...], step: Any = -1) -> Array:
        """Standard normals.

        Parameters
        ----------
        like
            An array, for its shape, library, device and dtype, or a shape, for a NumPy float32 array. The first axis is the
            batch. float16 and bfloat16 are the float32 numbers, rounded; float64 refines them with further bits.
        step
            -1 <= step < 2^32 - 1: an int, or an integer array of the library drawn in, traced or not, 0-d or one for each
            sample; such an array is not read, and taken modulo 2^32. -1 is before a run, for its start sample; the draws
            of `anystep.sample` and of the schedulers count from 0.

        Returns
        -------
        Array
            Shape, library, device and dtype of ``like``; |z| <= 6.2303, in float64 <= 9.0802.

        Raises
        ------
        ValueError, TypeError
            If the step is out of range or no integer, or the samples are not as many as the rows.

        Examples
        --------
        >>> noise = CounterNoise(0)
        >>> whole = noise.normal((4, 8), step=3)
        >>> bool(np.all(whole[2:] == CounterNoise(0, samples=[2, 3]).normal((2, 8), step=3)))
        True
        """
        return self._draw("normal", like, step)

    def gumbel(self, like: Array | tuple[int, ...], step: Any = -1) -> Array:
        """Standard Gumbels, -log(-log(u)), independent of the normals; arguments and errors of `normal`.

        Adding them to log-probabilities makes argmax a draw (the Gumbel-max trick). They lie in [-3.0993, 22.1808],
        in float64 in [-3.7924, 44.3615].

        Examples
        --------
        >>> int(np.argmax(np.log([0.2, 0.8]) + CounterNoise(0).gumbel((1, 2))))
        1
        """
        return self._draw("gumbel", like, step)

    def uniform(
        self, like: Array | tuple[int, ...], step: Any = -1, *, shape: tuple[int, ...] | None = None
    ) -> Array:
        """Uniform numbers in [0, 1), independent of the others, with 24 random bits, or 53 beside float64.

        ``shape`` is another shape than that of ``like``; half precision gives float32, since rounded some would be 1.

        Examples
        --------
        >>> bool(CounterNoise(0).uniform((1000,)).max() < 1)
        True
        """
        return self._draw("uniform", like, step, shape)

    def _draw(self, law: str, like: Any, step: Any, shape: tuple[int, ...] | None = None) -> Array:
        if not hasattr(like, "dtype"):
            like, shape = np.empty((), np.float32), _shape(like)
        found = kind(like, "like")
        shape = tuple(like.shape) if shape is None else shape
        batch, elements = shape[0] if shape else 1, math.prod(shape[1:])
        if elements > 2**32:
            raise ValueError(
                f"shape={shape}: expected at most 2^32 elements a sample; split them over streams."
            )
        samples = self._ids(like, batch)
        step = _step(step, like, batch)
        options: Any = {"elements": elements, "law": law, "double": found.work == found.xp.float64}
        backend = backend_of(like)
        if hasattr(backend, "counter_noise"):
            values = backend.counter_noise(like, self.seed, self.stream, step, samples, **options)
        else:
            values = generate(found.xp, place(like), self.seed, self.stream, step, samples, **options)
        values = found.xp.reshape(values, shape)
        return values if law == "uniform" else found.xp.astype(values, like.dtype, copy=False)

    def _ids(self, like: Array, batch: int) -> Array:
        """int32 names of the rows, where ``like`` is."""
        if self.samples is None:
            return kind(like).xp.arange(batch, dtype=kind(like).xp.int32, device=place(like))
        ids = _int32("samples", self.samples, like)
        if ids.shape[0] != batch:
            raise ValueError(f"samples are {ids.shape[0]}: expected one for each of the {batch} rows.")
        return ids


def _shape(like: Any) -> tuple[int, ...]:
    if not isinstance(like, tuple | list):
        raise TypeError(f"like={like!r}: expected an array, or a shape such as (1, 3).")
    return tuple(integer("like", size, 0) for size in like)


def _step(step: Any, like: Array, batch: int) -> Any:
    """An int, or an int32 array of one step or one a sample."""
    if isinstance(step, (int, np.integer)):
        return integer("step", step, -1, 2**32 - 2)
    if isinstance(step, _HOST):
        _integers("step", step, -1, 2**32 - 2, "steps")
    steps = _int32("step", step, like)
    if getattr(step, "ndim", 1) and steps.shape[0] != batch:
        raise ValueError(f"step has {steps.shape[0]} entries: expected one for each of the {batch} rows.")
    return steps


def _integers(name: str, values: Any, low: int, high: int, what: str) -> Any:
    """Host integers as a flat read-only array, checked."""
    array = np.array(values)
    fits = array.ndim < 2 and (not array.size or (array.dtype.kind in "iu" and array.min() >= low))
    if not fits or (array.size and array.max() > high):
        raise ValueError(f"{name}={values!r}: expected {what}, integers in [{low}, {high}].")
    array = array.astype(np.int64).reshape(-1)
    array.flags.writeable = False
    return array


def _int32(name: str, values: Any, like: Array) -> Array:
    """Integers modulo 2^32 as a flat int32 array of the library of ``like``."""
    xp = kind(like).xp
    if isinstance(values, _HOST):
        words = np.asarray(values, np.int64).reshape(-1).astype(np.uint32).view(np.int32)
        return xp.asarray(words, device=place(like))
    if not hasattr(values, "dtype") or namespace(values) is not xp:
        raise TypeError(f"{name}={values!r}: expected integers, or an integer array of the library drawn in.")
    if not xp.isdtype(values.dtype, "integral") or values.ndim > 1:
        raise TypeError(
            f"{name} has dtype {values.dtype} and {values.ndim} axes: expected integers, 0-d or one a sample."
        )
    return low_bits(xp, xp.reshape(values, (-1,)))
