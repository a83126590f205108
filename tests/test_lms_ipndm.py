"""LMS and iPNDM: exact coefficients, identities, special cases, order of convergence with and without a history."""

from fractions import Fraction

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import (
    DDIM,
    IPNDM,
    LMS,
    VP,
    BetaSchedule,
    Clip,
    Cosine,
    Crash,
    EDMSchedule,
    Euler,
    IPNDMScheduler,
    Karras,
    Levels,
    LMSDiscreteScheduler,
    RectifiedFlow,
    State,
    Trailing,
    init,
    update,
)
from anystep.predictions import PREDICTIONS
from anystep.samplers._blind_ipndm import BlindIPNDM
from anystep.samplers._short_lms import ShortLMS
from anystep.samplers.lms import lagrange_integrals

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=60)
X, NOISE, X0, FIRST = range(4)
SAMPLERS = [LMS(1), LMS(2), LMS(3), LMS(), LMS(6), IPNDM(1), IPNDM(2), IPNDM(3), IPNDM()]
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
each_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)


def uneven_chain(steps, unit, clean, seed):
    """Levels in any coordinates whose ratios drop by 2 % to a factor of 20."""
    rng = np.random.default_rng(seed)
    ratios = 10.0 ** (rng.uniform(-1, 2.5) - np.append(0.0, np.cumsum(10.0 ** rng.uniform(-2, 0.1, steps))))
    if clean:
        ratios[-1] = 0.0
    alpha_t = {
        "vp": 1 / np.sqrt(1 + ratios**2),
        "karras": np.ones(steps + 1),
        "flow": 1 / (1 + ratios),
        "any": 10.0 ** rng.uniform(-1, 1, steps + 1),
    }[unit]
    return Levels.chain(np.arange(steps + 1)[::-1], alpha_t, alpha_t * ratios)


def chains(least=1):
    units = st.sampled_from(["any", "vp", "karras", "flow"])
    return st.builds(uneven_chain, st.integers(least, 8), units, st.booleans(), st.integers(0, 2**32 - 1))


# ---------------------------------------------------------------- coefficients

ADAMS_BASHFORTH = {
    1: "1",
    2: "3/2 -1/2",
    3: "23/12 -16/12 5/12",
    4: "55/24 -59/24 37/24 -9/24",
    5: "1901/720 -2774/720 2616/720 -1274/720 251/720",
}


def exact_integrals(nodes, end):
    """By solving for weights that integrate every power, in 60 digits: no Lagrange polynomial is used."""
    with mpmath.workdps(60):
        nodes, end = [mpmath.mpf(float(v)) for v in nodes], mpmath.mpf(float(end))
        count = len(nodes)
        powers = mpmath.matrix([[node**p for node in nodes] for p in range(count)])
        wanted = mpmath.matrix([(end ** (p + 1) - nodes[0] ** (p + 1)) / (p + 1) for p in range(count)])
        return list(mpmath.lu_solve(powers, wanted))


@pytest.mark.parametrize("order", ADAMS_BASHFORTH)
@pytest.mark.parametrize("step", [1.0, -0.25, 3e-5])
def test_weights_of_even_steps(order, step):
    """Hairer, Nørsett, Wanner, section III.1, equation 1.5 and table 1.1."""
    found = lagrange_integrals(1.5 - step * np.arange(order), np.asarray(1.5 + step)) / step
    wanted = [float(Fraction(text)) for text in ADAMS_BASHFORTH[order].split()]
    np.testing.assert_allclose(found, wanted, rtol=1e-10 if step == 3e-5 else 1e-14)


@EXAMPLES
@given(levels=chains(), order=st.integers(1, 8))
def test_integrals_are_exact(levels, order):
    ratios = np.append(levels.cur.karras_sigma, levels.nxt.karras_sigma[-1])
    for i in range(levels.steps):
        nodes = ratios[: i + 1][::-1][:order]
        found = lagrange_integrals(nodes, ratios[i + 1])
        for one, other in zip(found, exact_integrals(nodes, ratios[i + 1]), strict=True):
            assert abs(one - other) <= 1e-12 * abs(other)


def test_integrals_of_many_steps_at_once():
    rng = np.random.default_rng(0)
    ratios = np.sort(rng.uniform(0, 5, 12))[::-1]
    nodes = np.stack([ratios[i : i + 4][::-1] for i in range(8)])
    together = lagrange_integrals(nodes, ratios[4:])
    alone = [lagrange_integrals(part, end) for part, end in zip(nodes, ratios[4:], strict=True)]
    np.testing.assert_array_equal(together, alone)


