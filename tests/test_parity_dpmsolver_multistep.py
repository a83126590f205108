"""`DPMSolverMultistepScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from anystep import DPMSolver, State, update
from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.options import LEADING, STABLE, V
from reference.trajectories import (
    ULP,
    Case,
    Denoiser,
    Looser,
    distance,
    draw,
    drive,
    oracle,
    original,
    quiet,
    subject,
)

# diffusers' constructor makes NumPy arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAME = "DPMSolverMultistepScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
NOISE = {"algorithm_type": "dpmsolver", **SIGMA_MIN}
SDE = {"algorithm_type": "sde-dpmsolver++"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
RESPACED = options.RESPACED | {"lu": {"use_lu_lambdas": True}}

LOOSER = (
    Looser(
        0.1,
        "float32 takes the fraction of a timestep across a whole number, and the cut leaves another: the model is told 998 "
        "for 999, at sigma = 20291",
        ("karras, cosine*", "exponential, cosine*", "beta, cosine*"),
    ),
    Looser(
        6e-3, "as above, at sigma = 14.6", ("exponential, scaled_linear, sde*", "beta, scaled_linear, sde*")
    ),
    Looser(
        7e-4,
        "the one step from sigma = 157 to 0.01 takes 157 times a difference of the model's output and the sample",
        ("karras*-2", "exponential*-2", "beta*-2", "beta*-5", "lu*-2", "karras*, lu-2"),
    ),
    Looser(
        4e-4,
        "alpha_t = 1 - sigma_t keeps four digits in float32 where sigma_t = 0.999",
        ("flow, v_prediction, dpmsolver*", "flow, sample, dpmsolver*"),
    ),
    Looser(
        4e-4,
        "1 - abar keeps three digits of the smallest sigma in float32, and abar four of the largest",
        ("squaredcos_cap_v2, *", "lu, cosine*"),
    ),
    Looser(
        1.1e-4,
        "1 - abar_0 = 1e-4 keeps four digits in float32: the smallest sigma is off by 8e-5, and with it the last step to it "
        "and every grid made from it; lu's 50 timesteps have one moved as above",
        (
            "*sigma_min*",
            "karras*",
            "beta*",
            "exponential*",
            "lu*",
            "from the middle, karras*",
            "*dpmsolver*",
            "lower_order_final*",
        ),
    ),
    Looser(
        3e-5,
        "differences of neighbouring levels' lambda, by which those of estimates are divided, keep five digits in float32; at "
        "sigma_t = 0.999, so does alpha_t",
        ("flow, 3.0, epsilon*", "flow, sde*", "timesteps, sde*", "N=T*"),
    ),
)


over = options.cases_of(NAME)


def solvers():
    """Every algorithm, order, variant and end that diffusers has."""
    for algorithm in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"):
        for order in (1, 2, 3):
            for variant in ("midpoint", "heun"):
                for end in ("zero", "sigma_min"):
                    crashes = algorithm == "sde-dpmsolver" and order == 3
                    if crashes or (end == "zero" and not algorithm.endswith("++")):
                        continue
                    yield {
                        "algorithm_type": algorithm,
                        "solver_order": order,
                        "solver_type": variant,
                        "final_sigmas_type": end,
                    }


def one_at_a_time():
    for config in solvers():
        yield from over(" ".join(map(str, config.values())), config)
    for prediction in options.PREDICTIONS:
        yield from options.spaced(over, {"prediction_type": prediction})
        for algorithm in ("dpmsolver", "sde-dpmsolver"):
            config = {"prediction_type": prediction, "algorithm_type": algorithm} | SIGMA_MIN
            yield from over(f"{prediction}, {algorithm}", config)
    for schedule in options.SCHEDULES:
        yield from options.spaced(over, {"beta_schedule": schedule})
    yield from over("Stable Diffusion", STABLE | LEADING)
    yield from over("trained_betas", options.TRAINED)
    for name, flag in RESPACED.items():
        yield from over(name, flag)
        yield from over(f"{name}, v_prediction, sigma_min", flag | V | SIGMA_MIN)
        yield from over(f"{name}, scaled_linear, sde", STABLE | flag | SDE, indexed=True)
        yield from over(f"{name}, order 3", flag | V | {"solver_order": 3})
        # Where timesteps of the first levels are equal, diffusers begins at the second unless it is told the index.
        yield from over(f"{name}, cosine", COSINE | V | flag, indexed=True)
    yield from over("karras, lu", RESPACED["karras"] | RESPACED["lu"])
    yield from over("lu, exponential", RESPACED["exponential"] | RESPACED["lu"])
    for shift in (1.0, 3.0):
        for prediction in ("flow_prediction", "v_prediction", "epsilon", "sample"):
            config = FLOW | {"flow_shift": shift, "prediction_type": prediction}
            yield from over(f"flow, {shift}, {prediction}", config)
            yield from over(f"flow, {shift}, {prediction}, sigma_min", config | SIGMA_MIN)
    yield from over("flow, sde", FLOW | SDE | {"flow_shift": 3.0})
    yield from over("flow, order 3", FLOW | {"solver_order": 3, "solver_type": "heun"})
    yield from over("flow, v_prediction, dpmsolver", FLOW | V | NOISE)
    yield from over("flow, sample, dpmsolver", FLOW | NOISE | {"prediction_type": "sample"})
    yield from over("flow_prediction without flow sigmas", {"prediction_type": "flow_prediction"})
    shifting = FLOW | {"use_dynamic_shifting": True}
    yield from over("mu", shifting, set_timesteps={"mu": 1.15})
    for spacing in ("leading", "trailing", "linspace"):
        config = COSINE | V | {"lambda_min_clipped": -5.1, "timestep_spacing": spacing}
        yield from over(f"lambda_min_clipped, {spacing}", config, steps=(2, 5, 20, 50))
    yield from over("zero SNR", V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
    yield from over("thresholding", threshold)
    yield from over("thresholding, dpmsolver", threshold | NOISE)
    yield from over("thresholding, sde", threshold | SDE)
    yield from over("euler_at_final", SIGMA_MIN | {"euler_at_final": True, "solver_order": 3})
    yield from over("lower_order_final=False", SIGMA_MIN | {"lower_order_final": False, "solver_order": 3})
    yield from over("lower_order_final=False, zero", {"lower_order_final": False, "solver_order": 3})
    yield from over("lower_order_final", SIGMA_MIN | {"solver_order": 3}, steps=(14, 15, 16))
    yield from over("solver_order=4", {"solver_order": 4})
    yield from over("learned_range", {"variance_type": "learned_range"})
    yield from over("learned, dpmsolver", NOISE | {"variance_type": "learned"})
    yield from over("from the middle", {"solver_order": 3}, steps=(5, 20, 50), begin=3)
    yield from over("from the middle, karras, sde", RESPACED["karras"] | SDE, steps=(5, 20, 50), begin=2)
    yield from over("variance_noise", SDE, steps=(5, 20), variance_noise=True)
    yield from over("a generator for each sample", SDE, steps=(5, 20), generators=2)
    yield from over("N=T, order 1", {"solver_order": 1}, steps=(1000,))
    yield from over("N=T, trailing", {"timestep_spacing": "trailing"}, steps=(1000,))
    yield from over("N=T-1", {"timestep_spacing": "leading"}, steps=(999,))
    given_times = {"timesteps": [990, 700, 420, 300, 100, 20, 0]}
    yield Case(NAME, "timesteps", None, {}, given_times)
    yield Case(NAME, "timesteps, sde, order 3", None, SDE | {"solver_order": 3}, given_times)


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER, draws=4)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


def in_float64(case):
    """Ours and the oracle in float64; noise is drawn in float32 by diffusers, whatever the sample is, and by ours."""
    mine = drive(subject(NAME)(**case.config), case, torch.float64)
    reference = oracle(case)
    return distance(case, mine, reference, reference)


@options.each(CASES, 20)
def test_loop_in_float64(case):
    if not case.draws:
        trajectories.check_float64(case)
    assert in_float64(case) <= 1e-12


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    steps = draws(st.integers(1, 60))
    spacing = pick("leading", "linspace", "trailing")
    algorithm = pick("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
    config = {
        "num_train_timesteps": pick(250, 1000),
        "beta_schedule": pick("linear", "scaled_linear"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": pick("epsilon", "sample", "v_prediction"),
        "timestep_spacing": spacing,
        "steps_offset": pick(0, 1) if spacing == "leading" else 0,
        "algorithm_type": algorithm,
        "solver_order": pick(1, 2) if algorithm == "sde-dpmsolver" else pick(1, 2, 3),
        "solver_type": pick("midpoint", "heun"),
        "lower_order_final": pick(True, False),
        "euler_at_final": pick(True, False),
        "final_sigmas_type": pick("zero", "sigma_min") if algorithm.endswith("++") else "sigma_min",
        "thresholding": pick(False, False, True),
    }
    begin = draws(st.integers(0, steps - 1)) if pick(0, 0, 1) else 0
    return Case(NAME, f"{config}", steps, config, begin=begin)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    """In float64, where whatever options are combined, ours is the oracle."""
    assert in_float64(case) <= 1e-11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [{}, RESPACED["karras"], NOISE], ids=str)
def test_half_precision_is_rounded_once(dtype, prediction, config):
    trajectories.check_half(Case(NAME, "half", 20, {"prediction_type": prediction} | config), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_noise_is_drawn_in_float32(dtype):
    """As diffusers does, so that a generator gives the same noise whatever the sample's dtype is."""
    results = []
    for kind in (dtype, torch.float32):
        scheduler = subject(NAME)(**SDE)
        scheduler.set_timesteps(10)
        x = torch.zeros(1, 3, 4, 4, dtype=kind)
        results.append(scheduler.step(x, 999, x, generator=torch.Generator().manual_seed(0)).prev_sample)
    assert results[0].dtype == dtype
    assert (results[0].double() - results[1].double()).abs().max() <= 4 * max(torch.finfo(dtype).eps, ULP)
    assert results[1].std() > 0.01


