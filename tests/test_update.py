"""The step on arrays: every way of giving the index, every library, every precision, traced or not, and what it refuses."""

import functools
import os
from dataclasses import replace
from typing import NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from anystep import Clip, DynamicThreshold, Plan, State, estimate, init, reproducible, scale_input, update
from anystep_conformance.compare import BOUNDS, compare, rounded
from anystep_conformance.libraries import FLOATS, HALVES, LIBRARIES, WIDE, cases, library
from anystep_conformance.subjects import random_plan, scale_of

quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
few = settings(quick, max_examples=6)

plans = st.builds(
    random_plan,
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([None, None, Clip(1.0)]),
    density=st.sampled_from([0.3, 0.7, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
SHAPE = (3, 2, 5)
NAMES = ("numpy", "torch", "jax", "array_api_strict")


class Call(NamedTuple):
    """What one call is given."""

    state: State
    model_output: object
    noise: object

    @property
    def arrays(self):
        return [self.state.x, self.model_output, *self.state.memory, *(self.noise or ())]


def call(entry, dtype, plan, shape=SHAPE, seed=0, model_dtype=None):
    """Sealed arrays of a library for one call of a plan."""
    rng = np.random.default_rng(seed)
    fresh = lambda dtype=dtype: entry.array(rng.normal(size=shape), dtype)
    x, model_output = fresh(), fresh(model_dtype or dtype)
    memory = tuple(fresh() for _ in range(plan.memories))
    return Call(State(x, memory), model_output, tuple(fresh() for _ in range(plan.noises)) or None)


def apply(plan, i, given):
    return update(plan, i, given.state, given.model_output, given.noise)


def flat(state):
    return (state.x, *state.memory)


def reference(plan, i, given):
    """The row applied in float64: one matrix product."""
    x, m, *rest = (np.asarray(array, np.float64) for array in given.arrays)
    x0 = plan.estimate[i, 0] * x + plan.estimate[i, 1] * m
    if plan.threshold is not None:
        x0 = plan.threshold(x0)
    return np.einsum("rc,c...->r...", plan.update[i], np.stack([x, m, x0, *rest]))


# The numbers


@pytest.fixture(autouse=True, scope="module")
def plain_path():
    """What is asked here holds bit for bit; `test_fused.py` is about the other path."""
    with reproducible():
        yield


@quick
@given(plan=plans, data=st.data())
@pytest.mark.parametrize("dtype", WIDE)
def test_a_row_is_a_matrix_product(dtype, plan, data):
    i = data.draw(st.integers(0, len(plan) - 1))
    given = call(library("numpy"), dtype, plan)
    scale = scale_of(plan, i, given.arrays, folded=False)
    for found, expected, terms in zip(
        flat(apply(plan, i, given)), reference(plan, i, given), scale, strict=True
    ):
        compare(found, expected, like=given.state.x, scale=terms, ulp=BOUNDS["reference"].ulp)


@quick
@given(plan=plans, data=st.data())
def test_a_slightly_wrong_coefficient_is_noticed(plan, data):
    i = data.draw(st.integers(0, len(plan) - 1))
    row = data.draw(st.integers(0, plan.memories))
    column = data.draw(st.integers(0, plan.update.shape[2] - 1))
    given = call(library("numpy"), "float64", plan)
    wrong = plan.update.copy()
    wrong[i, row, column] += 1e-10
    found = flat(apply(replace(plan, update=wrong), i, given))[row]
    if np.array_equal(found, flat(apply(plan, i, given))[row]):
        assert column == 2 and not plan.estimate[i].any()  # x̂₀ is 0
        return
    scale = scale_of(plan, i, given.arrays, folded=False)
    with pytest.raises(AssertionError, match="result differs in"):
        compare(found, reference(plan, i, given)[row], scale=scale[row], ulp=BOUNDS["reference"].ulp)


@quick
@given(plan=plans, data=st.data())
@pytest.mark.parametrize(("entry", "dtype"), cases(HALVES))
def test_half_precision_is_combined_in_float32_and_rounded_once(entry, dtype, plan, data):
    i = data.draw(st.integers(0, len(plan) - 1))
    given = call(entry, dtype, plan)
    widened = [np.asarray(entry.read(array), np.float32) for array in given.arrays]
    k = plan.memories
    twin = Call(State(widened[0], tuple(widened[2 : 2 + k])), widened[1], tuple(widened[2 + k :]) or None)
    for found, wide in zip(flat(apply(plan, i, given)), flat(apply(plan, i, twin)), strict=True):
        compare(found, rounded(wide, dtype), like=given.state.x)
    for act in (scale_input, lambda plan, i, x: estimate(plan, i, x, given.model_output)):
        wide = (
            scale_input(plan, i, widened[0])
            if act is scale_input
            else estimate(plan, i, widened[0], widened[1])
        )
        compare(act(plan, i, given.state.x), rounded(wide, dtype), like=given.state.x)


@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_a_model_of_another_precision(entry, dtype):
    """The sample's dtype decides: the model's output is rounded to working precision and takes part."""
    plan = random_plan(3, memories=1, noises=1, density=1.0)
    work = "float32" if dtype in HALVES else dtype
    for model_dtype in entry.dtypes:
        with entry.scope(max(dtype, model_dtype)):  # "float64" comes last
            given = call(entry, dtype, plan, model_dtype=model_dtype)
            x, m = given.state.x, given.model_output
            same = given._replace(model_output=entry.array(entry.read(m).astype(work), work))
            for i in (1, entry.index(1), entry.index([0, 1, 2])):
                compare(apply(plan, i, given).x, apply(plan, i, same).x, like=x)
                compare(estimate(plan, i, x, m), estimate(plan, i, x, same.model_output), like=x)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_memories_keep_the_dtype_of_the_sample(dtype):
    """Or the carry of a scan would change its type: also where a memory is the model's output itself."""
    table = np.zeros((1, 3, 5))
    table[0] = [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    plan = Plan([0], [1, 1], [1, 0], [1], [[0, 1]], table)
    x = np.ones(3, np.float32)
    state = update(plan, 0, init(plan, x), np.ones(3, dtype))
    assert [part.dtype for part in flat(state)] == [np.float32] * 3


# The index


@few
@given(plan=plans, data=st.data())
@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_the_form_of_the_index_changes_no_bit(entry, dtype, plan, data):
    i = data.draw(st.integers(0, len(plan) - 1))
    with entry.scope(dtype):
        given = call(entry, dtype, plan)
        x, m = given.state.x, given.model_output
        for form in (entry.index(i), entry.index([i] * SHAPE[0])):
            for found, expected in zip(
                flat(apply(plan, form, given)), flat(apply(plan, i, given)), strict=True
            ):
                compare(found, expected, ulp=BOUNDS["gather"].ulp, name=f"i={form!r}")
            compare(estimate(plan, form, x, m), estimate(plan, i, x, m), ulp=BOUNDS["gather"].ulp)
            compare(scale_input(plan, form, x), scale_input(plan, i, x), ulp=BOUNDS["gather"].ulp)


@few
@given(plan=plans, data=st.data())
@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_samples_at_different_rows_are_as_alone(entry, dtype, plan, data):
    rows = data.draw(st.lists(st.integers(0, len(plan) - 1), min_size=SHAPE[0], max_size=SHAPE[0]))
    with entry.scope(dtype):
        given = call(entry, dtype, plan)
        together = apply(plan, entry.index(rows), given)
        x0 = estimate(plan, entry.index(rows), given.state.x, given.model_output)
        scaled = scale_input(plan, entry.index(rows), given.state.x)
        for b, i in enumerate(rows):
            one = lambda array, b=b: array[b : b + 1, ...]
            alone = Call(
                State(one(given.state.x), tuple(map(one, given.state.memory))),
                one(given.model_output),
                given.noise and tuple(map(one, given.noise)),
            )
            for found, expected in zip(flat(together), flat(apply(plan, i, alone)), strict=True):
                compare(one(found), expected, ulp=BOUNDS["gather"].ulp)
            compare(one(x0), estimate(plan, i, alone.state.x, alone.model_output))
            compare(one(scaled), scale_input(plan, i, alone.state.x))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_rows_on_the_host_are_moved(entry, dtype):
    plan = random_plan(3, memories=1)
    given = call(entry, dtype, plan)
    for form in ([2, 0, 1], (2, 0, 1), np.array([2, 0, 1]), np.array([2, 0, 1], np.uint8)):
        compare(apply(plan, form, given).x, apply(plan, entry.index([2, 0, 1]), given).x)
    for one in (np.int64(2), np.uint8(2), np.array(2)):
        compare(apply(plan, one, given).x, apply(plan, 2, given).x)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
@pytest.mark.parametrize("integers", ["uint8", "int16", "int32", "int64"])
def test_integers_of_every_width(entry, dtype, integers):
    plan = random_plan(3, memories=1)
    given = call(entry, dtype, plan)
    rows = entry.make(
        np.array([2, 0, 1]).astype("int32" if (entry.name, integers) == ("jax", "int64") else integers)
    )
    compare(apply(plan, rows, given).x, apply(plan, entry.index([2, 0, 1]), given).x)


@pytest.mark.parametrize("names", [("torch", "numpy"), ("jax", "torch"), *[(name, name) for name in NAMES]])
def test_one_plan_serves_several_precisions_and_devices(names):
    """What it keeps on a device for one of them is not taken for another."""
    plan = random_plan(3, memories=1, seed=3, density=1.0)
    known = [entry for entry in LIBRARIES if entry.module in names and entry.missing is None]
    for _ in range(2):
        for dtype in ("float32", "float64"):
            for entry in known:
                if dtype not in entry.dtypes:
                    continue
                with entry.scope(dtype):
                    given = call(entry, dtype, plan)
                    twin = random_plan(3, memories=1, seed=3, density=1.0)
                    compare(
                        apply(plan, entry.index([2, 0, 1]), given).x,
                        apply(twin, entry.index([2, 0, 1]), given).x,
                    )


# The shape


@pytest.mark.parametrize(("entry", "dtype"), cases(["bfloat16", "float32"]))
@pytest.mark.parametrize("shape", [(), (0,), (4,), (0, 3), (3, 0), (2,) * 12])
@pytest.mark.parametrize("threshold", [None, Clip(1.0), DynamicThreshold(0.9, 2.0)])
def test_any_shape(entry, dtype, shape, threshold):
    plan = random_plan(3, memories=2, noises=2, threshold=threshold, seed=5)
    with entry.scope(dtype):
        given = call(entry, dtype, plan, shape)
        like = np.zeros(shape)
        forms = [1, entry.index(1)] + ([entry.index(np.arange(shape[0]) % 3)] if shape else [])
        for i in forms:
            for part in (*flat(apply(plan, i, given)), scale_input(plan, i, given.state.x)):
                compare(part, entry.read(part), like=given.state.x)  # namespace, dtype, device
                assert tuple(part.shape) == shape
            found = estimate(plan, i, given.state.x, given.model_output)
            compare(found, entry.read(found), like=given.state.x)
            assert tuple(found.shape) == like.shape


def test_zero_dimensional_numpy_stays_an_array():
    plan = random_plan(2, memories=2, noises=1, density=1.0)
    for dtype in FLOATS:
        given = call(library("numpy"), dtype, plan, ())
        results = [*flat(apply(plan, 0, given)), scale_input(plan, 0, given.state.x)]
        results.append(estimate(plan, 1, given.state.x, given.model_output))
        assert [type(found) for found in results] == [np.ndarray] * 5


def test_scalars_of_numpy_are_taken():
    plan = random_plan(2)
    found = update(plan, 1, init(plan, np.float32(2)), np.float32(3)).x
    compare(np.asarray(found), update(plan, 1, init(plan, np.full((), 2, "f4")), np.full((), 3, "f4")).x)


# What is touched and what is handed on


MOVES = np.array([
    [[0.5, 1, 0, 0, 0, 2, 0], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]],
    [[1.5, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]],
])  # fmt: skip
"""Next memories: x; memory 1; the model's output. One noise."""


@pytest.mark.parametrize(("entry", "dtype"), cases())
@pytest.mark.parametrize("threshold", [None, Clip(1.0)])
def test_memories_that_only_move_are_handed_on(entry, dtype, threshold):
    plan = Plan([1, 0], [1] * 3, [1] * 3, [1] * 2, [[1, 0.5]] * 2, MOVES, threshold)
    with entry.scope(dtype):
        given = call(entry, dtype, plan)
        for i in (1, entry.index(1), entry.index([1, 0, 1])):
            after = apply(plan, i, given)
            assert after.memory[0] is given.state.x
            assert after.memory[1] is given.state.memory[0]
            assert after.memory[2] is given.model_output


@pytest.mark.parametrize(("entry", "dtype"), cases())
@pytest.mark.parametrize("threshold", [None, Clip(0.5)])
def test_a_memory_may_be_the_estimate(entry, dtype, threshold):
    """As in multistep methods that remember x̂₀: there is no such array to hand on, so it is made."""
    table = np.array([[[0.5, 0, 1, 0], [0, 0, 1, 0]], [[0.5, 0, 1, 2], [0, 0, 1, 0]]])
    plan = Plan([1, 0], [1] * 3, [1] * 3, [1] * 2, [[2, -1.5]] * 2, table, threshold)
    with entry.scope(dtype):
        given = call(entry, dtype, plan)
        for i in (1, entry.index(1), entry.index([1, 0, 1])):
            compare(apply(plan, i, given).memory[0], estimate(plan, i, given.state.x, given.model_output))


@few
@given(plan=plans, data=st.data())
@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_inputs_are_never_written_to(entry, dtype, plan, data):
    i = data.draw(st.integers(0, len(plan) - 1))
    with entry.scope(dtype):
        given = call(entry, dtype, plan)
        before = [entry.read(array).tobytes() for array in given.arrays]
        versions = [getattr(array, "_version", 0) for array in given.arrays]
        for form in (i, entry.index([i] * SHAPE[0])):
            apply(plan, form, given)
            estimate(plan, form, given.state.x, given.model_output)
            scale_input(plan, form, given.state.x)
        assert [entry.read(array).tobytes() for array in given.arrays] == before
        assert [getattr(array, "_version", 0) for array in given.arrays] == versions


IDENTITIES = np.eye(7)[[0, 1, 3, 6]]


@pytest.mark.parametrize("entry", [library("numpy"), library("torch")], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("source", range(4))
@pytest.mark.parametrize("threshold", [None, Clip(9.0)])
@pytest.mark.parametrize("count", [1, 2])
def test_the_next_sample_is_a_new_array(entry, dtype, source, threshold, count):
    """Even where the row, or every row, passes a column on: the caller may write to it."""
    if entry.missing:
        pytest.skip(entry.missing)
    rows = np.stack([np.stack([IDENTITIES[source], *np.eye(7)[3:6]]), np.ones((4, 7))])[:count]
    plan = Plan(
        range(count), [1] * (count + 1), [1] * (count + 1), [1] * count, [[0, 1]] * count, rows, threshold
    )
    given = call(entry, dtype, plan)
    for i in (0, entry.index(0), entry.index([0, 0, 0])):
        after = apply(plan, i, given).x
        x0 = estimate(plan, i, given.state.x, given.model_output)
        compare(after, (given.state.x, given.model_output, given.state.memory[0], *given.noise)[source])
        for array in given.arrays:
            assert not _overlap(after, array)
            assert not _overlap(x0, array)


def _overlap(a, b):
    if isinstance(a, np.ndarray):
        return np.shares_memory(a, b)
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_overlap_is_noticed():
    x = library("torch").array([1.0], "float32") if library("torch").missing is None else np.ones(1)
    assert _overlap(x, x[:])


def test_input_that_needs_no_scale_is_passed_on():
    plan = Plan([0], [1, 1], [1, 0], [1], [[0, 1]], np.ones((1, 1, 3)))
    x = np.ones(3)
    assert scale_input(plan, 0, x) is x


def test_init_refers_to_the_sample():
    x = np.ones(3)
    state = init(random_plan(1, memories=2), x)
    assert state.x is x and len(state.memory) == 2 and all(part is x for part in state.memory)


# Traced, compiled, without values


def close(plan, i, entry, found, expected, given):
    """Within the bound of a compiler that contracts products and sums."""
    arrays = [entry.read(array) for array in given.arrays]
    if isinstance(i, int):
        scale = scale_of(plan, i, arrays)
    else:
        scale = np.stack([scale_of(plan, row, arrays)[:, b] for b, row in enumerate(i)], axis=1)
    for a, b, terms in zip(flat(found), flat(expected), scale, strict=True):
        compare(a, b, scale=terms, ulp=BOUNDS["jit, more terms"].ulp)


@pytest.mark.parametrize(("entry", "dtype"), cases(WIDE, ["jax"]))
@pytest.mark.parametrize("seed", range(2, 6))
def test_jax_jit(entry, dtype, seed):
    import jax

    plan = random_plan(3, seed % 3, seed % 2, Clip(1.0) if seed % 3 == 2 else None, seed=seed)
    with entry.scope(dtype):
        given = call(entry, dtype, plan)
        fixed = jax.jit(functools.partial(update, plan), static_argnums=0)
        traced = jax.jit(functools.partial(update, plan))
        for i in range(len(plan)):
            eager = apply(plan, i, given)
            close(plan, i, entry, apply_to(fixed, i, given), eager, given)
            close(plan, i, entry, apply_to(traced, entry.index(i), given), eager, given)
        rows = [2, 0, 1]
        eager = apply(plan, entry.index(rows), given)
        close(plan, rows, entry, apply_to(traced, entry.index(rows), given), eager, given)
        x, m = given.state.x, given.model_output
        for act in (functools.partial(estimate, plan), lambda i, x, m: scale_input(plan, i, x)):
            scale = (
                np.abs(plan.estimate[1]) @ np.abs([entry.read(x).ravel(), entry.read(m).ravel()])
                + np.abs(entry.read(x)).ravel()
            )
            compare(
                jax.jit(act)(entry.index(1), x, m),
                act(1, x, m),
                scale=scale.reshape(SHAPE),
                ulp=BOUNDS["jit, more terms"].ulp,
            )


def apply_to(compiled, i, given):
    return compiled(i, given.state, given.model_output, given.noise)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "bfloat16"], ["jax"]))
def test_jax_scan_over_rows(entry, dtype):
    """The state is a carry of fixed structure: one compiled loop for all rows."""
    import jax

    plan = random_plan(5, memories=2, noises=1, seed=8, density=0.5)
    given = call(entry, dtype, plan)

    def body(state, i):
        following = update(plan, i, state, given.model_output, given.noise)
        return following, following.x

    _, found = jax.lax.scan(body, given.state, entry.index(range(5)))
    state = given.state
    for i in range(5):
        state = update(plan, i, state, given.model_output, given.noise)
        # Errors of five steps add up, and a half-precision result may be rounded to the other side.
        largest = max(np.abs(entry.read(part).astype(float)).max() for part in flat(state))
        compare(found[i], state.x, scale=10 * max(largest, 1.0), ulp=1)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["jax"]))
