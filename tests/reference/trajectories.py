"""Whole sampling loops of a scheduler beside diffusers' and beside diffusers' in float64, and their distance.

    python tests/reference/trajectories.py [--each] [--against diffusers]

prints, as a Markdown table, how far each facade is from diffusers and from the float64 oracle, and how far
diffusers itself is from it. `--each` has one row per number of steps; `--against diffusers` puts diffusers in our
place, which shows what the harness measures when nothing differs.

The model is the exact denoiser of a known distribution: each element is drawn from
1/2 N(-m, s^2) + 1/2 N(m, s^2). It is computed in float64 from what the scheduler gives it, the scaled sample and
the timestep, then cast: what remains between two runs is the scheduler's.

**Distance.** Errors are relative to the largest number that entered the step. In variance-exploding terms, where
states are x / alpha and a rounding error keeps its size, that is the step's input; an error in the estimate of x_0
counts in the same unit where the model predicts the noise (x_0 = x/alpha - sigma/alpha * noise), else in its own.
A trajectory that begins at sigma = 157 and ends near 1 is so compared to seven digits at both ends.
"""

import argparse
import contextlib
import fnmatch
import importlib
import inspect
import math
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reference.float64_diffusers import float64_class, noise_drawn_in

SUBJECT = "anystep"  # the implementation under test; "diffusers" runs diffusers against itself
MEAN, STD = 0.8, 0.3
SHAPE = (2, 3, 4, 4)
ULP = float(torch.finfo(torch.float32).eps)


def subject(name, package=None):
    """The scheduler class under test."""
    return getattr(importlib.import_module(package or SUBJECT), name)


def original(name):
    """diffusers' class of that name."""
    return getattr(importlib.import_module("diffusers"), name)


def takes_generator(name):
    """Whether diffusers' step does."""
    return "generator" in inspect.signature(original(name).step).parameters


@dataclass(frozen=True)
class Case:
    """One loop: a scheduler, its configuration, and how it is run."""

    scheduler: str
    option: str
    steps: int | None
    config: dict = field(default_factory=dict)
    set_timesteps: dict = field(default_factory=dict)
    step: dict = field(default_factory=dict)
    begin: int = 0
    indexed: bool = False  # whether set_begin_index is called at 0 too, as some pipelines do
    generators: int = 1  # one torch.Generator, or a list of one per sample
    variance_noise: bool = False
    oracle: dict = field(default_factory=dict)  # configuration in which diffusers says what it means to say
    model: dict = field(default_factory=dict)  # what the model is beyond the configuration

    @property
    def id(self):
        return f"{self.option}-{self.steps or 'custom'}"

    @property
    def alone(self):
        """Whether diffusers itself has no answer (NaN), and the oracle gets there by another configuration."""
        learned = self.scheduler.startswith("DDPM") and self.config.get("variance_type") == "learned"
        return bool(self.oracle) or learned

    @property
    def draws(self):
        """Whether a step needs noise."""
        always = self.scheduler.startswith(("DDPM", "EulerAncestral"))
        stochastic = bool(self.config.get("stochastic_sampling"))
        stochastic = stochastic or str(self.config.get("algorithm_type")).startswith("sde")
        return always or stochastic or bool({"eta", "s_churn"} & self.step.keys())

    @property
    def told(self):
        """What the model is made from."""
        return self.config | self.model

    @property
    def prediction(self):
        return self.told.get("prediction_type", "epsilon")

    @property
    def amplifies(self):
        """Whether a step takes sigma / alpha times the noise from x / alpha."""
        return self.prediction == "epsilon" or not self.config.get("predict_x0", True)

    @property
    def explodes(self):
        """Whether states are x / alpha."""
        return self.scheduler.startswith(("Euler", "Heun", "LMS"))

    @property
    def returns(self):
        """Whether every second call starts again from the sample of the call before."""
        return self.scheduler.startswith("Heun")

    @property
    def fractional(self):
        """Whether timesteps are no integers."""
        return self.explodes or self.scheduler.startswith(("IPNDM", "FlowMatch"))


class Trajectory(NamedTuple):
    """States x_0 ... x_N, estimates of the clean sample, what the model was told."""

    samples: list
    estimates: list
    timesteps: list


