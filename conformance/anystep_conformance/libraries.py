"""The one list of array libraries, with hostile ones in it: each stands for a way in which user code breaks.

Arrays are made and read here without the adapters, which are under test.
"""

import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FLOATS", "HALVES", "LIBRARIES", "WIDE", "Library", "cases", "library", "numpy_dtype"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
HALVES, WIDE = FLOATS[:2], FLOATS[2:]


@dataclass(frozen=True)
class Library:
    """One array library, or one hostile way of using it."""

    name: str
    module: str
    """What must be importable."""
    make: Callable[[npt.NDArray[Any]], Any]
    """Array of a NumPy array's values and dtype (also integers); the values are copied."""
    read: Callable[[Any], npt.NDArray[Any]]
    """NumPy copy of an array."""
    dtypes: tuple[str, ...] = FLOATS
    """Floating dtypes that it has."""
    scope: Callable[[str], AbstractContextManager[Any]] = lambda dtype: nullcontext()
    """Setting in which arrays of a dtype exist."""
    seal: Callable[[Any], Any] = lambda x: x
    """The array made as immutable as the library can: done to every input of a step, so that a write raises."""

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here, or None."""
        found = importlib.util.find_spec(self.module) is not None
        return None if found else f"{self.name} is not installed: pip install {self.module}"

    def array(self, values: npt.ArrayLike, dtype: str) -> Any:
        """Values rounded to a dtype by NumPy, sealed."""
        return self.seal(self.make(np.array(values).astype(numpy_dtype(dtype))))

    def index(self, rows: npt.ArrayLike) -> Any:
        """Integer array of the library's default integer dtype."""
        return self.make(np.asarray(rows, np.int32 if self.name == "jax" else np.int64))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of a name; bfloat16 is from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _read_only(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    x.flags.writeable = False
    return x


def _strict(device: str | None) -> Callable[[npt.NDArray[Any]], Any]:
    def make(values: npt.NDArray[Any]) -> Any:
        import array_api_strict as xp

        return xp.asarray(values.copy(), device=xp.Device(device) if device else None)

    return make


def _read_strict(x: Any) -> npt.NDArray[Any]:
    import array_api_strict as xp

    return np.array(x.to_device(xp.Device("CPU_DEVICE")))


def _least_standard(dtype: str) -> AbstractContextManager[Any]:
    """The standard without its optional parts."""
    from array_api_strict import ArrayAPIStrictFlags

    return ArrayAPIStrictFlags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=())


def _make_torch(values: npt.NDArray[Any]) -> Any:
    import torch

    if values.dtype.name == "bfloat16":  # from_numpy does not know ml_dtypes
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())


def _read_torch(x: Any) -> npt.NDArray[Any]:
    import torch

    if x.dtype == torch.bfloat16:
        return x.detach().view(torch.int16).numpy().copy().view(numpy_dtype("bfloat16"))
    return x.detach().numpy().copy()


def _make_jax(values: npt.NDArray[Any]) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(values)


def _jax_64_bits(dtype: str) -> AbstractContextManager[Any]:
    """64-bit numbers for this thread and block alone: everything else runs in JAX's default mode, as its users do."""
    import jax

    return jax.enable_x64(dtype == "float64")


LIBRARIES: tuple[Library, ...] = (
    Library("numpy", "numpy", np.array, np.array),
    Library("read-only numpy", "numpy", np.array, np.array, seal=_read_only),
    Library("array_api_strict", "array_api_strict", _strict(None), _read_strict, WIDE, _least_standard),
    Library(
        "array_api_strict on device1",
        "array_api_strict",
        _strict("device1"),
        _read_strict,
        WIDE,
        _least_standard,
    ),
    Library("torch", "torch", _make_torch, _read_torch),
    Library("jax", "jax", _make_jax, np.array, scope=_jax_64_bits),
)
"""One line enrols a library in every test that is about arrays."""


def library(name: str) -> Library:
    """The library of a name."""
    return next(entry for entry in LIBRARIES if entry.name == name)


def cases(dtypes: Iterable[str] = FLOATS, names: Iterable[str] | None = None) -> list[Any]:
    """Pytest parameters (library, dtype), skipped with a reason where the library is not installed."""
    import pytest

    names = [entry.name for entry in LIBRARIES] if names is None else list(names)
    found: list[Any] = []
    for entry in map(library, names):
        skip = [] if entry.missing is None else [pytest.mark.skip(reason=entry.missing)]
        for dtype in dtypes:
            if dtype in entry.dtypes:
                found.append(pytest.param(entry, dtype, id=f"{entry.name}-{dtype}", marks=skip))
    return found
