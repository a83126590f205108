"""`UniPCMultistepScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import copy
import inspect
import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from anystep import UniPCMultistepScheduler, reproducible
from anystep._array import backend
from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.options import LEADING, RESPACED, STABLE, STEPS, V
from reference.trajectories import (
    Case,
    Looser,
    check_random,
    draw,
    drive,
    like,
    oracle,
    original,
    subject,
    whole_grid,
)

# diffusers' constructor makes NumPy arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAME = "UniPCMultistepScheduler"
SAMPLE = {"prediction_type": "sample"}
MIN = {"final_sigmas_type": "sigma_min"}
NOISE = {"predict_x0": False, **MIN}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

LOOSER = (
    Looser(
        20.0,
        "alpha_t = 1 - sigma_t is 1e-6 at the first level, two digits in float32, and ε̂ is taken sigma_t / alpha_t times",
        ("flow, sample, noise*", "flow, v_prediction, noise*"),
    ),
    Looser(
        6e-4,
        "a predictor of four or five ε̂ magnifies float32's rounding, ours and diffusers' alike",
        ("order 4, * noise-*", "order 5, * noise-*"),
    ),
    Looser(
        5e-4,
        "one step from sigma = 157 to 0.01, or the correction of one, takes 157 times a difference of ε̂ and x or of two ε̂",
        ("karras-2", "exponential-2", "beta-[25]", "*noise-2", "*noise-5", "beta, noise-20"),
    ),
    Looser(
        4e-4,
        "log alpha_t of alpha_t = 1e-6, two digits in float32, is in h, which is B(h)",
        ("flow, bh1-[25]",),
    ),
    Looser(
        3e-4,
        "1 - abar keeps three digits of the smallest sigma in float32, and abar four of the largest",
        ("squaredcos_cap_v2, linspace*",),
    ),
    Looser(
        7e-5,
        "1 - abar_0 = 1e-4 keeps four digits in float32: the smallest sigma is off by 8e-5, and with it every grid and every "
        "step to it",
        ("order 3, lower_order_final=False-*", "karras-5", "*, v, sigma_min-[25]"),
    ),
)


over = options.cases_of(NAME)


def one_at_a_time():
    for prediction in options.PREDICTIONS:
        for spacing in options.SPACINGS:
            config = {"prediction_type": prediction, "timestep_spacing": spacing}
            yield from over(f"{prediction}, {spacing}", config=config)
            yield from over(f"{prediction}, {spacing}, noise", config=config | NOISE)
    for schedule in options.SCHEDULES:
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "linspace"))
    yield from over("Stable Diffusion", config=STABLE | LEADING)
    yield from over("trained_betas", config=options.TRAINED)
    yield from over("num_train_timesteps=60", config={"num_train_timesteps": 60, "beta_end": 0.2})
    yield from over("zero SNR", config=V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    for order in (1, 2, 3, 4, 5):
        for kind in ("bh1", "bh2"):
            config = {"solver_order": order, "solver_type": kind} | MIN
            yield from over(f"order {order}, {kind}", config=config)
            yield from over(f"order {order}, {kind}, v, noise", config=config | V | NOISE)
    for kind in ("midpoint", "heun", "logrho"):
        yield from over(f"solver_type={kind}", steps=(20,), config={"solver_type": kind})
    for order in (2, 3):
        config = {"solver_order": order, "lower_order_final": False} | MIN
        yield from over(f"order {order}, lower_order_final=False", config=config)
        yield from over(f"order {order}, lower_order_final=False, noise", config=config | NOISE)
    for steps in ([0], [0, 1, 2], [3, 19, 77], list(range(50))):
        yield from over(f"disable_corrector={steps}", config={"disable_corrector": steps, "solver_order": 3})
    for prediction in ("epsilon", "sample", "v_prediction"):
        config = {"prediction_type": prediction, "thresholding": True, "solver_order": 3}
        yield from over(f"{prediction}, thresholding", config=config)
    config = {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.8}
    yield from over("thresholding to a quantile", config=config | SAMPLE)
    yield from over("thresholding, noise", config=config | V | NOISE)
    for name, flag in RESPACED.items():
        yield from over(name, config=flag)
        yield from over(f"{name}, v, sigma_min", config=flag | V | MIN)
        yield from over(f"{name}, noise", config=flag | NOISE)
        config = flag | {"sigma_min": 0.05, "sigma_max": 40.0}
        # Their first timesteps are cut to the same number: diffusers begins at the second, and fails at the end.
        whole = {"indexed": True} if name == "beta" else {}
        yield from over(f"{name}, own ends", config=config | V, **whole)
        yield from over(f"{name}, own ends, sigma_min", config=config | V | MIN, **whole)
    for name in ("flow_prediction", "sample", "v_prediction"):
        config = {"use_flow_sigmas": True, "prediction_type": name}
        yield from over(f"flow, {name}", config=config)
        if name != "flow_prediction":
            yield from over(f"flow, {name}, noise", config=config | NOISE)
    yield from over("flow, shift", config=FLOW | {"flow_shift": 5.0, "solver_order": 3})
    yield from over("flow, sigma_min", config=FLOW | {"flow_shift": 3.0} | MIN)
    yield from over("flow, bh1", config=FLOW | {"flow_shift": 3.0, "solver_type": "bh1"} | MIN)
    yield from over("flow, terminal", FLOW | {"flow_shift": 3.0, "shift_terminal": 0.1}, STEPS[1:])
    for kind, mu in (("exponential", 1.15), ("exponential", -0.4), ("linear", 2.5)):
        config = FLOW | {"use_dynamic_shifting": True, "time_shift_type": kind}
        yield from over(f"flow, {kind} mu={mu}", config=config, set_timesteps={"mu": mu})
    config = FLOW | {"use_dynamic_shifting": True, "shift_terminal": 0.02}
    yield from over("flow, mu and terminal", config, STEPS[1:], set_timesteps={"mu": 0.9})
    for config, name in ((FLOW, "plain"), (FLOW | {"flow_shift": 3.0}, "shifted")):
        sigmas = np.linspace(1, 1 / 12, 12)
        yield Case(NAME, f"flow, given sigmas, {name}", None, config, {"sigmas": sigmas})
        yield Case(NAME, f"flow, given sigmas below 1, {name}", None, config, {"sigmas": 0.8 * sigmas**2})
    yield from over("flow, karras", config=FLOW | RESPACED["karras"])
    yield from over(
        "flow, karras, own ends", config=FLOW | RESPACED["karras"] | {"sigma_min": 0.02, "sigma_max": 200.0}
    )
    yield from over("flow, karras, sigma_min", config=FLOW | RESPACED["karras"] | MIN)
    yield from over("flow_prediction without flow sigmas", config={"prediction_type": "flow_prediction"})
    yield from over("from the middle", steps=(5, 20, 50), begin=3)
    yield from over("from the middle, order 3", steps=(20,), config={"solver_order": 3} | V, begin=7)
    yield from over(
        "from the middle, noise", steps=(20,), config={"disable_corrector": [8]} | V | NOISE, begin=7
    )
    yield from over("from the middle, flow", steps=(20,), config=FLOW, begin=5)
    yield from over("N=999", steps=(999,))
    yield from over("N=1000, flow", steps=(1000,), config=FLOW, indexed=True)


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    # Memories of ε̂ have the dtype of the sample, and steps take sigma / alpha times them: rounding that diffusers has too.
    strict = None if case.config.get("predict_x0", True) else False
    trajectories.check_loop(case, LOOSER, strict)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


@options.each(CASES, 20, None)
def test_loop_in_float64(case):
    """To 1e-12, where rounding is not magnified: by five ε̂, or by sigma / alpha = 10^6, in the corrector's e^h once more."""
    noise = not case.config.get("predict_x0", True)
    bound = 1e-11 if noise and case.config.get("solver_order") == 5 else 1e-12
    trajectories.check_float64(case, bound=1e-6 if noise and case.config.get("use_flow_sigmas") else bound)


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(1, min(count - 1, 60)))
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    noise = pick(False, False, True)
    config = {
        "num_train_timesteps": count,
        "beta_schedule": pick("linear", "scaled_linear"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": pick("epsilon", "sample", "v_prediction"),
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" and pick(0, 1) else 0,
        "solver_order": pick(1, 2, 3) if noise else pick(1, 2, 3, 4),
        "solver_type": pick("bh1", "bh2"),
        "disable_corrector": draws(st.lists(st.integers(0, 20), max_size=3)),
        "final_sigmas_type": "sigma_min",
        "predict_x0": not noise,
    } | pick({}, {}, *RESPACED.values())
    if pick(0, 1):
        config |= {"solver_type": "bh2", "final_sigmas_type": "zero", "predict_x0": True}
    if spacing == "leading" and steps + 1 > count // 2:
        steps = count // 2 - 1
    return Case(NAME, f"{config}", steps, config, indexed=True)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [{}, RESPACED["karras"], {"solver_type": "bh1"} | MIN], ids=str)
