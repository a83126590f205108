"""The classes that integrate over λ under diffusers' names on any array: types, errors, copies, devices."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anystep import DPMSolverMultistepScheduler, reproducible
from anystep._array import backend
from reference import any_array
from reference.any_array import CELLS, X, halved

SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
FACADES = [
    (DPMSolverMultistepScheduler, {}),
    (DPMSolverMultistepScheduler, {"solver_order": 3, "use_karras_sigmas": True, "thresholding": True}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "use_flow_sigmas": True}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver", "solver_order": 3, **SIGMA_MIN}),
]
each = pytest.mark.parametrize(("cls", "config"), FACADES)


def noisy(config):
    return config.get("algorithm_type", "").startswith("sde")


def advance(scheduler, t, x, rng):
    """One step of a loop."""
    return scheduler.step(
        halved(scheduler, t, x), t, x, **({"generator": rng} if noisy(scheduler.config) else {})
    )


def trajectory(cls, config, name="numpy", device=None, dtype="float32", steps=6):
    lib, rng = backend(name), np.random.default_rng(3)
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    start = rng.standard_normal(X.shape, dtype=np.float32)
    x = lib.asarray(start, dtype=dtype, device=lib.device(device))
    run = [x]
    for t in scheduler.timesteps:
        x = advance(scheduler, t, x, rng).prev_sample
        run += [x, scheduler.model_outputs[-1]]
    return run


@pytest.mark.parametrize(("name", "device", "dtype"), CELLS)
@each
def test_same_array_out_and_equal_bits(cls, config, name, device, dtype):
    """The history too, on the plain path."""
    with reproducible():
        run = trajectory(cls, config, name, device, dtype)
        reference = trajectory(cls, config, "numpy", None, dtype)
    any_array.check_equal_bits(run, reference, name)


@each
def test_a_step_reads_nothing_from_the_device(cls, config):
    """On PyTorch's meta device every attempt to read a value raises."""
    scheduler = cls(**config)
    scheduler.set_timesteps(6, device=torch.device("meta"))
    x = torch.empty(X.shape, device="meta")
    for t in scheduler.timesteps:
        x = advance(scheduler, t, x, None).prev_sample
    assert x.device.type == "meta"


@each
def test_a_step_inside_jit(cls, config):
    scheduler = cls(**config)
    scheduler.set_timesteps(5)
    noise = np.linspace(1, -1, 12, dtype=np.float32).reshape(1, 3, 2, 2)

    def loop(x, noise):
        turn = scheduler.clone()
        for t in turn.timesteps:
            x = turn.step(x * np.float32(0.5), t, x, variance_noise=noise).prev_sample
        return x

    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    found, eager = jax.jit(loop)(jnp.asarray(x), jnp.asarray(noise)), loop(x, noise)
    np.testing.assert_allclose(found, eager, rtol=0, atol=1e-5 * abs(eager).max())


def test_jax_noise_needs_a_key_or_the_noise():
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(2)
    x = jnp.ones((1, 1, 2, 2))
    with pytest.raises(ValueError, match="generator"):
        scheduler.step(x, 999, x)
    assert scheduler.step_index is None and scheduler.model_outputs == [None, None]
    scheduler.step(x, 999, x, generator=jax.random.key(0))


@each
def test_tables_are_handed_out_in_the_library_asked_for(cls, config):
    scheduler = cls(**config)
    names = ["timesteps", "sigmas", "betas", "alphas", "alphas_cumprod", "alpha_t", "sigma_t", "lambda_t"]
    any_array.check_tables(scheduler, names)
    scheduler.set_timesteps(4, device="cpu")
    assert scheduler.timesteps.dtype == torch.int64 and scheduler.sigmas.dtype == torch.float32


def state(scheduler):
    kept = {k: v for k, v in vars(scheduler).items() if k != "_plans"}
    kept["_run"] = (scheduler._run[0], tuple(map(id, scheduler._run[1] or ())))
    kept["model_outputs"] = tuple(map(id, scheduler.model_outputs))
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in kept.items()}


FAILURES = [
    *any_array.FAILURES,
    (lambda s, t: s.set_timesteps(), ValueError, "one of num_inference_steps and timesteps"),
    (lambda s, t: s.set_timesteps(3, timesteps=[3, 2]), ValueError, "one of num_inference_steps and"),
    (lambda s, t: s.set_timesteps(timesteps=[5, 9]), ValueError, "timesteps"),
    (lambda s, t: s.set_timesteps(5, mu=0.3), ValueError, "mu=0.3"),
    (lambda s, t: s.step(X.astype(int), t, X, variance_noise=X), TypeError, "dtype int64"),
    (lambda s, t: s.step(X, t, X.astype(int), variance_noise=X), TypeError, "dtype int64"),
    (lambda s, t: s.step(torch.zeros(X.shape), t, X, variance_noise=X), TypeError, "torch"),
]


