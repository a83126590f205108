"""What every facade with a grid of sigmas is asked, beside diffusers' class and diffusers' in float64."""

import contextlib
import math
from pathlib import Path

import numpy as np
import torch

from reference.float64_diffusers import float64_class
from reference.options import BETA, EXPONENTIAL, KARRAS
from reference.trajectories import draw, original, quiet, subject, takes_generator


def prepared(cls, steps=None, config=None, **told):
    """A scheduler, set to as many steps if any are given; a warning of ours is not silenced."""
    with contextlib.nullcontext() if cls.__module__.startswith("anystep") else quiet():
        scheduler = cls(**config or {})
        if steps is not None:
            scheduler.set_timesteps(steps, **told)
    return scheduler


def pair(name, steps=None, config=None):
    """Ours and diffusers'."""
    return [prepared(cls, steps, config) for cls in (subject(name), original(name))]


def three(name, config, steps=None, **told):
    """Ours, diffusers' and the oracle."""
    classes = subject(name), original(name), float64_class(name)
    return [prepared(cls, steps, config, **told) for cls in classes]


# --- tables ------------------------------------------------------------------------------------------------------


def check_grid(ours, theirs, exact):
    """The same levels, from the first to the last, and the state of a run that has not begun."""
    assert np.asarray(ours.timesteps).dtype == np.asarray(ours.sigmas).dtype == np.float64
    assert len(ours.timesteps) == len(theirs.timesteps) and len(ours.sigmas) == len(theirs.sigmas)
    assert np.allclose(ours.timesteps, exact.timesteps, rtol=1e-12, atol=1e-9)
    assert np.allclose(ours.sigmas, exact.sigmas, rtol=4e-12, atol=0)
    assert np.allclose(ours.timesteps, theirs.timesteps, rtol=3e-4, atol=3e-4)
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    assert math.isclose(ours.init_noise_sigma, float(exact.init_noise_sigma), rel_tol=1e-12)
    assert ours.num_inference_steps == theirs.num_inference_steps
    assert ours.step_index is ours.begin_index is None


def check_tables(ours, theirs, exact, order=1):
    """What the training schedule is, whatever grid there is."""
    assert len(ours) == len(theirs) == 1000 and ours.order == theirs.order == order
    for name in ("betas", "alphas", "alphas_cumprod"):
        assert np.allclose(getattr(ours, name), getattr(exact, name), rtol=0, atol=1e-14), name


LAMBDA_TABLES = ("betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t", "sigmas", "timesteps")
"""What the classes that integrate over λ have of them."""


def check_foreign_ends(name, flag, largest):
    """A config with the ends of another class: as diffusers reads it; corrected, as if there were none.

    Returns our sigmas, and those without the foreign keys.
    """
    told, results = {f"use_{flag}_sigmas": True}, []
    for find in (original, subject):
        euler = find("EulerDiscreteScheduler")(
            sigma_min=0.05, sigma_max=largest, final_sigmas_type="sigma_min"
        )
        results.append(find(name).from_config(euler.config, **told))
    theirs, ours = results
    plain, corrected = subject(name)(**told), ours.corrected("foreign-ends")
    for scheduler in (theirs, ours, plain, corrected):
        with quiet():
            scheduler.set_timesteps(9)
    assert np.allclose(ours.sigmas, theirs.sigmas, rtol=2e-4, atol=0)
    assert np.array_equal(corrected.sigmas, plain.sigmas)
    return ours.sigmas, plain.sigmas


# --- the index, outputs ------------------------------------------------------------------------------------------

FORMS = [float, np.float64, int, np.int64, lambda t: torch.tensor(int(t))]


def check_form(name, form, index):
    """A timestep in any form is the level of that name: the step from it is diffusers', and the next is at `index`."""
    results = []
    for scheduler in pair(name, 10, {"timestep_spacing": "trailing"}):
        t = form(599)
        scheduler.scale_model_input(draw(1), t)
        results.append(scheduler.step(draw(2), t, draw(1)).prev_sample)
        assert scheduler.step_index == index
    assert (results[0] - results[1]).abs().max() <= 1e-5


def check_index(name, begin):
    """What is counted: looked up at the first call, or begun where it is told."""
    x = draw(1)
    for scheduler in pair(name, 5):
        where = lambda of=scheduler: (of.step_index, of.begin_index)
        seen = [where()]
        t = scheduler.timesteps[2]
        scheduler.scale_model_input(x, t)
        seen += [where()]
        scheduler.step(x, t, x)
        seen += [where()]
        with quiet():
            scheduler.set_timesteps(5)
        scheduler.set_begin_index(begin)
        seen += [where()]
        scheduler.step(x, t, x)
        assert [*seen, where()] == [(None, None), (2, None), (3, None), (None, begin), (begin + 1, begin)]


