"""`KarrasVeScheduler`, `ScoreSdeVeScheduler` and `ScoreSdeVpScheduler` beyond parity: arrays, errors, corrections, clones."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from anystep import (
    VP,
    EulerMaruyama,
    KarrasVeScheduler,
    Levels,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    init,
    reproducible,
    update,
)
from anystep_conformance.compare import compare
from anystep_conformance.libraries import cases, library

SHAPE = (2, 3, 4)
FACADES = [KarrasVeScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler]
each = pytest.mark.parametrize("cls", FACADES)


def calls(scheduler, make, generator, steps=4):
    """A short run; everything that the scheduler returns. Outputs are the same numbers whatever the samples."""
    scheduler.set_timesteps(steps)
    rng = np.random.default_rng(0)
    x = make(5 * rng.standard_normal(SHAPE))
    outputs = [make(rng.standard_normal(SHAPE)) for _ in range(3 * steps)]
    seen = []
    if isinstance(scheduler, KarrasVeScheduler):
        for t in reversed(range(steps)):
            sigma, prev = scheduler.schedule[t], scheduler.schedule[t - 1] if t else 0
            hat, high = scheduler.add_noise_to_input(x, sigma, generator)
            out = scheduler.step(outputs.pop(), high, prev, hat)
            x = out.prev_sample
            seen += [hat, x, out.derivative, out.pred_original_sample]
            if t:
                x = scheduler.step_correct(outputs.pop(), high, prev, hat, x, out.derivative).prev_sample
                seen += [x]
    elif isinstance(scheduler, ScoreSdeVeScheduler):
        scheduler.set_sigmas(steps)
        for t in scheduler.timesteps:
            x = scheduler.step_correct(outputs.pop(), x, generator).prev_sample
            out = scheduler.step_pred(outputs.pop(), t, x, generator)
            x = out.prev_sample
            seen += [x, out.prev_sample_mean]
    else:
        for t in scheduler.timesteps:
            x, mean = scheduler.step_pred(outputs.pop(), x, t, generator)
            seen += [x, mean]
    return seen


@each
@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_same_array_out_and_the_same_numbers(cls, entry, dtype):
    """Bit for bit, but for the norms of the corrector, which libraries add up in their own order."""
    with entry.scope(dtype), reproducible():
        config = (
            {"sigma_min": 0.1, "sigma_max": 5.0} if cls is ScoreSdeVeScheduler else {}
        )  # 1348² is too much for float16
        run = calls(cls(**config), lambda values: entry.array(values, dtype), np.random.default_rng(3))
        plain = library("numpy")
        expected = calls(cls(**config), lambda values: plain.array(values, dtype), np.random.default_rng(3))
        for found, wanted in zip(run, expected, strict=True):
            assert type(found) is type(run[0]) and found.dtype == run[0].dtype
            assert str(getattr(found, "device", "")) == str(getattr(run[0], "device", ""))
            if cls is ScoreSdeVeScheduler:
                wide = plain.read(wanted).astype(np.float64)
                eps = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, "float64": 1e-14}[dtype]
                np.testing.assert_allclose(
                    entry.read(found).astype(np.float64), wide, rtol=0, atol=eps * np.abs(wide).max()
                )
            else:
                compare(entry.read(found), plain.read(wanted), ulp=0)


@each
def test_a_step_reads_nothing_from_the_device(cls):
    """On PyTorch's meta device every attempt to read a value raises."""
    scheduler = cls()
    scheduler.set_timesteps(4, device=torch.device("meta"))
    run = calls(scheduler, lambda values: torch.empty(SHAPE, device="meta"), None)
    assert all(array.device.type == "meta" for array in run)
    if cls is not KarrasVeScheduler:
        times = torch.full((2,), 0.5, device="meta")
        x = torch.empty(SHAPE, device="meta")
        out = (
            scheduler.step_pred(x, times, x)
            if cls is ScoreSdeVeScheduler
            else scheduler.step_pred(x, x, times)
        )
        assert out[0].device.type == "meta"


