"""Stochastic samplers on Gaussian data, whose exact model makes every step linear in x: the moments have closed recursions.

A sample of 10^5 runs is compared with the recursion, and the recursion with the data that it should arrive at.
"""

import numpy as np
import pytest

from anystep import (
    DDIM,
    DDPM,
    VP,
    BetaSchedule,
    Cosine,
    EDMSchedule,
    Euler,
    EulerAncestral,
    Karras,
    Levels,
    RectifiedFlow,
    Trailing,
    init,
    scale_input,
    update,
)

COUNT = 100_000
MEAN, STD = 0.4, 0.7
STEPS = (64, 128, 256, 512)


def marginal(alpha_t, sigma_t, mean=MEAN, std=STD):
    """Mean and variance of x_t for data N(mean, std²)."""
    return alpha_t * mean, alpha_t**2 * std**2 + sigma_t**2


def estimate_line(level, mean=MEAN, std=STD):
    """E[x_0 | x_t] = p x_t + q, by projection of x_0 on x_t: what a sample-model returns."""
    center, variance = marginal(level.alpha_t, level.sigma_t, mean, std)
    p = level.alpha_t * std**2 / variance
    return p, mean - p * center


def noise_line(level, mean=MEAN, std=STD):
    """E[ε | x_t] = p x_t + q: what an ε-model returns."""
    center, variance = marginal(level.alpha_t, level.sigma_t, mean, std)
    p = level.sigma_t / variance
    return p, -p * center


def recursion(plan, level, mean, variance, data=(MEAN, STD), predicts=noise_line):
    """Moments before the first row of a plan and after each: x_next = A x + B m + C z with m = p (scale x) + q."""
    p, q = predicts(level, *data)
    moments = [(mean, variance)]
    for i in range(len(plan)):
        row = plan.folded[i, 0]
        factor = row[0] + row[1] * p[i] * plan.input_scale[i]
        added = row[3] if plan.noises else 0.0
        mean, variance = factor * mean + row[1] * q[i], factor**2 * variance + added**2
        moments.append((mean, variance))
    return np.asarray(moments)


def start(plan, data=(MEAN, STD)):
    """Moments of the sample at the first level of the plan, in its coordinates."""
    return marginal(plan.alpha[0], plan.sigma[0], *data)


def model_level(schedule, plan):
    return schedule.level(plan.timesteps)


def grid(schedule, steps):
    """Even in log karras_sigma from 30 to 0.02, by a formula of this test."""
    level = schedule.at(np.geomspace(30.0, 0.02, steps + 1))
    return Levels.chain(level.t, level.alpha_t, level.sigma_t)


SAMPLERS = {
    "DDPM": (DDPM(), Cosine(), False),
    "DDPM, large": (DDPM("large"), Cosine(), False),
    "DDIM, eta=1": (DDIM(eta=1.0), VP(), False),
    "DDIM, eta=0.5": (DDIM(eta=0.5), RectifiedFlow(), False),
    "DDIM, eta=1, x / alpha": (DDIM(eta=1.0), VP(), True),
    "Euler ancestral": (EulerAncestral(), EDMSchedule(), True),
    "Euler ancestral, vp": (EulerAncestral(), VP(), False),
    "Euler ancestral, eta=0.5": (EulerAncestral(0.5), RectifiedFlow(), False),
    "Euler, churn": (Euler(s_churn=10.0, schedule=EDMSchedule()), EDMSchedule(), True),
    "Euler, churn, vp": (Euler(s_churn=10.0, s_tmin=0.05, s_tmax=10.0, schedule=VP()), VP(), True),
}
each = pytest.mark.parametrize(("sampler", "schedule", "moved"), SAMPLERS.values(), ids=SAMPLERS)


def made(sampler, schedule, moved, steps):
    levels = grid(schedule, steps)
    return sampler.plan(levels.to_karras() if moved else levels, "epsilon")


@each
def test_samples_have_the_moments_of_the_recursion(sampler, schedule, moved):
    plan = made(sampler, schedule, moved, 20)
    level = model_level(schedule, plan)
    p, q = noise_line(level)
    rng = np.random.default_rng(7)
    mean, variance = start(plan)
    expected = recursion(plan, level, mean, variance)
    state = init(plan, mean + np.sqrt(variance) * rng.standard_normal(COUNT))
    for i in range(len(plan)):
        output = p[i] * scale_input(plan, i, state.x) + q[i]
        state = update(plan, i, state, output, rng.standard_normal(COUNT) if plan.stochastic[i] else None)
        mean, variance = expected[i + 1]
        # Five standard errors: 1 in 10^6 per comparison, and the seed is fixed.
        assert abs(state.x.mean() - mean) < 5 * np.sqrt(variance / COUNT)
        assert abs(state.x.var() - variance) < 5 * variance * np.sqrt(2 / COUNT)
    fourth = ((state.x - mean) ** 4).mean() / variance**2
    assert abs(fourth - 3) < 5 * np.sqrt(96 / COUNT)


