"""The modes other than eager: an array of rows, and the library's transforms of functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from anystep import Clip, Plan, State, init, update
from anystep._array import namespace

from .case import Case, Violation
from .compare import BOUNDS, compare
from .subjects import scale_of
from .walk import SHAPE, Inputs, call, noises, reference, start

__all__ = ["TRANSFORMED", "has_gradient"]


def has_gradient(plan: Plan) -> bool:
    """Whether the gradient of a step is known in closed form."""
    return plan.threshold is None or isinstance(plan.threshold, Clip)


def _names(plan: Plan, i: Any) -> list[str]:
    names = ["model input", "estimate", "sample", *(f"memory {k + 1}" for k in range(plan.memories))]
    return [f"{name} of call {i}" for name in names]


def _arrays(case: Case, given: Inputs) -> Inputs:
    """Inputs on NumPy, in the library."""

    def make(values: Any) -> Any:
        return case.library.array(values, case.dtype)

    noise = None if given.noise is None else tuple(map(make, given.noise))
    return Inputs(State(make(given.state.x), tuple(map(make, given.state.memory))), make(given.output), noise)


def _mixed(case: Case, i: int) -> tuple[list[int], Inputs, tuple[Any, ...]]:
    """A batch whose samples are at different rows: the rows, the inputs and the outputs of each sample there."""
    rows = [(i + 3 * b) % len(case.plan) for b in range(SHAPE[0])]
    calls = [reference(case.plan, case.dtype)[row] for row in rows]

    def pick(arrays: Any) -> Any:
        return np.stack([array[b] for b, array in enumerate(arrays)])

    given, made = zip(*calls, strict=True)
    memory = tuple(pick(part) for part in zip(*(one.state.memory for one in given), strict=True))
    noise = (
        tuple(pick(part) for part in zip(*(one.noise for one in given), strict=True))
        if case.plan.noises
        else None
    )
    inputs = Inputs(
        State(pick([one.state.x for one in given]), memory), pick([one.output for one in given]), noise
    )
    return rows, inputs, tuple(pick(part) for part in zip(*made, strict=True))


def _index(case: Case) -> tuple[float, str]:
    """Every sample at another row."""
    worst = 0.0
    for i in range(len(case.plan)):
        rows, given, expected = _mixed(case, i)
        given = _arrays(case, given)
        made = call(case.plan, case.library.index(rows), *given)
        for name, one, other in zip(_names(case.plan, rows), made, expected, strict=True):
            worst = max(worst, compare(one, other, like=given.state.x, ulp=BOUNDS["gather"].ulp, name=name))
    return worst, "ulp"


def _vmap(case: Case) -> tuple[float, str]:
    """Every sample a batch of one, at its own row."""
    mapped, worst = _transform(case)(lambda *given: call(case.plan, *given)), 0.0
    for i in range(len(case.plan)):
        rows, given, expected = _mixed(case, i)
        state = State(given.state.x[:, None], tuple(array[:, None] for array in given.state.memory))
        noise = None if given.noise is None else tuple(array[:, None] for array in given.noise)
        given = _arrays(case, Inputs(state, given.output[:, None], noise))
        made = mapped(case.library.index(rows), *given)
        for name, one, other in zip(_names(case.plan, rows), made, expected, strict=True):
            other = other[:, None]
            worst = max(worst, compare(one, other, like=given.state.x, ulp=BOUNDS["vmap"].ulp, name=name))
    return worst, "ulp"


def _compile(case: Case) -> tuple[float, str]:
    """One compiled step, at every row from the reference's inputs, so that errors do not add up."""
    plan, worst = case.plan, 0.0
    case.library.forget()
    step = _transform(case)(lambda *given: call(plan, *given))
    bound = _bound("jit", plan)
    for i, (given, expected) in enumerate(reference(plan, case.dtype)):
        scales = _scales(plan, i, given)
        row, given = case.library.index(i), _arrays(case, given)
        if i == 0:
            # Eager once: what a step keeps for a device is then there, and a compiler that watches it compiles once.
            call(plan, row, *given)
            step(row, *given)
        with case.library.guard():
            made = step(row, *given)
        for name, one, other, scale in zip(_names(plan, i), made, expected, scales, strict=True):
            worst = max(worst, compare(one, other, like=given.state.x, ulp=bound, scale=scale, name=name))
    if case.library.graphs is not None and (graphs := case.library.graphs(step)) != 1:
        raise Violation(
            "laziness", f"{len(plan)} rows were compiled to {graphs} graphs: expected one for all."
        )
    return worst, "eps"


def _bound(name: str, plan: Plan) -> float:
    """Of a row of x and m alone, or of more terms."""
    two_terms = plan.noises == plan.memories == 0 and plan.threshold is None
    return BOUNDS[name if two_terms else f"{name}, more terms"].ulp