def test_traced_times_compile():
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), dtype=jnp.float32)
    times, key = jnp.asarray([0.25, 0.75], dtype=jnp.float32), jax.random.key(0)
    for cls in (ScoreSdeVeScheduler, ScoreSdeVpScheduler):
        scheduler = cls()
        scheduler.set_timesteps(10)
        order = (lambda m, t, x: (m, t, x)) if cls is ScoreSdeVeScheduler else (lambda m, t, x: (m, x, t))
        step = lambda t, scheduler=scheduler, order=order: scheduler.clone().step_pred(*order(x, t, x), key)[
            0
        ]
        np.testing.assert_allclose(jax.jit(step)(times), step(times), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [np.asarray, torch.tensor, jnp.asarray, list], ids=["numpy", "torch", "jax", "list"]
)
def test_every_sample_may_have_its_own_time(make):
    rng = np.random.default_rng(0)
    x, output = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
    convert = np.asarray if make is list else lambda a: make(a)
    for cls in (ScoreSdeVeScheduler, ScoreSdeVpScheduler):
        ve = cls is ScoreSdeVeScheduler
        scheduler = cls()
        scheduler.set_timesteps(5)
        if ve:
            scheduler.set_sigmas(5)
        step = lambda s, t, rows, ve=ve: (
            s.step_pred(convert(output[rows]), t, convert(x[rows])).prev_sample_mean
            if ve
            else s.step_pred(convert(output[rows]), convert(x[rows]), t, np.random.default_rng(0))[1]
        )
        if ve:
            step = lambda s, t, rows: (
                s.step_pred(
                    convert(output[rows]), t, convert(x[rows]), np.random.default_rng(0)
                ).prev_sample_mean
            )
        both = np.asarray(step(scheduler, make([0.25, 1.0]), slice(None)))
        for row, t in enumerate((0.25, 1.0)):
            alone = np.asarray(step(scheduler, t, slice(row, row + 1)))
            np.testing.assert_allclose(both[row : row + 1], alone, rtol=2e-6, atol=2e-6 * np.abs(alone).max())
        assert np.abs(both - np.asarray(step(scheduler, make([1.0, 0.25]), slice(None)))).max() > 1e-2


def state(scheduler):
    kept = {k: v for k, v in vars(scheduler).items() if k not in ("_plans", "_draws")}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in kept.items()}


X = np.ones(SHAPE, dtype=np.float32)
FAILURES = [
    (KarrasVeScheduler, lambda s: s.set_timesteps(0), ValueError, "num_inference_steps=0"),
    (KarrasVeScheduler, lambda s: s.step(X, 2.0, 3.0, X), ValueError, "is not below"),
    (KarrasVeScheduler, lambda s: s.step(X[:1], 3.0, 2.0, X), ValueError, "model_output has shape"),
    (KarrasVeScheduler, lambda s: s.step_correct(X, 3.0, 0, X, X, X), ValueError, "sigma_prev=0"),
    (KarrasVeScheduler, lambda s: s.add_noise_to_input(X, -1.0), ValueError, "sigma=-1"),
    (KarrasVeScheduler, lambda s: s.add_noise(X, X, [0]), NotImplementedError, "add_noise"),
    (KarrasVeScheduler, lambda s: len(s), TypeError, "no length"),
    (ScoreSdeVeScheduler, lambda s: s.set_timesteps(2.5), ValueError, "num_inference_steps=2.5"),
    (ScoreSdeVeScheduler, lambda s: s.set_timesteps(4, sampling_eps=0.0), ValueError, "sampling_eps=0"),
    (ScoreSdeVeScheduler, lambda s: s.set_sigmas(4, sigma_min=1e9), ValueError, "sigma_min="),
    (ScoreSdeVeScheduler, lambda s: s.step_pred(X, 1.5, X), ValueError, "timestep=1.5"),
    (ScoreSdeVeScheduler, lambda s: s.step_pred(X[:1], 0.5, X), ValueError, "model_output has shape"),
    (
        ScoreSdeVeScheduler,
        lambda s: s.step_correct(X[:1], X, np.random.default_rng(0)),
        ValueError,
        "model_output has shape",
    ),
    (ScoreSdeVpScheduler, lambda s: s.set_timesteps(None), ValueError, "num_inference_steps=None"),
    (
        ScoreSdeVpScheduler,
        lambda s: s.step_pred(X, X, [0.0, 0.5], np.random.default_rng(0)),
        ValueError,
        "expected times in",
    ),
    (
        ScoreSdeVpScheduler,
        lambda s: s.step_pred(X, X, [0.5] * 3, np.random.default_rng(0)),
        ValueError,
        "one per sample",
    ),
]


