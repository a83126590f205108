"""JAX: eager, and traced by jit, vmap and scan.

A `Plan` may be closed over by a traced function or passed to it: it is registered as a static pytree, without leaves,
equal and hashed by value, so that a function is compiled once for each plan. Its tables are host numbers that a step
reads by Python index, or gathers from by array; as leaves they would be traced, and neither would be possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer

from anystep._counter import derive, draw_counters
from anystep.plan import Plan

from . import _common
from ._fused import Step
from ._jax_fused import fuse
from ._protocol import Backend

__all__ = ["backend"]


@partial(jax.jit, static_argnames=("law", "shape", "dtype"))
def _draw(law: Any, key: Any, index: int, *, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """One dispatch for fold_in, draw and rounding: an eighth of the eager time, and the same bits."""
    # Drawn in half precision, JAX's normals take 128 (bfloat16) or 1024 (float16) values and have no tails.
    drawn = jnp.float64 if dtype == jnp.float64 else jnp.float32
    return law(jax.random.fold_in(key, index), shape, drawn).astype(dtype)


@partial(jax.jit, static_argnames=("elements", "law"))
def _counted(keys: Any, samples: Any, *, elements: int, law: str) -> jax.Array:
    """A twentieth of the eager time, and the same bits; keys are data, so one compilation serves all steps."""
    return draw_counters(jnp, None, keys, samples, elements=elements, law=law)


def _key_ndim(generator: Any) -> int | None:
    """Axes of an array of PRNG keys, typed or legacy uint32; None for anything else."""
    if not isinstance(generator, jax.Array):
        return None
    if jnp.issubdtype(generator.dtype, jax.dtypes.prng_key):
        return generator.ndim
    return generator.ndim - 1 if generator.dtype == jnp.uint32 else None


def _place(x: jax.Array, like: jax.Array) -> jax.Array:
    """Noise on the sample's devices, sharded as it is where the shapes agree; a compiler places tracers."""
    if isinstance(x, Tracer) or isinstance(like, Tracer) or x.devices() == like.devices():
        return x
    if len(like.devices()) == 1 or x.shape == like.shape:
        return jax.device_put(x, like.sharding)
    return x


def _drawing(law: Any, like: jax.Array, dtype: Any, index: int) -> tuple[Any, Any]:
    """How to draw from JAX's keys, and how to bring NumPy's draws here."""

    def native(shape: tuple[int, ...], generator: Any) -> jax.Array:
        if generator is None:
            raise ValueError(
                "generator=None: JAX has no global random state; pass generator=jax.random.key(seed), "
                "or the noise itself."
            )
        if _key_ndim(generator) != 0:
            _common.refuse_generator(generator, "a JAX key", "jax.random.key(seed)")
        return _place(_draw(law, generator, index, shape=shape, dtype=dtype), like)

    def move(draw: npt.NDArray[Any]) -> jax.Array:
        if isinstance(like, Tracer):
            raise TypeError(
                "generator is NumPy's and the sample is traced: it would draw once, at tracing, and "
                "repeat that at every call; pass generator=jax.random.key(seed), or the noise itself."
            )
        return _place(jnp.asarray(draw.astype(dtype)), like)

    return native, move


