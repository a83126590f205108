"""Base of the facades that work on x_t / alpha_t, step by an index that they carry along, and may remember
earlier calls.
"""

import warnings
from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, host, like
from anystep._checks import integer
from anystep._update import State, scale_input, update
from anystep.forward import mix
from anystep.levels import Level, Levels, check_descending
from anystep.plan import Plan
from anystep.predictions import Prediction, Sample, prediction
from anystep.schedulers._alpha import diffusers_timesteps
from anystep.schedulers._facade import Facade
from anystep.spacings.sigma import beta, exponential, karras

__all__ = ["SigmaFacade"]


@dataclass(frozen=True)
class _Run:
    """Where a loop stands: replaced as a whole by each step, so that no reader sees half of one."""

    index: int | None = None
    """Row of the next call, None before the first."""
    memory: tuple[Array, ...] | None = field(default=None, repr=False)
    """Arrays of earlier calls; None before the first."""


_RESPACINGS = {"karras": karras, "exponential": exponential, "beta": beta}


class SigmaFacade(Facade):
    """Abstract: noise levels are karras sigmas, one more than steps."""

    _terminal = 2.0**-24
    """alpha² of the last timestep after rescaling to zero terminal SNR.

    0 would be an infinite sigma. As in diffusers.
    """
    _interpolation = {"interpolation": "linear"}  # noqa: RUF012
    _begin_index: int | None = None
    _run: _Run = _Run()
    is_scale_input_called: bool = False

    def _configured(self) -> None:
        flags = [name for name in _RESPACINGS if self.config.get(f"use_{name}_sigmas")]
        if len(flags) > 1:
            raise ValueError(
                f"use_{flags[0]}_sigmas and use_{flags[1]}_sigmas are both set: at most one can respace the sigmas."
            )
        super()._configured()

    def _reset(self) -> None:
        self._plans: dict[Hashable, Any] = {}
        self._run = _Run()
        if self.num_inference_steps is None:
            self._sigmas = np.append(self._schedule.karras_sigmas[::-1], 0.0)
            self._times = self._told(
                np.arange(len(self._schedule.betas), dtype=np.float64)[::-1], self._sigmas[:-1]
            )
        self._hand_out()

    def _hand_out(self) -> None:
        super()._hand_out()
        self.sigmas = self._export(self._sigmas)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the start sample: the largest sigma, or for leading spacing √(sigma² + 1)."""
        high = float(self._sigmas.max())
        return (
            high
            if self.config["timestep_spacing"] in ("linspace", "trailing")
            else float(np.hypot(high, 1.0))
        )

    @property
    def step_index(self) -> int | None:
        """Row of the next step; None before the first."""
        return self._run.index

    @property
    def begin_index(self) -> int | None:
        """Row to begin at, if `set_begin_index` was called."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a row, instead of looking up the first timestep; image-to-image loops use it.

        Parameters
        ----------
        begin_index
            Row in [0, N].
        """
        self._begin_index = integer("begin_index", begin_index, 0, len(self._times))

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Row of a timestep: the nearest, which must be equal up to float32 rounding; the second of two that
        are equal.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        times = (
            self._times
            if schedule_timesteps is None
            else np.asarray(host(schedule_timesteps), dtype=np.float64)
        )
        wanted = self._number(timestep)
        distance = np.abs(times - wanted)
        if not distance.size or not distance.min() <= 2.0**-20 * max(1.0, abs(wanted)):
            raise IndexError(
                f"timestep={wanted}: expected one of scheduler.timesteps; call set_timesteps first."
            )
        rows = np.flatnonzero(times == times[distance.argmin()])
        return int(rows[min(1, len(rows) - 1)])

    def _index(self, timestep: Any) -> int:
        if self._run.index is not None:
            index = self._run.index
        elif self._begin_index is not None:
            index = self._begin_index
        else:
            index = self.index_for_timestep(timestep)
        if index >= len(self._times):
            raise IndexError(
                f"step_index={index}: the schedule's {len(self._times)} steps are done; call set_timesteps to begin again."
            )
        return index

    def scale_model_input(self, sample: Array, timestep: Any) -> Array:
        """What the model is given: sample / √(sigma² + 1), which is x_t again.

        Parameters
        ----------
        sample
            The sample, any array library.
        timestep
            One of ``timesteps``; looked up before the first step, then not read.
        """
        index = self._index(timestep)
        self._run = _Run(index, self._run.memory)
        self.is_scale_input_called = True
        return scale_input(self._plan(self._default), index, sample)

    def _advance(
        self, sampler: Any, index: int, sample: Array, model_output: Array, noise: Array | None
    ) -> Array:
        """The next sample; index and memories move on only if nothing was raised."""
        if not self.is_scale_input_called:
            warnings.warn(
                f"{type(self).__name__}.step was called before scale_model_input: the model must be given "
                "scheduler.scale_model_input(sample, timestep).",
                stacklevel=3,
            )
        plan = self._plan(sampler)
        memory = self._run.memory
        state = State(sample, (sample,) * plan.memories if memory is None else memory)
        moved = update(plan, index, state, model_output, noise)
        self._run = _Run(index + 1, moved.memory)
        return moved.x

    @property
    @abstractmethod
    def _default(self) -> Any:
        """The sampler of a step with default arguments."""

    def _plan(self, sampler: Any) -> Plan:
        if sampler not in self._plans:
            self._plans[sampler] = sampler.plan(self._levels, self._prediction)
        return self._plans[sampler]

    @property
    def _levels(self) -> Levels:
        """Levels of the steps: alpha 1, sigma the karras sigma, scale the alpha of the model's own
        coordinates.
        """
        count = len(self._times)
        sigma = self._sigmas[: count + 1]
        one = np.ones(count)
        return Levels(
            Level(self._times, one, sigma[:-1]),
            Level(np.append(self._times[1:], 0), one, sigma[1:]),
            1 / np.hypot(sigma[:-1], 1),
        )

    @property
    def _prediction(self) -> Prediction:
        name = self.config["prediction_type"]
        return Sample() if name == "original_sample" else prediction(name)

    def _spaced(self, num_inference_steps: Any) -> Float64:
        """Timesteps of N steps, fractional for linspace."""
        steps = integer("num_inference_steps", num_inference_steps)
        corrected = "linspace-single-step" in self._corrections
        return diffusers_timesteps(self.config, steps, rounded=False, corrected=corrected)

    def _chain(self, times: Float64) -> tuple[Float64, Float64]:
        """Sigmas with the terminal one, and the timesteps that go with them."""
        sigmas, times = self._read_off(times)
        if self._respacing:
            sigmas = self._respaced(self._respacing, sigmas, len(times))
            times = self._schedule.timestep(sigmas)
        return np.append(sigmas, self._last_sigma), times

    def _read_off(self, times: Float64) -> tuple[Float64, Float64]:
        """Sigmas of the timesteps before any respacing, and the timesteps."""
        return np.asarray(self._schedule.level(times).karras_sigma), times

    @property
    def _respacing(self) -> str | None:
        return next((name for name in _RESPACINGS if self.config.get(f"use_{name}_sigmas")), None)

    def _respaced(self, name: str, sigmas: Float64, steps: int) -> Float64:
        """Karras, exponential or beta levels between the same ends, or the config's."""
        low, high = (self.config[key] if key in self._ends else None for key in ("sigma_min", "sigma_max"))
        low = float(sigmas[-1]) if low is None else float(low)
        high = float(sigmas[0]) if high is None else float(high)
        if not 0 < low <= high < np.inf or (low == high and steps > 1):
            raise ValueError(f"sigma_min={low}, sigma_max={high}: expected 0 < sigma_min < sigma_max.")
        return _RESPACINGS[name](high, low, steps)

    _ends: ClassVar[tuple[str, ...]] = ()
    """Config keys that override the ends of respaced sigmas."""

    @property
    def _last_sigma(self) -> float:
        return self._schedule.sigma_min if self.config.get("final_sigmas_type") == "sigma_min" else 0.0

    def _told(self, times: Float64, sigmas: Float64) -> Float64:
        """What the model is told at each level."""
        return times

    def _take(self, steps: int, times: Float64, chain: Float64, device: Any) -> None:
        """Take over new levels, if a plan can be made of them, and begin anew."""
        if not (chain[: len(times)] > 0).all():
            raise ValueError(
                "sigma is 0 at a level where the model is called: only the final level may have no noise."
            )

        def build(trial: Any) -> None:
            trial._plan(trial._default)

        fresh = {"_plans": {}, "_run": _Run(), "_begin_index": None}
        self._commit(device, build, num_inference_steps=steps, _times=times, _sigmas=chain, **fresh)

    def _custom_sigmas(self, sigmas: Any) -> Float64:
        values = np.asarray(host(sigmas), dtype=np.float64)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(
                f"sigmas has shape {values.shape}: expected N + 1 numbers, the final level included."
            )
        check_descending("sigmas", values)
        return values

    def _custom_timesteps(self, timesteps: Any) -> Float64:
        values = np.asarray(host(timesteps), dtype=np.float64)
        check_descending("timesteps", values)
        if not values.size or values[0] > len(self) - 1:
            raise ValueError(
                f"timesteps={values.tolist()[:5]}: expected numbers in [0, {len(self) - 1}], noisiest first."
            )
        return values

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> Array:
        """Original + sigma noise, with sigma at each timestep; at the current or begin index once a loop has
        one.

        Parameters
        ----------
        original_samples, noise
            Arrays of one shape (B, ...).
        timesteps
            Some of ``timesteps``, one per sample or one for all; read on the host.
        """
        count = max(1, np.size(host(timesteps)))
        if self._begin_index is None:
            rows = [self.index_for_timestep(t) for t in np.ravel(host(timesteps))]
        else:
            rows = [self._begin_index if self._run.index is None else self._run.index] * count
        return mix(original_samples, noise, 1.0, like(self._sigmas[rows], original_samples))
