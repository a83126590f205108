"""DPM-Solver: coefficients against the papers' integrals at 50 digits, order of convergence, special cases, and the ends of the
process."""

import itertools
import math
from functools import cache

import hypothesis.strategies as st
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.integrate import solve_ivp

from anystep import (
    DDIM,
    VP,
    Clip,
    DPMSolver,
    Exponential,
    Levels,
    RectifiedFlow,
    State,
    Trailing,
    init,
    update,
)
from anystep.samplers._held_dpm import HeldDPMSolver
from anystep.samplers._phi import phi
from anystep.samplers.dpm_solver import dpm_rows

mp.mp.dps = 50
MODES = list(itertools.product(("x0", "noise"), (False, True)))
each_mode = pytest.mark.parametrize(("integrand", "stochastic"), MODES)
SOLVERS = [
    DPMSolver(order, integrand, stochastic, variant)
    for order in (1, 2, 3)
    for integrand, stochastic in MODES
    for variant in ("midpoint", "heun")
]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)


# ---------------------------------------------------------------- φ

SIZES = np.concatenate([sign * np.geomspace(1e-12, 700, 500) for sign in (1, -1)])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_to_a_few_ulp(k):
    """Measured: at most 2.3 ulp."""
    for z, found in zip(SIZES, phi(k, SIZES)[-1], strict=True):
        with mp.workdps(50 + 40 * (abs(z) < 1)):
            head = mp.fsum(mp.mpf(float(z)) ** j / mp.factorial(j) for j in range(k))
            truth = (mp.exp(mp.mpf(float(z))) - head) / mp.mpf(float(z)) ** k
            assert abs(float(found) - truth) <= 3 * np.spacing(float(truth)), z


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_at_its_limits(k):
    found = phi(k, [0.0, np.inf, -np.inf, 1e-320])[-1]
    assert found.tolist() == [1 / math.factorial(k), np.inf, 0.0, 1 / math.factorial(k)]
    assert phi(k, 0.0).shape == (k,) and phi(k, np.ones((2, 3))).shape == (k, 2, 3)
    assert np.array_equal(phi(k, [3.0, -4.0]).T, [phi(k, 3.0), phi(k, -4.0)])


# ---------------------------------------------------------------- coefficients


def exactly(level):
    return [[mp.mpf(float(v)) for v in part] for part in (level.alpha_t, level.sigma_t)]


def taylor(solver, levels, i):
    """The paper's step at row i, for estimates at the levels i, i - 1, ...: coefficients of x and the estimates, and z.

    The integral over the step of e^(±λ) times each Lagrange polynomial, in 50 digits; from the variation of constants, not
    from the formulas under test.
    """
    (alphas, sigmas), ends = exactly(levels.cur), exactly(levels.nxt)
    alpha_s, sigma_s, alpha_t, sigma_t = alphas[i], sigmas[i], ends[0][i], ends[1][i]
    log_snr = [mp.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]
    start, end = log_snr[i], mp.log(alpha_t / sigma_t)
    h, count = end - start, min(i + 1, solver.order_max)
    nodes = [log_snr[i - j] for j in range(count)]
    twice = 2 if solver.stochastic else 1
    if solver.integrand == "x0":
        carry = sigma_t / sigma_s * (mp.exp(-h) if solver.stochastic else 1)
        weight = lambda lam: twice * alpha_t * mp.exp(twice * (lam - end))
        std = sigma_t * mp.sqrt(1 - mp.exp(-2 * h))
    else:
        carry = alpha_t / alpha_s
        weight = lambda lam: -twice * alpha_t * mp.exp(-lam)
        std = sigma_t * mp.sqrt(mp.exp(2 * h) - 1)

    def integral(j):
        others = [node for k, node in enumerate(nodes) if k != j]
        lagrange = lambda lam: mp.fprod((lam - o) / (nodes[j] - o) for o in others)
        return mp.quad(lambda lam: weight(lam) * lagrange(lam), [start, end])

    if count == 2 and solver.variant == "midpoint":
        # D' = (D_i - D_{i-1}) / (λ_i - λ_{i-1}) at the middle of the step, with the weight of a constant.
        whole = mp.quad(weight, [start, end])
        half = whole * h / 2 / (nodes[0] - nodes[1])
        return [carry, whole + half, -half], std
    return [carry, *(integral(j) for j in range(count))], std


