"""Heun, reverse diffusion, Euler-Maruyama and Langevin steps: order, identities, references written here, moments, libraries."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anystep import (
    DDPM,
    VE,
    VP,
    BetaSchedule,
    Clip,
    Cosine,
    EDMSchedule,
    Euler,
    EulerMaruyama,
    Exponential,
    Heun,
    Karras,
    Levels,
    Linspace,
    RectifiedFlow,
    ReverseDiffusion,
    Trailing,
    estimate,
    init,
    langevin_step,
    predictor_corrector,
    sample,
    scale_input,
    update,
)
from anystep_conformance.libraries import cases
from test_convergence import (
    GRIDS,
    HIGH,
    PREDICTIONS,
    SCHEDULES,
    STEPS,
    Gaussian,
    error,
    levels_of,
    model_output,
    slope,
    solved,
    start,
)
from test_moments import COUNT, MEAN, STD, grid, marginal, model_level, noise_line, recursion

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_grid = pytest.mark.parametrize("grid", GRIDS)

# ---------------------------------------------------------------- Heun


def heun_error(sampler, problem, levels, predicts, moved=False):
    """As `test_convergence.error`, with a call at both ends of a step.

    A last step, Euler's, leads on to the clean sample and is not measured.
    """
    ends = (
        (levels.cur.t, levels.nxt.t, 0.0),
        (levels.cur.alpha_t, levels.nxt.alpha_t, 1.0),
        (levels.cur.sigma_t, levels.nxt.sigma_t, 0.0),
    )
    levels = Levels.chain(*(np.concatenate([cur, nxt[-1:], [last]]) for cur, nxt, last in ends))
    levels = levels.to_karras() if moved else levels
    plan, calls = sampler.plan(levels, predicts), sampler.calls(levels)
    assert len(plan) == 2 * levels.steps - 1
    state = init(plan, plan.alpha[0] * start(HIGH))
    for i in range(len(plan) - 1):
        level = calls.model_level[i]
        x = scale_input(plan, i, state.x) / PREDICTIONS[predicts]().input_scale(level)
        state = update(plan, i, state, model_output(predicts, problem, x, level.alpha_t, level.sigma_t))
    return np.abs(state.x / plan.alpha[-2] - solved(problem, 1)).max()


@pytest.mark.parametrize("moved", [False, True], ids=["own coordinates", "x / alpha"])
@pytest.mark.parametrize(
    ("problem", "predicts"), [("gaussian", "epsilon"), ("mixture", "v_prediction"), ("mixture", "edm")]
)
@each_schedule
@each_grid
def test_heun_has_order_2(schedule, grid, problem, predicts, moved):
    """On uneven grids too."""
    errors = []
    for steps in STEPS:
        levels = levels_of(SCHEDULES[schedule], grid, steps)
        errors.append(heun_error(Heun(), problem, levels, predicts, moved))
    assert Heun.order == 2
    assert (np.diff(errors) < 0).all()
    assert abs(slope(errors) - 2) < 0.15, (slope(errors), errors)


def test_the_measure_of_heun_tells_orders_apart():
    """A correction that takes 49 % of one derivative and 51 % of the other is seen."""

    class Off(Heun):
        def rows(self, levels):
            rows = super().rows(levels)
            both = (rows[:, 0, 1] != 0) & (rows[:, 0, 4] != 0)
            rows[both, 0, 1] *= 1.02
            rows[both, 0, 4] *= 0.98
            return rows

    errors = [
        heun_error(Off(), "gaussian", levels_of(SCHEDULES["edm"], "even", steps), "epsilon")
        for steps in STEPS
    ]
    assert slope(errors) < 1.85


@each_schedule
def test_a_constant_noise_estimate_is_followed_exactly(schedule):
    """x = alpha x_0 + sigma ε with the same x_0 and ε at every level."""
    levels = levels_of(SCHEDULES[schedule], "random", 64)
    sampler = Heun()
    plan = sampler.plan(levels, "epsilon")
    x0, eps = 0.3, -1.2
    state = init(plan, np.full(2, plan.alpha[0] * x0 + plan.sigma[0] * eps))
    for i in range(len(plan)):
        state = update(plan, i, state, np.full(2, eps))
        np.testing.assert_allclose(
            state.x, plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * eps, rtol=0, atol=1e-12
        )


def denoise(x, sigma):
    return Gaussian().estimate(x, sigma)


def algorithm_2(x, sigmas, noises, s_churn, s_tmin, s_tmax, s_noise):
    """Karras et al. 2022, algorithm 2, line by line; the noise of step i is noises[i]."""
    count = len(sigmas) - 1
    for i in range(count):
        t, following = sigmas[i], sigmas[i + 1]
        gamma = min(s_churn / count, np.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        x_hat = x + np.sqrt(t_hat**2 - t**2) * s_noise * noises[i]
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (following - t_hat) * d
        if following != 0:
            again = (x - denoise(x, following)) / following
            x = x_hat + (following - t_hat) * (0.5 * d + 0.5 * again)
    return x


@pytest.mark.parametrize(
    "churn",
    [(0.0, 0.0, np.inf, 1.0), (5.0, 0.0, np.inf, 1.0), (40.0, 0.05, 50.0, 1.007), (1e9, 1.0, 10.0, 0.5)],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_heun_is_algorithm_2(churn, steps):
    schedule = EDMSchedule(0.002, 80.0)
    levels = Karras(sigma_max=20.0, sigma_min=0.01).levels(schedule, steps)
    plan = Heun(*churn, schedule=schedule).plan(levels, "sample")
    assert len(plan) == 2 * steps - 1
    rng = np.random.default_rng(0)
    noises, x = rng.standard_normal((steps, 5)), 20 * rng.standard_normal(5)
    raised = x + np.sqrt(plan.sigma[0] ** 2 - 20.0**2) * churn[3] * noises[0]
    state, drawn = init(plan, raised), 0
    for i in range(len(plan)):
        fresh = None
        if plan.stochastic[i]:  # at the end of a step, for the next
            drawn = -(-(i + 1) // 2)
            fresh = noises[drawn]
        elif plan.noises:
            fresh = np.zeros(5)
        state = update(plan, i, state, denoise(state.x, plan.timesteps[i]), fresh)
    sigmas = np.append(levels.cur.sigma_t, 0.0)
    np.testing.assert_allclose(state.x, algorithm_2(x, sigmas, noises, *churn), rtol=1e-11, atol=1e-12)


def test_one_step_of_heun_is_euler():
    levels = Karras(sigma_max=20.0, sigma_min=0.01).levels(EDMSchedule(), 1)
    one, other = Heun().plan(levels, "epsilon"), Euler().plan(levels, "epsilon")
    assert len(one) == 1
    np.testing.assert_array_equal(one.folded[0, 0, :2], other.folded[0, 0, :2])


def test_a_bound_holds_in_both_calls():
    """With a threshold every derivative is made of the bounded estimate."""
    levels = Levels.chain([3, 2, 1, 0], [1, 1, 1, 1], [10.0, 3.0, 1.0, 0.0])
    plan = Heun().plan(levels, "epsilon", Clip(0.5))
    x = np.asarray([12.0, -3.0])
    state, sigmas = init(plan, x), [10.0, 3.0, 1.0, 0.0]
    noises = np.asarray([[0.3, 0.1], [-2.0, 0.5], [1.0, 1.0], [0.1, -0.9], [0.4, 0.4]])
    bound = lambda x, sigma, eps: np.clip(x - sigma * eps, -0.5, 0.5)
    for i, eps in enumerate(noises):
        state = update(plan, i, state, eps)
    call = iter(noises)
    for cur, nxt in itertools.pairwise(sigmas):
        d = (x - bound(x, cur, next(call))) / cur
        moved = x + (nxt - cur) * d
        if nxt:
            moved = x + (nxt - cur) * (d + (moved - bound(moved, nxt, next(call))) / nxt) / 2
        x = moved
    np.testing.assert_allclose(state.x, x, rtol=1e-13)


def test_from_pure_noise_the_first_step_is_not_corrected():
    schedule = Cosine()
    levels = Trailing().levels(schedule, 20)
    sampler = Heun()
    plan = sampler.plan(levels, "v_prediction")
    assert plan.alpha[0] == 0 and len(plan) == 38
    errors = []
    for steps in (16, 32, 64):
        levels = Trailing().levels(schedule, steps)
        plan, calls = sampler.plan(levels, "v_prediction"), sampler.calls(levels)
        x = np.linspace(-2, 2, 5)
        state = init(plan, x)
        for i in range(len(plan)):
            level = calls.model_level[i]
            variance = level.alpha_t**2 * STD**2 + level.sigma_t**2
            x0 = MEAN + level.alpha_t * STD**2 / variance * (state.x - level.alpha_t * MEAN)
            eps = (state.x - level.alpha_t * x0) / level.sigma_t
            state = update(plan, i, state, level.alpha_t * eps - level.sigma_t * x0)
        errors.append(np.abs(state.x - (MEAN + STD * x)).max())
    assert -np.polyfit(np.log([16, 32, 64]), np.log(errors), 1)[0] > 1.7, errors


# ---------------------------------------------------------------- reverse diffusion and Euler-Maruyama


def test_reverse_diffusion_is_equation_46_on_ve():
    sigmas = np.asarray([9.0, 5.0, 2.0, 0.5])
    plan = ReverseDiffusion().plan(Levels.chain(sigmas, np.ones(4), sigmas), "score")
    rng = np.random.default_rng(1)
    x, score, z = rng.standard_normal((3, 6))
    for i in range(3):
        g = np.sqrt(sigmas[i] ** 2 - sigmas[i + 1] ** 2)
        state = update(plan, i, init(plan, x), score, z)
        np.testing.assert_allclose(state.x, x + g**2 * score + g * z, rtol=1e-13)


def test_reverse_diffusion_is_algorithm_3_on_a_table():
    """x_i = (2 - √(1 - β)) x + β s + √β z."""
    schedule = BetaSchedule.named("linear")
    levels = Linspace().levels(schedule, 1000)
    plan = ReverseDiffusion(last_noise=True).plan(levels, "score")
    rng = np.random.default_rng(1)
    x, score, z = rng.standard_normal((3, 6))
    for i in (0, 1, 500, 999):
        beta = schedule.betas[999 - i]
        wanted = (2 - np.sqrt(1 - beta)) * x + beta * score + np.sqrt(beta) * z
        np.testing.assert_allclose(update(plan, i, init(plan, x), score, z).x, wanted, rtol=2e-12)


def test_the_last_step_adds_no_noise_unless_asked():
    sigmas = [3.0, 1.0, 0.0]
    levels = Levels.chain(sigmas, [1, 1, 1], sigmas)
    assert ReverseDiffusion().plan(levels, "score").stochastic.tolist() == [True, False]
    assert ReverseDiffusion(last_noise=True).plan(levels, "score").folded[1, 0].tolist() == [
        1.0,
        1.0,
        0.0,
        1.0,
    ]
    assert ReverseDiffusion(s_noise=0.0).plan(levels, "score").noises == 0
    with pytest.raises(ValueError, match="s_noise=-1"):
        ReverseDiffusion(s_noise=-1)
    levels = Linspace().levels(VP(), 5)
    assert EulerMaruyama(VP()).plan(levels, "epsilon").stochastic.tolist() == [True] * 4 + [False]
    assert EulerMaruyama(VP(), last_noise=True).plan(levels, "epsilon").stochastic.all()
    wide = EulerMaruyama(VP()).rows(levels)[-1, 0]  # from t = u_min to 0
    t, sigma = levels.cur.t[-1], levels.cur.sigma_t[-1]
    beta = 0.1 + t * 19.9
    np.testing.assert_allclose(wide, [1 + beta * t / 2, -beta * t / sigma, 0, 0], rtol=1e-13)
    with pytest.raises(ValueError, match="Karras coordinates"):
        EulerMaruyama(VP()).plan(levels.to_karras(), "epsilon")


@each_schedule
@each_grid
def test_the_mean_of_reverse_diffusion_has_order_1(schedule, grid):
    errors = [
        error(ReverseDiffusion(), "mixture", levels_of(SCHEDULES[schedule], grid, steps), "v_prediction", 2)
        for steps in STEPS
    ]
    assert (np.diff(errors) < 0).all()
    assert abs(slope(errors) - 1) < 0.15, slope(errors)


@pytest.mark.parametrize("schedule", ["vp", "ve"])
@each_grid
def test_the_mean_of_euler_maruyama_has_order_1(schedule, grid):
    process = SCHEDULES[schedule]
    errors = [
        error(EulerMaruyama(process), "mixture", levels_of(process, grid, steps), "v_prediction", 2)
        for steps in STEPS
    ]
    assert (np.diff(errors) < 0).all()
    assert abs(slope(errors) - 1) < 0.15, slope(errors)


@pytest.mark.parametrize(
    "process", [VP(), VP(time_scale=1000.0, beta_min=0.5), VE(), VE(time_scale=7.0)], ids=repr
)
def test_rates_are_those_of_the_levels(process):
    """f = d log alpha / dt and g² = d sigma² / dt - 2 f sigma², by differences."""
    t = np.linspace(0.05, 0.95, 7) * process.time_scale
    h = 1e-5 * process.time_scale
    above, below, here = process.level(t + h), process.level(t - h), process.level(t)
    drift = (np.log(above.alpha_t) - np.log(below.alpha_t)) / (2 * h)
    growth = (above.sigma_t**2 - below.sigma_t**2) / (2 * h)
    f, squared = process.rates(t)
    np.testing.assert_allclose(f, drift, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(squared, growth - 2 * drift * here.sigma_t**2, rtol=1e-5)


def test_euler_maruyama_and_reverse_diffusion_meet_as_steps_shrink():
    gaps = []
    for steps in (100, 200, 400):
        level = VP().level(np.linspace(1, 0.3, steps + 1))
        levels = Levels.chain(level.t, level.alpha_t, level.sigma_t)
        one, other = EulerMaruyama(VP()).rows(levels), ReverseDiffusion().rows(levels)
        gaps.append(np.abs(one[:-1] - other[:-1]).max(axis=(0, 1)))
    gaps = np.asarray(gaps)
    assert (gaps[:-1, :2] / gaps[1:, :2] > 3.5).all()  # drift: a term of h²
    assert (gaps[:-1, 3] / gaps[1:, 3] > 2.6).all()  # noise: of h^(3/2)


STOCHASTIC = {
    "ReverseDiffusion, vp": (lambda schedule: ReverseDiffusion(), VP()),
    "ReverseDiffusion, ve": (lambda schedule: ReverseDiffusion(), VE(largest=80.0)),
    "ReverseDiffusion, flow": (lambda schedule: ReverseDiffusion(), RectifiedFlow()),
    "EulerMaruyama, vp": (EulerMaruyama, VP()),
    "EulerMaruyama, ve": (EulerMaruyama, VE(largest=80.0)),
}
each_stochastic = pytest.mark.parametrize(("make", "schedule"), STOCHASTIC.values(), ids=STOCHASTIC)


@each_stochastic
def test_samples_have_the_moments_of_the_recursion(make, schedule):
    """At 10^5 samples, within five standard errors."""
    plan = make(schedule).plan(grid(schedule, 20), "epsilon")
    level = model_level(schedule, plan)
    p, q = noise_line(level)
    rng = np.random.default_rng(7)
    mean, variance = marginal(plan.alpha[0], plan.sigma[0])
    expected = recursion(plan, level, mean, variance)
    state = init(plan, mean + np.sqrt(variance) * rng.standard_normal(COUNT))
    for i in range(len(plan)):
        state = update(
            plan, i, state, p[i] * state.x + q[i], rng.standard_normal(COUNT) if plan.stochastic[i] else None
        )
        mean, variance = expected[i + 1]
        assert abs(state.x.mean() - mean) < 5 * np.sqrt(variance / COUNT)
        assert abs(state.x.var() - variance) < 5 * variance * np.sqrt(2 / COUNT)


@each_stochastic
def test_the_moments_converge_to_those_of_the_data(make, schedule):
    errors, counts = [], (128, 256, 512, 1024)
    for steps in counts:
        plan = make(schedule).plan(grid(schedule, steps), "epsilon")
        found = recursion(plan, model_level(schedule, plan), *marginal(plan.alpha[0], plan.sigma[0]))[-1]
        errors.append(np.abs(found - marginal(plan.alpha[-1], plan.sigma[-1])))
    errors = np.asarray(errors)
    assert (np.diff(errors, axis=0) < 1e-12).all()
    assert -np.polyfit(np.log(counts), np.log(errors[:, 1]), 1)[0] > 0.85, errors
    assert errors[-1, 1] < 0.05 * STD**2


# ---------------------------------------------------------------- Langevin


def reference_langevin(x, score, noise, snr, alpha=1.0, per_sample=False):
    norms = [np.asarray([np.linalg.norm(sample.ravel()) for sample in array]) for array in (noise, score)]
    if not per_sample:
        norms = [np.full(len(x), norm.mean()) for norm in norms]
    out = np.empty_like(x)
    for b in range(len(x)):
        e = 2 * alpha * (snr * norms[0][b] / norms[1][b]) ** 2
        out[b] = x[b] + e * score[b] + np.sqrt(2 * e) * noise[b]
    return out


def triple(seed=0, shape=(3, 2, 4)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), 3 * rng.standard_normal(shape), rng.standard_normal(shape)


@pytest.mark.parametrize("shape", [(3, 2, 4), (1, 5), (4,)])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.98}, {"per_sample": True}], ids=str)
def test_langevin_is_algorithm_4_and_5(options, shape):
    x, score, noise = triple(shape=shape)
    found = langevin_step(x, score, noise, 0.16, **options)
    np.testing.assert_allclose(found, reference_langevin(x, score, noise, 0.16, **options), rtol=1e-13)


def test_snr_is_the_ratio_of_the_two_terms():
    x, score, noise = triple(shape=(1, 30))
    step = np.linalg.norm(
        langevin_step(0 * x, score, 0 * noise + noise, 0.2) - langevin_step(0 * x, score, noise, 0.2) + 0
    )
    assert step == 0
    full = langevin_step(np.zeros_like(x), score, noise, 0.2)
    along = np.linalg.lstsq(np.stack([score[0], noise[0]], 1), full[0], rcond=None)[0]
    ratio = along[0] * np.linalg.norm(score) / (along[1] * np.linalg.norm(noise))
    np.testing.assert_allclose(ratio, 0.2, rtol=1e-12)


def test_per_sample_norms_do_not_see_the_neighbours():
    x, score, noise = triple()
    whole = langevin_step(x, score, noise, per_sample=True)
    for b in range(3):
        np.testing.assert_array_equal(
            whole[b], langevin_step(x[b : b + 1], score[b : b + 1], noise[b : b + 1], per_sample=True)[0]
        )
    assert np.abs(whole - langevin_step(x, score, noise)).max() > 1e-3


def test_a_score_of_zero_changes_nothing():
    x, score, noise = triple()
    np.testing.assert_array_equal(langevin_step(x, 0 * score, noise), x)
    score[1] = 0
    found = langevin_step(x, score, noise, per_sample=True)
    np.testing.assert_array_equal(found[1], x[1])
    assert np.isfinite(found).all() and (found[0] != x[0]).all()


@pytest.mark.parametrize(("entry", "dtype"), cases())
@pytest.mark.parametrize("per_sample", [False, True])
def test_langevin_on_every_library(entry, dtype, per_sample):
    """NumPy adds up norms pairwise, others otherwise: a few ulp."""
    arrays = triple()
    with entry.scope(dtype):
        made = [entry.array(array, dtype) for array in arrays]
        found = langevin_step(*made, per_sample=per_sample)
        assert type(found) is type(made[0]) and found.dtype == made[0].dtype
        assert getattr(found, "device", None) == getattr(made[0], "device", None)
        exact = reference_langevin(
            *(entry.read(array).astype(np.float64) for array in made), 0.16, per_sample=per_sample
        )
        size = float(np.abs(exact).max())
        unit = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-21, "float64": 2**-50}[dtype]
        assert np.abs(entry.read(found).astype(np.float64) - exact).max() <= unit * size


def test_langevin_compiles():
    arrays = [jnp.asarray(array, dtype=jnp.float32) for array in triple()]
    for per_sample in (False, True):
        step = functools.partial(langevin_step, per_sample=per_sample)
        np.testing.assert_allclose(jax.jit(step)(*arrays), step(*arrays), rtol=3e-6, atol=1e-6)


def test_langevin_refuses_what_does_not_fit():
    x, score, noise = triple()
    with pytest.raises(ValueError, match="score has shape"):
        langevin_step(x, score[:2], noise)
    with pytest.raises(ValueError, match="noise has shape"):
        langevin_step(x, score, noise[..., :1])
    with pytest.raises(ValueError, match="snr=-1"):
        langevin_step(x, score, noise, -1)
    with pytest.raises(ValueError, match="alpha=2"):
        langevin_step(x, score, noise, alpha=2)


def test_langevin_leads_to_its_distribution():
    """Many corrections at one level end at N(0, s² (1 + snr²)) for the score of N(0, s²).

    With variance v, e = 2 snr² s⁴ / v, and v (1 - e / s²)² + 2 e = v there.
    """
    rng, s, snr = np.random.default_rng(5), 2.0, 0.1
    x = 3 * rng.standard_normal((2000, 64))
    for _ in range(500):
        x = langevin_step(x, -x / s**2, rng.standard_normal(x.shape), snr)
    assert abs(x.var() / (s**2 * (1 + snr**2)) - 1) < 5 * np.sqrt(2 / x.size)
    assert abs(x.mean()) < 5 * s / np.sqrt(x.size)


# ---------------------------------------------------------------- predictor-corrector


def exact(predicts, schedule):
    """The exact model of N(MEAN, STD²), told t."""

    def model(x, t):
        level = schedule.level(t)
        variance = level.alpha_t**2 * STD**2 + level.sigma_t**2
        x0 = MEAN + level.alpha_t * STD**2 / variance * (x - level.alpha_t * MEAN)
        eps = (x - level.alpha_t * x0) / level.sigma_t
        return {
            "epsilon": eps,
            "sample": x0,
            "score": -eps / level.sigma_t,
            "v_prediction": level.alpha_t * eps - level.sigma_t * x0,
        }[predicts]

    return model


@pytest.mark.parametrize("schedule", [VE(), VP(), BetaSchedule.named("linear")], ids=["ve", "vp", "table"])
@pytest.mark.parametrize("corrections", [0, 1, 2])
def test_predictor_corrector_step_by_step(schedule, corrections):
    """Against a loop written from the algorithms, on the score itself; any prediction gives the same."""
    steps, snr, rng = 6, 0.2, np.random.default_rng(2)
    levels = (Linspace() if schedule.train_timesteps else Exponential(sigma_max=20.0, sigma_min=0.02)).levels(
        schedule, steps
    )
    noises = rng.standard_normal((steps * (1 + corrections), 4, 3))
    start = rng.standard_normal((4, 3)) * np.hypot(levels.cur.alpha_t[0], levels.cur.sigma_t[0])
    x, k, score = start, 0, exact("score", schedule)
    for i in range(steps):
        t, a, s, a2, s2 = (
            float(v[i])
            for v in (
                levels.cur.t,
                levels.cur.alpha_t,
                levels.cur.sigma_t,
                levels.nxt.alpha_t,
                levels.nxt.sigma_t,
            )
        )
        kept = a / a2
        for _ in range(corrections):
            x = reference_langevin(x, score(x, t), noises[k], snr, kept**2)
            k += 1
        g = np.sqrt(s**2 - (kept * s2) ** 2)
        x = (2 - kept) * x + g**2 * score(x, t) + (g * noises[k] if s2 else 0)
        k += 1
    for predicts in ("score", "epsilon", "sample", "v_prediction"):
        calls = []
        inner = exact(predicts, schedule)
        model = lambda x, t, inner=inner, calls=calls: calls.append(t) or inner(x, t)
        plan = ReverseDiffusion().plan(levels, predicts)
        found = predictor_corrector(
            model, plan, start, snr=snr, corrections=corrections, noise=lambda k: noises[k]
        )
        assert len(calls) == steps * (1 + corrections)
        np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-11)


def test_without_corrections_it_is_the_plain_loop():
    plan = ReverseDiffusion().plan(Exponential().levels(VE(), 8), "epsilon")
    x, model = 50 * np.random.default_rng(0).standard_normal((2, 3)), exact("epsilon", VE())
    one = predictor_corrector(model, plan, x, corrections=0, generator=np.random.default_rng(1))
    np.testing.assert_array_equal(one, sample(model, plan, x, generator=np.random.default_rng(1)))


def test_corrections_bring_a_coarse_run_nearer_to_the_data():
    """Song et al. 2021, table 1: a corrector is worth its calls. Variance at 25 steps, 4096 samples of 16 dimensions."""
    plan, found = ReverseDiffusion().plan(Exponential().levels(VE(), 25), "epsilon"), {}
    for corrections in (0, 2):
        rng = np.random.default_rng(3)
        x = predictor_corrector(
            exact("epsilon", VE()),
            plan,
            50 * rng.standard_normal((4096, 16)),
            corrections=corrections,
            snr=0.3,
            generator=rng,
        )
        found[corrections] = abs(x.var() / STD**2 - 1)
    assert found[2] < 0.5 * found[0], found


def test_predictor_corrector_with_keys_draws_different_noises():
    """A JAX key is folded with the number of the draw: no noise is used twice."""
    plan = ReverseDiffusion().plan(Exponential().levels(VE(), 3), "sample")
    seen = []

    def model(x, t):
        seen.append(np.asarray(x))
        return 0 * x

    predictor_corrector(model, plan, jnp.zeros((1, 4)) + 1.0, corrections=1, generator=jax.random.key(0))
    assert len(seen) == 6
    steps = np.diff(np.stack([s.ravel() for s in seen]), axis=0)
    assert all(
        np.abs(np.corrcoef(one, other)[0, 1]) < 0.9999 for i, one in enumerate(steps) for other in steps[:i]
    )


def test_predictor_corrector_refuses_what_does_not_fit():
    plan = ReverseDiffusion().plan(Exponential().levels(VE(), 3), "sample")
    with pytest.raises(ValueError, match="both given"):
        predictor_corrector(lambda x, t: x, plan, np.ones((1, 1)), generator=1, noise=lambda k: None)
    with pytest.raises(ValueError, match="corrections=-1"):
        predictor_corrector(lambda x, t: x, plan, np.ones((1, 1)), corrections=-1)
    assert DDPM().plan(Exponential().levels(VE(), 3), "sample").noises == 1
    assert estimate(plan, 0, np.ones((1, 1)), np.full((1, 1), 0.5)) == 0.5
