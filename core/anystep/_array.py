"""What the core asks of an array: its namespace, its working precision, its device, and its backend.

This is the only file that imports array_api_compat, and no file imports a framework: an array brings its own
namespace, and a backend is loaded through its entry point when something outside the array API standard is
needed.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

    import numpy.typing as npt

__all__ = [
    "Array",
    "Float64",
    "Kind",
    "backend",
    "backend_names",
    "backend_of",
    "expand",
    "host",
    "kind",
    "like",
    "namespace",
]

Array: TypeAlias = Any
Float64: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]


class Kind(NamedTuple):
    """What every operation needs to know of a (type, dtype) pair, looked up once."""

    xp: Any
    """Array-API namespace."""
    work: Any
    """Dtype in which linear combinations are formed: float32 for half precision, else the dtype itself."""
    rounds: bool
    """Whether ``work`` is wider than the dtype, so that results are rounded once at the end."""


_KINDS: dict[tuple[type, Any], Kind] = {}


def kind(x: Array, name: str = "sample") -> Kind:
    """Namespace and working precision of a real floating-point array; anything else raises TypeError."""
    try:
        return _KINDS[type(x), x.dtype]
    except (KeyError, AttributeError, TypeError):
        found = _KINDS[type(x), x.dtype] = _find_kind(x, name)
        return found


def _find_kind(x: Array, name: str) -> Kind:
    if not hasattr(x, "dtype"):
        raise TypeError(f"{name}={x!r}: expected an array; wrap it with the asarray of your array library.")
    xp = namespace(x)
    label = str(x.dtype)
    if label.split(".")[-1] in ("float16", "bfloat16"):
        return Kind(xp, xp.float32, True)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"{name} has dtype {x.dtype}: expected a real floating dtype; cast it, for example to float32."
        )
    return Kind(xp, x.dtype, False)


_NAMESPACES: dict[type, Any] = {}
"""By type, which a compiler can trace; array_api_compat's own cache it cannot."""


def namespace(*xs: Array) -> Any:
    """Array-API namespace of the arrays; Python scalars and None count for nothing.

    Examples
    --------
    >>> import numpy as np
    >>> namespace(np.zeros(2)).__name__.split(".")[-1]
    'numpy'
    """
    if len(xs) == 1 and type(xs[0]) in _NAMESPACES:
        return _NAMESPACES[type(xs[0])]
    from array_api_compat import array_namespace  # with the first array, as is what it loads for its library

    try:
        found = array_namespace(*xs)
        if len(xs) == 1:
            _NAMESPACES[type(xs[0])] = found
        return found
    except TypeError as error:
        names = ", ".join(type(x).__module__.split(".")[0] + "." + type(x).__name__ for x in xs)
        raise TypeError(
            f"{names}: expected arrays of one array-API library; convert them to one first."
        ) from error


def place(x: Array) -> Any:
    """Device on which to make an array that meets ``x``.

    None lets JAX put it wherever ``x`` is, also while tracing.
    """
    if type(x).__module__.startswith("jax"):
        return None
    from array_api_compat import device  # pyright: ignore[reportUnknownVariableType]

    return device(x)


def like(values: "npt.ArrayLike", x: Array, dtype: Any = None) -> Array:
    """Host values as an array of the library and on the device of ``x``.

    ``dtype`` defaults to the working dtype.
    """
    found = kind(x)
    dtype = found.work if dtype is None else dtype
    # A writable copy: torch warns of read-only memory and would share what it can.
    return found.xp.asarray(np.array(values), dtype=dtype, device=place(x))


def expand(coefficients: Array, x: Array) -> Array:
    """One coefficient per sample, shape (B,), with trailing axes added so that it broadcasts over ``x``.

    0-d is kept.
    """
    if coefficients.ndim == 0:
        return coefficients
    xp = namespace(coefficients)
    return xp.reshape(coefficients, tuple(coefficients.shape) + (1,) * (x.ndim - coefficients.ndim))


def host(x: Array | Sequence[float] | float) -> "npt.NDArray[Any]":
    """Values on the host as a NumPy array; reads device memory, so never called inside a step."""
    if isinstance(x, np.ndarray | np.generic | int | float | list | tuple | range):
        return np.asarray(x)  # pyright: ignore[reportUnknownArgumentType]
    found = backend_of(x)
    return np.asarray(x) if found is None else found.to_numpy(x)


def backend_names() -> list[str]:
    """Names of the registered backends, installed or not."""
    return sorted(_entries())


@cache
def _entries() -> dict[str, Any]:
    from importlib.metadata import entry_points  # slow to import, and needed only when a backend is

    return {entry.name: entry for entry in entry_points(group="anystep.backends")}


@cache
def backend(name: str) -> Any:
    """The backend registered as ``name``; loading it imports its array library."""
    if name not in _entries():
        raise ValueError(f"backend={name!r} is not registered: expected one of {backend_names()}.")
    try:
        return _entries()[name].load()
    except ImportError as error:
        package = f"anystep[{name}]" if name in ("torch", "jax", "cupy") else name.replace("_", "-")
        raise ImportError(
            f'backend={name!r} needs {error.name}, which is not installed: pip install "{package}".',
            name=error.name,
        ) from error


_BACKENDS: dict[type, Any] = {}


def backend_of(x: Any) -> Any:
    """The backend of an array, device or generator object, or None if its library has none registered."""
    try:
        return _BACKENDS[type(x)]  # a look-up that a compiler can trace, where entry points are none
    except KeyError:
        found = _BACKENDS[type(x)] = _find_backend(type(x))
        return found


def _find_backend(cls: type) -> Any:
    for base in cls.__mro__:
        root = {"jaxlib": "jax"}.get(found := base.__module__.split(".")[0], found)
        if root in _entries():
            return backend(root)
    return None


def loaded(name: str) -> "ModuleType | None":
    """A module if something else has imported it already; never imports it."""
    import sys

    return sys.modules.get(name)
