"""One subject's loop: the inputs and outputs of every call on NumPy, to which every other way of running it is held."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from anystep import Plan, State, estimate, init, scale_input, update
from anystep._update import reproducible

from .libraries import Library, library

__all__ = ["SHAPE", "Inputs", "Planned", "call", "noises", "reference", "start", "target", "walk"]

SHAPE = (2, 3, 4)


class Planned(Protocol):
    """What can be a subject: anything with a name and a plan for a number of steps."""

    @property
    def name(self) -> str:
        """How reports call it."""
        ...

    def plan(self, steps: int = ...) -> Plan:
        """Its table for a number of steps."""
        ...


class Inputs(NamedTuple):
    """What one call takes."""

    state: State
    output: Any
    noise: tuple[Any, ...] | None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """All arrays, in the order of a plan's columns without x̂₀."""
        return (self.state.x, self.output, *self.state.memory, *(self.noise or ()))


def call(plan: Plan, row: Any, state: State, output: Any, noise: Any) -> tuple[Any, ...]:
    """All that a step computes: the model's input, the estimate, the next sample, the next memories."""
    scaled, bounded = scale_input(plan, row, state.x), estimate(plan, row, state.x, output)
    following = update(plan, row, state, output, noise)
    return scaled, bounded, following.x, *following.memory


def start(plan: Plan) -> npt.NDArray[np.float64]:
    """Noise of the size of the first level."""
    return np.random.default_rng(1).normal(size=SHAPE) * np.hypot(plan.alpha[0], plan.sigma[0])


def noises(plan: Plan) -> npt.NDArray[np.float64] | None:
    """The noise of every row, shape (N, R, *SHAPE), all of it different."""
    shape = (len(plan), plan.noises, *SHAPE)
    return np.random.default_rng(7).normal(size=shape) if plan.noises else None


def target(plan: Plan, i: int, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The output that amounts to the estimate 1.2 sin(2 x / √(alpha² + sigma²)): of inputs one ulp apart different outputs.

    Computed on the host, in float64, so that equal inputs give equal outputs whatever the library.
    """
    wide, (a, b) = np.asarray(x, np.float64), plan.estimate[i]
    wanted = 1.2 * np.sin(2 * wide / np.hypot(plan.alpha[i], plan.sigma[i]))
    return (wanted - a * wide) / b if b else wanted


def walk(
    plan: Plan, entry: Library, dtype: str, row: Any = lambda i: i
) -> Iterator[tuple[Inputs, tuple[Any, ...]]]:
    """The loop, call by call; ``row`` turns a row's number into the index that the step is given."""
    fresh, state = noises(plan), init(plan, entry.array(start(plan), dtype))
    for i in range(len(plan)):
        noise = None if fresh is None else tuple(entry.array(one, dtype) for one in fresh[i])
        given = Inputs(state, entry.array(target(plan, i, entry.read(state.x)), dtype), noise)
        made = call(plan, row(i), *given)
        yield given, made
        state = State(entry.seal(made[2]), tuple(map(entry.seal, made[3:])))


@cache
def reference(plan: Plan, dtype: str) -> tuple[tuple[Inputs, tuple[Any, ...]], ...]:
    """The loop on NumPy, on the plain path."""
    with reproducible():
        return tuple(walk(plan, library("numpy"), dtype))
