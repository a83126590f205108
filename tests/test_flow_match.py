"""Rectified flow on anystep's own face, and `FlowMatchEulerDiscreteScheduler` on any array: mathematics, libraries, copies."""

import copy
import json
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anystep import (
    DDIM,
    VP,
    BetaSchedule,
    Clip,
    EDMSchedule,
    Euler,
    Flow,
    FlowMatchEulerDiscreteScheduler,
    Karras,
    Level,
    Levels,
    Linspace,
    MultistepConsistency,
    RectifiedFlow,
    Shifted,
    Trailing,
    init,
    reproducible,
    sample,
    update,
)
from anystep._array import backend, kind
from anystep.spacings.flow import shift_flow
from reference.any_array import CELLS

FLOW = RectifiedFlow()
X = np.random.default_rng(0).standard_normal((2, 6, 3))
STOCHASTIC = {"stochastic_sampling": True}


def flow_scheduler(steps=None, device=None, mu=0.8, **config):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    if steps is not None:
        scheduler.set_timesteps(steps, device=device, mu=mu)
    return scheduler


# --- what the method does, from the definitions ---


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "config", [{}, {"shift": 3.0}, {"use_beta_sigmas": True}, {"use_dynamic_shifting": True}], ids=str
)
def test_a_straight_path_is_followed_exactly(config, steps):
    """Data and noise in pairs: the velocity is constant, and any number of steps lands on the data."""
    x0, noise = np.tanh(X), np.random.default_rng(1).standard_normal(X.shape)
    scheduler = flow_scheduler(steps, **config)
    x = scheduler.scale_noise(x0, scheduler.timesteps[:1], noise)
    assert np.array_equal(x, noise)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(noise - x0, t, x).prev_sample
        sigma = scheduler.sigmas[i + 1]
        assert abs(x - ((1 - sigma) * x0 + sigma * noise)).max() <= 1e-14 * math.sqrt(steps)


def gaussian_velocity(x, u, mean=0.3, std=0.6):
    """E[ε - x_0 | x] for data N(mean, std²)."""
    variance = (1 - u) ** 2 * std**2 + u**2
    x0 = mean + (1 - u) * std**2 / variance * (x - (1 - u) * mean)
    return (x - x0) / u


def gaussian_end(x, mean=0.3, std=0.6):
    """Where the flow takes a start of standard normal noise."""
    return mean + std * x


@pytest.mark.parametrize(
    "config",
    [{}, {"shift": 3.0}, {"shift": 0.5}, {"use_karras_sigmas": True}, {"invert_sigmas": True}],
    ids=str,
)
def test_facade_has_order_1(config):
    """Even and uneven grids; the default one ends at 1 / T, so T is large."""
    starts, errors, counts = np.linspace(-2, 2, 5), [], (64, 128, 256)
    for steps in counts:
        scheduler = flow_scheduler(steps, num_train_timesteps=10**6, **config).corrected()
        scheduler.set_timesteps(steps)
        inverted, x = "invert_sigmas" in config, starts
        for t in scheduler.timesteps:
            u = 1 - t / 1e6 if inverted else t / 1e6
            velocity = gaussian_velocity(x, u)
            x = scheduler.step(-velocity if inverted else velocity, t, x).prev_sample
        errors.append(abs(x - gaussian_end(starts)).max())
    slopes = -np.diff(np.log(errors)) / math.log(2)
    assert abs(slopes[-1] - 1) < 0.06, (slopes, errors)


def test_the_last_step_is_the_estimate():
    scheduler = flow_scheduler(3)
    scheduler.set_begin_index(2)
    assert np.allclose(scheduler.step(X, scheduler.timesteps[2], X).prev_sample, X - 1e-3 * X, rtol=1e-15)