@each
def test_the_moments_converge_to_those_of_the_data(sampler, schedule, moved):
    """With order 1 in the variance, measured 0.95 to 1.01; x at its mean moves along the line of means, exactly."""
    errors = []
    for steps in STEPS:
        plan = made(sampler, schedule, moved, steps)
        found = recursion(plan, model_level(schedule, plan), *start(plan))[-1]
        wanted = marginal(plan.alpha[-1], plan.sigma[-1])
        errors.append(abs(found - wanted))
    errors = np.asarray(errors)
    assert errors[:, 0].max() < 1e-12
    slope = -np.polyfit(np.log(STEPS), np.log(errors[:, 1]), 1)[0]
    assert abs(slope - 1) < 0.1
    assert errors[-1, 1] < 0.02 * STD**2


@pytest.mark.parametrize("sampler", [DDPM(), DDPM("large"), DDIM(eta=1.0), DDIM(eta=0.5), DDIM()], ids=repr)
@pytest.mark.parametrize(
    ("spacing", "schedule", "predicts", "line"),
    [
        (Trailing(), BetaSchedule.named("linear"), "epsilon", noise_line),
        (Trailing(), Cosine(), "sample", estimate_line),
    ],
    ids=["linear", "cosine"],
)
def test_whole_schedules_arrive_at_the_data(sampler, spacing, schedule, predicts, line):
    """From pure noise to none, as in use. The linear schedule keeps 0.6 % of the signal at its noisy end, so of the mean."""
    errors = []
    for steps in (25, 50, 100, 200, 400, 800):
        levels = spacing.levels(schedule, steps)
        plan = sampler.plan(levels, predicts)
        errors.append(abs(recursion(plan, levels.model_level, 0.0, 1.0, predicts=line)[-1] - (MEAN, STD**2)))
    errors = np.asarray(errors)
    assert (np.diff(errors[:, 1]) < 0).all()
    assert errors[-1, 1] < 0.02 * STD**2
    assert errors[-1, 0] < (1e-12 if isinstance(schedule, Cosine) else 2e-3)


def test_churn_arrives_at_the_data():
    """Karras et al. 2022, table 5, churn of their ImageNet sampler, from 80 to 0.002 and to 0."""
    errors = []
    for steps in (256, 512, 1024, 2048):
        sampler = Euler(s_churn=40.0, s_tmin=0.05, s_tmax=50.0, schedule=EDMSchedule())
        plan = sampler.plan(Karras().levels(EDMSchedule(), steps), "epsilon")
        found = recursion(plan, model_level(EDMSchedule(), plan), 0.0, plan.sigma[0] ** 2)
        errors.append(abs(found[-1, 1] - STD**2))
    assert (np.diff(errors) < 0).all()
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.08)
    assert errors[-1] < 0.02 * STD**2


# ---------------------------------------------------------------- data for which a variance is exactly right


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    "sampler", [DDPM(), DDIM(), DDIM(eta=0.5), DDIM(eta=1.0), Euler(), EulerAncestral()], ids=repr
)
def test_one_point_as_data(sampler, steps):
    """The posterior's variance, and any smaller one with the rest kept as ε̂, give the right marginals at every level."""
    for schedule in (BetaSchedule.named("linear"), VP(), RectifiedFlow(), EDMSchedule()):
        levels = grid(schedule, steps)
        plan = sampler.plan(levels, "epsilon")
        found = recursion(plan, levels.model_level, *start(plan, (MEAN, 0.0)), data=(MEAN, 0.0))
        np.testing.assert_allclose(
            found, np.stack(marginal(plan.alpha, plan.sigma, MEAN, 0.0), -1), rtol=1e-11
        )


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_standard_normal_as_data(steps):
    """Ho et al. 2020, section 3.2: the larger variance is right for x_0 ~ N(0, 1)."""
    for schedule in (BetaSchedule.named("linear"), VP(), Cosine()):
        levels = grid(schedule, steps)
        plan = DDPM("large").plan(levels, "epsilon")
        found = recursion(plan, levels.model_level, *start(plan, (0.0, 1.0)), data=(0.0, 1.0))
        np.testing.assert_allclose(found, np.broadcast_to([0.0, 1.0], found.shape), rtol=1e-12)
