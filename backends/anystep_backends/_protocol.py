"""What a backend adds to the array API standard, and nothing more.

The core needs only the standard namespace of an array. Five things lie outside the standard: naming a device,
making an array of a given dtype from NumPy and back, native random generators, telling which entry of a table a
0-d array is without reading it from the device, and transforms of functions. A backend supplies these; an array
library without a backend still steps.

A backend may also have either of two ways to run the core's work as its library does it best. ``counter_noise`` is
`anystep._counter.generate` with the same bits; it takes like, seed, stream, step, samples, and the keywords elements, law
and double. ``fuse(plan, i, x)`` is None, or row i of a plan without a threshold as one step for arrays like x, which
`anystep.update` calls with the arrays (x, model output, memories, noises) and whether x is given up.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Array", "Backend"]

Array = Any


class Backend(Protocol):
    """One array library, found through the entry-point group ``anystep.backends``."""

    @property
    def name(self) -> str:
        """Top-level module of the arrays, such as ``"torch"``; also the entry point's name."""
        ...

    @property
    def version(self) -> str:
        """Version of the installed library."""
        ...

    @property
    def transforms(self) -> Mapping[str, Callable[..., Any]]:
        """The library's transforms of functions by name, those of these four that it has.

        Arguments and results are arrays, None, and (named) tuples of them, such as `anystep.State`:

        - ``compile(f)`` is ``f`` as one compiled graph;
        - ``vmap(f)`` maps ``f`` over the first axis of every array;
        - ``grad(f)`` is the gradient of the 0-d result of ``f`` by its first argument;
        - ``scan(f, carry, xs)`` calls ``carry, y = f(carry, x)`` along the first axis of every array in ``xs``, as one
          compiled loop, and returns the last carry and all ``y`` stacked.
        """
        ...

    def devices(self) -> Sequence[str]:
        """Names of the devices present on this machine; empty if the library cannot run here."""
        ...

    def device(self, name: Any = None) -> Any:
        """The library's device object for a name, for one of its device objects, or the default for None."""
        ...

    def asarray(self, values: npt.ArrayLike, *, dtype: str | None = None, device: Any = None) -> Array:
        """An array from host values; ``dtype`` is a name such as ``"bfloat16"``."""
        ...

    def to_numpy(self, x: Array) -> npt.NDArray[Any]:
        """A host copy; bfloat16 becomes float32, which holds it exactly."""
        ...

    def generator(self, seed: int, device: Any = None) -> Any:
        """The library's own random generator, seeded."""
        ...

    def normal(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Standard normals with the dtype and on the device of ``like``.

        ``index`` is the step's number: a library whose generators are values (JAX keys) folds it in, so that
        one key gives fresh noise at every step; a library whose generators advance by themselves ignores it.
        """
        ...

    def uniform(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Uniform numbers in [0, 1) on the device of ``like``; ``index`` as for `normal`.

        float64 beside float64, else float32: rounded to half precision, some would be 1.
        """
        ...

    def position(self, table: Array, entry: Array) -> int | None:
        """Index of ``entry`` in the 1-d ``table`` if it is a view of it, without reading device memory."""
        ...