def test_own_face_is_the_facade():
    """DDIM and Euler on rectified flow are the deterministic facade, MultistepConsistency is the stochastic one."""
    spacing = Shifted(Trailing(), 3.0)
    levels = spacing.levels(FLOW, 5)
    base = Trailing().levels(FLOW, 5).cur.sigma_t
    for samplers, config in (((DDIM(), Euler()), {}), ((MultistepConsistency(),), STOCHASTIC)):
        scheduler = flow_scheduler(shift=3.0, **config)
        scheduler.set_timesteps(sigmas=base)
        assert np.allclose(scheduler.timesteps, levels.cur.t, rtol=1e-14)
        rng, runs = np.random.default_rng(4), []
        noises = [rng.standard_normal(X.shape, dtype=np.float32).astype(float) for _ in range(5)]
        for sampler in samplers:
            plan = sampler.plan(levels, "flow_prediction")
            state = init(plan, X)
            for i in range(5):
                velocity = np.tanh(state.x) + plan.sigma[i]
                state = update(plan, i, state, velocity, noises[i] if plan.noises else None)
            runs.append(state.x)
        x, rng = X.astype(float), np.random.default_rng(4)
        for t in scheduler.timesteps:
            drawn = Widened(rng)
            x = scheduler.step(np.tanh(x) + t / 1000, t, x, generator=drawn).prev_sample
        for run in runs:
            assert abs(run - x).max() <= 1e-14


class Widened(np.random.Generator):
    """Draws of float32, whatever dtype is asked for."""

    def __init__(self, rng):
        super().__init__(rng.bit_generator)

    def standard_normal(self, size=None, dtype=None, out=None):
        return super().standard_normal(size, dtype=np.float32).astype(dtype)


# --- shifts ---


@settings(max_examples=50, deadline=None, derandomize=True)
@given(first=st.floats(0.1, 10), second=st.floats(0.1, 10), steps=st.integers(1, 40))
def test_shifts_multiply(first, second, steps):
    """Shift s1, then s2, is shift s1 s2; the default grid is the one shifted twice."""
    once, twice, base = (flow_scheduler(shift=s) for s in (first * second, second, 1.0))
    base.set_timesteps(steps)
    moved = flow_scheduler(shift=first)
    moved.set_timesteps(sigmas=base.sigmas[:-1])
    once.set_timesteps(sigmas=base.sigmas[:-1])
    twice.set_timesteps(sigmas=moved.sigmas[:-1])
    assert np.allclose(once.sigmas, twice.sigmas, rtol=1e-12)
    back = flow_scheduler(shift=1 / first)
    back.set_timesteps(sigmas=moved.sigmas[:-1])
    assert np.allclose(back.sigmas, base.sigmas, rtol=1e-12)


def test_shift_multiplies_the_ratio():
    """Esser et al., equation 23, solved by sympy from what it is to mean."""
    u, s, p, moved = sympy.symbols("u s p moved", positive=True)
    solved = sympy.solve(sympy.Eq(moved / (1 - moved), s * (u / (1 - u)) ** p), moved)[0]
    for level, shift, power in ((0.3, 3, 1), (0.9, 0.4, 1), (0.3, 2.5, 2), (0.7, 0.3, 0.5)):
        wanted = float(solved.subs({u: sympy.Float(level, 30), s: shift, p: power}))
        assert shift_flow(level, shift, power) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift_is_a_shift_of_each_run(kind):
    scheduler = flow_scheduler(use_dynamic_shifting=True, time_shift_type=kind, shift=17.0)
    for mu in (0.5, 1.15):
        factor = math.exp(mu) if kind == "exponential" else mu
        fixed = flow_scheduler(shift=factor)
        given_sigmas = np.linspace(1, 0.25, 4)
        scheduler.set_timesteps(sigmas=given_sigmas, mu=mu)
        fixed.set_timesteps(sigmas=given_sigmas)
        assert np.allclose(scheduler.sigmas, fixed.sigmas, rtol=1e-14)
        scheduler.set_timesteps(9, mu=mu)  # the default grid is shifted once
        assert np.allclose(scheduler.sigmas[:-1], shift_flow(np.linspace(1, 1e-3, 9), factor), rtol=1e-14)


