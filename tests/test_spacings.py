"""Which levels a spacing visits: for every N, against exact integers, the papers' formulas in 50 digits, and SciPy."""

from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from anystep import (
    VE,
    VP,
    Beta,
    BetaSchedule,
    Cosine,
    Crash,
    EDMSchedule,
    Exponential,
    Karras,
    Leading,
    Linspace,
    Lu,
    RectifiedFlow,
    Shifted,
    Sigmas,
    Timesteps,
    Trailing,
    dynamic_shift,
)
from anystep.spacings import flow, sigma, time

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=200)
DDPM = BetaSchedule.named("linear")
FLOW, EDM = RectifiedFlow(), EDMSchedule()
sizes = st.integers(1, 3000).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total)))

# ---------------------------------------------------------------- even in time, by exact arithmetic
# Python rounds a Fraction half to even, as Lin et al. 2024, table 2, do with NumPy.


def exact_leading(total, steps, offset=0):
    return [k * (total // steps) + offset for k in reversed(range(steps))]


def exact_trailing(total, steps):
    return [round(Fraction((steps - k) * total, steps)) - 1 for k in range(steps)]


def exact_linspace(total, steps):
    return [
        round(Fraction((steps - 1 - k) * (total - 1), max(steps - 1, 1))) if k else total - 1
        for k in range(steps)
    ]


def half(numerator, denominator):
    """Where an exact value lies between two integers, rounding noise decides instead of the rule."""
    return (2 * numerator) % denominator == 0 and (2 * numerator // denominator) % 2 == 1


def off(found, wanted):
    return [k for k, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other]


@EXAMPLES
@given(sizes=sizes, offset=st.integers(0, 5))
def test_leading(sizes, offset):
    total, steps = sizes
    wanted = exact_leading(total, steps, offset)
    if wanted[0] < total:
        assert time.leading(total, steps, offset).tolist() == wanted
    else:
        with pytest.raises(ValueError, match="steps_offset"):
            time.leading(total, steps, offset)


@EXAMPLES
@given(sizes=sizes)
def test_trailing(sizes):
    total, steps = sizes
    found, wanted = time.trailing(total, steps), exact_trailing(total, steps)
    assert all(
        half((steps - k) * total, steps) and abs(found[k] - wanted[k]) == 1 for k in off(found, wanted)
    )
    assert found[0] == total - 1 and found[-1] >= 0 and (np.diff(found) < 0).all() and len(found) == steps


@EXAMPLES
@given(sizes=sizes)
def test_linspace(sizes):
    total, steps = sizes
    found, wanted = time.linspace(total, steps), exact_linspace(total, steps)
    assert all(
        half((steps - 1 - k) * (total - 1), steps - 1) and abs(found[k] - wanted[k]) == 1
        for k in off(found, wanted)
    )
    assert found[0] == total - 1 and (np.diff(found) < 0).all() and len(found) == steps
    unrounded = time.linspace(total, steps, rounded=False)
    wanted = [(steps - 1 - k) * (total - 1) / (steps - 1) for k in range(steps)] if steps > 1 else [total - 1]
    np.testing.assert_allclose(unrounded, wanted, rtol=1e-14)


def test_trailing_beside_diffusers():
    """Theirs has one value too many at 62 N; elsewhere ours is theirs, also at halves, where noise decides in both."""
    longer, astray = [], []
    for steps in range(1, 1001):
        found, wanted = time.trailing(1000, steps), exact_trailing(1000, steps)
        theirs = np.round(np.arange(1000, 0, -1000 / steps)) - 1
        if len(theirs) == steps:
            assert found.tolist() == theirs.tolist()
            astray += [steps] if off(theirs, wanted) else []
            continue
        longer.append(steps)
        assert len(theirs) == steps + 1 and theirs[-1] == -1
        assert len(found) == steps
        # The first N of theirs, and right; 976 among them has halves too.
        assert found.tolist() == wanted or (
            steps == 976 and all(half((976 - k) * 1000, 976) for k in off(found, wanted))
        )
    assert (len(longer), longer[:5]) == (62, [61, 103, 121, 122, 201])
    assert (len(astray), astray[:5]) == (49, [48, 96, 112, 144, 176])


def test_linspace_beside_diffusers():
    """Equal but for a single step, which starts at 0 there; at 92 N a half went astray in both."""
    astray = 0
    for steps in range(2, 1001):
        theirs = np.linspace(0, 999, steps).round()[::-1]
        assert time.linspace(1000, steps).tolist() == theirs.tolist()
        astray += bool(off(theirs, exact_linspace(1000, steps)))
    assert astray == 92
    assert time.linspace(1000, 1).tolist() == [999]


def test_published_timesteps():
    """Lin et al. 2024, table 2: T = 1000, ten steps, counted from 1 there."""
    assert (time.leading(1000, 10) + 1).tolist() == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert (time.linspace(1000, 10) + 1).tolist() == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    assert (time.trailing(1000, 10) + 1).tolist() == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]


# ---------------------------------------------------------------- even in a function of sigma, by the papers

ends = st.tuples(st.floats(1e-3, 1), st.floats(1.5, 200))


def power_mean(low, high, weight, rho):
    """Karras et al. 2022, equation 5."""
    low, high = mpmath.mpf(low) ** (1 / mpmath.mpf(rho)), mpmath.mpf(high) ** (1 / mpmath.mpf(rho))
    return (high + weight * (low - high)) ** mpmath.mpf(rho)


@EXAMPLES
@given(ends=ends, steps=st.integers(2, 60), rho=st.floats(0.5, 12))
def test_karras(ends, steps, rho):
    low, high = ends
    found = sigma.karras(high, low, steps, rho)
    with mpmath.workdps(50):
        for k in range(steps):
            wanted = power_mean(low, high, mpmath.mpf(k) / (steps - 1), rho)
            # The ramp keeps an error relative to its larger end, and a small sigma feels that.
            amplified = max(1, (high / wanted) ** (1 / mpmath.mpf(rho)))
            assert abs(found[k] - wanted) <= 4e-16 * (2 + rho) * amplified * wanted
    assert (found[0], found[-1]) == (high, low)


def test_karras_of_the_paper():
    """CIFAR-10 with 18 steps: sigma from 80 to 0.002 with rho = 7."""
    found = sigma.karras(80.0, 0.002, 18)
    with mpmath.workdps(50):
        wanted = [float(power_mean("0.002", 80, mpmath.mpf(k) / 17, 7)) for k in range(18)]
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    assert np.round(found[:4], 3).tolist() == [80.0, 57.586, 40.786, 28.375]


@EXAMPLES
@given(ends=ends, steps=st.integers(2, 200))
def test_exponential_and_lu_are_even_in_log_sigma(ends, steps):
    low, high = ends
    wanted = high * (low / high) ** (np.arange(steps) / (steps - 1))
    for found in (sigma.exponential(high, low, steps), sigma.lu(high, low, steps)):
        np.testing.assert_allclose(found, wanted, rtol=2e-14)
        assert (found[0], found[-1]) == (high, low)


@EXAMPLES
@given(low=st.floats(1e-3, 0.1), high=st.floats(0.2, 0.9), steps=st.integers(2, 60), rho=st.floats(0.5, 8))
def test_lu_with_other_powers(low, high, steps, rho):
    """Even in lambda^(1/rho), where lambda = -log sigma is positive throughout."""
    found = sigma.lu(high, low, steps, rho)
    roots = (-np.log(found)) ** (1 / rho)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / (steps - 1), rtol=1e-8)
    assert (found[0], found[-1]) == (high, low)


def test_lu_needs_one_sign():
    with pytest.raises(ValueError, match="changes sign"):
        Lu(rho=2.0).levels(EDM, 5)


@EXAMPLES
@given(ends=ends, steps=st.integers(2, 60), a=st.floats(0.3, 3), b=st.floats(0.3, 3))
def test_beta(ends, steps, a, b):
    low, high = ends
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps), a, b)
    np.testing.assert_allclose(sigma.beta(high, low, steps, a, b), low + quantiles * (high - low), rtol=1e-9)


