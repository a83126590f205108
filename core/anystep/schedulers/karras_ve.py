"""`KarrasVeScheduler`: Heun's method with churn under diffusers' name, config and methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from anystep._array import Array, Float64
from anystep._bare import bare_plan, moved_by
from anystep._checks import MOST_STEPS, integer, number
from anystep._draw import draw
from anystep._update import State, estimate, matching, update
from anystep.levels import Level, Levels
from anystep.plan import Plan
from anystep.predictions import Epsilon
from anystep.samplers._late_churn import LateChurnEuler
from anystep.samplers.euler import Euler
from anystep.samplers.heun import Heun
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import AnyFacade, as_number
from anystep.schedulers._outputs import KarrasVeOutput, Lazy, LazyTuple
from anystep.schedulers._remembered import remembered
from anystep.schedulers._told import MOST_PLANS, as_drawn, on_host, rows_of
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


class _Raises(NamedTuple):
    """Noise added at some levels."""

    rows: dict[float, int]
    """Of each level."""
    raised: list[float]
    plan: Plan


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps between some levels."""

    rows: dict[tuple[float, float], int]
    """Of each pair of levels."""
    levels: Levels

    @cached_property
    def predictor(self) -> Plan:
        """A call a step."""
        return Euler().plan(self.levels, _NegatedNoise())

    @cached_property
    def corrector(self) -> Plan:
        """Two calls a step, and one of a step that ends at 0."""
        return Heun().plan(self.levels, _NegatedNoise())


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
        self._plans: dict[Any, _Raises | _Steps] = {}
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
        value = sigma
        if not isinstance(value, float):
            position = None if self.schedule is None else self._position(value, self.schedule)
            value = on_host(value) if position is None else float(self._sigmas[position])
            value = value if isinstance(value, float) else as_number(name, value)
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
        level = self._sigma("sigma", sigma)
        raises = self._raises(level)
        row = raises.rows[level]
        noise = draw(as_drawn(sample), generator, self._draws)
        used = noise if raises.plan.stochastic[row] else None
        moved = update(raises.plan, row, State(sample), sample, used).x
        self._draws += 1
        return moved, raises.raised[row]

    def _raises(self, level: float) -> _Raises:
        """Raises with a row of a level: those of the run, or for any other level its own."""
        found: Any = self._plans.get("raises")
        if found is None:
            found = self._plans["raises"] = self._raised(self._sigmas[::-1])
        if level not in found.rows:
            found = self._plans.get(level) or self._keep(level, self._raised(np.asarray([level])))
        return found

    @property
    def _churn(self) -> LateChurnEuler:
        config = self.config
        return LateChurnEuler(
            config["s_churn"], config["s_min"], config["s_max"], count=self.num_inference_steps
        )

    @np.errstate(all="ignore")  # a number that overflows is refused by name
    def _raised(self, levels: Float64) -> _Raises:
        raised = self._churn.raised(_between(levels, 0.0 * levels)) if levels.all() else levels
        plan = bare_plan(np.ones(len(levels)), 0.0, self.config["s_noise"] * np.sqrt(raised**2 - levels**2))
        return _Raises(rows_of(levels), raised.tolist(), plan)

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
            ``prev_sample`` and ``derivative``, with shape, dtype and device of ``sample_hat``, and ``pred_original_sample``;
            the latter two are computed when read.

        Raises
        ------
        ValueError
            If a shape differs, or ``sigma_prev`` is not below ``sigma_hat``.
        """
        steps, row = self._steps(sigma_hat, sigma_prev)
        plan = steps.predictor
        moved = update(plan, row, State(sample_hat), model_output).x
        derivative = Lazy(moved_by, _slope(), 0, sample_hat, model_output)
        return self._answer(plan, row, sample_hat, model_output, moved, derivative, return_dict)

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
        steps, row = self._steps(sigma_hat, sigma_prev)
        plan, row = steps.corrector, 2 * row + 1
        if row == len(plan):
            raise ValueError(
                "sigma_prev=0: the model has no level there; leave out the correction of the last step."
            )
        for name, array in (("sample_hat", sample_hat), ("derivative", derivative)):
            matching(sample_prev, array, name)
        moved = update(plan, row, State(sample_prev, (sample_hat, derivative)), model_output)
        return self._answer(plan, row, sample_prev, model_output, moved.x, derivative, return_dict)

    def _steps(self, sigma_hat: Any, sigma_prev: Any) -> tuple[_Steps, int]:
        """Steps among which is the one between two levels, and which of them it is."""
        ends = self._sigma("sigma_hat", sigma_hat), self._sigma("sigma_prev", sigma_prev)
        found: Any = self._plans.get("steps")
        if found is None and self._sigmas is not None:
            found = self._plans["steps"] = self._run()
        if found is None or ends not in found.rows:
            found = self._plans.get(ends) or self._keep(ends, _Steps({ends: 0}, _chain(*ends)))
        return found, found.rows[ends]

    @np.errstate(all="ignore")
    def _run(self) -> _Steps:
        """The steps of a run, from each raised level to the next of the schedule."""
        ends = np.append(self._sigmas[-2::-1], 0.0)
        raised = self._churn.raised(_between(self._sigmas[::-1], ends))
        rows = {(float(raised[i]), end): i for end, i in rows_of(ends).items()}
        return _Steps(rows, _between(raised, ends))

    def _keep(self, key: Any, made: Any) -> Any:
        if len(self._plans) > MOST_PLANS:
            self._plans.clear()
        self._plans[key] = made
        return made

    def _answer(
        self,
        plan: Plan,
        row: int,
        x: Array,
        output: Array,
        moved: Array,
        derivative: Any,
        return_dict: bool,
    ) -> Any:
        if not return_dict:
            return LazyTuple((moved, derivative))
        return KarrasVeOutput.of((moved, derivative, Lazy(estimate, plan, row, x, output)))

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> NoReturn:
        """Not part of this class, as in diffusers."""
        raise NotImplementedError(
            "KarrasVeScheduler has no add_noise: add sigma times the noise to the samples."
        )


@cache
def _slope() -> Plan:
    """ε̂, at any level."""
    return bare_plan(0.0, -1.0)


def _between(starts: Float64, ends: Float64) -> Levels:
    """Levels of steps, each with its own two."""
    one = np.ones(len(starts))
    return Levels(Level(starts, one, starts), Level(ends, one, ends))


def _chain(sigma: float, end: float) -> Levels:
    """Levels from one to another, and from there to the clean sample."""
    sigmas = [sigma, end, 0.0] if end else [sigma, 0.0]
    return Levels.chain(sigmas, [1.0] * len(sigmas), sigmas)
