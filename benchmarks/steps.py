"""Facades beside diffusers' classes: a step, with and without its draw, `set_timesteps`, and growth."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cases import SIZES, Library, Size, Subject, library, subjects
from .fixed import fixed_draws
from .goals import Record
from .own import own_loop, plans, roof
from .run import QUICK, Run, micro, record
from .timing import Candidate, median, quantile, repeated

__all__ = ["draws", "growth", "steps", "tables"]

_log = logging.getLogger(__name__)


def steps(run: Run) -> Iterator[Record]:
    """A step of every class; where it draws, both sides are handed the same array."""
    with fixed_draws():
        yield from _steps(run, run.chosen(), "step")


def draws(run: Run) -> Iterator[Record]:
    """A step of the classes that draw, with the draw."""
    entry, size = library("torch"), SIZES[0]
    chosen: list[Subject] = []
    for subject in run.chosen():
        with fixed_draws() as seen:
            subject.loop(subject.theirs(), entry, size, "float32", 4).prepare()()
            if seen.count:
                chosen.append(subject)
    yield from _steps(run, chosen, "step with draw", [one for one in run.sized() if one.steps >= 20])


def _steps(
    run: Run, chosen: Sequence[Subject], item: str, sizes: Sequence[Size] | None = None
) -> Iterator[Record]:
    for subject, size in itertools.product(chosen, run.sized() if sizes is None else sizes):
        for dtype in size.dtypes:
            run.tick(f"{subject.name}, {size.label}, {dtype}")
            try:
                yield from _compared(run, subject, size, dtype, item)
            except Exception as error:  # one class that cannot be run is no reason to lose the others
                _log.warning(
                    "%s, %s, %s: %s: %s", subject.name, size.name, dtype, type(error).__name__, error
                )


def _compared(run: Run, subject: Subject, size: Size, dtype: str, item: str) -> Iterator[Record]:
    candidates = {"diffusers": subject.loop(subject.theirs(), library("torch"), size, dtype, size.steps)}
    for entry in run.entries():
        if dtype in entry.dtypes:
            candidates[entry.name] = subject.loop(subject.ours(), entry, size, dtype, size.steps)
    found = run.time(candidates, run.rounds if size.steps >= 20 else max(5, run.rounds // 2))
    theirs = micro(found.time("diffusers"))
    for name in candidates:
        if name != "diffusers":
            yield record(
                item,
                subject.name,
                found.ratio(name, "diffusers"),
                "x diffusers",
                library=name,
                size=size.name,
                dtype=dtype,
                microseconds=micro(found.time(name)),
                reference=theirs,
            )


def tables(run: Run) -> Iterator[Record]:
    """`set_timesteps(50)`: of a scheduler that has made no such plan, and asked again."""
    numbers = itertools.count(1)
    for subject in run.chosen():
        run.tick(f"set_timesteps of {subject.name}")

        def fresh(make: Callable[..., Any]) -> Callable[[], Callable[[], object]]:
            def prepare() -> Callable[[], object]:
                # A config that no one has asked for yet, so that a cache shared by all schedulers does not help.
                scheduler = make(**_nudged(make(), next(numbers)))
                return lambda: scheduler.set_timesteps(50)

            return prepare

        ours = subject.ours()
        ours.set_timesteps(50)
        found = run.time(
            {
                "new": Candidate(fresh(subject.ours)),
                "again": repeated(lambda ours=ours: ours.set_timesteps(50), 20),
                "diffusers": Candidate(fresh(subject.theirs)),
            }
        )
        for detail in ("new", "again"):
            yield record(
                "set_timesteps",
                subject.name,
                found.ratio(detail, "diffusers"),
                "x diffusers",
                detail=detail,
                microseconds=micro(found.time(detail)),
                reference=micro(found.time("diffusers")),
            )


def _nudged(scheduler: Any, number: int) -> dict[str, float]:
    for name in ("beta_end", "shift", "sigma_max", "beta_max"):
        value = scheduler.config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {name: value * (1 + 1e-6 * number)}
    return {}


def growth(run: Run) -> Iterator[Record]:
    """The time of a step against the number of steps, and against the number of elements."""
    ends = (10, 100) if run.quick else (10, 50, 500)
    for subject in [one for one in subjects() if one.name in QUICK]:
        run.tick(f"growth of {subject.name}")
        entry = library("torch")
        with fixed_draws():
            found = run.time(
                {str(count): _repeated_loop(subject, entry, count, max(1, 100 // count)) for count in ends},
                max(5, run.rounds // 2),
            )
        for count in ends[1:]:
            yield record(
                "growth",
                subject.name,
                found.ratio(str(count), "10"),
                "x",
                library="torch",
                size="tiny",
                dtype="float32",
                detail=f"{count} steps / 10 steps",
                microseconds=micro(found.time(str(count))),
                reference=micro(found.time("10")),
            )
    plan = plans(4)["Euler"]
    powers = (18, 20) if run.quick else (22, 24)
    signs = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    for entry in run.entries():
        run.tick(f"growth with elements, {entry.name}")
        small, large = map(str, powers)
        candidates = {str(p): own_loop(plan, entry, (1, 2**p), "float32", True) for p in powers}
        candidates |= {f"roof {p}": roof((1, 2**p), 4) for p in powers}
        found = run.time(candidates)
        # A cache that the smaller arrays half fit makes any step grow by more than their number.
        names = (large, small, f"roof {large}", f"roof {small}")
        quartets = zip(*(found.seconds[name] for name in names), strict=True)
        ratios = [ours / less / (roof / low) for ours, less, roof, low in quartets]
        yield Record(
            "growth",
            "Euler, donated",
            median(ratios),
            "x",
            entry.name,
            dtype="float32",
            detail=f"2{large.translate(signs)} / 2{small.translate(signs)} elements, beside torch.add(out=)",
            low=quantile(ratios, 0.25),
            high=quantile(ratios, 0.75),
            microseconds=micro(found.time(large)),
            reference=micro(found.time(small)),
            rounds=len(ratios),
        )


def _repeated_loop(subject: Subject, entry: Library, steps: int, times: int) -> Candidate:
    """Several loops of few steps, so that short ones are timed as long as long ones."""
    loops = [subject.loop(subject.ours(), entry, SIZES[0], "float32", steps) for _ in range(times)]

    def prepare() -> Callable[[], object]:
        ready = [loop.prepare() for loop in loops]
        return lambda: [go() for go in ready]

    return Candidate(prepare, sum(loop.calls for loop in loops))
