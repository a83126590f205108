"""Transforms by name: compiled loops, per-sample maps, gradients; plans as pytrees; how often a step is compiled."""

import functools
import warnings

import numpy as np
import pytest

from anystep import DDIM, DDPM, LMS, BetaSchedule, Karras, Leading, State, init, scale_input, update
from anystep._update import reproducible
from anystep_backends import backend, backend_names
from anystep_conformance.case import Case
from anystep_conformance.checks import run
from anystep_conformance.libraries import LIBRARIES, library
from anystep_conformance.subjects import SUBJECTS
from anystep_conformance.transforms import TRANSFORMED

LEVELS = Leading().levels(BetaSchedule.named("linear"), steps=6)
PLAN = DDIM().plan(LEVELS, "epsilon")
LONG = LMS().plan(Karras().levels(BetaSchedule.named("scaled_linear"), steps=6).to_karras(), "epsilon")
NOISY = DDPM().plan(LEVELS, "epsilon")
TRANSFORMS = {"numpy": set(), "array_api_strict": set(), "torch": {"compile", "vmap", "grad"}}
TRANSFORMS["jax"] = {"compile", "vmap", "grad", "scan"}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_backend_has_the_transforms_of_its_library(name):
    pytest.importorskip(name)
    found = backend(name).transforms
    assert set(found) == TRANSFORMS[name] and all(map(callable, found.values()))
    assert set(found) <= set(TRANSFORMED)


def test_the_package_names_its_backends():
    assert {"numpy", "torch", "jax", "cupy", "array_api_strict"} <= set(backend_names())
    with pytest.raises(ValueError, match="backend='nothing' is not registered"):
        backend("nothing")


# JAX


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def test_a_plan_is_an_argument_of_a_jitted_function(jax):
    """Static: no leaves, one compilation for each plan, equal plans share it."""
    backend("jax")
    assert jax.tree_util.tree_leaves(PLAN) == []
    assert jax.tree_util.tree_leaves(State(1.0, (2.0,))) == [1.0, 2.0]
    step = jax.jit(update)
    x = jax.numpy.ones((2, 3))
    row = jax.numpy.int32(2)
    for plan in (PLAN, DDIM().plan(LEVELS, "epsilon"), DDIM(eta=0.0).plan(LEVELS, "epsilon")):
        found = step(plan, row, init(plan, x), x)
        np.testing.assert_allclose(found.x, update(plan, 2, init(plan, x), x).x, rtol=1e-6)
    assert step._cache_size() == 1, "equal plans"
    step(DDIM().plan(LEVELS, "sample"), row, init(PLAN, x), x)
    assert step._cache_size() == 2


def test_a_whole_loop_is_one_scan(jax):
    scan = backend("jax").transforms["scan"]
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 3)), "float32") * LONG.sigma[0]

    def body(state, i):
        output = 0.1 * scale_input(LONG, i, state.x)
        return update(LONG, i, state, output), state.x

    last, seen = jax.jit(lambda state: scan(body, state, jax.numpy.arange(len(LONG))))(init(LONG, x))
    state = init(LONG, x)
    for i in range(len(LONG)):
        np.testing.assert_allclose(seen[i], state.x, rtol=1e-5, atol=1e-5)
        state = update(LONG, i, state, 0.1 * scale_input(LONG, i, state.x))
    np.testing.assert_allclose(last.x, state.x, rtol=1e-5, atol=1e-5)


# PyTorch


@pytest.fixture
def torch():
    """Dynamo as in a fresh process. It warns of functools.lru_cache in array_api_compat, whose results do not change."""
    found = pytest.importorskip("torch")
    library("torch").forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield found
    library("torch").forget()


def counters():
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], dict(counters["graph_break"])


@pytest.mark.parametrize("plan", [PLAN, LONG, NOISY], ids=["DDIM", "LMS", "DDPM"])
def test_torch_compiles_one_graph_for_all_rows(torch, plan):
    x = torch.ones(2, 3)
    noise = torch.ones(2, 3) if plan.noises else None
    step = torch.compile(functools.partial(update, plan), fullgraph=True, backend="eager")
    state = init(plan, x)
    for i in range(len(plan)):
        row = torch.tensor(i)
        assert torch.equal(step(row, state, x, noise).x, update(plan, row, state, x, noise).x)
    assert counters() == (1, {})


def test_torch_compiles_ints_row_by_row(torch):
    """The reason for a tensor index: Dynamo takes an int, and the floats that follow from it, as constants."""
    x = torch.ones(2, 3)
    update(PLAN, 0, init(PLAN, x), x)
    step = torch.compile(functools.partial(update, PLAN), fullgraph=True, backend="eager", dynamic=False)
    for i in range(3):
        found = step(i, init(PLAN, x), x).x
        torch.testing.assert_close(found, update(PLAN, i, init(PLAN, x), x).x, rtol=1e-6, atol=1e-6)
    assert counters()[0] == 3 and counters()[1] == {}


