"""LMS, IPNDM, Euler ancestral and Heun under diffusers' names on any array: types, errors, copies, devices."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anystep import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    reproducible,
)
from anystep._array import backend
from reference import any_array
from reference.any_array import CELLS, X, halved
from reference.sigma_grids import check_documented

FACADES = [LMSDiscreteScheduler, IPNDMScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler]
each = pytest.mark.parametrize("cls", FACADES)


def drawn(cls, rng):
    return {"generator": rng} if cls is EulerAncestralDiscreteScheduler else {}


def advance(scheduler, t, x, rng):
    """One step of a loop."""
    return scheduler.step(halved(scheduler, t, x), t, x, **drawn(type(scheduler), rng))


def trajectory(cls, name="numpy", device=None, dtype="float32", steps=6, **config):
    lib, rng = backend(name), np.random.default_rng(3)
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    start = rng.standard_normal(X.shape, dtype=np.float32) * np.float32(scheduler.init_noise_sigma)
    x = lib.asarray(start, dtype=dtype, device=lib.device(device))
    run = [x]
    for t in scheduler.timesteps:
        result = advance(scheduler, t, x, rng)
        x = result.prev_sample
        run += [x] if cls is IPNDMScheduler else [x, result.pred_original_sample]
    return run


@pytest.mark.parametrize(("name", "device", "dtype"), CELLS)
@each
def test_same_array_out_and_equal_bits(cls, name, device, dtype):
    with reproducible():
        run, reference = trajectory(cls, name, device, dtype), trajectory(cls, "numpy", None, dtype)
    any_array.check_equal_bits(run, reference, name)


@each
def test_a_step_reads_nothing_from_the_device(cls):
    """On PyTorch's meta device every attempt to read a value raises."""
    scheduler = cls()
    scheduler.set_timesteps(6, device=torch.device("meta"))
    x = torch.empty(X.shape, device="meta")
    for t in scheduler.timesteps:
        result = advance(scheduler, t, x, None)
        x = result.prev_sample
    assert x.device.type == "meta" and result[-1].device.type == "meta"


@each
def test_tables_are_handed_out_in_the_library_asked_for(cls):
    scheduler = cls()
    names = ["timesteps", "betas", "alphas"] + ["sigmas"] * (cls is not IPNDMScheduler)
    any_array.check_tables(scheduler, names)
    assert scheduler.timesteps.dtype == jnp.float32
    assert cls().timesteps.dtype == np.float64


def test_the_estimate_is_computed_only_when_it_is_read(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "anystep.schedulers._indexed.estimate", lambda *args: calls.append(len(calls)) or args[2]
    )
    for cls in (LMSDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler):
        scheduler = cls()
        scheduler.set_timesteps(2)
        for return_dict in (True, False):
            t = scheduler.timesteps[scheduler.step_index or 0]
            scheduler.scale_model_input(X, t)
            result = scheduler.step(X, t, X, return_dict=return_dict)
            before = len(calls)
            assert result[0].shape == X.shape and len(calls) == before
            assert result[1] is X and len(calls) == before + 1


def state(scheduler):
    kept = {k: v for k, v in vars(scheduler).items() if k not in ("_plans", "is_scale_input_called")}
    kept["_run"] = (scheduler._run[0], tuple(map(id, scheduler._run[1] or ())))
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in kept.items()}


FAILURES = [
    *any_array.FAILURES,
    (lambda s, t: s.set_begin_index(70), ValueError, "begin_index=70"),
    (lambda s, t: s.step(X.astype(int), t, X), TypeError, "dtype int64"),
    (lambda s, t: s.step(X, t, X.astype(int)), TypeError, "dtype int64"),
    (lambda s, t: s.step(torch.zeros(X.shape), t, X), TypeError, "torch"),
]


@pytest.mark.parametrize(("call", "error", "message"), FAILURES)
@pytest.mark.parametrize("done", [0, 1, 2])
@each
def test_an_error_says_what_to_do_and_changes_nothing(cls, done, call, error, message):
    """Before the first step and in the middle, where there is a history; the run then ends as if nothing had been."""

    def made():
        scheduler = cls()
        scheduler.set_timesteps(6)
        scheduler.is_scale_input_called = True
        return scheduler

    any_array.check_failure(made, advance, state, done, call, error, message)


