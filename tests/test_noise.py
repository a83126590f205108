"""Counter noise: known answers, the same bits everywhere, and the distributions that it says it has.

The generator is held to Random123's vectors and to JAX's own Threefry; what follows from it to a reference of few lines on
Python's ints; the tables to their script and to mpmath. Statistics have fixed seeds and bounds of five standard deviations.
"""

import dataclasses
import math
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given
from scipy import special, stats

import anystep
from anystep import DDIM, CounterNoise, Trailing, draw, sample
from anystep._draw import draw_uniform
from anystep._quantiles import narrow, tables, wide
from anystep._threefry import block, low_bits, shifted, signed, words
from anystep_conformance.libraries import FLOATS, HALVES, cases, library, numpy_dtype

ROOT = Path(__file__).parents[1]
U32 = st.integers(0, 2**32 - 1)
LAWS = ("normal", "gumbel", "uniform")
# PyTorch warns of what it does itself while it compiles.
compiles = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
slow = pytest.mark.skipif("ANYSTEP_SLOW" not in os.environ, reason="set ANYSTEP_SLOW=1 to run it")


def same(ours, theirs):
    """Equal to the last bit, signs of zero included."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.view(f"u{ours.itemsize}"), theirs.view(f"u{theirs.itemsize}"))


def int32(values):
    return np.asarray(values, np.uint32).view(np.int32)


# ---------------------------------------------------------------- Threefry

# Random123's known answers for threefry2x32, 20 rounds: key, counter, words
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_known_answers(key, counter, answer):
    assert block(key, counter) == answer


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_known_answers_of_arrays(entry, dtype):
    with entry.scope(dtype):
        xp = anystep._array.namespace(entry.array([0.0], dtype))
        keys, counters, answers = (
            [entry.make(int32([row[part][word] for row in KNOWN])) for word in range(2)] for part in range(3)
        )
        for found, expected in zip(words(xp, keys, counters), answers, strict=True):
            same(entry.read(found), entry.read(expected))


@given(U32, U32, U32, U32)
def test_arrays_and_ints_agree(a, b, c, d):
    key, counter = ((int32([a]), int32([b])), (int32([c]), int32([d])))
    assert tuple(int(word[0]) for word in words(np, key, counter)) == tuple(
        signed(word) for word in block((a, b), (c, d))
    )


def test_jax_has_the_same_threefry():
    random = pytest.importorskip("jax.extend.random")
    rng = np.random.default_rng(0)
    key, counter = rng.integers(0, 2**32, (2,), np.uint32), rng.integers(0, 2**32, (2, 1000), np.uint32)
    theirs = np.asarray(random.threefry_2x32(key, counter.reshape(-1)))
    ours = words(np, int32(key)[:, None], int32(counter))
    same(np.concatenate(ours), int32(theirs))


def test_bits_of_jax_are_the_two_words_xored():
    jax = pytest.importorskip("jax")
    theirs = np.asarray(jax.random.bits(jax.random.key(12345), (1000,)))
    first, second = words(np, (int32([0]), int32([12345])), (int32([0]), int32(np.arange(1000))))
    same(first ^ second, int32(theirs))


@given(U32, st.integers(2, 31))
def test_shifts_bring_in_zeros(word, right):
    assert int(shifted(np, int32([word]), right)[0]) == signed(word >> right)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.int16, np.uint8])
def test_low_bits(dtype):
    info = np.iinfo(dtype)
    values = np.array([info.min, info.max, 0, 1, info.max // 2, info.max - 1], dtype)
    assert low_bits(np, values).tolist() == [signed(int(v) % 2**32) for v in values]


# ---------------------------------------------------------------- Layout


def reference_words(seed, stream, step, law, sample_id, elements, refinement=0):
    """Unsigned words of one sample, as docs/noise.md lays them out."""
    tag = stream | LAWS.index(law) << 28 | refinement << 31
    key = block((seed & 0xFFFFFFFF, seed >> 32), (step % 2**32, tag))
    return [word for pair in range((elements + 1) // 2) for word in block(key, (sample_id, pair))][:elements]


def quantile(law, negative, p):
    """Exact value of a half and a tail mass."""
    if law == "normal":
        return float(special.ndtri(p)) * (1 if negative else -1)
    return -math.log(-math.log(p)) if negative else -math.log(-math.log1p(-p))


@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**28 - 1),
    step=st.integers(-1, 2**32 - 2),
    ids=st.lists(U32, min_size=1, max_size=3),
    elements=st.integers(1, 5),
    law=st.sampled_from(LAWS),
)
def test_layout(seed, stream, step, ids, elements, law):
    noise = CounterNoise(seed, samples=ids, stream=stream)
    narrow_, wide_ = (getattr(noise, law)(np.zeros((len(ids), elements), d), step) for d in ("f4", "f8"))
    for row, sample_id in enumerate(ids):
        first, more = (reference_words(seed, stream, step, law, sample_id, elements, r) for r in (0, 1))
        for j, (word, low) in enumerate(zip(first, more, strict=True)):
            if law == "uniform":
                assert narrow_[row, j] == (word >> 8) / 2**24
                assert wide_[row, j] == ((word >> 5) * 2**26 + (low >> 6)) / 2**53
                continue
            m = word & 0x7FFFFFFF
            exact = quantile(law, word >> 31, ((m << 32) | low | 1) / 2.0**64)
            assert wide_[row, j] == pytest.approx(exact, rel=1e-14, abs=1e-15)
            if m >> 12:  # else the tail is coarse
                assert narrow_[row, j] == pytest.approx(quantile(law, word >> 31, (m | 1) / 2**32), abs=4e-6)


def test_the_numbers_of_this_version():
    """A seed's numbers never change; these are written down."""
    noise = CounterNoise(2**63 + 5, samples=[0, 2**32 - 1], stream=9)
    like = np.zeros((2, 3))
    found = {
        (law, bits): getattr(noise, law)(like.astype(f"f{bits // 8}"), 17).astype("f8").ravel()[[0, 4]]
        for law in LAWS
        for bits in (32, 64)
    }
    assert {key: [x.hex() for x in value.tolist()] for key, value in found.items()} == GOLDEN


