"""Forward processes against their formulas in 50 digits, against numerical integration, and as inverses of themselves."""

import importlib
from itertools import pairwise

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.integrate import quad

from anystep import VE, VP, BetaSchedule, Cosine, Crash, EDMSchedule, RectifiedFlow
from anystep.schedules import BETAS

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
START, END = mpmath.mpf("0.00085"), mpmath.mpf("0.012")

# ---------------------------------------------------------------- tables of betas


def evenly(steps, first, last):
    return [first + (last - first) * k / max(steps - 1, 1) for k in range(steps)]


def linear(steps):
    return evenly(steps, START, END)


def scaled_linear(steps):
    return [root**2 for root in evenly(steps, mpmath.sqrt(START), mpmath.sqrt(END))]


def sigmoid(steps):
    return [
        START + (END - START) / (1 + mpmath.exp(-x)) for x in evenly(steps, mpmath.mpf(-6), mpmath.mpf(6))
    ]


def capped(steps, alpha_bar):
    """Nichol, Dhariwal 2021, section 3.2: beta_t = 1 - abar_t / abar_(t-1), at most 0.999."""
    at = [alpha_bar(mpmath.mpf(k) / steps) for k in range(steps + 1)]
    return [min(1 - after / before, mpmath.mpf("0.999")) for before, after in pairwise(at)]


def squaredcos_cap_v2(steps):
    s = mpmath.mpf("0.008")
    start = mpmath.cos(s / (1 + s) * mpmath.pi / 2) ** 2
    return capped(steps, lambda t: mpmath.cos((t + s) / (1 + s) * mpmath.pi / 2) ** 2 / start)


def exp(steps):
    return capped(steps, lambda t: mpmath.exp(-12 * t))


def laplace(steps):
    """Hang, Gu 2024, table 1: log SNR = location - scale sgn(t - 1/2) log(1 - 2 |t - 1/2|), sign turned; scale 1/2."""

    def alpha_bar(t):
        off = mpmath.mpf("0.5") - t
        sign = -1 if off < 0 else 1
        snr = mpmath.exp(-sign * mpmath.log(1 - 2 * abs(off) + mpmath.mpf("1e-6")) / 2)
        return mpmath.sqrt(snr / (1 + snr))

    return capped(steps, alpha_bar)


FORMULAS = {f.__name__: f for f in (linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace, exp)}
each_table = pytest.mark.parametrize("name", FORMULAS)
each_length = pytest.mark.parametrize("steps", [1, 2, 10, 1000])


def table(name, steps=1000, **options):
    return BetaSchedule.named(name, steps, beta_start=float(START), beta_end=float(END), **options)


def test_no_table_is_left_out():
    assert set(FORMULAS) == set(BETAS)


@each_table
@each_length
def test_betas(name, steps):
    with mpmath.workdps(50):
        found, wanted, product, errors = table(name, steps), FORMULAS[name](steps), mpmath.mpf(1), []
        for k in range(steps):
            product *= 1 - wanted[k]
            sigma = mpmath.sqrt((1 - product) / product)
            errors.append(
                (
                    abs(found.betas[k] - wanted[k]),
                    abs(found.betas[k] - wanted[k]) / wanted[k],
                    abs(found.alphas_cumprod[k] - product) / product,
                    abs(found.karras_sigmas[k] - sigma) / sigma,
                )
            )
    absolute, relative, of_product, of_sigma = (max(column) for column in zip(*errors, strict=True))
    # Betas made of a ratio near 1, or of a cosine near its zero, keep an absolute error: measured 6e-14.
    assert relative < 1e-15 or (name in ("squaredcos_cap_v2", "laplace", "exp") and absolute < 1e-13)
    assert of_product < 5e-13  # measured 2e-13
    assert of_sigma < 1e-11  # measured 3e-12


