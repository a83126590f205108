"""Interleaved timing: candidates in random order each round, ratios taken within a round, disturbed samples made again.

A machine that others use too is twice as fast in one minute as in the next. Two candidates that are timed one right after
the other see the same machine, so the ratio of a round is steadier than either time, and the median of the ratios steadier
still. A sample in which the scheduler of the operating system took the processor away (an involuntary context switch) is
made again, and dropped if that does not help, as long as enough others remain. Samples of 20 ms and more all meet some, and
all count.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Candidate", "Clock", "Ratio", "Rounds", "median", "quantile", "repeated"]

ENOUGH = 5
"""Clean rounds from which disturbed ones are dropped."""
LONG = 0.02
"""Seconds from which a sample counts as it is: a busy machine lets none of that length through undisturbed."""


@dataclass(frozen=True)
class Candidate:
    """Something to time."""

    prepare: Callable[[], Callable[[], object]]
    """Makes ready what is not timed, and returns what is."""
    calls: int = 1
    """How many calls that is; times are of one."""


class Clock:
    """Seconds, and how often the processor was taken away from this process."""

    def now(self) -> float:
        return time.perf_counter()

    def disturbances(self) -> int:
        try:
            import resource
        except ImportError:  # not on Windows
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@dataclass(frozen=True)
class Ratio:
    """Median over rounds, with the quartiles."""

    value: float
    low: float
    high: float
    rounds: int
    clean: bool
    """Whether disturbed rounds were dropped; otherwise there were too few clean ones, and all count."""


@dataclass
class Rounds:
    """Seconds per call of each candidate in each round, and whether the sample was undisturbed."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    clean: dict[str, list[bool]] = field(default_factory=dict)

    @classmethod
    def run(
        cls,
        candidates: Mapping[str, Candidate],
        rounds: int,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        retries: int = 2,
        tick: Callable[[], None] = lambda: None,
    ) -> Rounds:
        """Time all candidates in each of so many rounds, after one that does not count."""
        clock, order, found = clock or Clock(), random.Random(seed), cls()
        names = list(candidates)
        for candidate in candidates.values():
            candidate.prepare()()
        for name in names:
            found.seconds[name], found.clean[name] = [], []
        for _ in range(rounds):
            order.shuffle(names)
            for name in names:
                seconds, clean = _sample(candidates[name], clock, retries)
                found.seconds[name].append(seconds)
                found.clean[name].append(clean)
            tick()
        return found

    def time(self, name: str) -> Ratio:
        """Seconds per call."""
        return _summary(self.seconds[name], self.clean[name])

    def ratio(self, name: str, other: str) -> Ratio:
        """Time of one over that of another, within rounds."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True)]
        return _summary(ratios, [a and b for a, b in zip(self.clean[name], self.clean[other], strict=True)])


def _sample(candidate: Candidate, clock: Clock, retries: int) -> tuple[float, bool]:
    best, clean = float("inf"), False
    for _ in range(1 + retries):
        run = candidate.prepare()
        collects = gc.isenabled()
        gc.disable()
        before, begin = clock.disturbances(), clock.now()
        run()
        seconds, clean = clock.now() - begin, clock.disturbances() == before
        if collects:
            gc.enable()
        if clean or seconds >= LONG:
            return seconds / candidate.calls, True
        best = min(best, seconds)
    return best / candidate.calls, clean


def _summary(values: Sequence[float], clean: Sequence[bool]) -> Ratio:
    kept = [value for value, good in zip(values, clean, strict=True) if good]
    dropped = len(kept) >= min(ENOUGH, len(values))
    kept = kept if dropped else list(values)
    return Ratio(median(kept), quantile(kept, 0.25), quantile(kept, 0.75), len(kept), dropped)


def median(values: Sequence[float]) -> float:
    """The middle, or the mean of the two in the middle.

    Examples
    --------
    >>> median([3.0, 1.0, 2.0]), median([4.0, 1.0, 2.0, 3.0])
    (2.0, 2.5)
    """
    return quantile(values, 0.5)


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def repeated(call: Callable[[], object], calls: int) -> Candidate:
    """A call, so many times over."""

    def run() -> None:
        for _ in range(calls):
            call()

    return Candidate(lambda: run, calls)
