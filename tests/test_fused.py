"""The fused steps: within 1 eps Σ|c v| of the plain path, as exact as float64 sums rounded once, and with no kernel too many."""

import contextlib
import itertools
import pickle
import threading

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from anystep import DDIM, Clip, Euler, Leading, Plan, State, init, reproducible, update
from anystep_backends import _numpy_fused, _torch_fused
from anystep_conformance.compare import compare
from anystep_conformance.libraries import FLOATS, cases, library
from anystep_conformance.subjects import SUBJECTS, random_plan, scale_of
from kernels import Kernels

TWO_ARRAYS, BOUND = 1.5, 3
"""In eps Σ|c v|. Measured: 1.11 for rows of x and m alone, 2.74 for others, of which both paths have their share."""

LINEAR = [subject for subject in SUBJECTS if subject.threshold is None]
quick = settings(deadline=None, max_examples=40)


def arrays_of(plan, entry, dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    x, m, *rest = (entry.array(rng.normal(size=shape), dtype) for _ in range(2 + plan.memories + plan.noises))
    return State(x, tuple(rest[: plan.memories])), m, rest[plan.memories :] or None


def both(plan, i, state, m, noise, **options):
    """The fused step, which is checked to be taken, and the plain one."""
    with reproducible():
        plain = update(plan, i, state, m, noise)
    plan.fused.clear()
    fused = update(plan, i, state, m, noise, **options)
    return fused, plain


def host(plan, entry, state, m, noise):
    """All arrays of a step in float64; noise that is not used is 0."""
    unused = () if noise is not None else [np.zeros(m.shape)] * plan.noises
    return [*(entry.read(v).astype(float) for v in (state.x, m, *state.memory, *(noise or ()))), *unused]


def check(plan, i, entry, dtype, shape, seed=0):
    state, m, noise = arrays_of(plan, entry, dtype, shape, seed)
    noise = noise if plan.stochastic[i] else None
    fused, plain = both(plan, i, state, m, noise)
    half = entry.name == "numpy" and dtype not in ("float32", "float64")
    assert bool(plan.fused) != half, "the fused path was not taken, or one was made where there is none"
    scales = scale_of(plan, i, host(plan, entry, state, m, noise))
    for a, b, scale in zip((fused.x, *fused.memory), (plain.x, *plain.memory), scales, strict=True):
        # NumPy's ufuncs are the plain path's, in its order; elsewhere products and sums are contracted or reordered.
        compare(
            a,
            b,
            scale=scale,
            ulp=0 if entry.name == "numpy" else BOUND if len(scales) > 1 or noise else TWO_ARRAYS,
        )
    return fused, plain


@pytest.mark.parametrize(("entry", "dtype"), cases(FLOATS, ["numpy", "torch", "jax"]))
@pytest.mark.parametrize("subject", LINEAR, ids=lambda subject: subject.name)
def test_close_to_the_plain_path(subject, entry, dtype):
    plan = subject.plan(6)
    with entry.scope(dtype):
        for i in range(len(plan)):
            check(plan, i, entry, dtype, (3, 50), seed=i)


@quick
@given(
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 10**6),
    st.sampled_from([(4,), (2, 3), (0, 3), (3, 1, 5)]),
    st.sampled_from(["torch", "jax", "numpy"]),
)
def test_any_plan(memories, noises, seed, shape, name):
    plan = random_plan(2, memories, noises, seed=seed)
    for i in range(2):
        check(plan, i, library(name), "float32", shape, seed)


@pytest.mark.parametrize("name", ["torch", "jax", "numpy", "numpy without numba"])
def test_large_arrays_are_summed_alike(name, monkeypatch):
    """Above the size at which blocks begin, with an odd end; a view that is not contiguous takes the other way."""
    if name == "numpy without numba":
        name = "numpy"
        monkeypatch.setattr(_numpy_fused, "_numba", lambda: None)
    elif name == "numpy":
        pytest.importorskip("numba")
    monkeypatch.setattr(_torch_fused, "LARGE", 2**19)
    entry, shape = library(name), (1, 2**19 + 12345)
    for plan in (random_plan(1, 1, 1, seed=3), random_plan(1, 0, 0, seed=1), random_plan(1, 2, 0, seed=8)):
        check(plan, 0, entry, "float32", shape)
    if name == "torch":
        check(random_plan(1, 1, 0, seed=2), 0, entry, "bfloat16", shape)
    if name != "jax":
        plan = random_plan(1, 1, 0, seed=5)
        state, m, _ = arrays_of(plan, entry, "float32", (2, 3 * 2**18))
        turned = State(state.x.T, (state.memory[0].T,))
        fused, plain = both(plan, 0, turned, m.T, None)
        compare(fused.x, plain.x, scale=scale_of(plan, 0, [state.x.T, m.T, state.memory[0].T])[0], ulp=BOUND)