@each_table
@each_length
def test_tables_are_a_forward_process(name, steps):
    schedule = table(name, steps)
    assert schedule.train_timesteps == steps == len(schedule.betas)
    assert schedule.t_range == (0.0, steps - 1.0)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == np.float64
    assert (schedule.betas > 0).all() and (schedule.betas < 1).all()
    assert (np.diff(schedule.alphas_cumprod) < 0).all() and (np.diff(schedule.karras_sigmas) > 0).all()
    level = schedule.level(np.arange(steps))
    np.testing.assert_allclose(level.alpha_t**2 + level.sigma_t**2, 1, rtol=4e-16)
    np.testing.assert_allclose(level.karras_sigma, schedule.karras_sigmas, rtol=4e-16)
    assert (schedule.coefficients == np.stack([level.alpha_t, level.sigma_t], -1)).all()
    assert schedule.sigma_min == level.karras_sigma[0] and schedule.sigma_max == level.karras_sigma[-1]
    with pytest.raises(ValueError, match="read-only"):
        schedule.betas[0] = 0


@each_table
def test_betas_and_their_product_agree(name):
    """In both directions, also after the rescaling."""
    for schedule in (table(name), table(name).rescaled_to_zero_terminal_snr()):
        before = np.append(1.0, schedule.alphas_cumprod[:-1])
        np.testing.assert_allclose(
            schedule.alphas_cumprod, before * (1 - schedule.betas), rtol=2e-12, atol=1e-16
        )
        again = BetaSchedule(schedule.betas)
        np.testing.assert_allclose(again.alphas_cumprod, schedule.alphas_cumprod, rtol=2e-12, atol=1e-16)


@each_table
@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_zero_terminal_snr(name, steps):
    """Lin et al. 2024, algorithm 1, on mpmath numbers."""
    schedule = table(name, steps)
    found = schedule.rescaled_to_zero_terminal_snr()
    with mpmath.workdps(50):
        roots, product = [], mpmath.mpf(1)
        for beta in FORMULAS[name](steps):
            product *= 1 - beta
            roots.append(mpmath.sqrt(product))
        first, last = roots[0], roots[-1]
        roots = [(root - last) * first / (first - last) for root in roots]
        wanted = [root**2 for root in roots]
        betas = [1 - after / before for before, after in zip([mpmath.mpf(1), *wanted], wanted, strict=False)]
        for k in range(steps):
            # Stretched by 1 / (first - last), and a beta is what is left of the signal divided by what was.
            slack = 4e-15 / (first - last)
            assert abs(found.alphas_cumprod[k] - wanted[k]) < slack
            assert abs(found.betas[k] - betas[k]) < slack / wanted[max(k - 1, 0)]
    assert found.alphas_cumprod[-1] == 0.0 and found.betas[-1] == 1.0
    assert found.sigma_max == np.inf
    assert found.alphas_cumprod[0] == pytest.approx(schedule.alphas_cumprod[0], rel=1e-15)
    assert found.level(steps - 1).alpha_t == 0.0 and found.level(steps - 1).sigma_t == 1.0
    assert found.interpolation == schedule.interpolation


def test_terminal_of_choice():
    found = table("linear").rescaled_to_zero_terminal_snr(2.0**-30)
    assert found.sigma_max == np.sqrt(2.0**30 - 1)
    assert found.alphas_cumprod[-2] == table("linear").rescaled_to_zero_terminal_snr().alphas_cumprod[-2]