@EXAMPLES
@given(levels=chains(), order=st.integers(1, 5))
def test_lms_rows(levels, order):
    """Row by row: y' = y + Σ c_j ε̂_j for y = x / alpha, with x = alpha x̂₀ + sigma ε̂."""
    rows, ratios = LMS(order).rows(levels), np.append(levels.cur.karras_sigma, levels.nxt.karras_sigma[-1])
    for i, row in enumerate(rows):
        count = min(i + 1, order)
        c = [float(v) for v in exact_integrals(ratios[: i + 1][::-1][:count], ratios[i + 1])]
        alpha_n, sigma_c, alpha_c = levels.nxt.alpha_t[i], levels.cur.sigma_t[i], levels.cur.alpha_t[i]
        expected = np.zeros(2 + order)
        expected[NOISE], expected[X0] = alpha_n * (sigma_c / alpha_c + c[0]), alpha_n
        expected[FIRST : FIRST + count - 1] = alpha_n * np.asarray(c[1:])
        size = alpha_n * (ratios[i] + abs(np.asarray(c)).sum())
        assert (abs(row[0] - expected) <= 1e-12 * size + 1e-12 * abs(expected)).all()


@EXAMPLES
@given(levels=chains(), order=st.integers(1, 4))
def test_ipndm_rows(levels, order):
    """Liu et al. 2022, equation 11, in alpha and sigma, with the weights of equation 12 and its shorter kin."""
    rows = IPNDM(order).rows(levels)
    for i, row in enumerate(rows):
        count = min(i + 1, order)
        w = [float(Fraction(text)) for text in ADAMS_BASHFORTH[count].split()]
        cur, nxt = levels.cur[i], levels.nxt[i]
        carry = nxt.alpha_t / cur.alpha_t
        slope = nxt.sigma_t - carry * cur.sigma_t
        # The row acts on (x̂₀, ε̂, memories) with x = alpha x̂₀ + sigma ε̂.
        by_clean = row[0, X] * cur.alpha_t + row[0, X0]
        by_noise = row[0, X] * cur.sigma_t + row[0, NOISE]
        size = nxt.sigma_t + carry * cur.sigma_t
        assert abs(by_clean - carry * cur.alpha_t) <= 1e-14 * by_clean
        assert abs(by_noise - (carry * cur.sigma_t + slope * w[0])) <= 1e-13 * size
        for k in range(order - 1):
            wanted = slope * w[k + 1] if k + 1 < count else 0.0
            assert abs(row[0, FIRST + k] - wanted) <= 1e-13 * size


@each_sampler
@EXAMPLES
@given(levels=chains())
def test_right_estimates_land_on_the_next_level(sampler, levels):
    """Where ε̂ never changes, alpha x_0 + sigma ε becomes alpha_nxt x_0 + sigma_nxt ε, whatever the history."""
    rows = sampler.rows(levels)[:, 0]
    cur, nxt = levels.cur, levels.nxt
    clean = rows[:, X] * cur.alpha_t + rows[:, X0]
    np.testing.assert_allclose(clean, nxt.alpha_t, rtol=1e-14)
    noise = rows[:, X] * cur.sigma_t + rows[:, NOISE] + rows[:, FIRST:].sum(axis=1)
    size = (
        abs(rows[:, X] * cur.sigma_t)
        + abs(rows[:, NOISE])
        + abs(rows[:, FIRST:]).sum(axis=1)
        + cur.sigma_t * clean
    )
    assert (abs(noise - nxt.sigma_t) <= 1e-13 * size).all()


@each_sampler
def test_memories_are_the_last_estimates_and_only_move(sampler):
    levels = uneven_chain(7, "vp", True, 3)
    plan = sampler.plan(levels, "epsilon")
    assert plan.memories == sampler.order_max - 1 and plan.noises == 0
    state, seen = init(plan, np.ones(2)), []
    for i in range(len(plan)):
        output = np.full(2, float(i))
        state = update(plan, i, state, output)
        seen = [output, *seen][: plan.memories]
        assert all(kept is given for kept, given in zip(state.memory, seen, strict=False))


