"""The one list of array libraries, with hostile ones in it: each stands for a way in which user code breaks.

Arrays are made and read here without the adapters, which are under test.
"""

import importlib.util
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep._array import backend, backend_names

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
    device: str | None = None
    """Name of the device on which ``make`` makes arrays; None is the library's default."""
    lazily: Callable[..., Any] | None = None
    """``lazily(f, *arguments)`` calls ``f`` in such a way that reading a value of an array raises; None if reading is free."""
    guard: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Setting in which a compiled step may move nothing between host and device."""
    forget: Callable[[], None] = lambda: None
    """Drops what was compiled before."""
    graphs: Callable[[Any], int] | None = None
    """How many graphs a compiled function has been compiled to, if the library can tell."""

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
        return self.make(np.asarray(rows, np.int32 if self.module == "jax" else np.int64))

    @cached_property
    def adapter(self) -> Any:
        """The backend registered for the library, or None."""
        return backend(self.module) if self.module in backend_names() else None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of a name; bfloat16 is from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _read_only(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    x.flags.writeable = False
    return x


_READS = (
    "__bool__",
    "__int__",
    "__float__",
    "__complex__",
    "__index__",
    "__array__",
    "__dlpack__",
    "__iter__",
)
"""Methods by which values leave an array."""


_HEAP_TYPE = 1 << 9
"""CPython's mark of a class that is not compiled in."""


@contextmanager
def _refusing(kind: type) -> Generator[None]:
    """Within it, the arrays of a type that is written in Python refuse to be read; others cannot be watched."""

    def refuse(self: Any, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError(
            "a value was read from the device inside a step: keep branches and indices on the host."
        )

    fixed = not kind.__flags__ & _HEAP_TYPE
    kept = {} if fixed else {name: vars(kind)[name] for name in _READS if name in vars(kind)}
    try:
        for name in kept:
            setattr(kind, name, refuse)
        yield
    finally:
        for name, method in kept.items():
            setattr(kind, name, method)


def refusing_reads(f: Callable[..., Any], *arguments: Any) -> Any:
    """A call in which arrays, of types written in Python, refuse to be read."""
    with ExitStack() as stack:
        for kind in {type(leaf) for leaf in _leaves(arguments) if hasattr(leaf, "__array_namespace__")}:
            stack.enter_context(_refusing(kind))
        return f(*arguments)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, tuple):
        for branch in tree:  # pyright: ignore[reportUnknownVariableType]
            yield from _leaves(branch)
    else:
        yield tree


def _strict(device: str) -> Callable[[npt.NDArray[Any]], Any]:
    def make(values: npt.NDArray[Any]) -> Any:
        import array_api_strict as xp

        return xp.asarray(values.copy(), device=xp.Device(device))

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


def _on_meta(f: Callable[..., Any], *arguments: Any) -> Any:
    """A call with tensors that have no values."""
    import torch
    from torch.utils._pytree import tree_map

    return f(*tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, arguments))


def _forget_graphs() -> None:
    """Else Dynamo gives up after eight functions with one body, although each has a plan of its own."""
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()


def _torch_graphs(compiled: Any) -> int:
    """Graphs since the last time that all were forgotten."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _make_jax(values: npt.NDArray[Any]) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(values)


def _jax_64_bits(dtype: str) -> AbstractContextManager[Any]:
    """64-bit numbers for this thread and block alone: everything else runs in JAX's default mode, as its users do."""
    import jax

    return jax.enable_x64(dtype == "float64")


def _shapes_alone(f: Callable[..., Any], *arguments: Any) -> Any:
    """A call with tracers; Python ints stay what they are."""
    import jax

    fixed = [isinstance(argument, int) for argument in arguments]
    traced = [argument for argument, keep in zip(arguments, fixed, strict=True) if not keep]

    def call(*given: Any) -> Any:
        rest = iter(given)
        return f(*(a if keep else next(rest) for a, keep in zip(arguments, fixed, strict=True)))

    return jax.eval_shape(call, *traced)


def _nothing_moves() -> AbstractContextManager[Any]:
    import jax

    return jax.transfer_guard("disallow")


def _strict_library(name: str, device: str, dtypes: tuple[str, ...]) -> Library:
    make, module = _strict(device), "array_api_strict"
    return Library(
        name, module, make, _read_strict, dtypes, _least_standard, device=device, lazily=refusing_reads
    )


LIBRARIES: tuple[Library, ...] = (
    Library("numpy", "numpy", np.array, np.array, device="cpu"),
    Library("read-only numpy", "numpy", np.array, np.array, seal=_read_only, device="cpu"),
    _strict_library("array_api_strict", "CPU_DEVICE", WIDE),
    _strict_library("array_api_strict on device1", "device1", WIDE),
    _strict_library("array_api_strict without float64", "no_float64", ("float32",)),
    Library(
        "torch",
        "torch",
        _make_torch,
        _read_torch,
        device="cpu",
        lazily=_on_meta,
        forget=_forget_graphs,
        graphs=_torch_graphs,
    ),
    Library(
        "jax",
        "jax",
        _make_jax,
        np.array,
        scope=_jax_64_bits,
        device="cpu",
        lazily=_shapes_alone,
        guard=_nothing_moves,
        graphs=lambda compiled: compiled._cache_size(),
    ),
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