@pytest.mark.parametrize("terminal", [0.05, 0.5, 0.9])
def test_terminal(terminal):
    """The last level is the terminal one, and 1 - sigma is scaled by one factor."""
    plain, stretched = flow_scheduler(6, shift=2.0), flow_scheduler(6, shift=2.0, shift_terminal=terminal)
    assert stretched.sigmas[-2] == pytest.approx(terminal, rel=1e-14) and stretched.sigmas[-1] == 0
    factors = (1 - stretched.sigmas[1:-1]) / (1 - plain.sigmas[1:-1])
    assert np.allclose(factors, factors[0], rtol=1e-12)
    assert stretched.sigmas[0] == 1


def test_inverted_sigmas_are_the_share_of_the_data():
    plain, inverted = flow_scheduler(6), flow_scheduler(6, invert_sigmas=True)
    assert np.allclose(inverted.sigmas, 1 - plain.sigmas, rtol=1e-15)
    assert np.allclose(inverted.timesteps, 1000 - plain.timesteps, rtol=1e-13)
    x, y = X, X
    for t, s in zip(plain.timesteps, inverted.timesteps, strict=True):
        x, y = plain.step(np.tanh(x), t, x).prev_sample, inverted.step(-np.tanh(y), s, y).prev_sample
        assert np.allclose(x, y, rtol=1e-13)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(alpha=st.floats(0.01, 1), sigma=st.floats(0.01, 1))
def test_flow_toward_the_data_is_the_negative(alpha, sigma):
    level = Level(0, alpha, sigma)
    for one, other in zip(Flow().to_sample(level) + Flow().to_noise(level), _toward(level), strict=True):
        assert one == other
    x0, noise = 0.3, -1.1
    a, b = Flow(toward_data=True).to_sample(level)
    assert a * (alpha * x0 + sigma * noise) + b * (x0 - noise) == pytest.approx(x0, rel=1e-12)
    c, d = Flow(toward_data=True).to_noise(level)
    assert c * (alpha * x0 + sigma * noise) + d * (x0 - noise) == pytest.approx(noise, rel=1e-12)
    assert Flow(toward_data=True).target(level) == pytest.approx((1, -1), rel=1e-9)


def _toward(level):
    (a, b), (c, d) = Flow(toward_data=True).to_sample(level), Flow(toward_data=True).to_noise(level)
    return a, -b, c, -d


# --- multistep consistency ---

PROCESSES = {
    "flow": (FLOW, Linspace()),
    "vp": (VP(), Linspace()),
    "edm": (EDMSchedule(), Karras()),
    "table": (BetaSchedule.named("linear"), Trailing()),
}
processes = pytest.mark.parametrize("process", PROCESSES)


@processes
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_consistency_model_is_sampled_exactly(process, steps):
    """For a point of data the clean sample is known: every step lands on the forward process, the last on the data."""
    schedule, spacing = PROCESSES[process]
    plan = MultistepConsistency().plan(spacing.levels(schedule, steps), "sample")
    x0, rng = np.tanh(X), np.random.default_rng(2)
    state = init(plan, X * 100)  # whatever it starts from
    for i in range(len(plan)):
        noise = rng.standard_normal(X.shape)
        state = update(plan, i, state, x0, noise if plan.noises else None)
        assert np.allclose(
            state.x, plan.alpha[i + 1] * x0 + plan.sigma[i + 1] * noise, rtol=1e-13, atol=1e-13
        )
    assert np.array_equal(state.x, x0)