@each_sampler
@EXAMPLES
@given(levels=chains(least=5))
def test_no_row_reads_what_no_call_has_written(sampler, levels):
    rows = sampler.rows(levels)
    for i in range(levels.steps):
        assert (rows[i, 0, FIRST + min(i, sampler.order_max - 1) :] == 0).all()


# ---------------------------------------------------------------- special cases


@each_prediction
@EXAMPLES
@given(levels=chains())
def test_one_call_a_step_is_ddim(predicts, levels):
    """As is the first step of every other, and a run of one step."""
    ddim = DDIM().plan(levels, predicts).folded[:, 0, :2]
    euler = Euler().plan(levels, predicts).folded[:, 0, :2]
    for sampler in SAMPLERS:
        found = sampler.plan(levels, predicts).folded[:, 0]
        count = levels.steps if sampler.order_max == 1 else 1
        for other in (ddim, euler):
            # Both act alike on what x and the output can be: (x_0, ε) = (1, 0) and (0, 1).
            for unit in ((1.0, 0.0), (0.0, 1.0)):
                level = levels.model_level
                p, q = PREDICTIONS[predicts]().target(level)
                x, m = level.alpha_t * unit[0] + level.sigma_t * unit[1], p * unit[0] + q * unit[1]
                one, two = (
                    table[:count, 0] * x[:count] + table[:count, 1] * m[:count] for table in (found, other)
                )
                size = (abs(other[:, 0] * x) + abs(other[:, 1] * m) + abs(x))[:count]
                assert (abs(one - two) <= 1e-11 * size).all()


@each_prediction
def test_a_bound_on_the_estimate_bounds_every_slope(predicts):
    """With one call, Euler's; with more, ε̂ = (x - alpha x̂₀) / sigma with the bounded x̂₀, remembered so."""
    levels, rng = Trailing().levels(BetaSchedule.named("linear"), 5), np.random.default_rng(0)
    x, *outputs = rng.standard_normal((6, 2, 4))
    euler, clip = Euler().plan(levels, predicts, Clip(0.5)), Clip(0.5)
    for sampler in (LMS(1), IPNDM(1)):
        plan = sampler.plan(levels, predicts, clip)
        for i in range(5):
            one, other = (update(p, i, init(p, x), outputs[0]).x for p in (plan, euler))
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)
    for sampler in (LMS(3), IPNDM(3)):
        plan, free = sampler.plan(levels, predicts, clip), sampler.plan(levels, "epsilon")
        bound, told = init(plan, x), init(free, x)
        for i, output in enumerate(outputs):
            a, b = plan.estimate[i]
            x0 = np.clip(a * bound.x + b * output, -0.5, 0.5)
            eps = (told.x - levels.cur.alpha_t[i] * x0) / levels.cur.sigma_t[i]
            bound, told = update(plan, i, bound, output), update(free, i, told, eps)
            np.testing.assert_allclose(bound.x, told.x, rtol=0, atol=1e-10)


def test_even_in_karras_sigma_the_two_are_one():
    levels = Levels.chain(np.arange(9)[::-1], np.ones(9), np.linspace(4, 0, 9))
    for order in (1, 2, 3, 4):
        np.testing.assert_allclose(LMS(order).rows(levels), IPNDM(order).rows(levels), rtol=0, atol=1e-14)


@each_sampler
@EXAMPLES
@given(levels=chains())
def test_karras_coordinates_give_the_same_sample_up_to_scale(sampler, levels):
    own, moved = sampler.rows(levels), sampler.rows(levels.to_karras())
    size = abs(own[:, 0]).sum(axis=1) / levels.nxt.alpha_t + levels.cur.karras_sigma
    assert (abs(moved[:, 0, 1:] - own[:, 0, 1:] / levels.nxt.alpha_t[:, None]) <= 1e-12 * size[:, None]).all()
    np.testing.assert_array_equal(moved[:, 1:], own[:, 1:])


def test_pure_noise_has_no_slope():
    """There the step is DDIM's; LMS leaves the call out of later steps, iPNDM, which has even steps in mind, does not."""
    levels = Levels.chain([3, 2, 1, 0], [0.0, 0.6, 0.8, 1.0], [1.0, 0.8, 0.6, 0.0])
    rest = Levels.chain([2, 1, 0], [0.6, 0.8, 1.0], [0.8, 0.6, 0.0])
    for sampler in (LMS(3), IPNDM(3)):
        rows = sampler.rows(levels)
        assert rows[0, 0].tolist() == [0, 0.8, 0.6, 0, 0]
        assert np.isfinite(rows).all()
    np.testing.assert_allclose(LMS(3).rows(levels)[1:, 0], LMS(3).rows(rest)[:, 0], rtol=1e-14)
    assert IPNDM(3).rows(levels)[1, 0, FIRST] != 0
    for predicts in ("v_prediction", "sample", "flow_prediction"):
        for sampler in (LMS(), IPNDM()):
            assert np.isfinite(sampler.plan(levels, predicts).folded).all()


