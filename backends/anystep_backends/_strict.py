"""array_api_strict: the test library, with devices that refuse to mix and some that lack 64-bit numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import array_api_strict as xp
import numpy as np
import numpy.typing as npt

from . import _common
from ._protocol import Array, Backend

__all__ = ["backend"]


@final
@dataclass(frozen=True)
class _Strict:
    """array_api_strict arrays: the standard's dtypes and nothing else."""

    name: str = "array_api_strict"
    version: str = xp.__version__

    @property
    def transforms(self) -> Mapping[str, Callable[..., Any]]:
        """None: the library has no transforms."""
        return {}

    def devices(self) -> Sequence[str]:
        """The simulated devices."""
        return tuple(str(device).split("'")[1] for device in xp.__array_namespace_info__().devices())

    def device(self, name: Any = None) -> Any:
        """``array_api_strict.Device(name)``; None is ``"CPU_DEVICE"``."""
        if isinstance(name, xp.Device):
            return name
        wanted = "CPU_DEVICE" if name is None else name
        if wanted not in self.devices():
            raise _common.absent_device(name, "array_api_strict", self.devices())
        return xp.Device(wanted)

    def asarray(self, values: npt.ArrayLike, *, dtype: str | None = None, device: Any = None) -> Array:
        """A copy; dtype=None takes NumPy's dtype as it is and gives Python numbers the device's default."""
        if dtype in ("float16", "bfloat16"):
            raise ValueError(
                f"dtype={dtype!r}: the array API standard has no half precision; ask for float32 or float64."
            )
        natural = dtype is None and not hasattr(values, "dtype")
        return xp.asarray(values if natural else _common.host(values, dtype), device=self.device(device))

    def to_numpy(self, x: Array) -> npt.NDArray[Any]:
        """A copy on the host."""
        return np.array(x.to_device(self.device()))

    def generator(self, seed: int, device: Any = None) -> np.random.Generator:
        """``numpy.random.default_rng(seed)``: the library has no generators."""
        self.device(device)
        return np.random.default_rng(seed)

    def normal(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Draws of NumPy's Generator or RandomState; None is one per process. ``index`` is not used."""

        def move(draw: npt.NDArray[Any]) -> Array:
            return xp.asarray(draw, device=like.device)

        def native(shape: tuple[int, ...], generator: Any) -> Array:
            if generator is not None:
                _common.refuse_generator(generator, "None", "numpy.random.default_rng(seed)")
            return self.normal(shape, generator=_common.default_generator(), like=like)

        double = _common.is_double(like.dtype)
        return _common.normal(shape, generator, double=double, native=native, move=move, join=xp.concat)

    def uniform(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Draws of the generators that `normal` takes. ``index`` is not used."""

        def move(draw: npt.NDArray[Any]) -> Array:
            return xp.asarray(draw, device=like.device)

        def native(shape: tuple[int, ...], generator: Any) -> Array:
            if generator is not None:
                _common.refuse_generator(generator, "None", "numpy.random.default_rng(seed)")
            return self.uniform(shape, generator=_common.default_generator(), like=like)

        double = _common.is_double(like.dtype)
        return _common.uniform(shape, generator, double=double, native=native, move=move, join=xp.concat)

    def position(self, table: Array, entry: Array) -> int | None:
        """None: the standard does not say whether an indexed array is a view."""
        return None


backend: Backend = _Strict()