@processes
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_consistency_is_what_algorithm_1_says(process, predicts):
    """In coordinates where alpha = 1: x = f + tau z, by hand."""
    schedule, spacing = PROCESSES[process]
    levels = spacing.levels(schedule, 4)
    if process == "flow" and predicts == "epsilon":
        levels = Levels(levels.cur[1:], levels.nxt[1:])  # ε says nothing of the data at pure noise
    plan = MultistepConsistency().plan(levels, predicts)
    rng = np.random.default_rng(5)
    x, m, z = (rng.standard_normal(8) for _ in range(3))
    for i in range(len(plan) - 1):
        a, s = plan.alpha[i], plan.sigma[i]
        by_hand = {
            "epsilon": lambda a, s: (x - s * m) / a,
            "sample": lambda a, s: m,
            "v_prediction": lambda a, s: (a * x - s * m) / (a * a + s * s),
            "flow_prediction": lambda a, s: (x - s * m) / (a + s),
        }[predicts](a, s)
        tau = plan.sigma[i + 1] / plan.alpha[i + 1]
        moved = update(plan, i, init(plan, x), m, z).x / plan.alpha[i + 1]
        assert np.allclose(moved, by_hand + tau * z, rtol=1e-10, atol=1e-10)


def test_consistency_with_a_bound():
    levels = Linspace().levels(FLOW, 3)
    plan = MultistepConsistency().plan(levels, "flow_prediction", Clip(0.5))
    moved = update(plan, 0, init(plan, X), X * 3, X * 0).x
    assert np.allclose(moved, plan.alpha[1] * np.clip(X - 3 * X, -0.5, 0.5), rtol=1e-14)


def test_consistency_moments():
    """1e5 paths through the facade: from a consistency function of Gaussian data the law at every level is the forward one."""
    count, mean, std = 100_000, 0.3, 0.6
    scheduler = flow_scheduler(4, shift=2.0, **STOCHASTIC)
    rng = np.random.default_rng(11)
    x = rng.standard_normal((count, 1))
    for i, t in enumerate(scheduler.timesteps):
        u, then = scheduler.sigmas[i : i + 2]
        size = math.sqrt((1 - u) ** 2 * std**2 + u**2)
        end = mean + std * (x - (1 - u) * mean) / size  # the end of the path through x
        x = scheduler.step((x - end) / u, t, x, generator=rng).prev_sample
        wide = math.sqrt((1 - then) ** 2 * std**2 + then**2)
        # Five standard errors of mean, variance and kurtosis.
        assert abs(x.mean() - (1 - then) * mean) <= 5 * wide / math.sqrt(count)
        assert abs(x.var() / wide**2 - 1) <= 5 * math.sqrt(2 / count)
        assert abs((((x - x.mean()) / wide) ** 4).mean() - 3) <= 5 * math.sqrt(96 / count)


def test_a_denoiser_loses_variance():
    """Why the order is 0: with the mean of what x may have come from, more steps do not bring back the spread of the data."""
    assert MultistepConsistency.order == 0
    spreads = []
    for steps in (8, 64):
        plan = MultistepConsistency().plan(Linspace().levels(FLOW, steps), "flow_prediction")
        rng = np.random.default_rng(3)

        def model(x, t):
            return gaussian_velocity(x, t / 1000)

        noises = [rng.standard_normal(20_000) for _ in range(steps)]
        state = init(plan, rng.standard_normal(20_000))
        for i in range(steps):
            state = update(plan, i, state, model(state.x, plan.timesteps[i]), noises[i])
        spreads.append(state.x.std())
    assert all(spread < 0.57 for spread in spreads)
    plan = DDIM().plan(Linspace().levels(FLOW, 64), "flow_prediction")
    found = sample(model, plan, np.random.default_rng(3).standard_normal(20_000))
    assert abs(found.std() - 0.6) < 0.02


# --- any array ---

OPTIONS = [{}, {"shift": 3.0}, STOCHASTIC, {"invert_sigmas": True}]