@pytest.mark.parametrize(("cls", "call", "error", "message"), FAILURES)
def test_an_error_changes_nothing(cls, call, error, message):
    scheduler = cls()
    scheduler.set_timesteps(4)
    before = state(scheduler)
    with pytest.raises(error, match=message):
        call(scheduler)
    assert state(scheduler) == before


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (KarrasVeScheduler, {"sigma_min": 0}), (KarrasVeScheduler, {"sigma_max": 0.01}), (KarrasVeScheduler, {"s_churn": -1}),
        (ScoreSdeVeScheduler, {"snr": -1}), (ScoreSdeVeScheduler, {"sigma_min": 5000}),
        (ScoreSdeVeScheduler, {"sampling_eps": 2}), (ScoreSdeVeScheduler, {"correct_steps": 0.5}),
        (ScoreSdeVpScheduler, {"beta_max": 0.1}),
        (ScoreSdeVpScheduler, {"sampling_eps": 0}), (ScoreSdeVpScheduler, {"num_train_timesteps": 0}),
    ],
)  # fmt: skip
def test_a_config_out_of_range_is_refused(cls, config):
    with pytest.raises(ValueError, match=f"{next(iter(config))}="):
        cls(**config)


def test_steps_before_set_timesteps_are_refused():
    with pytest.raises(ValueError, match="set_timesteps"):
        KarrasVeScheduler().add_noise_to_input(X, 1.0)
    with pytest.raises(ValueError, match="set_timesteps"):
        ScoreSdeVpScheduler().step_pred(X, X, 0.5)
    assert (
        KarrasVeScheduler().timesteps
        is KarrasVeScheduler().schedule
        is ScoreSdeVpScheduler().timesteps
        is None
    )
    assert bool(KarrasVeScheduler())