def test_half_precision_is_rounded_once(dtype, prediction, config):
    trajectories.check_half(Case(NAME, "half", 20, {"prediction_type": prediction} | config), dtype)


@pytest.mark.parametrize("config", [{}, V | NOISE, FLOW], ids=str)
def test_harness_notices(config):
    trajectories.check_plants(Case(NAME, "planted", 12, config))


# --- where diffusers has no answer ---

NOTHING = [
    {"solver_type": "bh1"},
    {"predict_x0": False},
    {"predict_x0": False, "solver_type": "bh1", "solver_order": 3},
    {"lower_order_final": False},
    {"lower_order_final": False, "solver_order": 3},
    {"lower_order_final": False, "solver_order": 3, "predict_x0": False},
    FLOW | {"solver_type": "bh1"},
    V | {"predict_x0": False} | RESPACED["karras"],
]


@pytest.mark.parametrize("config", NOTHING, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_the_last_step_to_the_clean_sample(config, steps):
    """NaN, infinite or an error in diffusers. Here the estimate x̂₀ made of the corrected sample; all before is diffusers'."""
    case = Case(NAME, "clean", steps, config)
    scheduler = subject(NAME)(**config)
    mine = drive(scheduler, case, torch.float64, torch.float64)
    reference = oracle(Case(NAME, "elsewhere", steps, config | MIN), torch.float64)
    for one, other in zip(mine.samples[:-1], reference.samples[:-1], strict=True):
        assert (one - other).abs().max() <= 1e-11 * max(1.0, float(other.abs().max()))
    if steps > 1 or config.get("lower_order_final", True):
        try:
            answer = oracle(case, torch.float64).samples[-1]
        except RuntimeError:  # a singular matrix
            answer = torch.tensor(math.nan)
        assert not answer.isfinite().all()
    wanted = scheduler.model_outputs[-1]
    if config.get("predict_x0") is False:
        ratio = scheduler._sigmas[-2]
        wanted = scheduler.last_sample * math.hypot(1, ratio) - ratio * wanted
    assert (mine.samples[-1] - wanted).abs().max() <= 1e-12 * (1 + float(scheduler.sigmas[0]))


@pytest.mark.parametrize("name", RESPACED)
def test_respaced_sigmas_are_those_of_the_flow(name):
    """diffusers converts karras sigmas to flow sigmas, but not exponential and beta ones, whose 1 - sigma is negative: NaN."""
    ours = subject(NAME)(use_flow_sigmas=True, **RESPACED[name])
    ours.set_timesteps(8)
    plain = subject(NAME)(**RESPACED[name])
    plain.set_timesteps(8)
    np.testing.assert_allclose(ours.sigmas, plain.sigmas / (1 + plain.sigmas), rtol=1e-14)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (1, 2, 3, 4, 5)])
