"""RePaint: the forward process both ways, the walk, moments on Gaussian data; the facade's corrections, state and arrays."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from anystep import (
    DDIM,
    DDPM,
    PNDM,
    VE,
    VP,
    BetaSchedule,
    Clip,
    Cosine,
    DynamicThreshold,
    Leading,
    Linspace,
    RectifiedFlow,
    RePaintScheduler,
    State,
    Trailing,
    inpaint,
    inpaint_step,
    reproducible,
    resampling,
    undo_step,
    update,
)
from anystep._array import backend
from anystep._inpainting import BLOCK, LARGE
from anystep.repaint import blend, known, renoise, walk

LINEAR = BetaSchedule.named("linear")
LEVELS = Trailing().levels(LINEAR, 8), "epsilon"
PLAN = DDPM().plan(*LEVELS)
RNG = np.random.default_rng(5)
X, M, PICTURE, Z1, Z2 = RNG.standard_normal((5, 2, 3, 4)).astype(np.float32)
MASK = (np.arange(4) % 2 == 0).astype(np.float32)


# --- the forward process ---


@pytest.mark.parametrize("schedule", [VP(), VE(), Cosine(), RectifiedFlow(), LINEAR])
def test_known_and_undo_are_the_forward_process(schedule):
    """`undo_step` of `known` has the mean and the variance of `known` one level up, at any alpha and sigma."""
    plan = DDIM().plan(Linspace().levels(schedule, 10), "sample")
    one, zero = np.ones(()), np.zeros(())
    for i in range(1, len(plan)):
        mean, noise = known(plan, i, one, zero), known(plan, i, zero, one)
        kept, added = undo_step(plan, i, one, zero), undo_step(plan, i, zero, one)
        above = known(plan, i - 1, one, zero), known(plan, i - 1, zero, one)
        assert kept * mean == pytest.approx(above[0], rel=1e-12)
        assert (kept * noise) ** 2 + added**2 == pytest.approx(above[1] ** 2, rel=1e-12)
    last = len(plan) - 1
    assert known(plan, last, one, one) == 1.0  # the clean level


def test_undoing_one_training_timestep_is_the_papers_line():
    """Algorithm 1, line 10: √(1 - beta) x + √beta z."""
    plan = DDIM().plan(Leading().levels(LINEAR, 1000), "epsilon")
    for i in (0, 400, 999):
        beta = LINEAR.betas[999 - i]
        np.testing.assert_allclose(
            undo_step(plan, i, X, Z1), (1 - beta) ** 0.5 * X + beta**0.5 * Z1, rtol=0, atol=1e-6
        )


def test_renoise_is_the_steps_one_by_one():
    betas, x = np.asarray([0.1, 0.3, 0.02]), X.astype(float)
    expected = x
    for beta, z in zip(betas, (M, Z1, Z2), strict=True):
        expected = (1 - beta) ** 0.5 * expected + beta**0.5 * z
    np.testing.assert_allclose(renoise(x, betas, (M, Z1, Z2)), expected, rtol=0, atol=1e-14)


# --- one step ---


@pytest.mark.parametrize("i", [0, 4, 7])
@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), DDIM(eta=0.5)])
@pytest.mark.parametrize("threshold", [None, Clip(0.5)])
def test_equation_8(i, sampler, threshold):
    plan = sampler.plan(Trailing().levels(LINEAR, 8), "epsilon", threshold)
    fresh = Z2 if plan.stochastic[i] else None
    got = inpaint_step(plan, i, X, M, PICTURE, MASK, Z1, fresh)
    expected = plan.alpha[i + 1] * PICTURE + plan.sigma[i + 1] * Z1
    np.testing.assert_allclose(got[..., ::2], expected[..., ::2], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got[..., 1::2], update(plan, i, State(X), M, fresh).x[..., 1::2])


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (1, 1, 1), (), (2, 3, 4)])
def test_masks_broadcast_and_may_be_boolean_or_soft(shape):
    mask = RNG.random(shape)
    np.testing.assert_allclose(blend(mask, X, M), mask * X + (1 - mask) * M, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(blend(mask > 0.5, X, M), np.where(mask > 0.5, X, M))
    np.testing.assert_array_equal(blend((mask > 0.5).astype(np.int64), X, M), np.where(mask > 0.5, X, M))
    picture = X[:1]
    np.testing.assert_array_equal(
        inpaint_step(PLAN, 7, X, M, picture, np.ones(shape), Z1), np.broadcast_to(picture, X.shape)
    )


ERRORS = [
    (lambda: blend(np.ones((2, 2)), X, M), ValueError, r"mask has shape \(2, 2\)"),
    (lambda: blend(np.ones((1, 1, 1, 4)), X, M), ValueError, "mask has shape"),
    (lambda: blend(torch.ones(4), X, M), TypeError, "mask is a torch array"),
    (
        lambda: inpaint_step(PLAN, 0, X, M, torch.ones(4), MASK, Z1, Z2),
        TypeError,
        "original is a torch array",
    ),
    (lambda: inpaint_step(PLAN, 0, X, M, PICTURE, MASK, Z1[:1], Z2), ValueError, "noise has shape"),
    (lambda: inpaint_step(PLAN, 0, X, M, PICTURE, MASK, Z1), ValueError, "noise is missing"),
    (lambda: inpaint_step(PLAN, 8, X, M, PICTURE, MASK, Z1, Z2), IndexError, "i=8 is outside"),
    (lambda: undo_step(PLAN, -1, X, Z1), IndexError, "i=-1 is outside"),
    (lambda: resampling(0), ValueError, "num_inference_steps=0"),
    (lambda: resampling(5, 0), ValueError, "jump_length=0"),
    (lambda: resampling(5, 2, -1), ValueError, "jump_n_sample=-1"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_method_with_memory_is_refused():
    plan = PNDM(LINEAR).plan(Trailing().levels(LINEAR, 8), "epsilon")
    with pytest.raises(ValueError, match="one-step method"):
        inpaint_step(plan, 0, X, M, PICTURE, MASK, Z1)


# --- the walk ---


def published(steps, length, samples):
    """The authors' schedule as pairs of levels, from the text of the paper's appendix: jumps from every length-th level."""
    left = dict.fromkeys(range(0, steps - length, length), samples - 1)
    level, pairs = steps - 1, []
    while level >= 0:
        pairs.append((level, level - 1))
        level -= 1
        if left.get(level, 0) > 0:
            left[level] -= 1
            pairs += [(level + k, level + k + 1) for k in range(length)]
            level += length
    return pairs


@pytest.mark.parametrize(
    ("steps", "length", "samples"), [(250, 10, 10), (20, 3, 2), (7, 10, 10), (1, 1, 1), (12, 1, 4), (9, 4, 3)]
)
def test_moves(steps, length, samples):
    moves, at = resampling(steps, length, samples), steps - 1
    for move, (before, after) in zip(moves, published(steps, length, samples), strict=True):
        assert before == at and move.undo == (after > before)
        assert move.row == steps - 1 - max(before, after)  # a row starts at its level and ends one below
        at = after
    assert at == -1
    downs = np.bincount([move.row for move in moves if not move.undo], minlength=steps)
    ups = np.bincount([move.row for move in moves if move.undo], minlength=steps)
    assert (downs - ups == 1).all()


def test_one_sample_a_stretch_is_no_resampling():
    assert [tuple(move) for move in resampling(30, 10, 1)] == [(i, False) for i in range(30)]


def test_length_of_the_published_walk():
    """What diffusers' class makes of 250 steps with the paper's numbers."""
    assert len(walk(250, 10, 10)) == 4570


# --- whole runs ---

COUNT = 100_000


def gaussian_model(plan, covariance):
    """The exact noise estimate for data N(0, covariance)."""

    def model(x, t):
        i = int(np.argmin(abs(plan.timesteps - t)))
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        gain = sigma * np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(len(covariance)))
        return x @ gain.T

    return model


@pytest.mark.parametrize("samples", [1, 3])
def test_what_does_not_depend_on_the_known_part_keeps_its_distribution(samples):
    """Data N(0, I), where DDPM's large variance is exact for any step: every level, however often visited, has variance 1,
    and the last estimate alpha². Wrong levels of `undo_step`, or noise shared between steps, would show."""
    plan = DDPM("large").plan(Trailing().levels(LINEAR, 12), "epsilon")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((COUNT, 2))
    out = inpaint(
        gaussian_model(plan, np.eye(2)), plan, x, np.full((1, 2), 7.0), np.asarray([1.0, 0.0]), generator=rng, jump_length=3,
        jump_n_sample=samples,
    )  # fmt: skip
    assert (out[:, 0] == 7.0).all()
    expected = plan.alpha[-2] ** 2
    assert abs(out[:, 1].mean()) < 5 * (expected / COUNT) ** 0.5
    assert abs(out[:, 1].var() - expected) < 5 * expected * (2 / COUNT) ** 0.5


def test_resampling_comes_near_the_conditional():
    """Data with correlation 0.8: given 1 for the one, the other has mean 0.8. Measured 0.48 without resampling, 0.64 and 0.72
    with 3 and 8 samples a stretch: the method only comes near it."""
    covariance = np.asarray([[1.0, 0.8], [0.8, 1.0]])
    plan = DDPM("large").plan(Trailing().levels(LINEAR, 40), "epsilon")
    means = []
    for samples in (1, 3, 8):
        rng = np.random.default_rng(2)
        x = rng.standard_normal((20_000, 2))
        out = inpaint(
            gaussian_model(plan, covariance), plan, x, np.ones((1, 2)), np.asarray([1.0, 0.0]), generator=rng, jump_length=4,
            jump_n_sample=samples,
        )  # fmt: skip
        means.append(out[:, 1].mean())
    assert means[0] + 0.1 < means[1] < means[2] - 0.05
    assert abs(means[2] - 0.8) < 0.1


# --- any array ---

CELLS = [
    ("torch", "float32"),
    ("torch", "float16"),
    ("torch", "bfloat16"),
    ("jax", "float32"),
    ("jax", "bfloat16"),
    ("array_api_strict", "float32"),
]


def steps_on(name, dtype):
    lib = backend(name)
    device = lib.device("device1" if name == "array_api_strict" else None)
    x, m, picture, z1, z2, mask = (
        lib.asarray(v, dtype=dtype, device=device) for v in (X, M, PICTURE, Z1, Z2, MASK)
    )
    seen = [inpaint_step(PLAN, i, x, m, picture, mask, z1, z2 if i < 7 else None) for i in range(8)]
    betas = np.asarray([0.1, 0.2])
    return x, [*seen, undo_step(PLAN, 3, x, z1), renoise(x, betas, (z1, z2))], lib


@pytest.mark.parametrize(("name", "dtype"), CELLS)
def test_same_array_out_and_equal_bits(name, dtype):
    with reproducible():
        (like, seen, lib), expected = steps_on(name, dtype), steps_on("numpy", dtype)[1]
    for array, other in zip(seen, expected, strict=True):
        assert type(array) is type(like) and array.dtype == like.dtype
        assert str(getattr(array, "device", "")) == str(getattr(like, "device", ""))
        np.testing.assert_array_equal(lib.to_numpy(array), backend("numpy").to_numpy(other))


BOUNDS = [None, Clip(0.7), DynamicThreshold(0.9, 2.0)]
LARGER = (2, 3, 210, 211)
"""More elements than are stepped at once, and no multiple of those."""


@pytest.mark.parametrize("shape", [X.shape, LARGER], ids=["small", "large"])
@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "dtype"), [("numpy", "float32"), *CELLS[:5]])
def test_the_fused_step_is_the_plain_one(name, dtype, bound, shape):
    """Up to rounding, for every kind of mask and picture; nothing is written to."""
    assert np.prod(LARGER) > LARGE and np.prod(LARGER) % BLOCK
    lib, rng = backend(name), np.random.default_rng(6)
    make = lambda values, dtype=dtype: lib.asarray(values, dtype=dtype)
    values = rng.standard_normal((5, *shape))
    x, m, picture, z1, z2 = map(make, values)
    kept = rng.random(shape)
    masks = [
        make(kept),
        make(kept > 0.5),
        make(kept > 0.5, "bool"),
        make(kept[:, :1] > 0.5),
        make(kept[0] > 0.5, "int32"),
        make(kept[:1, :, :1], "float32"),
    ]
    before = [lib.to_numpy(array) for array in (x, m, picture, z1, z2, *masks)]
    for plan in (DDPM().plan(*LEVELS, bound), DDIM().plan(*LEVELS, bound)):
        for i, (mask, original) in itertools.product(
            (0, 4, 7), itertools.product(masks, (picture, picture[:1]))
        ):
            args = plan, i, x, m, original, mask, z1, z2 if plan.stochastic[i] else None
            found, again = inpaint_step(*args), inpaint_step(*args)
            with reproducible():
                plain = inpaint_step(*args)
            assert type(found) is type(x) and found.dtype == x.dtype and found.shape == x.shape
            found, again, plain = (lib.to_numpy(array).astype(float) for array in (found, again, plain))
            np.testing.assert_array_equal(found, again)
            eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
            # x̂₀ without a bound is up to 160 times the sample at the first level, and so are its errors.
            size = max(1.0, np.abs(plain).max())
            np.testing.assert_allclose(found, plain, rtol=0, atol=4 * eps * size)
    for array, old in zip((x, m, picture, z1, z2, *masks), before, strict=True):
        np.testing.assert_array_equal(lib.to_numpy(array), old)


def test_the_last_step_keeps_the_picture_exactly():
    """On the fused path of every library: nothing is left of the noise, nor of what was made up."""
    for lib in map(backend, ("numpy", "torch", "jax")):
        x, m, picture, z1, mask = (lib.asarray(v, dtype="float32") for v in (X, M, PICTURE, Z1, MASK))
        out = lib.to_numpy(inpaint_step(PLAN, 7, x, m, picture, mask, z1))
        np.testing.assert_array_equal(out[..., ::2], PICTURE[..., ::2])
        assert (out[..., 1::2] != PICTURE[..., 1::2]).all()


def test_a_row_per_sample_and_under_jit():
    rows = np.asarray([2, 5])
    one = inpaint_step(PLAN, rows, X, M, PICTURE, MASK, Z1, Z2)
    back = undo_step(PLAN, rows, X, Z1)
    for k, i in enumerate((2, 5)):
        pick = lambda array: array[k : k + 1]
        with reproducible():
            alone = inpaint_step(PLAN, i, *map(pick, (X, M, PICTURE)), MASK, *map(pick, (Z1, Z2)))
        np.testing.assert_array_equal(pick(one), alone)
        np.testing.assert_array_equal(pick(back), undo_step(PLAN, i, pick(X), pick(Z1)))
    jitted = jax.jit(
        lambda i, *arrays: (inpaint_step(PLAN, i, *arrays), undo_step(PLAN, i, arrays[0], arrays[4]))
    )
    found = jitted(jnp.asarray(rows), *map(jnp.asarray, (X, M, PICTURE, MASK, Z1, Z2)))
    for a, b in zip(found, (one, back), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    scalar = jitted(jnp.asarray(5), *map(jnp.asarray, (X, M, PICTURE, MASK, Z1, Z2)))
    np.testing.assert_allclose(
        scalar[0], inpaint_step(PLAN, 5, X, M, PICTURE, MASK, Z1, Z2), rtol=0, atol=2e-6
    )


# --- the facade ---


def pipeline(scheduler, x, generator, model=lambda x, t: x * 0.5, picture=PICTURE, mask=MASK):
    """The loop of diffusers' RePaint pipeline."""
    last, visited = int(scheduler.timesteps[0]) + 1, []
    for t in scheduler.timesteps:
        if int(t) < last:
            x = scheduler.step(model(x, t), t, x, picture, mask, generator).prev_sample
        else:
            x = scheduler.undo_step(x, last, generator)
        visited.append((int(t), last))
        last = int(t)
    return x, visited