def native(levels, solver):
    """Rows with x̂₀ or ε̂ as the only estimate: (x, latest, earlier, z)."""
    plan = solver.plan(levels, "sample" if solver.integrand == "x0" else "epsilon")
    return plan.folded[:, 0, [0, 1, *range(3, plan.folded.shape[2])]]


def variance_preserving(ratios):
    ratios = np.asarray(ratios)
    return Levels.chain(ratios, 1 / np.hypot(ratios, 1), ratios / np.hypot(ratios, 1))


chains = st.lists(st.floats(0.02, 1.6), min_size=4, max_size=4).map(
    lambda widths: np.exp(np.linspace(3.5, 0, 6) - np.append(0, np.cumsum([*widths, 0.3]))) + 0.01
)


@each_solver
@settings(max_examples=6)
@given(chain=chains)
def test_coefficients_are_the_papers_integrals(solver, chain):
    levels = variance_preserving(chain)
    rows = native(levels, solver)
    for i in range(levels.steps):
        exact, std = taylor(solver, levels, i)
        size = float(sum(abs(c) for c in exact))
        found = rows[i, : len(exact)]
        assert max(abs(mp.mpf(f) - c) for f, c in zip(found.tolist(), exact, strict=True)) <= 2e-13 * size
        assert not rows[i, len(exact) : rows.shape[1] - solver.stochastic].any()
        if solver.stochastic:
            assert abs(rows[i, -1] - std) <= 1e-13 * std


@each_mode
def test_the_authors_third_order_term_is_half(integrand, stochastic):
    """D1 and D2 as their multistep code forms them; φ with its signs as diffusers has them."""
    levels = variance_preserving([9.0, 4.0, 2.5, 0.8, 0.3])
    held = HeldDPMSolver(DPMSolver(3, integrand, stochastic), 0, 2, True)
    rows = native(levels, held.solver), native(levels, Native(held))
    i = 3
    (alphas, sigmas), ends = exactly(levels.cur), exactly(levels.nxt)
    lam = [mp.log(a / s) for a, s in zip(alphas, sigmas, strict=True)]
    alpha_t, sigma_t = ends[0][i], ends[1][i]
    h = mp.log(alpha_t / sigma_t) - lam[i]
    r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
    d10, d11 = mp.matrix([1 / r0, -1 / r0, 0]), mp.matrix([0, 1 / r1, -1 / r1])
    d2 = (d10 - d11) / (r0 + r1)
    d1 = d10 + r0 * d2
    d0 = mp.matrix([1, 0, 0])
    if integrand == "x0" and not stochastic:
        e = mp.exp(-h)
        total = (
            -alpha_t * (e - 1) * d0
            + alpha_t * ((e - 1) / h + 1) * d1
            - alpha_t * ((e - 1 + h) / h**2 - 0.5) * d2
        )
    elif integrand == "x0":
        e = mp.exp(-2 * h)
        total = alpha_t * (
            (1 - e) * d0 + ((1 - e) / (-2 * h) + 1) * d1 + ((1 - e - 2 * h) / (2 * h) ** 2 - 0.5) * d2
        )
    else:
        e = mp.exp(h)
        # Where diffusers has no formula, the whole term.
        whole = 2 if stochastic else 1
        total = (
            -whole
            * sigma_t
            * ((e - 1) * d0 + ((e - 1) / h - 1) * d1 + whole * ((e - 1 - h) / h**2 - 0.5) * d2)
        )
    assert np.allclose(rows[1][i, 1:4], np.asarray(total.T.tolist(), float).ravel(), rtol=1e-12, atol=1e-13)
    right, _ = taylor(held.solver, levels, i)
    differs = abs(rows[1][i, 1:4] - np.asarray(right[1:], float)).max() > 1e-3
    assert differs == (not stochastic or integrand == "x0")
    assert np.array_equal(rows[0][:2], rows[1][:2])


class Native:
    """A held solver with the attributes that `native` asks for, and as many earlier estimates as there are."""

    def __init__(self, held):
        self._held, self.integrand = held, held.solver.integrand

    def plan(self, levels, predicts):
        return self._held.plan(levels, predicts)


# ---------------------------------------------------------------- identities and special cases

GRIDS = {
    "even": variance_preserving(np.geomspace(20, 0.05, 12)),
    "to the clean sample": variance_preserving([*np.geomspace(20, 0.05, 11), 0.0]),
    "flow": Trailing().levels(RectifiedFlow(), 9),
    "uneven": variance_preserving([40, 30, 5, 4.9, 4.8, 1, 0.2, 0.19, 0.01]),
    "karras coordinates": Exponential().levels(VP(), 8).to_karras(),
}
each_grid = pytest.mark.parametrize("levels", GRIDS.values(), ids=GRIDS)