def test_any_number_of_dimensions(shape):
    """diffusers wants two at least, and three for a threshold."""
    ours, x = subject(NAME)(solver_order=3, thresholding=True), np.ones(shape)
    ours.set_timesteps(6)
    for t in ours.timesteps:
        x = ours.step(0.1 * x, t, x).prev_sample
        assert x.shape == shape and isinstance(x, np.ndarray)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("config", [{}, NOISE, FLOW, {"solver_type": "bh1", "solver_order": 3}], ids=str)
@pytest.mark.parametrize("flag", [{}, *RESPACED.values()], ids=str)
def test_every_number_of_steps(config, flag):
    """A pipeline's loop ends, and nothing is NaN; where diffusers runs it, as diffusers in float64."""
    for steps in (1, 2, 3, 17, 61, 103, 500, 999, 1000):
        ours = subject(NAME)(**config | flag)
        ours.set_timesteps(steps)
        assert len(ours.timesteps) == steps
        x = np.ones((1, 2))
        for t in ours.timesteps:
            x = ours.step(0.01 * x, t, x).prev_sample
        assert np.isfinite(x).all()
        with pytest.raises(IndexError, match="steps are done"):
            ours.step(x, ours.timesteps[-1], x)


def test_more_steps_than_timesteps():
    """Whole timesteps repeat then; a step between equal levels changes nothing (0 / 0 in diffusers)."""
    ours = subject(NAME)(num_train_timesteps=20, beta_end=0.4, solver_order=3)
    ours.set_timesteps(50)
    x = np.ones((1, 2))
    for t in ours.timesteps:
        x = ours.step(0.1 * x, t, x).prev_sample
    assert np.isfinite(x).all() and ours.step_index == 50


# --- grids and attributes ---

GRIDS = [
    {},
    MIN,
    LEADING,
    {"timestep_spacing": "trailing"},
    *RESPACED.values(),
    RESPACED["karras"] | {"sigma_min": 0.05, "sigma_max": 30.0} | MIN,
    FLOW,
    FLOW | {"flow_shift": 5.0} | MIN,
    FLOW | RESPACED["karras"],
    FLOW | {"shift_terminal": 0.1},
    FLOW | {"shift_terminal": 0.0},
]


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [2, 3, 10, 25, 250])
def test_grid(config, steps):
    ours, theirs, exact = sigma_grids.three(NAME, config, steps)
    assert ours.timesteps.dtype == np.int64 and ours.timesteps.tolist() == exact.timesteps.tolist()
    assert np.abs(ours.timesteps - theirs.timesteps.numpy()).max() <= 1
    np.testing.assert_allclose(ours.sigmas, exact.sigmas, rtol=1e-11)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-3)
    assert ours.num_inference_steps == theirs.num_inference_steps == steps
    assert ours.step_index is ours.begin_index is ours.last_sample is None
    assert ours.model_outputs == ours.timestep_list == [None, None] and ours.lower_order_nums == 0