def test_the_harness_sees_planted_errors():
    trajectories.check_plants(Case(NAME, "plants", 20, {"solver_order": 3}))
    trajectories.check_plants(Case(NAME, "plants", 20, SDE))


# --- adding noise ---

TIMES = torch.tensor([999, 500])


def timed(scheduler):
    with quiet():
        scheduler.set_timesteps(10)
    return torch.stack([torch.as_tensor(scheduler.timesteps[k]) for k in (1, 7)])


@pytest.mark.parametrize("config", [{}, RESPACED["karras"], FLOW, COSINE], ids=str)
def test_add_noise(config):
    trajectories.check_forward(NAME, config, "add_noise", None, timed)


def test_add_noise_before_set_timesteps_is_of_another_level():
    """diffusers counts rows of a descending list in an ascending table; corrected, t has the level of t."""
    trajectories.check_forward(NAME, {}, "add_noise", TIMES)
    ours, x, zero = subject(NAME)(), np.ones((2, 1)), np.zeros((2, 1))
    corrected = ours.corrected("untimed-noise")
    level = ours.schedule.level([999, 500])
    assert np.allclose(corrected.add_noise(x, zero, [999, 500]).ravel(), level.alpha_t, rtol=1e-12)
    level = ours.schedule.level([0, 499])
    assert np.allclose(ours.add_noise(x, zero, [999, 500]).ravel(), level.alpha_t, rtol=1e-12)
    corrected.set_timesteps(10)
    ours.set_timesteps(10)
    assert np.array_equal(ours.add_noise(x, zero, [899]), corrected.add_noise(x, zero, [899]))


