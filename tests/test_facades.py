"""The diffusers-named classes beyond parity: any array in and the same out, errors that change nothing, corrections, sharing."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anystep
from anystep import DDIM, DDPM, BetaSchedule, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, Trailing
from anystep._array import backend, kind
from reference.any_array import check_equal_bits

FACADES = [DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler]
STOCHASTIC = {DDIMScheduler: {"eta": 1.0}, DDPMScheduler: {}, EulerDiscreteScheduler: {"s_churn": 2.0}}
ARRAYS = [
    ("numpy", None, ("float16", "bfloat16", "float32", "float64")),
    ("torch", None, ("float16", "bfloat16", "float32", "float64")),
    ("jax", None, ("float16", "bfloat16", "float32")),
    ("array_api_strict", "device1", ("float32", "float64")),
]
CELLS = [(name, device, dtype) for name, device, dtypes in ARRAYS for dtype in dtypes]


def trajectory(cls, name="numpy", device=None, dtype="float32", steps=6, **config):
    """A whole run with noise from NumPy's generator; samples and estimates, on their library."""
    lib, rng = backend(name), np.random.default_rng(3)
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    start = rng.standard_normal((2, 3, 4, 4), dtype=np.float32) * scheduler.init_noise_sigma
    x = lib.asarray(start, dtype=dtype, device=lib.device(device))
    run = [x]
    for t in scheduler.timesteps:
        # NumPy promotes bfloat16 * 0.5 to float32, and noise is drawn in the dtype of the model's output.
        output = kind(x).xp.astype(scheduler.scale_model_input(x, t) * 0.5, x.dtype)
        result = scheduler.step(output, t, x, generator=rng, **STOCHASTIC[cls])
        x = result.prev_sample
        run += [x, result.pred_original_sample]
    return run


@pytest.mark.parametrize(("name", "device", "dtype"), CELLS)
@pytest.mark.parametrize("cls", FACADES)
def test_same_array_out_and_equal_bits(cls, name, device, dtype):
    with anystep.reproducible():
        run = trajectory(cls, name, device, dtype)
        reference = trajectory(cls, "numpy", None, dtype)
    check_equal_bits(run, reference, name)


def test_a_scheduler_whose_dtype_is_wrong_would_fail_the_test_above():
    run = trajectory(DDIMScheduler, "torch", None, "float16")
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(run[1].float().numpy(), (run[1].float() * (1 + 2e-3)).numpy())


@pytest.mark.parametrize("cls", FACADES)
def test_tables_are_handed_out_in_the_library_asked_for(cls):
    scheduler = cls()
    scheduler.set_timesteps(4)
    assert isinstance(scheduler.timesteps, np.ndarray)
    assert isinstance(scheduler.alphas_cumprod, np.ndarray)
    assert scheduler.alphas_cumprod.dtype == np.float64
    scheduler.set_timesteps(4, device=torch.device("cpu"))
    assert isinstance(scheduler.timesteps, torch.Tensor)
    assert scheduler.timesteps.dtype == (torch.float32 if cls is EulerDiscreteScheduler else torch.int64)
    assert scheduler.betas.dtype == torch.float32
    scheduler.to(jax.devices()[0])
    assert isinstance(scheduler.timesteps, jax.Array)
    scheduler.to("numpy")
    assert isinstance(scheduler.timesteps, np.ndarray)
    with pytest.raises(ValueError, match="device="):
        scheduler.to("quantum")


