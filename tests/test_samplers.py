"""Exact identities on the coefficients of a step: signal, variance, posterior, special cases, change of coordinates."""

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import (
    DDIM,
    DDPM,
    BetaSchedule,
    EDMSchedule,
    Euler,
    EulerAncestral,
    Exponential,
    Karras,
    Level,
    Levels,
    RectifiedFlow,
    Trailing,
    init,
    scale_input,
    update,
)
from anystep.predictions import PREDICTIONS
from anystep.samplers._base import added_std, posterior_std
from anystep.samplers._late_churn import LateChurnEuler

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=60)
X, NOISE_ESTIMATE, X0, NOISE = range(4)


def uneven_chain(steps, unit, clean, seed):
    """Levels in any coordinates: their ratios drop by 1 % to a factor of 1000, their sizes are independent."""
    rng = np.random.default_rng(seed)
    drops = 10.0 ** rng.uniform(-2.4, 0.5, steps)
    ratios = 10.0 ** (rng.uniform(-1, 2.5) - np.append(0.0, np.cumsum(drops)))
    if clean:
        ratios[-1] = 0.0
    alpha_t = {
        "vp": 1 / np.sqrt(1 + ratios**2),
        "karras": np.ones(steps + 1),
        "flow": 1 / (1 + ratios),
        "any": 10.0 ** rng.uniform(-1, 1, steps + 1),
    }[unit]
    return Levels.chain(np.arange(steps + 1)[::-1], alpha_t, alpha_t * ratios)


def chains():
    units = st.sampled_from(["any", "vp", "karras", "flow"])
    return st.builds(uneven_chain, st.integers(1, 6), units, st.booleans(), st.integers(0, 2**32 - 1))


def column(rows, k):
    """Coefficients of one term, 0 where no row has it."""
    return rows[:, 0, k] if k < rows.shape[2] else np.zeros(len(rows))


etas = st.floats(0, 1)
SAMPLERS = {
    "DDIM": DDIM(),
    "DDIM, eta=0.3": DDIM(eta=0.3),
    "DDIM, eta=1": DDIM(eta=1.0),
    "DDIM, reestimated": DDIM(eta=0.6, reestimate_noise=True),
    "DDPM": DDPM(),
    "Euler": Euler(),
    "Euler ancestral": EulerAncestral(),
    "Euler ancestral, eta=0.4": EulerAncestral(0.4),
}
each_sampler = pytest.mark.parametrize("sampler", [pytest.param(s, id=n) for n, s in SAMPLERS.items()])
each_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)

# ---------------------------------------------------------------- signal and variance


@each_sampler
@EXAMPLES
@given(levels=chains())
def test_signal_and_variance(sampler, levels):
    """With x = alpha x_0 + sigma ε and both estimates right, the next x is alpha_next x_0 plus noise of variance sigma_next²."""
    rows = sampler.rows(levels)
    cur, nxt = levels.cur, levels.nxt
    signal = column(rows, X) * cur.alpha_t + column(rows, X0)
    size = abs(column(rows, X) * cur.alpha_t) + abs(column(rows, X0))
    assert (abs(signal - nxt.alpha_t) <= 1e-14 * size).all()
    kept = column(rows, X) * cur.sigma_t + column(rows, NOISE_ESTIMATE)
    variance = kept**2 + column(rows, NOISE) ** 2
    np.testing.assert_allclose(variance, nxt.sigma_t**2, rtol=1e-13, atol=0)


def posterior(cur, nxt):
    """Mean (of x, of x_0) and variance of x_nxt by weighing two independent sources by their precision, in 50 digits.

    x_nxt is N(alpha_nxt x_0, sigma_nxt²) before x_cur = k x_nxt + N(0, b²) is seen.
    """
    alpha_c, sigma_c, alpha_n, sigma_n = (mpmath.mpf(float(v)) for v in (*cur, *nxt))
    k = alpha_c / alpha_n
    b2 = sigma_c**2 - (k * sigma_n) ** 2
    if sigma_n == 0:
        return mpmath.mpf(0), alpha_n, mpmath.mpf(0), b2
    precision = 1 / sigma_n**2 + k**2 / b2
    return (k / b2) / precision, (alpha_n / sigma_n**2) / precision, 1 / precision, b2