def test_jax_vmap(entry, dtype):
    import jax

    plan = random_plan(3, memories=1, noises=2, seed=4)
    given = call(entry, dtype, plan)
    rows = entry.index([2, 0, 1])
    found = jax.vmap(functools.partial(update, plan))(rows, given.state, given.model_output, given.noise)
    for a, b in zip(flat(found), flat(apply(plan, rows, given)), strict=True):
        compare(a, b)
    found = jax.vmap(lambda *args: update(plan, 1, *args))(given.state, given.model_output, given.noise)
    compare(found.x, apply(plan, 1, given).x)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["jax"]))
def test_jax_compiled_step_moves_nothing_between_host_and_device(entry, dtype):
    import jax

    plan = random_plan(3, memories=1, noises=1, seed=4)
    given, i = call(entry, dtype, plan), entry.index(1)
    step = jax.jit(functools.partial(update, plan))
    expected = apply_to(step, i, given)
    with jax.transfer_guard("disallow"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
            given.state.x * 2.0
        found = apply_to(step, i, given)
    compare(found.x, expected.x)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["jax"]))
def test_jax_plans_outlive_a_trace(entry, dtype):
    """Nothing that belongs to a trace is kept."""
    import jax

    plan = random_plan(3, memories=1, seed=4)
    given, rows = call(entry, dtype, plan), entry.index([0, 1, 2])
    expected = apply(random_plan(3, memories=1, seed=4), rows, given)
    for _ in range(2):
        jax.jit(functools.partial(update, plan))(rows, given.state, given.model_output)
        jax.make_jaxpr(functools.partial(update, plan))(rows, given.state, given.model_output)
        compare(apply(plan, rows, given).x, expected.x)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["jax"]))