GOLDEN = {
    ("normal", 32): ["0x1.77cfaa0000000p+0", "-0x1.16ef6a0000000p-2"],
    ("normal", 64): ["0x1.77cfb03c7bc7ep+0", "-0x1.16ef6b514b3f3p-2"],
    ("gumbel", 32): ["0x1.fb190a0000000p+1", "0x1.385a400000000p-1"],
    ("gumbel", 64): ["0x1.fb1907e6954e8p+1", "0x1.385a36c65a89cp-1"],
    ("uniform", 32): ["0x1.a0b0400000000p-3", "0x1.a4cf8a0000000p-1"],
    ("uniform", 64): ["0x1.a0b0412fd784cp-3", "0x1.a4cf8b37a8cfep-1"],
}


# ---------------------------------------------------------------- The same bits everywhere


def integers(entry, values):
    """As a library holds them: JAX in 32 bits; NumPy's are checked on the host, so that they must be what they are."""
    return entry.make(
        int32(np.asarray(values) % 2**32) if entry.module == "jax" else np.asarray(values, np.int64)
    )


def on_numpy(noise, law, shape, dtype, step):
    """Of the reference library, half precision by way of ml_dtypes."""
    return getattr(noise, law)(np.zeros(shape, numpy_dtype(dtype)), step)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("entry", "dtype"), cases(FLOATS))
def test_every_library_gives_the_same_bits(entry, dtype, law):
    shape, ids = (5, 3, 67), [7, 0, 2**31 + 3, 2**32 - 1, 2**31 - 1]
    steps = [0, 5, -1, 2**31 + 1, 2**32 - 2]
    plain, named = CounterNoise(2**64 - 3), CounterNoise(1, samples=ids, stream=2**28 - 1)
    with entry.scope(dtype):
        like = entry.array(np.zeros(shape), dtype)
        xp = anystep._array.namespace(like)
        for noise in (plain, named):
            for step in (*steps, steps):
                drawn = getattr(noise, law)(like, step)
                assert anystep._array.namespace(drawn) is xp
                same(entry.read(drawn), on_numpy(noise, law, shape, dtype, step))
        # Ids and steps that are arrays of the library
        step, samples = integers(entry, steps), integers(entry, ids)
        drawn = getattr(CounterNoise(1, samples=samples, stream=2**28 - 1), law)(like, step)
        same(entry.read(drawn), on_numpy(named, law, shape, dtype, steps))
        drawn = getattr(plain, law)(like, integers(entry, 9))
        same(entry.read(drawn), on_numpy(plain, law, shape, dtype, 9))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_large_arrays_agree(entry, dtype):
    """Drawn whole, or in blocks of rows and of elements, with one step for all or one each."""
    noise = CounterNoise(3)
    for shape in ((3, 50_001), (2, 140_001), (7, 20_000)):
        for law, step in (("normal", 4), ("gumbel", list(range(shape[0]))), ("uniform", 5)):
            drawn = getattr(noise, law)(entry.array(np.zeros(shape), dtype), step)
            same(entry.read(drawn), on_numpy(noise, law, shape, dtype, step))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_every_octave_agrees(entry, dtype):
    rng = np.random.default_rng(0)
    m = rng.integers(0, 2**31, 4000) >> rng.integers(0, 32, 4000)
    word = int32(np.concatenate([m, m + 2**31, [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]]))
    more = int32(rng.integers(0, 2**32, word.size) >> rng.integers(0, 33, word.size))
    with entry.scope(dtype):
        like = entry.array([0.0], dtype)
        xp, place = anystep._array.namespace(like), anystep._array.place(like)
        for law in LAWS:
            if dtype == "float32":
                found, expected = narrow(xp, entry.make(word), law, place), narrow(np, word, law, None)
            else:
                found = wide(xp, entry.make(word), entry.make(more), law, place)
                expected = wide(np, word, more, law, None)
            same(entry.read(found), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", LAWS)
def test_jax_compiled(law, dtype):
    """jit, with steps and ids as data; vmap over ids; one loop over steps: no fused operation changes a bit."""
    jax = pytest.importorskip("jax")
    entry, shape, ids = library("jax"), (4, 33), [3, 1, 2**32 - 2, 0]
    expected = [on_numpy(CounterNoise(6, samples=ids), law, shape, dtype, step) for step in range(3)]
    with entry.scope(dtype):
        x, names = entry.array(np.zeros(shape), dtype), entry.make(int32(ids))
        run = jax.jit(lambda x, names, i: getattr(CounterNoise(6, samples=names), law)(x, i))
        for step in range(3):
            same(np.array(run(x, names, step)), expected[step])
        same(np.array(run(x, names, np.int32([2, 2, 2, 2]))), expected[2])
        assert run._cache_size() == 2

        one = lambda name, row: getattr(CounterNoise(6, samples=name), law)(row[None], 1)[0]
        same(np.array(jax.vmap(one)(names, x)), expected[1])
        same(np.array(jax.jit(jax.vmap(one))(names, x)), expected[1])

        loop = lambda x: jax.lax.scan(lambda c, i: (c, run(x, names, i)), 0, jax.numpy.arange(3))[1]
        same(np.array(jax.jit(loop)(x)), np.stack(expected))
        # The sum that follows is fused with the product inside; the noise is the same nevertheless.
        z, _ = jax.jit(lambda x: (run(x, names, 1), run(x, names, 1) * 2.0 + 1.0))(x)
        same(np.array(z), expected[1])


def test_jax_draws_where_the_sample_is():
    """Four forced host devices, in a process of their own: whole, sharded by samples, and by elements."""
    pytest.importorskip("jax")
    code = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from anystep import CounterNoise
expected = CounterNoise(5).normal((8, 6), 2)
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
for axes in (P(), P("a"), P(("a", "b")), P("a", "b"), P(None, "b")):
    x = jax.device_put(np.zeros((8, 6), np.float32), NamedSharding(mesh, axes))
    eager = CounterNoise(5).normal(x, 2)
    assert eager.sharding == x.sharding
    ids = jax.device_put(np.arange(8, dtype=np.int32), NamedSharding(mesh, P(*axes[:1])))
    draw = jax.jit(lambda x, ids: CounterNoise(5, samples=ids).normal(x, 2), out_shardings=x.sharding)
    for drawn in (eager, draw(x, ids)):
        assert np.array(drawn).tobytes() == expected.tobytes(), axes
there = jax.device_put(np.zeros((8, 6), np.float32), jax.devices()[3])
drawn = CounterNoise(5).normal(there, 2)
assert drawn.devices() == {jax.devices()[3]} and np.array(drawn).tobytes() == expected.tobytes()
print("done")
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "done", done.stderr


def torch_compiled(backend):
    """Checks of torch.compile with one of its backends."""
    import torch
    import torch._dynamo.testing

    noise, ids = CounterNoise(2**64 - 1), torch.tensor([4, 0, 2**32 - 1])
    noise.normal(torch.zeros(1))  # finds the backend, which Dynamo cannot

    def run(x, i, ids):
        return noise.normal(x, i), dataclasses.replace(noise, samples=ids).gumbel(x, i)

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch._dynamo.reset()
        graphs = torch._dynamo.testing.CompileCounterWithBackend(backend)
        compiled = torch.compile(run, fullgraph=True, backend=graphs)
        x = torch.zeros((3, 41), dtype=dtype)
        for step in (5, 6, 7, 2**32 - 2, -1, torch.tensor(3), torch.tensor(4), torch.tensor([7, 8, 9])):
            for found, expected in zip(compiled(x, step, ids), run(x, step, ids), strict=True):
                assert found.dtype == dtype and torch.equal(found, expected)
        # The first int, any int, -1, a 0-d tensor, one with an entry a sample
        assert graphs.frame_count <= 5

    torch._dynamo.reset()
    one = lambda name, row: dataclasses.replace(noise, samples=name).normal(row[None], 1)[0]
    x = torch.zeros(3, 8)
    expected = dataclasses.replace(noise, samples=ids).normal(x, 1)
    assert torch.equal(torch.func.vmap(one)(ids, x), expected)
    assert torch.equal(torch.compile(torch.func.vmap(one), fullgraph=True, backend=backend)(ids, x), expected)
    shared = torch.func.vmap(one, in_dims=(None, 0))
    assert torch.equal(shared(ids[0], x), torch.compile(shared, backend=backend)(ids[0], x))


@compiles
def test_torch_compiled():
    pytest.importorskip("torch")
    torch_compiled("aot_eager")


@slow
@compiles
def test_torch_inductor():
    pytest.importorskip("torch")
    torch_compiled("inductor")


@compiles
def test_torch_export():
    torch = pytest.importorskip("torch")
    noise = CounterNoise(11)
    noise.normal(torch.zeros(1))

    class Step(torch.nn.Module):
        def forward(self, x, i):
            return noise.normal(x, i)

    x, i = torch.zeros(3, 5), torch.tensor(4)
    program = torch.export.export(Step(), (x, i))
    assert any("counter_noise" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x, torch.tensor(6)), noise.normal(x, 6))