def test_beta_is_even_for_the_uniform_distribution():
    np.testing.assert_allclose(sigma.beta(10.0, 1.0, 10, 1.0, 1.0), np.arange(10.0, 0.0, -1.0), rtol=1e-13)


# ---------------------------------------------------------------- shifts


@EXAMPLES
@given(u=st.floats(0, 1), shift=st.floats(0.05, 20), again=st.floats(0.05, 20))
def test_shift(u, shift, again):
    moved = flow.shift_flow(u, shift)
    assert 0 <= moved <= 1 + 1e-15
    assert moved * (1 - u) == pytest.approx(
        shift * u * (1 - moved), rel=1e-12, abs=1e-14
    )  # the ratio is multiplied
    assert flow.shift_flow(moved, again) == pytest.approx(flow.shift_flow(u, shift * again), rel=1e-12)
    assert flow.shift_flow(moved, 1 / shift) == pytest.approx(u, rel=1e-12)
    assert flow.shift_flow(u, 1.0) == u


def test_shift_of_the_paper():
    """Esser et al. 2024, equation 23: t_m = √(m/n) t_n / (1 + (√(m/n) - 1) t_n); resolution 1024 after 256 takes 3 or so."""
    t_n, ratio = Fraction(1, 4), 3
    assert flow.shift_flow(float(t_n), 3.0) == float(ratio * t_n / (1 + (ratio - 1) * t_n))
    assert (flow.shift_flow(0.0, 3.0), flow.shift_flow(1.0, 3.0)) == (0.0, 1.0)


