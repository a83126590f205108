"""`DDPMScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from reference import options, trajectories
from reference.float64_diffusers import float64_class
from reference.trajectories import (
    Case,
    Denoiser,
    Looser,
    alphas_cumprod,
    check_random,
    draw,
    original,
    subject,
    whole_grid,
)

NAME = "DDPMScheduler"
PLAIN = {"clip_sample": False}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range", "learned")

LOOSER = (
    Looser(
        2e-4,
        "beta_t = 1 - abar_t / abar_(t-1) cancels in float32: off by up to 1e-3 at small t (4.5e-5 throughout for laplace)",
        (
            "*-50",
            "*-1000",
            "laplace, *-20",
            "variance_type=learned_range-[25]",
            "sample, linspace-2",
            "v_prediction, linspace-2",
        ),
    ),
    Looser(
        3e-3,
        "rounding, magnified: x_0 from the noise at alpha = 5e-5, or the model called far off its level",
        ("epsilon, linspace-2", "squaredcos_cap_v2, trailing-2", "timesteps=?999, 400, *"),
    ),
)


over = options.cases_of(NAME, PLAIN)


def one_at_a_time():
    for prediction in options.PREDICTIONS:
        yield from options.spaced(over, {"prediction_type": prediction}, base=PLAIN)
        yield from options.clipped(over, prediction, PLAIN)
    for schedule in (*options.SCHEDULES, "sigmoid", "laplace"):
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "trailing"), PLAIN)
    yield from over("trained_betas", config=PLAIN | options.TRAINED)
    yield from over("num_train_timesteps=50", config=PLAIN | options.FEW)
    yield from over("steps_offset=1", config=PLAIN | {"steps_offset": 1})
    for bound in (0.5, 2.0):
        yield from over(f"clip_sample_range={bound}", config={"clip_sample_range": bound})
    for option, config in options.THRESHOLDS.items():
        yield from over(option, config=config)
    for variance in VARIANCES:
        yield from over(f"variance_type={variance}", config=PLAIN | {"variance_type": variance})
        config = {
            "variance_type": variance,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        }
        yield from over(f"variance_type={variance}, trailing, v_prediction", config=config)
    large = PLAIN | {"variance_type": "fixed_large_log"}
    yield from over("variance_type=fixed_large_log", config=large, oracle={"variance_type": "fixed_large"})
    yield from over("generator list", generators=2)
    yield from over("generator list, learned_range", config={"variance_type": "learned_range"}, generators=2)
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    for timesteps in ([999], [999, 400, 30, 2], [900, 899, 500, 0]):
        yield from over(f"timesteps={timesteps}", steps=(None,), set_timesteps={"timesteps": timesteps})
    bounded = {
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    }
    yield from over("N=T", steps=(1000,))
    yield from over("N=T, clip_sample, zero SNR, v_prediction", steps=(1000,), config=bounded)
    yield from over("N=T, learned_range", steps=(1000,), config=PLAIN | {"variance_type": "learned_range"})


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20, None)
def test_loop_in_float64(case):
    """To 1e-9 where the last step is from above t = 0: diffusers adds noise there, of standard deviation 1e-10."""
    above = case.config.get("steps_offset") or case.config.get("timestep_spacing") == "trailing"
    trajectories.check_float64(case, 1e-9 if above or case.steps is None else 1e-12)


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(1, min(count, 60)))
    prediction = pick("epsilon", "sample", "v_prediction")
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    offset = 1 if spacing == "leading" and (steps - 1) * (count // steps) + 1 < count else 0
    config = {
        "num_train_timesteps": count,
        "beta_schedule": pick("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": pick(0, offset),
        # The first step of the noise prediction divides by zero from t = T - 1.
        "rescale_betas_zero_snr": pick(True, False) if prediction != "epsilon" else False,
        "variance_type": pick(*VARIANCES),
    } | pick(
        {"clip_sample": False},
        {"clip_sample": True, "clip_sample_range": 0.8},
        {"thresholding": True, "sample_max_value": 1.6, "dynamic_thresholding_ratio": 0.9},
    )
    return Case(NAME, str(config), steps, config, generators=pick(1, 2))


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("bounded", [PLAIN, {}, {"thresholding": True, "sample_max_value": 1.5}], ids=str)
def test_half_precision_is_rounded_once(dtype, variance, prediction, bounded):
    # A learned standard deviation scales the noise first, in the sample's dtype.
    twice = ("prev_sample",) if variance == "learned_range" else ()
    case = Case(NAME, "half", 20, {"prediction_type": prediction, "variance_type": variance} | bounded)
    trajectories.check_half(case, dtype, twice=twice)


# --- grids and attributes ---


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps(spacing):
    ours = subject(NAME)(timestep_spacing=spacing)
    theirs = original(NAME)(timestep_spacing=spacing)
    for steps in range(1, 1001):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert len(ours.timesteps) == steps == ours.num_inference_steps
        # For 62 numbers of steps trailing has one timestep more there, -1.
        assert np.array_equal(ours.timesteps, theirs.timesteps.numpy()[:steps]), steps


def test_attributes():
    ours, theirs = subject(NAME)(), original(NAME)()
    assert len(ours) == len(theirs) == 1000
    assert ours.order == theirs.order == 1
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 1.0
    assert ours.num_inference_steps is theirs.num_inference_steps is None
    assert ours.variance_type == theirs.variance_type == "fixed_small"
    assert ours.custom_timesteps is theirs.custom_timesteps is False
    assert np.array_equal(ours.timesteps, theirs.timesteps)
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-6), name
        assert np.asarray(getattr(ours, name)).dtype == np.float64, name


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_previous_timestep(device):
    ours, theirs = subject(NAME)(), original(NAME)()
    for t in (999, 5, 0):
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t)) == t - 1
    for choice in ({"num_inference_steps": 7}, {"timesteps": [999, 400, 30]}):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(**choice, device=device)
        assert ours.custom_timesteps == theirs.custom_timesteps == ("timesteps" in choice)
        assert np.array_equal(ours.timesteps, theirs.timesteps)
        for one, two in zip(ours.timesteps, theirs.timesteps, strict=True):
            assert int(ours.previous_timestep(one)) == int(theirs.previous_timestep(two))
            assert int(ours.previous_timestep(int(one))) == int(theirs.previous_timestep(int(two)))


# --- single steps ---


@pytest.mark.parametrize("t", [999, 500, 1, 0])
def test_step_before_set_timesteps(t):
    """Then every trained timestep is a step."""
    x, output = draw(1), draw(2)
    ours, theirs = (
        cls(**PLAIN).step(output, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
        for cls in (subject(NAME), original(NAME))
    )
    assert (ours - theirs).abs().max() <= 2e-4 * theirs.abs().max()  # beta_t of float32 at t = 1: see above


@pytest.mark.parametrize("form", [int, np.int64, torch.tensor])
def test_timesteps_in_any_order(form):
    """diffusers' step knows nothing of order: one of the grid's taken by itself or twice is the same step."""
    x, output = draw(1), draw(2)
    ours, theirs = subject(NAME)(**PLAIN), original(NAME)(**PLAIN)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    for t in (0, 500, 950, 500):
        got = ours.step(output, form(t), x, generator=torch.Generator().manual_seed(3)).prev_sample
        expected = theirs.step(output, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
        assert got.dtype == x.dtype
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_outputs():
    x, output = draw(1), draw(2)
    ours, theirs = subject(NAME)(), original(NAME)()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    again = {"generator": torch.Generator().manual_seed(3)}
    got, expected = ours.step(output, 500, x, **again), theirs.step(output, 500, x)
    assert type(got).__name__ == type(expected).__name__ == "DDPMSchedulerOutput"
    assert list(got.keys()) == list(expected.keys())
    assert torch.equal(got[0], got.prev_sample) and torch.equal(got["prev_sample"], got.prev_sample)
    assert torch.equal(got[1], got.pred_original_sample)
    plain = ours.step(output, 500, x, generator=torch.Generator().manual_seed(3), return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 2
    assert all(torch.equal(one, two) for one, two in zip(plain, got.to_tuple(), strict=True))
    assert torch.equal(ours.scale_model_input(x, 500), x)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_draws_as_often_as_diffusers(spacing, variance):
    """None at t = 0; at the end of a trailing grid there is one, and with fixed_large it can be seen."""
    config = {"timestep_spacing": spacing, "variance_type": variance}
    states = []
    for cls in (subject(NAME), original(NAME)):
        scheduler, generator = cls(**config), torch.Generator().manual_seed(3)
        scheduler.set_timesteps(5)
        model, x = Denoiser(config), draw(1)
        for t in scheduler.timesteps:
            x = scheduler.step(model(x.double(), float(t)).float(), t, x, generator=generator).prev_sample
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("t", [950, 500, 50])
def test_fixed_large_log_is_fixed_large(t):
    """diffusers takes the root of the logarithm: NaN."""
    x, output, results = draw(1), draw(2), []
    for variance in ("fixed_large_log", "fixed_large"):
        scheduler = subject(NAME)(variance_type=variance)
        scheduler.set_timesteps(20)
        results.append(scheduler.step(output, t, x, generator=torch.Generator().manual_seed(3)).prev_sample)
    assert torch.equal(*results)


@pytest.mark.parametrize("t", [950, 500, 50])
def test_learned_variance_is_a_log_variance(t):
    """The noise has standard deviation exp(v / 2); diffusers takes the root of v."""
    x, output, v = draw(1), draw(2), draw(4) - 3
    results = []
    for noise in ({"variance_type": "learned"}, {"variance_type": "fixed_small"}):
        scheduler = subject(NAME)(**noise, **PLAIN)
        scheduler.set_timesteps(20)
        both = torch.cat([output, v], 1) if "learned" in noise.values() else output
        results.append(scheduler.step(both, t, x, generator=torch.Generator().manual_seed(3)).prev_sample)
    z, bar = draw(3), alphas_cumprod({})
    now, then = bar[t], bar[t - 50]
    small = math.sqrt((1 - then) / (1 - now) * (1 - now / then))
    assert ((results[0] - torch.exp(v / 2) * z) - (results[1] - small * z)).abs().max() <= 2e-6


FORWARD = [{}, {"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True}]


@pytest.mark.parametrize("config", FORWARD, ids=str)
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_forward_process(config, method):
    for timesteps in (torch.tensor([999, 3]), torch.tensor([0, 500]), torch.tensor([17])):
        trajectories.check_forward(NAME, config, method, timesteps)


# --- errors ---

ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "more steps than were trained": (ValueError, lambda cls: cls().set_timesteps(1001)),
    "timestep_spacing": (ValueError, lambda cls: cls(timestep_spacing="even").set_timesteps(10)),
    "steps and timesteps": (ValueError, lambda cls: cls().set_timesteps(2, timesteps=[10, 0])),
    "ascending timesteps": (ValueError, lambda cls: cls().set_timesteps(timesteps=[0, 10])),
    "repeated timesteps": (ValueError, lambda cls: cls().set_timesteps(timesteps=[10, 10, 0])),
    "timesteps from T": (ValueError, lambda cls: cls().set_timesteps(timesteps=[1000, 0])),
    "prediction_type": (ValueError, lambda cls: stepped(cls(prediction_type="noise"), 900)),
    "unknown argument": (TypeError, lambda cls: cls(set_alpha_to_one=True)),
}


def stepped(scheduler, t):
    scheduler.set_timesteps(10)
    return scheduler.step(draw(1), t, draw(2))


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


# --- the oracle and the harness themselves ---


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("t", [960, 40, 0])
def test_oracle_step_is_the_product_of_two_gaussians(prediction, variance, t):
    """q(x' | x, x_0) from Bayes' rule: what the step keeps, N(k x', b^2), times what it aims at, N(a' x_0, s'^2)."""
    config = {"prediction_type": prediction, "variance_type": variance, "clip_sample_range": 1.2}
    scheduler = float64_class(NAME)(**config)
    scheduler.set_timesteps(25)
    x, output, fraction = (draw(seed).double() for seed in (1, 2, 5))
    bar = alphas_cumprod(config)
    now, then = bar[t], bar[t - 40] if t else 1.0
    a, s = math.sqrt(now), math.sqrt(1 - now)
    clean = {
        "epsilon": (x - s * output) / a,
        "sample": output,
        "v_prediction": a * x - s * output,
    }[prediction]
    clean = torch.clamp(clean, -1.2, 1.2)
    keeps, added = math.sqrt(now / then), 1 - now / then
    if t:
        variance_of = 1 / (keeps**2 / added + 1 / (1 - then))
        mean = variance_of * (keeps / added * x + math.sqrt(then) / (1 - then) * clean)
        logs = {"fixed_small": math.log(variance_of), "fixed_large": math.log(added)}
        along = (fraction + 1) / 2
        logs["learned_range"] = along * logs["fixed_large"] + (1 - along) * logs["fixed_small"]
        noise = torch.exp(torch.as_tensor(logs[variance], dtype=torch.float64) / 2) * draw(3).double()
    else:
        mean, noise = clean, 0.0
    given_model = torch.cat([output, fraction], 1) if variance == "learned_range" else output
    out = scheduler.step(given_model, t, x, generator=torch.Generator().manual_seed(3))
    assert out.prev_sample.dtype == torch.float64
    assert (out.prev_sample - mean - noise).abs().max() <= 1e-12
    assert (out.pred_original_sample - clean).abs().max() <= 1e-12


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, {}))