@each
@pytest.mark.parametrize(
    "duplicate", [lambda s: s.clone(), copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_interleaved_copies_do_not_disturb_each_other(cls, duplicate):
    alone = calls(cls(), np.asarray, np.random.default_rng(3))
    one = cls()
    one.set_timesteps(7)
    other = duplicate(one)
    calls(other, np.asarray, np.random.default_rng(4), steps=3)
    assert len(one.timesteps) == 7 and len(other.timesteps) == 3
    for a, b in zip(calls(one, np.asarray, np.random.default_rng(3)), alone, strict=True):
        np.testing.assert_array_equal(a, b)


@each
def test_config_files_travel(cls, tmp_path):
    scheduler = cls()
    scheduler.save_pretrained(tmp_path)
    given = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    assert given.items() <= cls.from_pretrained(tmp_path).config.items()


# ---------------------------------------------------------------- what they are told


def karras_ve_step(scheduler, told, make=np.asarray):
    """Raised, stepped and corrected between the levels that are told; the results in float64."""
    x, output, again = make(np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32))
    hat, high = scheduler.add_noise_to_input(x, told[0], np.random.default_rng(1))
    out = scheduler.step(output, high, told[1], hat)
    better = scheduler.step_correct(again, high, told[1], hat, out.prev_sample, out.derivative)
    arrays = hat, out.prev_sample, out.derivative, out.pred_original_sample, *better.to_tuple()
    return high, np.stack([np.asarray(array, dtype=float) for array in arrays])


@pytest.mark.parametrize("steps", [2, 9])
def test_karras_ve_at_levels_of_a_run_and_at_any_others(steps):
    """An entry of the schedule, wherever it lies, is its float64 level; a plan of many steps is that of each of them alone."""
    plain, run, entries = KarrasVeScheduler(s_churn=3), KarrasVeScheduler(s_churn=3), {}
    for scheduler in (plain, run):
        scheduler.set_timesteps(steps)
    for t in range(1, steps):
        told = run.schedule[t], run.schedule[t - 1]
        high, wanted = karras_ve_step(run, told)
        plain._plans = {"raises": plain._raised(np.ones(1)), "steps": _no_steps()}  # so that it makes its own
        with reproducible():
            alone, own = karras_ve_step(plain, told)
        assert len(plain._plans) == 4
        assert alone == high
        np.testing.assert_allclose(own, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
        for name, make in (("torch", torch.tensor), ("jax", jnp.asarray)):
            if name not in entries:
                entries[name] = KarrasVeScheduler(s_churn=3).to(name)
                entries[name].set_timesteps(steps)
            table = entries[name].schedule
            level, found = karras_ve_step(entries[name], (table[t], table[t - 1]), make)
            assert level == high
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6 * np.abs(wanted).max())
    assert not [key for scheduler in entries.values() for key in scheduler._plans if not isinstance(key, str)]


def _no_steps():
    from anystep.schedulers.karras_ve import _Steps

    return _Steps({}, Levels.chain([1, 0], [1, 1], [1.0, 0.0]))


def test_karras_ve_at_no_level():
    """The clean sample is raised to itself, and is no entry that float32 rounds to 0."""
    scheduler = KarrasVeScheduler(sigma_min=1e-24, sigma_max=1.0)
    scheduler.set_timesteps(3)
    assert scheduler.schedule[0] < 1e-46
    out, level = scheduler.add_noise_to_input(X, 0, np.random.default_rng(0))
    np.testing.assert_array_equal(out, X)
    assert level == 0.0
    assert scheduler.add_noise_to_input(X, scheduler.schedule[0], np.random.default_rng(0))[1] > 0


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("t", [1.0, 0.5, 0.4321, 1e-3])
def test_sde_vp_at_times_of_a_run_and_at_any_others(t, corrected):
    """As the method itself, with the width of the step; the mean is what is left without the noise."""
    scheduler = ScoreSdeVpScheduler()
    scheduler = scheduler.corrected() if corrected else scheduler
    scheduler.set_timesteps(3)
    x, output = np.random.default_rng(0).standard_normal((2, *SHAPE))
    times = np.full(len(x), t)
    noise = np.random.default_rng(1).standard_normal(SHAPE)
    wanted = EulerMaruyama(VP()).step(x, output, noise, times, scheduler._width(times))
    for told in (t, np.float64(t), [t], times):
        found = scheduler.step_pred(output, x, told, np.random.default_rng(1))
        assert isinstance(found, tuple)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_entries_are_the_times_that_they_were_before_rounding():
    """Float32 tables are told apart by place on PyTorch and by value on JAX: all give the rows of float64."""
    for cls in (ScoreSdeVeScheduler, ScoreSdeVpScheduler):
        seen = []
        for name, make in (("numpy", np.asarray), ("torch", torch.tensor), ("jax", jnp.asarray)):
            scheduler = cls().to(name)
            scheduler.set_timesteps(7)
            x, output = make(np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32))
            if cls is ScoreSdeVeScheduler:
                scheduler.set_sigmas(7)
                rows = [scheduler._row(t) for t in scheduler.timesteps]
                assert rows == list(range(7))
                continue
            with reproducible():
                steps = [
                    scheduler.step_pred(output, x, t, np.random.default_rng(1))[0]
                    for t in scheduler.timesteps
                ]
            seen.append(np.stack([np.asarray(step) for step in steps]))
            assert list(scheduler._plans) == [None]
        for other in seen[1:]:
            np.testing.assert_array_equal(other, seen[0])


def test_plans_for_numbers_of_the_callers_are_not_kept_for_ever(monkeypatch):
    from anystep.schedulers import karras_ve, sde_vp

    for module in (karras_ve, sde_vp):
        monkeypatch.setattr(module, "MOST_PLANS", 10)
    rng = np.random.default_rng(0)
    karras, vp = KarrasVeScheduler(), ScoreSdeVpScheduler()
    for scheduler in (karras, vp):
        scheduler.set_timesteps(4)
    for k in range(1, 60):
        karras.step(X, k + 0.5, k, karras.add_noise_to_input(X, k, rng)[0])
        vp.step_pred(X, X, k / 61, rng)
        assert max(len(karras._plans), len(vp._plans)) <= 13