@pytest.mark.parametrize("shift", [0.0, -1.0, np.nan])
def test_shift_refuses(shift):
    with pytest.raises(ValueError, match="shift"):
        flow.shift_flow(0.5, shift)
    with pytest.raises(ValueError, match="shift"):
        Shifted(Trailing(), shift).levels(FLOW, 4)


@EXAMPLES
@given(steps=st.integers(1, 300), shift=st.floats(0.4, 12))
def test_shifted_flow(steps, shift):
    u = np.asarray([1 - k / steps for k in range(steps)])
    levels = Shifted(Trailing(), shift).levels(FLOW, steps)
    np.testing.assert_allclose(levels.cur.sigma_t, shift * u / (1 + (shift - 1) * u), rtol=1e-12)
    np.testing.assert_allclose(levels.cur.t, 1000 * levels.cur.sigma_t, rtol=1e-15)
    np.testing.assert_allclose(levels.cur.alpha_t, 1 - levels.cur.sigma_t, atol=3e-16)


def test_no_shift():
    np.testing.assert_allclose(
        Shifted(Trailing()).levels(FLOW, 9).cur.sigma_t, Trailing().levels(FLOW, 9).cur.sigma_t, rtol=1e-13
    )


def test_shifts_compose_on_any_process():
    base = Karras(sigma_max=5.0, sigma_min=0.5)
    for schedule in (DDPM, VP(), VE(), Cosine(), FLOW, EDM):
        once = Shifted(base, 6.0).levels(schedule, 7)
        np.testing.assert_allclose(
            once.cur.karras_sigma, 6 * base.levels(schedule, 7).cur.karras_sigma, rtol=1e-12
        )
        twice = Shifted(Shifted(base, 2.0), 3.0).levels(schedule, 7)
        np.testing.assert_allclose(twice.cur.karras_sigma, once.cur.karras_sigma, rtol=1e-12)


@EXAMPLES
@given(terminal=st.floats(0.01, 0.95), steps=st.integers(2, 60), shift=st.floats(0.5, 5))
def test_stretch(terminal, steps, shift):
    u = np.asarray([1 - k / steps for k in range(steps)])
    u = shift * u / (1 + (shift - 1) * u)
    found = flow.stretch_to_terminal(u, terminal)
    assert (found[0], found[-1]) == (1.0, pytest.approx(terminal, rel=1e-13))
    # 1 - sigma is scaled by one factor.
    np.testing.assert_allclose((1 - found[1:]) * (1 - u[-1]), (1 - u[1:]) * (1 - terminal), rtol=1e-11)
    levels = Shifted(Trailing(), shift, terminal).levels(FLOW, steps)
    np.testing.assert_allclose(levels.cur.sigma_t, found, rtol=1e-11)


def test_stretch_refuses():
    for terminal in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="terminal"):
            flow.stretch_to_terminal(np.asarray([1.0, 0.5]), terminal)


def test_dynamic_shift():
    assert dynamic_shift(1.15) == pytest.approx(float(mpmath.exp(mpmath.mpf("1.15"))), rel=1e-15)
    assert dynamic_shift(1.15, "linear") == 1.15
    with pytest.raises(ValueError, match="kind"):
        dynamic_shift(1.0, "cosine")


