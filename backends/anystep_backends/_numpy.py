"""NumPy: the reference, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from . import _common
from ._protocol import Array, Backend

__all__ = ["backend"]


@final
@dataclass(frozen=True)
class _NumPy:
    """NumPy arrays; bfloat16 through ml_dtypes."""

    name: str = "numpy"
    version: str = np.__version__

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

    def position(self, table: Array, entry: Array) -> int | None:
        """None: an entry of a NumPy array is a scalar, a copy that does not remember where it came from."""
        return None


backend: Backend = _NumPy()