def ends(levels):
    for i in range(levels.steps):
        yield [(levels.cur.alpha_t[i], levels.cur.sigma_t[i]), (levels.nxt.alpha_t[i], levels.nxt.sigma_t[i])]


@EXAMPLES
@given(levels=chains())
def test_ddpm_is_the_gaussian_posterior(levels):
    small, large, unit = (DDPM(variance).rows(levels) for variance in ("small", "large", "unit"))
    with mpmath.workdps(50):
        for i, (cur, nxt) in enumerate(ends(levels)):
            of_x, of_x0, variance, added = posterior(cur, nxt)
            last = nxt[1] == 0
            for rows in (small, large, unit):
                assert abs(column(rows, X)[i] - of_x) <= 1e-14 * of_x
                assert abs(column(rows, X0)[i] - of_x0) <= 1e-12 * of_x0
                assert column(rows, NOISE_ESTIMATE)[i] == 0
            assert abs(column(small, NOISE)[i] - mpmath.sqrt(variance)) <= 1e-12 * mpmath.sqrt(variance)
            assert abs(column(large, NOISE)[i] - (0 if last else mpmath.sqrt(added))) <= 1e-12 * mpmath.sqrt(
                added
            )
            assert column(unit, NOISE)[i] == (0.0 if last else 1.0)


@EXAMPLES
@given(levels=chains())
def test_standard_deviations(levels):
    with mpmath.workdps(50):
        for i, (cur, nxt) in enumerate(ends(levels)):
            _, _, variance, added = posterior(cur, nxt)
            assert abs(posterior_std(levels)[i] - mpmath.sqrt(variance)) <= 1e-12 * mpmath.sqrt(variance)
            assert abs(added_std(levels)[i] - mpmath.sqrt(added)) <= 1e-12 * mpmath.sqrt(added)


def test_posterior_in_the_letters_of_ddpm():
    """Ho et al. 2020, equations 6 and 7, timestep by timestep on the published betas."""
    schedule = BetaSchedule.named("linear")
    levels = Trailing().levels(schedule, 1000)
    betas, after = schedule.betas[::-1], schedule.alphas_cumprod[::-1]
    before = np.append(after[1:], 1.0)  # abar of t - 1
    small, large = DDPM().rows(levels), DDPM("large").rows(levels)
    np.testing.assert_allclose(column(small, X0), np.sqrt(before) * betas / (1 - after), rtol=1e-9)
    np.testing.assert_allclose(column(small, X), np.sqrt(1 - betas) * (1 - before) / (1 - after), rtol=1e-9)
    np.testing.assert_allclose(column(small, NOISE) ** 2, (1 - before) / (1 - after) * betas, rtol=1e-9)
    np.testing.assert_allclose(column(large, NOISE)[:-1] ** 2, betas[:-1], rtol=1e-9)
    assert column(large, NOISE)[-1] == 0


def test_ddim_in_its_own_letters():
    """Song et al. 2020, equations 12 and 16, with their alpha for abar, on steps of fifty."""
    schedule = BetaSchedule.named("linear")
    levels = Trailing().levels(schedule, 20)
    now = schedule.alphas_cumprod[levels.cur.t.astype(int)]
    before = np.append(now[1:], 1.0)
    for eta in (0.0, 0.4, 1.0):
        std = eta * np.sqrt((1 - before) / (1 - now)) * np.sqrt(1 - now / before)
        rows = DDIM(eta=eta).plan(levels, "epsilon").folded
        of_x = np.sqrt(before) / np.sqrt(now)
        of_eps = np.sqrt(1 - before - std**2) - np.sqrt(before) * np.sqrt(1 - now) / np.sqrt(now)
        np.testing.assert_allclose(column(rows, 0), of_x, rtol=1e-13)
        np.testing.assert_allclose(column(rows, 1), of_eps, rtol=1e-11)
        np.testing.assert_allclose(column(rows, 3), std, rtol=1e-11, atol=0)


# ---------------------------------------------------------------- special cases


