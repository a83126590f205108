"""`LMSDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import logging
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.options import BETA, EXPONENTIAL, KARRAS, LEADING, RESPACED, STABLE, V
from reference.sigma_grids import begun, past_the_end, stepped
from reference.trajectories import (
    Case,
    Looser,
    check_random,
    draw,
    like,
    original,
    quiet,
    subject,
    whole_grid,
)

# diffusers' constructor makes NumPy arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAME = "LMSDiscreteScheduler"

LOOSER = (
    Looser(
        0.3,
        "as below, from sigma = 20291 to 0.006: diffusers' own float32 rounding is a part of the state",
        ("squaredcos_cap_v2, linspace-2",),
    ),
    Looser(
        3e-3,
        "x + coefficient * derivative cancels in float32 where one step takes the state from sigma = 157 to 0.01",
        ("*-2", "beta*-5"),
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
            "from the middle, karras*",
            "squaredcos_cap_v2, linspace*",
        ),
    ),
    Looser(
        3e-5,
        "coefficients of N = T are quotients of differences of neighbouring sigmas, which float32 keeps to 5e-5",
        ("N=T*",),
    ),
)


over = options.cases_of(NAME)


def one_at_a_time():
    for prediction in options.PREDICTIONS:
        yield from options.spaced(over, {"prediction_type": prediction})
    for schedule in options.SCHEDULES:
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "linspace"))
    yield from over("Stable Diffusion", config=STABLE | LEADING)
    yield from over("trained_betas", config=options.TRAINED)
    yield from over("num_train_timesteps=50", config=options.FEW)
    for name, flag in RESPACED.items():
        yield from over(name, config=flag)
        yield from over(f"{name}, v_prediction", config=flag | V)
        config = STABLE | flag | {"timestep_spacing": "leading"}
        yield from over(f"{name}, scaled_linear, leading", config=config)
    for order in (1, 2, 3, 5):
        yield from over(f"order={order}", step={"order": order})
        yield from over(
            f"order={order}, trailing", config={"timestep_spacing": "trailing"}, step={"order": order}
        )
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    yield from over("from the middle, karras", steps=(5, 20, 50), config=KARRAS, begin=3)
    yield from over("from the middle, order=2", steps=(20,), config=V, begin=7, step={"order": 2})
    yield from over("N=T", steps=(1000,))


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20)
def test_loop_in_float64(case):
    """The oracle asks its quadrature for 1e-4 and gets 1e-13: it is exact for polynomials."""
    trajectories.check_float64(case)


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(1, min(count, 60)))
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    config = {
        "num_train_timesteps": count,
        "beta_schedule": pick("linear", "scaled_linear", "squaredcos_cap_v2"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": pick("epsilon", "sample", "v_prediction"),
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" and steps < count and pick(0, 1) else 0,
    } | pick({}, {}, KARRAS, EXPONENTIAL, BETA)
    return Case(NAME, f"{config}", steps, config, step={"order": pick(1, 2, 3, 4, 4)})


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [{}, KARRAS], ids=str)
def test_half_precision_is_rounded_once(dtype, prediction, config):
    trajectories.check_half(Case(NAME, "half", 20, {"prediction_type": prediction} | config), dtype)


# --- the history ---


def moved(cls, orders, begin=0, kind=torch.float64, correct=None, steps=12):
    """A run with an order of its own at every step; the sample at the end."""
    scheduler = cls()
    scheduler = scheduler.corrected(correct) if correct else scheduler
    with quiet():
        scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    x = like(draw(1).double(), kind) * 20.0
    for order, t in zip(orders, scheduler.timesteps[begin:], strict=False):
        output = 0.9 * torch.tanh(scheduler.scale_model_input(x, t))
        x = scheduler.step(output, t, x, order=order).prev_sample
    return x


ORDERS = [
    [4] * 12,
    [1, 2, 3, 4, 5, 4, 3, 2, 1, 1, 2, 3],
    [4, 4, 4, 4, 1, 4, 4, 4, 4, 4, 4, 4],
    [1, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4],
    [4, 4, 4, 4, 5, 5, 5, 2, 2, 2, 2, 5],
]


@pytest.mark.parametrize("begin", [0, 1, 3, 7])
@pytest.mark.parametrize("orders", ORDERS, ids=str)
def test_an_order_that_changes_on_the_way(orders, begin):
    """diffusers keeps as many calls as the order says, drops one at most at a step, and takes coefficients of full order."""
    exact, ours = moved(float64_class(NAME), orders, begin), moved(subject(NAME), orders, begin)
    assert (exact - ours).abs().max() <= 1e-11 * exact.abs().max()


def test_a_whole_history_is_what_the_correction_asks_for():
    whole, late = ([4] * 12, 0), ([4] * 8, 4)
    same = lambda orders, begin: torch.equal(
        moved(subject(NAME), orders, begin), moved(subject(NAME), orders, begin, correct="lms-short-history")
    )
    assert same(*whole)
    assert not same(*late)


def test_corrected_begins_with_lower_orders():
    """As a run of the remaining levels alone."""
    ours = subject(NAME)(use_karras_sigmas=True).corrected("lms-short-history")
    ours.set_timesteps(10)
    nodes, x = ours.sigmas[4:], draw(1).double().numpy()
    rest, slopes = x * nodes[0], []
    ours.set_begin_index(4)
    own = rest
    for i, t in enumerate(ours.timesteps[4:]):
        slope = np.tanh(ours.scale_model_input(own, t))
        slopes.insert(0, np.tanh(rest / math.hypot(nodes[i], 1)))
        own = ours.step(slope, t, own).prev_sample
        count = min(i + 1, 4)
        # The polynomial through the slopes, integrated: an oracle without Lagrange's polynomials.
        powers = np.vander(nodes[i - count + 1 : i + 1][::-1] / nodes[0], increasing=True)
        ends = np.asarray(
            [(nodes[i + 1] / nodes[0]) ** k - (nodes[i] / nodes[0]) ** k for k in range(1, count + 1)]
        )
        weights = np.linalg.solve(powers.T, ends / np.arange(1, count + 1)) * nodes[0]
        rest = rest + sum(w * d for w, d in zip(weights, slopes, strict=False))
    assert abs(own - rest).max() <= 1e-9


def test_history_is_bounded():
    ours, x = subject(NAME)(), draw(1)
    ours.set_timesteps(20)
    for t in ours.timesteps:
        x = ours.step(torch.tanh(ours.scale_model_input(x, t)), t, x).prev_sample
        assert len(ours._run[1]) <= 4


# --- coefficients ---


@pytest.mark.parametrize("config", [{}, KARRAS, {"timestep_spacing": "trailing"}], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_coefficients(config, order):
    ours, exact = subject(NAME)(**config), float64_class(NAME)(**config)
    for scheduler in (ours, exact):
        with quiet():
            scheduler.set_timesteps(12)
    for t in range(order - 1, 12):
        found = [ours.get_lms_coefficient(order, t, k) for k in range(order)]
        wanted = [exact.get_lms_coefficient(order, t, k) for k in range(order)]
        assert all(type(c) is float for c in found)
        # quad stops at an absolute error of 1.5e-8.
        assert np.allclose(found, wanted, rtol=1e-10, atol=2e-8)
        assert math.isclose(sum(found), ours.sigmas[t + 1] - ours.sigmas[t], rel_tol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0), "order=0"),
        ((4, 2, 0), "order=4: expected at most 3"),
        ((2, 12, 0), "t=12: expected at most 11"),
        ((2, -1, 0), "t=-1"),
        ((2, 5, 2), "current_order=2: expected at most 1"),
        ((2, 5, -1), "current_order=-1"),
    ],
)
def test_coefficients_out_of_range(arguments, message):
    """diffusers takes sigmas from the other end of the table there."""
    ours = subject(NAME)()
    ours.set_timesteps(12)
    with pytest.raises(ValueError, match=message):
        ours.get_lms_coefficient(*arguments)


# --- grids and attributes ---

GRIDS = [
    {},
    LEADING,
    {"timestep_spacing": "trailing"},
    KARRAS,
    EXPONENTIAL,
    BETA,
    KARRAS | LEADING,
]


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 999])
def test_grid(config, steps):
    sigma_grids.check_grid(*sigma_grids.three(NAME, config, steps))


@pytest.mark.parametrize("config", GRIDS, ids=str)
def test_tables_before_set_timesteps(config):
    """Those of as many steps as training timesteps; an offset past the end of the table repeats its largest sigma."""
    made = sigma_grids.three(NAME, config)
    sigma_grids.check_grid(*made)
    sigma_grids.check_tables(*made)
    assert made[0].num_inference_steps == 1000


def test_steps_from_a_repeated_sigma_are_refused():
    """diffusers divides 0 by 0 there."""
    ours = subject(NAME)(timestep_spacing="leading", steps_offset=1)
    with pytest.raises(ValueError, match=r"sigmas\[1\].* is not below sigmas\[0\]"):
        ours.step(draw(1), 500, draw(2))
    with pytest.raises(ValueError, match="steps_offset=1"):
        ours.set_timesteps(1000)


@pytest.mark.parametrize("flag", RESPACED)
def test_ends_that_another_class_left_in_the_config(flag):
    """diffusers heeds them for exponential and beta, not for karras; corrected, no class heeds keys of another."""
    assert np.array_equal(*sigma_grids.check_foreign_ends(NAME, flag, 20.0)) is (flag == "karras")


def test_keys_of_other_classes_are_not_heeded():
    """Zero SNR, thresholding and clipping travel with a config, and neither class has them."""
    foreign = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    ddim = {"thresholding": True, "clip_sample_range": 0.1}
    results = []
    for find in (original, subject):
        scheduler = find(NAME).from_config(find("DDIMScheduler")(**foreign, **ddim).config)
        with quiet():
            scheduler.set_timesteps(5)
        t, x = scheduler.timesteps[0], draw(1)
        scheduler.scale_model_input(x, t)
        results.append((scheduler.sigmas, scheduler.step(draw(2), t, x).pred_original_sample))
    assert np.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert (results[0][1] - results[1][1]).abs().max() <= 1e-4


def test_a_config_replaced_before_set_timesteps_counts():
    ours = subject(NAME)()
    ours._internal_dict = {**ours.config, "use_karras_sigmas": True}
    assert np.array_equal(ours.sigmas, subject(NAME)(**KARRAS).sigmas)
    ours.set_timesteps(5)
    sigmas = ours.sigmas
    ours._internal_dict = {**ours.config, "use_karras_sigmas": False}
    assert np.array_equal(ours.sigmas, sigmas)


# --- the index ---


@pytest.mark.parametrize("form", sigma_grids.FORMS)
def test_forms_of_a_timestep(form):
    """Integers are timesteps here, not positions."""
    sigma_grids.check_form(NAME, form, 5)


def test_step_index_counts():
    sigma_grids.check_index(NAME, 3)


def test_outputs():
    sigma_grids.check_outputs(NAME, 3)


def test_an_input_that_was_not_scaled_is_logged(caplog):
    scheduler = subject(NAME)()
    scheduler.set_timesteps(3)
    with caplog.at_level(logging.WARNING):
        scheduler.step(draw(1), scheduler.timesteps[0], draw(2))
    assert "scale_model_input" in caplog.text


# --- the forward process ---


@pytest.mark.parametrize("prepare", [begun(), begun(begin=4), begun(begin=4, taken=4), begun(rows=(5,))])
@pytest.mark.parametrize("config", [{}, KARRAS, STABLE | {"timestep_spacing": "leading"}], ids=str)
def test_add_noise(config, prepare):
    trajectories.check_forward(NAME, config, "add_noise", None, prepare)


def test_add_noise_before_set_timesteps():
    trajectories.check_forward(NAME, {}, "add_noise", torch.tensor([999.0, 17.0]))


# --- errors ---


ERRORS = {
    **sigma_grids.ERRORS,
    **sigma_grids.RESPACING_ERRORS,
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(sigma_min=0.1)),
    "timesteps": (TypeError, lambda cls: cls().set_timesteps(timesteps=[9, 0])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


@pytest.mark.parametrize("order", [0, -1, 2.0, True, None])
def test_order_refused(order):
    """diffusers returns the sample as it was for 0 and below."""
    with pytest.raises(ValueError, match=f"order={order}"):
        stepped(subject(NAME)(), order=order)


# --- the harness itself ---


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, {}))
    trajectories.check_plants(
        Case(NAME, "harness", 20, {"timestep_spacing": "leading"} | V, step={"order": 2})
    )