def test_corrected_noise_is_two_draws():
    plain, right = RePaintScheduler(eta=1.0), RePaintScheduler(eta=1.0).corrected("repaint-shared-noise")
    plan = DDIM(eta=1.0).plan(Leading().levels(LINEAR, 8), "epsilon", Clip(1.0))
    z1, z2 = np.random.default_rng(9).standard_normal((2, *X.shape), dtype=np.float32)
    for scheduler, fresh in ((plain, z1), (right, z2)):
        scheduler.set_timesteps(8)
        got = scheduler.step(M, 500, X, PICTURE, MASK, np.random.default_rng(9)).prev_sample
        np.testing.assert_allclose(
            got, inpaint_step(plan, 3, X, M, PICTURE, MASK, z1, fresh), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("t", [0, 125, 875])
def test_corrected_undo_ends_where_the_next_step_starts(t):
    """Told t, what was left at t - T // N is noised to t; diffusers' goes T // N - 1 training steps farther."""
    for ids, end in (((), t + 124), (("repaint-undo-level",), t)):
        scheduler = RePaintScheduler()
        scheduler = scheduler.corrected(*ids) if ids else scheduler
        scheduler.set_timesteps(8)
        start = scheduler.schedule.alphas_cumprod[t - 125] if t else 1.0
        exact = scheduler.schedule.alphas_cumprod[end] / (
            start if ids else scheduler.schedule.alphas_cumprod[t - 1] if t else 1.0
        )
        x = np.ones(COUNT)
        out = scheduler.undo_step(x, t, np.random.default_rng(0))
        variance = 1 - exact
        assert abs(out.mean() - exact**0.5) < 5 * (variance / COUNT) ** 0.5
        assert abs(out.var() - variance) < 5 * variance * (2 / COUNT) ** 0.5


@pytest.mark.parametrize(("steps", "length", "samples"), [(20, 3, 2), (40, 10, 3), (12, 1, 4), (5, 10, 10)])
def test_corrected_jumps_are_the_published_walk(steps, length, samples):
    scheduler = RePaintScheduler().corrected("repaint-jump-level")
    scheduler.set_timesteps(steps, length, samples)
    stride, moves, last = 1000 // steps, [], steps
    for t in (scheduler.timesteps // stride).tolist():
        moves.append((t, t - 1) if t < last else (last - 1, last))
        last = t
    assert moves == published(steps, length, samples)


def test_wholly_corrected_is_the_own_face():
    scheduler = RePaintScheduler(eta=1.0).corrected()
    scheduler.set_timesteps(12, 3, 2)
    plan = DDIM(eta=1.0).plan(Leading().levels(LINEAR, 12), "epsilon", Clip(1.0))
    found, _ = pipeline(scheduler, X, np.random.default_rng(4))
    own = inpaint(
        lambda x, t: x * 0.5,
        plan,
        X,
        PICTURE,
        MASK,
        generator=np.random.default_rng(4),
        jump_length=3,
        jump_n_sample=2,
    )
    np.testing.assert_allclose(found, own, rtol=0, atol=2e-6)


def test_eta_may_be_assigned():
    """The pipeline does."""
    one, other = RePaintScheduler(eta=0.7), RePaintScheduler()
    other.eta = 0.7
    for scheduler in (one, other):
        scheduler.set_timesteps(8)
    a, b = (s.step(M, 500, X, PICTURE, MASK, np.random.default_rng(0)).prev_sample for s in (one, other))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "dtype"), CELLS)