@each_prediction
@pytest.mark.parametrize("steps", [1, 2, 1000])
@pytest.mark.parametrize("moved", [False, True], ids=["x_t", "x_t/alpha"])
def test_a_perfect_model_keeps_the_sample_on_its_line(predicts, steps, moved):
    levels = Trailing().levels(BetaSchedule.named("linear"), steps)
    levels = levels.to_karras() if moved else levels
    x0, eps = np.random.default_rng(0).standard_normal((2, 2, 3))
    kind = PREDICTIONS[predicts]()
    for sampler in (LMS(), IPNDM()):
        plan = sampler.plan(levels, predicts)
        state = init(plan, plan.alpha[0] * x0 + plan.sigma[0] * eps)
        for i in range(len(plan)):
            p, q = kind.target(levels.model_level[i])
            state = update(plan, i, state, p * x0 + q * eps)
            line = plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * eps
            assert abs(state.x - line).max() <= 1e-10 * (1 + plan.sigma[i + 1])
        assert len(plan) == steps


@EXAMPLES
@given(levels=chains(least=4), order=st.integers(1, 4), seed=st.integers(0, 99))
def test_lms_is_exact_for_polynomials(levels, order, seed):
    """dy/dκ = p(κ) of degree below the order, with the history that a run would have."""
    rng = np.random.default_rng(seed)
    p = np.polynomial.Polynomial(rng.uniform(-1, 1, order)) if order else 0
    ratios = np.append(levels.cur.karras_sigma, levels.nxt.karras_sigma[-1]) / levels.cur.karras_sigma[0]
    unit = Levels.chain(np.arange(len(ratios))[::-1], np.ones(len(ratios)), ratios)
    plan = LMS(order).plan(unit, "epsilon")
    y = p.integ()
    for i in range(order - 1, len(plan)):
        memory = tuple(np.asarray([p(ratios[i - k])]) for k in range(1, order))
        moved = update(plan, i, State(np.asarray([y(ratios[i])]), memory), np.asarray([p(ratios[i])]))
        weights = abs(plan.folded[i, 0]).sum()
        assert abs(moved.x[0] - y(ratios[i + 1])) <= 1e-13 * (1 + weights)


# ---------------------------------------------------------------- order of convergence

# From a level where ε̂ bends: at high noise it is straight, and the error of a first step is too small to be seen.
HIGH, LOW, MEAN, STD = 1.0, 0.1, 0.3, 0.6
COUNTS = (128, 256, 512)
STARTS = HIGH * np.linspace(-2, 2, 5)
SCHEDULES = {"vp": VP(), "cosine": Cosine(), "flow": RectifiedFlow(), "edm": EDMSchedule()}


def solution(ratio):
    """y = x / alpha on the probability flow of data N(MEAN, STD²), from y = STARTS at κ = HIGH."""
    return MEAN + (STARTS - MEAN) * np.sqrt((STD**2 + ratio**2) / (STD**2 + HIGH**2))


def slope_at(y, ratio):
    """ε̂ = dy/dκ of the exact model."""
    return (y - MEAN) * ratio / (STD**2 + ratio**2)