@EXAMPLES
@given(levels=chains(), eta=etas)
def test_eta_scales_the_standard_deviation(levels, eta):
    np.testing.assert_allclose(
        column(DDIM(eta=eta).rows(levels), NOISE), eta * column(DDPM().rows(levels), NOISE), rtol=1e-15
    )


@each_prediction
@EXAMPLES
@given(levels=chains())
def test_eta_1_is_ddpm(predicts, levels):
    one, other = DDIM(eta=1.0).plan(levels, predicts), DDPM().plan(levels, predicts)
    assert one.stochastic.tolist() == other.stochastic.tolist() == (levels.nxt.sigma_t != 0).tolist()
    same_step(one, other, levels)


@each_prediction
@EXAMPLES
@given(levels=chains())
def test_eta_0_is_euler(predicts, levels):
    one, other = DDIM().plan(levels, predicts), Euler().plan(levels, predicts)
    assert one.noises == other.noises == 0
    same_step(one, other, levels)


@each_prediction
@EXAMPLES
@given(levels=chains(), eta=etas)
def test_reestimated_noise_is_the_noise(predicts, levels, eta):
    same_step(
        DDIM(eta=eta).plan(levels, predicts),
        DDIM(eta=eta, reestimate_noise=True).plan(levels, predicts),
        levels,
    )


def same_step(one, other, levels):
    """Equal action on any x and model output: on (x_0, ε) = (1, 0) and (0, 1), which span them."""
    for plan in (one, other):
        assert plan.folded.shape == one.folded.shape
    by_signal = levels.cur.alpha_t, levels.nxt.alpha_t
    by_noise = levels.cur.sigma_t, levels.nxt.sigma_t
    for now, then in (by_signal, by_noise):
        # What the model returns for each, from the plan's own estimate: x̂₀ is 1 and 0.
        a, b = one.estimate.T
        output = ((now is by_signal[0]) - a * now) / b
        found = [column(p.folded, 0) * now + column(p.folded, 1) * output for p in (one, other)]
        size = abs(column(one.folded, 0) * now) + abs(column(one.folded, 1) * output) + then
        assert (abs(found[0] - found[1]) <= 1e-11 * size).all()
    np.testing.assert_allclose(column(one.folded, 3), column(other.folded, 3), rtol=1e-12, atol=0)


@each_sampler
@EXAMPLES
@given(levels=chains())
def test_the_last_step_to_no_noise_returns_the_estimate(sampler, levels):
    if levels.nxt.sigma_t[-1] == 0:
        row = sampler.rows(levels)[-1, 0]
        assert row[X] == row[NOISE_ESTIMATE] == 0 and row[X0] == levels.nxt.alpha_t[-1]
        assert (row[NOISE:] == 0).all()


def test_last_noise():
    """Only on request do the larger variances add noise at the step that ends the sample, and never at t = 0."""
    to_zero = Levels.chain([2, 1, 0], [0.6, 0.8, 1.0], [0.8, 0.6, 0.0])
    from_zero = Levels.chain([1, 0, np.nan], [0.6, 0.8, 1.0], [0.8, 0.6, 0.0])
    for variance, first, last in (("large", np.sqrt(0.8**2 - (0.75 * 0.6) ** 2), 0.6), ("unit", 1.0, 1.0)):
        stds = lambda levels, noise, kind=variance: column(DDPM(kind, last_noise=noise).rows(levels), NOISE)
        np.testing.assert_allclose(stds(to_zero, False), [first, 0], rtol=1e-15)
        np.testing.assert_allclose(stds(to_zero, True), [first, last], rtol=1e-15)
        np.testing.assert_allclose(stds(from_zero, True), [first, 0], rtol=1e-15)
    for levels in (to_zero, from_zero):
        assert column(DDPM(last_noise=True).rows(levels), NOISE)[-1] == 0


def test_pure_noise_is_forgotten():
    """From alpha = 0 x says nothing of x_0: the next x is drawn afresh around x̂₀."""
    levels = Levels.chain([2, 1, 0], [0.0, 0.6, 1.0], [1.0, 0.8, 0.0])
    for sampler in (DDPM(), DDIM(eta=1.0), DDPM("large")):
        row = sampler.rows(levels)[0, 0]
        np.testing.assert_allclose(
            row, [0, 0, 0.6, 0.8 if sampler != DDPM("large") else 1.0], rtol=0, atol=1e-16
        )
    assert DDIM().rows(levels)[0, 0].tolist() == [0, 0.8, 0.6]
    assert Euler().rows(levels)[0, 0].tolist() == [0.8, 0, 0.6]