def trajectory(name, device, dtype, config, tokens=False):
    """All samples of a loop, and its scheduler's noising of the last."""
    lib, rng = backend(name), np.random.default_rng(3)
    scheduler = flow_scheduler(6, **config)
    place = lib.device(device)
    x = lib.asarray(X.astype(np.float32), dtype=dtype, device=place)
    run = [x]
    for i, t in enumerate(scheduler.timesteps):
        output = kind(x).xp.astype(x * 0.5, x.dtype)
        told = None
        if tokens:
            levels = np.maximum(scheduler.timesteps[min(i, 5)] - 180.0 * np.arange(12).reshape(2, 6) / 12, 0)
            told = lib.asarray(levels.astype(np.float32), dtype="float32", device=place)
        x = scheduler.step(output, t, x, generator=rng, per_token_timesteps=told).prev_sample
        run.append(x)
    return [*run, scheduler.scale_noise(x, scheduler.timesteps[2:3], run[0])]


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("config", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "device", "dtype"), CELLS)
def test_same_array_out_and_equal_bits(name, device, dtype, config, tokens):
    with reproducible():
        run, reference = (
            trajectory(*who, dtype, config, tokens) for who in ((name, device), ("numpy", None))
        )
    lib = backend(name)
    for array, expected in zip(run, reference, strict=True):
        assert type(array) is type(run[0]) and array.dtype == run[0].dtype
        assert str(getattr(array, "device", "cpu")) == str(getattr(run[0], "device", "cpu"))
        np.testing.assert_array_equal(lib.to_numpy(array), backend("numpy").to_numpy(expected))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_a_step_reads_nothing_from_the_device(config, tokens):
    """On PyTorch's meta device every attempt to read a value raises."""
    scheduler = flow_scheduler(6, torch.device("meta"), **config)
    x = torch.empty(X.shape, device="meta")
    told = torch.empty(X.shape[:2], device="meta") if tokens else None
    for t in scheduler.timesteps:
        x = scheduler.step(x * 0.5, t, x, per_token_timesteps=told).prev_sample
    assert x.device.type == "meta" and x.shape == X.shape
    scheduler.set_timesteps(6, device=torch.device("meta"), mu=1.0)
    assert scheduler.scale_noise(x, scheduler.timesteps[2:3], x).device.type == "meta"
    scheduler.set_begin_index(2)
    assert scheduler.scale_noise(x, scheduler.timesteps[[2, 3]], x).device.type == "meta"


def test_tables_are_handed_out_in_the_library_asked_for():
    scheduler = FlowMatchEulerDiscreteScheduler()
    for device, wanted in [
        (None, np.ndarray),
        (torch.device("cpu"), torch.Tensor),
        (jax.devices()[0], jax.Array),
    ]:
        scheduler.set_timesteps(4, device=device)
        assert all(isinstance(getattr(scheduler, name), wanted) for name in ("timesteps", "sigmas"))
    assert scheduler.timesteps.dtype == jnp.float32
    assert isinstance(FlowMatchEulerDiscreteScheduler().to("torch").sigmas, torch.Tensor)


def test_the_table_of_tokens_is_copied_to_a_device_once():
    scheduler, x = flow_scheduler(6), torch.from_numpy(X)
    told = torch.full((2, 6), 500.0)
    first = scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=told).prev_sample
    kept = dict(scheduler._plans)
    scheduler.step(x, scheduler.timesteps[1], x, per_token_timesteps=told)
    assert len(kept) == len(scheduler._plans) and all(scheduler._plans[key] is kept[key] for key in kept)
    scheduler.set_timesteps(3)  # another table
    moved = scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=told).prev_sample
    assert torch.allclose(first, x + (0.5 - 0.4006) * x) and torch.allclose(moved, x + (0.5 - 0.001) * x)


def test_tokens_under_jit():
    scheduler = flow_scheduler(6, shift=3.0)
    x, told = jnp.asarray(X, jnp.float32), jnp.asarray(np.linspace(0, 1000, 12).reshape(2, 6), jnp.float32)

    def step(x, told):
        return (
            copy.copy(scheduler)
            .step(0.5 * x, float(scheduler.timesteps[0]), x, per_token_timesteps=told)
            .prev_sample
        )

    assert abs(jax.jit(step)(x, told) - step(x, told)).max() <= 4e-7
    assert scheduler.step_index is None


