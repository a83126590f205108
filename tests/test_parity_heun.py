"""`HeunDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from anystep import Clip, Heun, Levels
from anystep.samplers._late_heun import LateHeun
from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class
from reference.options import BETA, EXPONENTIAL, KARRAS, LEADING, RESPACED, STEPS, V
from reference.sigma_grids import begun
from reference.trajectories import (
    Case,
    Denoiser,
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
NAME = "HeunDiscreteScheduler"
DEFAULTS = {"beta_start": 0.00085, "beta_end": 0.012}
"""Of this class alone: the model must know them."""

_MAGNIFIED = (
    "a correction takes half of the noise estimate at the end of its step over all of it: float32's rounding of the sample there "
    "counts half the ratio of the two sigmas"
)
_SMALLEST = "1 - abar_0 keeps four digits in float32, and the loop of one step has no other level"
LOOSER = (
    Looser(5e-4, _SMALLEST, ("squaredcos_cap_v2, linspace-1", "DDPM's table-1", "trained_betas-1")),
    Looser(3e-5, _SMALLEST, ("*-1",)),
    Looser(0.5, f"from 20291 to 0.006: {_MAGNIFIED}", ("squaredcos_cap_v2, linspace-2",)),
    Looser(0.03, f"from 20291 on: {_MAGNIFIED}", ("squaredcos_cap_v2, linspace*",)),
    Looser(3e-3, f"from 157 to 0.01, and from 403: {_MAGNIFIED}", ("DDPM's table-2", "exp, linspace-2")),
    Looser(1e-4, f"from 14.6 to 0.03: {_MAGNIFIED}; and the smallest sigma is off by 2e-5", ("*-2",)),
    Looser(3e-5, "abar_0 = exp(-0.012) and products of 1000 such: the levels are off by 1.3e-5", ("exp*",)),
)


def over(option, config=None, steps=STEPS, **rest):
    config = config or {}
    told = {key: value for key, value in DEFAULTS.items() if key not in config}
    return [Case(NAME, option, count, config, model=told, **rest) for count in steps]


def one_at_a_time():
    for prediction in options.PREDICTIONS:
        yield from options.spaced(over, {"prediction_type": prediction})
    for schedule in (*options.SCHEDULES, "exp"):
        yield from options.spaced(over, {"beta_schedule": schedule}, ("leading", "linspace"))
    stable = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    yield from over("Stable Diffusion", config=stable | {"steps_offset": 1})
    yield from over("DDPM's table", config={"beta_start": 1e-4, "beta_end": 0.02})
    yield from over("trained_betas", config=options.TRAINED)
    yield from over("num_train_timesteps=50", config=options.FEW)
    for name, flag in RESPACED.items():
        yield from over(name, config=flag)
        yield from over(f"{name}, v_prediction", config=flag | V)
        yield from over(f"{name}, scaled_linear, leading", config=flag | stable)
        yield from over(f"{name}, clip_sample", config=flag | {"clip_sample": True})
    for prediction in ("epsilon", "sample", "v_prediction"):
        clipped = {"prediction_type": prediction, "clip_sample": True}
        yield from over(f"{prediction}, clip_sample", config=clipped)
        yield from over(f"{prediction}, clip_sample_range=0.5", config=clipped | {"clip_sample_range": 0.5})
        yield from over(f"{prediction}, clip_sample_range=2.0", config=clipped | {"clip_sample_range": 2.0})
    yield from over("clip_sample_range alone", steps=(5,), config={"clip_sample_range": 0.5})
    for begin in (4, 3):  # the first row of a pair, and the second
        where = f"from row {begin}"
        yield from over(where, steps=(5, 20, 50), begin=begin)
        yield from over(f"{where}, karras", steps=(5, 20, 50), config=KARRAS, begin=begin)
        clipped = V | {"clip_sample": True, "timestep_spacing": "leading"}
        yield from over(f"{where}, clip_sample", steps=(20,), config=clipped, begin=begin)
    short = {"num_train_timesteps": 600}
    for spacing in ("leading", "trailing", "linspace"):
        config = {"timestep_spacing": spacing}
        yield from over(f"{spacing} over 600", steps=(5, 20), config=config, set_timesteps=short)
    custom = {"timesteps": [981, 700, 333, 20, 3]}
    yield from over("custom", steps=(None,), config=V, set_timesteps=custom)
    yield from over("custom, fractional", steps=(None,), set_timesteps={"timesteps": [981.5, 333.25, 0.5]})
    yield from over("N=T", steps=(1000,))
    yield from over("N=T, v_prediction", steps=(1000,), config=V)


CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case, LOOSER)


def test_cases_and_exceptions_name_each_other():
    trajectories.check_names(CASES, LOOSER)


def in_float64(case):
    return case.steps in (20, None) and not case.id.startswith("squaredcos_cap_v2, linspace")


@options.each(filter(in_float64, CASES))
def test_loop_in_float64(case):
    trajectories.check_float64(case)


def test_loop_in_float64_from_the_largest_sigma():
    """From 20291: what is magnified there in float32 (see LOOSER) is, by 2^-29 less, in float64."""
    (case,) = (case for case in CASES if case.id == "squaredcos_cap_v2, linspace-20")
    trajectories.check_float64(case, bound=1e-10)


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    count = pick(100, 250, 1000)
    steps = draws(st.integers(1, min(count, 60)))
    spacing = pick("leading", "linspace", *["trailing"] * whole_grid(count, steps))
    config = {
        "num_train_timesteps": count,
        "beta_start": 0.00085,
        "beta_schedule": pick("linear", "scaled_linear"),
        "beta_end": pick(0.012, 0.02),
        "prediction_type": pick("epsilon", "sample", "v_prediction"),
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" and steps < count and pick(0, 1) else 0,
        "clip_sample": pick(False, True),
        "clip_sample_range": pick(0.7, 1.0, 3.0),
    } | pick({}, {}, KARRAS, EXPONENTIAL, BETA)
    return Case(NAME, f"{config}", steps, config, begin=pick(0, 0, min(steps, 3) - 1))


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [{}, KARRAS, {"clip_sample": True}], ids=str)
def test_half_precision_is_rounded_once(dtype, prediction, config):
    """In a first call; a correction takes what the first one rounded, see below."""
    trajectories.check_half(
        Case(NAME, "half", 20, {"prediction_type": prediction} | config | DEFAULTS), dtype
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_both_calls(dtype):
    """Each result within a rounding of what float64 makes of the same numbers, the remembered ones too."""
    ours, exact = subject(NAME)(), float64_class(NAME)()
    for scheduler in (ours, exact):
        with quiet():
            scheduler.set_timesteps(8)
    x = (draw(1) * 14).to(dtype)
    for row, t in enumerate(ours.timesteps):
        output = torch.tanh(draw(20 + row)).to(dtype)
        moved = ours.step(output, t, x).prev_sample
        truth = exact.step(output.double(), exact.timesteps[row], x.double()).prev_sample
        assert moved.dtype == dtype
        scale = float(max(x.abs().max(), truth.abs().max()))
        assert (
            (moved.double() - truth).abs() <= 0.51 * torch.finfo(dtype).eps * truth.abs() + 1e-5 * scale
        ).all()
        x = moved


# --- the two calls of a step ---


def run(cls, begin=0, steps=6, correct=None, config=None, spoil=lambda row, x: x):
    """Samples of a float64 run with a model of x and t."""
    scheduler = cls(**(config or {}))
    scheduler = scheduler.corrected(correct) if correct else scheduler
    with quiet():
        scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    x, samples, orders = draw(1).double() * 12.0, [], [scheduler.state_in_first_order]
    for row, t in enumerate(scheduler.timesteps[begin:]):
        x = spoil(row, x)
        output = 0.9 * torch.tanh(scheduler.scale_model_input(x, t) + 1e-3 * float(t))
        x = scheduler.step(output, t, x).prev_sample
        samples.append(x)
        orders.append(scheduler.state_in_first_order)
    return samples, orders


@pytest.mark.parametrize("config", [{}, V, {"clip_sample": True}], ids=str)
@pytest.mark.parametrize("begin", range(11))
def test_begun_at_any_row(begin, config):
    """Also where the pair is late, and with samples that a caller changes between the calls, as inpainting does."""
    changed = lambda row, x: x * (1 - 0.01 * (row % 3)) + 0.1
    for spoil in (lambda row, x: x, changed):
        (exact, wanted), (ours, found) = (
            run(cls, begin, config=config, spoil=spoil) for cls in (float64_class(NAME), subject(NAME))
        )
        assert found == wanted
        for one, two in zip(exact, ours, strict=True):
            assert (one - two).abs().max() <= 1e-11 * exact[0].abs().max()


@pytest.mark.parametrize("begin", [1, 3, 9])
def test_late_pairs_do_nothing(begin):
    """diffusers takes both calls of such a pair at one level, so that the sample keeps all of its noise."""
    ours, _ = run(subject(NAME), begin)
    assert torch.equal(ours[-1], draw(1).double() * 12.0)


@pytest.mark.parametrize("begin", [1, 3, 9])
def test_corrected_runs_begin_a_step(begin):
    """The row that has no first call passes the sample on; the rest is the run begun a row later."""
    corrected, orders = run(subject(NAME), begin, correct="heun-begin")
    regular, _ = run(subject(NAME), begin + 1)
    assert torch.equal(corrected[0], draw(1).double() * 12.0) and orders[:3] == [True, True, False]
    assert all(torch.equal(one, two) for one, two in zip(corrected[1:], regular, strict=True))
    assert all(
        torch.equal(one, two)
        for one, two in zip(run(subject(NAME), correct="heun-begin")[0], run(subject(NAME))[0], strict=True)
    )


def test_a_new_run_forgets_half_a_step():
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler, x = cls(), draw(1)
        with quiet():
            scheduler.set_timesteps(5)
        scheduler.step(draw(2), scheduler.timesteps[0], x)
        assert not scheduler.state_in_first_order
        with quiet():
            scheduler.set_timesteps(5)
        assert scheduler.state_in_first_order and scheduler.step_index is None
        results.append(scheduler.step(draw(2), scheduler.timesteps[0], x).prev_sample)
    assert (results[0] - results[1]).abs().max() <= 1e-5


def test_the_timestep_of_later_calls_is_not_read():
    """A counter goes on, whatever timestep is named: as in diffusers."""
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler, x = cls(), draw(1)
        with quiet():
            scheduler.set_timesteps(6)
        for row in (4, 0, 7, 7, 2):
            t = scheduler.timesteps[row]
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
        results.append(x)
        assert scheduler.step_index == 9
    assert (results[0] - results[1]).abs().max() <= 1e-5


def test_plan_is_that_of_the_own_face():
    """Bit for bit, on levels chained by hand, and with the bound."""
    ours = subject(NAME)(clip_sample=True, clip_sample_range=0.8, **V)
    ours.set_timesteps(7)
    sigmas = np.append(ours.sigmas[::2], 0.0)
    scale = 1 / np.hypot(sigmas[:-1], 1)
    levels = Levels.chain(np.append(ours.timesteps[::2], 0), np.ones(8), sigmas, scale)
    assert ours._plan(Heun()) == Heun().plan(levels, "v_prediction", Clip(0.8))
    assert np.array_equal(ours._plan(Heun()).timesteps, ours.timesteps)
    for corrects in (False, True):
        late = ours._plan(LateHeun(corrects))
        assert np.array_equal(late.estimate, ours._plan(Heun()).estimate)


# --- what the method is ---


def textbook(x, sigmas, denoise):
    """Karras et al. 2022, algorithm 1 with sigma(t) = t, line by line."""
    for cur, nxt in itertools.pairwise(sigmas):
        slope = (x - denoise(x, cur)) / cur
        end = x + (nxt - cur) * slope
        if nxt:
            end = x + (nxt - cur) * (slope + (end - denoise(end, nxt)) / nxt) / 2
        x = end
    return x


def clean(x, sigma, std=0.5):
    """The exact denoiser of normal data with this standard deviation."""
    return x * std**2 / (std**2 + sigma**2)


def solve(scheduler, x, predicts):
    """A whole run with that denoiser, in float64."""
    for row, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[row]
        x0 = clean(x, sigma)
        noise, scale = (x - x0) / sigma, 1 / math.hypot(sigma, 1)
        output = {"epsilon": noise, "sample": x0, "v_prediction": scale * noise - scale * sigma * x0}[
            predicts
        ]
        assert np.allclose(scheduler.scale_model_input(x, t), x * scale, rtol=1e-12)
        x = scheduler.step(output, t, x).prev_sample
    return x


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("config", [{}, KARRAS, {"timestep_spacing": "leading", "steps_offset": 1}], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_is_the_published_algorithm(steps, config, predicts):
    if steps == 1000 and "steps_offset" in config:
        steps = 999
    ours = subject(NAME)(prediction_type=predicts, **config)
    ours.set_timesteps(steps)
    assert len(ours.timesteps) == 2 * steps - 1 and len(ours.sigmas) == 2 * steps
    x = np.linspace(-1, 1, 5) * ours.sigmas[0]
    expected = textbook(x, np.append(ours.sigmas[::2], 0.0), clean)
    assert np.abs(solve(ours, x, predicts) - expected).max() <= 1e-12 * ours.sigmas[0]


@pytest.mark.parametrize("grid", ["even", "uneven", "random"])
def test_order_2(grid):
    """To the last level where the model is called: the step from there is Euler's, and the same for every N."""
    errors, counts = [], (25, 50, 100, 200)
    rng = np.random.default_rng(0)
    for count in counts:
        ramp = np.linspace(0, 1, count)
        if grid == "uneven":
            ramp = (ramp + ramp**2) / 2
        elif grid == "random":
            ramp[1:-1] += rng.uniform(-0.3, 0.3, count - 2) / count
        ours = subject(NAME)()
        ours.set_timesteps(timesteps=900 - ramp * 800)
        first, last = ours.sigmas[0], ours.sigmas[-2]
        x = np.linspace(0.5, 2, 4) * first
        exact = x * math.sqrt((0.25 + last**2) / (0.25 + first**2))
        errors.append(np.abs(solve(ours, x, "epsilon") - clean(exact, last)).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 2) < 0.1, (slope, errors)