@pytest.mark.parametrize("steps", [*range(1, 130), 333, 500, 998])
@pytest.mark.parametrize("mu", [0.5, 1.15, 2.0])
def test_timesteps_of_flow_sigmas_are_cut_as_in_diffusers(steps, mu):
    config = FLOW | {"use_dynamic_shifting": True, "shift_terminal": 0.02 if steps > 1 else None}
    ours, exact = subject(NAME)(**config), float64_class(NAME)(**config)
    for scheduler in (ours, exact):
        scheduler.set_timesteps(steps, mu=mu)
    assert ours.timesteps.tolist() == exact.timesteps.tolist()


def test_tables_before_set_timesteps():
    ours, exact = subject(NAME)(), float64_class(NAME)()
    for name in sigma_grids.LAMBDA_TABLES:
        np.testing.assert_allclose(
            getattr(ours, name), getattr(exact, name), rtol=1e-11, atol=1e-13, err_msg=name
        )
    assert len(ours) == len(exact) == 1000 and ours.order == exact.order == ours.init_noise_sigma == 1
    assert ours.num_inference_steps is None and not ours.disable_corrector and ours.solver_p is None


def signature(function):
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


def test_signatures():
    ours, theirs = subject(NAME), original(NAME)
    assert signature(ours) == signature(theirs)
    for name in ("set_timesteps", "step", "time_shift", "stretch_shift_to_terminal", "convert_model_output", "add_noise",
                 "multistep_uni_p_bh_update", "multistep_uni_c_bh_update", "set_begin_index"):  # fmt: skip
        assert signature(getattr(ours, name)) == signature(getattr(theirs, name)), name


def test_config_travels_both_ways():
    config = {"solver_order": 3, "predict_x0": False, "disable_corrector": [1, 4], "sigma_min": 0.1}
    for one, other in ((subject, original), (original, subject)):
        made = other(NAME).from_config(one(NAME)(**config).config)
        assert {key: made.config[key] for key in config} == config
    assert subject(NAME)(solver_type="midpoint").config.solver_type == "bh2"
    euler = original("EulerDiscreteScheduler")(sigma_min=0.3, beta_end=0.011)
    assert subject(NAME).from_config(euler.config).config.sigma_min == 0.3


def test_state_that_pipelines_read():
    ours, theirs = subject(NAME)(solver_order=3), float64_class(NAME)(solver_order=3)
    x = {who: draw(1).double() for who in ("ours", "theirs")}
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(6, device=torch.device("cpu"))
    for i, t in enumerate(theirs.timesteps):
        for who, scheduler in (("ours", ours), ("theirs", theirs)):
            x[who] = scheduler.step(torch.tanh(x[who]), t, x[who]).prev_sample
        assert ours.step_index == theirs.step_index == i + 1
        assert ours.this_order == theirs.this_order and ours.lower_order_nums == theirs.lower_order_nums
        assert ours.timestep_list == theirs.timestep_list
        assert (ours.last_sample - theirs.last_sample).abs().max() <= 1e-12
        for one, other in zip(ours.model_outputs, theirs.model_outputs, strict=True):
            assert (one is None) == (other is None)
            assert one is None or (one - other).abs().max() <= 1e-10


def test_state_that_pipelines_write():
    """Some leave out a part of every array on the way, in the lists."""
    results = []
    for find in (subject, float64_class):
        scheduler, x = find(NAME)(solver_order=3), draw(1).double()
        scheduler.set_timesteps(8, device=torch.device("cpu"))
        for i, t in enumerate(scheduler.timesteps):
            if i == 4:
                x = x[..., 1:3]
                for k, array in enumerate(scheduler.model_outputs):
                    scheduler.model_outputs[k] = array[..., 1:3]
                scheduler.last_sample = scheduler.last_sample[..., 1:3]
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-12


def test_attributes_that_may_be_set():
    results = []
    for find in (subject, float64_class):
        scheduler, x = find(NAME)(final_sigmas_type="sigma_min"), draw(1).double()
        scheduler.predict_x0, scheduler.disable_corrector = False, [2, 3]
        scheduler.set_timesteps(8, device=torch.device("cpu"))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-11 * results[1].abs().max()