def test_against_diffusers():
    """Its tables are float32 and multiplied up in float32: abar differs by up to 4.7e-7, and 1 - abar, so sigma, by more."""
    ddpm = importlib.import_module("diffusers.schedulers.scheduling_ddpm")
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"):
        for start, end in ((0.0001, 0.02), (0.00085, 0.012)):
            theirs = ddpm.DDPMScheduler(beta_schedule=name, beta_start=start, beta_end=end)
            ours = BetaSchedule.named(name, beta_start=start, beta_end=end)
            np.testing.assert_allclose(ours.betas, theirs.betas.double().numpy(), rtol=3.5e-7)
            product = theirs.alphas_cumprod.double().numpy()
            np.testing.assert_allclose(ours.alphas_cumprod, product, rtol=0, atol=6e-7)
            sigmas = np.sqrt((1 - product) / product)
            np.testing.assert_allclose(ours.karras_sigmas, sigmas, rtol=3e-4)
    theirs = ddpm.betas_for_alpha_bar(1000, alpha_transform_type="exp").double().numpy()
    np.testing.assert_allclose(BetaSchedule.named("exp").betas, theirs, rtol=1e-7)
    theirs = ddpm.DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    ours = BetaSchedule.named("scaled_linear").rescaled_to_zero_terminal_snr()
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.double().numpy(), rtol=0, atol=7e-7)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "shape"),
        ([[0.1]], "shape"),
        (0.1, "shape"),
        ([0.1, -0.1], r"betas\[1\]=-0.1"),
        ([0.1, 1.1], r"betas\[1\]=1.1"),
        ([0.1, np.nan], r"betas\[1\]=nan"),
        ([0.1, 1.0, 0.1], "before the last"),
    ],
)
def test_betas_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        BetaSchedule(betas)


def test_named_refuses():
    with pytest.raises(NotImplementedError, match=r"'cubic'.*linear"):
        BetaSchedule.named("cubic")
    for steps in (0, -1, 10.0, True, "10"):
        with pytest.raises((ValueError, TypeError), match="train_timesteps"):
            BetaSchedule.named("linear", steps)
    for options in ({"beta_start": -0.1}, {"beta_end": 1.5}, {"beta_end": np.nan}):
        with pytest.raises(ValueError, match="beta_"):
            BetaSchedule.named("linear", **options)


@pytest.mark.parametrize("t", [-1, 1000, 999.5, np.nan, np.inf, [3, -0.5]])
def test_timesteps_of_a_table_are_checked(t):
    with pytest.raises(ValueError, match="outside"):
        table("linear").level(t)


# ---------------------------------------------------------------- between timesteps


@EXAMPLES
@given(t=st.floats(0, 998.999))
def test_between_timesteps(t):
    """Interpolated in log karras_sigma (k-diffusion) or in karras_sigma (diffusers' Euler); np.interp is not used here."""
    for interpolation, forth, back in (("log", np.log, np.exp), ("linear", float, float)):
        schedule = table("scaled_linear", interpolation=interpolation)
        low, weight = int(t), t - int(t)
        near, far = (forth(schedule.karras_sigmas[k]) for k in (low, low + 1))
        wanted = back(near + (far - near) * weight)
        level = schedule.level(t)
        assert level.karras_sigma == pytest.approx(wanted, rel=1e-13)
        assert level.alpha_t**2 + level.sigma_t**2 == pytest.approx(1, rel=1e-15)
        assert level.t == t


def test_whole_timesteps_among_others():
    schedule = table("linear")
    mixed = schedule.level([500.0, 499.5]).alpha_t[0]
    assert mixed == pytest.approx(schedule.level(500).alpha_t, rel=1e-14)


# ---------------------------------------------------------------- continuous time


def vp_alpha(u, low=0.1, high=20.0):
    """exp(-∫β/2) with β(s) = low + s (high - low), integrated numerically."""
    return np.exp(-0.5 * quad(lambda s: low + s * (high - low), 0, u, epsabs=0, epsrel=1e-13)[0])


@EXAMPLES
@given(
    u=st.floats(1e-3, 1), low=st.floats(0.01, 1), high=st.floats(1.5, 40), scale=st.sampled_from([1.0, 999.0])
)
def test_vp_is_the_integral_of_its_rate(u, low, high, scale):
    level = VP(scale, beta_min=low, beta_max=high).level(scale * u)
    alpha_t = vp_alpha(u, low, high)
    assert level.alpha_t == pytest.approx(alpha_t, rel=1e-12)
    assert level.sigma_t == pytest.approx(np.sqrt(1 - alpha_t**2), rel=1e-10)
    assert level.alpha_t**2 + level.sigma_t**2 == pytest.approx(1, rel=1e-15)