@pytest.mark.parametrize("cls", FACADES)
def test_a_step_reads_nothing_from_the_device(cls):
    """On PyTorch's meta device every attempt to read a value raises."""
    scheduler = cls()
    scheduler.set_timesteps(5, device=torch.device("meta"))
    x = torch.empty((2, 3, 4, 4), device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
    assert x.device.type == "meta"


def test_the_estimate_is_computed_only_when_it_is_read(monkeypatch):
    calls = []
    original = anystep.schedulers._alpha.estimate
    monkeypatch.setattr(anystep.schedulers._alpha, "estimate", lambda *a: calls.append(1) or original(*a))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    x = np.ones((1, 1, 2, 2))
    for return_dict in (True, False):
        result = scheduler.step(x, 500, x, return_dict=return_dict)
        assert result[0].shape == x.shape
        assert not calls
        assert result[1].shape == x.shape
        assert result[1] is result[1]
        assert calls == [1]
        calls.clear()


def state(scheduler):
    """All that a failed call must leave alone."""
    kept = {k: v for k, v in vars(scheduler).items() if k not in ("_plans", "is_scale_input_called")}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in kept.items()}


X = np.zeros((2, 3, 4, 4), dtype=np.float32)
FAILURES = [
    (DDIMScheduler, lambda s: s.set_timesteps(0), ValueError, "num_inference_steps=0"),
    (DDIMScheduler, lambda s: s.set_timesteps(1001), ValueError, "num_inference_steps=1001.*1000"),
    (DDIMScheduler, lambda s: s.set_timesteps(2.5), ValueError, "num_inference_steps=2.5"),
    (DDIMScheduler, lambda s: s.set_timesteps(True), ValueError, "num_inference_steps=True"),
    (DDIMScheduler, lambda s: s.set_timesteps(5, device="quantum"), ValueError, "quantum"),
    (DDIMScheduler, lambda s: s.step(X, 750, X[:1]), ValueError, r"model_output has shape \(2, 3, 4, 4\)"),
    (DDIMScheduler, lambda s: s.step(X.astype(int), 750, X), TypeError, "model_output has dtype int64"),
    (DDIMScheduler, lambda s: s.step(X, 750, X.astype(int)), TypeError, "sample has dtype int64"),
    (
        DDIMScheduler,
        lambda s: s.step(torch.zeros(X.shape), 750, X),
        TypeError,
        "model_output is a torch array",
    ),
    (DDIMScheduler, lambda s: s.step(X, 1000, X), ValueError, "t=1000 is outside"),
    (DDIMScheduler, lambda s: s.step(X, -1, X), ValueError, "t=-1 is outside"),
    (DDIMScheduler, lambda s: s.step(X, 750, X, eta=2.0), ValueError, "eta=2.0 is outside"),
    (
        DDIMScheduler,
        lambda s: s.step(X, 750, X, eta=1.0, variance_noise=X[:1]),
        ValueError,
        "noise has shape",
    ),
    (DDIMScheduler, lambda s: s.step(X, 750, X, eta=1.0, generator=3), (TypeError, ValueError), "generator"),
    (DDIMScheduler, lambda s: s.step(X, np.asarray([750, 500]), X), ValueError, "timestep has shape"),
    (DDPMScheduler, lambda s: s.set_timesteps(), ValueError, "one of num_inference_steps and timesteps"),
    (DDPMScheduler, lambda s: s.set_timesteps(4, timesteps=[3, 2]), ValueError, "one of"),
    (
        DDPMScheduler,
        lambda s: s.set_timesteps(timesteps=[1, 2]),
        ValueError,
        r"timesteps\[1\]=2.0 is not below",
    ),
    (
        DDPMScheduler,
        lambda s: s.set_timesteps(timesteps=[1000, 2]),
        ValueError,
        "below num_train_timesteps=1000",
    ),
    (DDPMScheduler, lambda s: s.set_timesteps(timesteps=[9.5, 2]), ValueError, "expected integers"),
    (DDPMScheduler, lambda s: s.set_timesteps(timesteps=[np.nan]), ValueError, r"timesteps\[0\]=nan"),
    (DDPMScheduler, lambda s: s.set_timesteps(timesteps=[]), ValueError, "timesteps="),
    (EulerDiscreteScheduler, lambda s: s.set_timesteps(), ValueError, "exactly one"),
    (EulerDiscreteScheduler, lambda s: s.set_timesteps(3, sigmas=[3, 2, 0]), ValueError, "exactly one"),
    (
        EulerDiscreteScheduler,
        lambda s: s.set_timesteps(sigmas=[3, np.nan, 0]),
        ValueError,
        r"sigmas\[1\]=nan",
    ),
    (
        EulerDiscreteScheduler,
        lambda s: s.set_timesteps(sigmas=[1, 2, 0]),
        ValueError,
        r"sigmas\[1\]=2.0 is not below",
    ),
    (EulerDiscreteScheduler, lambda s: s.set_timesteps(sigmas=[3, -1]), ValueError, r"sigmas\[1\]=-1.0"),
    (EulerDiscreteScheduler, lambda s: s.set_timesteps(sigmas=[3]), ValueError, r"N \+ 1 numbers"),
    (EulerDiscreteScheduler, lambda s: s.set_timesteps(timesteps=[5, 9]), ValueError, "is not below"),
    (EulerDiscreteScheduler, lambda s: s.step(X, 3, X), ValueError, "is an integer"),
    (EulerDiscreteScheduler, lambda s: s.step(X, 3.25, X), IndexError, "timestep=3.25"),
    (EulerDiscreteScheduler, lambda s: s.step(X, 999.0, X[:1]), ValueError, "model_output has shape"),
    (EulerDiscreteScheduler, lambda s: s.set_begin_index(-1), ValueError, "begin_index=-1"),
    (EulerDiscreteScheduler, lambda s: s.corrected("nonsense"), ValueError, "nonsense"),
]