# ---------------------------------------------------------------- every N


def always(steps):
    return True


def never(steps):
    return False


def alone(steps):
    return steps == 1


INSIDE = {"sigma_max": 20.0, "sigma_min": 0.05}
# spacing, schedule, for which N it has levels that end at 0, and at the schedule's least noisy level
EVERY_N = {
    "leading": (Leading(), DDPM, always, never),
    "leading, offset 1": (Leading(steps_offset=1), DDPM, lambda n: n < 1000, lambda n: n < 1000),
    "leading, offset 7": (Leading(steps_offset=7), DDPM, *[lambda n: (n - 1) * (1000 // n) + 7 < 1000] * 2),
    "leading, offset -1": (Leading(steps_offset=-1), DDPM, never, never),
    "trailing": (Trailing(), DDPM, always, lambda n: round(Fraction(1000, n)) > 1),
    "linspace": (Linspace(), DDPM, always, alone),
    "linspace, unrounded": (Linspace(rounded=False), DDPM, always, None),
    "karras": (Karras(), DDPM, always, alone),
    "karras, inside": (Karras(**INSIDE), DDPM, always, always),
    "exponential": (Exponential(), DDPM, always, alone),
    "exponential, inside": (Exponential(**INSIDE), DDPM, always, always),
    "beta": (Beta(), DDPM, always, alone),
    "beta, inside": (Beta(**INSIDE), DDPM, always, always),
    "lu": (Lu(), DDPM, always, alone),
    "lu, inside": (Lu(**INSIDE), DDPM, always, always),
    "shifted up": (Shifted(Karras(**INSIDE), 3.0), DDPM, always, always),
    "shifted down": (Shifted(Karras(**INSIDE), 0.5), DDPM, always, always),
    "shifted out": (Shifted(Leading(), 0.5), DDPM, never, never),
    "flow, leading": (Leading(), FLOW, always, never),
    "flow, trailing": (Trailing(), FLOW, always, always),
    "flow, linspace": (Linspace(), FLOW, always, alone),
    "flow, shifted": (Shifted(Trailing(), 3.0), FLOW, always, always),
    "flow, shifted to a terminal": (Shifted(Trailing(), 3.0, 0.1), FLOW, lambda n: n > 1, lambda n: n > 1),
    "flow, karras": (Karras(), FLOW, never, never),
    "flow, karras, inside": (Karras(**INSIDE), FLOW, always, always),
}


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("case", EVERY_N)
def test_every_number_of_steps(case, final):
    """Exactly N strictly descending levels and the end, or an error that names what cannot be met."""
    spacing, schedule, zero, least = EVERY_N[case]
    exists = zero if final == "zero" else least
    if exists is None:
        return  # depends on rounding: see test_ends_that_meet
    spacing = replace(spacing, final=final)
    end = 0.0 if final == "zero" else schedule.sigma_min
    # Continuous time has 1000 steps too, but the last of them lies at u_min: see test_ends_that_meet.
    for steps in range(1, 1001) if schedule is DDPM else [*range(1, 100), *range(100, 999, 23), 998, 999]:
        if not exists(steps):
            with pytest.raises(ValueError, match=r"below|outside|range|sigma_max|sigmas|terminal"):
                spacing.levels(schedule, steps)
            continue
        levels = spacing.levels(schedule, steps)
        ratios = np.append(levels.cur.karras_sigma, levels.nxt.karras_sigma[-1])
        assert levels.steps == steps and ratios.shape == (steps + 1,)
        assert ratios[-1] == end and (np.diff(ratios) < 0).all()
        assert (levels.nxt.karras_sigma[:-1] == ratios[1:-1]).all()
        assert (np.diff(levels.cur.t) < 0).all() and np.isfinite(levels.cur.t).all()
        low, high = schedule.t_range
        assert levels.cur.t.min() >= low and levels.cur.t.max() <= high


@EXAMPLES
@given(sizes=sizes)
def test_other_numbers_of_training_timesteps(sizes):
    total, steps = sizes
    # Betas small enough that no sigma of 3000 timesteps meets another in float64.
    schedule = BetaSchedule.named("linear", total, beta_start=0.1 / (total + 1), beta_end=10.0 / (total + 20))
    for spacing in (Leading(), Trailing(), Linspace(), Linspace(rounded=False), Exponential(), Karras()):
        if steps > 1 and total == 1:
            continue
        if total == 1 and isinstance(spacing, Exponential | Karras):
            continue
        levels = spacing.levels(schedule, steps)
        assert levels.steps == steps and levels.nxt.sigma_t[-1] == 0


@pytest.mark.parametrize(
    "spacing", [Leading(), Trailing(), Linspace(), Karras(), Exponential(), Beta(), Lu()]
)
@pytest.mark.parametrize("steps", [0, -1, 2.0, None, "10", True])
def test_number_of_steps_refused(spacing, steps):
    for schedule in (DDPM, VP()):
        with pytest.raises((ValueError, TypeError), match="steps"):
            spacing.levels(schedule, steps)


@pytest.mark.parametrize("spacing", [Leading(), Trailing(), Linspace(), Linspace(rounded=False)])
def test_more_steps_than_training_timesteps(spacing):
    with pytest.raises(ValueError, match="1000"):
        spacing.levels(DDPM, 1001)


@pytest.mark.parametrize(
    "schedule", [VP(), VE(), Cosine(), Crash(), FLOW, EDM], ids=lambda s: type(s).__name__
)
def test_even_in_continuous_time(schedule):
    low, high = schedule.t_range
    progress = {
        Leading(): [0.75, 0.5, 0.25, 0.0],
        Trailing(): [1.0, 0.75, 0.5, 0.25],
        Linspace(): [1.0, 2 / 3, 1 / 3, 0.0],
    }
    for spacing, where in progress.items():
        found = spacing.levels(schedule, 4).cur.t
        if isinstance(schedule, EDMSchedule):
            wanted = low + (high - low) * np.asarray(where)
        elif isinstance(schedule, Crash):
            sigma_t = np.sin(np.pi / 2 * np.asarray(where)) ** 2
            wanted = np.maximum(np.arcsin(sigma_t) * 2 / np.pi, low)
        else:
            wanted = np.maximum(high * np.asarray(where), low)
        np.testing.assert_allclose(found, wanted, rtol=1e-7 if isinstance(schedule, Crash) else 1e-14)


# ---------------------------------------------------------------- ends and lists


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (Karras(sigma_max=1.0, sigma_min=2.0), "sigma_min"),
        (Karras(sigma_min=0.0), "sigma_min"),
        (Karras(sigma_max=np.inf), "sigma_max"),
        (Karras(sigma_max=np.nan), "sigma_max"),
        (Karras(sigma_max=1000.0), "outside the schedule's range"),
        (Exponential(sigma_min=1e-6), "outside the schedule's range"),
        (Trailing(final="one"), "final='one'"),
        (Trailing(final=-1.0), "final=-1.0"),
        (Trailing(final=1e9), "outside the schedule's range"),
        (Trailing(final=50.0), "sigma"),
    ],
)
def test_ends_refused(spacing, message):
    with pytest.raises(ValueError, match=message):
        spacing.levels(DDPM, 10)


@pytest.mark.parametrize("rho", [0.0, -7.0, np.inf, np.nan])
def test_karras_rho_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        Karras(rho=rho)


def test_one_level_needs_no_range():
    one = Karras(sigma_max=5.0, sigma_min=5.0)
    assert one.levels(DDPM, 1).cur.karras_sigma == pytest.approx([5.0], rel=1e-15)
    with pytest.raises(ValueError, match="sigma_min=5"):
        one.levels(DDPM, 2)


def test_published_constants():
    """Karras et al. 2022, table 1: rho = 7. Lee et al. 2024, section 4: alpha = beta = 0.6."""
    assert Karras() == Karras(rho=7.0) and (sigma.karras(9.0, 1.0, 4) == sigma.karras(9.0, 1.0, 4, 7.0)).all()
    assert (
        Beta() == Beta(a=0.6, b=0.6) and (sigma.beta(9.0, 1.0, 4) == sigma.beta(9.0, 1.0, 4, 0.6, 0.6)).all()
    )
    assert Lu() == Lu(rho=1.0) and (sigma.lu(9.0, 1.0, 4) == sigma.lu(9.0, 1.0, 4, 1.0)).all()


def test_final_level_of_choice():
    levels = Trailing(final=0.02).levels(DDPM, 10)
    assert levels.nxt.karras_sigma[-1] == pytest.approx(0.02, rel=1e-14)


def test_timesteps():
    levels = Timesteps([999, 400, 399.5, 0]).levels(DDPM)
    assert levels.cur.t.tolist() == [999, 400, 399.5, 0] and levels.nxt.sigma_t[-1] == 0
    np.testing.assert_allclose(
        levels.cur.karras_sigma[[0, 1, 3]], DDPM.karras_sigmas[[999, 400, 0]], rtol=1e-13
    )
    assert Timesteps(np.asarray([2.0])).levels(DDPM, 1).steps == 1


def test_sigmas():
    levels = Sigmas([20.0, 3.0, 0.5]).levels(DDPM, 3)
    np.testing.assert_allclose(levels.cur.karras_sigma, [20.0, 3.0, 0.5], rtol=1e-15)
    np.testing.assert_allclose(DDPM.level(levels.cur.t).karras_sigma, [20.0, 3.0, 0.5], rtol=1e-12)
    assert Sigmas([np.inf, 1.0]).levels(FLOW).cur.alpha_t.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("kind", [Timesteps, Sigmas])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([3.0, np.nan, 1.0], r"\[1\]=nan"),
        ([np.nan], r"\[0\]=nan"),
        ([1.0, 2.0, 3.0], "not below"),
        ([3.0, 2.0, 2.0], "not below"),
        ([3.0, -1.0], "outside|>= 0"),
        ([], "empty"),
        ([[3.0, 2.0], [1.0, 0.5]], "shape"),
        (3.0, r"shape|object of type"),
        ([2000.0, 1.0], "outside"),
    ],
)
def test_lists_refused(kind, values, message):
    with pytest.raises((ValueError, TypeError), match=message):
        kind(values).levels(DDPM)