def widths(grid, steps):
    if grid == "alternating":
        return np.tile([1.0, 3.0], steps // 2)
    if grid == "random":
        rng = np.random.default_rng(0)
        found = rng.uniform(0.5, 1.5, 32)
        while len(found) < steps:
            cut = rng.uniform(0.4, 0.6, len(found))
            found = np.stack([found * cut, found * (1 - cut)], -1).ravel()
        return found[:steps]
    return np.ones(steps)


def levels_of(schedule, grid, steps):
    """From κ = HIGH to LOW: even in κ, in κ^(1/7), in t, or unevenly in t."""
    progress = np.append(0.0, np.cumsum(widths(grid, steps)))
    progress /= progress[-1]
    if grid == "even in sigma":
        level = schedule.at(HIGH + progress * (LOW - HIGH))
    elif grid == "karras":
        level = schedule.at((HIGH ** (1 / 7) + progress * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7)
    else:
        first, last = (schedule.timestep(end) for end in (HIGH, LOW))
        level = schedule.level(first + progress * (last - first))
    return Levels.chain(level.t, level.alpha_t, level.sigma_t)


def error(sampler, levels, *, warm):
    """At the end of a run; ``warm`` begins where the history is full, with exact values."""
    plan = sampler.plan(levels, "epsilon")
    ratios = plan.sigma / plan.alpha
    first = plan.memories if warm else 0
    past = tuple(slope_at(solution(ratios[first - k]), ratios[first - k]) for k in range(1, first + 1))
    state = State(plan.alpha[first] * solution(ratios[first]), past if warm else init(plan, STARTS).memory)
    for i in range(first, len(plan)):
        state = update(plan, i, state, slope_at(state.x / plan.alpha[i], ratios[i]))
    return abs(state.x / plan.alpha[-1] - solution(ratios[-1])).max()


def measured(sampler, schedule, grid, *, warm):
    errors = [error(sampler, levels_of(SCHEDULES[schedule], grid, n), warm=warm) for n in COUNTS]
    assert (np.diff(errors) < 0).all()
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


GRIDS = ["even in t", "karras", "alternating", "random"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_has_the_order_of_its_formula(schedule, grid, order):
    """Begun with a history, on any grid; measured 0.98 to 1.03 of it, on random grids 0.93.

    Cutting a step in two unevenly leaves more of its error than halving would.
    """
    found = measured(LMS(order), schedule, grid, warm=True)
    assert LMS(order).order == order
    assert (0.92 if grid == "random" else 0.97) < found / order < 1.05


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_run_of_lms_has_order_2(schedule, grid, order):
    """The error of its first step, of order 1, stays; measured 1.93 to 2.15."""
    found = measured(LMS(order), schedule, grid, warm=False)
    assert abs(found - 2) < 0.18


@pytest.mark.parametrize("schedule", ["vp", "cosine", "flow"])
@pytest.mark.parametrize("grid", ["even in t", "karras"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("warm", [False, True])
def test_ipndm_has_order_2_on_smooth_grids(schedule, grid, order, warm):
    """Measured 1.97 to 2.02, and 1.00."""
    found = measured(IPNDM(order), schedule, grid, warm=warm)
    assert abs(found - IPNDM(order).order) < 0.05


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_order_1_on_alternating_steps(schedule, order):
    found = measured(IPNDM(order), schedule, "alternating", warm=True)
    assert abs(found - 1) < 0.05


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_the_order_of_its_weights_on_steps_even_in_karras_sigma(order):
    """Measured 1.00, 2.00, 3.14, 3.98."""
    found = measured(IPNDM(order), "edm", "even in sigma", warm=True)
    assert abs(found - order) < 0.2


def test_the_measure_tells_orders_apart():
    class Off(LMS):
        def rows(self, levels):
            rows = super().rows(levels)
            rows[:, 0, FIRST:] *= 1 + 1 / levels.steps
            return rows

    assert abs(measured(Off(3), "vp", "karras", warm=True) - 3) > 0.5


# ---------------------------------------------------------------- independent references


def test_whole_run_of_lms_by_quadrature():
    """Adams-Bashforth written with scipy's quadrature and plain products, on the Karras spacing, for a nonlinear model."""
    from scipy.integrate import quad

    schedule = BetaSchedule.named("scaled_linear")
    levels = Karras().levels(schedule, 14).to_karras()
    plan = LMS().plan(levels, "epsilon")
    sigmas, model = plan.sigma, lambda x, sigma: np.tanh(x / np.hypot(sigma, 1)) + 0.1 * np.cos(x)
    x = sigmas[0] * np.random.default_rng(1).standard_normal(6)
    state, slopes = init(plan, x), []
    for i in range(14):
        state = update(plan, i, state, model(state.x, sigmas[i]))
        slopes.insert(0, model(x, sigmas[i]))
        count = min(i + 1, 4)
        for j in range(count):

            def basis(tau, i=i, j=j, count=count):
                others = [k for k in range(count) if k != j]
                return np.prod([(tau - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k]) for k in others])

            x = x + quad(basis, sigmas[i], sigmas[i + 1], epsabs=0, epsrel=1e-13)[0] * slopes[j]
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-9 * sigmas[0])


def test_whole_run_of_ipndm_by_its_formulas():
    """Liu et al. 2022, equations 11 and 12 in their letters (alpha is abar) for a v-model on the crash schedule."""
    levels = Trailing().levels(Crash(u_min=1e-9), 9)
    plan = IPNDM().plan(levels, "v_prediction")
    abar, model = np.append(levels.cur.alpha_t, 1.0) ** 2, lambda x, t: np.tanh(2 * x) * (0.3 + t)
    x = np.random.default_rng(1).standard_normal(6)
    state, past = init(plan, x), []
    for i in range(9):
        t = plan.timesteps[i]
        v = model(x, t)
        past.insert(0, np.sqrt(1 - abar[i]) * x + np.sqrt(abar[i]) * v)
        w = [Fraction(text) for text in ADAMS_BASHFORTH[min(i + 1, 4)].split()]
        e = sum(float(weight) * slope for weight, slope in zip(w, past, strict=False))
        if i == 0:
            assert abar[0] == 0
            x = np.sqrt(abar[1]) * -v + np.sqrt(1 - abar[1]) * e
        else:
            root = np.sqrt(abar[i]) * (
                np.sqrt((1 - abar[i + 1]) * abar[i]) + np.sqrt((1 - abar[i]) * abar[i + 1])
            )
            x = np.sqrt(abar[i + 1] / abar[i]) * x - (abar[i + 1] - abar[i]) / root * e
        state = update(plan, i, state, model(state.x, t))
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- the facades' own forms


@EXAMPLES
@given(levels=chains(least=4), nodes=st.integers(1, 5), kept=st.integers(4, 6))
def test_a_whole_history_makes_short_lms_lms(levels, nodes, kept):
    one, other = ShortLMS(nodes, nodes, kept).rows(levels)[:, 0], LMS(nodes).rows(levels)[:, 0]
    np.testing.assert_array_equal(one[:, : other.shape[1]], other)
    assert not one[:, other.shape[1] :].any()
    part = ShortLMS(nodes, 1, kept).rows(levels)[:, 0]
    np.testing.assert_array_equal(part[:, :FIRST], other[:, :FIRST])
    assert not part[:, FIRST:].any()


def test_blind_ipndm_differs_at_pure_noise_alone():
    levels = Trailing().levels(Crash(u_min=1e-9), 6)
    for used in (1, 2, 3, 4):
        sees, blind = BlindIPNDM(used, 3, blind=False).rows(levels), BlindIPNDM(used, 3).rows(levels)
        own = IPNDM(used).rows(levels)[:, 0]
        np.testing.assert_array_equal(sees[:, 0, : own.shape[1]], own)
        np.testing.assert_array_equal(sees[1:], blind[1:])
        assert blind[0, 0, X0] == 0 != sees[0, 0, X0]
        assert BlindIPNDM(used, 3).order == min(used, 2)


def test_facades_are_the_samplers():
    """Corrected, and from the beginning: the same numbers as anystep's own face."""
    x, lms = np.random.default_rng(0).standard_normal((2, 3)), LMSDiscreteScheduler(use_karras_sigmas=True)
    ipndm = IPNDMScheduler().corrected()
    lms.set_timesteps(9)
    ipndm.set_timesteps(9)
    pairs = [
        (lms, LMS().plan(lms._levels, "epsilon")),
        (ipndm, IPNDM().plan(Trailing().levels(Crash(u_min=1e-9), 9), "v_prediction")),
    ]
    for scheduler, plan in pairs:
        facade, state = x * plan.sigma[0], init(plan, x * plan.sigma[0])
        for i, t in enumerate(scheduler.timesteps):
            facade = scheduler.step(np.tanh(scheduler.scale_model_input(facade, t)), t, facade).prev_sample
            scaled = state.x * plan.input_scale[i]
            state = update(plan, i, state, np.tanh(scaled))
            np.testing.assert_allclose(facade, state.x, rtol=0, atol=1e-12 * plan.sigma[0])


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("order", [0, -1, 2.0, True, "4", None])
@pytest.mark.parametrize("sampler", [LMS, IPNDM])
def test_order_refused(sampler, order):
    with pytest.raises(ValueError, match="order_max="):
        sampler(order)


def test_five_calls_are_too_many_for_ipndm():
    with pytest.raises(ValueError, match="order_max=5: expected at most 4"):
        IPNDM(5)
    assert LMS(5).order_max == 5