def test_add_noise_at_the_begin_index_then_at_the_step_index():
    for moved in (0, 2):
        results = []
        for cls in (subject(NAME), original(NAME)):
            scheduler = cls()
            with quiet():
                scheduler.set_timesteps(10)
            scheduler.set_begin_index(3)
            x = draw(1)
            for t in scheduler.timesteps[3 : 3 + moved]:
                x = scheduler.step(x * 0.1, t, x).prev_sample
            results.append(scheduler.add_noise(draw(2), draw(3), torch.tensor([11, 12])))
        assert (results[0] - results[1]).abs().max() <= 2e-6


# --- grids ---

GRIDS = [
    {},
    {"timestep_spacing": "leading"},
    LEADING,
    {"timestep_spacing": "trailing"},
    *RESPACED.values(),
    *(flag | COSINE for flag in RESPACED.values()),
    {"use_flow_sigmas": True},
    {"use_flow_sigmas": True, "flow_shift": 12.0, **SIGMA_MIN},
    COSINE | {"lambda_min_clipped": -5.1},
    COSINE | {"lambda_min_clipped": -5.1, "timestep_spacing": "trailing"},
    COSINE | {"lambda_min_clipped": -5.1, "timestep_spacing": "leading"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    SIGMA_MIN,
]


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 60, 300])
def test_grid(config, steps):
    """Timesteps are the oracle's; those of float32 tables may be cut to the whole number below."""
    ours, theirs, exact = sigma_grids.three(NAME, config, steps)
    assert ours.timesteps.dtype == np.int64 and ours.sigmas.dtype == np.float64
    assert np.array_equal(ours.timesteps, exact.timesteps)
    assert np.allclose(ours.sigmas, exact.sigmas, rtol=4e-12, atol=0)
    assert abs(ours.timesteps - np.asarray(theirs.timesteps)).max() <= 1
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    assert ours.num_inference_steps == theirs.num_inference_steps == len(ours.timesteps)
    assert ours.init_noise_sigma == theirs.init_noise_sigma == 1.0
    assert ours.step_index is ours.begin_index is None


