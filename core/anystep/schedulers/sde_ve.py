"""`ScoreSdeVeScheduler`: predictor and corrector of the variance-exploding process under diffusers' name, config and methods."""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, kind, like, namespace
from anystep._bare import moved_by
from anystep._checks import MOST_STEPS, integer, number, reals
from anystep._draw import draw
from anystep._update import State, matching, update
from anystep.forward import mix
from anystep.langevin import langevin_step
from anystep.levels import Levels
from anystep.plan import Plan
from anystep.samplers.reverse_diffusion import ReverseDiffusion
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import AnyFacade, answer
from anystep.schedulers._outputs import Lazy, SchedulerOutput, SdeVeOutput
from anystep.schedulers._remembered import remembered
from anystep.schedulers._told import alike, as_drawn, on_host
from anystep.spacings.sigma import exponential

__all__ = ["ScoreSdeVeScheduler"]

_HOST = (int, float, list, tuple, np.ndarray, np.generic)


class ScoreSdeVeScheduler(AnyFacade):
    """Predictor-corrector sampling of the VE process, drop-in for diffusers' class of that name.

    See `anystep.ReverseDiffusion` and `anystep.langevin_step` for the methods, `anystep.predictor_corrector` for the loop.

    The model returns the score; there is no beta table. `set_timesteps(n)` and then `set_sigmas(n)` prepare a run.

    Parameters
    ----------
    num_train_timesteps
        Number T of training timesteps.
    snr
        Ratio of the sizes of score and noise in `step_correct`, >= 0.
    sigma_min, sigma_max
        Least and largest noise level, 0 < sigma_min < sigma_max.
    sampling_eps
        Time at the last step, in (0, 1]; the first is 1.
    correct_steps
        Corrections of a step, >= 0, heeded by the loop.

    Raises
    ------
    ValueError
        If a value is none of these.

    References
    ----------
    Song et al. 2021, https://arxiv.org/abs/2011.13456, algorithms 2 and 4. Where diffusers' results differ: docs/deviations.md.

    Examples
    --------
    >>> scheduler = ScoreSdeVeScheduler(sigma_min=1, sigma_max=100)
    >>> scheduler.set_timesteps(3)
    >>> scheduler.set_sigmas(3)
    >>> scheduler.discrete_sigmas.round(6).tolist()
    [1.0, 10.0, 100.0]
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "sde-ve-sigmas-apart": "set_timesteps leaves the sigmas of another number of steps, at which the steps then look",
        "sde-ve-single-step": "a single step starts at sigma_min",
        "sde-ve-truncated-index": "t (N - 1) is truncated, which visits levels twice where sampling_eps N exceeds 1",
    }

    _discrete: Float64
    _sigmas: Float64
    _range: tuple[float, float]
    _plans: dict[str, Plan]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        snr: float = 0.15,
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5,
        correct_steps: int = 1,
    ) -> None:
        self._configured()

    def _reset(self) -> None:
        config = self.config
        integer("correct_steps", config["correct_steps"], 0)
        if not 0 <= config["snr"] < np.inf:
            raise ValueError(f"snr={config['snr']!r}: expected a number >= 0; 0 corrects nothing.")
        self._draws = 0
        if self.num_inference_steps is None:
            self._eps, self._times = self._spaced(len(self), None)
        vars(self).update(
            self._levels(len(self._times), self._times, config["sigma_min"], config["sigma_max"])
        )
        self._hand_out()

    def _hand_out(self) -> None:
        super()._hand_out()
        self.sigmas = self._export(self._sigmas)
        self.discrete_sigmas = self._export(self._discrete)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the start sample, sigma_max."""
        return self.config["sigma_max"]

    def scale_model_input(self, sample: Array, timestep: Any = None) -> Array:
        """The sample itself."""
        return sample

    @property
    def _depends(self) -> Any:
        return self._range if "sde-ve-sigmas-apart" in self._corrections else None

    @remembered
    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None, device: Any = None
    ) -> None:
        """Make ``timesteps``, N even times from 1 to ``sampling_eps``.

        Parameters
        ----------
        num_inference_steps
            N >= 1.
        sampling_eps
            Time at the last step, in (0, 1]; None takes the config's.
        device
            Where tables are wanted; see `to`. None leaves them as they were, NumPy at first.

        Raises
        ------
        ValueError
            If a value is out of range. Nothing is changed then.
        """
        steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        eps, times = self._spaced(steps, sampling_eps)
        changes: dict[str, Any] = {}
        if "sde-ve-sigmas-apart" in self._corrections:
            changes = self._levels(steps, times, *self._range)
        self._commit(
            device, lambda trial: None, num_inference_steps=steps, _eps=eps, _times=times, _draws=0, **changes
        )

    def _spaced(self, steps: int, sampling_eps: float | None) -> tuple[float, Float64]:
        eps = number("sampling_eps", self.config["sampling_eps"] if sampling_eps is None else sampling_eps)
        if not 0 < eps <= 1:
            raise ValueError(f"sampling_eps={eps}: expected a time in (0, 1]; 1e-5 is usual.")
        return eps, np.linspace(1.0, eps, steps)

    def set_sigmas(
        self,
        num_inference_steps: int,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Make ``discrete_sigmas``, N levels even in log sigma, ascending, and ``sigmas``, the level at each of ``timesteps``.

        Parameters
        ----------
        num_inference_steps
            N >= 1, that of `set_timesteps`.
        sigma_min, sigma_max
            Least and largest level; None takes the config's.
        sampling_eps
            Not used, as in diffusers: `set_timesteps` has made the times.

        Raises
        ------
        ValueError
            If a value is out of range. Nothing is changed then.
        """
        steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        low = self.config["sigma_min"] if sigma_min is None else sigma_min
        high = self.config["sigma_max"] if sigma_max is None else sigma_max
        self._commit(None, lambda trial: None, **self._levels(steps, self._times, low, high))

    def _levels(self, steps: int, times: Float64, low: float, high: float) -> dict[str, Any]:
        """Attributes that hold N levels from low to high, and the level at each time."""
        low, high = number("sigma_min", low), number("sigma_max", high)
        if not 1e-50 <= low < high <= 1e50:  # they are squared
            raise ValueError(
                f"sigma_min={low!r}, sigma_max={high!r}: expected 0 < sigma_min < sigma_max < inf, within [1e-50, 1e50]."
            )
        sigmas = low * (high / low) ** times
        least = high if steps == 1 and "sde-ve-single-step" in self._corrections else low
        discrete, plans = _discrete(least, high, steps)
        return {"_discrete": discrete, "_sigmas": sigmas, "_range": (low, high), "_plans": plans}

    def get_adjacent_sigma(self, timesteps: Array, t: Array) -> Array:
        """The level below each index of ``discrete_sigmas``, 0 below the first.

        Parameters
        ----------
        timesteps
            Integer indices, any array library.
        t
            An array whose dtype the result has.
        """
        below = np.append(0.0, self._discrete[:-1])
        if isinstance(timesteps, _HOST):
            return below[self._rows(timesteps)]
        xp = kind(t, "t").xp
        self._check_indices(timesteps, xp)
        flat = xp.take(like(below, t, t.dtype), xp.reshape(timesteps, (-1,)), axis=0)
        return xp.reshape(flat, timesteps.shape)

    def step_pred(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """The predictor's step to the level below.

        Parameters
        ----------
        model_output
            The score, shape of ``sample``.
        timestep
            Time in [0, 1]: an entry of ``timesteps``, a number, or one per sample, shape (B,). An array on a device is not read.
        sample
            Any array library; never written to.
        generator
            Source of the noise; see `anystep.draw`.
        return_dict
            Whether to return `SdeVeOutput` or a tuple.

        Returns
        -------
        SdeVeOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``prev_sample_mean``, the same without noise,
            computed when read.

        Raises
        ------
        ValueError
            If a shape differs, or a time known on the host is out of range.
        """
        row = self._row(timestep)
        matching(sample, model_output, "model_output")  # before a generator has moved on
        row = int(row[0]) if alike(row, sample) else row
        noise = draw(sample, generator, self._draws)
        moved = update(self._plan("step"), row, State(sample), model_output, noise).x
        self._draws += 1
        return answer(
            SdeVeOutput, moved, Lazy(moved_by, self._plan("mean"), row, sample, model_output), return_dict
        )

    def _plan(self, name: str) -> Plan:
        """A row for every level of ``discrete_sigmas``, largest first."""
        plan = self._plans.get(name)
        if plan is None:
            sigmas = np.append(self._discrete[::-1], 0.0)
            levels = Levels.chain(sigmas, np.ones_like(sigmas), sigmas)
            plan = self._plans[name] = _SAMPLERS[name].plan(levels, "score")
        return plan

    def _row(self, timestep: Any) -> Any:
        """Row of the plan: an int, or an integer array of the library of ``timestep``."""
        first, last = len(self._discrete) - 1, len(self._times) - 1
        # (position in float steps, up to rounding): ours is exact, and t in float32 must not fall below the integer it means.
        shift, scale = 0.0, last * (1 + 4 * 2.0**-23)
        if "sde-ve-truncated-index" in self._corrections and last:
            scale = last / (1 - self._eps)
            shift = 0.5 - self._eps * scale
        position = self._position(timestep, self.timesteps)
        timestep = on_host(timestep) if position is None else float(self._times[position])
        if isinstance(timestep, float) and 0 <= timestep <= 1:
            row = first - math.floor(timestep * scale + shift)
            if row >= 0:
                return row
        if not isinstance(timestep, _HOST):
            xp = kind(timestep, "timestep").xp
            index = xp.astype(xp.floor(timestep * scale + shift), xp.int32)
            return first - (xp.reshape(index, ()) if index.ndim == 1 and index.shape[0] == 1 else index)
        times = reals("timestep", timestep)
        if not ((times >= 0) & (times <= 1)).all():
            raise ValueError(
                f"timestep={timestep!r}: expected times in [0, 1], such as an entry of scheduler.timesteps."
            )
        index = np.floor(times * scale + shift).astype(np.int64)
        if (index > first).any():
            raise ValueError(
                f"timestep={timestep!r} is level {index.max()} of {first + 1}: call set_sigmas with the number of steps."
            )
        rows = first - index
        return int(rows.reshape(())) if rows.size == 1 else rows

    def step_correct(
        self, model_output: Array, sample: Array, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """A step of Langevin dynamics at the present level.

        Parameters
        ----------
        model_output
            The score, shape of ``sample``.
        sample
            Any array library, batch first; never written to.
        generator
            Source of the noise; see `anystep.draw`.
        return_dict
            Whether to return `SchedulerOutput` or a tuple.

        Returns
        -------
        SchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``.

        Raises
        ------
        ValueError
            If a shape differs.
        """
        matching(sample, model_output, "model_output")
        noise = draw(as_drawn(sample), generator, self._draws)
        moved = langevin_step(sample, model_output, noise, self.config["snr"])
        self._draws += 1
        return SchedulerOutput(moved) if return_dict else (moved,)

    def add_noise(self, original_samples: Array, noise: Array | None, timesteps: Any) -> Array:
        """x_0 + sigma ε, with sigma looked up in ``discrete_sigmas``.

        Parameters
        ----------
        original_samples
            Clean samples, shape (B, ...).
        noise
            Standard normals of that shape; None draws them from the library's global generator.
        timesteps
            Integer indices, one per sample, host values or an array of the samples' library.
        """
        noise = draw(original_samples, None) if noise is None else noise
        if isinstance(timesteps, _HOST):
            sigmas = self._discrete[self._rows(timesteps)]
            return mix(original_samples, noise, 1.0, like(sigmas, original_samples))
        xp = kind(original_samples).xp
        self._check_indices(timesteps, xp)
        table = like(self._discrete, original_samples)
        return mix(original_samples, noise, 1.0, xp.take(table, xp.reshape(timesteps, (-1,)), axis=0))

    def _rows(self, timesteps: Any) -> Any:
        """Indices of ``discrete_sigmas`` that are known on the host."""
        rows, count = reals("timesteps", timesteps, "integers"), len(self._discrete)
        if (rows != np.floor(rows)).any() or (rows.size and not 0 <= rows.min() <= rows.max() < count):
            raise ValueError(f"timesteps={timesteps!r}: expected integers in [0, {count}).")
        return rows.astype(np.int64)

    @staticmethod
    def _check_indices(timesteps: Any, xp: Any) -> None:
        """Raise TypeError unless indices on a device are integers of this library."""
        if namespace(timesteps) is not xp or not xp.isdtype(timesteps.dtype, "integral"):
            raise TypeError(
                f"timesteps={timesteps!r}: expected integers, on the host or of the samples' library."
            )


_SAMPLERS = {"step": ReverseDiffusion(last_noise=True), "mean": ReverseDiffusion(s_noise=0.0)}


@lru_cache(maxsize=16)
def _discrete(low: float, high: float, steps: int) -> tuple[Float64, dict[str, Plan]]:
    """N levels even in log sigma, ascending, and the plans on them, which schedulers that ask for the same share."""
    sigmas = np.asarray([low]) if steps == 1 else exponential(high, low, steps)[::-1]
    return sigmas, {}