@pytest.mark.parametrize("config", [{}, V | NOISE, FLOW, SAMPLE | {"solver_type": "bh1"} | MIN], ids=str)
def test_parts_of_a_step(config):
    """Each as diffusers', at every step, through the whole history that there is; they change nothing."""
    config = {"solver_order": 4, "thresholding": True} | config
    ours, theirs, x = subject(NAME)(**config), float64_class(NAME)(**config), draw(1).double()
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(9, device=torch.device("cpu"))
    assert_near = lambda one, other: torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for i, t in enumerate(theirs.timesteps):
        output = torch.tanh(x)
        if i:
            converted = [scheduler.convert_model_output(output, sample=x) for scheduler in (ours, theirs)]
            assert_near(*converted)
            for order in range(1, ours.lower_order_nums + 1):
                arguments = {"last_sample": ours.last_sample, "this_sample": x, "order": order}
                near = [s.multistep_uni_c_bh_update(converted[1], **arguments) for s in (ours, theirs)]
                assert_near(*near)
                old = [
                    s.multistep_uni_c_bh_update(converted[1], None, x + 1, x, order) for s in (ours, theirs)
                ]
                assert_near(*old)
        assert_near(ours.step(output, t, x).prev_sample, theirs.step(output, t, x).prev_sample)
        if i < 8:
            # diffusers' own step calls this before it moves on: the lists hold the output at step_index.
            for scheduler in (ours, theirs):
                scheduler._step_index = i
            held, kept = (theirs.model_outputs, list(ours.model_outputs))
            for order in range(1, ours.lower_order_nums + 1):
                pair = [s.multistep_uni_p_bh_update(output, sample=x, order=order) for s in (ours, theirs)]
                assert_near(*pair)
            assert_near(
                ours.multistep_uni_p_bh_update(output, None, x, 1),
                pair[0] * 0 + theirs.multistep_uni_p_bh_update(output, None, x, 1),
            )
            assert (
                all(a is b for a, b in zip(kept, ours.model_outputs, strict=True))
                and held is theirs.model_outputs
            )
            for scheduler in (ours, theirs):
                scheduler._step_index = i + 1
        x = 0.3 * x + torch.tanh(theirs.last_sample)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_shifts(kind):
    config = FLOW | {"time_shift_type": kind, "shift_terminal": 0.1}
    ours, theirs = subject(NAME)(**config), original(NAME)(**config)
    for t in (np.linspace(1, 0.1, 7), torch.linspace(1, 0.1, 7, dtype=torch.float64)):
        for power in (1.0, 2.0):
            np.testing.assert_allclose(
                ours.time_shift(0.7, power, t), theirs.time_shift(0.7, power, t), rtol=1e-14
            )
        found = ours.stretch_shift_to_terminal(t)
        assert type(found) is type(t)
        np.testing.assert_allclose(found, theirs.stretch_shift_to_terminal(t), rtol=1e-14)


@pytest.mark.parametrize("config", [{}, FLOW, RESPACED["karras"]], ids=str)
def test_add_noise(config):
    def prepare(scheduler):
        scheduler.set_timesteps(20, device=torch.device("cpu"))
        return scheduler.timesteps[[3, 17]]

    trajectories.check_forward(NAME, config, "add_noise", None, prepare)


# --- another scheduler that predicts ---


@pytest.mark.parametrize("config", [{}, V, {"disable_corrector": [1, 2]}, NOISE], ids=str)
@pytest.mark.parametrize("other", ["DDIMScheduler", "DPMSolverMultistepScheduler", NAME])
def test_another_predictor(config, other):
    results = []
    for find in (subject, float64_class):
        told = {key: value for key, value in config.items() if key == "prediction_type"}
        told |= {"timestep_spacing": "trailing"} | ({"clip_sample": False} if other[:4] == "DDIM" else {})
        predictor = find(other)(**told)
        scheduler = find(NAME)(solver_order=3, solver_p=predictor, timestep_spacing="trailing", **config)
        assert scheduler.config.solver_p is predictor
        x = draw(1).double()
        scheduler.set_timesteps(8, device=torch.device("cpu"))
        assert len(predictor.timesteps) == 8
        states = []
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
            states.append(x)
        results.append(torch.stack(states))
    assert (results[0] - results[1]).abs().max() <= 1e-10 * results[1].abs().max()


def test_unip_as_another_predictor_is_itself():
    """The corrected sample is what it is given, so the run is the same but for estimates made of that sample."""
    plain, other = (
        subject(NAME)(disable_corrector=list(range(9))),
        subject(NAME)(disable_corrector=list(range(9))),
    )
    other.solver_p = subject(NAME)(disable_corrector=list(range(9)))
    runs = []
    for scheduler in (plain, other):
        scheduler.set_timesteps(9)
        x = draw(1).double().numpy()
        for t in scheduler.timesteps:
            x = scheduler.step(np.tanh(x), t, x).prev_sample
        runs.append(x)
    np.testing.assert_array_equal(*runs)