EVERY = [
    *GRIDS,
    {"solver_order": 3, "algorithm_type": "sde-dpmsolver", **SIGMA_MIN},
    {"solver_order": 3, "solver_type": "heun", **SIGMA_MIN, **RESPACED["karras"], **COSINE},
]


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_every_number_of_steps_runs(config):
    """A loop over all of `timesteps`, first and last included: diffusers skips the first level, then leaves the table, where
    the first two timesteps are equal, and divides by 0 where two levels are."""
    ours, x = subject(NAME)(**config), np.ones((1, 1))
    numbers = [*range(1, 130), 250, 333, 499, 500, 501, 666, 750, 998, 999, 1000]
    for steps in numbers:
        offset = config.get("steps_offset", 0) + 9 * ("lambda_min_clipped" in config)
        if config.get("timestep_spacing") == "leading" and steps + offset > 999:
            with pytest.raises(ValueError, match=f"steps={steps} of leading spacing"):
                ours.set_timesteps(steps)
            continue
        ours.set_timesteps(steps)
        assert len(ours.timesteps) == steps or "lambda_min_clipped" in config
        assert (np.diff(ours.timesteps) <= 0).all() and ours.timesteps[-1] >= 0
        plan = ours._plan(ours._default)
        assert np.isfinite(plan.folded).all()
        assert ours.index_for_timestep(ours.timesteps[0]) == 0
        if steps > 60:
            continue
        state = x
        for t in ours.timesteps:
            state = ours.step(state * 0.1, t, state, variance_noise=x).prev_sample
        assert np.isfinite(state).all() and ours.step_index == len(ours.timesteps)


def test_equal_levels_idle():
    """N = T visits one of T timesteps twice; diffusers ends in NaN there."""
    results = []
    for cls in (original(NAME), subject(NAME)):
        scheduler, x = cls(solver_order=2), draw(1).double()
        with quiet():
            scheduler.set_timesteps(1000)
        model = Denoiser({})
        for t in scheduler.timesteps:
            before, x = x, scheduler.step(model(x, float(t)), t, x).prev_sample.double()
            twice = scheduler.step_index is not None and scheduler.step_index == 500
            if twice and cls is subject(NAME):
                assert scheduler.sigmas[499] == scheduler.sigmas[500] and torch.equal(before, x)
        results.append(x)
    assert results[0].isnan().any()
    assert results[1].isfinite().all() and 0.5 < results[1].abs().mean() < 1.1


@pytest.mark.parametrize("steps", [61, 103, 121, 122, 201])
def test_trailing_has_no_step_more(steps):
    ours = subject(NAME)(timestep_spacing="trailing")
    ours.set_timesteps(steps)
    assert len(ours.timesteps) == steps and ours.timesteps[-1] >= 0


@pytest.mark.parametrize("config", [{}, COSINE, {"rescale_betas_zero_snr": True}], ids=str)
def test_tables_before_set_timesteps(config):
    ours, theirs, exact = sigma_grids.three(NAME, config)
    for name in sigma_grids.LAMBDA_TABLES:
        found = getattr(ours, name)
        assert np.allclose(found, getattr(exact, name), rtol=1e-10, atol=1e-14), name
        assert np.allclose(found, getattr(theirs, name), rtol=1e-3, atol=2e-5), name
        assert isinstance(getattr(ours.to("torch"), name), torch.Tensor) and ours.to("numpy") is ours
    assert len(ours) == len(theirs) == 1000 and ours.order == theirs.order == 1
    assert ours.model_outputs == theirs.model_outputs == [None, None]
    assert ours.lower_order_nums == theirs.lower_order_nums == 0


def test_sigma_to_alpha_and_sigma_takes_any_array():
    for config in ({}, FLOW):
        for values in (0.25, np.asarray([0.0, 0.5]), torch.tensor([0.0, 0.5])):
            ours, theirs = subject(NAME)(**config), original(NAME)(**config)
            for one, two in zip(
                ours._sigma_to_alpha_sigma_t(values), theirs._sigma_to_alpha_sigma_t(values), strict=True
            ):
                assert type(one) is type(two) and np.allclose(one, two, rtol=1e-6)


