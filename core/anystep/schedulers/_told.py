"""Levels and times that a facade is told one by one, and what it draws noise like."""

from typing import Any

import numpy as np

from anystep._array import Array, Float64, kind, loaded, place

__all__ = ["MOST_PLANS", "alike", "as_drawn", "on_host", "rows_of"]

MOST_PLANS = 4096
"""Plans kept for levels or times that are not those of a run."""


def on_host(value: Any) -> Any:
    """Times or levels that lie in the host's memory as a number or a NumPy array; anything else as it is.

    To compute with an array instead would take a kernel for every operation. A traced one is not read, nor one on a device.
    """
    if isinstance(value, _HOST) or getattr(value, "ndim", 2) > 1:
        return value
    torch = loaded("torch")
    if torch is not None and torch.compiler.is_compiling():
        return value
    try:
        where = place(value)
        kind_of_device = next(iter(value.devices())).platform if where is None else where.type
        found = np.asarray(value) if kind_of_device == "cpu" else value
    except (AttributeError, RuntimeError, TypeError):  # traced, or of a library that does not say
        return value
    return found.item() if found is not value and found.size == 1 else found


_HOST: tuple[Any, ...] = (float, int, np.ndarray, np.generic)


def alike(values: Any, sample: Array) -> bool:
    """Whether there is one for each sample, on the host, and all are the same."""
    if not isinstance(values, np.ndarray) or values.shape != tuple(sample.shape[:1]) or not values.size:
        return False
    return bool((values == values[0]).all())


def rows_of(values: Float64) -> dict[float, int]:
    """Which row a number is, also one that was handed out in float32."""
    with np.errstate(all="ignore"):
        rounded = values.astype(np.float32).astype(np.float64)
    near = np.flatnonzero(np.abs(rounded - values) <= 1e-6 * np.abs(values))  # not what became 0 or infinite
    rows = {float(rounded[i]): int(i) for i in near}
    return rows | {value: i for i, value in enumerate(values.tolist())}


def as_drawn(sample: Array) -> Array:
    """An array whose like diffusers draws where it draws in float32 whatever the sample; its values mean nothing."""
    xp = kind(sample).xp
    return sample if sample.dtype == xp.float32 else xp.empty_like(sample, dtype=xp.float32)
