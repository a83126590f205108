"""The plain loop: it is the hand-written one, and it asks the model, the noise and the callback what it says."""

import numpy as np
import pytest

from anystep import State, draw, init, reproducible, sample, scale_input, update
from anystep_conformance.compare import compare
from anystep_conformance.libraries import FLOATS, cases, library
from anystep_conformance.subjects import SUBJECTS, random_plan

SHAPE = (2, 3)
DETERMINISTIC = random_plan(4, memories=1, seed=1)
STOCHASTIC = random_plan(4, memories=1, noises=2, seed=1)
subjects = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)


def model(x, t):
    return x * 0.5 + float(np.cos(t))


def fixed_noise(plan, x, entry, dtype):
    """Noise by row: an array, or a tuple where the plan takes several."""

    def noise(i):
        parts = tuple(
            entry.array(np.random.default_rng([i, r]).normal(size=x.shape), dtype) for r in range(plan.noises)
        )
        return parts if plan.noises > 1 else parts[0]

    return noise


def by_hand(plan, x, noise):
    states = [init(plan, x)]
    for i in range(len(plan)):
        output = model(scale_input(plan, i, states[-1].x), plan.timesteps[i])
        states.append(update(plan, i, states[-1], output, noise(i) if plan.stochastic[i] else None))
    return states[1:]


@pytest.mark.parametrize(
    "plan", [DETERMINISTIC, STOCHASTIC, random_plan(1)], ids=["deterministic", "stochastic", "one row"]
)
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_the_loop_is_the_one_written_by_hand(plan, entry, dtype):
    with entry.scope(dtype):
        x = entry.array(np.random.default_rng(0).normal(size=SHAPE), dtype)
        noise = fixed_noise(plan, x, entry, dtype)
        before = entry.read(x)
        compare(sample(model, plan, x, noise=noise), by_hand(plan, x, noise)[-1].x)
        assert np.array_equal(entry.read(x), before)


@subjects
def test_subjects_run(subject):
    plan = subject.plan(10)
    x = np.random.default_rng(0).normal(size=SHAPE) * plan.sigma[0]
    noise = fixed_noise(plan, x, library("numpy"), "float64")
    compare(sample(model, plan, x, noise=noise), by_hand(plan, x, noise)[-1].x)


def test_what_the_model_is_given():
    plan = next(subject for subject in SUBJECTS if subject.name == "Euler, EDM").plan(5)
    seen = []

    def spy(x, t):
        seen.append((x, t))
        return model(x, t)

    for dtype in FLOATS:
        seen.clear()
        x = library("numpy").array(np.ones(SHAPE), dtype)
        sample(spy, plan, x)
        assert [t for _, t in seen] == plan.timesteps.tolist()
        assert all(type(t) is float for _, t in seen)  # never a NumPy scalar, which would raise precision
        assert all(given.dtype == x.dtype and given.shape == SHAPE for given, _ in seen)
        compare(seen[0][0], scale_input(plan, 0, x))


def test_a_generator_gives_the_noise_that_it_draws():
    x = np.ones(SHAPE)
    plan = STOCHASTIC
    generator = np.random.default_rng(3)
    drawn = {}
    for i in range(len(plan)):
        if plan.stochastic[i]:
            drawn[i] = tuple(draw(x, generator, i * 2 + r) for r in range(2))
    expected = sample(model, plan, x, noise=drawn.__getitem__)
    compare(sample(model, plan, x, generator=np.random.default_rng(3)), expected)
    assert not np.array_equal(sample(model, plan, x, generator=np.random.default_rng(4)), expected)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_a_numpy_generator_gives_every_library_the_same_noise(entry, dtype):
    with reproducible():
        found = sample(
            model, STOCHASTIC, entry.array(np.ones(SHAPE), dtype), generator=np.random.default_rng(3)
        )
        expected = sample(model, STOCHASTIC, np.ones(SHAPE, dtype), generator=np.random.default_rng(3))
    compare(found, expected, like=entry.array(np.ones(SHAPE), dtype))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["jax"]))