@pytest.mark.parametrize("tokens", [False, True])
def test_gradients_flow(tokens):
    scheduler = flow_scheduler(5)
    told = torch.full((2, 6), 500.0) if tokens else None
    x = torch.from_numpy(X).requires_grad_()
    moved = scheduler.step(2 * x, scheduler.timesteps[0], x, per_token_timesteps=told).prev_sample
    (slope,) = torch.autograd.grad(moved.sum(), x)
    # σ to the next: 1 to 0.75025; or 0.5 to 0.25075, with diffusers' sign.
    step = 2 * (0.5 - 0.25075) if tokens else 2 * (0.75025 - 1)
    assert torch.allclose(slope, torch.full_like(x, 1 + step))


# --- state ---


def test_interleaved_clones_and_pickles():
    def run(scheduler, x, rng=None):
        for t in scheduler.timesteps[scheduler.step_index or 0 :]:
            x = scheduler.step(np.tanh(x), t, x, generator=rng).prev_sample
        return x

    whole = run(flow_scheduler(6), X)
    first = flow_scheduler(6)
    x = first.step(np.tanh(X), first.timesteps[0], X).prev_sample
    clones = [copy.copy(first), copy.deepcopy(first), pickle.loads(pickle.dumps(first)), first]
    for clone in clones:
        assert clone.step_index == 1
        assert np.array_equal(run(clone, x), whole)
        assert clone.step_index == 6


def test_set_shift_is_its_own_clone_s():
    first = flow_scheduler(shift=2.0)
    second = copy.copy(first)
    second.set_shift(5.0)
    assert (first.shift, second.shift) == (2.0, 5.0)
    again = FlowMatchEulerDiscreteScheduler.from_config(second.config)
    assert again.shift == 2.0  # as in diffusers, it is not in the config


@pytest.mark.parametrize("config", [{}, STOCHASTIC], ids=str)
def test_errors_change_nothing(config):
    scheduler = flow_scheduler(4, **config)
    rng = np.random.default_rng(0)
    scheduler.step(X, scheduler.timesteps[0], X, generator=rng)
    t = scheduler.timesteps[1]
    for wrong in (
        lambda: scheduler.step(X[:1], t, X, generator=rng),
        lambda: scheduler.step(torch.from_numpy(X), t, X, generator=rng),
        lambda: scheduler.step(X, 750, X, generator=rng),
        lambda: scheduler.step(X, t, X.astype(int), generator=rng),
        lambda: scheduler.step(X, t, X, generator=rng, per_token_timesteps=torch.zeros(2, 6)),
        lambda: scheduler.set_begin_index(9),
        lambda: scheduler.set_shift(-1),
        lambda: scheduler.scale_noise(X, t, X[:1]),
        lambda: scheduler.corrected("no such thing"),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
        assert scheduler.step_index == 1 and scheduler.begin_index is None and scheduler.shift == 1.0


def test_a_stochastic_step_needs_a_generator_where_the_library_has_no_global_one():
    scheduler = flow_scheduler(2, **STOCHASTIC)
    with pytest.raises((TypeError, ValueError), match="generator"):
        scheduler.step(jnp.asarray(X), scheduler.timesteps[0], jnp.asarray(X))


def test_samples_are_never_written_to():
    x, output = X.copy(), X.copy()
    for array in (x, output):
        array.flags.writeable = False
    for config in OPTIONS:
        scheduler = flow_scheduler(2, **config)
        for told in (None, np.zeros((2, 6))):
            moved = scheduler.step(
                output,
                scheduler.timesteps[0],
                x,
                generator=np.random.default_rng(1),
                per_token_timesteps=told,
            )
            assert moved.prev_sample.flags.writeable


def test_config_file(tmp_path):
    scheduler = flow_scheduler(shift=3.0, shift_terminal=0.1, use_karras_sigmas=True)
    scheduler.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert record["_class_name"] == "FlowMatchEulerDiscreteScheduler" and record["shift_terminal"] == 0.1
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path).config.shift == 3.0