class Looser(NamedTuple):
    """Cases in which agreement with diffusers ends before 1e-5: how far it may be, why, and which ids (patterns)."""

    bound: float
    cause: str
    ids: tuple


class Figures(NamedTuple):
    """Distances: ours to diffusers, ours to the oracle, diffusers' to the oracle."""

    apart: float
    ours: float
    theirs: float


# --- the model ---------------------------------------------------------------------------------------------------


def alphas_cumprod(config):
    """The signal variance at every training timestep, float64, from the published definitions."""
    count = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif name == "linear":
        betas = np.linspace(start, end, count)
    elif name == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    elif name == "sigmoid":
        betas = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))
    else:
        bar = {"squaredcos_cap_v2": _cosine_bar, "laplace": _laplace_bar, "exp": _exp_bar}[name]
        levels = np.array([bar(i / count) for i in range(count + 1)])
        betas = np.minimum(1 - levels[1:] / levels[:-1], 0.999)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(np.cumprod(1 - betas))
        return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return np.cumprod(1 - betas)


def _cosine_bar(t):
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exp_bar(t):
    return math.exp(-12 * t)


def _laplace_bar(t):
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


class Denoiser:
    """The model: exact for the mixture, a function of the scaled sample and the timestep alone."""

    def __init__(self, config):
        self.prediction = config.get("prediction_type", "epsilon")
        self.continuous = config.get("timestep_type") == "continuous" and self.prediction == "v_prediction"
        self.angular = config.get("timestep_type") == "angle"
        self.variance = config.get("variance_type", "")
        self.scale = config.get("num_train_timesteps", 1000)
        self.inverted = bool(config.get("invert_sigmas"))
        self.flow = self.prediction == "flow_prediction" or bool(config.get("use_flow_sigmas"))
        bar = alphas_cumprod(config)
        self.angle = np.arctan2(np.sqrt(1 - bar), np.sqrt(bar))

    def level(self, t):
        """(alpha, sigma) at a timestep, between the table's entries too."""
        if self.flow:
            share = min(max(t / self.scale, 0.0), 1.0)
            return (share, 1 - share) if self.inverted else (1 - share, share)
        if self.angular:
            angle = t * math.pi / 2
        elif self.continuous:
            angle = math.atan(math.exp(4 * t))
        else:
            angle = float(np.interp(t, np.arange(len(self.angle)), self.angle))
        return math.cos(angle), math.sin(angle)

    def __call__(self, x, t, raw_variance=False):
        """Evaluate at a float64 torch tensor; `raw_variance` gives exp of the learned log-variance."""
        alpha, sigma = self.level(t)
        total = alpha**2 * STD**2 + sigma**2
        gain = alpha * STD**2 / total
        clean = gain * x + (1 - gain * alpha) * MEAN * torch.tanh(alpha * MEAN * x / total)
        noise = (x - alpha * clean) / max(sigma, 1e-6)
        velocity = alpha * noise - sigma * clean
        flow = clean - noise if self.inverted else noise - clean
        known = {"epsilon": noise, "sample": clean, "v_prediction": velocity, "flow_prediction": flow}
        output = known[self.prediction]
        if self.variance == "learned_range":
            return torch.cat([output, 0.9 * torch.tanh(x + 0.001 * t)], 1)
        if self.variance == "learned":
            log_variance = -4 + 0.5 * torch.sin(x)
            return torch.cat([output, log_variance.exp() if raw_variance else log_variance], 1)
        return output


# --- the loop ----------------------------------------------------------------------------------------------------


def like(array, kind):
    """The float64 torch tensor `array` as a torch dtype or a NumPy scalar type."""
    if isinstance(kind, torch.dtype):
        return array.to(kind)
    return array.numpy().astype(kind)


def wide(array):
    """Any array as a float64 torch tensor."""
    if isinstance(array, torch.Tensor):
        return array.double()
    return torch.from_numpy(np.array(array, np.float64))