def test_vp_is_the_limit_of_linear_betas():
    """Song et al. 2021, appendix B: betas beta(k / T) / T approach the process as T grows."""
    errors = []
    for steps in (1000, 2000, 4000):
        discrete = BetaSchedule.named("linear", steps, beta_start=0.1 / steps, beta_end=20.0 / steps)
        alpha_t = VP().level((np.arange(steps) + 1) / steps).alpha_t
        errors.append(np.abs(np.sqrt(discrete.alphas_cumprod) - alpha_t).max())
    assert errors[0] < 3e-3
    assert np.allclose(np.divide(errors[:-1], errors[1:]), 2, atol=0.05)


@EXAMPLES
@given(u=st.floats(1e-3, 1))
def test_closed_forms(u):
    with mpmath.workdps(50):
        exact = mpmath.mpf(u)
        turn = exact * mpmath.pi / 2
        ve = (
            mpmath.mpf(0.01) * (mpmath.mpf(50.0) / mpmath.mpf(0.01)) ** exact
        )  # Song et al. 2021, equation 30
        wanted = {
            VE(): (1, ve),
            Cosine(): (mpmath.cos(turn), mpmath.sin(turn)),
            Crash(): (mpmath.cos(turn), mpmath.sin(turn)),
            RectifiedFlow(1.0): (1 - exact, exact),
            EDMSchedule(1e-3, 1.0): (1, exact),
        }
    for schedule, (alpha_t, sigma_t) in wanted.items():
        level = schedule.level(u)
        assert abs(level.alpha_t - alpha_t) <= 3e-16
        assert abs(level.sigma_t - sigma_t) <= 4e-15 * sigma_t
        assert level.t == u


@EXAMPLES
@given(progress=st.floats(0.05, 1))
def test_crash_runs_at_the_squared_sine(progress):
    """K. Crowson's schedule: sigma = sin²(π u / 2), alpha = √(1 - sigma²)."""
    level = Crash().level(Crash().warp(progress))
    sigma_t = np.sin(np.pi * progress / 2) ** 2
    assert level.sigma_t == pytest.approx(sigma_t, rel=1e-14)
    # alpha² = cos² (1 + sigma); 1 - sigma² cancels.
    alpha_t = np.cos(np.pi * progress / 2) * np.sqrt(1 + sigma_t)
    assert level.alpha_t == pytest.approx(alpha_t, abs=min(1e-15 / alpha_t, 3e-8))


CONTINUOUS = {
    "vp": VP(),
    "vp, 0..999": VP(999.0, beta_min=0.5, beta_max=10.0),
    "ve": VE(),
    "edm": EDMSchedule(),
    "cosine": Cosine(),
    "crash": Crash(2.0),
    "flow": RectifiedFlow(),
}
DISCRETE = {name: table(name) for name in FORMULAS}
DISCRETE["zero snr"] = table("linear").rescaled_to_zero_terminal_snr()
each_schedule = pytest.mark.parametrize(
    "schedule", [pytest.param(s, id=n) for n, s in (CONTINUOUS | DISCRETE).items()]
)
each_continuous = pytest.mark.parametrize("schedule", [pytest.param(s, id=n) for n, s in CONTINUOUS.items()])


@each_schedule
@EXAMPLES
@given(progress=st.floats(0, 1))
def test_level_and_timestep_are_inverse(schedule, progress):
    low, high = schedule.t_range
    t = low + (high - low) * progress
    if schedule is DISCRETE["zero snr"] and t > 998:  # log sigma is infinite at 999: nothing to interpolate
        t = 999.0
    level = schedule.level(t)
    # A ratio near pure noise or near none fixes t as well as t fixes the ratio.
    nudge = np.asarray([level.karras_sigma * (1 - 4e-15), level.karras_sigma * (1 + 4e-15)])
    slack = abs(np.diff(schedule.timestep(nudge))[0]) if np.isfinite(nudge).all() else 0.0
    assert abs(schedule.timestep(level.karras_sigma) - t) <= 2 * slack + 4e-15 * high
    back = schedule.at(level.karras_sigma)
    assert back.alpha_t == pytest.approx(level.alpha_t, rel=1e-14, abs=2e-16)
    assert back.sigma_t == pytest.approx(level.sigma_t, rel=1e-14, abs=0)