def test_jax_gradient(entry, dtype):
    """The step is linear: its gradient is the coefficient."""
    import jax

    plan = random_plan(3, seed=11, density=1.0)
    given = call(entry, dtype, plan)
    gradient = jax.grad(lambda m: update(plan, 1, given.state, m).x.sum())(given.model_output)
    compare(gradient, np.full(SHAPE, plan.folded[1, 0, 1]).astype(np.float32), like=given.state.x, ulp=1)


@pytest.mark.parametrize(("entry", "dtype"), cases(names=["torch"]))
@pytest.mark.parametrize("threshold", [None, Clip(1.0), DynamicThreshold(0.9, 2.0)])
def test_torch_without_values(entry, dtype, threshold):
    """On the meta device there is nothing to read and nothing to branch on."""
    import torch

    plan = random_plan(3, memories=2, noises=2, threshold=threshold)
    given = call(entry, dtype, plan)
    away = lambda part: part.to("meta")
    given = Call(
        State(away(given.state.x), tuple(map(away, given.state.memory))),
        away(given.model_output),
        tuple(map(away, given.noise)),
    )
    with pytest.raises(RuntimeError):
        bool(given.state.x.sum())
    for i in (
        1,
        torch.zeros((), dtype=torch.int64, device="meta"),
        torch.zeros(3, dtype=torch.int64, device="meta"),
    ):
        after = apply(plan, i, given)
        parts = [
            *flat(after),
            estimate(plan, i, given.state.x, given.model_output),
            scale_input(plan, i, given.state.x),
        ]
        for part in parts:
            assert (part.device.type, part.dtype, tuple(part.shape)) == ("meta", given.state.x.dtype, SHAPE)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["torch"]))