def draw(seed, dtype=torch.float32, shape=SHAPE):
    """Standard normals, drawn in dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@contextlib.contextmanager
def quiet():
    """Without the warnings diffusers gives on the way: NumPy's about reading a tensor, its own about deprecation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def drive(scheduler, case, kind=torch.float32, drawn_in=torch.float32, seed=0, device="cpu", **told):
    """The loop of a pipeline: scale the input, call the model, step; noise drawn in `drawn_in`, arrays of `kind`.

    Told `rounded`, a dtype: what passes between model and scheduler goes through it, timesteps through float32. Told
    `raw`: the oracle's learned variance is on its way.
    """
    model, rounded, raw = Denoiser(case.told), told.get("rounded"), told.get("raw", False)
    through = (lambda array: array) if rounded is None else lambda array: array.to(rounded).to(kind)
    moved = {} if device is None else {"device": torch.device(device)}
    if case.steps is None:
        scheduler.set_timesteps(**case.set_timesteps, **moved)
    else:
        scheduler.set_timesteps(case.steps, **case.set_timesteps, **moved)
    noise = like(draw(seed, drawn_in), kind)
    if case.begin or case.indexed:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(case.begin)
        clean = like(torch.tanh(draw(seed + 1, drawn_in).double()), kind)
        times = scheduler.timesteps[case.begin : case.begin + 1]
        flow = hasattr(scheduler, "scale_noise")
        x = scheduler.scale_noise(clean, times, noise) if flow else scheduler.add_noise(clean, noise, times)
    else:
        x = through(noise * float(getattr(scheduler, "init_noise_sigma", 1.0)))
    options = dict(case.step)
    if takes_generator(case.scheduler) and not case.variance_noise and isinstance(kind, torch.dtype):
        generators = [torch.Generator().manual_seed(seed + 10 + row) for row in range(case.generators)]
        options["generator"] = generators if case.generators > 1 else generators[0]
    run = Trajectory([wide(x)], [], [])
    for index, t in enumerate(scheduler.timesteps[case.begin :]):
        scaled = wide(
            through(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x)
        )
        output = through(like(model(scaled, float(t if rounded is None else np.float32(t)), raw), kind))
        if case.variance_noise:
            options["variance_noise"] = like(draw(seed + 100 + index, drawn_in), kind)
        out = scheduler.step(output, t, x, **options)
        x = through(out.prev_sample)
        run.samples.append(wide(x))
        if "pred_original_sample" in out:
            run.estimates.append(wide(out.pred_original_sample))
        run.timesteps.append(float(t))
    return run


def oracle(case, drawn_in=torch.float32, seed=0, rounded=None):
    """The loop of diffusers executed in float64, with the same draws."""
    with quiet(), noise_drawn_in(drawn_in):
        scheduler = float64_class(case.scheduler)(**case.config | case.oracle)
        return drive(scheduler, case, torch.float64, drawn_in, seed, rounded=rounded, raw=True)


# --- the distance ------------------------------------------------------------------------------------------------


def scales(case, reference):
    """What an error is relative to: one number for each state and one for each estimate."""
    size = lambda array: float(array.abs().max())
    model = Denoiser(case.told)
    signal = [1.0 if case.explodes else model.level(t)[0] for t in reference.timesteps] + [1.0]
    states, estimates = [size(reference.samples[0])], []
    # A stochastic flow step from pure noise forgets its start, and may leave as little as the next level's noise: an
    # error then counts in the unit of the data.
    floor = MEAN if case.prediction == "flow_prediction" else 0.0
    amplifies = case.amplifies
    for i in range(len(reference.timesteps)):
        entered = size(reference.samples[i]) / (signal[i] if amplifies else 1.0)
        left = size(reference.samples[i + 1])
        if case.returns and i % 2:
            left = max(left, size(reference.samples[i - 1]))
        states.append(max(left, entered * (signal[i + 1] if amplifies else 1.0), floor))
        if reference.estimates:
            estimates.append(max(size(reference.estimates[i]), entered if amplifies else 0.0))
    return states, estimates


def distance(case, run, other, reference):
    """The largest difference of two runs, relative to the scales of a third."""
    assert len(run.samples) == len(other.samples), (len(run.samples), len(other.samples))
    states, estimates = scales(case, reference)
    ones, twos = run.samples + run.estimates, other.samples + other.estimates
    triples = zip(ones, twos, states + estimates, strict=True)
    # Not `max`, which passes over NaN.
    return float(np.max([(one - two).abs().max().item() / scale for one, two, scale in triples]))