def test_the_operation_obeys_torchs_rules():
    torch = pytest.importorskip("torch")
    from anystep_backends._torch_noise import _operation

    step, ids = torch.tensor([3], dtype=torch.int32), torch.arange(4, dtype=torch.int32)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for double in (False, True):
        torch.library.opcheck(_operation, (step, ids, -7, 1, 5, 0, double), test_utils=checks)


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_nothing_is_read_from_the_device(entry, dtype):
    if entry.lazily is None:
        pytest.skip("reading is free")
    with entry.scope(dtype):
        x, ids, step = (
            entry.array(np.zeros((3, 4)), dtype),
            entry.make(int32([1, 2, 3])),
            entry.make(int32(2)),
        )
        noise = lambda ids: CounterNoise(0, samples=ids)
        for law in LAWS:
            entry.lazily(lambda x, ids, step: getattr(noise(ids), law)(x, step), x, ids, step)


def test_tables_are_kept_where_they_are_used():
    torch = pytest.importorskip("torch")
    from anystep._quantiles import columns

    xp = anystep._array.namespace(torch.zeros(1))
    assert columns(xp, "normal", torch.device("cpu"))[0] is columns(xp, "normal", torch.device("cpu"))[0]
    with torch.inference_mode():
        CounterNoise(0).gumbel(torch.zeros(2, 2))
    x = torch.zeros(2, 2, requires_grad=True)
    (x * CounterNoise(0).gumbel(x)).sum().backward()
    assert torch.equal(x.grad, CounterNoise(0).gumbel(x).detach())


# ---------------------------------------------------------------- Samples and shapes