# --- grids and attributes ---

GRIDS = [
    {},
    LEADING,
    {"timestep_spacing": "trailing"},
    {"beta_schedule": "exp"},
    KARRAS,
    EXPONENTIAL,
    BETA,
    KARRAS | LEADING,
]


def agree(ours, theirs, exact):
    sigma_grids.check_grid(ours, theirs, exact)
    assert ours.state_in_first_order is theirs.state_in_first_order is True


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 25, 999])
def test_grid(config, steps):
    agree(*sigma_grids.three(NAME, config, steps))


@pytest.mark.parametrize("config", GRIDS, ids=str)
@pytest.mark.parametrize("shorter", [1, 20, 700])
def test_grid_over_fewer_training_timesteps(config, shorter):
    steps = min(shorter, 8)
    if steps == shorter == 1 and config.get("steps_offset"):
        return  # a timestep past the part that is asked for
    agree(*sigma_grids.three(NAME, config, steps, num_train_timesteps=shorter))


@pytest.mark.parametrize("config", GRIDS, ids=str)
def test_tables_before_set_timesteps(config):
    """Those of as many steps as training timesteps; an offset past the end of the table repeats its largest sigma."""
    made = sigma_grids.three(NAME, config)
    agree(*made)
    sigma_grids.check_tables(*made, order=2)
    assert made[0].num_inference_steps == 1000