def test_custom_timesteps():
    ours = subject(NAME)()
    ours.set_timesteps(timesteps=torch.tensor([900.7, 500.2, 500.1, 3.0]))
    assert ours.timesteps.tolist() == [900, 500, 500, 3]
    for wrong in ([1, 2], [1000], [-1], [], [[3]], [np.nan]):
        with pytest.raises(ValueError, match="timesteps="):
            ours.set_timesteps(timesteps=wrong)
    assert ours.timesteps.tolist() == [900, 500, 500, 3]
    # diffusers fails on None + 1 here.
    flow = subject(NAME)(**FLOW)
    flow.set_timesteps(timesteps=[900, 500])
    assert flow.sigmas.tolist() == [0.9, 0.5, 0.0] and flow.timesteps.tolist() == [900, 500]
    for config in RESPACED.values():
        trajectories.check_error(
            NAME, ValueError, lambda cls, config=config: cls(**config).set_timesteps(timesteps=[3, 2])
        )


# --- the index and the history ---


def test_an_unknown_timestep_is_the_last_one():
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        with quiet():
            scheduler.set_timesteps(10)
        assert scheduler.index_for_timestep(123) == 9
        results.append(scheduler.step(draw(1), 123, draw(2)).prev_sample)
        assert scheduler.step_index == 10
    assert (results[0] - results[1]).abs().max() <= 1e-5
    corrected = subject(NAME)().corrected("unknown-timestep")
    corrected.set_timesteps(10)
    with pytest.raises(IndexError, match="timestep=123: expected one of"):
        corrected.step(draw(1), 123, draw(2))
    assert corrected.step_index is None


def test_the_second_of_two_equal_timesteps_unless_it_is_the_first_of_all():
    times = [900, 900, 700, 500, 500, 3]
    made = [cls() for cls in (subject(NAME), original(NAME))]
    for scheduler in made:
        with quiet():
            scheduler.set_timesteps(timesteps=times)
    assert [made[0].index_for_timestep(t) for t in times] == [0, 0, 2, 4, 4, 5]
    assert [made[1].index_for_timestep(t) for t in times] == [1, 1, 2, 4, 4, 5]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
def test_state_that_loops_read(order, algorithm):
    config = {"solver_order": order, "algorithm_type": algorithm} | SIGMA_MIN
    with quiet():
        made = [cls(**config) for cls in (subject(NAME), original(NAME))]
        for scheduler in made:
            scheduler.set_timesteps(6)
    xs = [draw(1), draw(1)]
    for i, t in enumerate(made[0].timesteps):
        for k, scheduler in enumerate(made):
            seen = scheduler.convert_model_output
            if i:
                with quiet():
                    before = seen(0.2 * xs[k], sample=xs[k])
                    older = scheduler.convert_model_output(0.2 * xs[k], None, xs[k])
                assert torch.equal(before, older)
            generator = torch.Generator().manual_seed(i)
            xs[k] = scheduler.step(0.2 * xs[k], int(t), xs[k], generator=generator).prev_sample
            if i:
                assert torch.equal(scheduler.model_outputs[-1], before) or k == 0
                assert (scheduler.model_outputs[-1] - before).abs().max() <= 1e-5
        ours, theirs = made
        assert ours.step_index == ours._step_index == theirs.step_index == i + 1
        assert ours.lower_order_nums == theirs.lower_order_nums
        assert len(ours.model_outputs) == len(theirs.model_outputs)
        for one, two in zip(ours.model_outputs, theirs.model_outputs, strict=True):
            assert (one is None) == (two is None)
            assert one is None or (one - two).abs().max() <= 1e-3 * two.abs().max()
    ours.set_timesteps(3)
    assert ours.model_outputs == [None] * order and ours.lower_order_nums == 0 and ours.step_index is None


def test_model_outputs_may_be_edited_by_the_loop():
    """Loops that drop frames on the way cut them out of the history too."""
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler, x = cls(solver_order=3), draw(1)
        with quiet():
            scheduler.set_timesteps(8)
        for i, t in enumerate(scheduler.timesteps):
            if i == 4:
                x = x[..., [0, -1]]
                for j in range(len(scheduler.model_outputs)):
                    scheduler.model_outputs[j] = scheduler.model_outputs[j][..., [0, -1]]
            x = scheduler.step(torch.tanh(x), t, x).prev_sample
        results.append(x)
    assert results[0].shape[-1] == 2
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()


