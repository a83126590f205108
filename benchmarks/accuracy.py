"""How exact whole trajectories are, beside diffusers and beside the best that a dtype can hold."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from anystep import (
    DDIM,
    LMS,
    BetaSchedule,
    DPMSolver,
    Euler,
    Leading,
    Plan,
    RectifiedFlow,
    State,
    Timesteps,
    UniPC,
    init,
    update,
)

from .cases import Library
from .goals import Record
from .run import Run

__all__ = ["accuracy"]

_log = logging.getLogger(__name__)


def _pairs() -> dict[str, tuple[Callable[[int], Plan], str, dict[str, Any]]]:
    """Samplers, and the class of diffusers that does the same."""
    linear = BetaSchedule.named("linear", interpolation="linear")

    def of(sampler: Any, levels: Callable[[int], Any], predicts: str = "epsilon") -> Callable[[int], Plan]:
        return lambda steps: sampler.plan(levels(steps), predicts)

    return {
        "DDIM": (
            of(DDIM(), lambda n: Leading().levels(linear, n)),
            "DDIMScheduler",
            {"clip_sample": False},
        ),
        "Euler": (
            of(Euler(), lambda n: _sigma_levels(linear, n)),
            "EulerDiscreteScheduler",
            {},
        ),
        "LMS": (of(LMS(), lambda n: _sigma_levels(linear, n)), "LMSDiscreteScheduler", {}),
        "Euler, flow": (
            of(
                Euler(),
                lambda n: Timesteps(np.linspace(1000, 1, n)).levels(RectifiedFlow(), n),
                "flow_prediction",
            ),
            "FlowMatchEulerDiscreteScheduler",
            {},
        ),
        "DPM-Solver++ 2": (
            of(DPMSolver(), lambda n: Timesteps(_rounded(n)).levels(linear, n)),
            "DPMSolverMultistepScheduler",
            {"lower_order_final": False},
        ),
        "UniPC 2": (
            of(UniPC(), lambda n: Timesteps(_rounded(n)).levels(linear, n)),
            "UniPCMultistepScheduler",
            {},
        ),
    }


def _rounded(steps: int) -> Any:
    """The integer timesteps of diffusers' DPM-Solver and UniPC."""
    return np.linspace(0, 999, steps + 1).round()[::-1][:-1]


def _sigma_levels(schedule: BetaSchedule, steps: int) -> Any:
    """The levels of diffusers' sigma classes: T - 1 to 0 evenly, and no noise at the end."""
    times = np.linspace(0, len(schedule.betas) - 1, steps)[::-1]
    return Timesteps(tuple(times)).levels(schedule, steps).to_karras()


def accuracy(run: Run) -> Iterator[Record]:
    """Whole trajectories with given model outputs, against float64, in units of float64 sums rounded once a step."""
    counts = (20, 50) if run.quick else (10, 20, 50, 100, 200)
    for name, (make, scheduler, config) in _pairs().items():
        for dtype in ("float32", "float16", "bfloat16"):
            run.tick(f"accuracy of {name}, {dtype}")
            entries = [entry for entry in run.entries() if dtype in entry.dtypes]
            logs: dict[str, list[float]] = {entry.name: [] for entry in entries} | {"diffusers": []}
            for steps, seed in itertools.product(counts, (0, 1)):
                case = _Case(make(steps), dtype, seed)
                if dtype == "float32" and seed == 0:
                    case.check(scheduler, config, name)
                floor = case.error(case.floor())
                for entry in entries:
                    logs[entry.name].append(math.log(case.error(case.ours(entry)) / floor))
                logs["diffusers"].append(math.log(case.error(case.theirs(scheduler, config)) / floor))
            means = {key: math.exp(float(np.mean(values))) for key, values in logs.items()}
            for key, mean in means.items():
                who = "accuracy of diffusers" if key == "diffusers" else "accuracy"
                yield Record(who, name, mean, "x floor", key, "", dtype, rounds=len(logs[key]))
                if key != "diffusers":
                    beside = mean / means["diffusers"]
                    yield Record("accuracy beside diffusers", name, beside, "x diffusers", key, "", dtype)
    yield from _one_step(run)


