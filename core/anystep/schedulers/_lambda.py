"""Base of the facades that work on x_t and integrate over λ = log(alpha_t / sigma_t)."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from anystep._array import Array, Float64, like
from anystep._checks import MOST_STEPS, integer, numbers
from anystep._misread import Misread
from anystep.forward import mix
from anystep.levels import Level, Levels
from anystep.predictions import Prediction, prediction
from anystep.schedulers._respaced import RespacedFacade
from anystep.spacings.flow import dynamic_shift
from anystep.spacings.open_end import open_flow, open_leading, open_linspace, open_trailing

__all__ = ["LambdaFacade"]


class LambdaFacade(RespacedFacade):
    """Abstract: ``sigmas`` are karras sigmas, or sigma_t of rectified flow with ``use_flow_sigmas``.

    ``model_outputs`` holds the estimates that a step integrates, x̂₀ or ε̂: the latest last, None where there is none yet.
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "foreign-ends": "respaced sigmas heed sigma_min and sigma_max left by another class",
        "truncated-timesteps": "fractional timesteps are truncated, not rounded; those of flow sigmas too",
        "unknown-timestep": "a first timestep that is not one of the schedule's is taken for the last one",
        "untimed-noise": "before set_timesteps, add_noise gives timestep t the level of T - 1 - t",
        "misread-velocity": "v_prediction with flow sigmas, and flow_prediction without, are read as of the other process",
    }
    _foreign_ends: ClassVar[tuple[str, ...]] = ("karras", "exponential", "beta")
    init_noise_sigma: float = 1.0
    model_outputs: list[Any]
    lower_order_nums: int = 0
    """Number of earlier calls that the next step may use, at most ``solver_order``."""

    # ------------------------------------------------------------------ tables

    @property
    def alpha_t(self) -> Any:
        """Factor on the clean sample at every training timestep, shape (T,)."""
        return self._export(np.sqrt(self._schedule.alphas_cumprod))

    @property
    def sigma_t(self) -> Any:
        """Standard deviation of the noise at every training timestep, shape (T,)."""
        return self._export(np.sqrt(1 - self._schedule.alphas_cumprod))

    @property
    def lambda_t(self) -> Any:
        """log(alpha_t / sigma_t) at every training timestep, shape (T,)."""
        return self._export(-np.log(self._schedule.karras_sigmas))

    @property
    def _flow(self) -> bool:
        return bool(self.config["use_flow_sigmas"])

    def _sigma_to_alpha_sigma_t(self, sigma: Any) -> tuple[Any, Any]:
        """(alpha_t, sigma_t) of entries of ``sigmas``: numbers, or arrays of any library."""
        if self._flow:
            return 1 - sigma, sigma
        alpha_t = 1 / (sigma**2 + 1) ** 0.5
        return alpha_t, sigma * alpha_t

    # ------------------------------------------------------------------ state

    @property
    def _depends(self) -> Any:
        return self._mu_shift

    def _configured(self) -> None:
        integer("solver_order", self.config["solver_order"], 1, 32)
        super()._configured()

    def _reset(self) -> None:
        self._begin_anew()
        self._mu_shift = None
        vars(self).update(self._fresh)
        if self.num_inference_steps is None:
            self._sigmas = self._schedule.karras_sigmas
            self._times = np.arange(len(self._sigmas), dtype=np.float64)[::-1]
        self._hand_out()

    @property
    def _fresh(self) -> dict[str, Any]:
        """Attributes that a run begins with."""
        return {"model_outputs": [None] * int(self.config["solver_order"]), "lower_order_nums": 0}

    @property
    def _step_index(self) -> int | None:
        return self._run[0]

    @_step_index.setter
    def _step_index(self, index: int | None) -> None:
        # Loops that step at one level twice set it back.
        self._point(index)

    def _init_step_index(self, timestep: Any) -> None:
        self._point(None)
        self._point(self._index(timestep))

    @property
    def _earlier(self) -> tuple[Array, ...]:
        return tuple(self.model_outputs[: -1 - self.lower_order_nums : -1])

    def _remember(self, estimate: Array) -> None:
        """The latest estimate joins ``model_outputs``, a new list each time, which clones do not share."""
        self.model_outputs = [*self.model_outputs[1:], estimate]
        self.lower_order_nums = min(self.lower_order_nums + 1, len(self.model_outputs))

    def _begun(self, timestep: Any) -> int:
        """The row of the next step, or ValueError before `set_timesteps`."""
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps=None: there are no steps yet; call set_timesteps first.")
        return self._index(timestep)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Row of a timestep, the second of two that are equal unless one is the first of all; the last row if there is none.

        The first two may be equal because timesteps are whole numbers: a loop over all of them begins at row 0.
        """
        table = (
            self._times if schedule_timesteps is None else numbers("schedule_timesteps", schedule_timesteps)
        )
        rows = np.flatnonzero(np.asarray(table, dtype=np.float64) == self._number(timestep))
        if len(rows):
            return int(rows[1]) if len(rows) > 1 and rows[0] else int(rows[0])
        if "unknown-timestep" in self._corrections:
            raise IndexError(
                f"timestep={timestep}: expected one of scheduler.timesteps; call set_timesteps first."
            )
        return len(self._times) - 1

    # ------------------------------------------------------------------ levels

    @property
    def _levels(self) -> Levels:
        count = len(self._times)
        point = Level(np.append(self._times, 0), *self._sigma_to_alpha_sigma_t(self._sigmas))
        return Levels(point[:count], point[1 : count + 1])

    @property
    @abstractmethod
    def _integrand(self) -> Literal["x0", "noise"]:
        """The estimate that a step integrates."""

    @property
    def _prediction(self) -> Prediction:
        name = self.config["prediction_type"]
        foreign = {"v_prediction": self._flow, "flow_prediction": not self._flow}.get(name, False)
        if not foreign or "misread-velocity" in self._corrections:
            return prediction(name)
        if name == "flow_prediction" and self._integrand == "noise":
            return prediction(name)
        return Misread(name, self._integrand)

    def _spaced(self, num_inference_steps: Any) -> Float64:
        """Whole timesteps of N steps by the config's spacing."""
        steps, train = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS), len(self)
        count, spacing = self._usable, self.config["timestep_spacing"]
        if spacing == "linspace":
            return open_linspace(count, steps)
        if spacing == "leading":
            return open_leading(train, count, steps, self.config["steps_offset"])
        return open_trailing(train, count, steps)

    @property
    def _usable(self) -> int:
        """Number of training timesteps whose λ is not below the config's bound."""
        bound = float(self._option("lambda_min_clipped", -np.inf))
        if bound == -np.inf:
            return len(self)
        clipped = int(np.searchsorted(-np.log(self._schedule.karras_sigmas)[::-1], bound))
        if clipped == len(self):
            raise ValueError(
                f"lambda_min_clipped={bound}: no timestep has a lambda as large; choose a number below "
                f"{-np.log(self._schedule.sigma_min):.2f}."
            )
        return len(self) - clipped

    def _chain(self, steps: int, times: Float64 | None, shift: float = 1.0) -> tuple[Float64, Float64]:
        """Sigmas with the terminal one, and timesteps: of given timesteps, or of N respaced or flow levels for None."""
        table = self._schedule.karras_sigmas
        if times is not None:
            sigmas = times / len(self) if self._flow else np.interp(times, np.arange(len(table)), table)
        elif self._respacing:
            sigmas = self._respaced(self._respacing, table[::-1], steps)
            if self._flow:
                sigmas = sigmas / (1 + sigmas)
                times = sigmas * len(self)
            else:
                times = np.asarray(self._schedule.timestep(sigmas))
                if self._rounds_karras and self._respacing in ("karras", "lu"):
                    times = np.round(times)
        else:
            sigmas = self._flow_sigmas(steps, shift)
            times = sigmas * len(self)
        return np.append(sigmas, self._final(sigmas, shift)), self._whole(times)

    @property
    def _rounds_karras(self) -> bool:
        """Whether timesteps of karras and lu sigmas are rounded; what is not rounded is truncated."""
        return True

    def _flow_sigmas(self, steps: int, shift: float) -> Float64:
        """N flow sigmas, shifted."""
        return open_flow(len(self), steps, shift)

    def _final(self, sigmas: Float64, shift: float) -> float:
        """Where the last step ends."""
        return self._last_sigma

    def _whole(self, times: Any) -> Any:
        """Timesteps as diffusers' integers; corrected, the nearest, and those of flow sigmas as they are."""
        if "truncated-timesteps" in self._corrections:
            if self._flow:
                return np.asarray(times, dtype=np.float64)
            times = np.round(times)
        return np.asarray(times).astype(np.int64)

    _mu_shift: float | None = None

    @property
    def _shift(self) -> float:
        """Factor on the ratio of noise to signal of flow sigmas."""
        return float(self.config["flow_shift"]) if self._mu_shift is None else self._mu_shift

    def _shift_of(self, mu: float) -> float:
        """The shift that a resolution-dependent mu stands for, or ValueError if the config has no use for it."""
        kind = self.config["time_shift_type"]
        if not self.config["use_dynamic_shifting"]:
            raise ValueError(
                f"mu={mu}: expected None without use_dynamic_shifting; set it in the config, or leave mu out."
            )
        return dynamic_shift(mu, kind)

    def _take(self, chain: Float64, times: Any, device: Any, **changes: Any) -> None:
        """Take over new levels, if a plan can be made of them, and begin anew."""
        if not (chain[: len(times)] > 0).all():
            raise ValueError(
                "sigma is 0 at a level where the model is called: only the final level may have no noise."
            )
        changes |= {"num_inference_steps": len(times), "_times": times, "_sigmas": chain}
        self._take_over(device, **changes, **self._fresh)

    # ------------------------------------------------------------------ samples

    def scale_model_input(self, sample: Array, *args: Any, **kwargs: Any) -> Array:
        """The sample itself: the model takes it as it is."""
        return sample

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> Array:
        """alpha_t original + sigma_t noise at each timestep; at the current or begin index once a loop has one.

        Parameters
        ----------
        original_samples, noise
            Arrays of one shape (B, ...).
        timesteps
            Some of ``timesteps``, one per sample or one for all; read on the host.
        """
        rows, sigmas = self._noised_rows(timesteps), self._sigmas
        if self.num_inference_steps is None and "untimed-noise" in self._corrections:
            sigmas = sigmas[::-1]
        alpha_t, sigma_t = self._sigma_to_alpha_sigma_t(sigmas[rows])
        return mix(original_samples, noise, like(alpha_t, original_samples), like(sigma_t, original_samples))
