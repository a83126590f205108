"""What a model may return: the estimates it amounts to, and its training target, against the papers' formulas."""

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import (
    DDIM,
    EDM,
    BetaSchedule,
    Clip,
    Cosine,
    Epsilon,
    Flow,
    Level,
    Sample,
    Score,
    Trailing,
    Velocity,
    estimate,
)
from anystep.predictions import PREDICTIONS, prediction

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
EPS = 2.3e-16

log_ratio, log_size = st.floats(-4, 4), st.floats(-2, 2)
value = st.integers(-3000, 3000).map(lambda thousandths: thousandths / 1000)


def level_at(log_ratio, log_size):
    """Any level: noise-to-signal ratio and overall size are independent, so alpha² + sigma² is not 1."""
    ratio, size = 10.0**log_ratio, 10.0**log_size
    return Level(7.0, size / (1 + ratio), size * ratio / (1 + ratio))


levels = st.builds(level_at, log_ratio, log_size)


# What a model that knows x_0 and ε returns, from the papers.


def noise_target(x0, eps, alpha_t, sigma_t):
    return eps


def sample_target(x0, eps, alpha_t, sigma_t):
    return x0


def velocity_target(x0, eps, alpha_t, sigma_t):
    return alpha_t * eps - sigma_t * x0


def flow_target(x0, eps, alpha_t, sigma_t):
    return eps - x0


def score_target(x0, eps, alpha_t, sigma_t):
    return (
        -(sigma_t * eps) / sigma_t**2
    )  # gradient of the log of N(x_t; alpha x_0, sigma²), x_t - alpha x_0 = sigma ε


def edm_target(x0, eps, alpha_t, sigma_t):
    """Karras et al. 2022, equation 8 with the entries of table 1; there x = y + n with n of deviation sigma."""
    sigma, sigma_data = sigma_t / alpha_t, mpmath.mpf("0.5")
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / mpmath.sqrt(sigma_data**2 + sigma**2)
    return (x0 - c_skip * (x0 + sigma * eps)) / c_out


TARGETS = {
    "epsilon": noise_target,
    "sample": sample_target,
    "v_prediction": velocity_target,
    "flow_prediction": flow_target,
    "score": score_target,
    "edm": edm_target,
}
each = pytest.mark.parametrize("name", TARGETS)


def exactly(*numbers):
    return [mpmath.mpf(float(number)) for number in numbers]


def test_none_is_left_out():
    assert set(TARGETS) == set(PREDICTIONS)


@each
@EXAMPLES
@given(level=levels, x0=value, eps=value)
def test_a_perfect_model_gives_back_what_it_knows(name, level, x0, eps):
    chosen = prediction(name)
    (a, b), (c, d) = chosen.to_sample(level), chosen.to_noise(level)
    with mpmath.workdps(50):
        truth = exactly(x0, eps, level.alpha_t, level.sigma_t)
        x_t = truth[2] * truth[0] + truth[3] * truth[1]
        output = TARGETS[name](*truth)
        for found, (on_x, on_output) in ((truth[0], (a, b)), (truth[1], (c, d))):
            on_x, on_output = exactly(on_x, on_output)
            size = abs(on_x * x_t) + abs(on_output * output)
            assert abs(on_x * x_t + on_output * output - found) <= 8 * EPS * size


@each
@EXAMPLES
@given(level=levels)
def test_the_two_estimates_make_up_the_sample(name, level):
    (a, b), (c, d) = prediction(name).to_sample(level), prediction(name).to_noise(level)
    alpha_t, sigma_t = level.alpha_t, level.sigma_t
    assert abs(alpha_t * a + sigma_t * c - 1) <= 8 * EPS * (1 + abs(alpha_t * a) + abs(sigma_t * c))
    assert abs(alpha_t * b + sigma_t * d) <= 8 * EPS * (abs(alpha_t * b) + abs(sigma_t * d))


@each
@EXAMPLES
@given(level=levels)
def test_training_target(name, level):
    p, q = prediction(name).target(level)
    _, b = prediction(name).to_sample(level)
    with mpmath.workdps(50):
        alpha_t, sigma_t = exactly(level.alpha_t, level.sigma_t)
        zero, one = mpmath.mpf(0), mpmath.mpf(1)
        # p is 1 - a alpha over b, where 1 is rounded.
        assert abs(p - TARGETS[name](one, zero, alpha_t, sigma_t)) <= 8 * EPS / abs(b)
        wanted = TARGETS[name](zero, one, alpha_t, sigma_t)
        assert abs(q - wanted) <= 8 * EPS * abs(wanted)


