"""`ScoreSdeVpScheduler`: Euler and Maruyama's method on the VP process under diffusers' name, config and method."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from anystep._array import Array, kind, namespace
from anystep._bare import bare_plan, moved_by
from anystep._checks import MOST_STEPS, integer, reals
from anystep._draw import draw
from anystep._update import State, matching, update
from anystep.plan import Plan
from anystep.samplers.euler_maruyama import EulerMaruyama
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import AnyFacade
from anystep.schedulers._outputs import Lazy, LazyTuple
from anystep.schedulers._remembered import remembered
from anystep.schedulers._told import MOST_PLANS, alike, on_host, rows_of
from anystep.schedules import VP

__all__ = ["ScoreSdeVpScheduler"]

_HOST = (int, float, list, tuple, np.ndarray, np.generic)


class _Plans(NamedTuple):
    """Steps from some times."""

    rows: dict[float, int]
    """Of each time."""
    step: Plan
    mean: Plan


class ScoreSdeVpScheduler(AnyFacade):
    """Sampling of the VP process in continuous time, drop-in for diffusers' class of that name; see `anystep.EulerMaruyama`.

    The model returns the noise ε; there is no beta table.

    Parameters
    ----------
    num_train_timesteps
        Number T of training timesteps.
    beta_min, beta_max
        Rate of noising at t = 0 and t = 1, 0 <= beta_min < beta_max.
    sampling_eps
        Time at the last step, in (0, 1]; the first is 1.

    Raises
    ------
    ValueError
        If a value is none of these.

    References
    ----------
    Song et al. 2021, https://arxiv.org/abs/2011.13456, equations 6 and 11. Where diffusers' results differ: docs/deviations.md.

    Examples
    --------
    >>> scheduler = ScoreSdeVpScheduler(sampling_eps=0.5)
    >>> scheduler.set_timesteps(3)
    >>> scheduler.timesteps.tolist()
    [1.0, 0.75, 0.5]
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "sde-vp-step-width": "every step has width 1 / N, though the times are (1 - sampling_eps) / (N - 1) apart",
    }
    timesteps: Any = None
    sigmas: Any = None
    discrete_sigmas: Any = None

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        beta_min: float = 0.1,
        beta_max: float = 20,
        sampling_eps: float = 1e-3,
    ) -> None:
        self._configured()

    def _reset(self) -> None:
        config = self.config
        low, high, eps = config["beta_min"], config["beta_max"], config["sampling_eps"]
        if not 0 <= low < high < np.inf:
            raise ValueError(f"beta_min={low!r}, beta_max={high!r}: expected 0 <= beta_min < beta_max < inf.")
        if not 0 < eps <= 1:
            raise ValueError(f"sampling_eps={eps!r}: expected a time in (0, 1]; 1e-3 is usual.")
        self._sampler = EulerMaruyama(VP(beta_min=float(low), beta_max=float(high)))
        self._draws = 0
        self._plans: dict[float | None, _Plans] = {}
        self._times: Any = (
            None if self.num_inference_steps is None else np.linspace(1.0, eps, self.num_inference_steps)
        )
        self._hand_out()

    def _hand_out(self) -> None:
        self.timesteps = None if self._times is None else self._export(self._times)

    @remembered
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Make ``timesteps``, N even times from 1 to ``sampling_eps``.

        Parameters
        ----------
        num_inference_steps
            N >= 1.
        device
            Where ``timesteps`` is wanted; see `to`. None leaves it as it was, NumPy at first.

        Raises
        ------
        ValueError
            If N is not such an integer. Nothing is changed then.
        """
        steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        times = np.linspace(1.0, self.config["sampling_eps"], steps)
        self._commit(device, lambda trial: None, num_inference_steps=steps, _times=times, _plans={}, _draws=0)

    def step_pred(self, score: Array, x: Array, t: Any, generator: Any = None) -> tuple[Array, Array]:
        """One step of every sample from its own time.

        Parameters
        ----------
        score
            The model's output: the noise ε, which diffusers calls so because it makes the score of it. Shape of ``x``.
        x
            The samples, shape (B, ...), any array library; never written to.
        t
            Times in (0, 1]: one per sample, shape (B,), or one for all; on the host, or of the library of ``x``. An array on a
            device is not read.
        generator
            Source of the noise; see `anystep.draw`.

        Returns
        -------
        tuple of array
            The next samples, and the same without noise, computed when read; with shape, dtype and device of ``x``.

        Raises
        ------
        ValueError
            If `set_timesteps` was not called, a shape differs, or a time known on the host is out of range.
        """
        if self._times is None:
            raise ValueError(
                "timesteps=None: the width of a step depends on their number; call set_timesteps first."
            )
        position = self._position(t, self.timesteps)
        t = on_host(t) if position is None else float(self._times[position])
        if isinstance(t, _HOST):
            t = self._checked(t)
        elif namespace(t) is not kind(x, "x").xp:
            raise TypeError(f"t={t!r}: expected numbers, or an array of the library of x.")
        matching(x, score, "score")  # before a generator has moved on
        t = float(t[0]) if alike(t, x) else t
        if isinstance(t, float):
            plans = self._plans_of(t)
            noise = draw(x, generator, self._draws)
            row = plans.rows[t]
            moved = update(plans.step, row, State(x), score, noise).x
            self._draws += 1
            return LazyTuple((moved, Lazy(moved_by, plans.mean, row, x, score)))
        t = namespace(t).reshape(t, (-1,))
        noise = draw(x, generator, self._draws)
        both = self._sampler.step(x, score, noise, t, self._width(t))
        self._draws += 1
        return both

    @staticmethod
    def _checked(t: Any) -> Any:
        """Times known on the host, one of them as a float."""
        if isinstance(t, float) and 0 < t <= 1:
            return t
        t = reals("t", t)
        if not ((t > 0) & (t <= 1)).all():
            raise ValueError(f"t={t.tolist()}: expected times in (0, 1], such as scheduler.timesteps.")
        return float(t.reshape(())) if t.size == 1 else t

    def _plans_of(self, t: float) -> _Plans:
        """Plans with a row from this time: those of the run, or for any other time its own."""
        plans = self._plans.get(None)
        if plans is None:
            plans = self._plans[None] = self._made(self._times)
        if t in plans.rows:
            return plans
        plans = self._plans.get(t)
        if plans is None:
            if len(self._plans) > MOST_PLANS:
                self._plans.clear()
            plans = self._plans[t] = self._made(np.asarray([t]))
        return plans

    @np.errstate(all="ignore")  # a number that overflows is refused by name
    def _made(self, times: Any) -> _Plans:
        growth, slope, std = self._sampler.increments(times, self._width(times))
        return _Plans(rows_of(times), bare_plan(1 + growth, slope, std), bare_plan(1 + growth, slope))

    def _width(self, t: Any) -> Any:
        """Width of the step from each time."""
        steps = len(self._times)
        if "sde-vp-step-width" not in self._corrections:
            return 1.0 / steps
        eps = self.config["sampling_eps"]
        apart = (1 - eps) / max(steps - 1, 1)
        return namespace(t).where(t > eps + apart / 2, 0 * t + apart, t)
