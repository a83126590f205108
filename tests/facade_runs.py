"""Runs of every diffusers-named class, one call at a time, for tests that interleave, copy and break them.

The classes are those that `anystep.schedulers` exports: a new one joins every test that is built on this file.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import anystep.schedulers
from anystep._array import backend, kind
from anystep.schedulers._facade import AnyFacade

__all__ = ["FACADES", "VARIANTS", "Run", "generator", "parameters", "start_of", "variants"]

FACADES: list[type[AnyFacade]] = [
    cls
    for name in anystep.schedulers.__all__
    if isinstance(cls := getattr(anystep.schedulers, name), type) and issubclass(cls, AnyFacade)
]
SHAPE = (2, 3, 2, 2)
STEPS = 6
CLASSES = 5
"""Number of token classes with the mask."""


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of a function or method by name, without self and the catch-alls."""
    found = inspect.signature(function).parameters
    return {
        name: p
        for name, p in found.items()
        if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def needed(cls: type[AnyFacade]) -> dict[str, Any]:
    """Values of constructor arguments without a default."""
    return {name: CLASSES for name, p in parameters(cls.__init__).items() if p.default is p.empty}


_OPTIONS: list[dict[str, Any]] = [
    {},
    {"solver_order": 3},
    {"algorithm_type": "sde-dpmsolver++"},
    {"skip_prk_steps": True},
    {"stochastic_sampling": True},
    {"thresholding": True, "sample_max_value": 2.0},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    {"variance_type": "fixed_large"},
    {"variance_type": "learned_range"},
    {"use_karras_sigmas": True},
]


def variants(cls: type[AnyFacade]) -> list[dict[str, Any]]:
    """Configs of a class that use its history, its noise and its bounds."""
    names = parameters(cls.__init__)
    found = [needed(cls) | options for options in _OPTIONS if options.keys() <= names.keys()]
    # DPM-Solver++ has a variance_type of other meaning: one variant with its learned channels is enough.
    return [
        config
        for config in found
        if not (config.get("variance_type") == "fixed_large" and "solver_order" in names)
    ]


VARIANTS = [(cls, config) for cls in FACADES for config in variants(cls)]


def generator(library: str, seed: int = 3) -> Any:
    """A generator of a library, or NumPy's."""
    if library == "torch":
        import torch

        return torch.Generator().manual_seed(seed)
    return np.random.default_rng(seed)


def start_of(scheduler: Any, library: str, seed: int = 0, dtype: str = "float32") -> Any:
    """The sample that a run starts from."""
    rng, lib = np.random.default_rng(seed), backend(library)
    if hasattr(scheduler, "num_embed"):
        return lib.asarray(rng.integers(0, scheduler.num_embed, (2, 5)), dtype="int64")
    return lib.asarray(rng.standard_normal(SHAPE) * getattr(scheduler, "init_noise_sigma", 1.0), dtype=dtype)


Invoke = Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]


