"""Base of the facades whose step is given its timestep and keeps nothing from one call to the next."""

from abc import abstractmethod
from collections.abc import Hashable
from typing import Any

import numpy as np

from anystep._array import Array, Float64
from anystep._checks import integer
from anystep._update import estimate, update
from anystep.forward import add_noise, velocity
from anystep.levels import Level, Levels
from anystep.plan import Plan
from anystep.predictions import prediction
from anystep.samplers import Sampler
from anystep.schedulers._facade import Facade, answer
from anystep.schedulers._outputs import Lazy, SchedulerOutput
from anystep.spacings._timesteps import leading, linspace, trailing

__all__ = ["AlphaFacade", "diffusers_timesteps"]


def diffusers_timesteps(config: Any, steps: int, *, rounded: bool, corrected: bool) -> Float64:
    """Timesteps of a config's spacing.

    A single linspace step starts at 0, as in diffusers, unless corrected.
    """
    train, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    if spacing == "leading":
        return leading(train, steps, config["steps_offset"])
    if spacing == "trailing":
        return trailing(train, steps)
    if steps == 1:
        return np.asarray([train - 1.0 if corrected else 0.0])
    # Beyond T the fractional grid of the sigma classes goes on; integers cannot.
    return np.linspace(0, train - 1, steps)[::-1] if not rounded else linspace(train, steps)


class AlphaFacade(Facade):
    """Abstract: alpha and sigma looked up by timestep, the same coordinates for sampler and model."""

    init_noise_sigma: float = 1.0

    def _reset(self) -> None:
        self._plans: dict[Hashable, tuple[Plan, dict[int, int]]] = {}
        if self.num_inference_steps is None and not getattr(self, "custom_timesteps", False):
            self._times = np.arange(self.config["num_train_timesteps"])[::-1]
        self._hand_out()

    def _spaced(self, num_inference_steps: Any) -> Any:
        """Integer timesteps of N steps."""
        steps = integer(
            "num_inference_steps",
            num_inference_steps,
            1,
            len(self),
            "num_train_timesteps: the model knows no more",
        )
        corrected = "linspace-single-step" in self._corrections
        return diffusers_timesteps(self.config, steps, rounded=True, corrected=corrected).astype(np.int64)

    def _set(self, steps: int | None, times: Any, device: Any, **changes: Any) -> None:
        """Take over new timesteps if a plan can be made of them."""

        def build(trial: Any) -> None:
            trial._plan(None, int(times[0]))

        self._commit(device, build, num_inference_steps=steps, _times=times, _plans={}, **changes)

    def _next_of(self, timesteps: Any) -> Any:
        """The nearest of ``timesteps`` below each given one, or -1."""
        ascending = np.append(-1, self._times[::-1])
        return ascending[np.searchsorted(ascending, timesteps, side="left") - 1]

    @abstractmethod
    def _previous(self, timesteps: Any) -> Any:
        """Timestep that each step ends at, host integers; negative means the clean end."""

    @property
    def final_alpha_cumprod(self) -> Any:
        """alpha² at the end of the last step."""
        return self._export(self._final_alpha_cumprod)

    @property
    def _final_alpha_cumprod(self) -> float:
        return 1.0 if self._option("set_alpha_to_one", True) else float(self._schedule.alphas_cumprod[0])

    @property
    def _plan_times(self) -> Any:
        """Timestep of each row of a plan."""
        return self._times

    @property
    @abstractmethod
    def _usual(self) -> Sampler:
        """The sampler of a step with default arguments."""

    def _plan(self, sampler: Sampler | None, timestep: int) -> tuple[Plan, int]:
        """The plan of a sampler, None for the usual one, and the row of a timestep.

        One that is not in ``timesteps`` gets a plan of its own.
        """
        found = self._plans.get(sampler)
        if found is None:
            times = self._plan_times
            found = self._make_plan(sampler, times), dict(zip(times.tolist(), range(len(times)), strict=True))
            self._plans[sampler] = found
        plan, index = found
        if timestep in index:
            return plan, index[timestep]
        if (sampler, timestep) not in self._plans:
            self._plans[sampler, timestep] = self._make_plan(sampler, np.asarray([timestep])), {timestep: 0}
        return self._plans[sampler, timestep][0], 0

    def _make_plan(self, sampler: Sampler | None, timesteps: Any) -> Plan:
        return (self._usual if sampler is None else sampler).plan(
            self._levels(timesteps),
            prediction(self._option("prediction_type", "epsilon")),
            self._threshold,
        )

    def _levels(self, timesteps: Any) -> Levels:
        return Levels(self._schedule.level(timesteps), self._ends(self._previous(timesteps)))

    def _ends(self, previous: Any) -> Level:
        """Levels at which steps end; a negative timestep is the clean end."""
        ends = previous < 0
        nxt = self._schedule.level(np.where(ends, 0, previous))
        final = self._final_alpha_cumprod
        alpha_t = np.where(ends, final**0.5, nxt.alpha_t)
        sigma_t = np.where(ends, (1 - final) ** 0.5, nxt.sigma_t)
        return Level(previous, alpha_t, sigma_t)

    def scale_model_input(self, sample: Array, timestep: Any = None) -> Array:
        """The sample itself: the model takes it as it is."""
        return sample

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> Array:
        """alpha_t x_0 + sigma_t noise, at one timestep per sample or one for all; see `anystep.add_noise`."""
        return add_noise(self._schedule, original_samples, noise, timesteps)

    def get_velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        """alpha_t noise - sigma_t x_0, the target of v-prediction; see `anystep.velocity`."""
        return velocity(self._schedule, sample, noise, timesteps)

    @staticmethod
    def _answer(
        kind: type[SchedulerOutput],
        plan: Plan,
        row: int,
        sample: Array,
        model_output: Array,
        noise: Array | None,
        return_dict: bool,
    ) -> Any:
        """What `step` returns: the next sample and the estimate of the clean one."""
        if noise is not None and not plan.stochastic[row]:
            noise = None
        moved, _ = update(plan, row, (sample, ()), model_output, noise)
        return answer(kind, moved, Lazy(estimate, plan, row, sample, model_output), return_dict)
