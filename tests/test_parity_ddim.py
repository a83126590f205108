"""`DDIMScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from reference import options, trajectories
from reference.float64_diffusers import float64_class, noise_drawn_in
from reference.options import STABLE
from reference.trajectories import (
    SHAPE,
    Case,
    Looser,
    alphas_cumprod,
    check_random,
    draw,
    original,
    quiet,
    subject,
    whole_grid,
    wide,
)

NAME = "DDIMScheduler"
PLAIN = {"clip_sample": False}

LOOSER = (
    Looser(
        1e-4,
        "1 - abar keeps four digits in float32 at small t, where the steps of a full loop are smallest",
        ("*, N=T-1000", "eta=1, N=T-1000", "use_clipped_model_output, eta=1-50"),
    ),
)


over = options.cases_of(NAME, PLAIN)


def one_at_a_time():
    for prediction in options.PREDICTIONS:
        yield from options.spaced(over, {"prediction_type": prediction}, base=PLAIN)
        yield from options.clipped(over, prediction, PLAIN)
    for schedule in options.SCHEDULES:
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "trailing"), PLAIN)
    stable = STABLE | {"steps_offset": 1, "set_alpha_to_one": False}
    yield from over("Stable Diffusion", config=PLAIN | stable)
    yield from over("trained_betas", config=PLAIN | options.TRAINED)
    yield from over("num_train_timesteps=50", config=PLAIN | options.FEW)
    yield from over("steps_offset=1", config=PLAIN | {"steps_offset": 1})
    yield from over("set_alpha_to_one=False", config=PLAIN | {"set_alpha_to_one": False})
    for bound in (0.5, 2.0):
        yield from over(f"clip_sample_range={bound}", config={"clip_sample_range": bound})
    for option, config in options.THRESHOLDS.items():
        yield from over(option, config=config)
    for eta in (0.5, 1.0):
        yield from over(f"eta={eta}", step={"eta": eta})
        yield from over(f"eta={eta}, generator list", step={"eta": eta}, generators=2)
        yield from over(f"eta={eta}, variance_noise", step={"eta": eta}, variance_noise=True)
    spread = PLAIN | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    yield from over("eta=1, trailing, v_prediction", config=spread, step={"eta": 1.0})
    bounded = {"use_clipped_model_output": True}
    yield from over("use_clipped_model_output", config={"clip_sample_range": 0.6}, step=bounded)
    yield from over(
        "use_clipped_model_output, eta=1", config={"clip_sample_range": 0.6}, step=bounded | {"eta": 1.0}
    )
    yield from over("use_clipped_model_output, thresholding", config={"thresholding": True}, step=bounded)
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    for prediction in ("epsilon", "v_prediction"):
        yield from over(f"{prediction}, N=T", steps=(1000,), config=PLAIN | {"prediction_type": prediction})
    yield from over("eta=1, N=T", steps=(1000,), step={"eta": 1.0})


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20)
def test_loop_in_float64(case):
    trajectories.check_float64(case)


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
        "beta_schedule": pick("linear", "scaled_linear", "squaredcos_cap_v2"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "set_alpha_to_one": pick(True, False),
        "steps_offset": pick(0, offset),
        # The first step of the noise prediction divides by zero from t = T - 1.
        "rescale_betas_zero_snr": pick(True, False) if prediction != "epsilon" else False,
    } | pick(
        {"clip_sample": False},
        {"clip_sample": True, "clip_sample_range": 0.8},
        {"thresholding": True, "sample_max_value": 1.6, "dynamic_thresholding_ratio": 0.9},
    )
    # eta = 1 from zero signal takes the root of -1 ULP: see test_eta_1_from_zero_signal.
    eta = pick(0.0, 0.3, 0.9) if config["rescale_betas_zero_snr"] else pick(0.0, 0.5, 1.0)
    step = {"eta": eta, "use_clipped_model_output": pick(True, False)}
    drawn = pick({}, {"generators": 2}, {"variance_noise": True}) if eta else {}
    return Case(NAME, f"{config} {step} {drawn}", steps, config, step=step, **drawn)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("bounded", [PLAIN, {}, {"thresholding": True, "sample_max_value": 1.5}], ids=str)
def test_half_precision_is_rounded_once(dtype, eta, prediction, bounded):
    trajectories.check_half(
        Case(NAME, "half", 20, {"prediction_type": prediction} | bounded, step={"eta": eta}), dtype
    )


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
    assert np.array_equal(ours.timesteps, theirs.timesteps)
    assert ours.config_name == theirs.config_name == "scheduler_config.json"
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-6), name
        assert np.asarray(getattr(ours, name)).dtype == np.float64, name
    assert np.asarray(ours.timesteps).dtype == np.int64


def test_timesteps_move_to_a_torch_device():
    ours = subject(NAME)()
    ours.set_timesteps(7)
    plain = ours.timesteps
    for device in (torch.device("cpu"), "cpu"):
        ours.set_timesteps(7, device=device)
        assert isinstance(ours.timesteps, torch.Tensor) and ours.timesteps.dtype == torch.int64
        assert np.array_equal(ours.timesteps, plain)
    ours = subject(NAME)()
    ours.set_timesteps(7, device=None)
    assert isinstance(ours.timesteps, np.ndarray) and ours.timesteps.dtype == np.int64


# --- single steps ---


@pytest.mark.parametrize("t", [999, 640, 333, 1, 0])
@pytest.mark.parametrize("form", [int, np.int64, torch.tensor])
def test_any_timestep_in_any_order(t, form):
    """diffusers' step knows nothing of order: one asked for by itself, off the grid or twice, is the same step."""
    x, output = draw(1), draw(2)
    ours, theirs = subject(NAME)(**PLAIN), original(NAME)(**PLAIN)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    expected = theirs.step(output, t, x).prev_sample
    for _ in range(2):
        got = ours.step(output, form(t), x).prev_sample
        assert got.dtype == x.dtype
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_outputs():
    x, output = draw(1), draw(2)
    ours, theirs = subject(NAME)(), original(NAME)()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    got, expected = ours.step(output, 500, x), theirs.step(output, 500, x)
    assert type(got).__name__ == type(expected).__name__ == "DDIMSchedulerOutput"
    assert list(got.keys()) == list(expected.keys())
    assert torch.equal(got[0], got.prev_sample) and torch.equal(got["prev_sample"], got.prev_sample)
    assert torch.equal(got[1], got.pred_original_sample)
    assert len(got.to_tuple()) == len(expected.to_tuple()) == 2
    plain = ours.step(output, 500, x, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 2
    assert all(torch.equal(one, two) for one, two in zip(plain, got.to_tuple(), strict=True))
    assert torch.equal(ours.scale_model_input(x, 500), x)


@pytest.mark.parametrize("shape", [(5,), (2, 7), (2, 3, 5), (1, 4, 2, 3, 3)])
def test_shapes(shape):
    x, output = draw(1, shape=shape), draw(2, shape=shape)
    ours, theirs = subject(NAME)(), original(NAME)()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    got, expected = ours.step(output, 500, x).prev_sample, theirs.step(output, 500, x).prev_sample
    assert got.shape == expected.shape and (got - expected).abs().max() <= 1e-5


def test_eta_0_draws_no_noise():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    ours = subject(NAME)()
    ours.set_timesteps(20)
    ours.step(draw(1), 500, draw(2), generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_eta_1_from_zero_signal(prediction):
    """All variance is fresh noise there: the root of 1 - abar' - s^2 is of 0.

    diffusers takes it of -1 ULP, hence NaN, for one in five of all step counts, 3, 4 and 6 among them.
    """
    config = PLAIN | {
        "prediction_type": prediction,
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    ours = subject(NAME)(**config)
    bar = alphas_cumprod(config)
    for steps in (1, 3, 4, 12, 13, 20, 50):
        ours.set_timesteps(steps)
        x, output, noise = draw(1), draw(2), draw(3)
        out = ours.step(output, 999, x, eta=1.0, variance_noise=noise)
        clean = output if prediction == "sample" else -output
        left = bar[999 - 1000 // steps] if steps > 1 else 1.0
        expected = math.sqrt(left) * clean + math.sqrt(1 - left) * noise
        assert (out.prev_sample - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_clipping_from_zero_signal(name, prediction):
    """With clipping the noise prediction is finite there: the estimate is the sign of what is left, at the bound."""
    config = {"prediction_type": prediction, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    x, output = draw(1), draw(2)
    ours, theirs = subject(name)(**config), original(name)(**config)
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
        with quiet():
            results.append(scheduler.step(output, 999, x, generator=torch.Generator().manual_seed(1)))
    assert (results[0].prev_sample - results[1].prev_sample).abs().max() <= 1e-5
    assert (results[0].pred_original_sample - results[1].pred_original_sample).abs().max() <= 1e-5


FORWARD = [{}, {"beta_schedule": "scaled_linear"}, {"rescale_betas_zero_snr": True}]


@pytest.mark.parametrize("config", FORWARD, ids=str)
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_forward_process(config, method):
    for timesteps in (torch.tensor([999, 3]), torch.tensor([0, 500]), torch.tensor([17])):
        trajectories.check_forward(NAME, config, method, timesteps)


# --- errors ---

ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "more steps than were trained": (ValueError, lambda cls: cls().set_timesteps(1001)),
    "more steps than were trained, short": (
        ValueError,
        lambda cls: cls(num_train_timesteps=10).set_timesteps(11),
    ),
    "timestep_spacing": (ValueError, lambda cls: cls(timestep_spacing="even").set_timesteps(10)),
    "step before set_timesteps": (ValueError, lambda cls: cls().step(draw(1), 10, draw(2))),
    "prediction_type": (ValueError, lambda cls: stepped(cls(prediction_type="noise"))),
    "generator and variance_noise": (
        ValueError,
        lambda cls: stepped(cls(), eta=1.0, generator=torch.Generator(), variance_noise=draw(3)),
    ),
    "unknown argument": (TypeError, lambda cls: cls(beta_begin=0.1)),
}


def stepped(scheduler, **options):
    scheduler.set_timesteps(10)
    return scheduler.step(draw(1), scheduler.timesteps[0], draw(2), **options)


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


def test_generator_and_variance_noise_without_eta_are_ignored():
    assert torch.equal(
        stepped(subject(NAME)(), generator=torch.Generator(), variance_noise=draw(3)).prev_sample,
        stepped(subject(NAME)()).prev_sample,
    )


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_noise_prediction_at_zero_signal_is_refused(name):
    scheduler = subject(name)(rescale_betas_zero_snr=True, timestep_spacing="trailing", **PLAIN)
    with pytest.raises(ValueError):
        stepped(scheduler)


# --- the oracle and the harness themselves ---

TABLES = [
    ("DDIMScheduler", {"beta_schedule": "linear"}),
    ("DDIMScheduler", {"beta_schedule": "scaled_linear"}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    ("DDIMScheduler", {"beta_schedule": "linear", "rescale_betas_zero_snr": True}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("DDPMScheduler", {"beta_schedule": "laplace"}),
]


def exact_alphas_cumprod(beta_schedule, rescale_betas_zero_snr=False, count=1000):
    """The table at 40 digits."""
    mp, start, end = mpmath.mpf, mpmath.mpf("0.0001"), mpmath.mpf("0.02")
    along = lambda one, two, i: one + (two - one) * i / (count - 1)
    cosine = lambda t: mpmath.cos((t + mp("0.008")) / mp("1.008") * mpmath.pi / 2) ** 2

    def laplace(t):
        snr = mpmath.exp((-1 if 2 * t <= 1 else 1) * mpmath.log(1 - abs(1 - 2 * t) + mp("1e-6")) / 2)
        return mpmath.sqrt(snr / (1 + snr))

    ratio = lambda bar, i: min(1 - bar(mp(i + 1) / count) / bar(mp(i) / count), mp("0.999"))
    beta = {
        "linear": lambda i: along(start, end, i),
        "scaled_linear": lambda i: along(mpmath.sqrt(start), mpmath.sqrt(end), i) ** 2,
        "sigmoid": lambda i: start + (end - start) / (1 + mpmath.exp(-along(mp(-6), mp(6), i))),
        "squaredcos_cap_v2": lambda i: ratio(cosine, i),
        "laplace": lambda i: ratio(laplace, i),
    }[beta_schedule]
    table, product = [], mp(1)
    for i in range(count):
        product *= 1 - beta(i)
        table.append(product)
    if rescale_betas_zero_snr:
        roots = [mpmath.sqrt(value) for value in table]
        table = [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]
    return np.array([float(value) for value in table])


@pytest.mark.parametrize(("name", "config"), TABLES, ids=lambda value: str(value))
def test_oracle_tables_are_exact(name, config):
    with mpmath.workdps(40):
        exact = exact_alphas_cumprod(**config)
    table = float64_class(name)(**config).alphas_cumprod
    assert table.dtype == torch.float64
    assert np.abs(table.numpy() - exact).max() <= 2e-15
    assert np.abs(alphas_cumprod(config) - exact).max() <= 2e-15  # and those of the model
    assert np.abs(original(name)(**config).alphas_cumprod.numpy() - exact).max() > 1e-9  # the test can tell
    assert np.abs(np.asarray(subject(name)(**config).alphas_cumprod) - exact).max() <= 2e-15


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [960, 40, 0])
def test_oracle_step_is_the_published_formula(prediction, eta, t):
    """Equation 12 of the paper, with the standard deviation of equation 16."""
    config = {"prediction_type": prediction, "clip_sample_range": 1.2}
    scheduler = float64_class(NAME)(**config)
    scheduler.set_timesteps(25)
    x, output, noise = (draw(seed).double() for seed in (1, 2, 3))
    bar = alphas_cumprod(config)
    now, then = bar[t], bar[t - 40] if t >= 40 else 1.0
    a, s = math.sqrt(now), math.sqrt(1 - now)
    clean, epsilon = {
        "epsilon": ((x - s * output) / a, output),
        "sample": (output, (x - a * output) / s),
        "v_prediction": (a * x - s * output, s * x + a * output),
    }[prediction]
    clean = torch.clamp(clean, -1.2, 1.2)
    std = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
    expected = math.sqrt(then) * clean + math.sqrt(1 - then - std**2) * epsilon + std * noise
    out = scheduler.step(output, t, x, eta=eta, variance_noise=noise)
    assert out.prev_sample.dtype == torch.float64
    assert (out.prev_sample - expected).abs().max() <= 1e-12
    assert (out.pred_original_sample - clean).abs().max() <= 1e-12


def test_oracle_draws_what_diffusers_draws():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with noise_drawn_in(dtype):
            scheduler = float64_class(NAME)()
            scheduler.set_timesteps(10)
            zero = torch.zeros(SHAPE, dtype=torch.float64)
            out = scheduler.step(
                zero, 500, zero, eta=1.0, generator=torch.Generator().manual_seed(5)
            ).prev_sample
        ratio = out / wide(torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=dtype))
        assert (ratio / ratio.mean() - 1).abs().max() <= 1e-14


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, PLAIN, step={"eta": 0.5}))