@pytest.mark.parametrize(("call", "error", "message"), FAILURES)
@pytest.mark.parametrize("done", [0, 1, 3])
@each
def test_an_error_says_what_to_do_and_changes_nothing(cls, config, done, call, error, message):
    """Before the first step and in the middle, where there is a history; the run then ends as if nothing had been."""

    def made():
        scheduler = cls(**config)
        scheduler.set_timesteps(6)
        return scheduler

    any_array.check_failure(made, advance, state, done, call, error, message)


@each
def test_noise_of_the_wrong_shape_or_library_changes_nothing(cls, config):
    scheduler = cls(**config)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    for wrong in (X[:1], torch.zeros(X.shape), 3):
        if noisy(config):
            before = state(scheduler)
            with pytest.raises((ValueError, TypeError), match="noise"):
                scheduler.step(X, t, X, variance_noise=wrong)
            assert state(scheduler) == before
    assert scheduler.step(X, t, X, variance_noise=X).prev_sample.shape == X.shape


def test_step_before_set_timesteps_is_refused():
    with pytest.raises(ValueError, match="call set_timesteps"):
        DPMSolverMultistepScheduler().step(X, 10, X)


@each
def test_too_many_steps_are_refused_and_change_nothing(cls, config):
    scheduler, rng = cls(**config), np.random.default_rng(0)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        advance(scheduler, t, X, rng)
    before = state(scheduler)
    with pytest.raises(IndexError, match="2 steps are done; call set_timesteps"):
        advance(scheduler, scheduler.timesteps[0], X, rng)
    assert state(scheduler) == before


@each
def test_interleaved_clones_equal_running_alone(cls, config):
    alone = trajectory(cls, config)
    origin = cls(**config)
    origin.set_timesteps(6)
    copies = [origin.clone(), copy.deepcopy(origin), pickle.loads(pickle.dumps(origin))]
    rngs = [np.random.default_rng(3) for _ in copies]
    xs = [rng.standard_normal(X.shape, dtype=np.float32) for rng in rngs]
    for i, t in enumerate(origin.timesteps):
        for k in range(len(copies)):
            xs[k] = advance(copies[k], t, xs[k], rngs[k]).prev_sample
            if i == 2:  # in the middle of a run, with a history
                copies[k] = [copies[k].clone, lambda k=k: copy.deepcopy(copies[k]), copies[k].clone][k]()
    for x in xs:
        np.testing.assert_array_equal(x, alone[-2])
    assert origin.step_index is None and origin.model_outputs[-1] is None


def test_an_edit_of_a_clones_history_is_its_own():
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    scheduler.step(X, scheduler.timesteps[0], X + 1)
    other = scheduler.clone()
    other.model_outputs[-1] = None
    assert scheduler.model_outputs[-1] is not None


def test_generators_one_per_sample_equal_samples_alone():
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(3)
    x = torch.ones((2, 1, 4, 4))
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    both = scheduler.clone().step(x, 999, x, generator=generators).prev_sample
    for k, seed in enumerate((1, 2)):
        one = scheduler.clone().step(
            x[k : k + 1], 999, x[k : k + 1], generator=torch.Generator().manual_seed(seed)
        )
        assert torch.equal(one.prev_sample[0], both[k])


@each
@settings(max_examples=25)
@given(steps=st.integers(1, 999))
def test_every_n_gives_n_descending_timesteps(cls, config, steps):
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps == scheduler.num_inference_steps
    assert (np.diff(scheduler.timesteps) <= 0).all() and (np.diff(scheduler.sigmas[:-1]) < 0).all()


@each
def test_one_thousand_steps(cls, config):
    """A model that knows the clean sample is believed in the end."""
    scheduler, x = cls(**config | {"prediction_type": "sample", "thresholding": False}), X + 1
    scheduler.set_timesteps(1000)
    for t in scheduler.timesteps:
        x = scheduler.step(X + np.float32(0.25), t, x, variance_noise=X).prev_sample
    assert abs(x - 0.25).max() < (0.02 if config.get("final_sigmas_type") else 1e-6)


@each
def test_a_config_replaced_after_construction_counts(cls, config):
    scheduler = cls(**config)
    scheduler._internal_dict = {**scheduler.config, "solver_order": 1}
    assert scheduler.model_outputs == [None]
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="prediction_type"):
        scheduler._internal_dict = {**scheduler.config, "prediction_type": "?"}
    assert scheduler.config.prediction_type == "epsilon"
    x = X + 1
    for t in scheduler.timesteps:
        x = advance(scheduler, t, x, np.random.default_rng(0)).prev_sample
    assert np.isfinite(x).all()
