"""The same scheduler on every array library: whole loops, bit for bit, from the same start, model and noise.

Agreement does not show that what they agree on is right: see the tests of order, identities and references.
"""

import functools

import numpy as np
import pytest

from anystep import Plan, State, estimate, init, reproducible, scale_input, update
from anystep_conformance.compare import BOUNDS, compare
from anystep_conformance.libraries import LIBRARIES, WIDE, cases, library
from anystep_conformance.subjects import SUBJECTS, scale_of

SHAPE = (2, 3, 4)
STEPS = 50
subjects = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)


def model(plan, i, entry, x, dtype):
    """The output that amounts to the estimate 1.2 sin(2 x / √(alpha² + sigma²)): of inputs one ulp apart different outputs.

    Computed on the host, in float64, so that equal inputs give equal outputs whatever the library.
    """
    wide, (a, b) = entry.read(x).astype(np.float64), plan.estimate[i]
    target = 1.2 * np.sin(2 * wide / np.hypot(plan.alpha[i], plan.sigma[i]))
    return entry.array((target - a * wide) / b, dtype)


def noises(plan):
    """One noise for every step, given to all libraries."""
    rng = np.random.default_rng(7)
    return [rng.normal(size=SHAPE) for _ in range(len(plan))] if plan.noises else [None] * len(plan)


def loop(plan, entry, dtype, index=lambda entry, i: i):
    """Everything that the step computes, on the host."""
    seen = []
    with entry.scope(dtype), reproducible():
        state = init(plan, start(plan, entry, dtype))
        for i, noise in enumerate(noises(plan)):
            row = index(entry, i)
            scaled = scale_input(plan, row, state.x)
            output = model(plan, i, entry, state.x, dtype)
            x0 = estimate(plan, row, state.x, output)
            state = update(plan, row, state, output, None if noise is None else entry.array(noise, dtype))
            state = State(entry.seal(state.x), tuple(map(entry.seal, state.memory)))
            seen.append([entry.read(part) for part in (scaled, x0, state.x, *state.memory)])
    return seen


def start(plan, entry, dtype):
    size = np.hypot(plan.alpha[0], plan.sigma[0])
    return entry.array(np.random.default_rng(1).normal(size=SHAPE) * size, dtype)


@functools.cache
def on_numpy(name, dtype):
    plan = next(subject for subject in SUBJECTS if subject.name == name).plan(STEPS)
    return loop(plan, library("numpy"), dtype)


def check(found, expected):
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        names = ("scaled input", "estimate", "sample", *["memory"] * (len(other) - 3))
        for name, a, b in zip(names, one, other, strict=True):
            compare(a, b, ulp=BOUNDS["eager"].ulp, name=f"{name} after call {i}", signed_zeros=True)


@subjects
@pytest.mark.parametrize(
    ("entry", "dtype"), cases(names=[entry.name for entry in LIBRARIES if entry.name != "numpy"])
)
def test_libraries_agree(subject, entry, dtype):
    check(loop(subject.plan(STEPS), entry, dtype), on_numpy(subject.name, dtype))


@subjects
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_an_index_on_the_device_agrees(subject, entry, dtype):
    """Every call by index array, one row per sample, as a batch of requests at different steps would make it."""
    found = loop(subject.plan(STEPS), entry, dtype, lambda entry, i: entry.index([i] * SHAPE[0]))
    for one, other in zip(found, on_numpy(subject.name, dtype), strict=True):
        for a, b in zip(one, other, strict=True):
            compare(a, b, ulp=BOUNDS["gather"].ulp)


@subjects
def test_the_loop_is_worth_comparing(subject):
    """Finite, of the size of data in the end, and moving at every step."""
    samples = np.stack([step[2] for step in on_numpy(subject.name, "float32")])
    assert np.isfinite(samples).all()
    assert 0.5 < np.abs(samples[-1]).max() < 2.5
    assert (samples[1:] != samples[:-1]).any(axis=(1, 2, 3)).all()


@subjects
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_slightly_wrong_coefficient_is_noticed(subject, column):
    plan = subject.plan(STEPS)
    wrong = plan.update.copy()
    wrong[STEPS // 2, 0, column] += 3e-6
    tables = (plan.timesteps, plan.alpha, plan.sigma, plan.input_scale, plan.estimate)
    with pytest.raises(AssertionError, match="sample after call 25 differs"):
        check(
            loop(Plan(*tables, wrong, plan.threshold), library("numpy"), "float32"),
            on_numpy(subject.name, "float32"),
        )


@subjects
@pytest.mark.parametrize(("entry", "dtype"), cases(WIDE, ["jax"]))
def test_jax_compiled_agrees_within_a_bound(subject, entry, dtype):
    """LLVM contracts products and sums; each step starts from the eager state, so that errors do not add up."""
    import jax

    plan = subject.plan(STEPS)
    two_terms = plan.noises == plan.memories == 0 and plan.threshold is None
    bound = BOUNDS["jit" if two_terms else "jit, more terms"].ulp
    constant = {0, STEPS // 2, len(plan) - 2}  # each is compiled by itself
    with entry.scope(dtype):
        traced = jax.jit(functools.partial(update, plan))
        fixed = jax.jit(functools.partial(update, plan), static_argnums=0)
        state = init(plan, start(plan, entry, dtype))
        for i, noise in enumerate(noises(plan)):
            output = model(plan, i, entry, state.x, dtype)
            noise = None if noise is None else entry.array(noise, dtype)
            with reproducible():
                eager = update(plan, i, state, output, noise)
            arrays = (state.x, output, *state.memory, *(() if noise is None else (noise,)))
            scale = scale_of(plan, i, list(map(entry.read, arrays)))
            found = [traced(entry.index(i), state, output, noise)]
            found += [fixed(i, state, output, noise)] if i in constant else []
            for one in found:
                for a, b, terms in zip((one.x, *one.memory), (eager.x, *eager.memory), scale, strict=True):
                    compare(a, b, scale=terms, ulp=bound, name=f"state after call {i}")
            state = eager
