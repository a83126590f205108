"""One batch whose samples are at steps of their own, under methods of their own: equal, bit for bit, to running each alone."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import Clip, Plan, State, estimate, init, reproducible, update
from anystep_conformance.libraries import cases, library
from anystep_conformance.subjects import SUBJECTS, random_plan

ALIKE = [subject for subject in SUBJECTS if subject.threshold is None]
BOUNDED = [subject for subject in SUBJECTS if subject.threshold == Clip(1.0)]
NUMPY = library("numpy")


def model(entry, x, t, dtype):
    """Of one sample alone, on the host: no neighbour in the batch can change it."""
    wide = entry.read(x).astype(np.float64)
    return entry.array(np.sin(wide * 1.7 + t / 1000), dtype)


def noise_of(plan, sample, row, shape):
    rng = np.random.default_rng([sample, row])
    return [rng.normal(size=shape) for _ in range(plan.noises)]


def start(sample, shape):
    return np.random.default_rng([99, sample]).normal(size=shape)


def alone(plan, sample, entry, dtype, shape):
    """What running a sample by itself gives, each row by its int."""
    state, seen = init(plan, entry.array(start(sample, shape), dtype)), []
    for i in range(len(plan)):
        output = model(entry, state.x, plan.timesteps[i], dtype)
        noise = [entry.array(values, dtype) for values in noise_of(plan, sample, i, shape)] or None
        x0 = estimate(plan, i, state.x, output)
        state = update(plan, i, state, output, noise)
        seen.append((entry.read(x0), entry.read(state.x)))
    return seen


def began(part, waits, states, entry, dtype):
    """An array of the batch, with samples that wait as `init` has them."""
    if isinstance(part, tuple):
        return tuple(began(memory, waits, states, entry, dtype) for memory in part)
    values = entry.read(part).astype(np.float64)
    values[waits] = np.stack(states)[waits]
    return entry.array(values, dtype)


def together(plans, delays, entry, dtype, shape):
    """All samples in one batch; sample s takes its first step when `delays[s]` steps of the loop are over.

    A sample that waits, or is done, is stepped too, and what becomes of it is thrown away.
    """
    joined = Plan.concatenate(plans)
    first = np.cumsum([0, *map(len, plans)])
    states = [start(s, shape) for s in range(len(plans))]
    batch = init(joined, entry.array(np.stack(states), dtype))
    seen = [[] for _ in plans]
    for tick in range(max(delay + len(plan) for plan, delay in zip(plans, delays, strict=True))):
        own = [min(max(tick - delay, 0), len(plan) - 1) for plan, delay in zip(plans, delays, strict=True)]
        rows = entry.index(first[:-1] + own)
        xs = entry.read(batch.x)
        outputs = entry.array(
            np.stack(
                [entry.read(model(entry, entry.array(x, dtype), plan.timesteps[i], dtype)).astype(np.float64)
                 for x, plan, i in zip(xs, plans, own, strict=True)]
            ),
            dtype,
        )  # fmt: skip
        noise = np.zeros((joined.noises, len(plans), *shape))
        for s, (plan, i) in enumerate(zip(plans, own, strict=True)):
            noise[: plan.noises, s] = np.reshape(noise_of(plan, s, i, shape), (plan.noises, *shape))
        given_noise = [entry.array(values, dtype) for values in noise] or None
        x0 = entry.read(estimate(joined, rows, batch.x, outputs))
        batch = update(joined, rows, batch, outputs, given_noise)
        moved = entry.read(batch.x)
        for s, (plan, delay) in enumerate(zip(plans, delays, strict=True)):
            if delay <= tick < delay + len(plan):
                seen[s].append((x0[s], moved[s]))
        waits = [tick < delay for delay in delays]
        batch = State(*(began(part, waits, states, entry, dtype) for part in (batch.x, batch.memory)))
    return seen


@pytest.mark.parametrize(("entry", "dtype"), cases(("float32", "float64", "bfloat16")))
@pytest.mark.parametrize("subjects", [ALIKE, BOUNDED], ids=["unbounded", "bounded"])
def test_every_method_in_one_batch(subjects, entry, dtype):
    plans = [subject.plan(2 + k % 5) for k, subject in enumerate(subjects)]
    with entry.scope(dtype), reproducible():
        mixed = together(plans, [3 * k % 4 for k in range(len(plans))], entry, dtype, (2, 3))
        for s, plan in enumerate(plans):
            expected = alone(plan, s, entry, dtype, (2, 3))
            assert len(mixed[s]) == len(expected) == len(plan)
            for call, (one, other) in enumerate(zip(mixed[s], expected, strict=True)):
                for a, b in zip(one, other, strict=True):
                    np.testing.assert_array_equal(a, b, f"{subjects[s].name} at call {call}")


@settings(deadline=None, max_examples=60)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_any_plans(shapes, data):
    plans = [random_plan(*shape, seed=k) for k, shape in enumerate(shapes)]
    delays = data.draw(st.lists(st.integers(0, 3), min_size=len(plans), max_size=len(plans)))
    mixed = together(plans, delays, NUMPY, "float64", (2,))
    for s, plan in enumerate(plans):
        np.testing.assert_array_equal(mixed[s], alone(plan, s, NUMPY, "float64", (2,)))


def test_what_is_kept():
    one, other = SUBJECTS[0].plan(3), SUBJECTS[6].plan(2)
    joined = Plan.concatenate([one, other])
    assert Plan.concatenate([one]) == one
    np.testing.assert_array_equal(joined.timesteps, [*one.timesteps, *other.timesteps])
    np.testing.assert_array_equal(joined.sigma, [*one.sigma[:-1], *other.sigma])
    np.testing.assert_array_equal(joined.alpha, [*one.alpha[:-1], *other.alpha])
    np.testing.assert_array_equal(joined.input_scale, [*one.input_scale, *other.input_scale])


def test_refuses():
    plan, bounded = random_plan(2), random_plan(2, threshold=Clip(1.0))
    with pytest.raises(ValueError, match=r"thresholds .*None.*Clip.*separate batches"):
        Plan.concatenate([plan, bounded])
    with pytest.raises(ValueError, match="plans is empty"):
        Plan.concatenate([])
