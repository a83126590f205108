"""How much of everything is measured, and what a measurement becomes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from .cases import LIBRARIES, SIZES, Library, Size, Subject, installed, library, subjects
from .goals import Record
from .timing import Candidate, Clock, Ratio, Rounds

__all__ = ["QUICK", "Run", "micro", "quiet", "record"]

QUICK = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LMSDiscreteScheduler",
)


@dataclass
class Run:
    """How much is measured, and with which clock."""

    rounds: int = 15
    quick: bool = False
    seed: int = 0
    clock: Clock = field(default_factory=Clock)
    tick: Callable[[str], None] = lambda label: None
    """Called before each case, for a progress bar."""
    subjects: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None
    libraries: tuple[str, ...] = tuple(entry.name for entry in LIBRARIES)

    def entries(self) -> list[Library]:
        return [library(name) for name in installed(self.libraries)]

    def chosen(self) -> list[Subject]:
        names = QUICK if self.quick and self.subjects is None else self.subjects
        return [one for one in subjects() if names is None or one.name in names]

    def sized(self) -> list[Size]:
        names = ("tiny", "64 KiB") if self.quick and self.sizes is None else self.sizes
        return [one for one in SIZES if names is None or one.name in names]

    def time(self, candidates: dict[str, Candidate], rounds: int | None = None) -> Rounds:
        return Rounds.run(candidates, rounds or self.rounds, seed=self.seed, clock=self.clock)


def record(item: str, subject: str, found: Ratio, unit: str, **rest: Any) -> Record:
    return Record(
        item,
        subject,
        found.value,
        unit,
        low=found.low,
        high=found.high,
        rounds=found.rounds,
        clean=found.clean,
        **rest,
    )


def micro(found: Ratio) -> float:
    return found.value * 1e6


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """No warnings of schedulers whose loops leave out what is not timed."""
    names = ("anystep", "diffusers")
    levels = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