@each_schedule
@EXAMPLES
@given(progress=st.floats(0, 1))
def test_levels_found_by_their_ratio_have_it(schedule, progress):
    low, high = schedule.sigma_min, min(schedule.sigma_max, 1e4)
    ratio = np.clip(low * (high / low) ** progress, low, high)
    assert schedule.at(ratio).karras_sigma == pytest.approx(ratio, rel=1e-15)


@each_schedule
def test_ends(schedule):
    low, high = schedule.t_range
    assert schedule.sigma_min == schedule.level(low).karras_sigma
    assert schedule.sigma_max == schedule.level(high).karras_sigma
    clean = schedule.at(0.0)
    assert (clean.alpha_t, clean.sigma_t) == (1.0, 0.0)
    # t is clamped, so that no model is told a time it was not trained at
    assert schedule.timestep(0.0) == low
    assert schedule.timestep(1e30 if schedule.sigma_max < np.inf else np.inf) == high
    for outside in (
        schedule.sigma_min / 2,
        schedule.sigma_max * 2,
        -1.0,
        [schedule.sigma_min, schedule.sigma_min / 2],
    ):
        if not np.isinf(np.max(outside)):
            with pytest.raises(ValueError, match="outside the schedule's range"):
                schedule.at(outside)
    grid = np.linspace(low, high, 200)
    if schedule is DISCRETE["zero snr"]:
        grid = np.round(grid)
    level = schedule.level(grid)
    assert (np.diff(level.karras_sigma) > 0).all() and (np.diff(level.alpha_t) <= 0).all()
    # Even progress starts at the clean end and reaches the noisy one.
    warped = schedule.warp(np.linspace(0, 1, 50))
    assert warped[0] == pytest.approx(low, rel=1e-12) and warped[-1] == pytest.approx(high, rel=1e-15)
    assert (np.diff(warped) >= 0).all() and warped.min() >= low


@each_continuous
@pytest.mark.parametrize("library", ["torch", "jax.numpy", "array_api_strict"])
def test_levels_of_arrays_stay_in_their_library(schedule, library):
    xp = pytest.importorskip(library)
    low, high = schedule.t_range
    host = np.linspace(low, high, 7)
    t = xp.asarray(host, dtype=xp.float32)
    level = schedule.level(t)
    exact = schedule.level(np.asarray(t, dtype=np.float64))
    for name in ("t", "alpha_t", "sigma_t"):
        found = getattr(level, name)
        assert type(found) is type(t) and found.dtype == t.dtype and found.shape == t.shape
        # Float32: the exponent of VE reaches log 5000, and its error is multiplied by that.
        np.testing.assert_allclose(
            np.asarray(found, dtype=np.float64), getattr(exact, name), rtol=2e-6, atol=1e-7
        )


@each_continuous
def test_numbers_and_arrays_agree(schedule):
    host = np.linspace(*schedule.t_range, 7)
    whole = schedule.level(host)
    assert schedule.level(host.tolist()).alpha_t.tolist() == whole.alpha_t.tolist()
    assert schedule.level(host.astype(np.float32)).sigma_t.dtype == np.float64
    for i, t in enumerate(host):
        one = schedule.level(float(t))
        np.testing.assert_allclose(
            [one.alpha_t, one.sigma_t], [whole.alpha_t[i], whole.sigma_t[i]], rtol=1e-15
        )


