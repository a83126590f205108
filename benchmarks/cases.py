"""What is measured: every facade that diffusers has a class for, with a few lines where its loop is not the usual one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

import anystep
import anystep.schedulers
from anystep._array import backend, backend_names

from .timing import Candidate

__all__ = [
    "CLIPS",
    "LIBRARIES",
    "SIZES",
    "Library",
    "Size",
    "Subject",
    "backend_like",
    "installed",
    "library",
    "original",
    "subjects",
]

CLIPS = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}
"""Clipping is switched off where it is an option that most models have off; RePaint's belongs to it."""

VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DDIMScheduler, eta=1": ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}),
    "DPMSolverMultistepScheduler, sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        {},
    ),
}
"""Name of the class, arguments of its constructor, arguments of its step."""


@dataclass(frozen=True)
class Size:
    """A shape that users have."""

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    steps: int = 20
    """Steps of a timed loop."""

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def label(self) -> str:
        return "x".join(map(str, self.shape))


SIZES = (
    Size("tiny", (1, 4, 8, 8)),
    Size("64 KiB", (1, 4, 64, 64)),
    Size("2 MiB", (8, 4, 128, 128)),
    Size("video", (1, 16, 21, 90, 160), steps=6),
    Size("1024²", (1, 3, 1024, 1024), ("float16", "bfloat16"), steps=6),
)


@dataclass(frozen=True)
class Library:
    """One array library, through the backend that anystep has for it."""

    name: str
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    wait: Callable[[Any], object] = lambda x: x
    """Returns when the array has been computed."""
    device: str | None = None

    @property
    def backend(self) -> Any:
        return backend(self.name)

    def array(self, values: Any, dtype: str) -> Any:
        return self.backend.asarray(np.asarray(values), dtype=dtype, device=self.device)

    def generator(self, seed: int = 0) -> Any:
        return self.backend.generator(seed)


def _wait_for_jax(x: Any) -> object:
    return x.block_until_ready()


# NumPy has no bfloat16, and its float16 is emulated: 20 ms a step at 1024², which is said in the text and not measured.
LIBRARIES = (
    Library("torch"),
    Library("numpy", ("float32",)),
    Library("jax", wait=_wait_for_jax),
)


def library(name: str) -> Library:
    """The library of a name."""
    return next(entry for entry in LIBRARIES if entry.name == name)


@dataclass(frozen=True)
class Subject:
    """A class, in anystep and in diffusers, and what both are constructed and stepped with."""

    name: str
    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def ours(self, **config: Any) -> Any:
        return getattr(anystep, self.scheduler)(**{**self.config, **config})

    def theirs(self, **config: Any) -> Any:
        return original(self.scheduler)(**{**self.config, **config})

    def loop(self, scheduler: Any, entry: Library, size: Size, dtype: str, steps: int) -> Candidate:
        """A loop of steps; `set_timesteps` is not timed, what a first step does is."""
        rng = np.random.default_rng(0)
        x, m = (entry.array(rng.standard_normal(size.shape, dtype=np.float32), dtype) for _ in range(2))
        make = LOOPS.get(self.scheduler, _usual)
        options = dict(self.options)
        if "generator" in inspect.signature(getattr(scheduler, "step", scheduler.__init__)).parameters:
            options["generator"] = entry.generator()
        ours = type(scheduler).__module__.startswith("anystep")
        if ours:
            scheduler.to(entry.backend.device(entry.device) if entry.name != "numpy" else "numpy")
        elif entry.device is not None:
            scheduler.set_timesteps = partial(scheduler.set_timesteps, device=entry.device)

        def prepare() -> Callable[[], object]:
            run = make(scheduler, steps, x, m, options, entry)
            return lambda: entry.wait(run())

        prepare()  # so that it has its timesteps, whatever they are made of
        return Candidate(prepare, len(scheduler.timesteps))


def original(name: str) -> Any:
    """Diffusers' class of that name, which it may have put among its deprecated ones; None if there is none."""
    import diffusers
    from diffusers.schedulers import deprecated

    return getattr(diffusers, name, None) or getattr(deprecated, name, None)