def invoke(scheduler: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method."""
    return getattr(scheduler, method)(*args, **kwargs)


class Run:
    """A run that stops after every call: iterate over it for the samples, and swap ``scheduler`` or ``call`` between two."""

    def __init__(
        self,
        scheduler: Any,
        library: str = "numpy",
        seed: int = 0,
        steps: int | None = STEPS,
        dtype: str = "float32",
    ) -> None:
        self.scheduler, self.library, self.rng = scheduler, library, generator(library, seed)
        self.call: Invoke = invoke
        self.stumbles = False
        """Whether the model fails after its input was made, and is called again."""
        if steps is not None:
            self.set_timesteps(steps)
        self.sample = start_of(scheduler, library, seed, dtype)
        self.samples = self._samples()

    def set_timesteps(self, steps: int) -> None:
        """Choose the timesteps, few enough and with what else a class needs."""
        extra = {"jump_length": 2, "jump_n_sample": 2} if hasattr(self.scheduler, "undo_step") else {}
        self.scheduler.set_timesteps(steps, **extra)
        if hasattr(self.scheduler, "set_sigmas"):
            self.scheduler.set_sigmas(steps)

    def __iter__(self) -> Iterator[Any]:
        return self.samples

    def _do(self, method: str, *args: Any) -> Any:
        names = parameters(getattr(type(self.scheduler), method))
        kwargs: dict[str, Any] = {"generator": self.rng} if "generator" in names else {}
        kwargs |= {name: value for name, value in (("eta", 0.7), ("s_churn", 3.0)) if name in names}
        return self.call(self.scheduler, method, args, kwargs)

    def _model(self, x: Any) -> Any:
        xp = kind(x).xp
        out = xp.astype(x * 0.5, x.dtype)
        learned = str(getattr(self.scheduler.config, "variance_type", None)).startswith("learned")
        return xp.concat([out, out * 0.0 + 0.25], axis=1) if learned else out

    def _samples(self) -> Iterator[Any]:
        names = {name for name in dir(type(self.scheduler)) if name.startswith("step")}
        if "add_noise_to_input" in dir(self.scheduler):
            yield from self._karras_ve()
        elif "step_pred" in names:
            yield from self._sde("step_correct" in names)
        elif hasattr(self.scheduler, "num_embed"):
            yield from self._tokens()
        elif "step" in names:
            yield from self._usual()
        else:
            raise NotImplementedError(f"{type(self.scheduler).__name__}: say here how it is stepped.")

    def _usual(self) -> Iterator[Any]:
        repaints = hasattr(self.scheduler, "undo_step")
        times = list(self.scheduler.timesteps)
        last = None
        for t in times:
            if repaints and last is not None and t > last:
                self.sample = self._do("undo_step", self.sample, last)
                yield self.sample
            scaled = getattr(self.scheduler, "scale_model_input", lambda sample, t: sample)
            if self.stumbles:
                scaled(self.sample, t)
            out = self._model(scaled(self.sample, t))
            extra = (self.sample * 0.0 + 0.3, self.sample[:1, :1] * 0.0 + 0.5) if repaints else ()
            self.sample = self._do("step", out, t, self.sample, *extra).prev_sample
            last = t
            yield self.sample

    def _karras_ve(self) -> Iterator[Any]:
        for t in [int(t) for t in self.scheduler.timesteps]:
            sigma = float(self.scheduler.schedule[t])
            nxt = float(self.scheduler.schedule[t - 1]) if t else 0.0
            raised, sigma_hat = self._do("add_noise_to_input", self.sample, sigma)
            yield raised
            out = self._do("step", self._model(raised) / 99.0, sigma_hat, nxt, raised)
            if nxt:
                prev, slope = out.prev_sample, out.derivative
                out = self._do("step_correct", self._model(prev) / 99.0, sigma_hat, nxt, raised, prev, slope)
            self.sample = out.prev_sample
            yield self.sample

    def _sde(self, corrects: bool) -> Iterator[Any]:
        for t in list(self.scheduler.timesteps):
            if corrects:
                self.sample = self._do(
                    "step_correct", self._model(self.sample) * -0.01, self.sample
                ).prev_sample
                yield self.sample
                self.sample = self._do(
                    "step_pred", self._model(self.sample) * -0.01, t, self.sample
                ).prev_sample
            else:
                self.sample = self._do("step_pred", self._model(self.sample), self.sample, t)[0]
            yield self.sample

    def _tokens(self) -> Iterator[Any]:
        lib = backend(self.library)
        p = np.random.default_rng(1).random((2, self.scheduler.num_embed - 1, 5))
        log_p = lib.asarray(np.log(p / p.sum(axis=1, keepdims=True)), dtype="float32")
        for t in list(self.scheduler.timesteps):
            self.sample = self._do("step", log_p, t, self.sample).prev_sample
            yield self.sample
