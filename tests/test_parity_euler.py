"""`EulerDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.options import BETA, EXPONENTIAL, KARRAS, LEADING, RESPACED, STABLE, V
from reference.sigma_grids import begun, past_the_end
from reference.trajectories import (
    Case,
    Looser,
    alphas_cumprod,
    check_random,
    draw,
    original,
    quiet,
    subject,
    whole_grid,
)

NAME = "EulerDiscreteScheduler"

LOOSER = (
    Looser(
        0.3,
        "as below, from sigma = 20291 to 0.006: diffusers' own float32 rounding is a seventh of the state",
        ("squaredcos_cap_v2, linspace-2",),
    ),
    Looser(
        3e-3,
        "x + derivative * dt cancels in float32 where one step takes the state from sigma = 157 to 0.01",
        ("*-2", "log_linear, continuous, v-1"),
    ),
    Looser(
        6e-4,
        "1 - abar_0 = 1e-4 keeps four digits in float32: the smallest sigma is off by 8e-5 (3e-4 for the cosine), and "
        "with it the loop of one step, which is at t = 0, and every grid made from the smallest sigma",
        (
            "*-1",
            "karras*",
            "exponential*",
            "beta*",
            "log_linear*",
            "s_churn, karras*",
            "from the middle, karras*",
            "squaredcos_cap_v2, linspace*",
            "N=T, s_churn-1000",
        ),
    ),
)


over = options.cases_of(NAME)


def one_at_a_time():
    for prediction in options.PREDICTIONS:
        yield from options.spaced(over, {"prediction_type": prediction})
        zero = {"prediction_type": prediction, "rescale_betas_zero_snr": True}
        for spacing in ("leading", "trailing"):
            yield from over(f"{prediction}, zero SNR, {spacing}", config=zero | {"timestep_spacing": spacing})
    for schedule in options.SCHEDULES:
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "linspace"))
    yield from over("Stable Diffusion", config=STABLE | LEADING)
    yield from over("trained_betas", config=options.TRAINED)
    yield from over("num_train_timesteps=50", config=options.FEW)
    for name, flag in RESPACED.items():
        yield from over(name, config=flag)
        config = STABLE | flag | {"timestep_spacing": "leading"}
        yield from over(f"{name}, scaled_linear, leading", config=config)
        config = flag | {"sigma_min": 0.05, "sigma_max": 20.0}
        yield from over(f"{name}, sigma_min, sigma_max", config=config)
        config = flag | {"final_sigmas_type": "sigma_min"}
        yield from over(f"{name}, final_sigmas_type=sigma_min", config=config)
        config = flag | {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 80.0} | V
        yield from over(f"{name}, continuous, v_prediction", config=config)
    yield from over("log_linear", config={"interpolation_type": "log_linear"})
    config = {"interpolation_type": "log_linear", "timestep_type": "continuous"} | V
    yield from over("log_linear, continuous, v", config=config)
    yield from over("continuous, v_prediction", config={"timestep_type": "continuous"} | V)
    yield from over("continuous, epsilon", config={"timestep_type": "continuous"})
    yield from over("final_sigmas_type=sigma_min", config={"final_sigmas_type": "sigma_min"})
    config = {
        "final_sigmas_type": "sigma_min",
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "leading",
    }
    yield from over("squaredcos_cap_v2, final_sigmas_type=sigma_min", config=config)
    for churn in (2.0, 100.0):
        yield from over(f"s_churn={churn}", step={"s_churn": churn})
    yield from over("s_churn, s_tmin, s_tmax", step={"s_churn": 10.0, "s_tmin": 0.3, "s_tmax": 20.0})
    yield from over("s_churn, s_noise", step={"s_churn": 10.0, "s_noise": 1.01})
    yield from over("s_churn, v_prediction", config=V, step={"s_churn": 10.0})
    yield from over("s_churn, sample", config={"prediction_type": "sample"}, step={"s_churn": 10.0})
    yield from over("s_churn, karras", config=STABLE | {"use_karras_sigmas": True}, step={"s_churn": 10.0})
    yield from over("s_churn, generator list", step={"s_churn": 10.0}, generators=2)
    for timesteps in ([999], [999, 400, 30, 2], [967.3, 500.5, 0.25]):
        yield from over(f"timesteps={timesteps}", steps=(None,), set_timesteps={"timesteps": timesteps})
    for sigmas in ([10.0, 0.0], [14.6, 5.0, 0.7, 0.02, 0.0], [80.0, 3.0, 0.5]):
        yield from over(f"sigmas={sigmas}", steps=(None,), set_timesteps={"sigmas": sigmas})
    karras, given_sigmas = {"use_karras_sigmas": True}, {"sigmas": [80.0, 3.0, 0.0]}
    config = karras | {"timestep_type": "continuous"} | V
    yield from over("sigmas, continuous, v", steps=(None,), config=config, set_timesteps=given_sigmas)
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    yield from over("from the middle, karras", steps=(5, 20, 50), config=karras, begin=3)
    yield from over("N=T", steps=(1000,))
    yield from over("N=T, karras, v_prediction", steps=(1000,), config=STABLE | karras | V)
    yield from over("N=T, s_churn", steps=(1000,), step={"s_churn": 10.0})


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20, None)
def test_loop_in_float64(case):
    trajectories.check_float64(case)


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(1, min(count, 60)))
    prediction = pick("epsilon", "sample", "v_prediction")
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    grid = pick({}, {}, KARRAS, EXPONENTIAL, BETA)
    config = {
        "num_train_timesteps": count,
        "beta_schedule": pick("linear", "scaled_linear", "squaredcos_cap_v2"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "interpolation_type": pick("linear", "log_linear"),
        "timestep_type": pick("discrete", "continuous"),
        "final_sigmas_type": pick("zero", "sigma_min"),
        "steps_offset": 1 if spacing == "leading" and pick(0, 1) else 0,
        "rescale_betas_zero_snr": pick(True, False),
        "sigma_min": pick(None, 0.031),
        "sigma_max": pick(None, 11.0),
    } | grid
    churn = pick(0.0, 0.0, 3.0, 40.0)
    step = {"s_churn": churn, "s_tmin": pick(0.0, 0.0517), "s_tmax": pick(math.inf, 7.77)}
    step["s_noise"] = pick(1.0, 1.005)
    return Case(NAME, f"{config} {step}", steps, config, step=step if churn else {}, generators=pick(1, 2))


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    with quiet():
        grid = float64_class(NAME)(**case.config)
        grid.set_timesteps(case.steps)
    assume(len(set(grid.timesteps.float().tolist())) == len(grid.timesteps))  # else see test_equal_timesteps
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("churn", [0.0, 10.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [{}, {"use_karras_sigmas": True}], ids=str)
def test_half_precision_is_rounded_once(dtype, churn, prediction, config):
    # Churn adds its noise to the sample first, in the sample's dtype.
    twice = ("pred_original_sample",) if churn else ()
    case = Case(NAME, "half", 20, {"prediction_type": prediction} | config, step={"s_churn": churn})
    trajectories.check_half(case, dtype, twice=twice)


# --- grids and attributes ---

GRIDS = [
    {},
    LEADING,
    {"timestep_spacing": "trailing"},
    *RESPACED.values(),
    {"interpolation_type": "log_linear"},
    {"timestep_type": "continuous"} | V,
    {"use_karras_sigmas": True, "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 80.0} | V,
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"final_sigmas_type": "sigma_min"},
]


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 61, 999])
def test_grid(config, steps):
    ours, theirs, exact = sigma_grids.three(NAME, config, steps)
    if config.get("timestep_spacing") == "trailing" and not whole_grid(1000, steps):  # one more there, t = -1
        assert len(ours.timesteps) == steps and len(ours.sigmas) == steps + 1
        assert np.allclose(ours.timesteps, exact.timesteps[:steps], rtol=1e-12, atol=0)
        assert np.allclose(ours.sigmas[:-1], exact.sigmas[:steps], rtol=1e-12, atol=0)
        return
    sigma_grids.check_grid(ours, theirs, exact)
    assert ours.num_inference_steps == steps


@pytest.mark.parametrize("config", GRIDS, ids=str)
def test_tables_before_set_timesteps(config):
    made = sigma_grids.three(NAME, config)
    sigma_grids.check_grid(*made)
    sigma_grids.check_tables(*made)
    assert made[0].num_inference_steps is None


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_init_noise_sigma_keeps_the_dtype(spacing):
    ours = subject(NAME)(timestep_spacing=spacing)
    ours.set_timesteps(10)
    assert (draw(1).half() * ours.init_noise_sigma).dtype == torch.float16
    assert (np.zeros(3, np.float32) * ours.init_noise_sigma).dtype == np.float32


def test_timesteps_move_to_a_torch_device():
    ours = subject(NAME)()
    ours.set_timesteps(7)
    plain, sigmas = ours.timesteps, ours.sigmas
    for device in (torch.device("cpu"), "cpu"):
        ours.set_timesteps(7, device=device)
        assert isinstance(ours.timesteps, torch.Tensor) and isinstance(ours.sigmas, torch.Tensor)
        assert np.allclose(ours.timesteps, plain, rtol=1e-6) and np.allclose(ours.sigmas, sigmas, rtol=1e-6)
    ours = subject(NAME)()
    ours.set_timesteps(7, device=None)
    assert isinstance(ours.timesteps, np.ndarray) and ours.timesteps.dtype == np.float64


# --- the index ---


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
@pytest.mark.parametrize("config", GRIDS, ids=str)
def test_index_for_timestep(config, device):
    ours = subject(NAME)(**config)
    ours.set_timesteps(9, device=device)
    assert [ours.index_for_timestep(t) for t in ours.timesteps] == list(range(len(ours.timesteps)))
    assert ours.index_for_timestep(ours.timesteps[3], ours.timesteps) == 3


def test_equal_timesteps():
    """Where sigmas lie past the table several timesteps are equal: the second of them is where a lookup begins."""
    config = {"use_karras_sigmas": True, "sigma_max": 400.0}
    ours, theirs = subject(NAME)(**config), original(NAME)(**config)
    for scheduler in (ours, theirs):
        with quiet():
            scheduler.set_timesteps(20)
    assert float(theirs.timesteps[0]) == float(theirs.timesteps[1]) == 999
    assert np.allclose(ours.timesteps, theirs.timesteps, rtol=0, atol=0.02)
    assert ours.index_for_timestep(ours.timesteps[0]) == theirs.index_for_timestep(theirs.timesteps[0]) == 1


def test_equal_timesteps_from_an_index():
    """With a begin index nothing is looked up, and both run the loop."""
    config = {"use_karras_sigmas": True, "sigma_max": 400.0}
    x, runs = draw(1) * 400, []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls(**config)
        with quiet():
            scheduler.set_timesteps(20, device=torch.device("cpu"))
        scheduler.set_begin_index(0)
        state = x
        for t in scheduler.timesteps:
            output = 0.9 * torch.tanh(scheduler.scale_model_input(state, t))
            state = scheduler.step(output, t, state).prev_sample
        runs.append(state)
    assert (runs[0] - runs[1]).abs().max() <= 1e-3  # of a state that began at 1200


def test_step_index_counts():
    sigma_grids.check_index(NAME, 3)


def test_begin_index_wins_over_the_timestep():
    """The timestep is not looked up then: what it says does not matter."""
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        with quiet():
            scheduler.set_timesteps(10, device=torch.device("cpu"))
        scheduler.set_begin_index(6)
        scheduler.scale_model_input(draw(1), scheduler.timesteps[0])
        results.append(scheduler.step(draw(2), scheduler.timesteps[0], draw(1)).prev_sample)
    assert (results[0] - results[1]).abs().max() <= 1e-5


# --- single steps ---


def test_step_before_set_timesteps():
    sigma_grids.check_trained_levels(NAME)


@pytest.mark.parametrize("form", [float, np.float64, lambda t: torch.tensor(t, dtype=torch.float64)])
def test_forms_of_a_timestep(form):
    results = []
    for turn in (form, lambda t: t):
        ours = subject(NAME)()
        ours.set_timesteps(10)
        t = turn(ours.timesteps[4])
        scaled = ours.scale_model_input(draw(1), t)
        results.append(ours.step(scaled, t, draw(1)).prev_sample)
    assert torch.equal(*results)


def test_outputs():
    x, output, results = draw(1), draw(2), []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        with quiet():
            scheduler.set_timesteps(20)
        scheduler.scale_model_input(x, scheduler.timesteps[3])
        results.append(scheduler.step(output, scheduler.timesteps[3], x))
        scheduler.set_begin_index(3)
        with quiet():
            scheduler.set_timesteps(20)
        results.append(scheduler.step(output, scheduler.timesteps[3], x, return_dict=False))
    got, plain, expected, _ = results
    sigma_grids.check_results(got, plain, expected, "EulerDiscreteSchedulerOutput")
    assert torch.equal(got[0], got.prev_sample) and torch.equal(got["prev_sample"], got.prev_sample)
    assert torch.equal(got[1], got.pred_original_sample)


@pytest.mark.parametrize("options", [{}, {"s_churn": 10.0, "s_tmin": 5.0}, {"s_churn": 10.0}], ids=str)
def test_draws_as_often_as_diffusers(options):
    sigma_grids.check_draws(NAME, **options)


def test_original_sample_is_an_old_name_of_sample():
    results = []
    for prediction in ("original_sample", "sample"):
        ours = subject(NAME)(prediction_type=prediction)
        ours.set_timesteps(10)
        ours.scale_model_input(draw(1), ours.timesteps[4])
        results.append(ours.step(draw(2), ours.timesteps[4], draw(1)).prev_sample)
    assert torch.equal(*results)


# --- the forward process ---


@pytest.mark.parametrize(
    "prepare",
    [
        begun(),
        begun(steps=50, rows=(33, 49)),
        begun(begin=4),
        begun(begin=4, taken=4),
        begun(taken=4),
        begun(rows=(5,)),
    ],
    ids=["looked up", "looked up in 50", "begun", "begun and stepped", "stepped", "one row"],
)
@pytest.mark.parametrize("config", [{}, KARRAS, STABLE | {"timestep_spacing": "leading"}], ids=str)
def test_add_noise(config, prepare):
    trajectories.check_forward(NAME, config, "add_noise", None, prepare)


@pytest.mark.parametrize("prepare", [begun(), begun(steps=50, rows=(33, 49))], ids=["10", "50"])
def test_get_velocity(prepare):
    """diffusers reads the table of trained timesteps, ascending, at positions of the descending grid: so do we."""
    trajectories.check_forward(NAME, {}, "get_velocity", None, prepare)


# --- errors ---

ERRORS = {
    **sigma_grids.ERRORS,
    **sigma_grids.RESPACING_ERRORS,
    **sigma_grids.INTEGER_ERRORS,
    "interpolation_type": (ValueError, lambda cls: cls(interpolation_type="cubic").set_timesteps(10)),
    "final_sigmas_type": (ValueError, lambda cls: cls(final_sigmas_type="one").set_timesteps(10)),
    "nothing to set": (ValueError, lambda cls: cls().set_timesteps()),
    "timesteps and sigmas": (ValueError, lambda cls: cls().set_timesteps(timesteps=[9], sigmas=[1.0, 0.0])),
    "steps and timesteps": (ValueError, lambda cls: cls().set_timesteps(2, timesteps=[9, 0])),
    "steps and sigmas": (ValueError, lambda cls: cls().set_timesteps(2, sigmas=[9.0, 1.0, 0.0])),
    "timesteps and karras": (ValueError, lambda cls: cls(**KARRAS).set_timesteps(timesteps=[9, 0])),
    "timesteps and exponential": (ValueError, lambda cls: cls(**EXPONENTIAL).set_timesteps(timesteps=[9, 0])),
    "timesteps and beta": (ValueError, lambda cls: cls(**BETA).set_timesteps(timesteps=[9, 0])),
    "timesteps and continuous": (
        ValueError,
        lambda cls: cls(timestep_type="continuous", **V).set_timesteps(timesteps=[9, 0]),
    ),
    "get_velocity of integers": (
        ValueError,
        lambda cls: cls().get_velocity(draw(1), draw(2), torch.tensor([3])),
    ),
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(clip_sample=True)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


# --- the oracle and the harness themselves ---


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("churn", [0.0, 5.0])
@pytest.mark.parametrize("t", [999.0, 444.0, 0.0])
def test_oracle_step_is_a_straight_line_to_the_estimate(prediction, churn, t):
    """x' = x_0 + sigma'/sigma (x - x_0), from a sample raised to sigma (1 + gamma) with noise of its own."""
    config = {"prediction_type": prediction}
    scheduler = float64_class(NAME)(**config)
    with quiet():
        scheduler.set_timesteps(10)
    bar = alphas_cumprod(config)
    table = np.sqrt((1 - bar) / bar)
    sigma, after = table[int(t)], table[int(t) - 111] if t else 0.0
    noise = draw(3).double()
    x, output = draw(1).double() * sigma, draw(2).double()
    raised = sigma * (1 + min(churn / 10, math.sqrt(2) - 1))
    start = x + math.sqrt(raised**2 - sigma**2) * 1.01 * noise
    clean = {
        "epsilon": start - raised * output,
        "sample": output,
        # At sigma, not at the raised level: the model was called before.
        "v_prediction": start / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * output,
    }[prediction]
    expected = clean + after / raised * (start - clean)
    noisy = {"s_churn": churn, "s_noise": 1.01, "generator": torch.Generator().manual_seed(3)}
    out = scheduler.step(output, t, x, **noisy)
    assert scheduler.sigmas.dtype == scheduler.timesteps.dtype == out.prev_sample.dtype == torch.float64
    assert (out.prev_sample - expected).abs().max() <= 1e-12 * raised
    assert (out.pred_original_sample - clean).abs().max() <= 1e-12 * raised
    moved_on = scheduler.scale_model_input(x, t)
    assert torch.allclose(moved_on, x / math.sqrt(after**2 + 1), rtol=1e-12)


def test_oracle_karras_grid_is_equation_5():
    scheduler = float64_class(NAME)(use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0)
    with quiet():
        scheduler.set_timesteps(18)
    ramp = np.arange(18) / 17
    expected = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert np.allclose(scheduler.sigmas[:-1], expected, rtol=1e-13, atol=0)


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, {}, step={"s_churn": 5.0}))
    other = {"timestep_spacing": "leading", "prediction_type": "v_prediction"}
    trajectories.check_plants(Case(NAME, "harness", 20, other, step={"s_churn": 5.0}))
