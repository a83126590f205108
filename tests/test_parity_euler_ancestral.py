"""`EulerAncestralDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from anystep import reproducible
from reference.float64_diffusers import float64_class
from reference.trajectories import (
    Case,
    Looser,
    bound_for,
    check_error,
    check_float64,
    check_forward,
    check_half,
    check_plants,
    check_random,
    compare,
    draw,
    judge,
    original,
    quiet,
    subject,
    unused,
    whole_grid,
)

# diffusers makes NumPy arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAME = "EulerAncestralDiscreteScheduler"
STEPS = (1, 2, 5, 20, 50)
V = {"prediction_type": "v_prediction"}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

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


def over(option, steps=STEPS, config=None, **rest):
    return [Case(NAME, option, count, config or {}, **rest) for count in steps]


def one_at_a_time():
    for prediction in ("epsilon", "v_prediction"):
        for spacing in ("leading", "trailing", "linspace"):
            config = {"prediction_type": prediction, "timestep_spacing": spacing}
            yield from over(f"{prediction}, {spacing}", config=config)
        zero = {"prediction_type": prediction, "rescale_betas_zero_snr": True}
        yield from over(f"{prediction}, zero SNR, leading", config=zero | {"timestep_spacing": "leading"})
        steps = STEPS if prediction != "epsilon" else (1, 5, 20, 50)  # 2: test_from_4096_in_two_steps
        yield from over(f"{prediction}, zero SNR, trailing", steps, zero | {"timestep_spacing": "trailing"})
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for spacing in ("leading", "linspace"):
            config = {"beta_schedule": schedule, "timestep_spacing": spacing}
            yield from over(f"{schedule}, {spacing}", config=config)
    yield from over("Stable Diffusion", config=STABLE | {"timestep_spacing": "leading", "steps_offset": 1})
    betas = np.geomspace(2e-4, 0.09, 100).tolist()
    yield from over("trained_betas", config={"trained_betas": betas, "num_train_timesteps": 100})
    yield from over("num_train_timesteps=50", config={"num_train_timesteps": 50, "beta_end": 0.2})
    yield from over("generator list", generators=2)
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    yield from over("N=T", steps=(1000,))
    yield from over("N=T, v_prediction", steps=(1000,), config=STABLE | V)


CASES = list(one_at_a_time())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_loop(case):
    judge(case, compare(case), bound_for(case, LOOSER))


def test_cases_and_exceptions_name_each_other():
    assert len({case.id for case in CASES}) == len(CASES)
    assert not unused(LOOSER, CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case.steps == 20], ids=lambda case: case.id)
def test_loop_in_float64(case):
    check_float64(case)


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
    check_half(Case(NAME, "half", 20, {"prediction_type": prediction} | config), dtype)


# --- the noise ---


def test_draws_as_often_as_diffusers():
    """At the last step too, where nothing is added."""
    states = []
    for cls in (subject(NAME), original(NAME)):
        scheduler, generator, x = cls(), torch.Generator().manual_seed(3), draw(1) * 150
        with quiet():
            scheduler.set_timesteps(12)
        for t in scheduler.timesteps:
            output = torch.tanh(scheduler.scale_model_input(x, t))
            x = scheduler.step(output, t, x, generator=generator)[0]
        states.append(generator.get_state())
    assert torch.equal(*states)
    twelve = torch.Generator().manual_seed(3)
    for _ in range(12):
        torch.randn(draw(1).shape, generator=twelve)
    assert torch.equal(states[0], twelve.get_state())


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
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
]


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [None, 1, 2, 3, 10, 25, 999])
def test_grid(config, steps):
    ours, theirs, exact = (cls(**config) for cls in (subject(NAME), original(NAME), float64_class(NAME)))
    if steps is not None:
        ours.set_timesteps(steps)
        with quiet():
            theirs.set_timesteps(steps)
            exact.set_timesteps(steps)
    assert np.asarray(ours.timesteps).dtype == np.asarray(ours.sigmas).dtype == np.float64
    assert len(ours.timesteps) == len(theirs.timesteps) and len(ours.sigmas) == len(theirs.sigmas)
    assert np.allclose(ours.timesteps, exact.timesteps, rtol=1e-12, atol=1e-9)
    assert np.allclose(ours.sigmas, exact.sigmas, rtol=4e-12, atol=0)
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    assert math.isclose(ours.init_noise_sigma, float(exact.init_noise_sigma), rel_tol=1e-12)
    assert ours.num_inference_steps == theirs.num_inference_steps == steps
    assert ours.step_index is ours.begin_index is None
    assert len(ours) == len(theirs) == 1000 and ours.order == theirs.order == 1
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert np.allclose(getattr(ours, name), getattr(exact, name), rtol=0, atol=1e-14), name


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
    for position in (0, 500, 998):
        results = []
        for cls in (subject(NAME), original(NAME)):
            scheduler = cls()
            t = scheduler.timesteps[position]
            scheduler.scale_model_input(draw(1), t)
            drawn = torch.Generator().manual_seed(3)
            results.append(scheduler.step(draw(2), t, draw(1), generator=drawn).prev_sample)
        assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()


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
    assert type(got).__name__ == type(expected).__name__ == "EulerAncestralDiscreteSchedulerOutput"
    assert list(got.keys()) == list(expected.keys())
    assert isinstance(plain, tuple) and len(plain) == 2
    assert all(torch.equal(one, two) for one, two in zip(plain, got.to_tuple(), strict=True))
    assert (got.prev_sample - expected.prev_sample).abs().max() <= 1e-4


# --- the forward process ---


def begun(steps=10, begin=None, rows=(0, 7)):
    def prepare(scheduler):
        scheduler.set_timesteps(steps)
        times = torch.as_tensor(np.array(scheduler.timesteps))[list(rows)]
        if begin is not None:
            scheduler.set_begin_index(begin)
        return times

    return prepare


@pytest.mark.parametrize("prepare", [begun(), begun(begin=4), begun(rows=(5,))])
@pytest.mark.parametrize("config", [{}, STABLE | {"timestep_spacing": "leading"}], ids=str)
def test_add_noise(config, prepare):
    check_forward(NAME, config, "add_noise", None, prepare)


# --- errors ---


def stepped(scheduler, t=None):
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0] if t is None else t
    if "int" not in str(getattr(t, "dtype", type(t))):
        scheduler.scale_model_input(draw(2), t)
    return scheduler.step(draw(1), t, draw(2))


def past_the_end(scheduler):
    scheduler.set_timesteps(3)
    x = draw(1)
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    for t in [*scheduler.timesteps, scheduler.timesteps[-1]]:
        x = scheduler.step(x, t, x).prev_sample


ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "timestep_spacing": (ValueError, lambda cls: cls(timestep_spacing="even").set_timesteps(10)),
    "prediction_type": (ValueError, lambda cls: stepped(cls(prediction_type="noise"))),
    "integer timestep": (ValueError, lambda cls: stepped(cls(), 3)),
    "integer tensor": (ValueError, lambda cls: stepped(cls(), torch.tensor(3))),
    "int32 tensor": (ValueError, lambda cls: stepped(cls(), torch.tensor(3, dtype=torch.int32))),
    "a timestep that is not of the grid": (IndexError, lambda cls: stepped(cls(), 12.3)),
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(use_karras_sigmas=True)),
    "sigmas": (TypeError, lambda cls: cls().set_timesteps(sigmas=[9.0, 0.0])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    check_error(NAME, *ERRORS[what])


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
    check_plants(Case(NAME, "harness", 20, {}))
    check_plants(Case(NAME, "harness", 20, {"timestep_spacing": "leading"} | V))