def _one_step(run: Run) -> Iterator[Record]:
    """One DDIM step from the noisiest level, where diffusers' rounding shows most."""
    for dtype in ("float16", "bfloat16"):
        case = _Case(DDIM().plan(Leading().levels(BetaSchedule.named("linear"), 20), "epsilon"), dtype, 0, 1)
        theirs = case.error(case.theirs("DDIMScheduler", {"clip_sample": False}))
        for entry in run.entries():
            if dtype in entry.dtypes:
                ratio = case.error(case.ours(entry)) / theirs
                yield Record("accuracy of a step", "DDIM", ratio, "x diffusers", entry.name, "", dtype)


class _Case:
    """One trajectory with given model outputs, which the dtype holds exactly."""

    def __init__(self, plan: Plan, dtype: str, seed: int, rows: int | None = None) -> None:
        rng, self.plan, self.dtype = np.random.default_rng(seed), plan, dtype
        self.rows = len(plan) if rows is None else rows
        scale = math.hypot(plan.alpha[0], plan.sigma[0])
        self.x = self.rounded(rng.normal(size=8192) * scale)
        # Data N(0.3, 0.5²) seen through the level: what a model would say, and some error of its own.
        self.outputs = [
            self.rounded(0.8 * rng.normal(size=8192) + 0.2 * self.x / scale) for _ in range(self.rows)
        ]
        self.exact = self._run(lambda v: v)

    def rounded(self, values: Any) -> Any:
        """Nearest values that the dtype has, in float64."""
        return np.asarray(values).astype(_numpy_dtype(self.dtype)).astype(np.float64)

    def _run(self, rounding: Callable[[Any], Any]) -> Any:
        state = init(self.plan, self.x)
        for i in range(self.rows):
            wide = update(self.plan, i, state, self.outputs[i])
            state = State(rounding(wide.x), tuple(rounding(part) for part in wide.memory))
        return state.x

    def floor(self) -> Any:
        return self._run(self.rounded)

    def ours(self, entry: Library) -> Any:
        state = init(self.plan, entry.array(self.x, self.dtype))
        for i in range(self.rows):
            state = update(self.plan, i, state, entry.array(self.outputs[i], self.dtype))
        return entry.backend.to_numpy(state.x).astype(np.float64)

    def theirs(self, scheduler: str, config: dict[str, Any]) -> Any:
        import torch

        kind_of = getattr(torch, self.dtype)
        # A batch of one: its UniPC takes no samples without a batch.
        found = self._loop(_diffusers(scheduler, config), lambda v: torch.from_numpy(v[None]).to(kind_of))
        return found.double().numpy()[0]

    def check(self, scheduler: str, config: dict[str, Any], name: str) -> None:
        """Both are the same method: told by anystep's facade in float64, which is not rounded."""
        import anystep

        apart = self._loop(getattr(anystep, scheduler)(**config), lambda v: v) - self.exact
        worst = float(np.abs(apart).max() / np.abs(self.exact).max())
        if not worst < 1e-9:
            _log.warning("%s is %.1e from %s: not the same method", name, worst, scheduler)

    def _loop(self, made: Any, convert: Callable[[Any], Any]) -> Any:
        made.set_timesteps(len(self.plan))
        made.is_scale_input_called = True
        x = convert(self.x)
        for t, m in zip(list(made.timesteps)[: self.rows], self.outputs, strict=True):
            x = made.step(convert(m), t, x, return_dict=False)[0]
        return x

    def error(self, values: Any) -> float:
        return float(np.sqrt(np.mean((values - self.exact) ** 2)))


def _diffusers(scheduler: str, config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, scheduler)(**config)


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)