@pytest.mark.parametrize("config", [{}, {"timestep_spacing": "leading", "steps_offset": 1}], ids=str)
def test_steps_before_set_timesteps(config):
    for row in (0, 500, 1996):
        results = []
        for cls in (subject(NAME), original(NAME)):
            scheduler, x = cls(**config), draw(1)
            for t in scheduler.timesteps[row : row + 2]:
                x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
            results.append(x)
        assert (results[0] - results[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("flag", RESPACED)
def test_ends_that_another_class_left_in_the_config(flag):
    """diffusers heeds them; corrected, no class heeds keys of another."""
    assert not np.array_equal(*sigma_grids.check_foreign_ends(NAME, flag, 10.0))


def test_keys_of_other_classes_are_not_heeded():
    """Zero SNR and thresholding travel with a config, and neither class has them; clipping both have."""
    foreign = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "thresholding": True}
    results = []
    for find in (original, subject):
        ddim = find("DDIMScheduler")(**foreign, clip_sample_range=0.5, beta_end=0.015)
        scheduler = find(NAME).from_config(ddim.config, clip_sample=True)
        with quiet():
            scheduler.set_timesteps(5)
        t, x = scheduler.timesteps[0], draw(1)
        results.append((scheduler.sigmas, scheduler.step(draw(2), t, x).pred_original_sample))
    assert np.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert (results[0][1] - results[1][1]).abs().max() <= 1e-6
    assert results[1][1].abs().max() == 0.5


# --- the index ---


@pytest.mark.parametrize("form", sigma_grids.FORMS)
def test_forms_of_a_timestep(form):
    """Integers are timesteps here, not positions; a lookup finds the second of a pair, where a step begins."""
    sigma_grids.check_form(NAME, form, 9)


def test_step_index_counts():
    sigma_grids.check_index(NAME, 4)


def test_outputs():
    sigma_grids.check_outputs(NAME, 4)


def test_constructor_is_that_of_diffusers():
    import inspect

    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (subject(NAME), original(NAME)))
    assert [(p.name, p.default) for p in ours.values()][1:] == [(p.name, p.default) for p in theirs.values()][
        1:
    ]
    for method in ("set_timesteps", "step", "scale_model_input", "add_noise", "index_for_timestep"):
        ours, theirs = (inspect.signature(getattr(cls, method)) for cls in (subject(NAME), original(NAME)))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


