"""What the fused steps of all libraries share: from combinations of arrays to a step from state to state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from anystep import Plan, State
from anystep._combination import Row
from anystep._update import state_of

__all__ = ["Combination", "Form", "Step", "stepper"]

Combination: TypeAlias = Callable[[Sequence[Any], Any], Any]
"""From arrays (x, m, memories, noises) to a new array, or to the one given as second argument, which may be x."""

Step: TypeAlias = Callable[[Sequence[Any], bool], State]
"""From arrays (x, m, memories, noises), and whether x may be written to."""


class Form(NamedTuple):
    """What of a row is compiled in: which arrays it reads and how it is summed. Its numbers are arguments."""

    columns: tuple[int, ...]
    base: int | None
    opposed: bool
    late: tuple[int, ...]

    @classmethod
    def of(cls, row: Row) -> Form:
        """The form of a row."""
        columns, late = (tuple([k for k, _ in part]) for part in (row.terms, row.late))
        return cls(columns, row.base, row.opposed, late)

    @staticmethod
    def numbers(row: Row) -> list[float]:
        """Coefficients of the columns and of the late ones, then the scale."""
        return [*(c for _, c in (*row.terms, *row.late)), row.scale]

    @property
    def reads(self) -> tuple[int, ...]:
        """The arrays that it reads, at least one."""
        base = () if self.base is None else (self.base,)
        return tuple(sorted({*self.columns, *self.late, *base, *((1,) if self.opposed else ())})) or (0,)

    def source(self, value: Callable[[int], str], number: Callable[[int], str]) -> str:
        """The sum, in the order of the plain path, where ``value(k)`` is array k and ``number(n)`` one of `numbers`."""
        products = [f"{number(n)} * {value(k)}" for n, k in enumerate((*self.columns, *self.late))]
        total = " + ".join(products[: len(self.columns)])
        if self.base is not None:
            base = f"({value(self.base)} - {value(1)})" if self.opposed else value(self.base)
            total = f"{base} + ({total})" if total else base
        total = " + ".join([f"({total or f'{value(self.reads[0])} * 0'})", *products[len(self.columns) :]])
        return f"({total}) * {number(len(products))}"


def stepper(plan: Plan, i: int, combination: Callable[[Row], Combination]) -> Step:
    """Row ``i`` as combinations; an array that is only passed on is passed on by reference."""
    first, *others = (one if isinstance(one, int) else combination(one) for one in plan.outputs(i))
    assert not isinstance(first, int)
    if not others:
        return lambda arrays, donate: state_of((first(arrays, arrays[0] if donate else None), ()))
    keeps = any(one == 0 for one in others if isinstance(one, int))

    def step(arrays: Sequence[Any], donate: bool) -> State:
        # Memories first: they may be made of an x that is then written to.
        memory = tuple([arrays[one] if isinstance(one, int) else one(arrays, None) for one in others])
        return state_of((first(arrays, arrays[0] if donate and not keeps else None), memory))

    return step