@pytest.mark.parametrize(("cls", "call", "error", "message"), FAILURES)
def test_an_error_says_what_to_do_and_changes_nothing(cls, call, error, message):
    scheduler = cls()
    scheduler.set_timesteps(4)
    if cls is EulerDiscreteScheduler:
        scheduler.is_scale_input_called = True
    before = state(scheduler)
    with pytest.raises(error, match=message):
        call(scheduler)
    assert state(scheduler) == before


CONFIGS = [
    ({"beta_schedule": "quadratic"}, NotImplementedError, "beta_schedule='quadratic'.*linear, scaled_linear"),
    ({"prediction_type": "noise"}, ValueError, "prediction_type='noise'.*epsilon"),
    ({"timestep_spacing": "uniform"}, ValueError, "timestep_spacing='uniform'.*leading"),
    ({"beta_start": 2.0}, ValueError, "beta_start=2.0"),
    ({"beta_end": float("nan")}, ValueError, "beta_end=nan"),
    ({"num_train_timesteps": 0}, ValueError, "num_train_timesteps=0"),
    ({"num_train_timesteps": "1000"}, ValueError, "num_train_timesteps='1000'"),
    ({"trained_betas": [0.1, np.nan]}, ValueError, r"betas\[1\]=nan"),
    ({"trained_betas": [0.1, 1.5]}, ValueError, r"betas\[1\]=1.5"),
    ({"trained_betas": []}, ValueError, "betas has shape"),
    ({"steps_offset": 0.5}, ValueError, "steps_offset=0.5"),
    ({"rescale_betas_zero_snr": "yes"}, ValueError, "rescale_betas_zero_snr='yes'"),
    ({"no_such_key": 1}, TypeError, "no_such_key"),
]


@pytest.mark.parametrize("cls", FACADES)
@pytest.mark.parametrize(("config", "error", "message"), CONFIGS)
def test_a_bad_config_is_refused_at_construction(cls, config, error, message):
    with pytest.raises(error, match=message):
        cls(**config)


def test_step_before_set_timesteps_is_refused_where_the_step_would_be_unknown():
    with pytest.raises(ValueError, match="set_timesteps"):
        DDIMScheduler().step(X, 10, X)


def test_too_many_steps_are_refused_and_change_nothing():
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        scheduler.step(scheduler.scale_model_input(X, t), t, X)
    assert scheduler.step_index == 2
    with pytest.raises(IndexError, match="2 steps are done; call set_timesteps"):
        scheduler.step(X, 0.0, X)
    assert scheduler.step_index == 2