@pytest.mark.parametrize(("entry", "dtype"), cases(("float16", "bfloat16"), ["torch", "jax"]))
def test_half_precision_is_rounded_once(entry, dtype):
    """As float32 sums, rounded: at most half an ulp and what float32 leaves."""
    for subject in LINEAR:
        plan = subject.plan(4)
        for i in range(len(plan)):
            state, m, noise = arrays_of(plan, entry, dtype, (64,), seed=i)
            noise = noise if plan.stochastic[i] else None
            plan.fused.clear()
            found = update(plan, i, state, m, noise)
            values = host(plan, entry, state, m, noise)
            a, b = plan.estimate[i]
            columns = np.stack([values[0], values[1], a * values[0] + b * values[1], *values[2:]])
            exact = plan.update[i, 0] @ columns
            slack = 4 * 2.0**-24 * scale_of(plan, i, values)[0]
            unit = np.spacing(np.abs(entry.read(found.x).astype(np.float32)).astype(np.float16)).astype(float)
            unit = unit if dtype == "float16" else 2.0 ** (np.floor(np.log2(np.abs(exact) + 1e-38)) - 7)
            assert (np.abs(entry.read(found.x).astype(float) - exact) <= 0.5 * unit + slack).all(), (
                subject.name,
                i,
            )


@pytest.mark.parametrize("subject", LINEAR, ids=lambda subject: subject.name)
def test_kernels_of_a_torch_step(subject):
    """k full-size kernels for k terms, k - 1 if the sample's weight is 1; none on scalars; one array made for each output."""
    plan = subject.plan(6)
    for i in range(len(plan)):
        state, m, noise = arrays_of(plan, library("torch"), "float32", (1, 4, 8, 8))
        noise = noise if plan.stochastic[i] else None
        update(plan, i, state, m, noise)
        with Kernels(m.numel()) as seen:
            update(plan, i, state, m, noise)
        allowed = made = 0
        for output in plan.outputs(i):
            if not isinstance(output, int):
                weight_is_one = (
                    output.base is not None and output.scale == 1.0 and output.base not in dict(output.terms)
                )
                terms = {
                    *dict(output.terms),
                    *dict(output.late),
                    *([] if output.base is None else [output.base]),
                    *([1] if output.opposed else []),
                }
                # A difference of x and m that is taken exactly costs one more: see `_combination`.
                allowed += max(1, len(terms) - weight_is_one + output.opposed)
                made += 1
        assert (seen.full, seen.scalar, seen.reads, seen.made) == (pytest.approx(seen.full), 0, 0, made)
        assert seen.full <= allowed, i


@pytest.mark.parametrize("name", ["numpy", "numpy without numba", "torch", "jax"])
def test_donated_memory(name, monkeypatch):
    """The same values, in the memory of the sample; nothing else is written to."""
    if name == "numpy without numba":
        name = "numpy"
        monkeypatch.setattr(_numpy_fused, "_numba", lambda: None)
    monkeypatch.setattr(_torch_fused, "LARGE", 2**19)
    entry = library(name)
    for plan in (
        DDIM().plan(Leading().levels(SUBJECTS[0].schedule, 4), "epsilon"),
        *(random_plan(1, 1, 1, seed=s) for s in range(6)),
    ):
        for size, dtype in itertools.product(
            (12, 2**19 + 5), ("float32", "bfloat16")[: 1 + (name == "torch")]
        ):
            state, m, noise = arrays_of(plan, entry, dtype, (1, size))
            noise = noise if plan.stochastic[0] else None
            before = [np.array(entry.read(v)) for v in (m, *state.memory, *(noise or []))]
            expected = update(plan, 0, state, m, noise)
            x = entry.array(np.array(entry.read(state.x)), dtype)
            address = x.ctypes.data if name == "numpy" else x.data_ptr() if name == "torch" else None
            found = update(plan, 0, State(x, state.memory), m, noise, donate=True)
            kept = any(isinstance(one, int) and one == 0 for one in plan.outputs(0))
            if name == "jax":
                assert x.is_deleted() != kept
            else:
                assert ((found.x.ctypes.data if name == "numpy" else found.x.data_ptr()) == address) != kept
            for a, b in zip((found.x, *found.memory), (expected.x, *expected.memory), strict=True):
                compare(a, b)
            for array, old in zip((m, *state.memory, *(noise or [])), before, strict=True):
                np.testing.assert_array_equal(entry.read(array), old)