# --- the forward process ---


@pytest.mark.parametrize(
    "prepare", [begun(), begun(begin=4), begun(begin=4, taken=4), begun(begin=5), begun(rows=(6,))]
)
@pytest.mark.parametrize("config", [{}, KARRAS, {"timestep_spacing": "leading"}], ids=str)
def test_add_noise(config, prepare):
    trajectories.check_forward(NAME, config, "add_noise", None, prepare)


# --- errors ---


ERRORS = {
    **sigma_grids.ERRORS,
    **sigma_grids.RESPACING_ERRORS,
    "neither": (ValueError, lambda cls: cls().set_timesteps()),
    "both": (ValueError, lambda cls: cls().set_timesteps(2, timesteps=[9, 0])),
    **{
        f"timesteps and {key}": (
            ValueError,
            lambda cls, key=key: cls(**{key: True}).set_timesteps(timesteps=[9, 0]),
        )
        for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    },
    "unknown argument": (TypeError, lambda cls: cls(sigma_min=0.1)),
    "sigmas": (TypeError, lambda cls: cls().set_timesteps(sigmas=[9, 0])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.set_timesteps(0), "num_inference_steps=0"),
        (lambda s: s.set_timesteps(5, num_train_timesteps=0), "num_train_timesteps=0"),
        (
            lambda s: s.set_timesteps(5, num_train_timesteps=1001),
            "num_train_timesteps=1001: expected at most 1000",
        ),
        (lambda s: s.set_timesteps(timesteps=[3, 5]), "timesteps.1.=5.0 is not below"),
        (lambda s: s.set_timesteps(timesteps=[]), "timesteps="),
        (lambda s: s.set_timesteps(timesteps=[1000, 3]), "timesteps="),
        (lambda s: s.set_timesteps(1000), "steps_offset=1"),
    ],
)
def test_levels_refused(call, message):
    """Where diffusers crashes, or repeats levels; nothing is changed."""
    ours = subject(NAME)(timestep_spacing="leading", steps_offset=1)
    ours.set_timesteps(4)
    before = ours.timesteps.tolist(), ours.sigmas.tolist()
    with pytest.raises(ValueError, match=message):
        call(ours)
    assert before == (ours.timesteps.tolist(), ours.sigmas.tolist())


