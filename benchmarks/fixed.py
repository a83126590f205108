"""Noise taken out: what is left is the step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

import numpy as np

import anystep

from .cases import backend_like, original, subjects

__all__ = ["Draws", "fixed_draws"]


class Draws:
    """How many arrays of noise were asked for."""

    count = 0


@contextlib.contextmanager
def fixed_draws() -> Generator[Draws]:
    """Inside, both sides are handed one array, made before, wherever they would draw: what is left is the step."""
    import torch

    made: dict[Any, Any] = {}
    seen = Draws()

    def ours(x: Any, generator: Any, index: int = 0) -> Any:
        seen.count += 1
        key = type(x), tuple(x.shape), x.dtype
        if key not in made:
            made[key] = backend_like(x, np.random.default_rng(7).standard_normal(x.shape))
        return made[key]

    def theirs(
        shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Any:
        seen.count += 1
        key = torch.Tensor, tuple(shape), dtype or torch.float32
        if key not in made:
            values = np.random.default_rng(7).standard_normal(tuple(shape))
            made[key] = torch.from_numpy(values).to(device=device, dtype=key[2])
        return made[key]

    for one in subjects():  # modules are loaded when they are asked for, and must be here to be patched
        _ = getattr(anystep, one.scheduler), original(one.scheduler)
    patched: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("anystep.schedulers.") and hasattr(module, "draw"):
            patched.append((module, "draw", ours))
        if name.startswith("diffusers.schedulers.") and "randn_tensor" in vars(module):
            patched.append((module, "randn_tensor", theirs))
    before = [getattr(module, name) for module, name, _ in patched]
    try:
        for module, name, function in patched:
            setattr(module, name, function)
        yield seen
    finally:
        for (module, name, _), function in zip(patched, before, strict=True):
            setattr(module, name, function)