def compare(case, ours=None, seed=0):
    """The three distances of a case, in float32."""
    reference, ours = oracle(case, seed=seed), ours or subject(case.scheduler)
    with quiet() if ours.__module__.startswith("diffusers") else contextlib.nullcontext():
        mine = drive(ours(**case.config), case, seed=seed)
    if case.alone:
        return Figures(math.nan, distance(case, mine, reference, reference), math.nan)
    with quiet():
        theirs = drive(original(case.scheduler)(**case.config), case, seed=seed)
    return Figures(
        distance(case, mine, theirs, reference),
        distance(case, mine, reference, reference),
        distance(case, theirs, reference, reference),
    )


def rounding(case, seed=0):
    """What float32 arrays cost by themselves: the oracle with all that it takes and gives rounded to float32."""
    reference = oracle(case, seed=seed)
    return distance(case, oracle(case, seed=seed, rounded=torch.float32), reference, reference)


def judge(case, figures, bound=1e-5, strict=None, seed=0, draws=1):
    """Raise where ours is not near diffusers, or is farther from the oracle than diffusers is.

    "Farther" leaves room for rounding, which falls by chance: a few ULP of float32 and their random walk, or, where the loop
    magnifies rounding (a model called far off its level), eight times what it is measured to cost, at worst of as many
    `draws`. A bound wider than 1e-5 is granted to diffusers' tables only: then (`strict`) ours is at the oracle but for
    rounding.
    """
    counted = case.steps or len(case.set_timesteps.get("timesteps") or case.set_timesteps["sigmas"])
    allowed = (4 + math.sqrt(counted)) * ULP
    if not (case.alone or (figures.apart > 1e-5 if strict is None else strict)):
        allowed += 1.05 * figures.theirs
    if figures.ours > allowed:
        cost = max(rounding(case, seed + k) for k in range(draws))
        allowed = max(allowed, 8 * cost + 4 * ULP)
    near = figures.ours <= allowed and (case.alone or figures.apart <= bound)
    assert near, f"{case.id}: {figures}; allowed {allowed:.1e} to the oracle, {bound:.0e} to diffusers"


def bound_for(case, table):
    """How near to diffusers a case must be: 1e-5, or what the first entry of the table that names it says."""
    named = (entry for entry in table if any(fnmatch.fnmatchcase(case.id, pattern) for pattern in entry.ids))
    return next((entry.bound for entry in named), 1e-5)


def unused(table, cases):
    """The patterns of a table that name no case."""
    ids = [case.id for case in cases]
    return [pattern for entry in table for pattern in entry.ids if not fnmatch.filter(ids, pattern)]


# --- what the tests of every facade ask --------------------------------------------------------------------------


def whole_grid(count, steps):
    """Whether diffusers' trailing grid has `steps` entries: by rounding it has one more for some, ending at -1."""
    return len(np.arange(count, 0, -count / steps)) == steps


def check_loop(case, looser=(), strict=None, draws=1):
    """In float32 ours is as near to diffusers as the table says, and as near to the oracle as diffusers is."""
    judge(case, compare(case), bound_for(case, looser), strict, draws=draws)


def check_names(cases, looser=()):
    """No two cases have one name, and every exception names one."""
    assert len({case.id for case in cases}) == len(cases)
    assert not unused(looser, cases)


def check_random(case):
    """As a loop of the list; nearness to diffusers is asked where diffusers itself is near the oracle."""
    figures = compare(case)
    judge(case, figures, bound=math.inf if figures.theirs > 4e-6 else 1e-5, strict=False)


def check_float64(case, bound=1e-12):
    """In float64 ours is the oracle: with torch's arrays, and with NumPy's where no torch.Generator is needed.

    Fractional timesteps come as float32 on a torch device, as diffusers' do, and the model is told those.
    """
    with quiet():
        reference = oracle(case, drawn_in=torch.float64)
    kinds = [(torch.float64, None)]
    if not case.fractional:
        kinds += [(torch.float64, "cpu")]
    if case.variance_noise or not case.draws:
        kinds += [(np.float64, None)]
    for kind, device in kinds:
        mine = drive(subject(case.scheduler)(**case.config), case, kind, torch.float64, device=device)
        found = distance(case, mine, reference, reference)
        assert found <= bound, f"{case.id}: {found:.1e} from the oracle with {kind} on {device}"