def test_the_facade_on_any_array(name, dtype):
    def loop(lib, device=None):
        x, picture, mask = (
            lib.asarray(v, dtype=dtype, device=lib.device(device)) for v in (X, PICTURE, MASK)
        )
        scheduler = RePaintScheduler(eta=0.5)
        scheduler.set_timesteps(6, 2, 2)
        return pipeline(scheduler, x, np.random.default_rng(2), lambda x, t: x, picture, mask)[0], x

    lib, device = backend(name), "device1" if name == "array_api_strict" else None
    with reproducible():
        (plain, _), expected = loop(lib, device), backend("numpy").to_numpy(loop(backend("numpy"))[0])
    np.testing.assert_array_equal(lib.to_numpy(plain), expected)
    out, like = loop(lib, device)
    assert type(out) is type(like) and out.dtype == like.dtype
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    wide = expected.astype(float)  # each of the six steps and two undoings rounds once or twice
    np.testing.assert_allclose(
        lib.to_numpy(out).astype(float), wide, rtol=0, atol=16 * eps * np.abs(wide).max()
    )


def test_a_step_reads_nothing_from_the_device():
    scheduler = RePaintScheduler(eta=1.0)
    scheduler.set_timesteps(6, 2, 2, device=torch.device("meta"))
    x = torch.empty((2, 3, 4), device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x, x, x > 0, None).prev_sample
        x = scheduler.undo_step(x, scheduler.timesteps[-1], None)
    assert x.device.type == "meta"