# ---------------------------------------------------------------- change of coordinates


@settings(EXAMPLES, max_examples=400)
@given(
    sampler=st.sampled_from(list(SAMPLERS.values())),
    predicts=st.sampled_from(list(PREDICTIONS)),
    levels=chains(),
)
def test_karras_coordinates_give_the_same_sample_up_to_scale(sampler, predicts, levels):
    own, moved = (sampler.plan(where, predicts) for where in (levels, levels.to_karras()))
    # x of the moved plan is x / alpha: the model sees the same input, and the next x is x_next / alpha_next.
    np.testing.assert_allclose(moved.input_scale, own.input_scale * levels.cur.alpha_t, rtol=1e-14)
    assert (moved.timesteps == own.timesteps).all()
    np.testing.assert_allclose(moved.estimate[:, 0], own.estimate[:, 0] * levels.cur.alpha_t, rtol=1e-14)
    np.testing.assert_allclose(moved.estimate[:, 1], own.estimate[:, 1], rtol=1e-14)
    factors = (levels.cur.alpha_t / levels.nxt.alpha_t, 1 / levels.nxt.alpha_t, None, 1 / levels.nxt.alpha_t)
    level = levels.model_level
    output = PREDICTIONS[predicts]().target(level)
    for k in (0, 1, 3):
        one, other = column(moved.folded, k), column(own.folded, k) * factors[k]
        size = 1.0 if k != 1 else 1 / np.maximum(abs(output[0]), abs(output[1]))
        assert (abs(one - other) <= 1e-11 * (abs(one) + size * levels.cur.karras_sigma + size)).all()


# ---------------------------------------------------------------- whole plans


def perfect(predicts, x0, eps):
    """A model that knows x_0 and ε, asked at a level: the training target."""
    kind = PREDICTIONS[predicts]()

    def model(level):
        p, q = kind.target(level)
        return p * x0 + q * eps

    return model


@each_prediction
@pytest.mark.parametrize("steps", [1, 2, 1000])
@pytest.mark.parametrize(
    "spacing", [Trailing(), Trailing(final="sigma_min"), Karras(), Exponential(final=0.02)]
)
@pytest.mark.parametrize("moved", [False, True], ids=["x_t", "x_t/alpha"])
def test_a_perfect_model_keeps_the_sample_on_its_line(predicts, steps, spacing, moved):
    """alpha x_0 + sigma ε at every level of the plan, for the ODE samplers."""
    if spacing == Trailing(final="sigma_min") and steps == 1000:
        spacing = Trailing()
    if isinstance(spacing, Exponential):
        spacing = Exponential(sigma_min=0.03, final=0.02)
    levels = spacing.levels(BetaSchedule.named("linear"), steps)
    levels = levels.to_karras() if moved else levels
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 2, 3))
    model = perfect(predicts, x0, eps)
    for sampler in (DDIM(), Euler()):
        plan = sampler.plan(levels, predicts)
        state = init(plan, plan.alpha[0] * x0 + plan.sigma[0] * eps)
        for i in range(len(plan)):
            state = update(plan, i, state, model(levels.model_level[i]))
            line = plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * eps
            assert abs(state.x - line).max() <= 1e-11 * (1 + plan.sigma[i + 1])
        assert len(plan) == steps


def test_what_a_plan_records():
    levels = Trailing().levels(BetaSchedule.named("linear"), 5)
    plan = DDIM().plan(levels, "epsilon")
    assert plan.timesteps.tolist() == [999, 799, 599, 399, 199]
    assert plan.alpha.tolist() == [*levels.cur.alpha_t, 1.0] and plan.sigma.tolist() == [
        *levels.cur.sigma_t,
        0.0,
    ]
    assert plan.identity_input and not plan.stochastic.any()
    assert DDIM(eta=0.5).plan(levels, "epsilon").stochastic.tolist() == [True] * 4 + [False]
    assert not DDIM(eta=0.5).plan(levels.to_karras(), "epsilon").identity_input