def test_clones_have_a_predictor_of_their_own():
    ours = subject(NAME)(
        solver_p=subject("DDIMScheduler")(timestep_spacing="trailing"), timestep_spacing="trailing"
    )
    ours.set_timesteps(4)
    for clone in (ours.clone(), copy.deepcopy(ours)):
        assert (
            clone.solver_p is not ours.solver_p
            and clone.solver_p.timesteps.tolist() == ours.timesteps.tolist()
        )


class Broken:
    """A predictor whose methods fail."""

    def __init__(self, at):
        self.at = at

    def set_timesteps(self, steps, device=None):
        if self.at == "set_timesteps":
            raise RuntimeError("broken")

    def step(self, *args):
        raise RuntimeError("broken")


@pytest.mark.parametrize("at", ["set_timesteps", "step"])
def test_a_predictor_that_fails_changes_nothing(at):
    ours = subject(NAME)()
    ours.set_timesteps(5)
    x = np.ones((1, 2))
    x = ours.step(x, ours.timesteps[0], x).prev_sample
    ours.solver_p = Broken(at)
    before = {key: value for key, value in vars(ours).items() if key != "_plans"}
    with pytest.raises(RuntimeError, match="broken"):
        ours.set_timesteps(7) if at == "set_timesteps" else ours.step(x, ours.timesteps[1], x)
    assert all(vars(ours)[key] is value for key, value in before.items())


# --- errors ---


@pytest.mark.parametrize(
    ("error", "act"),
    [
        (NotImplementedError, lambda cls: cls(solver_type="bh3")),
        (NotImplementedError, lambda cls: cls(beta_schedule="no")),
        (ValueError, lambda cls: cls(use_karras_sigmas=True, use_beta_sigmas=True)),
        (ValueError, lambda cls: cls(shift_terminal=0.1)),
        (ValueError, lambda cls: cls(use_dynamic_shifting=True, use_flow_sigmas=True).set_timesteps(4)),
        (ValueError, lambda cls: cls().set_timesteps(4, sigmas=np.asarray([1.0, 0.5]))),
        (ValueError, lambda cls: cls().step(draw(1), 999, draw(2))),
        (ValueError, lambda cls: cls(final_sigmas_type="no").set_timesteps(4)),
        (ValueError, lambda cls: cls(timestep_spacing="no").set_timesteps(4)),
        (ValueError, lambda cls: cls().convert_model_output(draw(1))),
        (ValueError, lambda cls: cls().multistep_uni_p_bh_update(draw(1), sample=draw(1))),
        (ValueError, lambda cls: cls().multistep_uni_c_bh_update(draw(1), last_sample=draw(1))),
    ],
)
def test_errors_of_diffusers(error, act):
    trajectories.check_error(NAME, error, act)


@pytest.mark.parametrize(
    ("config", "call", "message"),
    [
        ({}, lambda s: s.set_timesteps(0), "num_inference_steps=0"),
        ({}, lambda s: s.set_timesteps(), "num_inference_steps=None"),
        ({}, lambda s: s.set_timesteps(4, sigmas=[1.0, 0.5]), "expected use_flow_sigmas=True"),
        (FLOW, lambda s: s.set_timesteps(sigmas=[0.5, 0.9]), r"sigmas\[1\]=0.9 is not below"),
        (
            FLOW,
            lambda s: s.set_timesteps(sigmas=[1.2, 0.9]),
            r"sigmas=\[1.2, 0.9\]: expected numbers in \(0, 1\]",
        ),
        (FLOW, lambda s: s.set_timesteps(sigmas=[0.5, 0.0]), "expected numbers in"),
        (FLOW, lambda s: s.set_timesteps(sigmas=[]), "expected numbers in"),
        (
            FLOW | RESPACED["karras"],
            lambda s: s.set_timesteps(sigmas=[0.9, 0.5]),
            "expected no use_karras_sigmas",
        ),
        (
            FLOW | {"shift_terminal": 0.1},
            lambda s: s.set_timesteps(1),
            "terminal=0.1: the last level is pure noise",
        ),
        (FLOW | {"use_dynamic_shifting": True}, lambda s: s.set_timesteps(4), "mu=None"),
        ({}, lambda s: s.multistep_uni_p_bh_update(1, sample=draw(1), order=1), "step_index=None"),
        ({}, lambda s: s.step(draw(1), 500, draw(2)), "num_inference_steps=None"),
        ({"timestep_spacing": "leading"}, lambda s: s.set_timesteps(1000), "steps=1000 of leading spacing"),
    ],
)
def test_errors_say_what_to_do(config, call, message):
    ours = subject(NAME)(**config)
    before = dict(vars(ours))
    with pytest.raises(ValueError, match=message):
        call(ours)
    assert all(vars(ours)[key] is value for key, value in before.items() if key != "_plans")