def test_under_jit_with_a_key():
    """One key gives fresh noise at every visit of a timestep."""
    scheduler = RePaintScheduler(num_train_timesteps=12, beta_end=0.4, eta=0.5)

    def loop(x, key):
        scheduler.set_timesteps(6, 2, 2)
        return pipeline(scheduler, x, key, picture=jnp.asarray(PICTURE), mask=jnp.asarray(MASK))[0]

    x, key = jnp.asarray(X), jax.random.key(3)
    np.testing.assert_allclose(jax.jit(loop)(x, key), loop(x, key), rtol=0, atol=1e-5)
    scheduler.set_timesteps(6, 2, 2)
    one, other = (scheduler.step(x, 4, x, x, jnp.ones(()), key).prev_sample for _ in range(2))
    assert (one != other).all()


def test_interleaved_clones_equal_running_alone():
    origin = RePaintScheduler(eta=1.0)
    origin.set_timesteps(6, 2, 2)
    alone, _ = pipeline(origin.clone(), X, np.random.default_rng(3))
    copies, xs = [origin.clone(), copy.deepcopy(origin)], [X, X]
    rngs, last = [np.random.default_rng(3) for _ in copies], int(origin.timesteps[0]) + 1
    for t in origin.timesteps:
        for k, scheduler in enumerate(copies):
            if t < last:
                xs[k] = scheduler.step(xs[k] * 0.5, t, xs[k], PICTURE, MASK, rngs[k]).prev_sample
            else:
                xs[k] = scheduler.undo_step(xs[k], last, rngs[k])
        last = int(t)
    for x in xs:
        np.testing.assert_array_equal(x, alone)


