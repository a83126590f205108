"""`FlowMatchEulerDiscreteScheduler` beside diffusers' and beside diffusers' in float64, over every option."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import options, sigma_grids, trajectories
from reference.float64_diffusers import float64_class, noise_drawn_in
from reference.options import RESPACED
from reference.sigma_grids import past_the_end
from reference.trajectories import ULP, Case, check_random, draw, original, subject

NAME = "FlowMatchEulerDiscreteScheduler"
MODEL = {"prediction_type": "flow_prediction"}
MU = {"mu": 0.9}
DYNAMIC = {"use_dynamic_shifting": True}
LINEAR = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
STOCHASTIC = {"stochastic_sampling": True}
INVERTED = {"invert_sigmas": True}
RESPACINGS = list(RESPACED.values())
SD3 = {"shift": 3.0}
LTX = {"shift_terminal": 0.1}


over = options.cases_of(NAME, model=MODEL)


def one_at_a_time():
    yield from over("defaults")
    for shift in (0.5, 3.0, 12.0):
        yield from over(f"shift={shift}", config={"shift": shift})
    for config, mu in ((DYNAMIC, 0.0), (DYNAMIC, 1.15), (DYNAMIC, -0.5), (LINEAR, 2.5)):
        yield from over(f"{config}, mu={mu}", config=config, set_timesteps={"mu": mu})
    yield from over("mu without dynamic shifting", set_timesteps=MU)
    # With one step there is nothing to stretch: see test_a_single_step_has_no_terminal.
    for config in (LTX, LTX | SD3):
        yield from over(f"{config}", steps=(2, 5, 20, 50), config=config)
    yield from over("LTX, dynamic", steps=(2, 5, 20, 50), config=LTX | DYNAMIC, set_timesteps=MU)
    for respacing in RESPACINGS:
        for config in ({}, SD3, STOCHASTIC):
            yield from over(f"{respacing | config}", config=respacing | config)
        yield from over(f"{respacing}, dynamic", config=respacing | DYNAMIC, set_timesteps=MU)
    for count in (50, 77):
        yield from over(
            f"num_train_timesteps={count}", steps=(1, 2, 5), config={"num_train_timesteps": count} | SD3
        )
    yield from over("num_train_timesteps=1", steps=(1,), config={"num_train_timesteps": 1})
    for config in (INVERTED, INVERTED | SD3, INVERTED | RESPACINGS[0], INVERTED | STOCHASTIC):
        yield from over(f"{config}", config=config)
    yield from over("stochastic", config=STOCHASTIC)
    yield from over("stochastic, shift, generator list", config=STOCHASTIC | SD3, generators=2)
    yield from over("churn is ignored", step={"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 0.5, "s_noise": 2.0})
    for name, levels in GIVEN.items():
        for config in ({}, SD3, RESPACINGS[0], INVERTED):
            yield from over(f"{name}, {config}", steps=(None,), config=config, set_timesteps=levels)
        yield from over(f"{name}, dynamic", steps=(None,), config=DYNAMIC, set_timesteps=levels | MU)
    yield from over("Flux", steps=(1, 2, 4), config=DYNAMIC | SD3, set_timesteps={"mu": 0.6, "sigmas": None})
    yield from over("both, with N", steps=(3,), config=SD3, set_timesteps=GIVEN["both"])
    yield from over("from the middle", steps=(5, 20, 50), config=SD3, begin=3)
    yield from over("from the middle, stochastic", steps=(5, 20, 50), config=STOCHASTIC, begin=3)
    yield from over("from the middle, inverted", steps=(5, 20, 50), config=INVERTED, begin=3)
    yield from over("N=T", steps=(1000,))
    yield from over("N=T, shift, stochastic", steps=(1000,), config=SD3 | STOCHASTIC)
    yield from over(
        "unused keys", steps=(5,), config={"base_shift": 0.1, "max_shift": 9.0, "base_image_seq_len": 4}
    )


GIVEN = {
    "sigmas": {"sigmas": [1.0, 0.7, 0.25]},
    "one sigma": {"sigmas": [0.6]},
    "repeated sigmas": {"sigmas": [1.0, 0.4, 0.4]},
    "timesteps": {"timesteps": [1000.0, 700.0, 0.03]},
    "both": {"sigmas": [0.98, 0.5, 0.25], "timesteps": [980, 520, 240]},
}
CASES = list(one_at_a_time())


@options.each(CASES)
def test_loop(case):
    trajectories.check_loop(case)


def test_cases_have_names_of_their_own():
    trajectories.check_names(CASES)


@options.each(case for case in CASES if case.steps != 1000)
def test_loop_in_float64(case):
    trajectories.check_float64(case)


@st.composite
def random_cases(draws):
    pick = lambda *values: draws(st.sampled_from(values))
    config = {
        "num_train_timesteps": pick(10, 250, 1000),
        "shift": pick(0.3, 1.0, 3.0, 7.0),
        "use_dynamic_shifting": pick(True, False),
        "time_shift_type": pick("exponential", "linear"),
        "shift_terminal": pick(None, None, 0.02, 0.3),
        "invert_sigmas": pick(True, False),
        "stochastic_sampling": pick(True, False),
    } | pick({}, {}, *RESPACINGS)
    steps = draws(st.integers(1 if config["shift_terminal"] is None else 2, 60))
    given = {"mu": draws(st.floats(0.1, 2.0))}
    count = config["num_train_timesteps"]
    if pick(True, False):
        # Apart in float32 too, where diffusers would otherwise have a level twice.
        levels = st.integers(100, 9900).map(lambda n: n / 10000)
        found = np.sort(draws(st.lists(levels, min_size=steps, max_size=steps, unique=True)))[::-1]
        given |= pick(
            {"sigmas": found}, {"timesteps": found * count}, {"sigmas": found, "timesteps": found * count}
        )
    generators = pick(1, 2)
    return Case(NAME, f"{config} {given}", steps, config, given, generators=generators, model=MODEL)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(random_cases())
def test_random_options(case):
    check_random(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [{}, SD3, INVERTED], ids=str)
def test_half_precision_is_rounded_once(dtype, config):
    trajectories.check_half(Case(NAME, "half", 20, config, model=MODEL), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_in_float32(dtype):
    x, output = draw(1).to(dtype), draw(2).to(dtype)
    results = []
    for cls, kind in ((subject(NAME), dtype), (original(NAME), dtype), (float64_class(NAME), torch.float64)):
        scheduler = cls(**STOCHASTIC)
        scheduler.set_timesteps(9)
        generator = torch.Generator().manual_seed(4)
        with noise_drawn_in(torch.float32):
            t = scheduler.timesteps[4]
            results.append(scheduler.step(output.to(kind), t, x.to(kind), generator=generator).prev_sample)
    ours, theirs, exact = results
    assert ours.dtype == theirs.dtype == dtype
    half = 0.51 * torch.finfo(dtype).eps * exact.abs() + 8 * ULP
    assert ((ours.double() - exact).abs() <= half).all()


# --- tables ---

TABLES = [{}, SD3, DYNAMIC, LTX, INVERTED, *RESPACINGS, {"num_train_timesteps": 10}, STOCHASTIC]


COUNTS = (None, 1, 2, 3, 10, 1000, 4321)


# diffusers stretches a single step to NaN: see test_a_single_step_has_no_terminal.
@pytest.mark.parametrize(
    ("config", "steps"), [(c, n) for c in TABLES for n in COUNTS if not (c is LTX and n == 1)], ids=str
)
def test_tables(config, steps):
    ours, theirs, exact = (cls(**config) for cls in (subject(NAME), original(NAME), float64_class(NAME)))
    if steps is not None:
        for scheduler in (ours, theirs, exact):
            scheduler.set_timesteps(steps, mu=0.7)
        assert ours.num_inference_steps == theirs.num_inference_steps == steps
    for name in ("timesteps", "sigmas"):
        found, wanted = getattr(ours, name), getattr(exact, name)
        assert found.dtype == np.float64 and found.shape == tuple(wanted.shape)
        size = float(wanted.max())
        assert np.allclose(found, wanted, rtol=1e-12, atol=1e-13 * size), name
        # Inverted, 1 - sigma of float32.
        assert np.allclose(found, getattr(theirs, name), rtol=3e-6, atol=1e-7 * size), name
    for name in ("sigma_min", "sigma_max", "shift"):
        assert math.isclose(getattr(ours, name), getattr(exact, name), rel_tol=1e-13), name
    assert len(ours) == len(theirs) == config.get("num_train_timesteps", 1000)
    assert ours.order == theirs.order == 1
    assert ours.step_index is ours.begin_index is theirs.step_index is None


def test_a_torch_device_is_given_tables_of_its_own():
    ours = subject(NAME)(**SD3)
    for device in (torch.device("cpu"), "cpu"):
        ours.set_timesteps(7, device=device)
        assert ours.timesteps.dtype == ours.sigmas.dtype == torch.float32
        assert len(ours.sigmas) == 8 and ours.sigmas[-1] == 0


def test_only_what_diffusers_has():
    ours, theirs = subject(NAME)(), original(NAME)()
    for name in (
        "add_noise",
        "init_noise_sigma",
        "scale_model_input",
        "alphas_cumprod",
        "betas",
        "get_velocity",
    ):
        assert not hasattr(ours, name) and not hasattr(theirs, name), name
    assert ours.num_inference_steps is None


def test_set_shift_keeps_the_ends():
    """diffusers takes sigma_min and sigma_max in the constructor only."""
    both = [cls(shift=3.0) for cls in (subject(NAME), float64_class(NAME))]
    for scheduler in both:
        scheduler.set_shift(0.5)
        scheduler.set_timesteps(6)
    ours, exact = both
    assert ours.shift == exact.shift == 0.5 and ours.config.shift == exact.config.shift == 3.0
    assert np.allclose(ours.sigmas, exact.sigmas, rtol=1e-13)
    assert math.isclose(ours.sigma_min, exact.sigma_min) and ours.sigma_min == 3 / 1002
    right = ours.corrected("flow-shifted-twice")
    assert right.shift == 0.5
    right.set_timesteps(6)
    base = np.linspace(1, 1e-3, 6)
    assert np.allclose(right.sigmas[:-1], 0.5 * base / (1 - 0.5 * base), rtol=1e-14)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_time_shift(kind, power):
    t = np.linspace(0.01, 0.99, 9)
    both = [cls(time_shift_type=kind) for cls in (subject(NAME), original(NAME))]
    for values in (t, torch.from_numpy(t), 0.25):
        ours, theirs = (scheduler.time_shift(0.8, power, values) for scheduler in both)
        assert type(ours) is type(theirs)
        assert np.allclose(ours, theirs, rtol=1e-14)
    ends = both[0].time_shift(0.8, power, np.asarray([0.0, 1.0]))  # diffusers divides by 0 at 0
    assert ends.tolist() == [0.0, 1.0]


def test_stretch_shift_to_terminal():
    t = np.linspace(1, 0.3, 9)
    ours, theirs = subject(NAME)(**LTX), original(NAME)(**LTX)
    for values in (t, torch.from_numpy(t)):
        assert np.allclose(
            ours.stretch_shift_to_terminal(values), theirs.stretch_shift_to_terminal(values), rtol=1e-14
        )
    assert type(ours.stretch_shift_to_terminal(torch.from_numpy(t))) is torch.Tensor
    with pytest.raises(ValueError, match="shift_terminal=None"):
        subject(NAME)().stretch_shift_to_terminal(t)


def test_a_single_step_has_no_terminal():
    """diffusers gives NaN: pure noise cannot be stretched."""
    theirs = original(NAME)(**LTX)
    with np.errstate(invalid="ignore"):
        theirs.set_timesteps(1)
    assert theirs.sigmas[0].isnan()
    with pytest.raises(ValueError, match="cannot be stretched"):
        subject(NAME)(**LTX).set_timesteps(1)


# --- noise on data ---


@pytest.mark.parametrize("config", [{}, SD3, INVERTED], ids=str)
@pytest.mark.parametrize("begin", [None, 2])
@pytest.mark.parametrize("stepped", [False, True])
def test_scale_noise(config, begin, stepped):
    clean, noise = draw(1), draw(2)
    results = []
    kinds = [
        (subject(NAME), torch.float32),
        (original(NAME), torch.float32),
        (float64_class(NAME), torch.float64),
    ]
    kinds += [(subject(NAME), torch.float64), (subject(NAME), torch.bfloat16)]
    for cls, kind in kinds:
        scheduler = cls(**config)
        scheduler.set_timesteps(8)
        if begin is not None:
            scheduler.set_begin_index(begin)
        if stepped:
            scheduler.step(clean, scheduler.timesteps[3], clean)
        times = scheduler.timesteps[[5, 1]]
        results.append(scheduler.scale_noise(clean.to(kind), torch.as_tensor(times), noise.to(kind)))
        assert results[-1].dtype == kind
    ours, theirs, exact, wide, low = results
    assert (wide - exact).abs().max() <= 1e-13
    assert (ours - exact).abs().max() <= 1.05 * (theirs - exact).abs().max() + 2 * ULP
    assert (low - exact).abs().max() <= 2.0**-7 * exact.abs().max()


def test_scale_noise_takes_what_training_gives_it():
    clean, noise = draw(1), draw(2)
    ours = subject(NAME)(**SD3)
    rows = [17, 900]
    exact = float64_class(NAME)(**SD3)
    wanted = exact.scale_noise(clean.double(), exact.timesteps[rows], noise.double())
    found = ours.scale_noise(clean, torch.as_tensor(ours.timesteps[rows]), noise)
    assert (found - wanted).abs().max() <= 1e-6
    for t in (ours.timesteps[17], float(ours.timesteps[17]), [ours.timesteps[17]]):
        one = ours.scale_noise(clean, t, noise)
        assert torch.equal(one[0], found[0])
    with pytest.raises(TypeError, match="noise=None"):
        ours.scale_noise(clean, ours.timesteps[:1])
    with pytest.raises(IndexError, match="timestep="):
        ours.scale_noise(clean, torch.tensor([0.123]), noise)


# --- a level for each token ---


def token_inputs(steps, seed=5):
    """A batch of sequences whose tokens stand at other levels, among them clean and between two levels."""
    rng = np.random.default_rng(seed)
    levels = rng.choice(np.append(np.linspace(0, 1, steps + 1), [0.333, 0.05]), size=(2, 6)) * 1000
    x, output = draw(1, shape=(2, 6, 3)), draw(2, shape=(2, 6, 3))
    return torch.from_numpy(levels).float(), x, output


TOKENS = [{}, SD3, STOCHASTIC, INVERTED, INVERTED | STOCHASTIC, RESPACINGS[0]]


@pytest.mark.parametrize("config", TOKENS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_per_token(config, steps):
    times, x, output = token_inputs(steps)
    runs = []
    kinds = [
        (subject(NAME), torch.float32),
        (original(NAME), torch.float32),
        (float64_class(NAME), torch.float64),
    ]
    for cls, kind in [*kinds, (subject(NAME), torch.float64)]:
        scheduler = cls(**config)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(3)
        state, told, run = x.to(kind), times.to(kind), []
        for t in scheduler.timesteps:
            with noise_drawn_in(
                torch.float64 if cls is subject(NAME) and kind is torch.float64 else torch.float32
            ):
                options = {"generator": generator, "per_token_timesteps": told}
                state = scheduler.step(output.to(kind), t, state, **options).prev_sample
            run.append(state)
            told = told * 0.7  # tokens go down on their own, past the table's end too
        runs.append(torch.stack(run))
        assert scheduler.step_index == steps and state.dtype == kind
    ours, theirs, exact, wide = runs
    size = float(exact.abs().max())
    mine, yours = (float((run - exact).abs().max()) / size for run in (ours, theirs))
    assert (ours - theirs).abs().max() <= 1e-5 * size
    assert mine <= 1.05 * yours + (4 + math.sqrt(steps)) * ULP
    if not config.get("stochastic_sampling"):
        assert (wide - exact).abs().max() <= 1e-12 * size


def test_per_token_goes_past_the_last_step():
    """Tokens know their levels: diffusers counts the index on, and looks at nothing else."""
    times, x, output = token_inputs(3)
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        scheduler.set_timesteps(3)
        for _ in range(5):
            out = scheduler.step(
                output, float(scheduler.timesteps[0]), x, per_token_timesteps=times
            ).prev_sample
        assert scheduler.step_index == 5
        with pytest.raises(IndexError):
            scheduler.step(output, float(scheduler.timesteps[0]), out)


@pytest.mark.parametrize("config", [{}, SD3, LTX], ids=str)
def test_tokens_of_one_level_step_as_the_sample_does(config):
    """All tokens at t: the step of the sample, with the sign that the output has to have."""
    _, x, output = token_inputs(5)
    ours = subject(NAME)(**config)
    right = ours.corrected("flow-per-token-sign")
    for scheduler in (ours, right):
        scheduler.set_timesteps(5, device=torch.device("cpu"))
    for index, t in enumerate(ours.timesteps):
        for shape in ((2, 6), (2, 1), (6,)):
            told = t.expand(shape)
            runs = []
            for scheduler, sign in ((ours, -1), (right, 1)):
                scheduler.set_timesteps(5, device=torch.device("cpu"))
                scheduler.set_begin_index(index)
                runs.append(scheduler.step(sign * output, t, x, per_token_timesteps=told).prev_sample)
            scheduler.set_timesteps(5, device=torch.device("cpu"))
            scheduler.set_begin_index(index)
            wanted = scheduler.step(output, t, x).prev_sample
            assert torch.equal(*runs)
            assert (runs[0] - wanted).abs().max() <= 4 * ULP * wanted.abs().max()


@pytest.mark.parametrize("config", [{}, SD3, STOCHASTIC, INVERTED, INVERTED | STOCHASTIC], ids=str)
def test_corrected_tokens_run_as_if_each_were_alone(config):
    """A token at a level of the schedule goes its whole way, and its neighbours make no difference."""
    steps, starts = 6, [0, 2, 5, 3]
    x = draw(1, shape=(1, 4, 3)).double()
    field = lambda x, u: torch.tanh(x + 0.3 * u) - 0.2
    sign = -1.0 if config.get("invert_sigmas") else 1.0
    right = subject(NAME)(**config).corrected()
    right.set_timesteps(steps)
    times = np.append(right.timesteps, 1000.0 if config.get("invert_sigmas") else 0.0)
    noises = [draw(50 + i, torch.float64, (1, 4, 3)) for i in range(steps)]
    together, position = x, np.asarray(starts)
    for i in range(steps):
        told = torch.from_numpy(times[np.minimum(position, steps)])[None]
        level = told[..., None] / 1000
        output = sign * field(together, 1 - level if sign < 0 else level)
        drawn = Drawn(noises[i]) if config.get("stochastic_sampling") else None
        options = {"generator": drawn, "per_token_timesteps": told}
        together = right.step(output, float(times[0]), together, **options).prev_sample
        position = position + 1
    for token, start in enumerate(starts):
        alone = x[:, token : token + 1]
        right.set_timesteps(steps)
        right.set_begin_index(start)
        for i, t in enumerate(right.timesteps[start:]):
            output = sign * field(alone, 1 - t / 1000 if sign < 0 else t / 1000)
            drawn = Drawn(noises[i][:, token : token + 1]) if config.get("stochastic_sampling") else None
            alone = right.step(output, t, alone, generator=drawn).prev_sample
        if config.get("stochastic_sampling"):
            # A token that has arrived stays where it is: x - 0 v, and no noise at level 0.
            assert steps - start == i + 1
        assert (together[:, token] - alone[:, 0]).abs().max() <= 1e-12


class Drawn(np.random.Generator):
    """A generator whose next draw is given."""

    def __init__(self, noise):
        super().__init__(np.random.PCG64(0))
        self.noise = noise.numpy()

    def standard_normal(self, size=None, dtype=None, out=None):
        assert tuple(size) == self.noise.shape
        return self.noise.astype(dtype)


TOKEN_ERRORS = {
    "too many tokens": (ValueError, lambda x: np.zeros((2, 7)), r"per_token_timesteps has shape \(2, 7\)"),
    "too many axes": (ValueError, lambda x: np.zeros((2, 6, 3)), "per_token_timesteps has shape"),
    "no array": (TypeError, lambda x: 3.0, "per_token_timesteps is a"),
}


@pytest.mark.parametrize("what", TOKEN_ERRORS)
def test_token_errors_change_nothing(what):
    error, make, message = TOKEN_ERRORS[what]
    _, x, output = token_inputs(3)
    ours = subject(NAME)()
    ours.set_timesteps(3)
    with pytest.raises(error, match=message):
        ours.step(output, ours.timesteps[0], x, per_token_timesteps=make(x))
    with pytest.raises(ValueError, match="model_output"):
        ours.step(output[:, :5], ours.timesteps[0], x, per_token_timesteps=np.zeros((2, 6)))
    assert ours.step_index is None


# --- corrections ---


def test_corrected_grid_is_shifted_once():
    for shift, steps in ((3.0, 4), (12.0, 7), (0.5, 1)):
        right = subject(NAME)(shift=shift).corrected("flow-shifted-twice")
        right.set_timesteps(steps)
        u = np.linspace(1, 1e-3, steps)
        assert np.allclose(right.sigmas[:-1], shift * u / (1 + (shift - 1) * u), rtol=1e-14)
    plain, right = subject(NAME)(), subject(NAME)().corrected()
    for scheduler in (plain, right):
        scheduler.set_timesteps(9)
    assert np.array_equal(plain.sigmas, right.sigmas)


def test_corrected_custom_timesteps_are_the_levels():
    given = [1000, 700, 0.03]
    right = subject(NAME)(**SD3, use_karras_sigmas=True).corrected("flow-custom-timesteps")
    right.set_timesteps(timesteps=given)
    assert right.timesteps.tolist() == given and np.allclose(right.sigmas, [1, 0.7, 3e-5, 0], rtol=1e-15)
    right.set_timesteps(timesteps=given, sigmas=[1, 0.9, 0.5])
    assert right.timesteps.tolist() == given and right.sigmas[1] != 0.7


def test_timesteps_without_sigmas_are_warned_of(caplog):
    ours = subject(NAME)()
    ours.set_timesteps(timesteps=[500.0])
    assert "given without sigmas" in caplog.text
    caplog.clear()
    ours.set_timesteps(timesteps=[500.0], sigmas=[0.5])
    ours.set_timesteps(3)
    assert not caplog.text


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_corrected_inversion_changes_only_names(steps):
    """Inverted sigmas say the same levels, and their model's output is negated: nothing else differs."""
    for config in (SD3, SD3 | STOCHASTIC):
        plain, inverted = (
            subject(NAME)(**config),
            subject(NAME)(**config, **INVERTED).corrected("flow-inverted"),
        )
        x, y = draw(1).double(), draw(1).double()
        for scheduler in (plain, inverted):
            scheduler.set_timesteps(steps)
        for t, s in zip(plain.timesteps, inverted.timesteps, strict=True):
            assert math.isclose(t, 1000 - s, abs_tol=1e-9)
            assert (plain.scale_noise(x, t, y) - inverted.scale_noise(x, s, y)).abs().max() <= 1e-14
            drawn = (
                [np.random.default_rng(2) for _ in range(2)]
                if "stochastic_sampling" in config
                else [None] * 2
            )
            x = plain.step(torch.tanh(x), t, x, generator=drawn[0]).prev_sample
            y = inverted.step(-torch.tanh(y), s, y, generator=drawn[1]).prev_sample
            assert (x - y).abs().max() <= 1e-13
    again = subject(NAME)(**INVERTED).corrected("flow-inverted")
    assert again.sigmas[0] == 0 and again.timesteps[-1] == 999  # also before set_timesteps
    again.set_timesteps(timesteps=[3, 600])
    assert again.timesteps.tolist() == [3, 600] and np.allclose(again.sigmas, [0.003, 0.6, 1], rtol=1e-15)


