"""What is run and what comes out: one subject on one array library, in one dtype and one mode."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from anystep import Plan

from .libraries import Library
from .walk import Planned

__all__ = ["CHECKS", "MODES", "Case", "Result", "Violation"]

CHECKS = ("smoke", "namespace", "dtype", "shape", "device", "values", "purity", "laziness", "noise")
"""In this order; a result names the first that failed."""

MODES = {
    "eager": "step by step, the row as a Python int, on the plain path",
    "fused": "step by step on the path that the backend has made for speed, if it has one",
    "index": "an array of rows, every sample at another one",
    "compile": "one compiled step for all rows, the row as a 0-d array",
    "scan": "the whole loop compiled, free running",
    "vmap": "mapped over the samples, every sample at another row",
    "grad": "the gradient of a weighted sum of the next sample by the sample and by the model's output",
}


@dataclass(frozen=True, eq=False)
class Case:
    """One cell of the matrix."""

    subject: Planned
    library: Library
    dtype: str
    mode: str
    steps: int = 8

    @property
    def id(self) -> str:
        """What selects it, and what pytest calls it."""
        return f"{self.subject.name} | {self.library.name} | {self.dtype} | {self.mode}"

    @cached_property
    def plan(self) -> Plan:
        """The subject's table."""
        return self.subject.plan(self.steps)


@dataclass(frozen=True)
class Result:
    """What a case gave."""

    subject: str
    library: str
    dtype: str
    mode: str
    outcome: str
    """passed, failed, gap (differs, as the table of gaps says) or not run."""
    distance: float | None = None
    """Largest distance found from the reference, or None where none was measured."""
    unit: str = "ulp"
    """ulp of each value in eager modes; eps of Σ|c v| where a compiler may contract products and sums."""
    check: str = ""
    """The check that failed."""
    reason: str = ""
    """Message of the failure, reason of the gap, or why it was not run."""
    seconds: float = 0.0

    @property
    def id(self) -> str:
        """Like a case's."""
        return f"{self.subject} | {self.library} | {self.dtype} | {self.mode}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        found = dict(vars(self))
        if self.distance is not None and not self.distance < float("inf"):
            found["distance"] = None
        return found


class Violation(AssertionError):
    """A check other than a comparison failed."""

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check
