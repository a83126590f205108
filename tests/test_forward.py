"""Noising, targets and weights at one timestep per sample, on arrays of every library, beside sums formed in float64."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import (
    VE,
    VP,
    BetaSchedule,
    Cosine,
    EDMSchedule,
    RectifiedFlow,
    add_noise,
    snr,
    target,
    velocity,
)
from anystep.forward import mix, scale_noise
from anystep.predictions import PREDICTIONS, prediction

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
DDPM = BetaSchedule.named("linear")
TIMES = [0, 999, 421]
LIBRARIES = {
    "numpy": ("float16", "float32", "float64"),
    "torch": ("float16", "bfloat16", "float32", "float64"),
    "jax.numpy": ("float16", "bfloat16", "float32"),
    "array_api_strict": ("float32", "float64"),
}
each_dtype = pytest.mark.parametrize(
    ("library", "dtype"), [(library, dtype) for library, dtypes in LIBRARIES.items() for dtype in dtypes]
)
each_library = pytest.mark.parametrize("library", LIBRARIES)
# Half a unit in the last place of what a result is rounded to, and the error of one coefficient or product before that.
HALF_ULP = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24, "float64": 2**-53}
WORKING = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


def array(library, dtype, values):
    xp = pytest.importorskip(library)
    return xp.asarray(np.asarray(values), dtype=getattr(xp, dtype))


def wide(x):
    """Values in float64."""
    if type(x).__module__.startswith("torch"):
        return x.double().numpy()
    return np.asarray(x).astype(np.float64)


def pair(library="numpy", dtype="float64", shape=(3, 2, 5)):
    rng = np.random.default_rng(3)
    return tuple(array(library, dtype, rng.standard_normal(shape)) for _ in range(2))


def column(values, ndim=3):
    return np.reshape(np.asarray(values, dtype=np.float64), (-1,) + (1,) * (ndim - 1))


def check(found, like, a, b, x0, eps, dtype, more=0.0):
    """The sum a x_0 + b ε, with the error of two products and a sum in working precision, and of one rounding."""
    assert type(found) is type(like) and found.dtype == like.dtype and found.shape == like.shape
    x0, eps = wide(x0), wide(eps)
    exact = a * x0 + b * eps
    slack = 4 * HALF_ULP[WORKING[dtype]] * (abs(a * x0) + abs(b * eps)) + 1.01 * HALF_ULP[dtype] * abs(exact)
    smallest = 2.0**-25 if dtype == "float16" else 0.0  # half the least subnormal
    assert (abs(wide(found) - exact) <= slack + smallest + more).all()


# ---------------------------------------------------------------- every library and dtype


@each_dtype
@pytest.mark.parametrize(
    "schedule", [DDPM, VP(1000.0), RectifiedFlow(), VE(1000.0)], ids=lambda s: type(s).__name__
)
def test_noising(library, dtype, schedule):
    x0, eps = pair(library, dtype)
    times = TIMES if schedule is DDPM else [1, 1000, 421.5]
    level = schedule.level(times)
    found = add_noise(schedule, x0, eps, times)
    check(found, x0, column(level.alpha_t), column(level.sigma_t), x0, eps, dtype)
    again = scale_noise(schedule, x0, times, eps)
    assert (wide(again) == wide(found)).all()
    check(
        velocity(schedule, x0, eps, times), x0, -column(level.sigma_t), column(level.alpha_t), x0, eps, dtype
    )


@each_dtype
def test_targets(library, dtype):
    x0, eps = pair(library, dtype)
    level = DDPM.level(TIMES)
    alpha_t, sigma_t = column(level.alpha_t), column(level.sigma_t)
    for name, (p, q, divisor) in {
        "epsilon": (0.0, 1.0, np.inf),
        "sample": (1.0, 0.0, 1.0),
        "v_prediction": (-sigma_t, alpha_t, sigma_t),
        "flow_prediction": (-1.0, 1.0, sigma_t),
        "score": (0.0, -1 / sigma_t, sigma_t**2 / alpha_t),
    }.items():
        # p is made as (1 - a alpha) / b in float64, so it carries that 1's rounding, divided.
        found = target(DDPM, name, x0, eps, TIMES)
        check(found, x0, p, q, x0, eps, dtype, 2.0**-51 / divisor * abs(wide(x0)))


@each_library
@pytest.mark.parametrize("schedule", [DDPM, VP(1000.0), Cosine(1000.0)], ids=lambda s: type(s).__name__)
def test_timesteps_of_every_kind(library, schedule):
    """A list, a NumPy array, an array of the sample's library, of one or two axes; a number for all."""
    x0, eps = pair(library, "float32")
    times = [1, 999, 421]
    wanted = wide(add_noise(schedule, x0, eps, times))
    kinds = [
        tuple(times),
        np.asarray(times),
        np.asarray(times, dtype=np.int32),
        np.asarray(times, dtype=np.float32),
    ]
    kinds += [
        array(library, "int32", times),
        array(library, "int64", times) if library != "jax.numpy" else times,
    ]
    kinds += [array(library, "float32", times), array(library, "int32", [[t] for t in times])]
    for kind in kinds:
        found = add_noise(schedule, x0, eps, kind)
        assert type(found) is type(x0) and found.dtype == x0.dtype
        np.testing.assert_allclose(wide(found), wanted, rtol=2e-6, atol=1e-7)
    alike = wide(add_noise(schedule, x0, eps, [421] * 3))
    for one in (421, 421.0, np.int64(421), [421], np.asarray(421), array(library, "int32", 421)):
        np.testing.assert_allclose(wide(add_noise(schedule, x0, eps, one)), alike, rtol=2e-6, atol=1e-7)