def check_results(got, plain, expected, kind, keys=("prev_sample", "pred_original_sample")):
    """An output of the type and with the keys of diffusers'; without `return_dict`, the tuple of its arrays."""
    assert type(got).__name__ == type(expected).__name__ == kind
    assert list(got.keys()) == list(expected.keys()) == list(keys)
    assert isinstance(plain, tuple) and len(plain) == len(keys)
    assert all(torch.equal(one, two) for one, two in zip(plain, got.to_tuple(), strict=True))


def check_outputs(name, row, kind=None, **keys):
    """Both forms of a step's output."""
    x, output, results = draw(1), draw(2), []
    for scheduler in pair(name):
        for as_dict in (True, False):
            with quiet():
                scheduler.set_timesteps(20)
            t = scheduler.timesteps[row]
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            results.append(scheduler.step(output, t, x, return_dict=as_dict))
    check_results(*results[:3], kind or f"{name}Output", **keys)


def check_trained_levels(name):
    """Before `set_timesteps` a step goes down the trained table, noisiest first."""
    for position in (0, 500, 998):
        results = []
        for scheduler in pair(name):
            t = scheduler.timesteps[position]
            scheduler.scale_model_input(draw(1), t)
            drawn = {"generator": torch.Generator().manual_seed(3)} if takes_generator(name) else {}
            results.append(scheduler.step(draw(2), t, draw(1), **drawn).prev_sample)
        assert (results[0] - results[1]).abs().max() <= 1e-5 * results[1].abs().max()


def check_draws(name, **options):
    """The generator is left as diffusers leaves it; returns its state after twelve steps."""
    states = []
    for scheduler in pair(name, 12):
        generator, x = torch.Generator().manual_seed(3), draw(1) * 150
        for t in scheduler.timesteps:
            output = torch.tanh(scheduler.scale_model_input(x, t))
            x = scheduler.step(output, t, x, generator=generator, **options)[0]
        states.append(generator.get_state())
    assert torch.equal(*states)
    return states[0]


# --- the forward process -----------------------------------------------------------------------------------------


def begun(steps=10, begin=None, taken=None, rows=(0, 7)):
    """Bring a scheduler to where it is asked, and give the timesteps of two rows of its grid."""

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


# --- errors ------------------------------------------------------------------------------------------------------


def stepped(scheduler, t=None, **options):
    """One step of ten, from the first level or the one named."""
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0] if t is None else t
    if "int" not in str(getattr(t, "dtype", type(t))):
        scheduler.scale_model_input(draw(2), t)
    return scheduler.step(draw(1), t, draw(2), **options)


def past_the_end(scheduler):
    """A step more than there are."""
    scheduler.set_timesteps(3)
    x = draw(1)
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(x, scheduler.timesteps[0])
    for t in [*scheduler.timesteps, scheduler.timesteps[-1]]:
        x = scheduler.step(x, t, x).prev_sample


ERRORS = {
    "beta_schedule": (NotImplementedError, lambda cls: cls(beta_schedule="quadratic")),
    "timestep_spacing": (ValueError, lambda cls: cls(timestep_spacing="even").set_timesteps(10)),
    "prediction_type": (ValueError, lambda cls: stepped(cls(prediction_type="noise"))),
    "a timestep that is not of the grid": (IndexError, lambda cls: stepped(cls(), 12.3)),
    "index_for_timestep": (IndexError, lambda cls: cls().index_for_timestep(12.3)),
}
RESPACING_ERRORS = {
    "karras and exponential": (ValueError, lambda cls: cls(**KARRAS, **EXPONENTIAL)),
    "karras and beta": (ValueError, lambda cls: cls(**KARRAS, **BETA)),
    "exponential and beta": (ValueError, lambda cls: cls(**EXPONENTIAL, **BETA)),
}
INTEGER_ERRORS = {
    "integer timestep": (ValueError, lambda cls: stepped(cls(), 3)),
    "integer tensor": (ValueError, lambda cls: stepped(cls(), torch.tensor(3))),
    "int32 tensor": (ValueError, lambda cls: stepped(cls(), torch.tensor(3, dtype=torch.int32))),
}


# --- documents ---------------------------------------------------------------------------------------------------


def check_documented(cls):
    """Every deviation of a facade is in the list of them, with the name that corrects it."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "deviations.md").read_text()
    assert all(f"`{name}`" in text and f'corrected("{name}")' in text for name in cls.deviations)