@each_grid
@each_solver
def test_true_estimates_land_on_the_next_level(solver, levels):
    """A constant estimate is integrated exactly, whatever the history: signal, and noise of the right variance."""
    rows = solver.rows(levels)
    x, eps, x0 = rows[:, 0, 0], rows[:, 0, 1], rows[:, 0, 2]
    memories = rows[:, 0, 3 : rows.shape[2] - solver.stochastic].sum(axis=1)
    kept = {"x0": x0, "noise": eps}
    kept[solver.integrand] = kept[solver.integrand] + memories
    cur, nxt = levels.cur, levels.nxt
    assert np.allclose(x * cur.alpha_t + kept["x0"], nxt.alpha_t, rtol=1e-12, atol=1e-13)
    noise = x * cur.sigma_t + kept["noise"]
    if not solver.stochastic:
        assert np.allclose(noise, nxt.sigma_t, rtol=1e-11, atol=1e-13)
    elif solver.integrand == "x0":
        assert np.allclose(noise**2 + rows[:, 0, -1] ** 2, nxt.sigma_t**2, rtol=1e-12, atol=1e-13)
    else:  # of second order only: σ² + 2 (σ e^h - σ)²
        inside = (cur.alpha_t > 0) & (nxt.sigma_t > 0)
        grew = np.where(inside, nxt.alpha_t * cur.sigma_t / np.where(inside, cur.alpha_t, 1), nxt.sigma_t)
        total = nxt.sigma_t**2 + 2 * (grew - nxt.sigma_t) ** 2
        assert np.allclose(noise**2 + rows[:, 0, -1] ** 2, total, rtol=1e-10, atol=1e-13)


@each_grid
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("integrand", ["x0", "noise"])
def test_one_estimate_is_ddim(integrand, predicts, levels):
    if predicts == "epsilon" and levels.cur.alpha_t[0] == 0:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            DPMSolver(1, integrand).plan(levels, predicts)
        return
    ddim = DDIM().plan(levels, predicts).folded
    assert np.allclose(DPMSolver(1, integrand).plan(levels, predicts).folded, ddim, rtol=1e-12, atol=1e-12)
    for order in (2, 3):
        found = DPMSolver(order, integrand).plan(levels, predicts).folded
        assert np.allclose(found[0, 0, :3], ddim[0, 0], rtol=1e-12, atol=1e-12)
        assert not found[0, 0, 3:].any()


@each_grid
def test_one_estimate_of_the_sde_is_ddpms_posterior(levels):
    for order in (1, 2):
        found = DPMSolver(order, stochastic=True).plan(levels, "sample").folded
        ddim = DDIM(eta=1.0).plan(levels, "sample").folded
        last = slice(None) if order == 1 else [0]
        assert np.allclose(found[last, 0][:, [0, 1, 2, -1]], ddim[last, 0], rtol=1e-11, atol=1e-11)


def test_one_step_of_2m_is_ddim():
    levels = variance_preserving([9.0, 0.0])
    assert np.allclose(
        DPMSolver().plan(levels, "epsilon").folded[0, 0, :3], DDIM().plan(levels, "epsilon").folded[0, 0]
    )


@each_solver
@pytest.mark.parametrize(
    "levels", [GRIDS["flow"], GRIDS["to the clean sample"]], ids=["flow", "to the clean sample"]
)
def test_every_combination_is_finite_at_the_ends(solver, levels):
    rows = solver.rows(levels)
    assert np.isfinite(rows).all()
    assert rows[-1, 0, :3].tolist() == [0.0, 0.0, 1.0] and not rows[-1, 0, 3:].any()
    if levels.cur.alpha_t[0] == 0:
        expected = [0.0, 0.0 if solver.stochastic else levels.nxt.sigma_t[0], levels.nxt.alpha_t[0]]
        if solver.integrand == "x0" and not solver.stochastic:
            expected = [levels.nxt.sigma_t[0], 0.0, levels.nxt.alpha_t[0]]
        assert np.allclose(rows[0, 0, :3], expected, rtol=1e-15)
        assert not solver.stochastic or rows[0, 0, -1] == levels.nxt.sigma_t[0]
        earlier = rows[:, 0, 3 : 2 + solver.order_max]
        assert not earlier[1].any()  # the estimate of pure noise
        assert solver.order_max == 1 or earlier[2, 0] != 0
        assert solver.order_max < 3 or (earlier[2, 1] == 0 and earlier[3, 1] != 0)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.variant == "heun" or s.order_max < 3], ids=str)