def test_torch_transforms(entry, dtype):
    import torch

    plan = random_plan(3, memories=1, noises=1, seed=4, density=1.0)
    given, rows = call(entry, dtype, plan), entry.index([2, 0, 1])
    expected = apply(plan, rows, given)
    mapped = torch.func.vmap(lambda i, *args: update(plan, i, *args))(
        rows, given.state, given.model_output, given.noise
    )
    for a, b in zip(flat(mapped), flat(expected), strict=True):
        compare(a, b)
    gradient = torch.func.grad(lambda m: update(plan, 1, given.state, m, given.noise).x.sum())(
        given.model_output
    )
    compare(gradient, np.full(SHAPE, plan.folded[1, 0, 1]).astype(np.float32), like=given.state.x, ulp=1)
    compare(apply(plan, rows, given).x, expected.x)  # nothing of a transform is kept


# PyTorch warns of what it does itself while it compiles.
compiles = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@compiles
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["torch"]))
@pytest.mark.parametrize("form", ["int", "0-d", "per sample"])
@pytest.mark.parametrize("before", ["init", "a call"])
@pytest.mark.parametrize("threshold", [None, Clip(1.0)])
def test_torch_compiles_into_one_graph(entry, dtype, form, before, threshold):
    """Captured whole by Dynamo and traced by AOT autograd; the C++ compiler is test_torch_inductor's matter."""
    import torch

    new = functools.partial(random_plan, 3, memories=2, noises=1, threshold=threshold, seed=6)
    plan, i = new(), {"int": 2, "0-d": entry.index(2), "per sample": entry.index([2, 0, 1])}[form]
    given = call(entry, dtype, plan)
    expected = apply(new(), i, given)
    init(plan, given.state.x)
    if before == "a call":
        apply(plan, i, given)
    torch._dynamo.reset()
    compiled = torch.compile(functools.partial(update, plan), fullgraph=True, backend="aot_eager")
    found, again = compiled(i, *given), apply(plan, i, given)
    for a, b, c in zip(flat(found), flat(expected), flat(again), strict=True):
        compare(a, b)
        compare(c, b)  # nothing of the compiler's is kept


