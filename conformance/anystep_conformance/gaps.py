"""Where a result is expected to differ from the reference, and why: each gap must be there, so that the list stays true."""

from collections.abc import Callable
from dataclasses import dataclass

from anystep import Plan

from .case import Case

__all__ = ["GAPS", "Gap", "gap_of"]


@dataclass(frozen=True)
class Gap:
    """Cases that give other values than they should."""

    module: str
    """Which array library."""
    modes: tuple[str, ...]
    dtypes: tuple[str, ...]
    subjects: Callable[[Plan], bool]
    """Whether a plan is concerned."""
    ulp: float
    """Largest distance, as measured."""
    reason: str

    def covers(self, case: Case) -> bool:
        """Whether a case is one of them."""
        return (
            case.library.module == self.module
            and case.mode in self.modes
            and case.dtype in self.dtypes
            and self.subjects(case.plan)
        )


GAPS: tuple[Gap, ...] = ()
"""None today: every library gives NumPy's bits."""


def gap_of(case: Case) -> Gap | None:
    """The gap that covers a case."""
    return next((gap for gap in GAPS if gap.covers(case)), None)
