"""`IPNDMScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.sigma_grids import past_the_end
from reference.trajectories import Case, check_random, draw, like, original, quiet, subject

NAME = "IPNDMScheduler"
STEPS = (1, 2, 3, 4, 5, 20, 50)
# The model is told the angle of its level, as a fraction of a right one.
MODEL = {"prediction_type": "v_prediction", "timestep_type": "angle"}
TABLE = (1 - np.linspace(0, 1, 12) ** 1.5).tolist()
SHORT = [0.95, 0.6, 0.2, 0.05]  # neither pure noise at the beginning nor none at the end


over = options.cases_of(NAME, steps=STEPS, model=MODEL)


CASES = [
    *over("crash"),
    *over("num_train_timesteps=50", config={"num_train_timesteps": 50}),
    *over("trained_betas", config={"trained_betas": TABLE}),
    *over("trained_betas, short", config={"trained_betas": SHORT}),
    *over("trained_betas, unordered", config={"trained_betas": [0.3, 0.9, 0.5, 0.6, 0.1]}),
    *over("N=T", steps=(1000,)),
]


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case)


@options.each(case for case in CASES if case.steps != 1000)
def test_loop_in_float64(case):
    trajectories.check_float64(case)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(
    steps=st.integers(1, 100),
    betas=st.none() | st.lists(st.floats(1e-3, 0.999), min_size=2, max_size=12, unique=True),
)
def test_random_options(steps, betas):
    """Any table: diffusers asks of it neither an order nor an end."""
    config = {"trained_betas": None if betas is None else sorted(betas, reverse=True)}
    check_random(Case(NAME, f"{config}", steps, config, model=MODEL))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    trajectories.check_half(Case(NAME, "half", 20, {}, model=MODEL), dtype)


# --- the history ---


def moved(scheduler, begin=0, kind=torch.float64, steps=12):
    with quiet():
        scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    x = like(draw(1).double(), kind)
    for t in scheduler.timesteps[begin:]:
        output = 0.9 * torch.tanh(scheduler.scale_model_input(x, t)) + 0.3
        x = scheduler.step(output, t, x).prev_sample
    return x


@pytest.mark.parametrize("begin", [0, 1, 3, 7])
def test_a_run_from_the_middle_begins_with_lower_orders(begin):
    exact, ours = moved(float64_class(NAME)(), begin), moved(subject(NAME)(), begin)
    assert (exact - ours).abs().max() <= 1e-12 * exact.abs().max()


def test_history_is_bounded():
    """diffusers keeps every call."""
    ours, x = subject(NAME)(), draw(1)
    ours.set_timesteps(20)
    for t in ours.timesteps:
        x = ours.step(torch.tanh(x), t, x).prev_sample
        assert len(ours._run[1]) <= 3


def test_corrected_uses_the_first_output():
    """At pure noise the clean sample is -v, and the step DDIM's."""
    x, v = draw(1).double(), draw(2).double()
    for steps in (1, 2, 20):
        facade = subject(NAME)()
        right = facade.corrected("ipndm-first-output")
        for scheduler in (facade, right):
            scheduler.set_timesteps(steps)
        alpha, sigma = float(right.alphas[1]), float(right.betas[1])
        for scheduler, clean in ((facade, 0 * v), (right, -v)):
            out = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
            assert (out - (alpha * clean + sigma * x)).abs().max() <= 1e-15 * 8
    assert torch.equal(moved(subject(NAME)(), 3), moved(subject(NAME)().corrected(), 3))
    assert not torch.equal(moved(subject(NAME)()), moved(subject(NAME)().corrected()))


# --- tables ---


@pytest.mark.parametrize("config", [{}, {"trained_betas": TABLE}, {"trained_betas": SHORT}], ids=str)
@pytest.mark.parametrize("steps", [None, 1, 2, 3, 10, 1000, 4321])
def test_tables(config, steps):
    ours, theirs, exact = (cls(**config) for cls in (subject(NAME), original(NAME), float64_class(NAME)))
    if steps is not None:
        for scheduler in (ours, theirs, exact):
            scheduler.set_timesteps(steps)
    for name in ("timesteps", "betas", "alphas"):
        found, wanted = getattr(ours, name), getattr(exact, name)
        assert found.dtype == np.float64 and found.shape == tuple(wanted.shape)
        assert np.allclose(found, wanted, rtol=1e-11, atol=3e-16), name
        # 1 - sigma² keeps half of float32's digits near pure noise.
        assert np.allclose(found, getattr(theirs, name), rtol=1e-5, atol=3e-4), name
    assert ours.num_inference_steps == theirs.num_inference_steps == (steps or 1000)
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 1.0
    assert len(ours) == len(theirs) == 1000 and ours.order == theirs.order == 1
    assert ours.pndm_order == theirs.pndm_order
    assert ours.step_index is ours.begin_index is None


def test_only_what_diffusers_has():
    ours, theirs = subject(NAME)(), original(NAME)()
    for name in ("add_noise", "alphas_cumprod", "sigmas", "get_velocity", "is_scale_input_called"):
        assert not hasattr(ours, name) and not hasattr(theirs, name), name
    x = draw(1)
    assert ours.scale_model_input(x) is ours.scale_model_input(x, 3, other=4) is x


@pytest.mark.parametrize(
    "betas", [[0.5], [], [0.5, 1.1, 0.0], [0.5, -0.1], [0.5, math.nan], [[0.5, 0.1]], [0.5, 0.0, 0.0]]
)
def test_tables_refused(betas):
    """NaN, or nothing to do, in diffusers."""
    with pytest.raises(ValueError, match=r"trained_betas|sigma_t"):
        subject(NAME)(trained_betas=betas).set_timesteps(3)


def test_a_config_replaced_before_set_timesteps_counts():
    ours = subject(NAME)()
    ours._internal_dict = {**ours.config, "trained_betas": SHORT}
    assert np.allclose(ours.betas, SHORT, rtol=1e-15)


# --- the index, outputs, errors ---


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_index(device):
    ours, theirs = subject(NAME)(), original(NAME)()
    ours.set_timesteps(1000, device=device)
    theirs.set_timesteps(1000)
    assert [ours.index_for_timestep(t) for t in ours.timesteps] == list(range(1000))
    for scheduler in (ours, theirs):
        assert scheduler.index_for_timestep(1) == 0
        x, t = draw(1), scheduler.timesteps[7]
        scheduler.step(x, t, x)
        assert (scheduler.step_index, scheduler.begin_index) == (8, None)
        scheduler.set_timesteps(10)
        assert scheduler.step_index is None
        scheduler.set_begin_index(4)
        scheduler.step(x, t, x)
        assert (scheduler.step_index, scheduler.begin_index) == (5, 4)


def test_outputs():
    sigma_grids.check_outputs(NAME, 3, "SchedulerOutput", keys=["prev_sample"])


ERRORS = {
    "a timestep that is not of the grid": (IndexError, lambda cls: cls().step(draw(1), 0.123456, draw(2))),
    "index_for_timestep": (IndexError, lambda cls: cls().index_for_timestep(12.3)),
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(beta_start=0.1)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_steps_refused(steps):
    ours = subject(NAME)()
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match="num_inference_steps="):
        ours.set_timesteps(steps)
    assert ours.num_inference_steps == len(ours.timesteps) == 4


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, {}, model=MODEL))