@pytest.mark.parametrize("order", [0, 3, -1, None])
def test_orders_that_the_history_does_not_have(order):
    ours, x = subject(NAME)(solver_order=4), np.ones((1, 2))
    ours.set_timesteps(6)
    for t in ours.timesteps[:2]:
        x = ours.step(0.1 * x, t, x).prev_sample
    for call in (
        lambda: ours.multistep_uni_p_bh_update(x, sample=x, order=order),
        lambda: ours.multistep_uni_c_bh_update(x, last_sample=x, this_sample=x, order=order),
    ):
        with pytest.raises(ValueError, match="order"):
            call()


def test_given_sigmas_may_be_a_list_and_stay_as_they_are():
    """diffusers wants an array, and moves its first entry."""
    sigmas = [1.0, 0.7, 0.2]
    ours = subject(NAME)(**FLOW)
    ours.set_timesteps(sigmas=sigmas)
    assert sigmas == [1.0, 0.7, 0.2] and ours.timesteps.tolist() == [999, 700, 200]
    np.testing.assert_allclose(ours.sigmas, [1 - 1e-6, 0.7, 0.2, 0.0], rtol=1e-15)


# --- corrections ---


def test_corrected_flow_starts_at_pure_noise():
    right = subject(NAME)(**FLOW).corrected("unipc-flow-start")
    right.set_timesteps(4)
    assert right.sigmas[0] == 1.0 and right.timesteps[0] == 1000
    x = np.full((1, 2), 0.5)
    assert np.isfinite(right.step(x, right.timesteps[0], x).prev_sample).all()


def test_corrected_last_level():
    for config, wanted in (
        (FLOW | {"flow_shift": 3.0}, 0.003 / 1.002),
        (RESPACED["karras"] | {"sigma_min": 0.1}, None),
        (RESPACED["karras"], None),
    ):
        plain, right = (
            s
            for s in (
                subject(NAME)(**config | MIN),
                subject(NAME)(**config | MIN).corrected("unipc-last-level"),
            )
        )
        for scheduler in (plain, right):
            scheduler.set_timesteps(5)
        assert plain.sigmas[-1] == plain.sigmas[-2]
        assert math.isclose(
            right.sigmas[-1], right.schedule.sigma_min if wanted is None else wanted, rel_tol=1e-12
        )
        assert right.sigmas[:-1].tolist() == plain.sigmas[:-1].tolist()


def test_corrected_threshold_of_noise():
    config = {"thresholding": True} | V | NOISE
    x, output = np.full((1, 4), 6.0), np.zeros((1, 4))
    results = []
    for scheduler in (subject(NAME)(**config), subject(NAME)(**config).corrected("unipc-noise-threshold")):
        scheduler.set_timesteps(4)
        t = scheduler.timesteps[2]
        results.append(scheduler.step(output, t, x).prev_sample)
        alpha_t, sigma_t = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[2])
        alpha_n, sigma_n = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[3])
    clean = alpha_t * x
    for result, estimate in zip(results, (clean, np.clip(clean, -1, 1)), strict=True):
        np.testing.assert_allclose(result, alpha_n * estimate + sigma_n * (x - alpha_t * estimate) / sigma_t)
    assert clean.max() > 1


def test_ids_of_deviations_are_documented():
    sigma_grids.check_documented(subject(NAME))


# --- arrays ---


def test_nothing_is_read_from_the_device():
    ours = subject(NAME)(solver_order=3)
    ours.set_timesteps(6, device=torch.device("cpu"))
    x = torch.empty((2, 3), device="meta")
    for t in ours.timesteps:
        x = ours.step(x, t, x).prev_sample
    assert x.device.type == "meta"
    assert all(array.device.type == "meta" for array in (*ours.model_outputs, ours.last_sample))


LIBRARIES = [
    ("numpy", None, ("float16", "float32", "float64")),
    ("torch", None, ("float16", "bfloat16", "float32", "float64")),
    ("jax", None, ("float16", "bfloat16", "float32")),
    ("array_api_strict", None, ("float32", "float64")),
    ("array_api_strict", "device1", ("float32", "float64")),
]


