"""Base of the facades that work on x_t / alpha_t."""

from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, like
from anystep._checks import MOST_STEPS, integer, numbers, reals
from anystep._update import scale_input
from anystep.forward import mix
from anystep.levels import Level, Levels, check_descending
from anystep.predictions import Prediction, Sample, prediction
from anystep.schedulers._alpha import diffusers_timesteps
from anystep.schedulers._remembered import remembered
from anystep.schedulers._respaced import RespacedFacade

__all__ = ["SigmaFacade"]


class SigmaFacade(RespacedFacade):
    """Abstract: noise levels are karras sigmas, one more than steps."""

    is_scale_input_called: bool = False
    _whole_at_first: ClassVar[bool] = False
    """Whether there are levels of T steps before `set_timesteps` is called, with the config's spacing."""
    _untouched: bool = True
    """Whether `set_timesteps` was never called."""

    def _reset(self) -> None:
        self._begin_anew()
        if self._whole_at_first and (self._untouched or self.num_inference_steps is None):
            self._untouched, self.num_inference_steps = True, len(self)
            # An offset moves timesteps past the end of the table, and is a clear error only in set_timesteps.
            offset = self.config["steps_offset"] * (self.config["timestep_spacing"] == "leading")
            times = diffusers_timesteps(
                {**self.config, "steps_offset": 0}, len(self), rounded=False, corrected=True
            )
            chain, told = self._chain(np.clip(times + offset, *self._schedule.t_range))
            times = told if self._respacing else times + offset
            self._times, self._sigmas = self._by_call(times, chain)
        elif self.num_inference_steps is None:
            self._sigmas = np.append(self._schedule.karras_sigmas[::-1], 0.0)
            self._times = self._told(
                np.arange(len(self._schedule.betas), dtype=np.float64)[::-1], self._sigmas[:-1]
            )
        self._hand_out()

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
        self.is_scale_input_called = True
        index = self._index(timestep)
        scaled = scale_input(self._plan(), index, sample)
        self._point(index)
        return scaled

    @property
    def _levels(self) -> Levels:
        """Levels of the steps: alpha 1, sigma the karras sigma, scale the alpha of the model's own
        coordinates.
        """
        times, sigma = self._by_step()
        one = np.ones(len(times))
        return Levels(
            Level(times, one, sigma[:-1]),
            Level(np.append(times[1:], 0), one, sigma[1:]),
            1 / np.hypot(sigma[:-1], 1),
        )

    def _by_call(self, times: Float64, chain: Float64) -> tuple[Float64, Float64]:
        """``timesteps`` and ``sigmas`` of steps from these timesteps along this chain."""
        return times, chain

    def _by_step(self) -> tuple[Float64, Float64]:
        """The timesteps and the chain that `_by_call` was given."""
        return self._times, self._sigmas[: len(self._times) + 1]

    @property
    def _prediction(self) -> Prediction:
        name = self.config["prediction_type"]
        return Sample() if name == "original_sample" else prediction(name)

    def _spaced(self, num_inference_steps: Any, train_timesteps: int | None = None) -> Float64:
        """Timesteps of N steps, fractional for linspace; spaced over a part of the training timesteps if told to."""
        steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        corrected = "linspace-single-step" in self._corrections
        config = self.config
        if train_timesteps is not None:
            config = {**config, "num_train_timesteps": train_timesteps}
        return diffusers_timesteps(config, steps, rounded=False, corrected=corrected)

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

    def _told(self, times: Float64, sigmas: Float64) -> Float64:
        """What the model is told at each level."""
        return times

    @remembered
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the levels of a run.

        Parameters
        ----------
        num_inference_steps
            N >= 1.
        device
            Where ``timesteps`` and ``sigmas`` are wanted; see `to`. None leaves them as they were, NumPy at
            first.

        Raises
        ------
        ValueError
            If N is out of range, or the spacing has no such levels. Nothing is changed then.
        """
        chain, times = self._chain(self._spaced(num_inference_steps))
        self._take(num_inference_steps, times, chain, device)

    def _take(self, steps: int, times: Float64, chain: Float64, device: Any, **changes: Any) -> None:
        """Take over new levels, if a plan can be made of them, and begin anew."""
        if not (chain[: len(times)] > 0).all():
            raise ValueError(
                "sigma is 0 at a level where the model is called: only the final level may have no noise."
            )
        times, chain = self._by_call(times, chain)
        changes |= {"num_inference_steps": steps, "_times": times, "_sigmas": chain, "_untouched": False}
        self._take_over(device, **changes)

    def _custom_sigmas(self, sigmas: Any) -> Float64:
        values = reals("sigmas", sigmas)
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(
                f"sigmas has shape {values.shape}: expected N + 1 numbers, the final level included."
            )
        check_descending("sigmas", values)
        return values

    def _custom_timesteps(self, timesteps: Any) -> Float64:
        values = numbers("timesteps", timesteps)
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
        rows = self._noised_rows(timesteps)
        return mix(original_samples, noise, 1.0, like(self._sigmas[rows], original_samples))