def trajectory(plan, make, model, x, dtype):
    state = init(plan, make(x, dtype))
    for i in range(len(plan)):
        state = update(plan, i, state, model(state.x, i))
    return state.x


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_float32_trajectory_is_as_exact_as_float64_sums(name):
    """Error against float64, beside that of float64 sums rounded to float32 at each step, with the same model outputs.

    Geometric mean over numbers of steps and seeds. Sums into x, or folded coefficients, come to 1.3 to 2.5.
    """
    entry = library(name)
    for subject in [s for s in LINEAR if s.name in ("DDIM", "LMS", "Heun", "Euler, flow")]:
        ratios = []
        for steps, seed in ((20, 0), (50, 1), (100, 2), (200, 3)):
            plan, rng = subject.plan(steps), np.random.default_rng(seed)
            x = rng.normal(size=(8192,)) * np.hypot(plan.alpha[0], plan.sigma[0])
            outputs = [
                rng.normal(size=x.shape).astype(np.float32) * 0.3 + 0.1 * x.astype(np.float32)
                for _ in plan.timesteps
            ]

            exact = trajectory(
                plan,
                lambda v, d: v,
                lambda x, i: outputs[i].astype(float),
                x.astype(np.float32).astype(float),
                None,
            )
            state = State(x.astype(np.float32), (x.astype(np.float32),) * plan.memories)
            for i in range(len(plan)):
                wide = State(state.x.astype(float), tuple(v.astype(float) for v in state.memory))
                wide = update(plan, i, wide, outputs[i].astype(float))
                state = State(wide.x.astype(np.float32), tuple(v.astype(np.float32) for v in wide.memory))
            given_ = [entry.array(v, "float32") for v in outputs]
            found = trajectory(plan, entry.array, lambda x, i: given_[i], x.astype(np.float32), "float32")

            def error(v):
                return np.sqrt(np.mean((np.asarray(v, float) - exact) ** 2))

            ratios.append(error(entry.read(found)) / error(state.x))
        assert np.exp(np.mean(np.log(ratios))) <= 1.15, (subject.name, ratios)


def test_reproducible_holds_for_its_thread_and_block_alone():
    plan, seen = random_plan(1, seed=2), []
    x, m = (torch.randn(4) for _ in range(2))

    def other():
        update(plan, 0, State(x), m)
        seen.append(bool(plan.fused))

    with reproducible():
        update(plan, 0, State(x), m)
        assert not plan.fused
        with reproducible():
            pass
        update(plan, 0, State(x), m)
        assert not plan.fused
        worker = threading.Thread(target=other)
        worker.start()
        worker.join()
    assert seen == [True]
    plan.fused.clear()
    with pytest.raises(ZeroDivisionError), reproducible():
        raise ZeroDivisionError
    update(plan, 0, State(x), m)
    assert plan.fused


def test_errors_are_those_of_the_plain_path():
    plan = random_plan(2, 1, 1, seed=4)
    state, m, noise = arrays_of(plan, library("torch"), "float32", (3,))
    update(plan, 0, state, m, noise)
    for arguments, error, message in (
        ((5, state, m, noise), IndexError, "i=5 is outside"),
        ((-1, state, m, noise), IndexError, "i=-1 is outside"),
        ((0, state, m[:2], noise), ValueError, "model_output has shape"),
        ((0, state, m.numpy(), noise), TypeError, "model_output is a numpy array"),
        ((0, State(state.x), m, noise), ValueError, "state has 0 memories"),
        ((0, state, m, [*noise, m]), ValueError, "noise holds 2"),
        ((0, state, m, noise[0].double()), ValueError, None),
    ):
        if message is None:  # another dtype is widened, as on the plain path
            assert update(plan, *arguments).x.dtype == torch.float32
            continue
        with pytest.raises(error, match=message):
            update(plan, *arguments)