@pytest.mark.parametrize(
    ("name", "device", "dtype"), [(n, d, dtype) for n, d, dtypes in LIBRARIES for dtype in dtypes]
)
@pytest.mark.parametrize("config", [{}, V | NOISE, FLOW | {"solver_order": 3, "thresholding": True}], ids=str)
def test_every_library_gives_its_own_arrays(name, device, dtype, config):
    """Of the same dtype on the same device; equal to NumPy's to the last bit where steps are not fused."""
    library = backend(name)
    place = library.device(device)

    def run(lib, where):
        ours, x = subject(NAME)(**config), lib.asarray(draw(1).numpy(), dtype=dtype, device=where)
        ours.set_timesteps(6)
        for t in ours.timesteps:
            before = x
            x = ours.step(before * 0.5, t, before).prev_sample
            assert type(x) is type(before) and x.dtype == before.dtype
            assert name == "jax" or getattr(x, "device", None) == getattr(before, "device", None)
        return np.asarray(lib.to_numpy(x), dtype=np.float64)

    with reproducible():
        found = run(library, place)
        if dtype == "bfloat16":  # not one of NumPy's
            assert np.isfinite(found).all()
        else:
            np.testing.assert_array_equal(found, run(backend("numpy"), None))


def test_steps_inside_jit():
    jax = pytest.importorskip("jax")
    ours = subject(NAME)(solver_order=3)
    ours.set_timesteps(6)

    def loop(x):
        run = ours.clone()
        for t in run.timesteps:
            x = run.step(x * 0.5, t, x).prev_sample
        return x

    x = jax.numpy.asarray(draw(1).numpy())
    found, wanted = jax.jit(loop)(x), loop(x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * float(abs(wanted).max()))
    assert ours.step_index is None


def test_copies_in_the_middle_of_a_run():
    origin, x = UniPCMultistepScheduler(solver_order=3), draw(1).numpy()
    origin.set_timesteps(6)
    for t in origin.timesteps[:3]:
        x = origin.step(np.tanh(x), t, x).prev_sample
    copies = [origin.clone(), copy.deepcopy(origin), pickle.loads(pickle.dumps(origin)), origin]
    ends = [x] * len(copies)
    for t in origin.timesteps[3:]:
        ends = [run.step(np.tanh(x), t, x).prev_sample for run, x in zip(copies, ends, strict=True)]
    for end in ends[1:]:
        np.testing.assert_array_equal(end, ends[0])


def test_levels_asked_for_again_are_set_in_the_other_predictor_too():
    """Whether or not the levels are remembered from another scheduler."""
    for steps in (5, 8, 5, 5):
        ours = subject(NAME)()
        ours.solver_p = subject("DDIMScheduler")()
        ours.set_timesteps(steps)
        assert len(ours.solver_p.timesteps) == steps


FAILURES = [
    (lambda s, t, x: s.step(x, t, x[:1]), ValueError, "has shape"),
    (lambda s, t, x: s.step(x.astype(int), t, x), TypeError, "dtype int64"),
    (lambda s, t, x: s.step(torch.zeros(x.shape), t, x), TypeError, "torch"),
    (lambda s, t, x: s.set_timesteps(2.5), ValueError, "2.5"),
    (lambda s, t, x: s.set_timesteps(5, device="quantum"), ValueError, "quantum"),
    (lambda s, t, x: s.corrected("nonsense"), ValueError, "nonsense"),
]


@pytest.mark.parametrize(("call", "error", "message"), FAILURES)
@pytest.mark.parametrize("done", [0, 3])
def test_an_error_changes_nothing(done, call, error, message):
    runs = []
    for fails in (False, True):
        scheduler, x = subject(NAME)(solver_order=3), draw(1).numpy()
        scheduler.set_timesteps(6)
        for i, t in enumerate(scheduler.timesteps):
            if fails and i == done:
                with pytest.raises(error, match=message):
                    call(scheduler, t, x)
            x = scheduler.step(np.tanh(x), t, x).prev_sample
        runs.append(x)
    np.testing.assert_array_equal(*runs)


def test_interleaved_clones():
    alone = []
    start = [draw(k).numpy() for k in range(3)]
    for x in start:
        scheduler = subject(NAME)(solver_order=3)
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            x = scheduler.step(np.tanh(x), t, x).prev_sample
        alone.append(x)
    origin = subject(NAME)(solver_order=3)
    origin.set_timesteps(6)
    clones, xs = [origin.clone() for _ in start], list(start)
    for i, t in enumerate(origin.timesteps):
        for k, x in enumerate(xs):
            if i == 3:
                clones[k] = clones[k].clone()
            xs[k] = clones[k].step(np.tanh(x), t, x).prev_sample
    np.testing.assert_array_equal(xs, alone)
    assert origin.step_index is None


def test_unknown_first_timestep_is_the_last_unless_corrected():
    results = []
    for find in (subject, float64_class):
        scheduler = find(NAME)()
        scheduler.set_timesteps(6)
        results.append(like(scheduler.step(draw(1).double(), 3, draw(2).double()).prev_sample, np.float64))
    np.testing.assert_allclose(*results, atol=1e-12)
    right = subject(NAME)().corrected("unknown-timestep")
    right.set_timesteps(6)
    with pytest.raises(IndexError, match="timestep=3"):
        right.step(draw(1), 3, draw(2))