def check_half(case, dtype, positions=(0, 10, 17, 19), twice=()):
    """In 16 bits a step is computed in 32 and rounded once, and is no farther from the oracle than diffusers'.

    `twice` names results that are made of something rounded before.
    """
    x, output = draw(1).to(dtype), draw(2).to(dtype)
    doubled = case.config.get("variance_type", "").startswith("learned")
    if doubled:
        output = torch.cat([output, torch.tanh(draw(3)).to(dtype)], 1)

    def single(cls, position, one, two, **moved):
        scheduler = cls(**case.config)
        scheduler.set_timesteps(case.steps, **moved)
        t = scheduler.timesteps[position]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(one, t)
        drawn = {"generator": torch.Generator().manual_seed(4)} if takes_generator(case.scheduler) else {}
        return scheduler.step(two, t, one, **drawn, **case.step)

    for position in positions:
        with quiet(), noise_drawn_in(dtype):
            exact = single(float64_class(case.scheduler), position, x.double(), output.double())
            theirs = single(original(case.scheduler), position, x, output)
        mine = single(subject(case.scheduler), position, x, output, device=torch.device("cpu"))
        amplifies = case.prediction == "epsilon" and not case.explodes
        level = Denoiser(case.told).level(position_t(case, position))[0] if amplifies else 1.0
        size = float(x.abs().max())
        for name in list(exact):
            got, truth = getattr(mine, name), getattr(exact, name)
            assert name != "prev_sample" or got.dtype == dtype, f"{name} is {got.dtype}"
            error = (got.double() - truth).abs()
            half = 0.5 * torch.finfo(got.dtype).eps * truth.abs() + torch.finfo(got.dtype).smallest_normal
            largest = float(truth.abs().max())
            scale = max(size / level, largest)
            if name in twice:
                half = half + 0.5 * torch.finfo(got.dtype).eps * max(size, largest)
            assert (error <= 1.01 * half + 8 * ULP * scale).all(), f"{name} at {position} has more rounding"
            if got.dtype == getattr(theirs, name).dtype:
                other = (getattr(theirs, name).double() - truth).abs()
                chance = 1.5 if name in twice else 1.01
                assert error.max() <= chance * other.max() + 8 * ULP * scale, f"{name} at {position}"


def position_t(case, position):
    """The timestep at a position of diffusers' grid."""
    with quiet():
        scheduler = original(case.scheduler)(**case.config)
        scheduler.set_timesteps(case.steps)
    return float(scheduler.timesteps[position])


def check_forward(name, config, method, timesteps, prepare=None):
    """`add_noise` and `get_velocity`: near diffusers', as near the oracle, and the oracle itself in float64."""
    clean, noise = draw(1), draw(2)
    classes = {"ours": subject(name), "theirs": original(name), "oracle": float64_class(name)}
    results = {}
    for who, cls in classes.items():
        kind = torch.float64 if who == "oracle" else torch.float32
        with quiet() if who != "ours" else contextlib.nullcontext():
            scheduler = cls(**config)
            times = prepare(scheduler) if prepare else timesteps
            results[who] = getattr(scheduler, method)(clean.to(kind), noise.to(kind), times)
    assert results["ours"].dtype == torch.float32 and results["ours"].shape == clean.shape
    size = float(results["oracle"].abs().max())
    off = lambda one, two: (results[one] - results[two]).abs().max().item() / size
    mine, theirs = off("ours", "oracle"), off("theirs", "oracle")
    assert off("ours", "theirs") <= max(1e-6, 2.1 * theirs)
    assert mine <= 1.05 * theirs + 2 * ULP
    scheduler = subject(name)(**config)
    times = prepare(scheduler) if prepare else timesteps
    for kind in (torch.float64, np.float64):
        told = times if kind is torch.float64 else times.numpy()
        exact = getattr(scheduler, method)(like(clean.double(), kind), like(noise.double(), kind), told)
        assert isinstance(exact, torch.Tensor if kind is torch.float64 else np.ndarray)
        assert float((wide(exact) - results["oracle"]).abs().max()) <= 1e-12 * size
    for kind in (torch.bfloat16, torch.float16):
        low = getattr(scheduler, method)(clean.to(kind), noise.to(kind), times)
        with quiet():
            reference = float64_class(name)(**config)
            times = prepare(reference) if prepare else timesteps
            truth = getattr(reference, method)(clean.to(kind).double(), noise.to(kind).double(), times)
        assert low.dtype == kind
        rounded = 0.51 * torch.finfo(kind).eps * truth.abs() + 4 * ULP * size
        assert ((low.double() - truth).abs() <= rounded).all(), "rounded more than once"