def test_inverted_and_stochastic_ends_in_noise_in_diffusers():
    """Why the correction is needed."""
    runs = []
    for scheduler in (subject(NAME)(**INVERTED, **STOCHASTIC), original(NAME)(**INVERTED, **STOCHASTIC)):
        scheduler.set_timesteps(4)
        generator = torch.Generator().manual_seed(1)
        x = draw(1)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x, generator=generator).prev_sample
        runs.append(x)
    generator = torch.Generator().manual_seed(1)
    last = [torch.randn(x.shape, generator=generator) for _ in range(4)][-1]
    assert (runs[0] - last).abs().max() <= 1e-6 and (runs[1] - last).abs().max() <= 1e-6


FOREIGN = {"sigma_min": 0.1, "sigma_max": 0.8}


@pytest.mark.parametrize("respacing", RESPACINGS, ids=str)
def test_foreign_ends(respacing):
    both = [cls.from_config({**respacing, **FOREIGN}) for cls in (subject(NAME), original(NAME))]
    for scheduler in both:
        scheduler.set_timesteps(5)
    ours, theirs = both
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-6) and math.isclose(ours.sigmas[0], 0.8)
    right = ours.corrected("foreign-ends")
    right.set_timesteps(5)
    assert right.sigmas[0] == 1
    with pytest.raises(ValueError, match=r"expected numbers in \[0, 1\]"):
        subject(NAME).from_config({**respacing, "sigma_min": 0.1, "sigma_max": 80.0}).set_timesteps(5)


