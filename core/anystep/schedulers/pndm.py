"""`PNDMScheduler`: the PNDM sampler under diffusers' name, config and methods."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from anystep._array import Array
from anystep._update import State, update
from anystep.levels import Levels
from anystep.plan import Plan, compose
from anystep.predictions import Epsilon, prediction
from anystep.samplers.pndm import STAGES, stage_rows
from anystep.schedulers._alpha import AlphaFacade
from anystep.schedulers._config import register_to_config
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import SchedulerOutput
from anystep.schedulers._remembered import remembered

__all__ = ["PNDMScheduler"]


class _Call(NamedTuple):
    """One model call: its formula, the timestep that the model is told, and those that the step goes from and to."""

    stage: str
    told: int
    start: int
    end: int


class _Loop(NamedTuple):
    """Where a loop stands: replaced as a whole by each step, so that no reader sees half of one."""

    counter: int = 0
    ets: tuple[Array, ...] = ()
    total: Array | None = None
    base: Array | None = None
    at: int | None = None
    """Timestep that the sample is at, once a run has begun elsewhere than at the first timestep."""


class PNDMScheduler(AlphaFacade):
    """Pseudo numerical methods, drop-in for diffusers' class of that name; see `anystep.PNDM` for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas
        The beta table; see `DDIMScheduler`.
    skip_prk_steps
        Whether the warm-up is one step of two calls (N + 1 calls) instead of three Runge-Kutta steps (N + 9 calls).
    set_alpha_to_one, prediction_type, timestep_spacing, steps_offset
        The last step, the model's output and the levels; see `DDIMScheduler`.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Liu, Ren, Lin, Zhao 2022, https://arxiv.org/abs/2202.09778. Where diffusers' results differ from it:
    docs/deviations.md.

    Examples
    --------
    >>> scheduler = PNDMScheduler(skip_prk_steps=True)
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps
    array([750, 500, 500, 250,   0])
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "pndm-previous-timestep": "multistep steps end at t - T // N instead of at the next timestep",
        "pndm-middle": "Runge-Kutta's first step ends T // N // 2 below its start, its model call is that far above its end",
        "pndm-velocity-history": "v of several levels are combined as they are and read as noise at one of them",
        "pndm-begin": "a run that begins at a later timestep goes through the warm-up of the first",
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }
    pndm_order: int = 4
    prk_timesteps: Any = None
    plms_timesteps: Any = None
    _loop: _Loop = _Loop()

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ) -> None:
        self._configured()

    def _reset(self) -> None:
        self._loop = _Loop()
        self._call_plans: dict[_Call, tuple[Plan, int]] = {}
        if self.num_inference_steps is None:
            self.prk_timesteps = self.plms_timesteps = None
        super()._reset()

    @remembered
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the N steps of a run; ``timesteps`` has an entry for each model call.

        Parameters
        ----------
        num_inference_steps
            N in [1, T].
        device
            Where ``timesteps`` is wanted; see `to`. None leaves it as it was, NumPy at first.

        Raises
        ------
        ValueError
            If N is out of range, or the spacing has no such timesteps. Nothing is changed then.
        """
        grid = self._spaced(num_inference_steps)
        single = 0 if self.config["skip_prk_steps"] else min(3, len(grid) - 1)
        pairs = itertools.pairwise(grid[: single + 1])
        prk = [t for high, low in pairs for t in self._quartet(high, low, len(grid))]
        again = grid[1:2] if self.config["skip_prk_steps"] else grid[:0]
        plms = np.concatenate([grid[single : single + 1], again, grid[single + 1 :]])
        prk = np.asarray(prk, dtype=np.int64)
        times = np.concatenate([prk, plms])

        def build(trial: Any) -> None:
            trial._plan_run()

        found = {"_times": times, "_grid": grid, "prk_timesteps": prk, "plms_timesteps": plms}
        self._commit(device, build, num_inference_steps=len(grid), _loop=_Loop(), **found)

    def _quartet(self, high: int, low: int, steps: int) -> list[int]:
        """Timesteps of the calls of one Runge-Kutta step."""
        half = self.config["num_train_timesteps"] // steps // 2
        middle = low + ((high - low) // 2 if "pndm-middle" in self._corrections else half)
        return [high, middle, middle, low]

    @property
    def counter(self) -> int:
        """Number of calls of `step` since `set_timesteps`."""
        return self._loop.counter

    @property
    def ets(self) -> list[Array]:
        """The last slopes, oldest first, at most four: noise estimates, or v as the model returned it."""
        return list(self._loop.ets)

    @property
    def cur_model_output(self) -> Any:
        """Running sum of a Runge-Kutta step, 0 between two."""
        return 0 if self._loop.total is None else self._loop.total

    @property
    def cur_sample(self) -> Array | None:
        """Sample that the calls of a warm-up step start from."""
        return self._loop.base

    def step(self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True) -> Any:
        """One call's worth of a step: `step_prk` while its timesteps last, then `step_plms`.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``.
        timestep
            The next of ``timesteps``: a number or a 0-d array.
        sample
            x_t, any array library; never written to.
        return_dict
            Whether to return `SchedulerOutput` or a tuple.

        Returns
        -------
        SchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``.

        Raises
        ------
        ValueError
            If `set_timesteps` was not called, or a shape differs. Nothing is changed then.
        """
        self._check_set()
        single = self._loop.counter < len(self.prk_timesteps)
        return (self.step_prk if single else self.step_plms)(model_output, timestep, sample, return_dict)

    def step_prk(self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True) -> Any:
        """One of the four calls of a Runge-Kutta step; parameters of `step`."""
        self._check_set()
        counter, told = self._loop.counter, int(self._number(timestep))
        if counter >= len(self.prk_timesteps):
            raise ValueError(
                f"counter={counter}: the {len(self.prk_timesteps)} Runge-Kutta calls are done; call step_plms, or set_timesteps "
                "to begin again."
            )
        begun = self._begun(told)
        return self._advance(
            begun or self._prk(counter, told), bool(begun), model_output, sample, return_dict
        )

    def step_plms(self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True) -> Any:
        """One call of the linear multistep; parameters of `step`."""
        self._check_set()
        counter, told = self._loop.counter, int(self._number(timestep))
        begun = self._begun(told)
        if begun is None and len(self._loop.ets) < min(3, len(self.prk_timesteps) // 4):
            raise ValueError(
                f"counter={counter}: the multistep follows the {len(self.prk_timesteps)} Runge-Kutta calls; call step, or set "
                "skip_prk_steps=True."
            )
        call = begun or self._plms(counter, told, len(self._loop.ets))
        return self._advance(call, bool(begun), model_output, sample, return_dict)

    def _check_set(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps=None: call set_timesteps(N) before step.")

    def _prk(self, counter: int, told: int) -> _Call:
        """The Runge-Kutta call of that number."""
        start, part = int(self.prk_timesteps[counter // 4 * 4]), counter % 4
        if "pndm-middle" in self._corrections:
            end = told if part % 2 else int(self.prk_timesteps[counter + 1])
        else:
            end = told - (0 if part % 2 else self._stride // 2)
        return _Call(f"prk{part + 1}", told, start, end)

    def _plms(self, counter: int, told: int, known: int) -> _Call:
        """The multistep call of that number, with so many earlier outputs known."""
        if counter == 1:
            return self._improve(told)
        return _Call(f"plms{min(known, 3) + 1}", told, told, int(self._multistep_end(told)))

    def _improve(self, told: int) -> _Call:
        """The second call of a warm-up without Runge-Kutta, at the level where its step ends."""
        above = self._grid[self._grid > told]
        corrected = "pndm-previous-timestep" in self._corrections and len(above)
        return _Call("improve", told, int(above[-1]) if corrected else told + self._stride, told)

    def _multistep_end(self, told: Any) -> Any:
        """Where multisteps from these timesteps end."""
        corrected = "pndm-previous-timestep" in self._corrections
        return self._next_of(told) if corrected else told - self._stride

    def _begun(self, told: int) -> _Call | None:
        """The call of a run that began at a later timestep, if that is corrected: Euler, then multisteps; None for any other.

        Such a run has no warm-up. Where ``timesteps`` tells the model a level again that the sample has left, the call is idle.
        """
        loop = self._loop
        if "pndm-begin" not in self._corrections or (
            loop.at is None and (loop.counter or told == int(self._times[0]))
        ):
            return None
        if loop.at is not None and told > loop.at:
            return _Call("idle", told, loop.at, loop.at)
        even = told <= int(self.plms_timesteps[0])
        return _Call(
            f"plms{min(len(loop.ets), 3) + 1}" if even else "euler", told, told, int(self._next_of(told))
        )

    @property
    def _stride(self) -> int:
        """T // N, by which diffusers steps."""
        return self.config["num_train_timesteps"] // (self.num_inference_steps or 1)

    def _previous(self, timesteps: Any) -> Any:
        return self._next_of(timesteps)

    def _plan_run(self) -> None:
        """Make the plan of a whole run."""
        calls = [self._prk(i, t) for i, t in enumerate(self.prk_timesteps.tolist())]
        known, told = len(calls) // 4, self.plms_timesteps
        for t, end in zip(told.tolist(), self._multistep_end(told).tolist(), strict=True):
            if len(calls) == 1:  # no Runge-Kutta
                calls.append(self._improve(t))
            else:
                calls.append(_Call(f"plms{min(known, 3) + 1}", t, t, end))
                known += 1
        plan = self._make_calls(calls)
        self._call_plans = {call: (plan, row) for row, call in enumerate(calls)}

    def _make_calls(self, calls: Sequence[_Call]) -> Plan:
        names, told, start, end = zip(*calls, strict=True)
        combined = (
            self.config["prediction_type"] == "v_prediction"
            and "pndm-velocity-history" not in self._corrections
        )
        ends = self._ends(np.asarray(end))
        rows = stage_rows(names, self._schedule.level(start), ends, velocity=combined)
        rows = rows[:, :-1, :-1] if self.config["skip_prk_steps"] else rows
        predicts = Epsilon() if combined else prediction(self.config["prediction_type"])
        return compose(Levels(self._schedule.level(np.asarray(told)), ends), predicts, rows)

    def _advance(
        self, call: _Call, begun: bool, model_output: Array, sample: Array, return_dict: bool
    ) -> Any:
        """The next sample; counter and history move on only if nothing was raised."""
        loop = self._loop
        if call not in self._call_plans:
            self._call_plans[call] = self._make_calls([call]), 0
        plan, row = self._call_plans[call]
        past = [*loop.ets[::-1], sample, sample, sample][:3]
        held = [
            sample if loop.base is None else loop.base,
            *past,
            sample if loop.total is None else loop.total,
        ]
        moved = update(plan, row, State(sample, tuple(held[: plan.memories])), model_output)
        stage = STAGES[call.stage]
        self._loop = _Loop(
            counter=loop.counter + 1,
            ets=(*loop.ets[-3:], moved.memory[1]) if stage.remembers else loop.ets,
            total=moved.memory[-1] if call.stage in ("prk1", "prk2", "prk3") else None,
            base=moved.memory[0] if call.stage in ("prk1", "prk2", "prk3", "plms1") else None,
            at=call.end if begun else None,
        )
        return SchedulerOutput(moved.x) if return_dict else (moved.x,)