@given(st.data(), st.integers(1, 8), st.integers(0, 9), st.sampled_from(LAWS), st.sampled_from(["f4", "f8"]))
def test_order_and_shards_change_nothing(data, batch, elements, law, dtype):
    ids = data.draw(st.lists(U32, min_size=batch, max_size=batch))
    order = data.draw(st.permutations(range(batch)))
    cut = data.draw(st.integers(0, batch))
    make = lambda names: getattr(CounterNoise(5, samples=names), law)(
        np.zeros((len(names), elements), dtype), 3
    )
    whole = make(ids)
    same(make([ids[k] for k in order]), whole[list(order)])
    same(np.concatenate([make(ids[:cut]), make(ids[cut:])]), whole)


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from(["f4", "f8"]))
def test_a_longer_sample_begins_like_a_shorter_one(short, long, dtype):
    short, long = sorted((short, long))
    drawn = [CounterNoise(1).normal(np.zeros((2, n), dtype), 0) for n in (short, long)]
    same(np.ascontiguousarray(drawn[1][:, :short]), np.ascontiguousarray(drawn[0]))


def test_the_shape_of_a_sample_is_only_its_shape():
    flat = CounterNoise(1).normal((2, 24))
    same(CounterNoise(1).normal((2, 2, 3, 4)).reshape(2, 24), flat)


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (0,), (0, 4), (4, 0), (2, 0, 3), (1, 1, 1), (2, 3, 5)], ids=str
)
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_any_shape(entry, dtype, shape):
    with entry.scope(dtype):
        for law in LAWS:
            drawn = getattr(CounterNoise(8), law)(entry.array(np.zeros(shape), dtype), 1)
            assert tuple(drawn.shape) == shape
            same(entry.read(drawn), on_numpy(CounterNoise(8), law, shape, dtype, 1))


def test_a_scalar_is_the_first_element_of_sample_0():
    first = CounterNoise(8).normal((1, 1))
    assert CounterNoise(8).normal(np.zeros((), np.float32)) == first[0, 0]
    assert CounterNoise(8, samples=5).normal(()) == CounterNoise(8).normal((6,))[5]


def test_names_may_be_anything_that_holds_integers():
    expected = CounterNoise(1, samples=[4, 5, 6]).normal((3, 2))
    for names in (
        range(4, 7),
        (4, 5, 6),
        np.arange(4, 7),
        np.arange(4, 7, dtype=np.uint64),
        np.uint8([4, 5, 6]),
    ):
        same(CounterNoise(1, samples=names).normal((3, 2)), expected)
    names = np.arange(3)
    noise = CounterNoise(1, samples=names)
    names += 1
    same(noise.normal((3, 2)), CounterNoise(1).normal((3, 2)))


@given(st.integers(0, 2**64 - 1), st.integers(-1, 2**32 - 3), st.integers(0, 2**28 - 2), U32)
def test_other_names_are_other_noise(seed, step, stream, name):
    def make(seed=seed, step=step, stream=stream, name=name):
        return CounterNoise(seed, stream=stream, samples=[name]).normal((1, 4), step)

    others = [
        make(seed=seed ^ 1), make(seed=seed ^ 1 << 32), make(step=step + 1), make(stream=stream + 1), make(name=name ^ 1),
        make(name=name ^ 1 << 31), CounterNoise(seed, stream=stream, samples=[name]).gumbel((1, 4), step),
    ]  # fmt: skip
    assert all(np.abs(other - make()).max() > 1e-4 for other in others)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: CounterNoise(-1), ValueError, r"seed=-1: expected an integer >= 0"),
        (lambda: CounterNoise(2**64), ValueError, r"seed=18446744073709551616: expected at most"),
        (lambda: CounterNoise(1.0), ValueError, r"seed=1.0"),
        (lambda: CounterNoise(True), ValueError, r"seed=True"),
        (lambda: CounterNoise(0, stream=2**28), ValueError, r"stream=268435456: expected at most"),
        (lambda: CounterNoise(0, stream=-1), ValueError, r"stream=-1"),
        (lambda: CounterNoise(0, samples=[0, 2**32]), ValueError, r"samples=.*integers in \[0, 4294967295\]"),
        (lambda: CounterNoise(0, samples=[-1]), ValueError, r"samples=\[-1\]"),
        (lambda: CounterNoise(0, samples=[2**70]), ValueError, r"samples="),
        (lambda: CounterNoise(0, samples=[0.5]), ValueError, r"samples="),
        (lambda: CounterNoise(0, samples=[[1]]), ValueError, r"samples="),
        (lambda: CounterNoise(0, samples="ab").normal((2,)), TypeError, r"samples='ab'"),
        (lambda: CounterNoise(0, samples=[1, 2]).normal((3, 4)), ValueError, r"samples are 2: .* the 3 rows"),
        (lambda: CounterNoise(0).normal((3, 4), -2), ValueError, r"step=-2"),
        (lambda: CounterNoise(0).normal((3, 4), 2**32 - 1), ValueError, r"step=4294967295: expected at most"),
        (lambda: CounterNoise(0).normal((3, 4), 0.5), TypeError, r"step=0.5"),
        (lambda: CounterNoise(0).normal((3, 4), [1, 2]), ValueError, r"step has 2 entries: .* the 3 rows"),
        (lambda: CounterNoise(0).normal((3, 4), [1, 2, -3]), ValueError, r"step=\[1, 2, -3\]"),
        (lambda: CounterNoise(0).normal((3, 4), np.zeros(3)), ValueError, r"step="),
        (lambda: CounterNoise(0).normal(3), TypeError, r"like=3: expected an array, or a shape"),
        (lambda: CounterNoise(0).normal((3, -4)), ValueError, r"like=-4"),
        (lambda: CounterNoise(0).normal(np.zeros(2, int)), TypeError, r"like has dtype int64"),
        (lambda: CounterNoise(0).normal(np.empty((1, 2**33), "V0").view("V0")), TypeError, r"like has dtype"),
        (lambda: CounterNoise(0).uniform(np.zeros(1), shape=(1, 2**33)), ValueError, r"at most 2\^32 elements"),
    ],
)  # fmt: skip
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_arrays_of_another_library_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="samples="):
        CounterNoise(0, samples=torch.arange(2)).normal((2, 2))
    with pytest.raises(TypeError, match="step="):
        CounterNoise(0).normal((2, 2), torch.arange(2))
    with pytest.raises(TypeError, match=r"samples has dtype torch\.float32 and 1 axes"):
        CounterNoise(0, samples=torch.zeros(2)).normal(torch.zeros(2, 2))


