"""`EulerAncestralDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from anystep import reproducible
from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.options import LEADING, STABLE, STEPS, V
from reference.sigma_grids import begun, past_the_end, stepped
from reference.trajectories import (
    Case,
    Looser,
    check_random,
    compare,
    draw,
    original,
    quiet,
    subject,
    whole_grid,
)

# diffusers makes NumPy arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAME = "EulerAncestralDiscreteScheduler"

LOOSER = (
    Looser(
        0.3,
        "x cancels 20291 m, of which float32 keeps 1e-3: a product rounded by itself happens to round that away for the "
        "model of these loops, one that is rounded together with the sum does not",
        ("squaredcos_cap_v2, linspace-2",),
    ),
    Looser(
        3e-3,
        "x + derivative * dt cancels in float32 where one step takes the state from sigma = 157 to 0.01",
        ("*-2",),
    ),
    Looser(
        6e-4,
        "1 - abar_0 = 1e-4 keeps four digits in float32: the smallest sigma is off by 8e-5 (3e-4 for the cosine), and "
        "with it the loop of one step, which is at t = 0",
        ("*-1", "squaredcos_cap_v2, linspace*"),
    ),
    Looser(
        6e-5,
        "sigma_from - sigma_to of neighbours under the root of sigma_up keeps fewer digits the closer they are",
        ("*-50", "N=T*"),
    ),
)


over = options.cases_of(NAME)


def one_at_a_time():
    for prediction in ("epsilon", "v_prediction"):
        yield from options.spaced(over, {"prediction_type": prediction})
        zero = {"prediction_type": prediction, "rescale_betas_zero_snr": True}
        yield from over(f"{prediction}, zero SNR, leading", config=zero | {"timestep_spacing": "leading"})
        steps = STEPS if prediction != "epsilon" else (1, 5, 20, 50)  # 2: test_from_4096_in_two_steps
        yield from over(f"{prediction}, zero SNR, trailing", zero | {"timestep_spacing": "trailing"}, steps)
    for schedule in options.SCHEDULES:
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "linspace"))
    yield from over("Stable Diffusion", config=STABLE | LEADING)
    yield from over("trained_betas", config=options.TRAINED)
    yield from over("num_train_timesteps=50", config=options.FEW)
    yield from over("generator list", generators=2)
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    yield from over("N=T", steps=(1000,))
    yield from over("N=T, v_prediction", steps=(1000,), config=STABLE | V)


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20)
def test_loop_in_float64(case):
    trajectories.check_float64(case)


@pytest.mark.parametrize("seed", range(4))
def test_from_4096_in_two_steps(seed):
    """sigma = √(2²⁴ - 1) lies half-way between two float32, x and the coefficient are rounded to either, and 4096 (x / 4096 - m)
    leaves nothing but rounding: an ulp of 4096 here, half of one in diffusers, whose root is 4096 wherever it occurs.
    """
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    figures = compare(Case(NAME, "zero SNR", 2, config), seed=seed)
    assert figures.apart <= 1e-5
    assert figures.ours <= 2.5 * figures.theirs


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(1, min(count, 60)))
    prediction = pick("epsilon", "v_prediction")
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    config = {
        "num_train_timesteps": count,
        "beta_schedule": pick("linear", "scaled_linear", "squaredcos_cap_v2"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" and steps < count and pick(0, 1) else 0,
        # What ε says at 4096 is rounding: test_from_4096_in_two_steps.
        "rescale_betas_zero_snr": prediction == "v_prediction" and pick(True, False),
    }
    return Case(NAME, f"{config}", steps, config, generators=pick(1, 2))


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("config", [{}, {"timestep_spacing": "trailing"}], ids=str)
def test_half_precision_is_rounded_once(dtype, prediction, config):
    trajectories.check_half(Case(NAME, "half", 20, {"prediction_type": prediction} | config), dtype)


# --- the noise ---


def test_draws_as_often_as_diffusers():
    """At the last step too, where nothing is added."""
    state, twelve = sigma_grids.check_draws(NAME), torch.Generator().manual_seed(3)
    for _ in range(12):
        torch.randn(draw(1).shape, generator=twelve)
    assert torch.equal(state, twelve.get_state())


def test_the_last_step_adds_nothing():
    results = []
    for seed in (1, 2):
        ours = subject(NAME)()
        ours.set_timesteps(5)
        t = ours.timesteps[-1]
        ours.scale_model_input(draw(1), t)
        with reproducible():  # the estimate is a sum of its own, and rounds as that of the plain path does
            out = ours.step(draw(2), t, draw(1), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(out.prev_sample, out.pred_original_sample)
        results.append(out.prev_sample)
    assert torch.equal(*results)


@pytest.mark.parametrize("prediction", ["sample", "original_sample"])
def test_the_clean_sample_as_prediction(prediction):
    """diffusers raises; the result is that of an epsilon model which says the same."""
    for cls in (original(NAME),):
        with pytest.raises((NotImplementedError, ValueError)):
            stepped(cls(prediction_type=prediction))
    results = []
    for told in (prediction, "epsilon"):
        ours = subject(NAME)(prediction_type=told)
        ours.set_timesteps(10)
        t, x = ours.timesteps[4], draw(1).double()
        sigma = float(ours.sigmas[4])
        ours.scale_model_input(x, t)
        output = draw(2).double() if told == prediction else (x - draw(2).double()) / sigma
        out = ours.step(output, t, x, generator=torch.Generator().manual_seed(5))
        results.append(out)
    assert (results[0].prev_sample - results[1].prev_sample).abs().max() <= 1e-12
    assert torch.equal(results[0].pred_original_sample, draw(2).double())


# --- grids and attributes ---

GRIDS = [
    {},
    LEADING,
    {"timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
]


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [None, 1, 2, 3, 10, 25, 999])
def test_grid(config, steps):
    made = sigma_grids.three(NAME, config, steps)
    sigma_grids.check_grid(*made)
    sigma_grids.check_tables(*made)
    assert made[0].num_inference_steps == steps


def test_keys_of_other_classes_are_not_heeded():
    foreign = {
        "use_karras_sigmas": True,
        "final_sigmas_type": "sigma_min",
        "interpolation_type": "log_linear",
    }
    results = []
    for find in (original, subject):
        scheduler = find(NAME).from_config(find("EulerDiscreteScheduler")(**foreign).config)
        with quiet():
            scheduler.set_timesteps(7)
        results.append(scheduler.sigmas)
    plain = subject(NAME)()
    plain.set_timesteps(7)
    assert np.array_equal(results[1], plain.sigmas)
    assert np.allclose(*results, rtol=1e-3, atol=0)


def test_step_before_set_timesteps():
    sigma_grids.check_trained_levels(NAME)


def test_outputs_and_index():
    x, output, results, seen = draw(1), draw(2), [], []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        for as_dict in (True, False):
            with quiet():
                scheduler.set_timesteps(20)
            seen.append(scheduler.step_index)
            scheduler.set_begin_index(3)
            scheduler.scale_model_input(x, scheduler.timesteps[0])
            drawn = torch.Generator().manual_seed(3)
            results.append(scheduler.step(output, scheduler.timesteps[0], x, drawn, return_dict=as_dict))
            seen.append((scheduler.step_index, scheduler.begin_index))
    got, plain, expected, _ = results
    assert seen == [None, (4, 3)] * 4
    sigma_grids.check_results(got, plain, expected, "EulerAncestralDiscreteSchedulerOutput")
    assert (got.prev_sample - expected.prev_sample).abs().max() <= 1e-4


# --- the forward process ---


@pytest.mark.parametrize("prepare", [begun(), begun(begin=4), begun(rows=(5,))])
@pytest.mark.parametrize("config", [{}, STABLE | {"timestep_spacing": "leading"}], ids=str)
def test_add_noise(config, prepare):
    trajectories.check_forward(NAME, config, "add_noise", None, prepare)


# --- errors ---


ERRORS = {
    **sigma_grids.ERRORS,
    **sigma_grids.INTEGER_ERRORS,
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(use_karras_sigmas=True)),
    "sigmas": (TypeError, lambda cls: cls().set_timesteps(sigmas=[9.0, 0.0])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


# --- the oracle and the harness themselves ---


@pytest.mark.parametrize("position", [0, 4, 9])
def test_oracle_step_is_a_draw_from_the_posterior(position):
    """Ho et al. 2020, equation 7, for a process with alpha = 1, by the product of two Gaussians."""
    scheduler = float64_class(NAME)()
    with quiet():
        scheduler.set_timesteps(10)
    now, then = (float(s) for s in scheduler.sigmas[position : position + 2])
    x, output, t = draw(1).double() * now, draw(2).double(), scheduler.timesteps[position]
    scheduler.scale_model_input(x, t)
    out = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
    clean, between = x - now * output, now**2 - then**2
    mean = (clean * between + x * then**2) / now**2
    expected = mean + math.sqrt(between / now**2) * then * draw(3).double()
    assert (out - expected).abs().max() <= 1e-11 * now


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, {}))
    trajectories.check_plants(Case(NAME, "harness", 20, {"timestep_spacing": "leading"} | V))