@EXAMPLES
@given(level=levels, log_data=st.floats(-2, 1), x=value, output=value)
def test_edm_is_table_1(level, log_data, x, output):
    chosen = EDM(sigma_data=10.0**log_data)
    a, b = chosen.to_sample(level)
    with mpmath.workdps(50):
        alpha_t, sigma_t, sigma_data = exactly(level.alpha_t, level.sigma_t, chosen.sigma_data)
        sigma = sigma_t / alpha_t
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / mpmath.sqrt(sigma_data**2 + sigma**2)
        c_in = 1 / mpmath.sqrt(sigma**2 + sigma_data**2)
        c_noise = mpmath.log(sigma) / 4
        # D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) of x = x_t / alpha_t
        for found, wanted in (
            (a * level.alpha_t, c_skip),
            (b, c_out),
            (chosen.input_scale(level) * level.alpha_t, c_in),
        ):
            assert abs(found - wanted) <= 8 * EPS * wanted
        assert abs(chosen.timestep(level) - c_noise) <= 8 * EPS * (1 + abs(c_noise))


def test_edm_trains_on_unit_variance():
    """Karras et al. 2022, appendix B.6: input and target of the network have unit variance for data of deviation sigma_data."""
    chosen = EDM(sigma_data=0.7)
    sigma = np.geomspace(1e-2, 80, 9)
    level = Level(sigma, np.ones(9), sigma)
    np.testing.assert_allclose(chosen.input_scale(level) ** 2 * (0.7**2 + sigma**2), 1, rtol=1e-14)
    p, q = chosen.target(level)
    np.testing.assert_allclose((p * 0.7) ** 2 + q**2, 1, rtol=1e-10)


@each
def test_arrays_and_numbers_agree(name):
    alpha_t, sigma_t = np.asarray([0.3, 0.9, 1.0]), np.asarray([0.8, 0.2, 3.0])
    together = Level(np.arange(3.0), alpha_t, sigma_t)
    for method in ("to_sample", "to_noise", "target", "input_scale", "timestep"):
        whole = np.asarray(getattr(prediction(name), method)(together))
        assert whole.shape[-1] == 3 and whole.dtype == np.float64
        for i in range(3):
            one = getattr(prediction(name), method)(Level(float(i), float(alpha_t[i]), float(sigma_t[i])))
            assert np.asarray(one).tolist() == whole[..., i].tolist()


@each
def test_only_edm_scales_its_input(name):
    level = Level(321.0, 0.3, 0.8)
    if name != "edm":
        assert prediction(name).input_scale(level) == 1.0
        assert prediction(name).timestep(level) == 321.0


def test_exact_coefficients():
    """Where a coefficient is 0 or 1 it is so exactly: a plan then never touches that array."""
    level = Level(0.0, 0.3, 0.7)
    assert Epsilon().to_noise(level) == (0.0, 1.0) == Epsilon().target(level)
    assert Sample().to_sample(level) == (0.0, 1.0) == Sample().target(level)[::-1]
    assert Flow().target(level)[1] == pytest.approx(1.0, rel=1e-15)
    assert Score().to_noise(level) == (0.0, -0.7)


@pytest.mark.parametrize("name", ["epsilon", "score"])
def test_noise_says_nothing_at_pure_noise(name):
    levels = Trailing().levels(BetaSchedule.named("linear").rescaled_to_zero_terminal_snr(), 4)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        DDIM().plan(levels, name)


@pytest.mark.parametrize("name", ["sample", "v_prediction", "flow_prediction"])
def test_others_do_at_pure_noise(name):
    plan = DDIM().plan(Trailing().levels(Cosine(), 4), name)
    wanted = {"sample": [0, 1], "v_prediction": [0, -1], "flow_prediction": [1, -1]}[name]
    assert plan.alpha[0] == 0 and plan.estimate[0].tolist() == wanted


def test_clipped_noise_prediction_at_pure_noise():
    """The limit alpha -> 0 of a clipped estimate is the sign of x_t - ε times the bound."""
    levels = Trailing().levels(BetaSchedule.named("linear").rescaled_to_zero_terminal_snr(), 4)
    plan = DDIM().plan(levels, "epsilon", Clip(1.0))
    x, output = np.asarray([[1.0, -2.0, 0.5]]), np.asarray([[0.5, -1.0, 0.25]])
    assert estimate(plan, 0, x, output).tolist() == [[1.0, -1.0, 1.0]]


def test_choosing():
    for name, kind in PREDICTIONS.items():
        assert type(prediction(name)) is kind and kind.name == name
    own = EDM(sigma_data=1.0)
    assert prediction(own) is own
    assert prediction("v_prediction") == Velocity()
    with pytest.raises(ValueError, match=r"prediction='noise'.*epsilon"):
        prediction("noise")
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="sigma_data"):
            EDM(sigma_data=bad)


@pytest.mark.parametrize("bound", [None, Clip(1.0)])
def test_edm_at_pure_noise(bound):
    with pytest.raises(ValueError, match="alpha_t"):
        DDIM().plan(Trailing().levels(Cosine(), 4), "edm", bound)


def test_clipped_score_at_pure_noise():
    assert np.isfinite(DDIM().plan(Trailing().levels(Cosine(), 4), "score", Clip(1.0)).estimate).all()
