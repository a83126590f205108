"""`PNDMScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from reference import options, trajectories
from reference.float64_diffusers import float64_class
from reference.options import STABLE, STEPS
from reference.trajectories import Case, Looser, check_random, draw, original, quiet, subject, whole_grid

NAME = "PNDMScheduler"
SKIP = {"skip_prk_steps": True}
PREDICTIONS = ("epsilon", "v_prediction")

LOOSER = (
    Looser(
        0.2,
        "the cosine table ends with beta = 0.999, and 1 - beta is off by 1.3e-5 in float32; the warm-up goes from there, "
        "alpha = 5e-5, more than once, with slopes that belong to other levels",
        ("PRK, squaredcos_cap_v2, trailing-*", "PLMS, squaredcos_cap_v2, trailing-*"),
    ),
    Looser(
        2e-3,
        "begun in the middle, Runge-Kutta starts from the first timestep's alpha = 0.008, a hundred times below the sample's",
        ("PRK, from the middle-*",),
    ),
    Looser(
        1e-4,
        "at t = 999, 1 / alpha = 157 multiplies the rounding of float32 coefficients, and few steps extrapolate from there",
        (
            "PLMS, epsilon, trailing-[25]",
            "PLMS, linear, trailing-[25]",
            "PLMS, scaled_linear, trailing-2",
            "PLMS, epsilon, linspace-5",
            "PLMS, v_prediction, trailing-1",
        ),
    ),
)
# The warm-up leaves alpha = 5e-5 by differences of numbers 1e4 times as large as they: in the oracle itself one ULP more
# or less in the model's outputs moves these loops by 7e-11 and 2e-10.
FLOAT64 = {"PLMS, squaredcos_cap_v2, trailing-20": 2e-10, "PRK, squaredcos_cap_v2, trailing-20": 1e-9}


def over(option, steps=None, config=SKIP, **rest):
    steps = steps or (
        STEPS if config.get("skip_prk_steps") else (5, 20, 50)
    )  # diffusers' Runge-Kutta needs 4 steps
    return [Case(NAME, option, count, config, **rest) for count in steps]


def one_at_a_time():
    for skip in (False, True):
        warmup = "PLMS" if skip else "PRK"
        base = {"skip_prk_steps": skip}
        for prediction in PREDICTIONS:
            for spacing in options.SPACINGS:
                config = base | {"prediction_type": prediction, "timestep_spacing": spacing}
                yield from over(f"{warmup}, {prediction}, {spacing}", config=config)
        for schedule in options.SCHEDULES:
            for spacing in ("leading", "trailing"):
                config = base | {"beta_schedule": schedule, "timestep_spacing": spacing}
                yield from over(f"{warmup}, {schedule}, {spacing}", config=config)
        yield from over(f"{warmup}, set_alpha_to_one", config=base | {"set_alpha_to_one": True})
        yield from over(f"{warmup}, steps_offset=1", config=base | {"steps_offset": 1})
        yield from over(f"{warmup}, trained_betas", config=base | options.TRAINED)
        yield from over(f"{warmup}, odd stride", steps=(7, 9, 13), config=base)
        yield from over(f"{warmup}, num_train_timesteps=50", config=base | options.FEW)
        yield from over(f"{warmup}, from the middle", steps=(20, 50), config=base, begin=14)
        yield from over(f"{warmup}, from the second", steps=(20,), config=base, begin=1)
        yield from over(f"{warmup}, N=T", steps=(1000,), config=base)
    stable = STABLE | {"steps_offset": 1}
    for prediction in PREDICTIONS:
        yield from over(
            f"Stable Diffusion, {prediction}", config=SKIP | stable | {"prediction_type": prediction}
        )
        yield from over(f"N=T, {prediction}", steps=(1000,), config=SKIP | {"prediction_type": prediction})


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20)
def test_loop_in_float64(case):
    trajectories.check_float64(case, FLOAT64.get(case.id, 1e-12))


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(4, min(count, 60)))
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    offset = 1 if spacing == "leading" and (steps - 1) * (count // steps) + 1 < count else 0
    config = {
        "num_train_timesteps": count,
        "beta_schedule": pick("linear", "scaled_linear"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": pick(*PREDICTIONS),
        "timestep_spacing": spacing,
        "set_alpha_to_one": pick(True, False),
        "skip_prk_steps": pick(True, False),
        "steps_offset": pick(0, offset),
    }
    return Case(NAME, str(config), steps, config)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("skip", [True, False])
def test_half_precision_is_rounded_once(dtype, prediction, skip):
    case = Case(NAME, "half", 20, {"prediction_type": prediction, "skip_prk_steps": skip})
    trajectories.check_half(case, dtype, positions=(0,))


# --- grids, attributes, state ---


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps(spacing, skip):
    ours, theirs = (
        cls(timestep_spacing=spacing, skip_prk_steps=skip) for cls in (subject(NAME), original(NAME))
    )
    for steps in (*range(1 if skip else 4, 130), *range(130, 1000, 37), 999, 1000):
        ours.set_timesteps(steps)
        assert len(ours.timesteps) == steps + (min(steps - 1, 1) if skip else 9)
        if spacing == "trailing" and not whole_grid(1000, steps):
            continue  # diffusers has one timestep more there, -1
        theirs.set_timesteps(steps)
        for name in ("timesteps", "prk_timesteps", "plms_timesteps"):
            assert np.array_equal(getattr(ours, name), np.asarray(getattr(theirs, name))), (steps, name)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runge_kutta_with_few_steps(spacing, steps):
    """diffusers cannot: the arrays do not broadcast. Ours ends with a multistep of as many outputs as there are."""
    with pytest.raises(ValueError, match="broadcast"):
        original(NAME)(timestep_spacing=spacing).set_timesteps(steps)
    ours = subject(NAME)(timestep_spacing=spacing)
    ours.set_timesteps(steps)
    assert len(ours.timesteps) == 4 * (steps - 1) + 1
    x = draw(1)
    for t in ours.timesteps:
        x = ours.step(x * 0.5, t, x).prev_sample
    assert torch.isfinite(x).all()


def test_attributes():
    ours, theirs = subject(NAME)(), original(NAME)()
    assert len(ours) == len(theirs) == 1000
    assert ours.order == theirs.order == 1
    assert ours.pndm_order == theirs.pndm_order == 4
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 1.0
    for name in ("num_inference_steps", "prk_timesteps", "plms_timesteps", "cur_sample"):
        assert getattr(ours, name) is getattr(theirs, name) is None
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-6), name
    config = lambda scheduler: {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert config(ours) == config(theirs)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_state_after_every_call(skip, prediction):
    pair = [cls(skip_prk_steps=skip, prediction_type=prediction) for cls in (subject(NAME), original(NAME))]
    for scheduler in pair:
        scheduler.set_timesteps(6)
    ours, theirs = pair
    x = draw(1)
    for i, t in enumerate(theirs.timesteps.tolist()):
        output = draw(10 + i)
        for scheduler in pair:
            moved = scheduler.step(output, t, x).prev_sample
        x = moved
        assert ours.counter == theirs.counter == i + 1
        assert len(ours.ets) == len(theirs.ets)
        assert all(torch.equal(one, two) for one, two in zip(ours.ets, theirs.ets, strict=True))
        total = theirs.cur_model_output
        assert np.allclose(ours.cur_model_output, total, rtol=0, atol=1e-6)
        if skip or i % 4 != 3:  # diffusers keeps the sample of a step that is done
            assert (ours.cur_sample is None) == (theirs.cur_sample is None) or i >= 12
    for scheduler in pair:
        scheduler.set_timesteps(6)
        assert scheduler.counter == 0 and scheduler.ets == [] and scheduler.cur_model_output == 0


def test_outputs():
    x, output = draw(1), draw(2)
    ours, theirs = subject(NAME)(), original(NAME)()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    got, expected = ours.step(output, 950, x), theirs.step(output, 950, x)
    assert type(got).__name__ == type(expected).__name__ == "SchedulerOutput"
    assert list(got.keys()) == list(expected.keys()) == ["prev_sample"]
    plain = ours.step(output, 925, x, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 1
    assert ours.scale_model_input(x, 500) is x


@pytest.mark.parametrize("method", ["add_noise"])
def test_forward_process(method):
    for timesteps in (torch.tensor([999, 3]), torch.tensor([0, 500]), torch.tensor([17])):
        trajectories.check_forward(NAME, {"beta_schedule": "scaled_linear"}, method, timesteps)


# --- errors ---


def stepped(scheduler, method="step"):
    scheduler.set_timesteps(10)
    return getattr(scheduler, method)(draw(1), int(scheduler.timesteps[0]), draw(2))


ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "timestep_spacing": (ValueError, lambda cls: cls(timestep_spacing="even").set_timesteps(10)),
    "prediction_type": (ValueError, lambda cls: stepped(cls(prediction_type="noise"))),
    "step_prk before set_timesteps": (ValueError, lambda cls: cls().step_prk(draw(1), 10, draw(2))),
    "step_plms before set_timesteps": (ValueError, lambda cls: cls().step_plms(draw(1), 10, draw(2))),
    "step_plms before the warm-up": (ValueError, lambda cls: stepped(cls(), "step_plms")),
    "unknown argument": (TypeError, lambda cls: cls(clip_sample=True)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


def test_the_methods_called_by_hand():
    """`step` is `step_prk` for twelve calls, then `step_plms`."""
    one, other = subject(NAME)(), subject(NAME)()
    for scheduler in (one, other):
        scheduler.set_timesteps(6)
    x = draw(1)
    for i, t in enumerate(one.timesteps):
        by_step = one.step(draw(i), t, x).prev_sample
        by_hand = (other.step_prk if i < 12 else other.step_plms)(draw(i), t, x).prev_sample
        assert torch.equal(by_step, by_hand)
        x = by_step
    with pytest.raises(ValueError, match="the 12 Runge-Kutta calls are done"):
        one.step_prk(draw(1), 10, x)


# --- the oracle itself ---


def test_oracle_step_is_the_published_formula():
    """Equation 11 of the paper, then 12 with four outputs."""
    scheduler = float64_class(NAME)(skip_prk_steps=True, set_alpha_to_one=True)
    with quiet():
        scheduler.set_timesteps(20)
    x, outputs = draw(1).double(), [draw(2 + i).double() for i in range(6)]
    bar = np.append(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), 1.0)

    def transfer(x, e, t, s):
        a, b = bar[t], bar[s]
        return (b / a) ** 0.5 * x - (b - a) / (a**0.5 * (((1 - b) * a) ** 0.5 + ((1 - a) * b) ** 0.5)) * e

    e = [outputs[0]]
    states = [transfer(x, e[0], 950, 900)]
    states.append(transfer(x, (e[0] + outputs[1]) / 2, 950, 900))
    for i, t in enumerate((900, 850, 800, 750)):
        e.append(outputs[2 + i])
        weights = [[1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]][min(i, 2)]
        states.append(
            transfer(states[-1], sum(w * v for w, v in zip(weights, e[::-1], strict=False)), t, t - 50)
        )
    for output, t, expected in zip(outputs, scheduler.timesteps, states, strict=False):
        x = scheduler.step(output, int(t), x).prev_sample
        assert (x - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, SKIP))