FAILURES = [
    (lambda s: s.set_timesteps(0), ValueError, "num_inference_steps=0"),
    (lambda s: s.set_timesteps(5, jump_length=0), ValueError, "jump_length=0"),
    (lambda s: s.set_timesteps(5, device="quantum"), ValueError, "quantum"),
    (lambda s: s.step(M, 500, X, PICTURE, np.ones(3)), (ValueError, TypeError), "mask has shape|generator"),
    (
        lambda s: s.step(M, 500, X, PICTURE, np.ones(3), np.random.default_rng(0)),
        ValueError,
        "mask has shape",
    ),
    (
        lambda s: s.step(M[:1], 500, X, PICTURE, MASK, np.random.default_rng(0)),
        ValueError,
        "model_output has shape",
    ),
    (lambda s: s.step(M, 1000, X, PICTURE, MASK, np.random.default_rng(0)), ValueError, "t=1000 is outside"),
    (lambda s: s.step(M, 500, X, PICTURE, MASK, 3), (TypeError, ValueError), "generator"),
    (lambda s: s.undo_step(X, 990, np.random.default_rng(0)), ValueError, "timestep=990"),
    (lambda s: s.undo_step(X, -1, np.random.default_rng(0)), ValueError, "timestep=-1"),
    (lambda s: s.corrected("nonsense"), ValueError, "nonsense"),
]