# --- the index, outputs, errors ---


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_index(device):
    ours, theirs = subject(NAME)(), original(NAME)()
    ours.set_timesteps(1000, device=device)
    theirs.set_timesteps(1000)
    assert [ours.index_for_timestep(t) for t in ours.timesteps] == list(range(1000))
    assert ours.index_for_timestep(ours.timesteps[3], ours.timesteps) == 3
    for scheduler in (ours, theirs):
        x, t = draw(1), scheduler.timesteps[7]
        scheduler.step(x, t, x)
        assert (scheduler.step_index, scheduler.begin_index) == (8, None)
        scheduler.set_timesteps(10)
        assert scheduler.step_index is None
        scheduler.set_begin_index(4)
        scheduler.step(x, t, x)
        assert (scheduler.step_index, scheduler.begin_index) == (5, 4)
        scheduler.set_timesteps(sigmas=[1.0, 1.0, 0.5])
        assert scheduler.index_for_timestep(1000.0) == 1  # the second of two


def test_steps_before_set_timesteps_go_down_the_training_levels():
    x, output = draw(1), draw(2)
    ours, theirs = subject(NAME)(**SD3), original(NAME)(**SD3)
    for _ in range(3):
        pair = [s.step(output, s.timesteps[600], x).prev_sample for s in (ours, theirs)]
        assert (pair[0] - pair[1]).abs().max() <= 1e-6
    last = subject(NAME)(**SD3)
    assert len(last.sigmas) == 1000  # and the last step goes to 0, which is an IndexError in diffusers
    moved = last.step(output, last.timesteps[999], x).prev_sample
    assert (moved - (x - 3 / 1002 * output)).abs().max() <= 1e-6


