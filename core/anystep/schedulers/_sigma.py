"""Base of the facades that work on x_t / alpha_t."""

import logging
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, host, like
from anystep._checks import integer
from anystep._update import scale_input
from anystep.forward import mix
from anystep.levels import Level, Levels, check_descending
from anystep.predictions import Prediction, Sample, prediction
from anystep.schedulers._alpha import diffusers_timesteps
from anystep.schedulers._facade import Facade
from anystep.schedulers._indexed import IndexedFacade
from anystep.spacings.sigma import beta, exponential, karras

__all__ = ["SigmaFacade"]

_log = logging.getLogger(__name__)

_RESPACINGS = {"karras": karras, "exponential": exponential, "beta": beta}


class SigmaFacade(IndexedFacade, Facade):
    """Abstract: noise levels are karras sigmas, one more than steps."""

    _terminal = 2.0**-24
    """alpha² of the last timestep after rescaling to zero terminal SNR.

    0 would be an infinite sigma. As in diffusers.
    """
    _interpolation = {"interpolation": "linear"}  # noqa: RUF012
    is_scale_input_called: bool = False

    def _configured(self) -> None:
        flags = [name for name in _RESPACINGS if self._options.get(f"use_{name}_sigmas")]
        if len(flags) > 1:
            raise ValueError(
                f"use_{flags[0]}_sigmas and use_{flags[1]}_sigmas are both set: at most one can respace the sigmas."
            )
        super()._configured()

    def _reset(self) -> None:
        self._begin_anew()
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
        self._point(index)
        self.is_scale_input_called = True
        return scale_input(self._plan(self._default), index, sample)

    def _advance(
        self, sampler: Any, index: int, sample: Array, model_output: Array, noise: Array | None
    ) -> Array:
        if not self.is_scale_input_called:
            _log.warning(
                "%s.step was called before scale_model_input: the model must be given "
                "scheduler.scale_model_input(sample, timestep).",
                type(self).__name__,
            )
        return super()._advance(sampler, index, sample, model_output, noise)

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
        return next((name for name in _RESPACINGS if self._options.get(f"use_{name}_sigmas")), None)

    def _respaced(self, name: str, sigmas: Float64, steps: int) -> Float64:
        """Karras, exponential or beta levels between the same ends, or the config's."""
        low, high = (self._end(key) for key in ("sigma_min", "sigma_max"))
        low = float(sigmas[-1]) if low is None else float(low)
        high = float(sigmas[0]) if high is None else float(high)
        if not 0 < low <= high < np.inf or (low == high and steps > 1):
            raise ValueError(f"sigma_min={low}, sigma_max={high}: expected 0 < sigma_min < sigma_max.")
        return _RESPACINGS[name](high, low, steps)

    _ends: ClassVar[tuple[str, ...]] = ()
    """Config keys that override the ends of respaced sigmas."""

    def _end(self, key: str) -> Any:
        """What overrides an end of respaced sigmas, or None."""
        return self.config[key] if key in self._ends else None

    @property
    def _last_sigma(self) -> float:
        return self._schedule.sigma_min if self._options.get("final_sigmas_type") == "sigma_min" else 0.0

    def _told(self, times: Float64, sigmas: Float64) -> Float64:
        """What the model is told at each level."""
        return times

    def _take(self, steps: int, times: Float64, chain: Float64, device: Any, **changes: Any) -> None:
        """Take over new levels, if a plan can be made of them, and begin anew."""
        if not (chain[: len(times)] > 0).all():
            raise ValueError(
                "sigma is 0 at a level where the model is called: only the final level may have no noise."
            )
        self._take_over(device, num_inference_steps=steps, _times=times, _sigmas=chain, **changes)

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
