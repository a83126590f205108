"""`RePaintScheduler` beside diffusers' and beside diffusers' in float64, over every option, in the RePaint pipeline's loop."""

import contextlib
import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
import torch

from reference.float64_diffusers import float64_class, noise_drawn_in
from reference.trajectories import ULP, Denoiser, draw, original, quiet, subject

NAME = "RePaintScheduler"
STEPS = (1, 2, 5, 20, 50)
MASK = torch.arange(16).reshape(1, 1, 4, 4) % 3 != 0


@dataclass(frozen=True)
class Loop:
    option: str
    steps: int
    config: dict = field(default_factory=dict)
    jumps: dict = field(default_factory=lambda: {"jump_length": 3, "jump_n_sample": 2})
    generators: int = 1
    mask: torch.Tensor = MASK

    @property
    def id(self):
        return f"{self.option}-{self.steps}"


class Run(NamedTuple):
    states: list
    estimates: list
    scales: list
    """What an error of each state is relative to."""


def drive(cls, loop, kind=torch.float32, drawn_in=torch.float32, device="cpu", rounded=False):
    """The pipeline's loop; `rounded` passes what goes between model and scheduler through float32."""
    through = (lambda array: array.float().to(kind)) if rounded else lambda array: array
    scheduler, model = cls(**loop.config), Denoiser(loop.config)
    scheduler.set_timesteps(loop.steps, **loop.jumps, device=device)
    generators = [torch.Generator().manual_seed(10 + row) for row in range(loop.generators)]
    generator = generators if loop.generators > 1 else generators[0]
    x, picture, mask = draw(0, drawn_in).to(kind), torch.tanh(draw(1).double()).to(kind), loop.mask.to(kind)
    run, size = Run([x.double()], [], [float(x.abs().max())]), lambda array: float(array.abs().max())
    last = int(scheduler.timesteps[0]) + 1
    for t in scheduler.timesteps:
        before = size(x)
        if t < last:
            output = through(model(x.double(), float(t)).to(kind))
            out = scheduler.step(output, t, x, picture, mask, generator)
            x = through(out.prev_sample)
            run.estimates.append(out.pred_original_sample.double())
            behind = int(t) - scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps
            alpha = model.level(behind)[0] if behind >= 0 else 1.0
            grows = 1.0 if loop.config.get("clip_sample", True) else alpha / model.level(int(t))[0]
            run.scales.append(max(before * grows, size(x)))
        else:
            x = through(scheduler.undo_step(x, last, generator))
            run.scales.append(max(before, size(x)))
        run.states.append(x.double())
        last = int(t)
    return run


def distance(one, other, reference):
    assert len(one.states) == len(other.states) == len(reference.states)
    states = [
        float((a - b).abs().max()) / scale
        for a, b, scale in zip(one.states, other.states, reference.scales, strict=True)
    ]
    return float(np.max(states))  # not `max`, which passes over NaN


def oracle(loop, drawn_in=torch.float32, rounded=False):
    with quiet(), noise_drawn_in(drawn_in):
        return drive(float64_class(NAME), loop, torch.float64, drawn_in, rounded=rounded)


def figures(loop):
    """Distances: ours to diffusers, ours to the oracle, diffusers' to the oracle."""
    reference, mine = oracle(loop), drive(subject(NAME), loop)
    with quiet():
        theirs = drive(original(NAME), loop)
    return (
        distance(mine, theirs, reference),
        distance(mine, reference, reference),
        distance(theirs, reference, reference),
    )


def loops():
    for eta, clipped in itertools.product((0.0, 0.5, 1.0), (True, False)):
        for steps in STEPS:
            yield Loop(f"eta={eta}, clip_sample={clipped}", steps, {"eta": eta, "clip_sample": clipped})
    for steps in STEPS:
        for schedule in ("scaled_linear", "squaredcos_cap_v2", "sigmoid"):
            yield Loop(schedule, steps, {"beta_schedule": schedule, "eta": 0.5})
        yield Loop("beta_end", steps, {"beta_start": 0.00085, "beta_end": 0.012})
        yield Loop("num_train_timesteps=70", steps, {"num_train_timesteps": 70, "beta_end": 0.2, "eta": 1.0})
        trained = np.geomspace(2e-4, 0.09, 100)  # of which diffusers keeps the dtype
        yield Loop("trained_betas", steps, {"trained_betas": trained, "num_train_timesteps": 100})
        yield Loop("defaults", steps, jumps={})
        yield Loop("no jump", steps, jumps={"jump_length": 5, "jump_n_sample": 1})
        yield Loop("never jump", steps, jumps={"jump_length": 5, "jump_n_sample": 0})
        yield Loop("two generators", steps, {"eta": 0.5}, generators=2)
        yield Loop("soft mask", steps, {"eta": 1.0}, mask=torch.linspace(0, 1, 16).reshape(4, 4))
    yield Loop(
        "more steps than trained",
        200,
        {"num_train_timesteps": 20, "beta_end": 0.3},
        {"jump_length": 5, "jump_n_sample": 3},
    )
    yield Loop("N=T", 1000, {"eta": 1.0}, {"jump_length": 10, "jump_n_sample": 1})