def check_error(name, error, act):
    """diffusers raises it, and so do we."""
    for cls in (original(name), subject(name)):
        try:
            with quiet():
                act(cls)
        except error:
            continue
        raise AssertionError(f"{cls.__module__}.{cls.__name__} raised no {error.__name__}")


def check_plants(case):
    """The harness passes diffusers as ours, and fails it with an error of 1e-4 in any one place."""
    name = case.scheduler
    with quiet():
        figures = compare(case, original(name))
    judge(case, figures)

    def planted(spoil):
        class Planted(original(name)):
            def step(self, model_output, timestep, sample, **options):
                last = float(timestep) == float(self.timesteps[-1])
                return spoil(super().step(model_output, timestep, sample, **options), last)

        return Planted

    def states(out, last):
        out.prev_sample = out.prev_sample * (1 + 1e-4)
        return out

    def last_state(out, last):
        out.prev_sample = out.prev_sample * (1 + 1e-4) if last else out.prev_sample
        return out

    def estimates(out, last):
        out.pred_original_sample = out.pred_original_sample + 1e-4
        return out

    def not_a_number(out, last):
        out.prev_sample = out.prev_sample * math.nan if last else out.prev_sample
        return out

    class MoreNoise(original(name)):
        def step(self, model_output, timestep, sample, generator=None, **options):
            torch.randn(1, generator=generator)
            return super().step(model_output, timestep, sample, generator=generator, **options)

    spoils = [states, last_state, not_a_number] + [estimates] * bool(oracle(case).estimates)
    for spoiled in [planted(spoil) for spoil in spoils] + [MoreNoise] * case.draws:
        with quiet():
            figures = compare(case, spoiled)
        try:
            judge(case, figures)
        except AssertionError:
            continue
        raise AssertionError(f"passed {spoiled}: {figures}")


# --- the table ---------------------------------------------------------------------------------------------------


def cases():
    """Every case of every facade, as the tests run them."""
    names = [
        "ddim",
        "ddpm",
        "euler",
        "euler_ancestral",
        "lms",
        "ipndm",
        "heun",
        "flow_match_euler",
        "dpmsolver_multistep",
    ]
    names += ["unipc_multistep"]
    return [case for name in names for case in importlib.import_module(f"test_parity_{name}").CASES]


def table(package, each=False):
    """Markdown rows: the worst number of steps of each option, or every one."""
    groups: dict[Any, list] = {}
    for case in cases():
        figures = compare(case, subject(case.scheduler, package))
        key = (case.scheduler, case.option, case.steps if each else None)
        groups.setdefault(key, []).append((case, figures))
    yield f"| scheduler | option | steps | {package} to diffusers | {package} to the oracle | diffusers to the oracle |"
    yield "|---|---|--:|--:|--:|--:|"
    for (scheduler, option, _), rows in groups.items():
        case, worst = max(rows, key=lambda row: np.nanmax(row[1][:2]))
        shown = " | ".join("-" if math.isnan(value) else f"{value:.1e}" for value in worst)
        yield f"| {scheduler} | {option} | {case.steps or 'custom'} | {shown} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", action="store_true", help="one row per number of steps")
    parser.add_argument("--against", default=SUBJECT, help="the package under test")
    arguments = parser.parse_args()
    for row in table(arguments.against, arguments.each):
        print(row)