@each_library
@pytest.mark.parametrize("shape", [(1,), (4,), (4, 1), (4, 3, 2, 2), (0, 3)])
def test_shapes(library, shape):
    x0, eps = pair(library, "float32", shape)
    found = add_noise(DDPM, x0, eps, 500)
    level = DDPM.level(500)
    check(found, x0, level.alpha_t, level.sigma_t, x0, eps, "float32")
    if shape[0]:
        times = np.linspace(0, 999, shape[0]).astype(int)
        level = DDPM.level(times)
        found = add_noise(DDPM, x0, eps, times)
        check(
            found,
            x0,
            column(level.alpha_t, len(shape)),
            column(level.sigma_t, len(shape)),
            x0,
            eps,
            "float32",
        )


@each_library
def test_inputs_are_left_alone(library):
    x0, eps = pair(library, "float32")
    before = wide(x0).copy(), wide(eps).copy()
    for function in (add_noise, velocity):
        function(DDPM, x0, eps, [0, 0, 0])
    target(DDPM, "epsilon", x0, eps, 5)
    assert (wide(x0) == before[0]).all() and (wide(eps) == before[1]).all()


# ---------------------------------------------------------------- meaning


def test_ends():
    x0, eps = pair()
    flow = RectifiedFlow()
    assert (add_noise(flow, x0, eps, 0) == x0).all() and (add_noise(flow, x0, eps, 1000) == eps).all()
    zero = DDPM.rescaled_to_zero_terminal_snr()
    assert (add_noise(zero, x0, eps, 999) == eps).all()


def test_moments():
    """10^5 samples of x_0 = 2: mean alpha x_0 and deviation sigma, within five standard errors."""
    count = 100_000
    eps = np.random.default_rng(5).standard_normal(count)
    for schedule, t in (
        (DDPM, 300),
        (VP(), 0.4),
        (VE(), 0.7),
        (RectifiedFlow(), 600.0),
        (EDMSchedule(), 3.0),
    ):
        level = schedule.level(t)
        x_t = add_noise(schedule, np.full(count, 2.0), eps, t)
        assert abs(x_t.mean() - 2 * level.alpha_t) < 5 * level.sigma_t / np.sqrt(count)
        assert abs(x_t.std() - level.sigma_t) < 5 * level.sigma_t / np.sqrt(2 * count)


@pytest.mark.parametrize("name", PREDICTIONS)
@EXAMPLES
@given(t=st.integers(0, 998), seed=st.integers(0, 99))
def test_a_model_that_meets_its_target_is_read_back(name, t, seed):
    """Noise the data, hand the target to the prediction: x_0 and ε come back."""
    x0, eps = np.random.default_rng(seed).standard_normal((2, 1, 4))
    for schedule, time in (
        (DDPM, t),
        (VP(1000.0), t + 1.0),
        (RectifiedFlow(), t + 1.0),
        (VE(1000.0), t + 1.0),
    ):
        x_t, output = add_noise(schedule, x0, eps, time), target(schedule, name, x0, eps, time)
        level, kind = schedule.level(float(time)), prediction(name)
        for known, (a, b) in ((x0, kind.to_sample(level)), (eps, kind.to_noise(level))):
            size = abs(a * x_t) + abs(b * output)
            np.testing.assert_allclose(a * x_t + b * output, known, rtol=0, atol=1e-11 * size.max())


def test_velocity_is_the_derivative_along_the_circle():
    """Salimans, Ho 2022, appendix D: with alpha = cos φ and sigma = sin φ, v = d x_t / d φ."""
    x0, eps = pair()
    t, h = 0.3, 1e-5
    ahead, behind = (add_noise(Cosine(), x0, eps, t + s * h) for s in (1, -1))
    slope = (ahead - behind) / (2 * h * np.pi / 2)
    np.testing.assert_allclose(velocity(Cosine(), x0, eps, t), slope, rtol=1e-8, atol=1e-9)


