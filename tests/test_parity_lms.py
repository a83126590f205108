"""`LMSDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import logging
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

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
    like,
    original,
    quiet,
    subject,
    unused,
    whole_grid,
)

# diffusers' constructor makes NumPy arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAME = "LMSDiscreteScheduler"
STEPS = (1, 2, 5, 20, 50)
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

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


def over(option, steps=STEPS, config=None, **rest):
    return [Case(NAME, option, count, config or {}, **rest) for count in steps]


def one_at_a_time():
    for prediction in ("epsilon", "sample", "v_prediction"):
        for spacing in ("leading", "trailing", "linspace"):
            config = {"prediction_type": prediction, "timestep_spacing": spacing}
            yield from over(f"{prediction}, {spacing}", config=config)
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for spacing in ("leading", "linspace"):
            config = {"beta_schedule": schedule, "timestep_spacing": spacing}
            yield from over(f"{schedule}, {spacing}", config=config)
    yield from over("Stable Diffusion", config=STABLE | {"timestep_spacing": "leading", "steps_offset": 1})
    betas = np.geomspace(2e-4, 0.09, 100).tolist()
    yield from over("trained_betas", config={"trained_betas": betas, "num_train_timesteps": 100})
    yield from over("num_train_timesteps=50", config={"num_train_timesteps": 50, "beta_end": 0.2})
    for flag in (KARRAS, EXPONENTIAL, BETA):
        name = next(iter(flag)).removeprefix("use_").removesuffix("_sigmas")
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_loop(case):
    judge(case, compare(case), bound_for(case, LOOSER))


def test_cases_and_exceptions_name_each_other():
    assert len({case.id for case in CASES}) == len(CASES)
    assert not unused(LOOSER, CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case.steps == 20], ids=lambda case: case.id)
def test_loop_in_float64(case):
    """The oracle asks its quadrature for 1e-4 and gets 1e-13: it is exact for polynomials."""
    check_float64(case)


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
    check_half(Case(NAME, "half", 20, {"prediction_type": prediction} | config), dtype)


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
        assert len(ours._run.memory) <= 4


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
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    KARRAS,
    EXPONENTIAL,
    BETA,
    KARRAS | {"timestep_spacing": "leading", "steps_offset": 1},
]


def agree(ours, theirs, exact):
    assert np.asarray(ours.timesteps).dtype == np.asarray(ours.sigmas).dtype == np.float64
    assert len(ours.timesteps) == len(theirs.timesteps) and len(ours.sigmas) == len(theirs.sigmas)
    assert np.allclose(ours.timesteps, exact.timesteps, rtol=1e-12, atol=1e-9)
    assert np.allclose(ours.sigmas, exact.sigmas, rtol=4e-12, atol=0)
    assert np.allclose(ours.timesteps, theirs.timesteps, rtol=3e-4, atol=3e-4)
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    assert math.isclose(ours.init_noise_sigma, float(exact.init_noise_sigma), rel_tol=1e-12)
    assert ours.num_inference_steps == theirs.num_inference_steps
    assert ours.step_index is ours.begin_index is None


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 999])
def test_grid(config, steps):
    made = [cls(**config) for cls in (subject(NAME), original(NAME), float64_class(NAME))]
    for scheduler in made:
        with quiet():
            scheduler.set_timesteps(steps)
    agree(*made)


@pytest.mark.parametrize("config", GRIDS, ids=str)
def test_tables_before_set_timesteps(config):
    """Those of as many steps as training timesteps; an offset past the end of the table repeats its largest sigma."""
    ours, theirs, exact = (cls(**config) for cls in (subject(NAME), original(NAME), float64_class(NAME)))
    agree(ours, theirs, exact)
    assert len(ours) == len(theirs) == ours.num_inference_steps == 1000 and ours.order == theirs.order == 1
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert np.allclose(getattr(ours, name), getattr(exact, name), rtol=0, atol=1e-14), name


def test_steps_from_a_repeated_sigma_are_refused():
    """diffusers divides 0 by 0 there."""
    ours = subject(NAME)(timestep_spacing="leading", steps_offset=1)
    with pytest.raises(ValueError, match=r"sigmas\[1\].* is not below sigmas\[0\]"):
        ours.step(draw(1), 500, draw(2))
    with pytest.raises(ValueError, match="steps_offset=1"):
        ours.set_timesteps(1000)


@pytest.mark.parametrize("flag", ["karras", "exponential", "beta"])
def test_ends_that_another_class_left_in_the_config(flag):
    """diffusers heeds them for exponential and beta, not for karras; corrected, no class heeds keys of another."""
    results = []
    for find in (original, subject):
        euler = find("EulerDiscreteScheduler")(sigma_min=0.05, sigma_max=20.0, final_sigmas_type="sigma_min")
        results.append(find(NAME).from_config(euler.config, **{f"use_{flag}_sigmas": True}))
    theirs, ours = results
    plain = subject(NAME)(**{f"use_{flag}_sigmas": True})
    corrected = ours.corrected("foreign-ends")
    for scheduler in (theirs, ours, plain, corrected):
        with quiet():
            scheduler.set_timesteps(9)
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=2e-4, atol=0)
    assert np.array_equal(corrected.sigmas, plain.sigmas)
    assert np.array_equal(ours.sigmas, plain.sigmas) is (flag == "karras")


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


@pytest.mark.parametrize("form", [float, np.float64, int, np.int64, lambda t: torch.tensor(int(t))])
def test_forms_of_a_timestep(form):
    """Integers are timesteps here, not positions."""
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls(timestep_spacing="trailing")
        with quiet():
            scheduler.set_timesteps(10)
        t = form(599)
        scheduler.scale_model_input(draw(1), t)
        results.append(scheduler.step(draw(2), t, draw(1)).prev_sample)
        assert scheduler.step_index == 5
    assert (results[0] - results[1]).abs().max() <= 1e-5


def test_step_index_counts():
    x, begun = draw(1), []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        with quiet():
            scheduler.set_timesteps(5)
        seen = [(scheduler.step_index, scheduler.begin_index)]
        t = scheduler.timesteps[2]
        scheduler.scale_model_input(x, t)
        seen += [(scheduler.step_index, scheduler.begin_index)]
        scheduler.step(x, t, x)
        seen += [(scheduler.step_index, scheduler.begin_index)]
        with quiet():
            scheduler.set_timesteps(5)
        scheduler.set_begin_index(3)
        scheduler.step(x, t, x)
        begun.append([*seen, (scheduler.step_index, scheduler.begin_index)])
    assert begun[0] == begun[1] == [(None, None), (2, None), (3, None), (4, 3)]


def test_outputs():
    x, output, results = draw(1), draw(2), []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        for as_dict in (True, False):
            with quiet():
                scheduler.set_timesteps(20)
            scheduler.scale_model_input(x, scheduler.timesteps[3])
            results.append(scheduler.step(output, scheduler.timesteps[3], x, return_dict=as_dict))
    got, plain, expected, _ = results
    assert type(got).__name__ == type(expected).__name__ == "LMSDiscreteSchedulerOutput"
    assert list(got.keys()) == list(expected.keys())
    assert isinstance(plain, tuple) and len(plain) == 2
    assert all(torch.equal(one, two) for one, two in zip(plain, got.to_tuple(), strict=True))


def test_an_input_that_was_not_scaled_is_logged(caplog):
    scheduler = subject(NAME)()
    scheduler.set_timesteps(3)
    with caplog.at_level(logging.WARNING):
        scheduler.step(draw(1), scheduler.timesteps[0], draw(2))
    assert "scale_model_input" in caplog.text


# --- the forward process ---


def begun(steps=10, begin=None, taken=None, rows=(0, 7)):
    """A scheduler brought to where it is asked, and the timesteps of two rows of its grid."""

    def prepare(scheduler):
        scheduler.set_timesteps(steps)
        times = torch.as_tensor(np.array(scheduler.timesteps))[list(rows)]
        if begin is not None:
            scheduler.set_begin_index(begin)
        if taken is not None:
            x = torch.zeros(2, 1, dtype=torch.float64)
            scheduler.scale_model_input(x, scheduler.timesteps[taken])
            scheduler.step(x, scheduler.timesteps[taken], x)
        return times

    return prepare


@pytest.mark.parametrize("prepare", [begun(), begun(begin=4), begun(begin=4, taken=4), begun(rows=(5,))])
@pytest.mark.parametrize("config", [{}, KARRAS, STABLE | {"timestep_spacing": "leading"}], ids=str)
def test_add_noise(config, prepare):
    check_forward(NAME, config, "add_noise", None, prepare)


def test_add_noise_before_set_timesteps():
    check_forward(NAME, {}, "add_noise", torch.tensor([999.0, 17.0]))


# --- errors ---


def stepped(scheduler, t=None, **options):
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0] if t is None else t
    scheduler.scale_model_input(draw(2), t)
    return scheduler.step(draw(1), t, draw(2), **options)


def past_the_end(scheduler):
    scheduler.set_timesteps(3)
    x = draw(1)
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    for t in [*scheduler.timesteps, scheduler.timesteps[-1]]:
        x = scheduler.step(x, t, x).prev_sample


ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "karras and exponential": (ValueError, lambda cls: cls(**KARRAS, **EXPONENTIAL)),
    "karras and beta": (ValueError, lambda cls: cls(**KARRAS, **BETA)),
    "exponential and beta": (ValueError, lambda cls: cls(**EXPONENTIAL, **BETA)),
    "timestep_spacing": (ValueError, lambda cls: cls(timestep_spacing="even").set_timesteps(10)),
    "prediction_type": (ValueError, lambda cls: stepped(cls(prediction_type="noise"))),
    "a timestep that is not of the grid": (IndexError, lambda cls: stepped(cls(), 12.3)),
    "index_for_timestep": (IndexError, lambda cls: cls().index_for_timestep(12.3)),
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(sigma_min=0.1)),
    "timesteps": (TypeError, lambda cls: cls().set_timesteps(timesteps=[9, 0])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    check_error(NAME, *ERRORS[what])


@pytest.mark.parametrize("order", [0, -1, 2.0, True, None])
def test_order_refused(order):
    """diffusers returns the sample as it was for 0 and below."""
    with pytest.raises(ValueError, match=f"order={order}"):
        stepped(subject(NAME)(), order=order)


# --- the harness itself ---


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    check_plants(Case(NAME, "harness", 20, {}))
    check_plants(Case(NAME, "harness", 20, {"timestep_spacing": "leading"} | V, step={"order": 2}))
