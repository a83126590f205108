"""Base of the facades that step by an index which they carry along, and may remember earlier calls."""

from abc import abstractmethod
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array
from anystep._checks import integer, numbers, reals
from anystep._update import estimate, update
from anystep.levels import Levels
from anystep.plan import Plan
from anystep.predictions import Prediction
from anystep.schedulers._facade import AnyFacade, answer
from anystep.schedulers._outputs import Lazy, SchedulerOutput

__all__ = ["IndexedFacade", "reject_integer"]


class IndexedFacade(AnyFacade):
    """Abstract: the first timestep of a loop is looked up, then rows are counted."""

    _rejects_integers: ClassVar[bool] = False
    """Whether `step` refuses whole numbers for timesteps, where diffusers takes them for positions in ``timesteps``."""
    _begin_index: int | None = None
    _run: tuple[int | None, tuple[Array, ...] | None] = (None, None)
    """Where a loop stands: the row of the next call, and the arrays of earlier ones; None before the first.

    Replaced as a whole by each step, so that no reader sees half of it.
    """

    @property
    def step_index(self) -> int | None:
        """Row of the next step; None before the first."""
        return self._run[0]

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
            self._times if schedule_timesteps is None else numbers("schedule_timesteps", schedule_timesteps)
        )
        wanted = self._number(timestep)
        if len(times) and times[0] == wanted and wanted not in times[1:2]:
            return 0  # where most loops begin
        distance = np.abs(times - wanted)
        if not distance.size or not distance.min() <= 2.0**-20 * max(1.0, abs(wanted)):
            raise IndexError(
                f"timestep={wanted}: expected one of scheduler.timesteps; call set_timesteps first."
            )
        rows = np.flatnonzero(times == times[distance.argmin()])
        return int(rows[min(1, len(rows) - 1)])

    def _noised_rows(self, timesteps: Any) -> list[int]:
        """Rows whose levels noise is added at: those of the timesteps, or where the loop is to begin or stands."""
        values = np.ravel(reals("timesteps", timesteps))
        if self._begin_index is None:
            return [self.index_for_timestep(t) for t in values]
        return [self._standing] * max(1, len(values))

    @property
    def _standing(self) -> int:
        """Row where the loop stands, or is to begin."""
        return (self._begin_index or 0) if self._run[0] is None else self._run[0]

    def _index(self, timestep: Any) -> int:
        if self._rejects_integers and _is_whole(getattr(timestep, "dtype", timestep.__class__)):
            reject_integer(self, "step", timestep)
        index = self._run[0]
        if index is None:
            index = self._begin_index
            index = self.index_for_timestep(timestep) if index is None else index
            if not getattr(self, "is_scale_input_called", True):
                self._warn_unscaled()
        if index >= len(self._times):
            raise IndexError(
                f"step_index={index}: the schedule's {len(self._times)} steps are done; call set_timesteps to begin again."
            )
        return index

    def _point(self, index: int | None) -> None:
        """Remember the row of the next step."""
        self._run = index, self._run[1]

    @property
    def _earlier(self) -> tuple[Array, ...]:
        """Arrays of earlier calls, none before the first."""
        return self._run[1] or ()

    def _memory(self, plan: Plan, sample: Array) -> tuple[Array, ...]:
        """Arrays of earlier calls, as many as the plan has memories: the sample for those that no row may read yet."""
        earlier, count = self._earlier, plan.memories
        return earlier[:count] if len(earlier) >= count else (*earlier, *(sample,) * (count - len(earlier)))

    def _advance(
        self,
        plan: Plan,
        index: int,
        sample: Array,
        model_output: Array,
        noise: Array | None = None,
        keeps: bool = True,
    ) -> Array:
        """The next sample; index and memories move on only if nothing was raised.

        Told not to keep the memories, the next call has none.
        """
        memory = self._memory(plan, sample) if plan.memories else ()
        moved, memory = update(plan, index, (sample, memory), model_output, noise)
        self._run = index + 1, memory if keeps else None
        return moved

    def _warn_unscaled(self) -> None:
        import logging

        logging.getLogger(__name__).warning(
            "%s.step was called before scale_model_input: the model must be given "
            "scheduler.scale_model_input(sample, timestep).",
            type(self).__name__,
        )

    def _answer(
        self,
        kind: type[SchedulerOutput],
        plan: Plan,
        index: int,
        sample: Array,
        model_output: Array,
        return_dict: bool,
        noise: Array | None = None,
        keeps: bool = True,
    ) -> Any:
        """`_advance`, and what `step` returns of it: the next sample and the estimate of the clean one."""
        moved = self._advance(plan, index, sample, model_output, noise, keeps)
        return answer(kind, moved, Lazy(estimate, plan, index, sample, model_output), return_dict)

    @property
    @abstractmethod
    def _default(self) -> Any:
        """The sampler of a step with default arguments; where that depends on what has been, steps name theirs."""

    @property
    @abstractmethod
    def _levels(self) -> Levels:
        """Levels of the steps."""

    @property
    @abstractmethod
    def _prediction(self) -> Prediction:
        """What the model returns."""

    def _plan(self, sampler: Any = None) -> Plan:
        """The plan of a sampler; that of the default one is found again without making the sampler."""
        plan = self._plans.get(sampler)
        if plan is None:
            chosen = self._default if sampler is None else sampler
            plan = self._plans.get(chosen)
            plan = plan if plan is not None else chosen.plan(self._levels, self._prediction, self._threshold)
            self._plans[sampler] = self._plans[chosen] = plan
        return plan

    def _plan_by(self, key: Hashable, make: Callable[..., Any], *args: Any) -> Plan:
        """The plan of the sampler ``make(*args)``, found again by a key without making the sampler."""
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(make(*args))
        return plan

    def _begin_anew(self) -> None:
        """Forget plans and where a loop stood."""
        self._plans: dict[Hashable, Any] = {}
        self._run = None, None

    def _take_over(self, device: Any, **changes: Any) -> None:
        """Take over new levels, if a plan can be made of them, and begin anew."""

        def build(trial: Any) -> None:
            trial._plan()

        self._commit(device, build, **changes, _plans={}, _run=(None, None), _begin_index=None)


@cache
def _is_whole(label: Any) -> bool:
    """Whether a dtype or a class is one of integers."""
    return "int" in str(getattr(label, "__name__", label))


def reject_integer(scheduler: AnyFacade, method: str, timestep: Any) -> None:
    """Raise ValueError for an integer timestep, where diffusers takes it for a position in ``timesteps``."""
    if _is_whole(getattr(timestep, "dtype", timestep.__class__)):
        raise ValueError(
            f"timestep={timestep!r} of {type(scheduler).__name__}.{method} is an integer, such as enumerate gives: "
            "pass one of scheduler.timesteps."
        )