def test_outputs():
    sigma_grids.check_outputs(NAME, 3, "FlowMatchEulerDiscreteSchedulerOutput", keys=["prev_sample"])


def stepped(scheduler, t):
    scheduler.set_timesteps(3)
    scheduler.step(draw(1), t, draw(2))


ERRORS = {
    "a timestep that is not of the grid": (IndexError, lambda cls: stepped(cls(), 0.123456)),
    "index_for_timestep": (IndexError, lambda cls: cls().index_for_timestep(12.3)),
    "an integer timestep": (ValueError, lambda cls: stepped(cls(), 1000)),
    "an integer tensor": (ValueError, lambda cls: stepped(cls(), torch.tensor(1000))),
    "past the end": (IndexError, lambda cls: past_the_end(cls())),
    "unknown argument": (TypeError, lambda cls: cls(beta_start=0.1)),
    "mu is missing": (ValueError, lambda cls: cls(use_dynamic_shifting=True).set_timesteps(3)),
    "lengths differ": (ValueError, lambda cls: cls().set_timesteps(sigmas=[1.0], timesteps=[1000.0, 2.0])),
    "N and sigmas": (ValueError, lambda cls: cls().set_timesteps(3, sigmas=[1.0, 0.5])),
    "N and timesteps": (ValueError, lambda cls: cls().set_timesteps(3, timesteps=[1000.0, 500.0])),
    "two respacings": (ValueError, lambda cls: cls(use_karras_sigmas=True, use_beta_sigmas=True)),
    "time_shift_type": (ValueError, lambda cls: cls(time_shift_type="cosine")),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    trajectories.check_error(NAME, *ERRORS[what])


REFUSED = {
    "nothing": ({}, {}, "none of them"),
    "0 steps": ({}, {"num_inference_steps": 0}, "num_inference_steps=0"),
    "a fraction": ({}, {"num_inference_steps": 2.5}, "num_inference_steps=2.5"),
    "ascending": ({}, {"sigmas": [0.5, 1.0]}, "noisiest first"),
    "above 1": ({}, {"sigmas": [1.5, 1.0]}, r"in \[0, 1\]"),
    "NaN": ({}, {"sigmas": [1.0, math.nan]}, "sigmas="),
    "empty": ({}, {"timesteps": []}, "timesteps="),
    "a table": ({}, {"timesteps": [[1.0]]}, "timesteps="),
    "mu": (LINEAR, {"num_inference_steps": 3, "mu": -1.0}, "shift=-1.0"),
    "exponential to 0": (RESPACINGS[1], {"sigmas": [1.0, 0.0]}, "sigma_min=0.0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_levels_refused(what):
    config, arguments, message = REFUSED[what]
    ours = subject(NAME)(**config)
    ours.set_timesteps(4, mu=1.0)
    ours.step(draw(1), ours.timesteps[0], draw(1))
    before = ours.sigmas.copy()
    with pytest.raises(ValueError, match=message):
        ours.set_timesteps(**{"mu": 1.0} | arguments)
    assert np.array_equal(ours.sigmas, before) and ours.step_index == 1 and ours.num_inference_steps == 4


@pytest.mark.parametrize(
    "config",
    [{"shift": 0.0}, {"shift": None}, {"shift": "3"}, {"num_train_timesteps": 0}, {"invert_sigmas": "no"}],
    ids=str,
)
def test_configs_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        subject(NAME)(**config)
    if "shift" in config:
        with pytest.raises(ValueError, match="shift"):
            subject(NAME)().set_shift(config["shift"])
        subject(NAME)(**config, **DYNAMIC)  # not used there


def test_a_level_without_noise_changes_nothing():
    """A needless model call, as diffusers makes it."""
    x, output = draw(1), draw(2)
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        scheduler.set_timesteps(sigmas=[0.5, 0.0])
        middle = scheduler.step(output, scheduler.timesteps[0], x).prev_sample
        assert torch.equal(scheduler.step(output, scheduler.timesteps[1], middle).prev_sample, middle)


def test_a_replaced_config_counts():
    ours = subject(NAME)()
    ours._internal_dict = {**ours.config, "shift": 3.0}
    assert ours.shift == 3.0 and math.isclose(ours.sigmas[-1], 3 / 1002)
    with pytest.raises(ValueError, match="shift"):
        ours._internal_dict = {**ours.config, "shift": -1.0}
    assert ours.config.shift == 3.0


def test_harness_passes_what_is_equal_and_fails_what_is_not():
    for config in ({}, STOCHASTIC):
        trajectories.check_plants(Case(NAME, "harness", 20, config, model=MODEL))