@pytest.mark.parametrize("kind", [VP, VE, Cosine, Crash, RectifiedFlow])
def test_the_unit_of_time_is_only_a_unit(kind):
    u = np.linspace(0.01, 1, 12)
    one, other = kind(1.0), kind(250.0)
    for name in ("alpha_t", "sigma_t"):
        wanted = getattr(one.level(u), name)
        np.testing.assert_allclose(getattr(other.level(250 * u), name), wanted, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(other.timestep(one.level(u).karras_sigma), 250 * u, rtol=1e-9)
    np.testing.assert_allclose(other.warp(u), 250 * one.warp(u), rtol=1e-14)


@pytest.mark.parametrize("schedule", [VP(), VP(50.0, beta_min=0.5, beta_max=9.0), VE(), VE(50.0)], ids=repr)
def test_rates_make_the_process(schedule):
    """dx = f x dt + g dw has d alpha / dt = f alpha and d sigma² / dt = 2 f sigma² + g², by central differences."""
    t, h = schedule.time_scale * np.linspace(0.05, 0.95, 7), 1e-5 * schedule.time_scale
    now, ahead, behind = (schedule.level(t + s * h) for s in (0, 1, -1))
    f, g2 = schedule.rates(t)
    np.testing.assert_allclose(
        (ahead.alpha_t - behind.alpha_t) / (2 * h), f * now.alpha_t, rtol=1e-6, atol=1e-8
    )
    growth = (ahead.sigma_t**2 - behind.sigma_t**2) / (2 * h)
    np.testing.assert_allclose(growth, 2 * f * now.sigma_t**2 + g2, rtol=1e-6)


def test_published_constants():
    """Song et al. 2021, appendix C: beta from 0.1 to 20, sigma from 0.01 to 50. Karras et al. 2022, table 1: 0.002 to 80."""
    assert (VP().beta_min, VP().beta_max) == (0.1, 20.0)
    assert (VE().smallest, VE().largest) == (0.01, 50.0)
    assert EDMSchedule().t_range == (0.002, 80.0)
    assert RectifiedFlow().t_range == (1.0, 1000.0)
    assert VP().t_range == VE().t_range == Cosine().t_range == (1e-3, 1.0)
    ddpm = BetaSchedule.named("linear")  # Ho et al. 2020, section 4
    assert (ddpm.train_timesteps, ddpm.betas[0], ddpm.betas[-1]) == (1000, 1e-4, 0.02)


@pytest.mark.parametrize("kind", [VP, VE, Cosine, Crash, RectifiedFlow])
def test_continuous_refuses(kind):
    for options, name in (
        ({"u_min": 0.0}, "u_min"),
        ({"u_min": 1.0}, "u_min"),
        ({"u_min": np.nan}, "u_min"),
        ({"time_scale": 0.0}, "time_scale"),
        ({"time_scale": np.inf}, "time_scale"),
        ({"time_scale": np.nan}, "time_scale"),
    ):
        with pytest.raises(ValueError, match=name):
            kind(**options)


def test_vp_clamps_pure_noise():
    assert VP().timestep(np.inf) == 1.0


def test_vp_from_rate_zero():
    schedule = VP(beta_min=0.0)
    assert schedule.timestep(0.0) == schedule.t_range[0]


def test_zero_terminal_snr_needs_two_timesteps():
    with pytest.raises(ValueError, match="timestep"):
        table("linear", 1).rescaled_to_zero_terminal_snr()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VP, {"beta_min": -0.1}),
        (VP, {"beta_min": 20.0, "beta_max": -30.0}),
        (VE, {"smallest": 0.0}),
        (VE, {"smallest": 5.0, "largest": 1.0}),
        (EDMSchedule, {"smallest": -1.0}),
        (EDMSchedule, {"smallest": 5.0, "largest": 1.0}),
    ],
)
def test_processes_that_do_not_add_noise(kind, options):
    with pytest.raises(ValueError, match="expected"):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas_cumprod": [0.9]}, "alphas_cumprod"),
        ({"alphas_cumprod": [0.9, np.nan, 0.7]}, "alphas_cumprod"),
        ({"alphas_cumprod": [1.1, 0.9, 0.7]}, "alphas_cumprod"),
        ({"alphas_cumprod": [0.9, 0.95, 0.7]}, "alphas_cumprod"),
        ({"interpolation": "cubic"}, "interpolation"),
    ],
)
def test_other_options_of_a_table_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BetaSchedule([0.1, 0.1, 0.1], **options)