def test_transforms_of_torch():
    """vmap with an array that is not mapped, grad, and data without axes: where a fused step cannot, the plain one does."""
    plan = DDIM(eta=0.5).plan(Leading().levels(SUBJECTS[0].schedule, 4), "epsilon")
    generator = torch.Generator().manual_seed(0)
    x, m, z = (torch.randn(5, 3, generator=generator) for _ in range(3))
    update(plan, 0, State(x[0]), m[0], z[0])
    found = torch.func.vmap(lambda z: update(plan, 0, State(x[0]), m[0], z).x)(z)
    compare(found, torch.stack([update(plan, 0, State(x[0]), m[0], one).x for one in z]), scale=16.0, ulp=1)
    found = torch.func.vmap(lambda x, m, z: update(plan, 0, State(x), m, z).x)(x, m, z)
    compare(
        found,
        torch.stack([update(plan, 0, State(*a[:1]), *a[1:]).x for a in zip(x, m, z, strict=True)]),
        scale=16.0,
        ulp=1,
    )
    slope = torch.func.grad(lambda m: update(plan, 0, State(x), m, z).x.sum())(m)
    a, b = plan.folded[0, 0, :2]
    torch.testing.assert_close(slope, torch.full_like(m, b))
    leaf = x.clone().requires_grad_()
    update(plan, 0, State(leaf), m, z).x.sum().backward()
    torch.testing.assert_close(leaf.grad, torch.full_like(x, a))


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_data_without_axes(name):
    entry = library(name)
    plan = Euler().plan(Leading().levels(SUBJECTS[0].schedule, 3), "epsilon")
    x, m = entry.array(1.5, "float32"), entry.array(0.25, "float32")
    fused, plain = both(plan, 0, State(x), m, None)
    compare(fused.x, plain.x, ulp=1)


def test_jax_compiles_once_for_a_structure():
    from anystep_backends import _jax_fused

    plan = DDIM().plan(Leading().levels(SUBJECTS[0].schedule, 300), "epsilon")
    x = jnp.ones((2, 3))
    _jax_fused._compiled.cache_clear()
    for i in range(len(plan)):
        update(plan, i, State(x), x)
    assert _jax_fused._compiled.cache_info().currsize <= 4
    with jax.transfer_guard_device_to_host("disallow"):
        update(plan, 3, State(x), x)


def test_a_bounded_plan_and_other_types_take_the_plain_path():
    plan = random_plan(1, threshold=Clip(1.0), seed=2)
    update(plan, 0, State(np.ones(3)), np.ones(3))
    assert not plan.fused
    free = random_plan(1, seed=2)
    strict = library("array_api_strict")
    update(free, 0, State(strict.array(np.ones(3), "float32")), strict.array(np.ones(3), "float32"))
    assert not free.fused


def test_a_plan_forgets_its_steps_when_it_is_copied():
    plan = random_plan(1, seed=2)
    update(plan, 0, State(np.ones(3)), np.ones(3))
    assert plan.fused
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan and not again.fused


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array_api_strict"])
@pytest.mark.parametrize("path", [reproducible, contextlib.nullcontext])
@pytest.mark.parametrize("by_array", [False, True])
def test_small_noise_keeps_its_digits(name, path, by_array):
    """A step from sigma = 2^14 to 0.006: x cancels the model's output, and the noise that is left was not rounded beside it."""
    entry, sigma = library(name), 2.0**14
    row = [[[1.0, 1 - sigma, 0.0, 0.006]]]
    plan = Plan([1], [1, 1], [sigma, 0.006], [1], [[1, -sigma]], row)
    m = np.arange(1, 9) / 8
    z = np.random.default_rng(0).normal(size=8)
    x = m * (sigma - 1)
    with path():
        i = entry.index(0) if by_array else 0
        found = update(
            plan, i, State(entry.array(x, "float32")), entry.array(m, "float32"), entry.array(z, "float32")
        )
    compare(found.x, entry.array(0.006 * z, "float32"), ulp=1)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_noise_in_working_precision_is_not_rounded_to_half(name):
    """As diffusers' DPM-Solver draws it; an output in float32 is the plain path's to widen, since a memory may keep it."""
    entry, plan = library(name), DDIM(eta=1.0).plan(Leading().levels(SUBJECTS[0].schedule, 4), "epsilon")
    rng = np.random.default_rng(0)
    x, m, z = (rng.normal(size=(2, 40)) for _ in range(3))
    state, output = State(entry.array(x, "float16")), entry.array(m, "float16")
    noise = entry.array(z, "float32")
    fused, plain = both(plan, 1, state, output, noise)
    assert plan.fused
    compare(fused.x, plain.x, ulp=1)
    narrow = update(plan, 1, state, output, entry.array(z, "float16"))
    assert (entry.read(narrow.x) != entry.read(fused.x)).any()
    mixed, plain = both(plan, 1, state, entry.array(m, "float32"), noise)
    compare(mixed.x, plain.x)
