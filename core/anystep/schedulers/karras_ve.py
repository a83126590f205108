"""`KarrasVeScheduler`: Heun's method with churn under diffusers' name, config and methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from anystep._array import Array, Float64, kind
from anystep._checks import MOST_STEPS, integer, number
from anystep._draw import draw
from anystep._update import State, estimate, matching, update
from anystep.forward import mix
from anystep.levels import Level, Levels
from anystep.plan import Plan
from anystep.predictions import Epsilon
from anystep.samplers._late_churn import LateChurnEuler
from anystep.samplers.heun import Heun
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import AnyFacade, as_number
from anystep.schedulers._outputs import KarrasVeOutput, Lazy
from anystep.schedulers._remembered import remembered
from anystep.spacings.sigma import exponential

__all__ = ["KarrasVeScheduler"]


@dataclass(frozen=True)
class _NegatedNoise(Epsilon):
    """-ε, the score times sigma: no published source."""

    name: ClassVar[str] = "score"

    def to_sample(self, level: Level) -> tuple[Any, Any]:
        a, b = super().to_sample(level)
        return a, -b

    def to_noise(self, level: Level) -> tuple[Any, Any]:
        c, d = super().to_noise(level)
        return c, -d


class KarrasVeScheduler(AnyFacade):
    """Heun's method with churn, drop-in for diffusers' class of that name; see `anystep.Heun` for the method.

    A step is `add_noise_to_input`, a model call, `step`, and where ``sigma_prev`` is not 0 a second call and `step_correct`.
    The model returns -ε, and there is no beta table.

    Parameters
    ----------
    sigma_min, sigma_max
        Least and largest noise level, 0 < sigma_min < sigma_max.
    s_noise
        Scale of the added noise's standard deviation, >= 0.
    s_churn, s_min, s_max
        Amount of added noise, >= 0, and the range of sigma in which it is added; see `anystep.Heun`.

    Raises
    ------
    ValueError
        If a value is none of these.

    References
    ----------
    Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2 and, for the grid, table 1, column VE. Where diffusers'
    results differ from it: docs/deviations.md.

    Examples
    --------
    >>> scheduler = KarrasVeScheduler(sigma_min=0.1, sigma_max=10).corrected()
    >>> scheduler.set_timesteps(3)
    >>> [round(float(scheduler.schedule[t]), 6) for t in scheduler.timesteps]
    [10.0, 1.0, 0.1]
    """

    order: ClassVar[int] = 2
    deviations: ClassVar[Mapping[str, str]] = {
        "karras-ve-squared-sigmas": "the schedule holds sigma², and the steps take it for sigma: a run starts at sigma_max²",
    }
    timesteps: Any = None
    schedule: Any = None

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        s_noise: float = 1.007,
        s_churn: float = 80,
        s_min: float = 0.05,
        s_max: float = 50,
    ) -> None:
        self._configured()

    def _reset(self) -> None:
        config = self.config
        for name in ("s_noise", "s_churn", "s_min", "s_max"):
            if not config[name] >= 0:
                raise ValueError(f"{name}={config[name]!r}: expected a number >= 0; s_churn=0 is the ODE.")
        low, high = (number(name, config[name]) for name in ("sigma_min", "sigma_max"))
        if not 1e-50 <= low < high <= 1e50:  # they are squared
            raise ValueError(
                f"sigma_min={low!r}, sigma_max={high!r}: expected 0 < sigma_min < sigma_max < inf, within [1e-50, 1e50]."
            )
        self._plans: dict[tuple[float, float], Plan] = {}
        self._draws = 0
        self._times: Any = None
        self._sigmas: Any = None
        if self.num_inference_steps is not None:
            self._times, self._sigmas = self._grid(self.num_inference_steps)
        self._hand_out()

    def _hand_out(self) -> None:
        self.timesteps = None if self._times is None else self._export(self._times)
        self.schedule = None if self._sigmas is None else self._export(self._sigmas)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the start sample, sigma_max."""
        return self.config["sigma_max"]

    def __len__(self) -> int:
        raise TypeError("KarrasVeScheduler has no training timesteps, and so no length.")

    def __bool__(self) -> bool:
        return True

    def scale_model_input(self, sample: Array, timestep: Any = None) -> Array:
        """The sample itself."""
        return sample

    @remembered
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Make ``timesteps`` N - 1 .. 0 and ``schedule``, the noise level of each of them: ``schedule[t]``.

        Parameters
        ----------
        num_inference_steps
            N >= 1; one step starts at the largest level.
        device
            Where both are wanted; see `to`. None leaves them as they were, NumPy at first.

        Raises
        ------
        ValueError
            If N is not such an integer. Nothing is changed then.
        """
        steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        times, sigmas = self._grid(steps)
        self._commit(
            device,
            lambda trial: None,
            num_inference_steps=steps, _times=times, _sigmas=sigmas, _plans={}, _draws=0,
        )  # fmt: skip

    def _grid(self, steps: int) -> tuple[Any, Float64]:
        power = 1 if "karras-ve-squared-sigmas" in self._corrections else 2
        high, low = (float(self.config[name]) ** power for name in ("sigma_max", "sigma_min"))
        sigmas = exponential(high, low, steps) if steps > 1 else np.asarray([high])
        return np.arange(steps)[::-1], sigmas[::-1]

    def _sigma(self, name: str, sigma: Any) -> float:
        """A level as a number, without reading a device where it is an entry of ``schedule``."""
        kept, position = self._sigmas, None if self._sigmas is None else self._position(sigma, self.schedule)
        value = as_number(name, sigma) if position is None else float(kept[position])
        if not 0 <= value <= 1e100:
            raise ValueError(
                f"{name}={value}: expected a noise level >= 0, such as an entry of scheduler.schedule."
            )
        return value

    def add_noise_to_input(self, sample: Array, sigma: Any, generator: Any = None) -> tuple[Array, float]:
        """Raise the level of a sample before a step.

        Parameters
        ----------
        sample
            The sample at level ``sigma``, any array library; never written to.
        sigma
            An entry of ``schedule``, or a number.
        generator
            Source of the noise; see `anystep.draw`. It is drawn even where none is added.

        Returns
        -------
        tuple
            The sample at the raised level, with shape, dtype and device of ``sample``, and that level, a Python float.

        Raises
        ------
        ValueError
            If `set_timesteps` was not called, or ``sigma`` is no level.
        """
        if self.num_inference_steps is None:
            raise ValueError(
                "num_inference_steps=None: the churn of a step depends on it; call set_timesteps first."
            )
        level, config = self._sigma("sigma", sigma), self.config
        churn = LateChurnEuler(
            config["s_churn"], config["s_min"], config["s_max"], count=self.num_inference_steps
        )
        raised = level and float(churn.raised(_chain(level, 0.0))[0])
        found = kind(sample)
        # diffusers draws in float32 whatever the sample.
        noise = draw(found.xp.astype(sample, found.xp.float32, copy=False), generator, self._draws)
        self._draws += 1
        return mix(sample, noise, 1.0, config["s_noise"] * (raised**2 - level**2) ** 0.5), raised

    def step(
        self,
        model_output: Array,
        sigma_hat: Any,
        sigma_prev: Any,
        sample_hat: Array,
        return_dict: bool = True,
    ) -> Any:
        """Euler's step from the raised level to the next.

        Parameters
        ----------
        model_output
            -ε at ``sample_hat``, of its shape.
        sigma_hat, sigma_prev
            The level of ``sample_hat``, as `add_noise_to_input` returned it, and the one to reach; 0 is the clean sample.
        sample_hat
            The sample, any array library; never written to.
        return_dict
            Whether to return `KarrasVeOutput` or the tuple (prev_sample, derivative).

        Returns
        -------
        KarrasVeOutput or tuple
            ``prev_sample`` and ``derivative``, with shape, dtype and device of ``sample_hat``, and ``pred_original_sample``,
            computed when read.

        Raises
        ------
        ValueError
            If a shape differs, or ``sigma_prev`` is not below ``sigma_hat``.
        """
        plan = self._plan(sigma_hat, sigma_prev)
        moved = update(plan, 0, State(sample_hat, (sample_hat,) * 2), model_output)
        return self._answer(plan, 0, sample_hat, model_output, moved.x, moved.memory[1], return_dict)

    def step_correct(
        self,
        model_output: Array,
        sigma_hat: Any,
        sigma_prev: Any,
        sample_hat: Array,
        sample_prev: Array,
        derivative: Array,
        return_dict: bool = True,
    ) -> Any:
        """The step again, with the mean of the derivatives at both of its ends.

        Parameters
        ----------
        model_output
            -ε at ``sample_prev``, of its shape.
        sigma_hat, sigma_prev, sample_hat
            As given to `step`; ``sigma_prev`` is above 0.
        sample_prev, derivative
            What `step` returned.
        return_dict
            See `step`.

        Returns
        -------
        KarrasVeOutput or tuple
            See `step`; ``derivative`` is the one given.

        Raises
        ------
        ValueError
            If a shape differs, or ``sigma_prev`` is 0: the last step has no correction.
        """
        plan = self._plan(sigma_hat, sigma_prev)
        if len(plan) == 1:
            raise ValueError(
                "sigma_prev=0: the model has no level there; leave out the correction of the last step."
            )
        for name, array in (("sample_hat", sample_hat), ("derivative", derivative)):
            matching(sample_prev, array, name)
        moved = update(plan, 1, State(sample_prev, (sample_hat, derivative)), model_output)
        return self._answer(plan, 1, sample_prev, model_output, moved.x, derivative, return_dict)

    def _plan(self, sigma_hat: Any, sigma_prev: Any) -> Plan:
        """Two calls of a step between two levels, or one if it ends at 0."""
        ends = self._sigma("sigma_hat", sigma_hat), self._sigma("sigma_prev", sigma_prev)
        if ends not in self._plans:
            if len(self._plans) >= _KEPT:
                self._plans.clear()
            self._plans[ends] = Heun().plan(_chain(*ends), _NegatedNoise())
        return self._plans[ends]

    def _answer(
        self,
        plan: Plan,
        row: int,
        x: Array,
        output: Array,
        moved: Array,
        derivative: Array,
        return_dict: bool,
    ) -> Any:
        if not return_dict:
            return moved, derivative
        return KarrasVeOutput(moved, derivative, Lazy(lambda: estimate(plan, row, x, output)))

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> NoReturn:
        """Not part of this class, as in diffusers."""
        raise NotImplementedError(
            "KarrasVeScheduler has no add_noise: add sigma times the noise to the samples."
        )


_KEPT = 4096
"""Plans kept for pairs of levels."""


def _chain(sigma: float, end: float) -> Levels:
    """Levels from one to another, and from there to the clean sample."""
    sigmas = [sigma, end, 0.0] if end else [sigma, 0.0]
    return Levels.chain(sigmas, [1.0] * len(sigmas), sigmas)
