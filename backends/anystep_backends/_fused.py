"""What the fused steps of all libraries share: from combinations of arrays to a step from state to state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from anystep import Plan, State
from anystep._combination import Row
from anystep._update import state_of

__all__ = ["Combination", "Step", "stepper"]

Combination: TypeAlias = Callable[[Sequence[Any], Any], Any]
"""From arrays (x, m, memories, noises) to a new array, or to the one given as second argument, which may be x."""

Step: TypeAlias = Callable[[Sequence[Any], bool], State]
"""From arrays (x, m, memories, noises), and whether x may be written to."""


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