# ---------------------------------------------------------------- corrections


def test_karras_ve_corrected_holds_sigmas():
    scheduler = KarrasVeScheduler(sigma_min=0.1, sigma_max=10)
    scheduler.set_timesteps(5)
    assert scheduler.schedule[-1] == 100.0
    right = scheduler.corrected()
    assert right.schedule is None
    right.set_timesteps(5)
    np.testing.assert_allclose(right.schedule**2, scheduler.schedule, rtol=1e-14)
    assert right.schedule[-1] == right.init_noise_sigma
    np.testing.assert_allclose(scheduler.schedule, [100 * (1e-4) ** (i / 4) for i in (4, 3, 2, 1, 0)])


def test_sde_ve_corrected_keeps_sigmas_and_times_together():
    plain, right = (
        ScoreSdeVeScheduler(sigma_max=100.0),
        ScoreSdeVeScheduler(sigma_max=100.0).corrected("sde-ve-sigmas-apart"),
    )
    for scheduler in (plain, right):
        scheduler.set_timesteps(5)
    assert len(plain.discrete_sigmas) == len(plain.sigmas) == 2000
    np.testing.assert_allclose(right.discrete_sigmas, [0.01, 0.1, 1, 10, 100])
    np.testing.assert_allclose(right.sigmas[0], 100)
    plain.set_sigmas(5)
    np.testing.assert_array_equal(plain.discrete_sigmas, right.discrete_sigmas)
    one = ScoreSdeVeScheduler().corrected()
    one.set_timesteps(1)
    assert one.discrete_sigmas.tolist() == [1348.0]


def test_sde_ve_corrected_visits_every_level_once():
    plain, right = ScoreSdeVeScheduler(sampling_eps=0.3), ScoreSdeVeScheduler(sampling_eps=0.3).corrected()
    for scheduler in (plain, right):
        scheduler.set_timesteps(20)
        scheduler.set_sigmas(20)
    assert [right._row(t) for t in right.timesteps] == list(range(20))
    assert [right._row(float(np.float32(t))) for t in right.timesteps] == list(range(20))
    assert len({plain._row(t) for t in plain.timesteps}) < 20


def test_sde_ve_reads_float32_times_as_the_levels_that_they_stand_for():
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(2000, device=torch.device("cpu"))
    wanted = list(range(2000))
    assert [scheduler._row(t) for t in scheduler.timesteps] == wanted
    assert [scheduler._row(float(t)) for t in scheduler.timesteps] == wanted
    assert scheduler._row(scheduler.timesteps.clone()).tolist() == wanted
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    assert scheduler._row(below) == scheduler._row(torch.tensor([below])) == 0


def test_sde_vp_corrected_steps_from_time_to_time():
    """As `EulerMaruyama` on the same times."""
    scheduler = ScoreSdeVpScheduler(sampling_eps=0.01).corrected()
    scheduler.set_timesteps(7)
    widths = [float(scheduler._width(np.asarray([t]))[0]) for t in scheduler.timesteps]
    np.testing.assert_allclose(widths, -np.diff(np.append(scheduler.timesteps, 0)), rtol=1e-12)
    level = VP().level(np.append(scheduler.timesteps, 0))
    plan = EulerMaruyama(VP()).plan(Levels.chain(level.t, level.alpha_t, level.sigma_t), "epsilon")
    rng = np.random.default_rng(0)
    x, output = rng.standard_normal((2, *SHAPE))
    for i, t in enumerate(scheduler.timesteps):
        noise = np.random.default_rng(1).standard_normal(SHAPE)
        moved, mean = scheduler.step_pred(output, x, t, np.random.default_rng(1))
        own = update(plan, i, init(plan, x), output, noise if plan.stochastic[i] else None).x
        np.testing.assert_allclose(moved if plan.stochastic[i] else mean, own, rtol=1e-10, atol=1e-12)


def test_ids_are_checked():
    with pytest.raises(ValueError, match="karras-ve-squared-sigmas"):
        KarrasVeScheduler().corrected("nonsense")