@pytest.mark.parametrize(("call", "error", "message"), FAILURES)
def test_an_error_changes_nothing(call, error, message):
    scheduler = RePaintScheduler()
    scheduler.set_timesteps(8)
    scheduler.step(M, 500, X, PICTURE, MASK, np.random.default_rng(0))
    seen = lambda: {
        k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(scheduler).items() if k != "_plans"
    }
    before = seen()
    with pytest.raises(error, match=message):
        call(scheduler)
    assert seen() == before


@pytest.mark.parametrize("call", [lambda s: s.step(M, 5, X, PICTURE, MASK), lambda s: s.undo_step(X, 5)])
def test_before_set_timesteps(call):
    with pytest.raises(ValueError, match="call set_timesteps"):
        call(RePaintScheduler())


@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_extreme_numbers_of_steps(steps):
    scheduler = RePaintScheduler(eta=1.0)
    scheduler.set_timesteps(steps, 10, 1)
    x, visited = pipeline(scheduler, X, np.random.default_rng(0))
    assert len(visited) == steps and (np.diff(scheduler.timesteps) < 0).all()
    np.testing.assert_allclose(x[..., ::2], PICTURE[..., ::2], rtol=0, atol=1e-6)
    assert all(b < a for a, b in itertools.pairwise(t for t, _ in visited))