def test_jax_noise_needs_a_key_or_the_noise():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    x = jnp.ones((1, 1, 2, 2))
    with pytest.raises(ValueError, match="generator"):
        scheduler.step(x, 500, x, eta=1.0)
    scheduler.step(x, 500, x, eta=1.0, generator=jax.random.key(0))


@pytest.mark.parametrize("cls", FACADES)
def test_epsilon_at_zero_terminal_snr(cls):
    """Without clipping there is no answer, and DDIM and DDPM say so; Euler starts from sigma = 4096, as in diffusers."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if cls is EulerDiscreteScheduler:
        scheduler = cls(**config)
        scheduler.set_timesteps(3)
        assert scheduler.sigmas[0] == pytest.approx(4096.0, rel=1e-7)
        return
    with pytest.raises(ValueError, match="zero terminal SNR"):
        cls(**config, clip_sample=False).set_timesteps(3)
    assert np.isfinite(trajectory(cls, steps=3, **config)[-1]).all()
    assert np.isfinite(
        trajectory(cls, steps=3, **config, clip_sample=False, prediction_type="v_prediction")[-1]
    ).all()


def test_a_config_replaced_after_construction_counts():
    """diffusers' pipelines assign a new dict to _internal_dict."""
    scheduler = DDIMScheduler(steps_offset=0, clip_sample=True)
    scheduler._internal_dict = {**scheduler.config, "steps_offset": 1, "clip_sample": False}
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [751, 501, 251, 1]
    far = scheduler.step(X, 751, X + 9)
    assert abs(far.pred_original_sample).max() > 1
    with pytest.raises(ValueError, match="prediction_type"):
        scheduler._internal_dict = {**scheduler.config, "prediction_type": "?"}
    assert scheduler.config.prediction_type == "epsilon"


def test_corrected_ddim_steps_to_the_next_timestep():
    """The facade steps to t - T // N; corrected, and in anystep's own face, it steps to the next timestep."""
    config = {"timestep_spacing": "trailing", "clip_sample": False}
    facade = DDIMScheduler(**config)
    right = facade.corrected("ddim-previous-timestep")
    levels = Trailing().levels(BetaSchedule.named("linear"), steps=7)
    plan = DDIM().plan(levels, "epsilon")
    x, m = np.full((1, 2), 0.7), np.full((1, 2), 0.3)
    for scheduler, same in ((facade, False), (right, True)):
        scheduler.set_timesteps(7)
        moved = [scheduler.step(m, t, x).prev_sample for t in scheduler.timesteps]
        own = [anystep.update(plan, i, anystep.State(x), m).x for i in range(7)]
        assert np.allclose(moved, own, rtol=1e-13) is same
    assert facade._corrections == frozenset()


def test_corrected_ddpm_ends_without_noise():
    x = np.ones((1, 1, 4, 4))
    for ids, noisy in (((), True), (("ddpm-last-noise",), False)):
        scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing")
        scheduler = scheduler.corrected(*ids) if ids else scheduler
        scheduler.set_timesteps(5)
        t = int(scheduler.timesteps[-1])
        one, two = (scheduler.step(x, t, x, generator=np.random.default_rng(s)).prev_sample for s in (0, 1))
        assert bool((one != two).any()) is noisy


def test_corrected_euler_log_linear_and_velocity():
    scheduler = EulerDiscreteScheduler(interpolation_type="log_linear")
    scheduler.set_timesteps(5)
    assert len(scheduler.sigmas) == 7
    assert len(scheduler.timesteps) == 5
    right = scheduler.corrected()
    right.set_timesteps(5)
    assert len(right.sigmas) == 6
    assert right.sigmas[-1] == 0
    assert np.ptp(np.diff(np.log(right.sigmas[:-1]))) < 1e-9
    x0, noise = np.ones((1, 2)), np.full((1, 2), 3.0)
    t = float(right.timesteps[2])
    level = right.schedule.level(t)
    np.testing.assert_allclose(right.get_velocity(x0, noise, [t]), level.alpha_t * noise - level.sigma_t * x0)