@compiles
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["torch"]))
@pytest.mark.parametrize(
    "before",
    [
        "init",
        pytest.param(
            "nothing",
            marks=pytest.mark.xfail(
                strict=True, reason="Dynamo cannot trace how a plan prepares itself, in init"
            ),
        ),
    ],
)
def test_torch_compiles_a_whole_loop(entry, dtype, before):
    import torch

    plan, twin = (random_plan(3, memories=2, noises=1, seed=6) for _ in range(2))
    given = call(entry, dtype, plan)

    def loop(plan, x, model_output, noise):
        state = init(plan, x)
        for i in range(len(plan)):
            state = update(plan, i, state, scale_input(plan, i, model_output), noise)
        return state.x

    if before == "init":
        init(plan, given.state.x)
    arrays = (given.state.x, given.model_output, given.noise)
    torch._dynamo.reset()
    compiled = torch.compile(functools.partial(loop, plan), fullgraph=True, backend="aot_eager")
    compare(compiled(*arrays), loop(twin, *arrays))


@pytest.mark.skipif(
    "ANYSTEP_SLOW" not in os.environ, reason="the C++ compiler takes 45 s; set ANYSTEP_SLOW=1 to run it"
)
@compiles
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "bfloat16"], ["torch"]))
def test_torch_inductor(entry, dtype):
    import torch

    plan = random_plan(3, memories=1, noises=1, seed=6)
    given = call(entry, dtype, plan)
    expected = apply(plan, 1, given)
    torch._dynamo.reset()
    found = torch.compile(functools.partial(update, plan), fullgraph=True)(1, *given)
    for a, b in zip(flat(found), flat(expected), strict=True):
        compare(a, b)


