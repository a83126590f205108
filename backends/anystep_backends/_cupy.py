"""CuPy: NVIDIA and AMD GPUs. It imports without a GPU and then has no devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import cupy  # pyright: ignore[reportMissingImports]
import numpy as np
import numpy.typing as npt

from anystep._array import namespace
from anystep._counter import generate
from anystep.plan import Plan

from . import _common
from ._fused import Step
from ._protocol import Array, Backend

__all__ = ["backend"]

_GENERATORS = (cupy.random.Generator, cupy.random.RandomState)


@final
@dataclass(frozen=True)
class _CuPy:
    """CuPy arrays; bfloat16 through ml_dtypes, from CuPy 14."""

    name: str = "cupy"
    version: str = cupy.__version__

    @property
    def transforms(self) -> Mapping[str, Callable[..., Any]]:
        """None: the library has no transforms."""
        return {}

    def devices(self) -> Sequence[str]:
        """Each GPU, as ``"cuda:0"``; none without a driver."""
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError:
            return ()
        return tuple(f"cuda:{i}" for i in range(count))

    def device(self, name: Any = None) -> Any:
        """A ``cupy.cuda.Device`` for its number, ``"cuda:0"`` or ``"gpu:0"``; the current one for None."""
        if isinstance(name, cupy.cuda.Device):
            return name
        present = self.devices()
        wanted = "cuda" if name is None else f"cuda:{name}" if isinstance(name, int) else str(name)
        platform, _, number = wanted.partition(":")
        if platform in ("cuda", "gpu") and present:
            if not number:
                return cupy.cuda.Device()
            if f"cuda:{number}" in present:
                return cupy.cuda.Device(int(number))
        raise _common.absent_device(name, "CuPy", present)

    def asarray(self, values: npt.ArrayLike, *, dtype: str | None = None, device: Any = None) -> Array:
        """A copy on the device."""
        array = _common.host(values, dtype)
        if array.dtype.name == "bfloat16" and int(self.version.split(".")[0]) < 14:
            raise ValueError(
                f"dtype='bfloat16': CuPy {self.version} has none; install CuPy 14 or ask for float16."
            )
        with self.device(device):
            return cupy.asarray(array)

    def to_numpy(self, x: Array) -> npt.NDArray[Any]:
        """A copy on the host; bfloat16 becomes float32."""
        copy = x.get()
        return copy.astype(np.float32) if copy.dtype.name == "bfloat16" else copy

    def generator(self, seed: int, device: Any = None) -> Any:
        """``cupy.random.default_rng(seed)``, its state on the device."""
        with self.device(device):
            return cupy.random.default_rng(seed)

    def normal(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Draws in float32 for half precision; None is the device's own generator. ``index`` is not used."""
        double = _common.is_double(like.dtype)

        def native(shape: tuple[int, ...], generator: Any) -> Array:
            source = cupy.random if generator is None else generator
            if generator is not None and not isinstance(generator, _GENERATORS):
                make = "cupy.random.default_rng(seed)"
                _common.refuse_generator(generator, "None, cupy.random.Generator", make)
            if 0 in shape:  # nothing to launch
                return cupy.empty(shape, dtype=like.dtype)
            draw = source.standard_normal(shape, dtype=np.float64 if double else np.float32)
            return draw.astype(like.dtype, copy=False)

        def move(draw: npt.NDArray[Any]) -> Array:
            return cupy.asarray(draw.astype(like.dtype, copy=False))

        with like.device:
            return _common.normal(
                shape, generator, double=double, native=native, move=move, join=cupy.concatenate
            )

    def uniform(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Draws of the generators that `normal` takes. ``index`` is not used."""
        double = _common.is_double(like.dtype)
        dtype = np.float64 if double else np.float32

        def native(shape: tuple[int, ...], generator: Any) -> Array:
            if generator is not None and not isinstance(generator, _GENERATORS):
                make = "cupy.random.default_rng(seed)"
                _common.refuse_generator(generator, "None, cupy.random.Generator", make)
            if 0 in shape:  # nothing to launch
                return cupy.empty(shape, dtype=dtype)
            source = cupy.random if generator is None else generator
            draw = getattr(source, "random_sample", None) or source.random  # a Generator has the latter alone
            return draw(shape, dtype=dtype)

        with like.device:
            return _common.uniform(
                shape, generator, double=double, native=native, move=cupy.asarray, join=cupy.concatenate
            )

    def counter_noise(
        self, like: Array, seed: int, stream: int, step: Any, samples: Array, **options: Any
    ) -> Array:
        """`anystep._counter.generate` with the sample's device as the current one, on which CuPy launches."""
        with like.device:
            return generate(namespace(like), like.device, seed, stream, step, samples, **options)

    def fuse(self, plan: Plan, i: int, x: Array) -> Step | None:
        """Row ``i`` made fast for arrays like ``x``, or None; see `anystep.update`."""
        from ._cupy_fused import fuse  # here, because its kernels are made when it is imported

        return fuse(plan, i, x)

    def position(self, table: Array, entry: Array) -> int | None:
        """Index of a view into the table, from addresses: no value is read, so it never waits for the GPU."""
        if not isinstance(entry, cupy.ndarray) or table.ndim != 1 or entry.size != 1:
            return None
        if entry.dtype != table.dtype or entry.device != table.device:
            return None
        return _common.view_index(entry.data.ptr - table.data.ptr, table.strides[0], table.shape[0])


backend: Backend = _CuPy()