@final
@dataclass(frozen=True)
class _Jax:
    """JAX arrays. A key is a value, so one key gives fresh noise at each ``index``."""

    name: str = "jax"
    version: str = jax.__version__

    @property
    def transforms(self) -> Mapping[str, Callable[..., Any]]:
        """All four, as JAX has them."""
        return {"compile": jax.jit, "vmap": jax.vmap, "grad": jax.grad, "scan": jax.lax.scan}

    def _present(self) -> list[Any]:
        """Devices of this process, the default ones first."""
        found: list[Any] = []
        for platform in (None, "cpu"):
            try:
                found += [device for device in jax.local_devices(backend=platform) if device not in found]
            except RuntimeError:  # JAX_PLATFORMS leaves this platform out, or it has no device
                continue
        return found

    def devices(self) -> Sequence[str]:
        """Platform and number of each device of this process, such as ``"gpu:0"``."""
        return tuple(f"{device.platform}:{device.id}" for device in self._present())

    def device(self, name: Any = None) -> Any:
        """The device of a name (``"cpu"``, ``"gpu:1"``, ``"cuda"``) or number; None is the default device.

        Devices and shardings, which JAX takes in place of a device, are returned as they are.
        """
        if isinstance(name, jax.Device | jax.sharding.Sharding):
            return name
        present = self._present()
        default = present[0].platform if present else ""
        wanted = default if name is None else f"{default}:{name}" if isinstance(name, int) else str(name)
        platform, _, number = wanted.partition(":")
        platform = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
        for device in present:
            if device.platform == platform and number in ("", str(device.id)):
                return device
        raise _common.absent_device(name, "JAX", self.devices())

    def asarray(self, values: npt.ArrayLike, *, dtype: str | None = None, device: Any = None) -> jax.Array:
        """A copy. Without jax_enable_x64 an explicit 64-bit dtype raises; dtype=None gives the 32-bit one."""
        if dtype in ("float64", "int64") and jnp.asarray(np.zeros((), dtype)).dtype != dtype:
            raise ValueError(
                f"dtype={dtype!r}: JAX holds 64-bit numbers only when jax_enable_x64 is on; call "
                f"jax.config.update('jax_enable_x64', True) before anything else, or ask for {dtype[:-2]}32."
            )
        place = None if device is None else self.device(device)
        return jnp.asarray(_common.host(values, dtype), device=place)

    def to_numpy(self, x: jax.Array) -> npt.NDArray[Any]:
        """A writable copy; bfloat16 becomes float32."""
        return np.array(x, dtype=np.float32 if x.dtype == jnp.bfloat16 else None)

    def generator(self, seed: int, device: Any = None) -> jax.Array:
        """``jax.random.key(seed)``."""
        key = jax.random.key(seed)
        return key if device is None else jax.device_put(key, self.device(device))

    def normal(self, shape: Sequence[int], *, generator: Any, like: jax.Array, index: int = 0) -> jax.Array:
        """Draws of ``fold_in(key, index)``, in float32 for half precision; a 1-d array of keys is a list.

        JAX has no global generator, so None raises. Under jit the key may be traced; a NumPy generator, which
        would draw once, at tracing, raises.
        """
        double = _common.is_double(like.dtype)
        native, move = _drawing(jax.random.normal, like, like.dtype, index)
        keys = list(generator) if _key_ndim(generator) == 1 else generator
        return _common.normal(shape, keys, double=double, native=native, move=move, join=jnp.concatenate)

    def uniform(self, shape: Sequence[int], *, generator: Any, like: jax.Array, index: int = 0) -> jax.Array:
        """Draws of ``fold_in(key, index)``, from the generators that `normal` takes."""
        double = _common.is_double(like.dtype)
        native, move = _drawing(jax.random.uniform, like, jnp.float64 if double else jnp.float32, index)
        keys = list(generator) if _key_ndim(generator) == 1 else generator
        return _common.uniform(shape, keys, double=double, native=native, move=move, join=jnp.concatenate)

    def counter_noise(
        self,
        like: Any,
        seed: int,
        stream: int,
        step: Any,
        samples: Any,
        *,
        elements: int,
        law: str,
        double: bool,
    ) -> jax.Array:
        """`anystep._counter.generate`, compiled."""
        xp = np if isinstance(step, int) else jnp  # a key known on the host is handed over as it is
        keys = derive(xp, None, seed, stream, step, law=law, double=double)
        return _place(_counted(keys, samples, elements=elements, law=law), like)

    def fuse(self, plan: Plan, i: int, x: jax.Array) -> Step | None:
        """Row ``i`` made fast for arrays like ``x``, or None; see `anystep.update`."""
        return fuse(plan, i, x)

    def position(self, table: Any, entry: Any) -> int | None:
        """None: a JAX array does not say where its memory is, and a traced one has none."""
        return None


jax.tree_util.register_static(Plan)

backend: Backend = _Jax()