@cache
def subjects() -> tuple[Subject, ...]:
    """All classes of anystep that diffusers has too, but the one whose samples are tokens."""
    names = [
        name
        for name in anystep.schedulers.__all__
        if name.endswith("Scheduler") and not name.startswith("VQ") and original(name) is not None
    ]
    found = [Subject(name, name, CLIPS.get(name, {})) for name in names]
    found += [Subject(label, *parts) for label, parts in VARIANTS.items() if parts[0] in names]
    return tuple(found)


# --- loops ---------------------------------------------------------------------------------------------------------


def _usual(
    scheduler: Any, steps: int, x: Any, m: Any, options: Mapping[str, Any], entry: Library
) -> Callable[[], Any]:
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True  # the model's input is not part of a step
    step, times = scheduler.step, list(scheduler.timesteps)

    def run() -> Any:
        sample = x
        for t in times:
            sample = step(m, t, sample, return_dict=False, **options)[0]
        return sample

    return run


def _repaint(
    scheduler: Any, steps: int, x: Any, m: Any, options: Mapping[str, Any], entry: Library
) -> Callable[[], Any]:
    """No jumps back: each step paints."""
    scheduler.set_timesteps(steps, jump_length=1, jump_n_sample=1)
    step, times = scheduler.step, list(scheduler.timesteps)
    kept = backend_like(x, (np.arange(int(np.prod(x.shape))) % 2).reshape(tuple(x.shape)))

    def run() -> Any:
        sample = x
        for t in times:
            sample = step(m, t, sample, x, kept, return_dict=False, **options)[0]
        return sample

    return run


def _karras_ve(
    scheduler: Any, steps: int, x: Any, m: Any, options: Mapping[str, Any], entry: Library
) -> Callable[[], Any]:
    """Added noise and Euler's step; its correction is a second call of the model."""
    scheduler.set_timesteps(steps)
    sigmas = list(scheduler.schedule)[::-1]  # at timesteps N - 1, ..., 0
    generator = entry.generator()

    def run() -> Any:
        sample = x
        for k, sigma in enumerate(sigmas):
            then = sigmas[k + 1] if k + 1 < len(sigmas) else 0
            noisy, now = scheduler.add_noise_to_input(sample, sigma, generator)
            sample = scheduler.step(m, now, then, noisy, return_dict=False)[0]
        return sample

    return run


def _sde_ve(
    scheduler: Any, steps: int, x: Any, m: Any, options: Mapping[str, Any], entry: Library
) -> Callable[[], Any]:
    """The predictor."""
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    times, generator = list(scheduler.timesteps), entry.generator()

    def run() -> Any:
        sample = x
        for t in times:
            sample = scheduler.step_pred(m, t, sample, generator=generator, return_dict=False)[0]
        return sample

    return run


def _sde_vp(
    scheduler: Any, steps: int, x: Any, m: Any, options: Mapping[str, Any], entry: Library
) -> Callable[[], Any]:
    scheduler.set_timesteps(steps)
    times, generator = list(scheduler.timesteps), entry.generator()

    def run() -> Any:
        sample = x
        for t in times:
            sample = scheduler.step_pred(m, sample, t, generator=generator)[0]
        return sample

    return run


LOOPS: Mapping[str, Callable[..., Callable[[], Any]]] = {
    "RePaintScheduler": _repaint,
    "KarrasVeScheduler": _karras_ve,
    "ScoreSdeVeScheduler": _sde_ve,
    "ScoreSdeVpScheduler": _sde_vp,
}


def backend_like(x: Any, values: Any) -> Any:
    """Values as an array of the library, dtype and device of another."""
    from anystep._array import kind, like

    return kind(x).xp.astype(like(values, x), x.dtype, copy=False)


def installed(names: Sequence[str]) -> list[str]:
    """Those of the libraries that can be used here."""
    found: list[str] = []
    for name in names:
        with contextlib.suppress(ImportError):
            if name in backend_names() and backend(name) is not None:
                found.append(name)
    return found