def test_a_step_index_set_back():
    """Loops that step twice from one level set the index back between."""
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler, x = cls(), draw(1)
        with quiet():
            scheduler.set_timesteps(8)
        for t in scheduler.timesteps:
            first = scheduler.step(torch.tanh(x), t, x).prev_sample
            scheduler._step_index -= 1
            x = scheduler.step(torch.tanh(0.5 * (x + first)), t, x).prev_sample
        results.append(x)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()
    fresh = subject(NAME)()
    fresh.set_timesteps(8)
    fresh._init_step_index(fresh.timesteps[3])
    assert fresh.step_index == 3


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"])
def test_parts_of_a_step(algorithm):
    """The public update methods, with converted outputs and the index of the loop."""
    config = {"solver_order": 3, "algorithm_type": algorithm, "solver_type": "heun"} | SIGMA_MIN
    with quiet():
        ours, exact = subject(NAME)(**config), float64_class(NAME)(**config)
    outputs = [draw(k).double() for k in (1, 2, 3)]
    x, noise = draw(4).double(), draw(5).double()
    for scheduler in (ours, exact):
        with quiet():
            scheduler.set_timesteps(20)
        scheduler._step_index = 12
    names = ["dpm_solver_first_order_update"]
    names += [f"multistep_dpm_solver_{nth}_order_update" for nth in ("second", "third")]
    for name, given_outputs in zip(names, (outputs[-1], outputs, outputs), strict=True):
        if name.endswith("third_order_update") and algorithm == "sde-dpmsolver":
            continue
        found, wanted = (getattr(s, name)(given_outputs, sample=x, noise=noise) for s in (ours, exact))
        with quiet():
            older = getattr(exact, name)(given_outputs, None, None, x, noise=noise)
        assert (found - wanted).abs().max() <= 1e-11 * wanted.abs().max()
        assert torch.equal(getattr(ours, name)(given_outputs, None, None, x, noise=noise), found)
        assert torch.equal(older, wanted)
        with pytest.raises(ValueError, match="sample"):
            getattr(ours, name)(given_outputs)
    assert ours.step_index == 12 and ours.lower_order_nums == 0
    ours.set_timesteps(5)
    with pytest.raises(ValueError, match="step_index=None"):
        ours.dpm_solver_first_order_update(outputs[0], sample=x, noise=noise)
    with pytest.raises(ValueError, match="sample=None"):
        ours.convert_model_output(outputs[0])


# --- configs ---


def test_names_of_siblings_are_coerced():
    for find in (subject, original):
        # diffusers refuses deis with a final sigma of 0, though it is then taken for dpmsolver++.
        end = SIGMA_MIN if find is original else {}
        scheduler = find(NAME)(algorithm_type="deis", solver_type="logrho", **end)
        assert (scheduler.config.algorithm_type, scheduler.config.solver_type) == ("dpmsolver++", "midpoint")
    ours = subject(NAME)()
    ours._internal_dict = {**ours.config, "solver_type": "bh2"}
    assert ours.config.solver_type == "midpoint"
    with pytest.raises(NotImplementedError, match="algorithm_type='ddim'"):
        ours._internal_dict = {**ours.config, "algorithm_type": "ddim"}
    assert ours.config.algorithm_type == "dpmsolver++"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"algorithm_type": "euler"}, NotImplementedError),
        ({"solver_type": "euler"}, NotImplementedError),
        ({"beta_schedule": "quadratic"}, NotImplementedError),
        ({"algorithm_type": "dpmsolver"}, ValueError),
        ({"algorithm_type": "sde-dpmsolver"}, ValueError),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, ValueError),
    ],
)
def test_configs_that_diffusers_refuses(config, error):
    trajectories.check_error(NAME, error, lambda cls: cls(**config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"solver_order": 0}, "solver_order=0"),
        ({"solver_order": 2.0}, "solver_order=2.0"),
        ({"flow_shift": "3"}, "flow_shift='3'"),
        ({"lambda_min_clipped": float("nan")}, "lambda_min_clipped=nan"),
        ({"use_flow_sigmas": "no"}, "use_flow_sigmas='no'"),
        ({"use_lu_lambdas": 3}, "use_lu_lambdas=3"),
        ({"time_shift_type": "cosine"}, "time_shift_type='cosine'"),
        ({"variance_type": "large"}, "variance_type='large'"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type='one'"),
    ],
)
def test_configs_that_say_nothing(config, message):
    with pytest.raises(ValueError, match=message):
        subject(NAME)(**config)


def test_steps_that_cannot_be():
    ours = subject(NAME)(lambda_min_clipped=9.0)
    with pytest.raises(ValueError, match=r"lambda_min_clipped=9\.0"):
        ours.set_timesteps(5)
    ours = subject(NAME)(flow_shift=-1.0, use_flow_sigmas=True)
    with pytest.raises(ValueError, match="shift=-1"):
        ours.set_timesteps(5)
    ours = subject(NAME)(timestep_spacing="trailing")
    with pytest.raises(ValueError, match="steps=1001"):
        ours.set_timesteps(1001)
    with pytest.raises(ValueError, match="sigma is 0"):
        subject(NAME)(**FLOW).set_timesteps(timesteps=[5, 0])