# ---------------------------------------------------------------- churn


def mixture_denoiser(x, sigma):
    """E[x_0 | x] for x_0 = ±1 with equal chance: not linear in x, so that a wrong level or order of events shows."""
    return np.tanh(x / sigma**2)


def algorithm_2(sigmas, x, noises, s_churn, s_tmin, s_tmax, s_noise, sigma_cap=np.inf):
    """Karras et al. 2022, algorithm 2, lines 2 to 8 without the correction; x is at sigmas[0], noise goes in before the call."""
    steps = len(sigmas) - 1
    for i in range(steps):
        gamma = min(s_churn / steps, np.sqrt(2) - 1) if s_tmin <= sigmas[i] <= s_tmax else 0.0
        raised = min(sigmas[i] * (1 + gamma), max(sigma_cap, sigmas[i]))
        raised_x = x + np.sqrt(raised**2 - sigmas[i] ** 2) * s_noise * noises[i]
        slope = (raised_x - mixture_denoiser(raised_x, raised)) / raised
        x = raised_x + (sigmas[i + 1] - raised) * slope
    return x


def output_of(predicts, x, level):
    """What a model with this prediction returns for model input ``x``, x_t at ``level``, from its estimate of x_0."""
    x0 = mixture_denoiser(x / level.alpha_t, level.sigma_t / level.alpha_t)
    eps = (x - level.alpha_t * x0) / level.sigma_t
    return {"epsilon": eps, "sample": x0, "v_prediction": level.alpha_t * eps - level.sigma_t * x0}[predicts]


CHURNS = {
    "none": {},
    "some": {"s_churn": 3.0},
    "all it can": {"s_churn": 1e3},
    "window": {"s_churn": 40.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.003},
    "quiet": {"s_churn": 5.0, "s_noise": 0.0},
}


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize(
    "schedule", [EDMSchedule(), BetaSchedule.named("linear"), RectifiedFlow()], ids=["edm", "vp", "flow"]
)
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_churn_is_algorithm_2(predicts, churn, schedule, steps):
    options = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0} | CHURNS[churn]
    levels = Karras(sigma_max=50.0, sigma_min=0.05).levels(schedule, steps).to_karras()
    sigmas = np.append(levels.cur.sigma_t, 0.0)
    rng = np.random.default_rng(1)
    start, noises = rng.standard_normal(64) * sigmas[0], rng.standard_normal((steps, 64))
    wanted = algorithm_2(sigmas, start, noises, **options)

    plan = Euler(schedule=schedule, **options).plan(levels, predicts)
    # The first noise is part of the start sample, which lies at plan.sigma[0]; noise i + 1 goes in at the end of row i.
    x = start + options["s_noise"] * np.sqrt(plan.sigma[0] ** 2 - sigmas[0] ** 2) * noises[0]
    state = init(plan, x)
    for i in range(steps):
        level = schedule.level(plan.timesteps[i])
        assert level.karras_sigma == pytest.approx(plan.sigma[i], rel=1e-9)
        output = output_of(predicts, scale_input(plan, i, state.x), level)
        noise = None if not plan.stochastic[i] else noises[i + 1]
        state = update(plan, i, state, output, noise)
    np.testing.assert_allclose(state.x, wanted, rtol=1e-9, atol=1e-9)
    assert plan.stochastic[-1] == np.False_
    if churn in ("none", "quiet"):
        assert plan.noises == 0


def test_churn_raises_levels_by_its_factor_inside_its_window():
    levels = Karras(sigma_max=50.0, sigma_min=0.05).levels(EDMSchedule(), 10)
    sigma = levels.cur.sigma_t
    plan = Euler(s_churn=2.0, s_tmin=0.3, s_tmax=20.0, schedule=EDMSchedule()).plan(levels, "epsilon")
    inside = (sigma >= 0.3) & (sigma <= 20.0)
    assert 0 < inside.sum() < 10
    np.testing.assert_allclose(plan.sigma[:-1], sigma * np.where(inside, 1.2, 1.0), rtol=1e-15)
    full = Euler(s_churn=1e9, schedule=EDMSchedule()).plan(levels, "epsilon")
    np.testing.assert_allclose(full.sigma[:-1], sigma * np.sqrt(2), rtol=1e-15)