def test_nothing_is_loaded_before_it_is_used():
    code = """
import sys, anystep
assert "anystep.noise" not in sys.modules
from anystep import CounterNoise
from anystep._quantiles import tables
CounterNoise(0)
assert not tables.cache_info().currsize
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_it_is_frozen():
    noise = CounterNoise(0, samples=[1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        noise.seed = 1
    with pytest.raises(ValueError, match="read-only"):
        noise.samples[0] = 2


# ---------------------------------------------------------------- Dtypes and tables


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_rounded(dtype):
    like = np.zeros((4, 100), numpy_dtype(dtype))
    for law in ("normal", "gumbel"):
        exact = getattr(CounterNoise(2), law)(like.astype("f4"))
        same(getattr(CounterNoise(2), law)(like), exact.astype(like.dtype))
    assert CounterNoise(2).uniform(like).dtype == np.float32


def test_float64_refines_float32():
    for law, bound in (("normal", 2e-6), ("gumbel", 6e-6), ("uniform", 2.0**-24)):
        rough, fine = (getattr(CounterNoise(4), law)(np.zeros((1, 10**6), d)) for d in ("f4", "f8"))
        inside = np.abs(fine) < 4
        assert np.abs(rough - fine)[0][inside[0]].max() <= bound
        assert np.unique(fine).size == fine.size


@pytest.fixture(scope="module")
def script():
    path = ROOT / "examples" / "build_noise_tables.py"
    if not path.exists():
        pytest.skip("not a checkout: no examples beside the tests")
    spec = spec_from_file_location("build_noise_tables", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_can_be_rebuilt(script):
    """Bit for bit; here some octaves and segments, with ANYSTEP_SLOW all of them."""
    for name, laws in (("normal", (script.normal,)), ("gumbel", (script.gumbel_upper, script.gumbel_lower))):
        octaves, segments = [0, 1, 9, 10, 30], [0, 1, 100, 255]
        shipped = tables()[name].reshape(2, len(laws), 31, 256)
        for side, law in enumerate(laws):
            same(script.lines(law, octaves, segments), shipped[:, side][:, octaves][:, :, segments])
        octaves, segments = [0, 1, 31, 62], [0, 7, 15]
        shipped = tables()[name + "_wide"].reshape(10, len(laws), 63, 16)
        for side, law in enumerate(laws):
            same(script.polynomials(law, octaves, segments), shipped[:, side][:, octaves][:, :, segments])


@slow
def test_all_tables_can_be_rebuilt(script):
    built = script.build()
    assert sorted([*built, "zeros"]) == sorted(tables())
    for name, table in built.items():
        same(table, tables()[name])


def test_tables_are_in_the_wheel():
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    files = {file.distribution_path for file in builder.recurse_included_files()}
    assert "anystep/_noise_tables.npz" in files


@pytest.mark.parametrize("name", ["normal", "gumbel"])
def test_products_are_exact(name):
    """13 bits of slope and 11 bits and a sign of place: no rounding but that of the sum, fused or not."""
    middle, slope = (part.astype(np.float64) for part in tables()[name])
    fraction, exponent = np.frexp(slope)
    assert np.all(fraction * 2**13 == np.round(fraction * 2**13)) and exponent.min() > -60
    for place in (-2048, -2047, -1365, -1, 0, 1, 1023, 2047):
        product = slope.astype("f4") * np.float32(place)
        assert np.all(product == slope * place)
        assert np.all((middle + slope * place).astype("f4") == middle.astype("f4") + product)


def test_polynomials_do_not_overflow():
    """The longest product is of a total and a place of 63 bits: their halves must fit."""
    for name in ("normal_wide", "gumbel_wide"):
        constant, *slopes = tables()[name].astype(object)
        assert (
            sum(map(abs, slopes)).max() < 2**61
        )  # upper halves of 30 bits, so that the two long products stay below 2^63
        assert (abs(constant) + sum(map(abs, slopes)) // 2**4).max() < 2**63


def reachable(octave, count, rng):
    """31-bit masses of one octave: all, or that many of them."""
    low = 2 ** (30 - octave)
    return low + (np.arange(low) if low <= count else rng.integers(0, low, count))


@pytest.mark.parametrize(("law", "bound"), [("normal", 8.5e-7), ("gumbel", 2.4e-6)])
def test_accuracy(law, bound):
    """Against the exact quantile of p; measured 8.2e-7 and 2.3e-6: the line, the place's 12 bits and the sum's rounding."""
    rng = np.random.default_rng(0)
    for octave in range(31):
        m = reachable(octave, 100_000, rng)
        p = (m | 1) / 2.0**32
        for negative in (0, 1):
            found = narrow(np, int32(m + negative * 2**31), law, None).astype("f8")
            if law == "normal":
                exact = special.ndtri(p) * (1 if negative else -1)
            else:
                exact = -np.log(-np.log(p)) if negative else -np.log(-np.log1p(-p))
            assert np.abs(found - exact).max() <= bound


def test_typical_accuracy():
    word = int32(np.random.default_rng(1).integers(0, 2**32, 10**6))
    m = (word & 0x7FFFFFFF) | 1
    exact = special.ndtri(m / 2.0**32) * np.where(word < 0, 1, -1)
    assert (
        np.median(np.abs(narrow(np, word, "normal", None) - exact)) < 1.8e-7
    )  # half of it the place's 12 bits


@pytest.mark.parametrize("law", ["normal", "gumbel"])
def test_wide_accuracy(law, script):
    """Half an ulp, the rounding to float64, and at most 2^-56 before it."""
    rng = np.random.default_rng(2)
    word = int32((rng.integers(0, 2**31, 600) >> rng.integers(0, 32, 600)) + 2**31 * rng.integers(0, 2, 600))
    more = int32(rng.integers(0, 2**32, 600) >> rng.integers(0, 33, 600))
    word[:3], more[:3] = [0, 2**31 - 1, -(2**31)], [0, -1, 0]
    mp, worst = script.mp, 0.0
    exact_law = {
        "normal": [script.normal, lambda p: -script.normal(p)],
        "gumbel": [script.gumbel_upper, script.gumbel_lower],
    }
    for value, a, b in zip(wide(np, word, more, law, None), word.tolist(), more.tolist(), strict=True):
        p = mp.mpf((a & 0x7FFFFFFF) << 32 | b & 0xFFFFFFFF | 1) / 2**64
        exact = exact_law[law][a < 0](p)
        off = float(abs(mp.mpf(float(value)) - exact))
        worst = max(worst, off - np.spacing(abs(value)) / 2)
    assert worst <= 2.0**-56


def test_the_script_knows_the_normal_quantile(script):
    for p in (0.4, 1e-3, 2.0**-64):
        z = script.normal(script.mp.mpf(p))
        with mpmath.workdps(50):
            assert abs(mpmath.erfc(mpmath.mpf(str(z)) / mpmath.sqrt(2)) / 2 / mpmath.mpf(p) - 1) < 1e-40


# ---------------------------------------------------------------- As a generator


def rows(levels=12, eta=1.0):
    return DDIM(eta=eta).plan(
        Trailing().levels(anystep.BetaSchedule.named("linear"), steps=levels), "epsilon"
    )


def bend(x, t):
    """Some model; exact in any library: clip, multiply."""
    return anystep._array.namespace(x).clip(x, min=-0.5, max=0.5) * 0.25


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_a_whole_sample_is_equal_everywhere(entry, dtype):
    """Start, noise and steps: nothing left to chance or library."""

    def run(entry):
        with entry.scope(dtype), anystep.reproducible():
            noise = CounterNoise(20)
            x = noise.normal(entry.array(np.zeros((2, 3, 4)), dtype))
            return entry.read(sample(bend, rows(), x, generator=noise))

    same(run(entry), run(library("numpy")))


def test_sample_counts_rows_from_0():
    plan, noise = rows(), CounterNoise(20)
    x = noise.normal((2, 6))
    given_ = sample(bend, plan, x, noise=lambda i: noise.normal(x, i))
    same(sample(bend, plan, x, generator=noise), given_)
    assert np.abs(noise.normal(x) - noise.normal(x, 0)).max() > 0.1  # the start sample's noise is no step's


def test_one_index_per_sample_draws_what_each_would_alone():
    """A batch of requests at different steps, in any order."""
    noise, x = CounterNoise(3, samples=[10, 11, 12]), np.zeros((3, 5), np.float32)
    mixed = noise.normal(x, np.array([4, 0, 7]))
    for row, (name, step) in enumerate([(10, 4), (11, 0), (12, 7)]):
        same(mixed[row : row + 1], CounterNoise(3, samples=[name]).normal(x[:1], step))


FACADES = ["DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete"]


def facade(name):
    scheduler = getattr(anystep, name + "Scheduler")()
    scheduler.set_timesteps(6)
    return scheduler, {"DDIM": {"eta": 1.0}, "EulerDiscrete": {"s_churn": 3.0}}.get(name, {})


@pytest.mark.parametrize("name", FACADES)
def test_a_facades_noise_does_not_know_what_was_drawn_before(name):
    """Alone, in another order of the batch, in shards, and after unrelated draws."""

    def run(ids, detours=0):
        noise = CounterNoise(5, samples=ids)
        scheduler, options = facade(name)
        x = noise.normal((len(ids), 7))
        for t in scheduler.timesteps:
            for _ in range(detours):
                draw(x, noise, 99)
            x = scheduler.step(bend(x, t), t, x, generator=noise, **options).prev_sample
        return x

    whole = run([0, 1, 2, 3])
    same(run([0, 1, 2, 3], detours=2), whole)
    same(run([2, 0, 3, 1]), whole[[2, 0, 3, 1]])
    same(np.concatenate([run([0]), run([1, 2, 3])]), whole)


@pytest.mark.parametrize("name", FACADES)
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_facades_agree(entry, dtype, name):
    def run(entry):
        noise = CounterNoise(6)
        with entry.scope(dtype), anystep.reproducible():
            scheduler, options = facade(name)
            x = noise.normal(entry.array(np.zeros((2, 7)), dtype))
            for t in scheduler.timesteps:
                x = scheduler.step(bend(x, t), t, x, generator=noise, **options).prev_sample
            return entry.read(x)

    same(run(entry), run(library("numpy")))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_draws(entry, dtype):
    with entry.scope(dtype):
        x = entry.array(np.zeros((2, 3)), dtype)
        same(entry.read(draw(x, CounterNoise(1), 4)), on_numpy(CounterNoise(1), "normal", (2, 3), dtype, 4))
        expected = CounterNoise(1).uniform(np.zeros((2, 5), dtype), 4)
        same(entry.read(draw_uniform(x, (2, 5), CounterNoise(1), 4)), expected)
        # A list: each row is the first sample of its own generator
        each = [CounterNoise(1), CounterNoise(2, samples=[9])]
        listed = [one.normal(np.zeros((1, 3), dtype), 4) for one in each]
        same(entry.read(draw(x, each, 4)), np.concatenate(listed))
        listed = [one.uniform(np.zeros((1, 5), dtype), 4) for one in each]
        same(entry.read(draw_uniform(x, (2, 5), tuple(each), 4)), np.concatenate(listed))


def test_lists():
    x = np.zeros((2, 3), np.float32)
    mixed = draw(x, [np.random.default_rng(1), CounterNoise(2)], 0)
    same(mixed[:1], np.random.default_rng(1).standard_normal((1, 3), dtype=np.float32))
    same(mixed[1:], CounterNoise(2).normal((1, 3), 0))
    same(draw(x, [CounterNoise(2)], 0), CounterNoise(2).normal(x, 0))
    with pytest.raises(ValueError, match="generator is a list of 3"):
        draw(x, [CounterNoise(0)] * 3)
    with pytest.raises(ValueError, match="generator is a list of 3"):
        draw_uniform(x, (2, 5), [CounterNoise(0)] * 3)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_tokens(name):
    """VQ-diffusion draws uniforms."""
    pytest.importorskip(name)
    entry, noise = library(name), CounterNoise(1)
    results = []
    for one in (entry, library("numpy")):
        scheduler = anystep.VQDiffusionScheduler(num_vec_classes=6)
        scheduler.set_timesteps(5)
        p = np.random.default_rng(0).random((3, 5, 8)).astype("f4")
        log_p = one.array(np.log(p / p.sum(axis=1, keepdims=True)), "float32")
        tokens = one.index(np.full((3, 8), 5))
        for t in scheduler.timesteps:
            tokens = scheduler.step(log_p, t, tokens, generator=noise).prev_sample
        results.append(one.read(tokens).astype(np.int64))
    np.testing.assert_array_equal(*results)
    assert len(np.unique(results[0])) > 2


def test_native_generators_still_draw_their_own():
    torch = pytest.importorskip("torch")
    jax = pytest.importorskip("jax")
    ours, theirs = (torch.Generator().manual_seed(2) for _ in range(2))
    for step in range(3):
        assert torch.equal(draw(torch.zeros(2, 3), ours, step), torch.randn(2, 3, generator=theirs))
    key, x = jax.random.key(1), jax.numpy.zeros((2, 3))
    same(np.array(draw(x, key, 5)), np.array(jax.random.normal(jax.random.fold_in(key, 5), (2, 3))))
    same(draw(np.zeros((2, 3)), np.random.default_rng(3)), np.random.default_rng(3).standard_normal((2, 3)))


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own, under NumPy 2
@pytest.mark.parametrize("name", FACADES)
def test_torch_generators_advance_as_in_diffusers(name):
    """The same draws in the same order: equal states after every step, for one generator and for a list."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    for count in (1, 2):
        states = []
        for module in (anystep, diffusers):
            generators = [torch.Generator().manual_seed(7 + k) for k in range(count)]
            scheduler = getattr(module, name + "Scheduler")()
            scheduler.set_timesteps(6)
            x, seen = torch.ones(2, 3, 4, 4), []
            for t in scheduler.timesteps:
                x = scheduler.step(
                    x * 0.1, t, scheduler.scale_model_input(x, t), **facade(name)[1],
                    generator=generators if count > 1 else generators[0],
                ).prev_sample  # fmt: skip
                seen.append(torch.stack([g.get_state() for g in generators]))
            states.append((x, seen))
        (x, ours), (y, theirs) = states
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert not torch.equal(ours[0], ours[-1])
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- Statistics

