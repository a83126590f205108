"""Euler ancestral: its own letters, special cases, options, and whole loops in k-diffusion's order of events."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import (
    DDIM,
    DDPM,
    BetaSchedule,
    Clip,
    Euler,
    EulerAncestral,
    EulerAncestralDiscreteScheduler,
    Karras,
    Levels,
    RectifiedFlow,
    Trailing,
    init,
    update,
)
from anystep.predictions import PREDICTIONS

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=60)


def uneven_chain(steps, unit, clean, seed):
    """Levels in any coordinates whose ratios drop by 1 % to a factor of 1000."""
    rng = np.random.default_rng(seed)
    ratios = 10.0 ** (rng.uniform(-1, 2.5) - np.append(0.0, np.cumsum(10.0 ** rng.uniform(-2.4, 0.5, steps))))
    if clean:
        ratios[-1] = 0.0
    alpha_t = {
        "vp": 1 / np.sqrt(1 + ratios**2),
        "karras": np.ones(steps + 1),
        "any": 10.0 ** rng.uniform(-1, 1, steps + 1),
    }[unit]
    return Levels.chain(np.arange(steps + 1)[::-1], alpha_t, alpha_t * ratios)


def chains(*units):
    return st.builds(
        uneven_chain, st.integers(1, 6), st.sampled_from(units), st.booleans(), st.integers(0, 2**32 - 1)
    )


everywhere = chains("vp", "karras", "any")


def wide(rows):
    """With the column of the noise, also where no row adds any."""
    return np.concatenate([rows, np.zeros((*rows.shape[:2], 4 - rows.shape[2]))], axis=2)[:, 0]


@EXAMPLES
@given(levels=chains("karras"), eta=st.floats(0, 3), s_noise=st.floats(0, 2))
def test_in_its_own_letters(levels, eta, s_noise):
    """get_ancestral_step, then x + d (sigma_down - sigma) + s_noise sigma_up z, for an ε-model and for its denoised sample."""
    now, then = levels.cur.sigma_t, levels.nxt.sigma_t
    up = np.minimum(then, eta * np.sqrt(then**2 * (now**2 - then**2) / now**2))
    down = np.sqrt(np.maximum(then**2 - up**2, 0.0))
    plan = EulerAncestral(eta, s_noise).plan(levels, "epsilon")
    row = wide(plan.folded)
    assert (abs(row[:, 0] - 1) <= 1e-14).all()
    # then² - up² keeps half the digits where the two are near.
    assert (abs(row[:, 1] - (down - now)) <= 3e-8 * then + 1e-14 * now).all()
    np.testing.assert_allclose(row[:, 3], s_noise * up, rtol=1e-11, atol=1e-300)
    denoised = wide(EulerAncestral(eta, s_noise).rows(levels))
    assert (abs(denoised[:, 0] - down / now) <= 3e-8 * then / now).all()
    assert (abs(denoised[:, 0] + denoised[:, 2] - 1) <= 1e-15).all()
    assert (denoised[:, 1] == 0).all()


@EXAMPLES
@given(levels=everywhere, eta=st.floats(0, 1))
def test_it_is_ddim_that_takes_the_noise_from_the_estimate(levels, eta):
    one, other = EulerAncestral(eta).rows(levels), DDIM(eta=eta, reestimate_noise=True).rows(levels)
    scale = (
        levels.nxt.alpha_t + levels.nxt.sigma_t / levels.cur.sigma_t * levels.cur.alpha_t + levels.nxt.sigma_t
    )
    # DDIM's √(sigma_nxt² - std²) cancels.
    assert (abs(wide(one) - wide(other)) <= 3e-8 * scale[:, None]).all()


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_with_a_threshold_too(predicts):
    levels, rng = Trailing().levels(BetaSchedule.named("linear"), 6), np.random.default_rng(0)
    plans = [
        s.plan(levels, predicts, Clip(0.5))
        for s in (EulerAncestral(0.7), DDIM(eta=0.7, reestimate_noise=True))
    ]
    x, m, z = rng.standard_normal((3, 2, 5))
    for i in range(6):
        one, other = (update(p, i, init(p, x), m, z if p.stochastic[i] else None).x for p in plans)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@EXAMPLES
@given(levels=everywhere)
def test_eta_0_is_euler_and_eta_1_is_ddpm(levels):
    np.testing.assert_allclose(EulerAncestral(0.0).rows(levels), Euler().rows(levels), rtol=1e-14)
    assert EulerAncestral(0.0).plan(levels, "sample").noises == 0
    one, other = wide(EulerAncestral().rows(levels)), wide(DDPM().rows(levels))
    scale = (
        levels.nxt.alpha_t + levels.nxt.sigma_t / levels.cur.sigma_t * levels.cur.alpha_t + levels.nxt.sigma_t
    )
    assert (abs(one - other) <= 1e-13 * scale[:, None]).all()
    np.testing.assert_allclose(one[:, 0], other[:, 0], rtol=1e-12)


@EXAMPLES
@given(levels=everywhere)
def test_a_large_eta_replaces_all_noise(levels):
    row = wide(EulerAncestral(1e9).rows(levels))
    assert (row[:, :2] == 0).all()
    np.testing.assert_array_equal(row[:, 2], levels.nxt.alpha_t)
    np.testing.assert_array_equal(row[:, 3], levels.nxt.sigma_t)


@EXAMPLES
@given(levels=everywhere, eta=st.floats(0, 2), s_noise=st.floats(0, 2))
def test_s_noise_scales_the_noise_alone(levels, eta, s_noise):
    one, plain = wide(EulerAncestral(eta, s_noise).rows(levels)), wide(EulerAncestral(eta).rows(levels))
    np.testing.assert_array_equal(one[:, :3], plain[:, :3])
    np.testing.assert_array_equal(one[:, 3], s_noise * plain[:, 3])


def test_the_last_step_returns_the_estimate():
    for levels in (Karras().levels(BetaSchedule.named("linear"), 5), Trailing().levels(RectifiedFlow(), 5)):
        row = EulerAncestral(0.8, 1.1).rows(levels)[-1, 0]
        assert row[0] == row[1] == row[3] == 0 and row[2] == levels.nxt.alpha_t[-1]


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_whole_loop(steps):
    """In k-diffusion's order of events, for a nonlinear model: denoise, step down, add noise unless at the end."""
    schedule = BetaSchedule.named("scaled_linear")
    plan = EulerAncestral(0.9, 1.05).plan(Karras().levels(schedule, steps).to_karras(), "sample")
    sigmas, denoise = plan.sigma, lambda x, sigma: np.tanh(x / (1 + sigma**2))
    rng = np.random.default_rng(0)
    x = sigmas[0] * rng.standard_normal(7)
    state = init(plan, x)
    for i in range(steps):
        noise = rng.standard_normal(7)
        state = update(plan, i, state, denoise(state.x, sigmas[i]), noise if plan.stochastic[i] else None)
        now, then = sigmas[i], sigmas[i + 1]
        up = min(then, 0.9 * then * np.sqrt(1 - (then / now) ** 2))
        x = x + (x - denoise(x, now)) / now * (np.sqrt(then**2 - up**2) - now)
        if then > 0:
            x = x + 1.05 * up * noise
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-11 * sigmas[0])


def test_the_facade_is_the_sampler():
    facade, x = EulerAncestralDiscreteScheduler(), np.random.default_rng(0).standard_normal((2, 3))
    facade.set_timesteps(9)
    plan = EulerAncestral().plan(facade._levels, "epsilon")
    one, state = x * plan.sigma[0], init(plan, x * plan.sigma[0])
    rngs = [np.random.default_rng(1), np.random.default_rng(1)]
    for i, t in enumerate(facade.timesteps):
        output = np.tanh(facade.scale_model_input(one, t))
        one = facade.step(output, t, one, generator=rngs[0]).prev_sample
        noise = rngs[1].standard_normal((2, 3))
        state = update(plan, i, state, output, noise if plan.stochastic[i] else None)
        np.testing.assert_array_equal(one, state.x)
    assert rngs[0].standard_normal() == rngs[1].standard_normal()


@pytest.mark.parametrize("name", ["eta", "s_noise"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, -np.inf])
def test_options_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        EulerAncestral(**{name: value})