def test_pure_noise_is_the_limit_of_little_signal(solver):
    """But for the SDE in ε̂, whose noise grows without bound there: its step is that of x̂₀."""
    flow = lambda u: Levels.chain(u, 1 - np.asarray(u), u)
    tiny, pure = flow([1 - 1e-7, 0.8, 0.5, 0.2]), flow([1.0, 0.8, 0.5, 0.2])
    one, other = (solver.plan(levels, "flow_prediction").folded[:, 0] for levels in (tiny, pure))
    unlimited = solver.integrand == "noise" and solver.stochastic
    assert np.allclose(one[0], other[0], rtol=0, atol=1e-5) != unlimited
    # The estimate of pure noise has the weight 1 / (λ - λ_0), which falls slowly.
    assert np.allclose(one[1:], other[1:], rtol=0, atol=0.2)


@each_solver
def test_a_step_between_equal_levels_changes_nothing(solver):
    ratios = np.asarray([9.0, 4.0, 4.0, 2.0, 1.0, 1.0, 1.0, 0.5, 0.25])
    point = variance_preserving(np.geomspace(9, 1, 9))  # any, for its type
    alpha, sigma = 1 / np.hypot(ratios, 1), ratios / np.hypot(ratios, 1)
    levels = Levels(
        type(point.cur)(ratios[:-1], alpha[:-1], sigma[:-1]),
        type(point.cur)(ratios[1:], alpha[1:], sigma[1:]),
    )
    rows = solver.rows(levels)
    assert np.isfinite(rows).all()
    for i in (1, 4, 5):
        assert rows[i, 0].tolist() == [1.0, *[0.0] * (rows.shape[2] - 1)]
    if solver.order_max == 2:  # the level before is the same one: no derivative
        assert not rows[2, 0, 3] and not rows[6, 0, 3] and rows[3, 0, 3] and rows[7, 0, 3]
    if solver.order_max == 3:
        assert not rows[2, 0, 3] and rows[2, 0, 4]  # the one before it counts
        assert not rows[6, 0, 3:5].any()
        assert rows[7, 0, 3] and not rows[7, 0, 4]
        assert rows[3, 0, 3] and not rows[3, 0, 4]
        # As of the same levels, each once.
        single = solver.rows(variance_preserving([9.0, 4.0, 2.0, 1.0]))
        assert np.allclose(rows[2, 0, [0, 1, 2, 4]], single[1, 0, [0, 1, 2, 3]], rtol=1e-13)


def test_a_step_up_is_that_of_the_ode():
    point = variance_preserving([4.0, 2.0])
    up = Levels(point.nxt, point.cur)
    ode, sde = (DPMSolver(1, stochastic=flag).rows(up)[0, 0] for flag in (False, True))
    assert sde.tolist() == [*ode, 0.0]
    x0, eps = 0.3, -1.2
    x = up.cur.alpha_t * x0 + up.cur.sigma_t * eps
    assert np.allclose(ode @ [x[0], eps, x0], up.nxt.alpha_t * x0 + up.nxt.sigma_t * eps)


@pytest.mark.parametrize("solver", [DPMSolver(2, "noise"), DPMSolver(3, "noise", True)], ids=str)
def test_a_bounded_estimate_bounds_the_noise(solver):
    """ε̂ is made of the bounded x̂₀: a clip that does nothing changes nothing, one that bounds is seen in both."""
    levels = GRIDS["even"]
    wide, narrow = solver.plan(levels, "epsilon", Clip(1e9)), solver.plan(levels, "epsilon", Clip(0.1))
    free = solver.plan(levels, "epsilon")
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 1, 5))
    run = []
    for plan in (free, wide, narrow):
        state = init(plan, x)
        for i in range(4):
            state = update(plan, i, state, np.tanh(state.x), noise if plan.noises else None)
        run.append(state)
    assert np.allclose(run[0].x, run[1].x, rtol=1e-10)
    level = levels.cur[3]
    bounded = run[2].memory[0]
    previous = init(narrow, x)
    for i in range(3):
        previous = update(narrow, i, previous, np.tanh(previous.x), noise if narrow.noises else None)
    x0 = np.clip((previous.x - level.sigma_t * np.tanh(previous.x)) / level.alpha_t, -0.1, 0.1)
    assert np.allclose(bounded, (previous.x - level.alpha_t * x0) / level.sigma_t, rtol=1e-10)