MANY = 4_000_000


@pytest.fixture(scope="module")
def normals():
    return {kind: CounterNoise(1234).normal(np.zeros((8, MANY // 8), kind)) for kind in ("f4", "f8")}


@pytest.fixture(scope="module")
def gumbels():
    return CounterNoise(1234).gumbel((8, MANY // 8))


def score(found, expected, variance):
    """Standard deviations off."""
    return (found - expected) / math.sqrt(variance)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_moments(normals, kind):
    z = normals[kind].ravel().astype("f8")
    n = z.size
    # Variances of the sample means of z^k: E z^2k - (E z^k)^2
    for power, mean, variance in (
        (1, 0, 1),
        (2, 1, 2),
        (3, 0, 15),
        (4, 3, 96),
        (5, 0, 945),
        (6, 15, 10395 - 225),
    ):
        assert abs(score((z**power).mean(), mean, variance / n)) < 5, power


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_distribution(normals, kind):
    z = normals[kind].ravel().astype("f8")
    assert stats.kstest(z, "norm").pvalue > 1e-6
    for edge in (0.0, 1.0, 2.0, 3.0, 4.0, 4.5):
        p = float(special.ndtr(-edge))
        for count in ((z > edge).sum(), (z < -edge).sum()):
            assert abs(score(count, z.size * p, z.size * p * (1 - p))) < 5, edge


def test_many_seeds_are_uniform_among_themselves():
    """The KS p-values of 200 seeds are themselves uniform, and so are those of steps, streams and samples."""
    seeds = [stats.kstest(CounterNoise(s).normal((1, 4000), 0).ravel(), "norm").pvalue for s in range(200)]
    steps = [stats.kstest(CounterNoise(0).normal((1, 4000), s).ravel(), "norm").pvalue for s in range(200)]
    streams = [
        stats.kstest(CounterNoise(0, stream=s).normal((1, 4000)).ravel(), "norm").pvalue for s in range(200)
    ]
    samples = [stats.kstest(row, "norm").pvalue for row in CounterNoise(1).normal((200, 4000))]
    for values in (seeds, steps, streams, samples):
        assert stats.kstest(values, "uniform").pvalue > 1e-6


def neighbours():
    n = 500_000
    z = CounterNoise(77).normal((4, n), 0)
    yield "elements of a pair", z[:, 0::2], z[:, 1::2]
    yield "pairs", z[:, :-2], z[:, 2:]
    yield "elements", z[:, :-1], z[:, 1:]
    yield "samples", z[:-1], z[1:]
    yield "distant samples", z, CounterNoise(77, samples=np.arange(4) + 2**31).normal((4, n), 0)
    yield "steps", z, CounterNoise(77).normal((4, n), 1)
    yield "the start and the first step", z, CounterNoise(77).normal((4, n))
    yield "seeds", z, CounterNoise(78).normal((4, n), 0)
    yield "upper words of seeds", z, CounterNoise(77 + 2**32).normal((4, n), 0)
    yield "streams", z, CounterNoise(77, stream=1).normal((4, n), 0)
    yield "laws", z, CounterNoise(77).gumbel((4, n), 0) - np.euler_gamma
    yield "laws again", z, CounterNoise(77).uniform((4, n), 0) - 0.5
    yield (
        "sample and pair",
        z[:, : n // 2],
        CounterNoise(77, samples=np.arange(4) + n // 4).normal((4, n // 2), 0),
    )


def test_neighbours_are_uncorrelated():
    for name, a, b in neighbours():
        for power in (1, 2):
            u, v = ((x.astype("f8").ravel() - x.mean(dtype="f8")) ** power for x in (a, b))
            r = np.corrcoef(u, v)[0, 1]
            # Var of r is 1/n for independent pairs; pairs that overlap too, to first order
            assert abs(r) * math.sqrt(u.size) < 5, (name, power, r)


def test_gumbels(gumbels):
    g = gumbels.ravel().astype("f8")
    n = g.size
    variance, fourth = math.pi**2 / 6, 5.4 * (math.pi**2 / 6) ** 2
    assert abs(score(g.mean(), np.euler_gamma, variance / n)) < 5
    assert abs(score(g.var(), variance, (fourth - variance**2) / n)) < 5
    assert stats.kstest(g, "gumbel_r").pvalue > 1e-6
    for edge in (-2.0, -1.0, 0.0, 2.0, 5.0, 10.0):
        p = float(stats.gumbel_r.sf(edge))
        assert abs(score((g > edge).sum(), n * p, n * p * (1 - p))) < 5, edge


def test_gumbel_max_draws_categories():
    """Sum of 20 seeds' chi-squares, 9 degrees of freedom each."""
    p = np.random.default_rng(0).dirichlet(np.ones(10))
    total, n = 0.0, 100_000
    for seed in range(20):
        drawn = np.argmax(np.log(p).astype("f4") + CounterNoise(seed).gumbel((n, 10)), axis=1)
        total += stats.chisquare(np.bincount(drawn, minlength=10), n * p).statistic
    assert 1e-6 < stats.chi2.sf(total, 9 * 20) < 1 - 1e-6


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_uniforms(kind):
    u = CounterNoise(9).uniform(np.zeros((4, 500_000), kind)).ravel()
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.astype("f8"), "uniform").pvalue > 1e-6
    counts = np.bincount((u * 4096).astype(int), minlength=4096)
    assert 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6
    # The lowest bits too
    low = (u.astype("f8") * 2.0 ** (24 if kind == "f4" else 53)) % 256
    assert 1e-6 < stats.chisquare(np.bincount(low.astype(int), minlength=256)).pvalue < 1 - 1e-6


def test_values_repeat_as_often_as_their_grid_says(normals):
    """Where |z| < 0.6745 each half has 2^20 values, equally likely; the number that 2e6 draws hit is known."""
    z = normals["f4"].ravel()
    edge = narrow(np, int32([2**30]), "normal", None)[0]
    inner = z[np.abs(z) <= edge]
    cells, n = 2**21, inner.size
    load = n / cells
    expected = cells * (1 - math.exp(-load))
    variance = cells * (math.exp(-load) - (1 + load) * math.exp(-2 * load))
    assert abs(score(np.unique(inner).size, expected, variance)) < 5


def test_values_are_symmetric_and_bounded():
    rng = np.random.default_rng(0)
    m = np.concatenate(
        [rng.integers(0, 2**31, 10**5), rng.integers(0, 2**31, 10**5) >> rng.integers(0, 32, 10**5)]
    )
    m = np.concatenate([m, [0, 1, 2**31 - 1]])
    upper, lower = (narrow(np, int32(m + half), "normal", None) for half in (0, 2**31))
    same(upper, -lower)
    assert upper.min() > 0  # no half reaches into the other, and there is no zero
    assert 6.2302 < upper.max() == upper[m == 0][0] < 6.2303
    fine = wide(np, int32([0, 2**31]), int32([0, 0]), "normal", None)
    assert 9.0801 < fine[0] < 9.0802 and fine[1] == -fine[0]
    for half, low, high in ((0, 0.3665, 22.1808), (2**31, -3.0993, 0.3666)):
        g = narrow(np, int32(m + half), "gumbel", None)
        assert low < g.min() and g.max() < high
    g = wide(np, int32([0, 2**31]), int32([0, 0]), "gumbel", None)
    assert 44.3614 < g[0] < 44.3615 and -3.7924 < g[1] < -3.7923


def test_larger_mass_is_nearer_to_the_middle():
    """Monotone in the word, across segments and octaves, up to one rounding."""
    m = np.concatenate(
        [np.arange(2**30 - 3000, 2**30 + 3000), np.arange(1, 5000), np.arange(2**22 - 3000, 2**22 + 3000)]
    )
    z = narrow(np, int32(np.sort(m)), "normal", None)
    assert np.diff(z).max() <= 2e-6