def test_mu():
    """It counts for later calls too, and leaves the config as it is; corrected, for its own call."""
    config = {"use_flow_sigmas": True, "use_dynamic_shifting": True, "flow_shift": 2.0}
    ours, theirs = subject(NAME)(**config), original(NAME)(**config)
    corrected = ours.corrected("dpm-sticky-mu")
    grids = []
    for mu in (None, 0.9, None):
        for scheduler in (ours, theirs, corrected):
            with quiet():
                scheduler.set_timesteps(5, mu=mu)
        assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-6)
        grids.append((ours.sigmas.tolist(), corrected.sigmas.tolist()))
    assert grids[1][0] == grids[2][0] == grids[1][1] != grids[0][0] == grids[2][1]
    assert ours.config.flow_shift == 2.0
    with pytest.raises(ValueError, match=r"mu=0\.5: expected None without use_dynamic_shifting"):
        subject(NAME)(**FLOW).set_timesteps(5, mu=0.5)
    linear = subject(NAME)(**config, time_shift_type="linear")  # an AssertionError in diffusers
    linear.set_timesteps(5, mu=float(np.exp(0.9)))
    assert np.allclose(linear.sigmas, grids[1][1], rtol=1e-12)


@pytest.mark.parametrize("name", ["karras", "exponential", "beta", "lu"])
def test_respaced_flow_sigmas_are_flow_sigmas(name):
    """diffusers takes them for sigma_t up to 157, alpha_t = -156, and gives NaN."""
    config = RESPACED[name] | FLOW
    ours, plain = subject(NAME)(**config), subject(NAME)(**RESPACED[name])
    for scheduler in (ours, plain):
        scheduler.set_timesteps(6)
    ratio = np.append(plain.sigmas[:-1], 0.0)
    assert np.allclose(ours.sigmas, ratio / (1 + ratio), rtol=1e-12)
    assert ours.timesteps.tolist() == [int(1000 * s) for s in ours.sigmas[:-1]]


def test_ends_that_another_class_left_in_the_config():
    for name, flag in RESPACED.items():
        results = []
        for find in (original, subject):
            euler = find("EulerDiscreteScheduler")(sigma_min=0.05, sigma_max=20.0)
            results.append(find(NAME).from_config(euler.config, **flag))
        theirs, ours = results
        corrected, plain = ours.corrected("foreign-ends"), subject(NAME)(**flag)
        for scheduler in (theirs, ours, corrected, plain):
            with quiet():
                scheduler.set_timesteps(9)
        assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
        assert np.array_equal(corrected.sigmas, plain.sigmas)
        assert np.array_equal(ours.sigmas, plain.sigmas) is (name == "lu")


def test_learned_variance_is_left_out():
    for channels in (3, 4):  # diffusers takes three, whatever the sample has
        ours = subject(NAME)(variance_type="learned")
        plain = subject(NAME)()
        for scheduler in (ours, plain):
            scheduler.set_timesteps(5)
        x, output = draw(1, shape=(2, channels, 4, 4)), draw(2, shape=(2, 2 * channels, 4, 4))
        assert torch.equal(
            ours.step(output, 999, x).prev_sample, plain.step(output[:, :channels], 999, x).prev_sample
        )
        assert torch.equal(ours.model_outputs[-1], plain.model_outputs[-1])


# --- corrections ---


def run(scheduler, steps, model):
    scheduler.set_timesteps(steps)
    x = draw(1).double().numpy()
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(model(x, t, sigma), t, x, variance_noise=np.zeros_like(x)).prev_sample
    return x


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++", "dpmsolver"])
def test_corrected_third_order_is_our_own_solver(algorithm):
    ours = subject(NAME)(solver_order=3, algorithm_type=algorithm, **SIGMA_MIN)
    corrected = ours.corrected("dpm-third-order")
    for scheduler in (ours, corrected):
        scheduler.set_timesteps(20)
    noise = not algorithm.endswith("++")
    solver = DPMSolver(3, "noise" if noise else "x0", algorithm.startswith("sde"))
    plan = solver.plan(ours._levels, "epsilon")
    x = draw(1).double().numpy()
    results = [x, x, State(x, (x, x))]
    for i, t in enumerate(ours.timesteps):
        results[0] = ours.step(np.tanh(results[0]), t, results[0], variance_noise=0 * x).prev_sample
        results[1] = corrected.step(np.tanh(results[1]), t, results[1], variance_noise=0 * x).prev_sample
        fresh = 0 * x if solver.stochastic else None
        results[2] = update(plan, i, results[2], np.tanh(results[2].x), fresh)
    assert np.allclose(results[1], results[2].x, rtol=1e-10)
    assert not np.allclose(results[0], results[2].x, rtol=1e-4)