def test_last_orders():
    levels = GRIDS["even"]
    free = DPMSolver(3).rows(levels)
    ended = DPMSolver(3, last_orders=(2, 1)).rows(levels)
    assert np.array_equal(free[:-2], ended[:-2])
    assert ended[-2, 0, 3] and not ended[-2, 0, 4] and not ended[-1, 0, 3:].any()
    assert DPMSolver(3, last_orders=(3, 3, 2, 1)).rows(variance_preserving([4.0, 1.0])).shape == (1, 3, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order_max": 4}, "order_max=4"),
        ({"order_max": 0}, "order_max=0"),
        ({"integrand": "x"}, "integrand='x'"),
        ({"variant": "taylor"}, "variant='taylor'"),
        ({"last_orders": (0,)}, "last_orders=0"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DPMSolver(**options)


# ---------------------------------------------------------------- order of convergence

HIGH, LOW = 8.0, 0.1
COUNTS = (64, 128, 256)
STARTS = np.linspace(-2, 2, 9)
WEIGHTS, MEANS, STDS = (np.asarray(part)[:, None] for part in ([0.3, 0.7], [-1.0, 0.8], [0.5, 0.6]))


def estimate(y, ratio, problem="mixture"):
    """E[x_0 | y = x_0 + ratio ε]: of a Gaussian, or of two."""
    if problem == "gaussian":
        return (0.36 * y + 0.3 * ratio**2) / (0.36 + ratio**2)
    variance = STDS**2 + ratio**2
    log_likelihood = np.log(WEIGHTS) - (y - MEANS) ** 2 / (2 * variance) - np.log(variance) / 2
    share = np.exp(log_likelihood - log_likelihood.max(axis=0))
    return (share / share.sum(axis=0) * (STDS**2 * y + ratio**2 * MEANS) / variance).sum(axis=0)


@cache
def path(problem, drift):
    """y at any ratio, along dy / dlog ratio = drift (y - x̂₀): closed form, or to 12 digits. Drift 2 is the SDE without noise."""
    start = STARTS * HIGH
    if problem == "gaussian":
        return lambda ratio: 0.3 + (start - 0.3) * ((0.36 + ratio**2) / (0.36 + HIGH**2)) ** (drift / 2)
    found = solve_ivp(
        lambda log_ratio, y: drift * (y - estimate(y, np.exp(log_ratio))),
        (np.log(HIGH), np.log(LOW)),
        start,
        method="DOP853",
        rtol=1e-13,
        atol=1e-13,
        dense_output=True,
    )
    return lambda ratio: found.sol(np.log(ratio))


def levels_of(grid, count):
    even = np.linspace(0, 1, count + 1)
    schedule = VP()
    if grid == "t":
        first, last = schedule.timestep(HIGH), schedule.timestep(LOW)
        level = schedule.level(first + even * (last - first))
        return Levels.chain(level.t, level.alpha_t, level.sigma_t)
    if grid == "karras":
        ratios = (HIGH ** (1 / 7) + even * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7
    else:
        if grid == "alternating":
            even = np.append(0, np.cumsum(np.tile([1.0, 3.0], count // 2))) / (2 * count)
        ratios = HIGH * (LOW / HIGH) ** even
    return variance_preserving(ratios)


def error(sampler, solver, problem, grid, count):
    """Largest error on the way of a run that begins with a whole, true history: the order of the formula itself."""
    levels, exact = levels_of(grid, count), path(problem, 1 + solver.stochastic)
    plan = sampler.plan(levels, "sample")
    begin, ratios = solver.order_max - 1, levels.cur.karras_sigma
    memory = []
    for i in range(begin - 1, begin - 1 - plan.memories, -1):
        x0 = estimate(exact(ratios[i]), ratios[i], problem)
        memory.append(x0 if solver.integrand == "x0" else (exact(ratios[i]) - x0) / ratios[i])
    state, worst = State(exact(ratios[begin]) * levels.cur.alpha_t[begin], tuple(memory)), 0.0
    for i in range(begin, len(plan)):
        output = estimate(state.x / levels.cur.alpha_t[i], ratios[i], problem)
        state = update(plan, i, state, output, np.zeros_like(state.x) if plan.noises else None)
        end = levels.nxt[i]
        worst = max(worst, abs(state.x / end.alpha_t - exact(end.karras_sigma)).max())
    return worst


def measured(sampler, solver, problem, grid):
    return -np.polyfit(np.log(COUNTS), np.log([error(sampler, solver, problem, grid, n) for n in COUNTS]), 1)[
        0
    ]


@each_solver
@pytest.mark.parametrize("grid", ["lambda", "t", "karras", "alternating"])
def test_order_of_convergence(grid, solver):
    """Toward two Gaussians' solution. Without noise the SDE's mean drift remains."""
    found = measured(solver, solver, "mixture", grid)
    assert abs(found - solver.order) < 0.25, found


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not s.stochastic], ids=str)
@pytest.mark.parametrize("grid", ["lambda", "t", "karras", "alternating"])
def test_order_toward_a_closed_form(grid, solver):
    found = measured(solver, solver, "gaussian", grid)
    assert found > solver.order - 0.2, found


@pytest.mark.parametrize("problem", ["gaussian", "mixture"])
def test_the_sde_in_x0_is_exact_in_the_mean_for_a_gaussian(problem):
    """Along the mean of the reverse process a Gaussian's estimate is constant; of a mixture it is not."""
    for order in (1, 2, 3):
        solver = DPMSolver(order, stochastic=True)
        assert (error(solver, solver, problem, "lambda", 64) < 1e-13) == (problem == "gaussian")


@pytest.mark.parametrize("integrand", ["x0", "noise"])
def test_the_authors_third_order_is_second(integrand):
    right = DPMSolver(3, integrand)
    authors = HeldDPMSolver(right, 0, 2, True)
    assert authors.order == 2 and abs(measured(authors, right, "mixture", "lambda") - 2) < 0.1
    assert error(authors, right, "mixture", "lambda", 256) > 5 * error(right, right, "mixture", "lambda", 256)


def test_diffusers_third_order_of_the_sde_is_first():
    right = DPMSolver(3, stochastic=True)
    theirs = HeldDPMSolver(right, 0, 2, True)
    assert theirs.order == 1 and abs(measured(theirs, right, "mixture", "lambda") - 1) < 0.1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_run_begins_with_lower_orders(order):
    solver, exact = DPMSolver(order), path("mixture", 1)
    errors = []
    for count in COUNTS:
        levels = levels_of("lambda", count)
        plan = solver.plan(levels, "sample")
        state = init(plan, exact(HIGH) * levels.cur.alpha_t[0])
        for i in range(count):
            ratio, alpha = levels.cur.karras_sigma[i], levels.cur.alpha_t[i]
            state = update(plan, i, state, estimate(state.x / alpha, ratio))
        errors.append(abs(state.x / levels.nxt.alpha_t[-1] - exact(LOW)).max())
    assert -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0] > min(order, 2) - 0.1


@pytest.mark.parametrize("integrand", ["x0", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_variance_of_the_sde(order, integrand):
    """Of Gaussian data the covariance of (x, memories) is carried exactly: the variance at the end has order min(order, 2)."""
    errors = []
    for count in COUNTS:
        levels = levels_of("lambda", count)
        plan = DPMSolver(order, integrand, stochastic=True, variant="heun").plan(levels, "sample")
        size = 1 + plan.memories
        covariance = np.zeros((size, size))
        covariance[0, 0] = levels.cur.alpha_t[0] ** 2 * (0.36 + HIGH**2)
        for rows, ratio, alpha in zip(plan.folded, levels.cur.karras_sigma, levels.cur.alpha_t, strict=True):
            step = rows[:, [0, *range(3, 2 + size)]].copy()
            step[:, 0] += rows[:, 1] * 0.36 / (0.36 + ratio**2) / alpha
            fresh = rows[:, 2 + size :]
            covariance = step @ covariance @ step.T + fresh @ fresh.T
        errors.append(abs(covariance[0, 0] / levels.nxt.alpha_t[-1] ** 2 - 0.36 - LOW**2))
    found = -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
    # One estimate of ε̂ is a little better than its order here.
    assert min(order, 2) - 0.1 < found < min(order, 2) + 0.3, found


def test_held_counts_the_history_that_there_is():
    solver, levels = DPMSolver(3), GRIDS["even"]
    whole = solver.rows(levels)
    assert np.array_equal(dpm_rows(levels, solver, 2, 2), whole)
    for held in (0, 1):
        rows = dpm_rows(levels, solver, held, 2)
        assert not rows[:, 0, 3 + held :].any()
        lower = DPMSolver(held + 1).rows(levels)
        assert np.allclose(rows[:, 0, : 3 + held], lower[:, 0], rtol=1e-14)
