"""Learned variances: the range, its ends, the formula between them, and dtypes."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import DDPM, BetaSchedule, Cosine, EDMSchedule, RectifiedFlow, Trailing, init, update
from anystep.variance import learned_noise, learned_range_noise, log_variance_range

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
SCHEDULES = [BetaSchedule.named("linear"), RectifiedFlow(), EDMSchedule(), Cosine()]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def spread(sampler, levels):
    """Standard deviation of the noise that a plan adds at each step."""
    return sampler.plan(levels, "sample").folded[:, 0, 3]


@each
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_range_ends_at_the_two_fixed_variances(schedule, steps):
    levels = Trailing(final=schedule.sigma_min * 1.5).levels(schedule, steps)
    small, large = log_variance_range(levels)
    np.testing.assert_allclose(np.exp(small / 2), spread(DDPM("small"), levels), rtol=1e-13)
    np.testing.assert_allclose(np.exp(large / 2), spread(DDPM("large"), levels), rtol=1e-13)
    assert (small < large).all()


def test_range_in_the_letters_of_ddpm():
    """Nichol, Dhariwal 2021, section 3.1: log of beta, and of beta (1 - abar_(t-1)) / (1 - abar_t)."""
    betas = np.linspace(1e-4, 0.02, 1000)
    after = np.cumprod(1 - betas)
    before = np.append(1.0, after[:-1])
    small, large = log_variance_range(Trailing().levels(BetaSchedule.named("linear"), 1000))
    np.testing.assert_allclose(large[::-1], np.log(betas), rtol=1e-10)
    np.testing.assert_allclose(small[::-1][1:], np.log((betas * (1 - before) / (1 - after))[1:]), rtol=1e-10)
    assert small[-1] == np.log(1e-20)  # the posterior is a point
    assert log_variance_range(Trailing().levels(BetaSchedule.named("linear"), 4), floor=1e-8)[0][
        -1
    ] == np.log(1e-8)


@EXAMPLES
@given(fraction=st.floats(-1, 1), small=st.floats(-30, 0), width=st.floats(0, 10))
def test_between_the_ends(fraction, small, width):
    """Equation 15 of the same: Σ = exp(v log large + (1 - v) log small), with v the fraction moved from [-1, 1] to [0, 1]."""
    v = (fraction + 1) / 2
    std = np.sqrt(np.exp(v * (small + width) + (1 - v) * small))
    found = learned_range_noise(np.asarray([fraction]), np.asarray([1.0]), small, small + width)
    np.testing.assert_allclose(found, [std], rtol=1e-13)


def test_ends_of_the_fraction():
    fraction, noise = np.asarray([-1.0, 1.0]), np.asarray([2.0, 2.0])
    found = learned_range_noise(fraction, noise, np.log(0.01), np.log(0.25))
    np.testing.assert_allclose(found, [2 * 0.1, 2 * 0.5], rtol=1e-15)


@EXAMPLES
@given(log_variance=st.floats(-40, 5), noise=st.floats(-4, 4))
def test_log_variance(log_variance, noise):
    found = learned_noise(np.asarray([log_variance]), np.asarray([noise]))
    np.testing.assert_allclose(found, [noise * np.sqrt(np.exp(log_variance))], rtol=1e-13)


@each
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_a_learned_step_at_the_ends_is_a_fixed_one(schedule, end):
    levels = Trailing(final=schedule.sigma_min * 1.5).levels(schedule, 4)
    fixed, unit = (
        DDPM(kind).plan(levels, "v_prediction") for kind in ("small" if end < 0 else "large", "unit")
    )
    small, large = log_variance_range(levels)
    x, output, noise = np.random.default_rng(0).standard_normal((3, 2, 3))
    state, other = init(fixed, x), init(unit, x)
    for i in range(4):
        scaled = learned_range_noise(np.full_like(x, end), noise, small[i], large[i])
        state, other = update(fixed, i, state, output, noise), update(unit, i, other, output, scaled)
        np.testing.assert_allclose(other.x, state.x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        ("numpy", "float16"),
        ("numpy", "float32"),
        ("numpy", "float64"),
        ("torch", "float16"),
        ("torch", "bfloat16"),
        ("torch", "float32"),
        ("jax.numpy", "bfloat16"),
        ("jax.numpy", "float32"),
        ("array_api_strict", "float32"),
        ("array_api_strict", "float64"),
    ],
)
def test_libraries_and_dtypes(library, dtype):
    """In the noise's working precision: halves are widened, and rounded only by the update that adds them."""
    xp = pytest.importorskip(library)
    values = [-1.0, -0.25, 0.5, 1.0], [1.5, -0.5, 2.0, -3.0]
    fraction, noise = (xp.asarray(np.asarray(part), dtype=getattr(xp, dtype)) for part in values)
    small, large = log_variance_range(Trailing().levels(BetaSchedule.named("linear"), 4))
    found = learned_range_noise(fraction, noise, small[1], large[1])
    assert type(found) is type(noise) and found.dtype == (xp.float64 if dtype == "float64" else xp.float32)
    v = (np.asarray(values[0]) + 1) / 2
    wanted = np.asarray(values[1]) * np.exp((v * large[1] + (1 - v) * small[1]) / 2)
    wide = found.double().numpy() if library == "torch" else np.asarray(found).astype(np.float64)
    np.testing.assert_allclose(wide, wanted, rtol=1e-15 if dtype == "float64" else 1e-6)
    # The noise decides, also beside a wider or narrower variance.
    for other in ("float32", "float16") if library != "array_api_strict" else ("float32",):
        mixed = learned_noise(xp.asarray(np.zeros(4), dtype=getattr(xp, other)), noise)
        assert mixed.dtype == found.dtype


def test_what_is_no_float():
    with pytest.raises(TypeError, match="real floating"):
        learned_noise(np.asarray([1]), np.asarray([1.0]))
    with pytest.raises(TypeError, match="real floating"):
        learned_noise(np.asarray([1.0]), np.asarray([1]))
