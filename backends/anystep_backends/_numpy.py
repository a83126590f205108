"""NumPy: the reference, on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from anystep._counter import generate
from anystep.plan import Plan

from . import _common
from ._fused import Step
from ._numpy_fused import fuse
from ._protocol import Array, Backend

__all__ = ["backend"]


@final
@dataclass(frozen=True)
class _NumPy:
    """NumPy arrays; bfloat16 through ml_dtypes."""

    name: str = "numpy"
    version: str = np.__version__

    @property
    def transforms(self) -> Mapping[str, Callable[..., Any]]:
        """None: the library has no transforms."""
        return {}

    def devices(self) -> Sequence[str]:
        """The host."""
        return ("cpu",)

    def device(self, name: Any = None) -> str:
        """``"cpu"``, for itself or None."""
        if name is None or (isinstance(name, str) and name == "cpu"):
            return "cpu"
        raise _common.absent_device(name, "NumPy", self.devices())

    def asarray(self, values: npt.ArrayLike, *, dtype: str | None = None, device: Any = None) -> Array:
        """A C-ordered copy."""
        self.device(device)
        return _common.host(values, dtype)

    def to_numpy(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A copy; bfloat16 becomes float32."""
        return np.array(x, dtype=np.float32 if x.dtype.name == "bfloat16" else None)

    def generator(self, seed: int, device: Any = None) -> np.random.Generator:
        """``numpy.random.default_rng(seed)``."""
        self.device(device)
        return np.random.default_rng(seed)

    def normal(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Draws of a Generator or RandomState; None is one generator per process. ``index`` is not used."""

        def move(draw: npt.NDArray[Any]) -> Array:
            return draw.astype(like.dtype, copy=False)

        def native(shape: tuple[int, ...], generator: Any) -> Array:
            if generator is not None:
                _common.refuse_generator(generator, "None", "numpy.random.default_rng(seed)")
            return self.normal(shape, generator=_common.default_generator(), like=like)

        double = _common.is_double(like.dtype)
        return _common.normal(shape, generator, double=double, native=native, move=move, join=np.concatenate)

    def uniform(self, shape: Sequence[int], *, generator: Any, like: Array, index: int = 0) -> Array:
        """Draws of the generators that `normal` takes. ``index`` is not used."""

        def native(shape: tuple[int, ...], generator: Any) -> Array:
            if generator is not None:
                _common.refuse_generator(generator, "None", "numpy.random.default_rng(seed)")
            return self.uniform(shape, generator=_common.default_generator(), like=like)

        double = _common.is_double(like.dtype)
        return _common.uniform(
            shape, generator, double=double, native=native, move=np.asarray, join=np.concatenate
        )

    def counter_noise(
        self, like: Array, seed: int, stream: int, step: Any, samples: Array, **options: Any
    ) -> npt.NDArray[Any]:
        """`anystep._counter.generate`, as much at a time as the cache holds."""
        return generate(np, "cpu", seed, stream, step, samples, **options, block=2**16)

    def fuse(self, plan: Plan, i: int, x: npt.NDArray[Any]) -> Step | None:
        """Row ``i`` made fast for arrays like ``x``, or None; see `anystep.update`."""
        return fuse(plan, i, x)

    def position(self, table: Array, entry: Array) -> int | None:
        """None: an entry of a NumPy array is a scalar, a copy that does not remember where it came from."""
        return None


backend: Backend = _NumPy()