def test_a_key_of_jax_gives_fresh_noise_at_each_step(entry, dtype):
    import jax

    plan = next(subject for subject in SUBJECTS if subject.name == "DDPM small").plan(6)
    x, key = entry.array(np.ones(SHAPE), dtype), jax.random.key(0)
    expected = sample(model, plan, x, noise=lambda i: draw(x, key, i))
    compare(sample(model, plan, x, generator=key), expected)
    assert len({float(draw(x, key, i)[0, 0]) for i in range(6)}) == 6


def test_noise_is_asked_for_only_where_it_is_used():
    asked = []

    def noise(i):
        asked.append(i)
        return (np.ones(SHAPE), np.ones(SHAPE))

    plan = random_plan(8, noises=2, seed=5)
    assert 0 < plan.stochastic.sum() < 8
    sample(model, plan, np.ones(SHAPE), noise=noise)
    assert asked == np.flatnonzero(plan.stochastic).tolist()
    asked.clear()
    sample(model, DETERMINISTIC, np.ones(SHAPE), noise=noise)
    assert asked == []


def test_a_deterministic_plan_does_not_touch_the_generator():
    generator = np.random.default_rng(0)
    sample(model, DETERMINISTIC, np.ones(SHAPE), generator=generator)
    assert generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_callback_sees_every_state():
    seen = []
    x = np.ones(SHAPE)
    noise = fixed_noise(STOCHASTIC, x, library("numpy"), "float64")
    final = sample(model, STOCHASTIC, x, noise=noise, callback=lambda i, state: seen.append((i, state)))
    assert [i for i, _ in seen] == [0, 1, 2, 3]
    assert seen[-1][1].x is final
    for (_, state), expected in zip(seen, by_hand(STOCHASTIC, x, noise), strict=True):
        assert isinstance(state, State)
        for a, b in zip((state.x, *state.memory), (expected.x, *expected.memory), strict=True):
            compare(a, b)


def test_an_error_of_the_callback_stops_the_loop():
    calls = []

    def spy(x, t):
        calls.append(t)
        return x

    def stop(i, state):
        if i == 1:
            raise InterruptedError("stopped by the user")

    with pytest.raises(InterruptedError, match="stopped by the user"):
        sample(spy, DETERMINISTIC, np.ones(SHAPE), callback=stop)
    assert len(calls) == 2


def test_progress_wraps_the_rows():
    seen = []

    def progress(rows):
        assert len(rows) == 4  # what a progress bar needs to know
        for i in rows:
            yield i
            seen.append(i)

    found = sample(model, DETERMINISTIC, np.ones(SHAPE), progress=progress)
    assert seen == [0, 1, 2, 3]
    compare(found, sample(model, DETERMINISTIC, np.ones(SHAPE)))


def test_generator_and_noise_are_not_mixed():
    with pytest.raises(ValueError, match="generator and noise were both given"):
        sample(model, STOCHASTIC, np.ones(SHAPE), generator=np.random.default_rng(), noise=lambda i: None)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"model": lambda x, t: x[:1]}, ValueError, "model_output has shape"),
        ({"model": lambda x, t: x.astype(int)}, TypeError, "model_output has dtype int64"),
        ({"model": lambda x, t: None}, TypeError, "model_output=None"),
        ({"x": np.ones(SHAPE, int)}, TypeError, "sample has dtype int64"),
        ({"x": [1.0]}, TypeError, "sample=.*asarray"),
        ({"noise": lambda i: None}, ValueError, "noise is missing"),
        ({"noise": lambda i: np.ones(SHAPE)}, ValueError, r"noise holds 1 array\(s\).*takes 2"),
        ({"generator": 42}, TypeError, "generator=42"),
        ({"generator": "cpu"}, TypeError, "generator='cpu'"),
    ],
)
def test_refuses(bad, error, message):
    arguments = {"model": model, "plan": STOCHASTIC, "x": np.ones(SHAPE)} | bad
    if "generator" not in bad:
        arguments.setdefault("noise", lambda i: (np.ones(SHAPE), np.ones(SHAPE)))
    with pytest.raises(error, match=message):
        sample(**arguments)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["jax"]))
def test_jax_has_no_global_generator(entry, dtype):
    with pytest.raises((ValueError, TypeError), match="generator=None"):
        sample(model, STOCHASTIC, entry.array(np.ones(SHAPE), dtype))