def test_trailing_spacing_has_n_timesteps_for_every_n():
    """diffusers has N + 1 for 62 of them, the last -1."""
    for cls in FACADES:
        scheduler = cls(timestep_spacing="trailing")
        for steps in (61, 103, 121, 122, 201, 999, 1000):
            scheduler.set_timesteps(steps)
            assert len(scheduler.timesteps) == steps
            assert scheduler.timesteps[-1] >= 0


@pytest.mark.parametrize("cls", FACADES)
@given(steps=st.integers(1, 1000), spacing=st.sampled_from(["leading", "trailing", "linspace"]))
def test_every_n_gives_n_strictly_descending_timesteps(cls, steps, spacing):
    scheduler = cls(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    assert (np.diff(scheduler.timesteps) < 0).all()


@pytest.mark.parametrize("cls", FACADES)
def test_interleaved_clones_equal_running_alone(cls):
    alone = trajectory(cls)
    origin = cls()
    origin.set_timesteps(6)
    copies = [origin.clone(), copy.deepcopy(origin), pickle.loads(pickle.dumps(origin))]
    rngs = [np.random.default_rng(3) for _ in copies]
    scale = origin.init_noise_sigma
    xs = [rng.standard_normal((2, 3, 4, 4), dtype=np.float32) * np.float32(scale) for rng in rngs]
    for t in origin.timesteps:
        for k, scheduler in enumerate(copies):
            output = scheduler.scale_model_input(xs[k], t) * 0.5
            xs[k] = scheduler.step(output, t, xs[k], generator=rngs[k], **STOCHASTIC[cls]).prev_sample
    for x in xs:
        np.testing.assert_array_equal(x, alone[-2])


def test_generators_one_per_sample_equal_samples_alone():
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(3)
    x = torch.ones((2, 1, 4, 4))
    both = scheduler.step(x, 666, x, generator=[torch.Generator().manual_seed(s) for s in (1, 2)]).prev_sample
    for k, seed in enumerate((1, 2)):
        one = scheduler.step(x[k : k + 1], 666, x[k : k + 1], generator=torch.Generator().manual_seed(seed))
        assert torch.equal(one.prev_sample[0], both[k])


def test_a_facade_steps_inside_jit():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)

    @jax.jit
    def loop(x):
        for t in scheduler.timesteps:
            x = scheduler.step(x * 0.5, t, x).prev_sample
        return x

    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    eager = x
    for t in scheduler.timesteps:
        eager = scheduler.step(eager * np.float32(0.5), t, eager).prev_sample
    np.testing.assert_allclose(loop(jnp.asarray(x)), eager, rtol=0, atol=1e-6)


def test_learned_variance_is_the_log_variance():
    scheduler = DDPMScheduler(variance_type="learned", clip_sample=False)
    scheduler.set_timesteps(4)
    x, mean, log_variance = np.random.default_rng(0).standard_normal((3, 1, 2, 3, 3))
    output = np.concatenate([mean, log_variance], axis=1)
    noise = np.random.default_rng(7).standard_normal((1, 2, 3, 3))
    got = scheduler.step(output, 500, x, generator=np.random.default_rng(7)).prev_sample
    plain = DDPM("unit").plan(scheduler._levels(np.asarray([500])), "epsilon")
    expected = plain.folded[0, 0, 0] * x + plain.folded[0, 0, 1] * mean + np.exp(log_variance / 2) * noise
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="twice the 2 channels"):
        scheduler.step(mean, 500, x)


def test_euler_warns_where_the_input_was_not_scaled(caplog):
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    scheduler.step(X, scheduler.timesteps[0], X)
    assert "scale_model_input" in caplog.text
    caplog.clear()
    scheduler.scale_model_input(X, scheduler.timesteps[1])
    scheduler.step(X, scheduler.timesteps[1], X)
    assert not caplog.text