LOOPS = list(loops())
# Here diffusers itself is 1.1e-5 to 2.2e-5 from the oracle: it sums T // N noises in float32 onto the sample, and 1 - abar
# keeps four digits in float32 at small t, which the runs with many jumps or steps visit most.
LOOSER = {"eta=0.0, clip_sample=True-20": 2e-5, "defaults-20": 2e-5, "sigmoid-50": 3e-5, "N=T-1000": 3e-5}


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.id)
def test_loop(loop):
    apart, ours, theirs = figures(loop)
    reference = oracle(loop)
    allowed = 1.05 * theirs + (4 + math.sqrt(len(reference.states))) * ULP
    if (
        ours > allowed
    ):  # where the loop magnifies rounding: eight times what rounding its arrays costs the oracle
        allowed = 8 * distance(oracle(loop, rounded=True), reference, reference) + 4 * ULP
    assert ours <= allowed
    assert apart <= LOOSER.get(loop.id, 1e-5)


def test_ids():
    assert len({loop.id for loop in LOOPS}) == len(LOOPS)
    assert {loop.id for loop in LOOPS} >= LOOSER.keys()


@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop.steps == 20], ids=lambda loop: loop.id)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_loop_in_float64(loop, device):
    reference = oracle(loop, torch.float64)
    mine = drive(subject(NAME), loop, torch.float64, torch.float64, device)
    assert distance(mine, reference, reference) <= 1e-12
    for one, other in zip(mine.estimates, reference.estimates, strict=True):
        assert (one - other).abs().max() <= 1e-12 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("spoil", [1 + 1e-4, math.nan])
def test_the_harness_notices(spoil):
    class Planted(original(NAME)):
        def undo_step(self, *args, **kwargs):
            return super().undo_step(*args, **kwargs) * spoil

    loop = next(loop for loop in LOOPS if loop.id == "eta=0.5, clip_sample=True-20")
    with quiet():
        spoiled, theirs = drive(Planted, loop), drive(original(NAME), loop)
    assert distance(theirs, oracle(loop), oracle(loop)) <= 1e-5
    assert not distance(spoiled, theirs, oracle(loop)) <= 1e-5


@pytest.mark.parametrize(
    "jumps", [{}, {"jump_length": 1}, {"jump_length": 7, "jump_n_sample": 3}, {"jump_n_sample": 1}]
)
def test_timesteps(jumps):
    ours, theirs = subject(NAME)(), original(NAME)()
    for steps in (1, 2, 3, 9, 10, 11, 20, 21, 61, 250, 999, 1000, 1001):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(steps, **jumps)
        assert np.array_equal(ours.timesteps, theirs.timesteps.numpy())
        assert ours.num_inference_steps == theirs.num_inference_steps


def test_attributes():
    ours, theirs = subject(NAME)(eta=0.3), original(NAME)(eta=0.3)
    assert len(ours) == len(theirs) == 1000
    assert ours.order == theirs.order == ours.init_noise_sigma == theirs.init_noise_sigma == 1
    assert ours.eta == theirs.eta == 0.3
    assert np.array_equal(ours.timesteps, theirs.timesteps)
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-6), name
    config = lambda scheduler: {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert config(ours) == config(theirs)


def test_outputs():
    x, output = draw(1), draw(2)
    results = []
    for cls in (subject(NAME), original(NAME)):
        scheduler = cls()
        scheduler.set_timesteps(20)
        call = lambda **rest: scheduler.step(
            output, 500, x, x, MASK.float(), torch.Generator().manual_seed(1), **rest
        )
        results.append((call(), call(return_dict=False), scheduler.scale_model_input(x, 500)))
    (got, plain, same), (expected, theirs, _) = results
    assert type(got).__name__ == type(expected).__name__ == "RePaintSchedulerOutput"
    assert list(got.keys()) == list(expected.keys()) == ["prev_sample", "pred_original_sample"]
    assert isinstance(plain, tuple) and len(plain) == len(theirs) == 2 and same is x
    for one, two in zip((*got.to_tuple(), *plain), (*expected.to_tuple(), *theirs), strict=True):
        assert (one - two).abs().max() <= 1e-5 * max(1.0, float(two.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_farther_from_the_oracle_than_diffusers(dtype):
    """A step rounds the two parts once each, an undo once."""
    x, output = draw(1).to(dtype), draw(2).to(dtype)
    results = []
    for who, kind in ((float64_class(NAME), torch.float64), (original(NAME), dtype), (subject(NAME), dtype)):
        with noise_drawn_in(dtype) if kind is torch.float64 else contextlib.nullcontext(), quiet():
            scheduler = who(eta=0.7)
            scheduler.set_timesteps(20)
            generator = torch.Generator().manual_seed(1)
            one = scheduler.step(
                output.to(kind), 500, x.to(kind), x.to(kind), MASK.to(kind), generator
            ).prev_sample
            results.append((one, scheduler.undo_step(x.to(kind), 500, generator)))
    for exact, theirs, ours in zip(*results, strict=True):
        assert ours.dtype == dtype
        error, other = ((found.double() - exact).abs().max() for found in (ours, theirs))
        assert error <= 0.51 * torch.finfo(dtype).eps * 2 ** math.ceil(math.log2(exact.abs().max()))
        assert error <= other


ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "jump_length=0": (ValueError, lambda cls: cls().set_timesteps(10, jump_length=0)),
    "add_noise": (NotImplementedError, lambda cls: cls().add_noise(draw(1), draw(2), torch.tensor([1, 2]))),
    "unknown argument": (TypeError, lambda cls: cls(prediction_type="epsilon")),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    error, act = ERRORS[what]
    for cls in (original(NAME), subject(NAME)):
        with pytest.raises(error), quiet():
            act(cls)