def test_lists_and_steps_must_agree():
    for spacing in (Timesteps([3, 2]), Sigmas([3.0, 2.0])):
        with pytest.raises(ValueError, match=r"steps=3.*2 levels"):
            spacing.levels(DDPM, 3)


# ---------------------------------------------------------------- known gaps


@pytest.mark.parametrize(
    ("spacing", "schedule", "every"),
    [
        (
            Linspace(rounded=False, final="sigma_min"),
            DDPM,
            range(2, 1001),
        ),  # t = 0 is interpolated: 991 of 999 N
        (Trailing(final="sigma_min"), FLOW, [1000]),  # 1 - 999 / 1000 is 0.0010000000000000009
    ],
)
def test_ends_that_meet(spacing, schedule, every):
    for steps in every:
        with pytest.raises(ValueError, match="below"):
            spacing.levels(schedule, steps)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (VP(), [5.0]),
        (VP(), [0.5, 1e-5]),
        (VE(), [1.5, 0.5]),
        (Cosine(), [4.6, 0.5]),
        (FLOW, [0.5]),
        (EDM, [500.0, 5.0]),
    ],
)
def test_timesteps_outside_a_continuous_process(schedule, times):
    with pytest.raises(ValueError, match="outside"):
        Timesteps(times).levels(schedule)


@pytest.mark.parametrize(
    ("spacing", "schedule", "steps", "message"),
    [
        (Shifted(Trailing(), 3.0), DDPM, 20, "shift"),  # several levels cut to sigma_max
        (Shifted(Trailing(), 3.0, 0.1), FLOW, 1, "terminal"),  # 1 - sigma is 0: nothing to stretch
        (Leading(), VP(), 1000, "u_min|least"),  # two levels cut to u_min
        (Leading(), Crash(), 50, "u_min|least"),
        (Leading(final="sigma_min"), DDPM, 10, "final"),  # the last call is there already
        (Lu(2.0, 1.5, rho=2.0), EDM, 4, "below 1|positive"),  # lambda does not change sign here
        (Trailing(final=np.nan), DDPM, 4, "final"),
    ],
)
def test_errors_that_say_why(spacing, schedule, steps, message):
    with pytest.raises(ValueError, match=message):
        spacing.levels(schedule, steps)


@pytest.mark.parametrize("options", [{"a": -1.0}, {"b": 0.0}, {"a": np.nan}])
def test_beta_parameters_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        Beta(**options)