def test_flow_target_is_the_derivative_along_the_line():
    x0, eps = pair()
    ahead, behind = (add_noise(RectifiedFlow(), x0, eps, t) for t in (300.5, 299.5))
    np.testing.assert_allclose(
        target(RectifiedFlow(), "flow_prediction", x0, eps, 300), (ahead - behind) * 1000
    )


def test_signal_to_noise_ratio():
    times = [0, 500, 999]
    np.testing.assert_allclose(snr(DDPM, times), np.exp(2 * DDPM.level(times).lambda_t), rtol=1e-12)
    product = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times]
    np.testing.assert_allclose(snr(DDPM, times), product / (1 - product), rtol=1e-10)
    assert snr(RectifiedFlow(), [0.0, 500.0, 1000.0]).tolist() == [np.inf, 1.0, 0.0]
    assert snr(DDPM.rescaled_to_zero_terminal_snr(), 999) == 0.0
    assert snr(EDMSchedule(), 2.0) == 0.25
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(snr(DDPM, torch.tensor(times)), snr(DDPM, times), rtol=1e-15)


def test_halves_are_combined_wide():
    """In float16 the sum of 300 · 200 and -300 · 199.9 would overflow or lose all its digits; in float32 it is 30."""
    x0, eps = np.asarray([300.0], np.float16), np.asarray([-300.0], np.float16)
    assert mix(x0, eps, 300.0, 299.9).tolist() == [np.float16(30.0)]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("times", [-1, 1000, [0, 1, 1000], 999.5, np.nan, [0, np.nan, 1]])
def test_timesteps_outside_a_table(times):
    for function in (add_noise, velocity, lambda *args: target(args[0], "epsilon", *args[1:])):
        with pytest.raises(ValueError, match="outside"):
            function(DDPM, *pair(), times)


@each_library
def test_what_does_not_fit(library):
    x0, eps = pair(library, "float32")
    with pytest.raises(ValueError, match=r"\(2,\).*one per sample"):
        add_noise(DDPM, x0, eps, [1, 2])
    with pytest.raises(ValueError, match="one per sample"):
        add_noise(DDPM, x0, eps, array(library, "int32", [1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"noise has shape \(2, 2, 5\)"):
        add_noise(DDPM, x0, eps[:2, ...], 5)
    with pytest.raises(ValueError, match="one per sample"):
        add_noise(DDPM, *pair(library, "float32", ()), [1, 2])
    whole = array(library, "int32", [[1, 2]])
    with pytest.raises(TypeError, match="real floating"):
        add_noise(DDPM, whole, whole, 5)


def test_what_is_no_array():
    with pytest.raises(TypeError, match="expected an array"):
        add_noise(DDPM, [1.0], [2.0], 5)
    torch = pytest.importorskip("torch")
    x0, eps = pair()
    with pytest.raises(ValueError, match="noise"):
        add_noise(DDPM, x0, torch.tensor(eps), 5)
    with pytest.raises(ValueError, match="prediction='noise'"):
        target(DDPM, "noise", x0, eps, 5)


@pytest.mark.parametrize(
    ("library", "other"), [("numpy", "torch"), ("numpy", "array_api_strict"), ("jax.numpy", "torch")]
)
def test_timesteps_of_another_library(library, other):
    """The docstring: an array of any library."""
    x0, eps = pair(library, "float32")
    found = add_noise(DDPM, x0, eps, array(other, "int32", TIMES))
    np.testing.assert_allclose(wide(found), wide(add_noise(DDPM, x0, eps, TIMES)), rtol=1e-6)


@pytest.mark.parametrize("schedule", [VP(), Cosine(), RectifiedFlow(), VE()], ids=lambda s: type(s).__name__)
def test_timesteps_outside_a_continuous_process(schedule):
    """The docstring: ValueError if a timestep known on the host lies outside the schedule."""
    with pytest.raises(ValueError, match="outside"):
        add_noise(schedule, *pair(), -0.5)
    with pytest.raises(ValueError, match="outside"):
        add_noise(schedule, *pair(), 2 * schedule.t_range[1])


def test_a_number_as_sample():
    """As `update` and `target` take it."""
    assert target(DDPM, "sample", np.asarray(3.0), np.asarray(0.0), 500) == 3.0
    assert add_noise(DDPM, np.asarray(3.0), np.asarray(0.0), 0) == pytest.approx(3.0, rel=1e-3)