def test_torch_maps_over_named_tuples_and_none(torch):
    vmap = backend("torch").transforms["vmap"]
    x = torch.arange(6.0).reshape(3, 1, 2)
    rows = torch.tensor([4, 0, 2])
    state = State(x, (x + 1,) * LONG.memories)
    found = vmap(functools.partial(update, LONG))(rows, state, x * 0.5, None)
    for b, row in enumerate(rows.tolist()):
        with reproducible():
            alone = update(LONG, row, State(x[b], (x[b] + 1,) * LONG.memories), x[b] * 0.5)
        assert torch.equal(found.x[b], alone.x)
        assert all(torch.equal(one[b], other) for one, other in zip(found.memory, alone.memory, strict=True))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_gradient_of_a_step_is_its_coefficient(name):
    pytest.importorskip(name)
    entry = library(name)
    grad = backend(name).transforms["grad"]
    x = entry.array(np.ones((2, 3)), "float32")
    for i in range(len(PLAN)):
        by_x = grad(lambda x, m, i=i: update(PLAN, i, init(PLAN, x), m).x.sum())(x, x)
        by_m = grad(lambda m, x, i=i: update(PLAN, i, init(PLAN, x), m).x.sum())(x, x)
        np.testing.assert_allclose(entry.read(by_x), PLAN.folded[i, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(entry.read(by_m), PLAN.folded[i, 0, 1], rtol=1e-6)


# The suite's modes


@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("mode", ["vmap", "grad", "scan"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_modes_pass(name, mode, dtype):
    pytest.importorskip(name)
    if mode not in TRANSFORMS[name]:
        pytest.skip(f"{name} has no {mode}")
    for subject in (SUBJECTS[0], SUBJECTS[2]):
        result = run(Case(subject, library(name), dtype, mode))
        assert result.outcome == "passed", result.reason


@pytest.mark.parametrize("mode", ["compile", "scan", "vmap", "grad", "index"])
def test_modes_notice_a_wrong_transform(mode, monkeypatch):
    """A transform that changes its results by a few eps."""
    pytest.importorskip("jax")
    entry = next(entry for entry in LIBRARIES if entry.name == "jax")
    if mode == "index":
        from anystep_conformance import transforms

        stepped = transforms.call
        monkeypatch.setattr(transforms, "call", lambda *given: tuple(x * (1 + 1e-6) for x in stepped(*given)))
    else:
        sound = backend("jax").transforms[mode]

        def off(tree):
            import jax

            return jax.tree_util.tree_map(lambda x: x * (1 + 1e-6), tree)

        def broken(f, *arguments):
            if mode == "scan":
                return off(sound(f, *arguments))
            if mode == "compile":  # inside: outside, the factor would be moved to the device
                return sound(lambda *given: off(f(*given)))
            return lambda *given: off(sound(f)(*given))

        adapter = type("Broken", (), {"transforms": {mode: broken}})()
        monkeypatch.setitem(entry.__dict__, "adapter", adapter)
        monkeypatch.setitem(entry.__dict__, "graphs", None)
    result = run(Case(SUBJECTS[0], entry, "float32", mode))
    assert (result.outcome, result.check) == ("failed", "values")


def test_a_step_that_is_compiled_again_is_noticed(monkeypatch):
    pytest.importorskip("jax")
    entry = library("jax")
    monkeypatch.setitem(entry.__dict__, "graphs", lambda step: 2)
    result = run(Case(SUBJECTS[0], entry, "float32", "compile"))
    assert (result.outcome, result.check) == ("failed", "laziness")
    assert "8 rows were compiled to 2 graphs: expected one for all" in result.reason


# The fused path


def fused_by(monkeypatch, make, subject=None):
    """NumPy's adapter with a fused step of the test's."""
    monkeypatch.setattr(type(backend("numpy")), "fuse", lambda self, plan, i, x: make(plan, i), raising=False)
    return Case(SUBJECTS[0] if subject is None else subject, library("numpy"), "float32", "fused")


@pytest.mark.parametrize(
    ("factor", "outcome", "check"),
    [(1.0, "passed", ""), (1 + 6e-8, "passed", ""), (1 + 1e-6, "failed", "values")],
)
def test_a_fused_step_may_differ_by_its_bound_alone(monkeypatch, factor, outcome, check):
    def make(plan, i):
        a, b = plan.folded[i, 0, :2]
        return lambda arrays, donate: State(np.float32((a * arrays[0] + b * arrays[1]) * factor))

    result = run(fused_by(monkeypatch, make))
    assert (result.outcome, result.check) == (outcome, check), result.reason


def test_a_fused_step_that_writes_to_its_sample_is_noticed(monkeypatch):
    def make(plan, i):
        a, b = map(np.float32, plan.folded[i, 0, :2])

        def step(arrays, donate):
            arrays[0][...] = a * arrays[0] + b * arrays[1]
            return State(arrays[0])

        return step

    scaled = next(
        subject for subject in SUBJECTS if subject.name == "Euler"
    )  # else its first result is the sample
    result = run(fused_by(monkeypatch, make, scaled))
    assert (result.outcome, result.check) == ("failed", "purity"), result.reason