def test_churn_stays_inside_the_schedule():
    """Where algorithm 2 would call the model above the noise that it was trained at."""
    levels = Karras().levels(EDMSchedule(), 10)
    plan = Euler(s_churn=2.0, schedule=EDMSchedule()).plan(levels, "epsilon")
    assert plan.sigma[0] == 80.0 == levels.cur.sigma_t[0]
    np.testing.assert_allclose(plan.sigma[1:-1], 1.2 * levels.cur.sigma_t[1:], rtol=1e-15)


def test_churn_refuses():
    with pytest.raises(ValueError, match="schedule"):
        Euler(s_churn=1.0)
    with pytest.raises(ValueError, match="to_karras"):
        Euler(s_churn=1.0, schedule=RectifiedFlow()).plan(Trailing().levels(RectifiedFlow(), 4), "epsilon")
    for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
        for bad in (-1.0, np.nan):
            with pytest.raises(ValueError, match=name):
                Euler(**{name: bad}, schedule=EDMSchedule())


def late_churn(sigmas, x, noises, predicts, s_churn, s_tmin, s_tmax, s_noise, count):
    """Plain loop: the model sees x, then noise goes in, then x̂₀ is made of the noisier x and of the output.

    The noise estimate is subtracted at the raised level; v is read at the level that the model was told.
    """
    for i in range(len(sigmas) - 1):
        sigma = sigmas[i]
        level = Level(np.nan, 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2))
        output = output_of(predicts, x * level.alpha_t, level)
        gamma = min(s_churn / count, np.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        raised = sigma * (1 + gamma)
        x = x + np.sqrt(raised**2 - sigma**2) * s_noise * noises[i]
        x0 = {
            "epsilon": x - raised * output,
            "sample": output,
            "v_prediction": x / (1 + sigma**2) - output * sigma / np.sqrt(1 + sigma**2),
        }[predicts]
        x = x + (sigmas[i + 1] - raised) * (x - x0) / raised
    return x


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize("count", [None, 13])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_late_churn(predicts, churn, count, steps):
    options = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0} | CHURNS[churn]
    schedule = BetaSchedule.named("linear")
    levels = Karras(sigma_max=50.0, sigma_min=0.05).levels(schedule, steps).to_karras()
    sigmas = np.append(levels.cur.sigma_t, 0.0)
    rng = np.random.default_rng(2)
    start, noises = rng.standard_normal(64) * sigmas[0], rng.standard_normal((steps, 64))
    wanted = late_churn(sigmas, start, noises, predicts, **options, count=count or steps)

    plan = LateChurnEuler(**options, count=count).plan(levels, predicts)
    state = init(plan, start)
    for i in range(steps):
        output = output_of(predicts, scale_input(plan, i, state.x), levels.model_level[i])
        state = update(plan, i, state, output, noises[i] if plan.stochastic[i] else None)
    np.testing.assert_allclose(state.x, wanted, rtol=1e-10, atol=1e-10)


@each_prediction
@EXAMPLES
@given(levels=chains())
def test_late_churn_without_churn_is_euler(predicts, levels):
    assert LateChurnEuler() == LateChurnEuler(0.0, 0.0, np.inf, 1.0, None)
    levels = levels.to_karras()
    one, other = LateChurnEuler().plan(levels, predicts), Euler().plan(levels, predicts)
    assert one.noises == 0
    same_step(one, other, levels)
    np.testing.assert_allclose(one.timesteps, other.timesteps, rtol=0)
    np.testing.assert_allclose(one.input_scale, other.input_scale, rtol=1e-15)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("eta", [-0.1, 1.1, 2, np.nan, np.inf])
def test_eta_refused(eta):
    with pytest.raises(ValueError, match=r"eta=.*outside \[0, 1\]"):
        DDIM(eta=eta)


@pytest.mark.parametrize("variance", ["fixed_small", "learned", "", None])
def test_variance_refused(variance):
    with pytest.raises(ValueError, match="variance="):
        DDPM(variance)