def test_past_the_end():
    """diffusers divides by sigma = 0 there, and returns inf or NaN."""
    ours, x = subject(NAME)(), draw(1)
    ours.set_timesteps(3)
    for t in ours.timesteps:
        x = ours.step(torch.tanh(ours.scale_model_input(x, t)), t, x).prev_sample
    for call in (lambda: ours.step(x, t, x), lambda: ours.scale_model_input(x, t)):
        with pytest.raises(IndexError, match="the schedule's 5 steps are done"):
            call()
    assert ours.step_index == 5 and not ours.state_in_first_order


# --- the harness itself ---


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    trajectories.check_plants(Case(NAME, "harness", 20, DEFAULTS))
    trajectories.check_plants(
        Case(NAME, "harness", 20, DEFAULTS | {"timestep_spacing": "leading", "clip_sample": True} | V)
    )


def test_the_model_of_the_cases_knows_their_levels():
    """This class's betas are not the harness's own defaults."""
    for case in (CASES[0], next(case for case in CASES if case.option.startswith("exp"))):
        ours = subject(NAME)(**case.config)
        alpha, sigma = Denoiser(case.told).level(500)
        assert math.isclose(sigma / alpha, float(ours.schedule.level(500).karras_sigma), rel_tol=1e-9)


def test_arrays_of_two_kinds_agree():
    """The loop of one library is the loop of another, to the last bit."""
    found = []
    for kind in (np.float64, torch.float64):
        ours, x = subject(NAME)(clip_sample=True), like(draw(1).double() * 14, kind)
        ours.set_timesteps(6)
        for t in ours.timesteps:
            x = ours.step(ours.scale_model_input(x, t) * 0.5, t, x).prev_sample
        found.append(np.asarray(x))
    assert np.array_equal(*found)