def test_third_order_of_the_sde_in_noise():
    """diffusers crashes; here it is the own face's."""
    config = {"solver_order": 3, "algorithm_type": "sde-dpmsolver"} | SIGMA_MIN
    with quiet():
        theirs = original(NAME)(**config)
        theirs.set_timesteps(20)
    for t in theirs.timesteps[:2]:
        theirs.step(draw(1), t, draw(2))
    with pytest.raises(UnboundLocalError):
        theirs.step(draw(1), theirs.timesteps[2], draw(2))
    ours = subject(NAME)(**config)
    ours.set_timesteps(20)
    plan = DPMSolver(3, "noise", True).plan(ours._levels, "epsilon")
    x = draw(1).double().numpy()
    state = State(x, (x, x))
    for i, t in enumerate(ours.timesteps):
        fresh = draw(i).double().numpy()
        x = ours.step(np.tanh(x), t, x, variance_noise=fresh).prev_sample
        state = update(plan, i, state, np.tanh(state.x), fresh)
    assert np.allclose(x, state.x, rtol=1e-12)


def test_corrected_velocity_of_flow_sigmas():
    """A model that knows the clean sample is believed, whatever it predicts and whatever the levels are."""
    clean = np.tanh(draw(3).double().numpy())
    for flow, prediction in ((True, "v_prediction"), (False, "flow_prediction")):
        config = {"use_flow_sigmas": flow, "prediction_type": prediction, "solver_order": 1}
        ours = subject(NAME)(**config)
        corrected = ours.corrected("misread-velocity")

        def model(x, t, sigma, of=ours, kind=prediction):
            alpha, sigma = of._sigma_to_alpha_sigma_t(sigma)
            noise = (x - alpha * clean) / sigma
            return alpha * noise - sigma * clean if kind == "v_prediction" else noise - clean

        assert np.allclose(run(corrected, 5, model), clean, rtol=1e-9)
        assert abs(run(ours, 5, model) - clean).max() > 1e-2


def test_corrected_timesteps_are_the_nearest():
    for config in (RESPACED["exponential"], RESPACED["beta"], RESPACED["karras"] | COSINE):
        ours = subject(NAME)(**config)
        corrected = ours.corrected("truncated-timesteps")
        for scheduler in (ours, corrected):
            scheduler.set_timesteps(12)
        exact = ours.schedule.timestep(ours.sigmas[:-1])
        assert np.array_equal(corrected.timesteps, np.round(exact)) and corrected.timesteps.dtype == np.int64
        assert (
            np.array_equal(ours.timesteps, np.trunc(exact)) and (ours.timesteps != corrected.timesteps).any()
        )
    flow = subject(NAME)(**FLOW).corrected("truncated-timesteps")
    flow.set_timesteps(7)
    assert np.allclose(flow.timesteps, 1000 * flow.sigmas[:-1], rtol=1e-14)


def test_corrected_end_of_flow_sigmas():
    config = FLOW | SIGMA_MIN | {"flow_shift": 3.0}
    ours = subject(NAME)(**config)
    corrected = ours.corrected("dpm-flow-sigma-min")
    for steps in (5, 600):
        for scheduler in (ours, corrected):
            scheduler.set_timesteps(steps)
        assert ours.sigmas[-1] == ours.schedule.sigma_min  # above the last but one, with many steps
        assert (ours.sigmas[-1] > ours.sigmas[-2]) == (steps == 600)
        assert (
            corrected.sigmas[-1] == pytest.approx(0.003 / 1.002)
            and corrected.sigmas[-1] < corrected.sigmas[-2]
        )


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_a_last_step_up(algorithm):
    """diffusers takes the square root of a negative number for the SDE; the step is the ODE's."""
    config = FLOW | SIGMA_MIN
    results = []
    for name in ("dpmsolver++", algorithm):
        ours = subject(NAME)(**config, algorithm_type=name)
        ours.set_timesteps(200)
        ours.set_begin_index(199)
        x = draw(1).double().numpy()
        results.append(ours.step(0.1 * x, 4, x, variance_noise=draw(2).double().numpy()).prev_sample)
    assert np.allclose(results[0], results[1], rtol=1e-12)
    exact = float64_class(NAME)(**config)
    exact.set_timesteps(200)
    exact.set_begin_index(199)
    x = draw(1).double()
    assert np.allclose(exact.step(0.1 * x, 4, x).prev_sample, results[0], rtol=1e-11)


def test_ids_of_deviations_are_documented():
    cls = subject(NAME)
    assert len(cls.deviations) == 8
    sigma_grids.check_documented(cls)