# What is refused


ONE, TWO, INTEGERS = np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 3), int)
DETERMINISTIC = random_plan(2, memories=1, density=1.0)
STOCHASTIC = replace(DETERMINISTIC, update=np.random.default_rng(0).normal(size=(2, 2, 6)))
QUIET = replace(STOCHASTIC, update=STOCHASTIC.update * (np.arange(6) < 4))


def step(i=0, plan=DETERMINISTIC, x=ONE, output=ONE, noise=None, memory=(ONE,)):
    return update(plan, i, State(x, memory), output, noise)


def stochastic(**changes):
    return step(**{"plan": STOCHASTIC, "noise": (ONE, ONE), **changes})


def estimated(i=0, x=ONE, output=ONE):
    return estimate(DETERMINISTIC, i, x, output)


def scaled(i=0, x=ONE):
    return scale_input(DETERMINISTIC, i, x)


def begun(x):
    return init(DETERMINISTIC, x)


INDEX = (TypeError, IndexError)
REFUSED = {
    "row after the last": (step, {"i": 2}, IndexError, r"i=2 is outside \[0, 2\).*longer plan"),
    "negative row": (step, {"i": -1}, IndexError, r"i=-1 is outside \[0, 2\)"),
    "NumPy row after the last": (step, {"i": np.int64(2)}, IndexError, "i=2 is outside"),
    "one bad row of several": (step, {"i": np.array([0, 2])}, IndexError, r"i=\[0, 2\].*\[0, 2\)"),
    "negative rows": (step, {"i": [0, -1]}, IndexError, r"i=\[0, -1\]"),
    "float row": (step, {"i": 1.0}, TypeError, r"i=1\.0.*integer"),
    "NumPy float row": (step, {"i": np.float64(1)}, TypeError, "i has dtype float64.*integers"),
    "float rows": (step, {"i": [0.0, 1.0]}, INDEX, r"i=\[0\.0, 1\.0\].*integers"),
    "Booleans as rows": (step, {"i": [True, False]}, INDEX, "integers"),
    "no row": (step, {"i": None}, TypeError, "i=None.*integer"),
    "text for a row": (step, {"i": "1"}, TypeError, "i='1'.*integer"),
    "too many rows": (step, {"i": [0, 1, 1]}, ValueError, r"i has shape \(3,\).*one row per sample"),
    "rows in two axes": (step, {"i": [[0], [1]]}, ValueError, r"i has shape \(2, 1\)"),
    "rows for 0-d data": (
        step,
        {"i": [0], "x": np.array(1.0), "output": np.array(1.0), "memory": (np.array(1.0),)},
        ValueError,
        "i has shape",
    ),
    "sample of integers": (begun, {"x": INTEGERS}, TypeError, "sample has dtype int64.*cast it"),
    "complex sample": (begun, {"x": ONE * 1j}, TypeError, "sample has dtype complex128"),
    "sample of Booleans": (begun, {"x": ONE > 0}, TypeError, "sample has dtype bool"),
    "sample that is a list": (begun, {"x": [1.0]}, TypeError, r"sample=\[1.0\].*asarray"),
    "sample that is a number": (begun, {"x": 1.0}, TypeError, "sample=1.0.*asarray"),
    "no sample": (begun, {"x": None}, TypeError, "sample=None"),
    "output of another shape": (
        step,
        {"output": TWO},
        ValueError,
        r"model_output has shape \(2, 2\): expected \(2, 3\)",
    ),
    "output that would broadcast": (step, {"output": ONE[:1]}, ValueError, "model_output has shape"),
    "output of another rank": (step, {"output": ONE[..., None]}, ValueError, "model_output has shape"),
    "integer output": (step, {"output": INTEGERS}, TypeError, "model_output has dtype int64"),
    "complex output": (step, {"output": ONE * 1j}, TypeError, "model_output has dtype complex128"),
    "Boolean output": (step, {"output": ONE > 0}, TypeError, "model_output has dtype bool"),
    "no output": (step, {"output": None}, TypeError, "model_output=None.*asarray"),
    "noise is missing": (stochastic, {"noise": None}, ValueError, r"noise is missing.*pass 2 array"),
    "noise for nothing": (step, {"noise": ONE}, ValueError, "noise was given.*leave it out"),
    "one noise of two": (stochastic, {"noise": ONE}, ValueError, r"noise holds 1 array\(s\).*takes 2"),
    "three noises of two": (stochastic, {"noise": [ONE] * 3}, ValueError, "noise holds 3"),
    "noise of another shape": (stochastic, {"noise": (ONE, TWO)}, ValueError, r"noise has shape \(2, 2\)"),
    "noise of integers": (stochastic, {"noise": (ONE, INTEGERS)}, TypeError, "noise has dtype int64"),
    "noise of nothing": (stochastic, {"noise": (ONE, None)}, TypeError, "noise=None"),
    "a memory too few": (
        step,
        {"memory": ()},
        ValueError,
        r"state has 0 memories, the plan 1.*init\(plan, x\)",
    ),
    "a memory too many": (step, {"memory": (ONE, ONE)}, ValueError, "state has 2 memories, the plan 1"),
    "memory of another shape": (step, {"memory": (TWO,)}, ValueError, r"memory.* shape \(2, 2\)"),
    "memory of integers": (step, {"memory": (INTEGERS,)}, TypeError, "memory.*int64"),
    "estimate of another shape": (estimated, {"output": TWO}, ValueError, r"model_output has shape \(2, 2\)"),
    "estimate after the last": (estimated, {"i": 2}, IndexError, "i=2 is outside"),
    "estimate of integers": (estimated, {"x": INTEGERS}, TypeError, "sample has dtype int64"),
    "scaling after the last": (scaled, {"i": 2}, IndexError, "i=2 is outside"),
    "scaling integers": (scaled, {"x": INTEGERS}, TypeError, "sample has dtype int64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    act, arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=f"(?s){message}"):
        act(**arguments)
    assert (ONE == 1).all() and (TWO == 1).all()


@pytest.mark.parametrize("act", [step, stochastic, estimated, scaled])
def test_the_arguments_are_otherwise_right(act):
    act()


def test_scaling_checks_its_arguments_where_the_factor_is_one_too():
    plan = Plan([0], [1, 1], [1, 0], [1], [[0, 1]], np.ones((1, 1, 3)))
    with pytest.raises(IndexError, match="i=1 is outside"):
        scale_input(plan, 1, ONE)
    with pytest.raises(TypeError, match="sample has dtype int64"):
        scale_input(plan, 0, ONE.astype(int))


def test_noise_may_be_left_out_where_it_is_not_used():
    assert STOCHASTIC.noises == QUIET.noises == 2
    compare(step(plan=QUIET).x, step(plan=QUIET, noise=(ONE, 2 * ONE)).x)
    with pytest.raises(ValueError, match="noise has shape"):
        step(plan=QUIET, noise=(ONE, TWO))
    with pytest.raises(
        ValueError, match="noise is missing"
    ):  # whether a row on the device uses it is not known
        step(i=[0, 1], plan=QUIET)


MIXES = [(a, b) for a in NAMES for b in NAMES if a != b]


def need(*names):
    for name in names:
        if library(name).missing:
            pytest.skip(library(name).missing)


@pytest.mark.parametrize(("first", "second"), MIXES)
@pytest.mark.parametrize("place", ["model_output", "noise", "memory"])
def test_refuses_arrays_of_another_library(first, second, place):
    need(first, second)
    x, other = (library(name).array(ONE, "float32") for name in (first, second))
    parts = {"model_output": x, "noise": x, "memory": x} | {place: other}
    with pytest.raises(TypeError, match=rf"{place}.*{second}.*{first}.*convert"):
        step(0, STOCHASTIC, x, parts["model_output"], (x, parts["noise"]), (parts["memory"],))


@pytest.mark.parametrize(("first", "second"), [pair for pair in MIXES if pair[1] != "numpy"])
def test_refuses_an_index_of_another_library(first, second):
    need(first, second)
    x, i = library(first).array(ONE, "float32"), library(second).index([0, 1])
    with pytest.raises(TypeError, match=f"i .*{second}.*{first}"):
        step(i, x=x, output=x, memory=(x,))


def test_a_failed_step_leaves_the_state():
    state = init(STOCHASTIC, ONE.copy())
    before = [part.copy() for part in flat(state)]
    for noise in (None, (ONE, TWO)):
        with pytest.raises(ValueError, match="noise"):
            update(STOCHASTIC, 0, state, ONE, noise)
    assert all(np.array_equal(a, b) for a, b in zip(flat(state), before, strict=True))