def _fused(case: Case) -> tuple[float, str]:
    """What a backend makes of a row for speed, at every row from the reference's inputs."""
    plan, worst = case.plan, 0.0
    for i, (given, expected) in enumerate(reference(plan, case.dtype)):
        scales, given = _scales(plan, i, given), _arrays(case, given)
        for name, one, other, scale in zip(
            _names(plan, i), call(plan, i, *given), expected, scales, strict=True
        ):
            bound = _bound("fused", plan)
            worst = max(worst, compare(one, other, like=given.state.x, ulp=bound, scale=scale, name=name))
    return worst, "eps"


def _scales(plan: Plan, i: int, given: Inputs) -> list[Any]:
    """Σ|c v| of everything that a call makes."""
    x, m = (np.abs(np.asarray(array, np.float64)) for array in (given.state.x, given.output))
    estimate = np.abs(plan.estimate[i, 0]) * x + np.abs(plan.estimate[i, 1]) * m
    bounded = 1.0 if plan.threshold is not None else 0.0  # a quotient of values up to 1
    return [np.abs(plan.input_scale[i]) * x, estimate + bounded, *scale_of(plan, i, given.arrays)]


def _scan(case: Case) -> tuple[float, str]:
    """The whole loop compiled: the reference's model outputs go in, every sample comes out."""
    plan, entry = case.plan, case.library
    calls, fresh = reference(plan, case.dtype), noises(plan)

    def body(state: State, given: Any) -> Any:
        row, output, noise = given
        following = update(plan, row, state, output, noise)
        return following, following.x

    outputs = entry.array(np.stack([given.output for given, _ in calls]), case.dtype)
    noise = None if fresh is None else tuple(entry.array(fresh[:, r], case.dtype) for r in range(plan.noises))
    state = init(plan, entry.array(start(plan), case.dtype))
    last, found = _transform(case)(body, state, (entry.index(range(len(plan))), outputs, noise))
    expected = np.stack([made[2] for _, made in calls])
    scale = np.maximum.accumulate([scale_of(plan, i, given.arrays)[0] for i, (given, _) in enumerate(calls)])
    steps = np.arange(1, len(plan) + 1).reshape(-1, *(1,) * len(SHAPE))  # the errors of that many calls
    worst = compare(
        found, expected, like=state.x, scale=scale * steps, ulp=BOUNDS["scan"].ulp, name="samples"
    )
    return max(
        worst,
        compare(last.x, expected[-1], like=state.x, scale=scale[-1] * len(plan), ulp=BOUNDS["scan"].ulp),
    ), "eps"


def _grad(case: Case) -> tuple[float, str]:
    """The gradient of Σ w·(next sample): w times the coefficient, where the bound on x̂₀ lets it through."""
    plan, worst = case.plan, 0.0
    weights = np.random.default_rng(3).normal(size=SHAPE)
    w = case.library.array(weights, case.dtype)

    def by(which: int) -> Callable[..., Any]:
        def total(value: Any, i: int, given: Inputs) -> Any:
            state = given.state._replace(x=value) if which == 0 else given.state
            following = update(plan, i, state, value if which else given.output, given.noise)
            return namespace(value).sum(following.x * w)

        return _transform(case)(total)

    gradients = [by(0), by(1)]
    for i, (given, _) in enumerate(reference(plan, case.dtype)):
        arrays = _arrays(case, given)
        wide = np.asarray(given.state.x, np.float64), np.asarray(given.output, np.float64)
        open_ = np.ones(SHAPE)
        if isinstance(plan.threshold, Clip):
            estimate = plan.estimate[i, 0] * wide[0] + plan.estimate[i, 1] * wide[1]
            open_ = (np.abs(estimate) < plan.threshold.bound).astype(np.float64)
        for which, gradient in enumerate(gradients):
            direct, through = plan.folded[i, 0, which], plan.folded[i, 0, 2] * plan.estimate[i, which] * open_
            found = gradient((arrays.state.x, arrays.output)[which], i, arrays)
            expected = np.asarray(weights.astype(case.dtype), np.float64) * (direct + through)
            scale = np.abs(weights) * (np.abs(direct) + np.abs(through))
            name = f"gradient of call {i} by {('the sample', 'the output')[which]}"
            worst = max(
                worst, compare(found, expected, like=w, scale=scale, ulp=BOUNDS["grad"].ulp, name=name)
            )
    return worst, "eps"


def _transform(case: Case) -> Callable[..., Any]:
    return case.library.adapter.transforms[case.mode]


TRANSFORMED: dict[str, Callable[[Case], tuple[float, str]]] = {
    "index": _index,
    "fused": _fused,
    "compile": _compile,
    "scan": _scan,
    "vmap": _vmap,
    "grad": _grad,
}
"""How each mode but eager is run."""