@each
def test_too_many_steps_are_refused_and_change_nothing(cls):
    scheduler = cls()
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        advance(scheduler, t, X, None)
    for _ in range(2):
        with pytest.raises(
            IndexError, match=f"{len(scheduler.timesteps)} steps are done; call set_timesteps"
        ):
            scheduler.step(X, 0.0, X)
        assert scheduler.step_index == len(scheduler.timesteps)
    scheduler.set_timesteps(2)
    assert scheduler.step_index is None and scheduler._run[1] is None


@each
def test_interleaved_copies_equal_running_alone(cls):
    alone = trajectory(cls)
    origin = cls()
    origin.set_timesteps(6)
    rng, x = np.random.default_rng(3), None
    x = rng.standard_normal(X.shape, dtype=np.float32) * np.float32(origin.init_noise_sigma)
    for t in origin.timesteps[:3]:  # copied in the middle, history and all
        x = advance(origin, t, x, rng).prev_sample
    copies = [origin.clone(), copy.deepcopy(origin), pickle.loads(pickle.dumps(origin)), origin]
    rngs, xs = [copy.deepcopy(rng) for _ in copies], [x.copy() for _ in copies]
    for t in origin.timesteps[3:]:
        for k, scheduler in enumerate(copies):
            xs[k] = advance(scheduler, t, xs[k], rngs[k]).prev_sample
    for x in xs:
        np.testing.assert_array_equal(x, alone[-1] if cls is IPNDMScheduler else alone[-2])


@each
@settings(max_examples=40)
@given(steps=st.integers(1, 1000))
def test_every_n_gives_n_strictly_descending_timesteps(cls, steps):
    scheduler = cls()
    scheduler.set_timesteps(steps)
    calls = cls.order  # of a step; the last has one
    assert len(scheduler.timesteps) == calls * steps - calls + 1
    assert (np.diff(scheduler.timesteps[::calls]) < 0).all() and (np.diff(scheduler.timesteps) <= 0).all()


@each
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_few_steps_and_many(cls, steps):
    found = trajectory(cls, dtype="float64", steps=steps)[-1]
    assert np.isfinite(found).all()


@each
def test_a_facade_steps_inside_jit(cls):
    scheduler = cls()
    scheduler.set_timesteps(5)
    key = jax.random.key(0)

    def loop(x):
        run = scheduler.clone()
        for t in run.timesteps:
            x = run.step(run.scale_model_input(x, t) * 0.5, t, x, **drawn(cls, key)).prev_sample
        return x

    x = jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(1, 3, 2, 2)
    np.testing.assert_allclose(jax.jit(loop)(x), loop(x), rtol=0, atol=2e-5)


def test_generators_one_per_sample_equal_samples_alone():
    x = torch.ones((2, 1, 4, 4))

    def stepped(x, generator):
        scheduler = EulerAncestralDiscreteScheduler()
        scheduler.set_timesteps(3)
        t = scheduler.timesteps[1]
        scheduler.scale_model_input(x, t)
        return scheduler.step(x, t, x, generator=generator).prev_sample

    both = stepped(x, [torch.Generator().manual_seed(s) for s in (1, 2)])
    for k, seed in enumerate((1, 2)):
        assert torch.equal(stepped(x[k : k + 1], torch.Generator().manual_seed(seed))[0], both[k])


def test_jax_noise_needs_a_key():
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(2)
    x = jnp.ones((1, 1, 2, 2))
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    with pytest.raises(ValueError, match="generator"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.step(x, scheduler.timesteps[0], x, generator=jax.random.key(0))


def test_a_single_linspace_step_starts_at_noise_if_corrected():
    for cls in (*FACADES[:1], *FACADES[2:], EulerDiscreteScheduler):
        facade = cls()
        right = facade.corrected("linspace-single-step")
        for scheduler, t in ((facade, 0.0), (right, 999.0)):
            scheduler.set_timesteps(1)
            assert scheduler.timesteps.tolist() == [t]
            assert scheduler.sigmas[0] == scheduler.schedule.level(t).karras_sigma


@each
def test_ids_of_deviations_are_documented(cls):
    check_documented(cls)
