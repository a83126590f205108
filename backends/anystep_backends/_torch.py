"""PyTorch: the CPU, CUDA, MPS, and the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_map  # the one that torch.func.vmap reads its in_dims by

from anystep.plan import Plan

from . import _common
from ._fused import Step
from ._protocol import Backend
from ._torch_fused import fuse
from ._torch_noise import counter_noise

__all__ = ["backend"]


def _drawing(law: Any, device: torch.device, dtype: torch.dtype) -> tuple[bool, Any, Any]:
    """Whether to draw in float64, how from torch's generators, and how to bring NumPy's draws here."""

    def native(shape: tuple[int, ...], generator: Any) -> torch.Tensor:
        if generator is None:
            return law(shape, device=device, dtype=dtype)
        if not isinstance(generator, torch.Generator):
            make = f"torch.Generator({device.type!r}).manual_seed(seed)"
            _common.refuse_generator(generator, "None, torch.Generator", make)
        source = generator.device
        if source.type not in ("cpu", device.type):
            raise ValueError(
                f"generator is on device={str(source)!r} and the sample on {str(device)!r}: expected a "
                "generator there or on the CPU; make one with torch.Generator('cpu').manual_seed(seed)."
            )
        return law(shape, generator=generator, device=source, dtype=dtype).to(device)

    def move(draw: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(draw).to(device=device, dtype=dtype)

    return _common.is_double(dtype), native, move


def _vmap(f: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.func.vmap`` over every tensor; None is no tensor, which it would refuse."""

    def mapped(*arguments: Any) -> Any:
        axes = tree_map(lambda leaf: 0 if isinstance(leaf, torch.Tensor) else None, arguments)
        return torch.func.vmap(f, in_dims=axes)(*arguments)

    return mapped


@final
@dataclass(frozen=True)
class _Torch:
    """PyTorch tensors; noise is drawn as diffusers draws it."""

    name: str = "torch"
    version: str = str(torch.__version__)

    @property
    def transforms(self) -> Mapping[str, Callable[..., Any]]:
        """``compile`` without graph breaks, ``vmap`` and ``grad``; no ``scan``.

        A compiled step takes its row as a 0-d integer tensor: one graph for all rows, where Python ints compile anew.
        """
        return {"compile": partial(torch.compile, fullgraph=True), "vmap": _vmap, "grad": torch.func.grad}

    def devices(self) -> Sequence[str]:
        """The CPU, each CUDA (or ROCm) device, and MPS."""
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return ("cpu", *cuda, *(["mps:0"] if torch.backends.mps.is_available() else []))

    def device(self, name: Any = None) -> torch.device:
        """``torch.device(name)``, checked to be here; None is the CPU, an integer counts accelerators."""
        try:
            found = torch.device("cpu" if name is None else name)
        except (RuntimeError, TypeError) as error:
            raise _common.absent_device(name, "PyTorch", self.devices()) from error
        if found.type in ("cuda", "mps") and f"{found.type}:{found.index or 0}" not in self.devices():
            raise _common.absent_device(name, "PyTorch", self.devices())
        return found

    def asarray(self, values: npt.ArrayLike, *, dtype: str | None = None, device: Any = None) -> torch.Tensor:
        """A copy: never NumPy's memory, which may be read-only or run backwards."""
        array = _common.host(values, "float32" if dtype == "bfloat16" else dtype)
        target = torch.bfloat16 if "bfloat16" in (dtype, array.dtype.name) else None
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        elif dtype is None and array.dtype == np.float64 and not hasattr(values, "dtype"):
            target = torch.get_default_dtype()  # Python floats, as torch.tensor takes them
        return torch.from_numpy(array).to(device=self.device(device), dtype=target)

    def to_numpy(self, x: torch.Tensor) -> npt.NDArray[Any]:
        """A writable copy of a tensor on any device, also one that requires grad or is a lazy conjugate."""
        return np.array((x.float() if x.dtype == torch.bfloat16 else x).numpy(force=True))

    def generator(self, seed: int, device: Any = None) -> torch.Generator:
        """``torch.Generator(device).manual_seed(seed)``."""
        return torch.Generator(device=self.device(device)).manual_seed(seed)

    def normal(
        self, shape: Sequence[int], *, generator: Any, like: torch.Tensor, index: int = 0
    ) -> torch.Tensor:
        """The draws of diffusers' pipelines, bit for bit; None is the global generator. ``index`` is unused.

        A CPU generator draws on the CPU for any device, so that a seed gives the same image on all of them.
        """
        double, native, move = _drawing(torch.randn, like.device, like.dtype)
        return _common.normal(shape, generator, double=double, native=native, move=move, join=torch.cat)

    def uniform(
        self, shape: Sequence[int], *, generator: Any, like: torch.Tensor, index: int = 0
    ) -> torch.Tensor:
        """The draws of ``torch.rand``, from the generators that `normal` takes. ``index`` is unused."""
        dtype = torch.float64 if _common.is_double(like.dtype) else torch.float32
        double, native, move = _drawing(torch.rand, like.device, dtype)
        return _common.uniform(shape, generator, double=double, native=native, move=move, join=torch.cat)

    def counter_noise(
        self, like: torch.Tensor, seed: int, stream: int, step: Any, samples: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """`anystep._counter.generate`; while compiling, one opaque operation."""
        return counter_noise(like, seed, stream, step, samples, **options)

    def fuse(self, plan: Plan, i: int, x: torch.Tensor) -> Step | None:
        """Row ``i`` made fast for arrays like ``x``, or None; see `anystep.update`."""
        return fuse(plan, i, x)

    def position(self, table: torch.Tensor, entry: Any) -> int | None:
        """Index of a view into the table, from addresses: no value is read, no device waited for.

        None for anything else, and while compiling or under a transform, where tensors have no storage.
        """
        if torch.compiler.is_compiling() or not isinstance(entry, torch.Tensor):
            return None
        if entry.dtype != table.dtype or entry.numel() != 1 or table.ndim != 1:
            return None
        try:
            at, begin = entry.data_ptr(), table.data_ptr()
            if at and begin and table.is_contiguous():
                near = entry.get_device() == table.get_device()
                return _common.view_index(at - begin, entry.element_size(), table.numel()) if near else None
            # The storage's own address: its data's would be 0 for every meta tensor.
            ours, theirs = table.untyped_storage()._cdata, entry.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
        except RuntimeError:
            return None
        if ours != theirs:
            return None
        offset = int(entry.storage_offset()) - int(table.storage_offset())
        return _common.view_index(offset, table.stride(0), table.shape[0])


backend: Backend = _Torch()
