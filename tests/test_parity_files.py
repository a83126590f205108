"""Configurations that travel: as files to diffusers and back, and from class to class as diffusers hands them on."""

import inspect
import json

import numpy as np
import pytest
import torch

from reference.float64_diffusers import float64_class
from reference.trajectories import Case, distance, drive, oracle, original, quiet, subject

# diffusers' LMS makes NumPy arrays of tensors when it is constructed.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
NAMES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)
# Keys that say who wrote a config, not what is in it.
WRITERS = {"_diffusers_version", "_anystep_version"}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
KARRAS = {"use_karras_sigmas": True}
CONFIGS = [
    ("DDIMScheduler", {}),
    ("DDIMScheduler", STABLE | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 1.5, "prediction_type": "sample"}),
    ("DDIMScheduler", V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("DDPMScheduler", {}),
    ("DDPMScheduler", COSINE | {"variance_type": "fixed_large", "clip_sample_range": 2.0}),
    ("DDPMScheduler", {"variance_type": "learned_range", "timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", STABLE | KARRAS | {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", V | {"timestep_type": "continuous", "sigma_max": 50.0}),
    ("LMSDiscreteScheduler", STABLE | KARRAS | {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
]
BETAS = np.geomspace(2e-4, 0.09, 50)
with_files = pytest.mark.parametrize(("name", "config"), CONFIGS, ids=lambda value: str(value))


def contents(config):
    """A configuration as a plain dictionary, whoever wrote it."""
    kept = {key: value for key, value in config.items() if key not in WRITERS}
    if "_use_default_values" in kept:
        kept["_use_default_values"] = set(kept["_use_default_values"])
    return kept


def read(folder):
    return (folder / "scheduler_config.json").read_text(encoding="utf-8")


def run(scheduler, name, config, steps=8):
    with quiet():
        return drive(scheduler, Case(name, "file", steps, config))


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.samples, two.samples, strict=True))


@with_files
def test_what_diffusers_writes_is_read(tmp_path, name, config):
    original(name)(**config).save_pretrained(tmp_path)
    ours = subject(name).from_pretrained(tmp_path)
    theirs = original(name).from_pretrained(tmp_path)
    assert contents(ours.config) == contents(theirs.config)
    assert same(run(ours, name, config), run(subject(name)(**config), name, config))
    case = Case(name, "file", 8, config)
    exact = oracle(case)
    assert distance(case, run(ours, name, config), run(theirs, name, config), exact) <= 1e-5


@with_files
def test_what_we_write_is_read_by_diffusers(tmp_path, name, config):
    subject(name)(**config).save_pretrained(tmp_path)
    theirs = original(name).from_pretrained(tmp_path)
    expected = original(name)(**config)
    assert {k: v for k, v in contents(theirs.config).items() if k != "_use_default_values"} == {
        k: v for k, v in contents(expected.config).items() if k != "_use_default_values"
    } | {"_class_name": name}
    assert same(run(theirs, name, config), run(expected, name, config))


@with_files
def test_files_are_the_same_text(tmp_path, name, config):
    for cls, folder in ((subject(name), "ours"), (original(name), "theirs")):
        cls(**config).save_pretrained(tmp_path / folder)
    ours, theirs = read(tmp_path / "ours"), read(tmp_path / "theirs")
    signed = lambda line: any(key in line for key in WRITERS)
    keep = lambda text: [line.rstrip(",") for line in text.splitlines() if not signed(line)]
    assert keep(ours) == keep(theirs)
    assert ours.endswith("}\n")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("betas", [BETAS, BETAS.tolist()], ids=["array", "list"])
def test_trained_betas_travel(tmp_path, name, betas):
    config = {"trained_betas": betas, "num_train_timesteps": 50}
    subject(name)(**config).save_pretrained(tmp_path / "ours")
    original(name)(**config).save_pretrained(tmp_path / "theirs")
    stored = [json.loads(read(tmp_path / who))["trained_betas"] for who in ("ours", "theirs")]
    assert stored[0] == stored[1] == BETAS.tolist()
    ours = subject(name).from_pretrained(tmp_path / "theirs")
    theirs = original(name).from_pretrained(tmp_path / "ours")
    assert np.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_places(tmp_path, name):
    original(name)(beta_end=0.015).save_pretrained(tmp_path / "scheduler")
    cls = subject(name)
    for place, more in (
        (tmp_path / "scheduler", {}),
        (str(tmp_path / "scheduler"), {}),
        (tmp_path, {"subfolder": "scheduler"}),
    ):
        assert cls.from_pretrained(place, **more).config["beta_end"] == 0.015
    assert cls.from_pretrained(tmp_path / "scheduler", beta_end=0.01).config["beta_end"] == 0.01
    more = {"return_unused_kwargs": True, "color": "red"}
    scheduler, unused = cls.from_pretrained(tmp_path / "scheduler", **more)
    expected = original(name).from_pretrained(tmp_path / "scheduler", **more)[1]
    assert isinstance(scheduler, cls)
    assert contents(unused) == contents(expected)


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_files(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scheduler_config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for cls in (original(name), subject(name)):
        with pytest.raises(OSError):
            cls.from_pretrained(tmp_path / "empty")
        with pytest.raises(OSError):
            cls.from_pretrained(tmp_path / "broken")
        with pytest.raises(AssertionError):
            cls().save_pretrained(tmp_path / "file")
        with pytest.raises(ValueError):
            cls.from_config(None)


# --- from class to class ---

CHAINS = [(one, two) for one in NAMES for two in NAMES if one != two]
CHAINS += [(one, two, one) for one, two in CHAINS]
CHAINS += [("DDIMScheduler", "EulerDiscreteScheduler", "DDPMScheduler", "DDIMScheduler")]
STARTS = {
    "DDIMScheduler": [
        {},
        {"thresholding": True, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"},
        {"prediction_type": "v_prediction", "beta_end": 0.015, "rescale_betas_zero_snr": True},
    ],
    "DDPMScheduler": [{}, {"variance_type": "fixed_large", "clip_sample": False}],
    "EulerDiscreteScheduler": [{}, KARRAS | {"sigma_min": 0.01, "timestep_spacing": "leading"}],
    "LMSDiscreteScheduler": [{}, KARRAS | V],
    "EulerAncestralDiscreteScheduler": [{}, V | {"rescale_betas_zero_snr": True, "steps_offset": 1}],
}


@pytest.mark.parametrize("saved", [False, True], ids=["live", "saved"])
@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_chain_of_classes(tmp_path, chain, saved):
    """Explicit values travel, implicit defaults do not, keys of other classes are kept unseen; a file is explicit."""
    for start in STARTS[chain[0]]:
        results = []
        for pick in (subject, original):
            scheduler = pick(chain[0])(**start)
            for step, name in enumerate(chain[1:]):
                if saved:
                    scheduler.save_pretrained(tmp_path / f"{pick.__name__}{step}")
                    scheduler = type(scheduler).from_pretrained(tmp_path / f"{pick.__name__}{step}")
                scheduler = pick(name).from_config(scheduler.config)
            results.append(contents(scheduler.config))
        assert results[0] == results[1]


@pytest.mark.parametrize("pair", [chain for chain in CHAINS if len(chain) == 2], ids="-".join)
def test_ours_and_theirs_take_each_others_config(pair):
    """A pipeline swaps schedulers with `from_config(pipe.scheduler.config)`: whose config it is must not matter."""
    one, two = pair
    for start in STARTS[one]:
        theirs, ours = original(one)(**start).config, subject(one)(**start).config
        expected = contents(original(two).from_config(theirs).config)
        assert contents(subject(two).from_config(theirs).config) == expected
        assert contents(original(two).from_config(ours).config) == expected


def test_overrides_and_unknown_keys():
    config = {"beta_end": 0.015, "color": "red", "_class_name": "DDIMScheduler", "_hidden": 1}
    results = []
    for pick in (subject, original):
        with quiet():
            scheduler, unused = pick("DDIMScheduler").from_config(
                dict(config), return_unused_kwargs=True, steps_offset=1, size=3
            )
        results.append((contents(scheduler.config), contents(unused)))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", NAMES)
def test_config_is_read_by_key_and_by_attribute(name):
    ours, theirs = subject(name)(beta_end=0.015), original(name)(beta_end=0.015)
    assert contents(ours.config) == contents(theirs.config)
    assert list(ours.config) == list(theirs.config)
    assert ours.config.beta_end == ours.config["beta_end"] == 0.015
    assert set(ours.config["_use_default_values"]) == set(theirs.config["_use_default_values"])
    assert not hasattr(ours.config, "color")
    assert ours.config.get("color", 3) == 3


@pytest.mark.parametrize("name", NAMES)
def test_compatible_classes(name):
    assert set(subject(name)._compatibles) == set(original(name)._compatibles)
    ours = {cls.__name__ for cls in subject(name)().compatibles}
    assert set(NAMES) <= ours <= {cls.__name__ for cls in original(name)().compatibles}
    assert subject(name).has_compatibles is True


@pytest.mark.parametrize("name", NAMES)
def test_unknown_attribute(name):
    for scheduler in (original(name)(), subject(name)()):
        with pytest.raises(AttributeError, match=f"'{name}' object has no attribute 'color'"):
            _ = scheduler.color


# --- the oracle reads the installed files of other classes too ---


@pytest.mark.parametrize(
    "name",
    [
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_oracle_of_other_classes_is_float64_throughout(name):
    with quiet():
        exact, theirs = float64_class(name)(), original(name)()
        for scheduler, dtype in ((exact, torch.float64), (theirs, torch.float32)):
            scheduler.set_timesteps(6)
            x = torch.ones(1, 2, 3, 3, dtype=dtype)
            for t in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                noise = {"generator": torch.Generator().manual_seed(1)}
                drawn = noise if "generator" in inspect.signature(scheduler.step).parameters else {}
                x = scheduler.step(torch.tanh(scaled), t, x, **drawn).prev_sample
            assert x.dtype == dtype
            scheduler.result = x
    tables = {key: value for key, value in vars(exact).items() if isinstance(value, torch.Tensor)}
    assert all(value.dtype in (torch.float64, torch.int64) for value in tables.values()), tables
    assert (exact.result - theirs.result).abs().max() <= 1e-3 * exact.result.abs().max()
