"""The backend protocol on every array library, CuPy's adapter on a NumPy-backed stub where there is no GPU."""

import ast
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import anystep_backends
from anystep_backends import _common
from anystep_backends._protocol import Backend

PACKAGE = Path(anystep_backends.__file__).parent
MODULES = {
    "numpy": "_numpy",
    "torch": "_torch",
    "jax": "_jax",
    "array_api_strict": "_strict",
    "cupy": "_cupy",
}
EVERY = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")
WITHOUT = {"jax": ("float64", "int64"), "array_api_strict": ("float16", "bfloat16")}
HAS_GPU = importlib.util.find_spec("cupy") is not None and importlib.import_module("cupy").cuda.is_available()
SUBJECTS = ("numpy", "torch", "jax", "array_api_strict", "cupy on NumPy", *(["cupy"] if HAS_GPU else []))
INSTALLED = tuple(name for name in SUBJECTS if name not in MODULES or importlib.util.find_spec(name))
WITH_VIEWS = ("torch", "cupy on NumPy", *(["cupy"] if HAS_GPU else []))


# A CuPy made of NumPy: two devices, arrays that refuse NumPy and each other's device, and entries that are views.


class _Driver(RuntimeError):
    """CuPy's CUDARuntimeError."""


class _Device:
    """CuPy's Device: equal by number, unhashable, a context that makes itself current."""

    count = 2
    stack: ClassVar[list[int]] = [0]
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, device=None):
        if not _Device.count:
            raise _Driver("cudaErrorInsufficientDriver")
        self.id = _Device.stack[-1] if device is None else int(getattr(device, "id", device))
        assert 0 <= self.id < _Device.count

    def __eq__(self, other):
        return isinstance(other, _Device) and self.id == other.id

    def __enter__(self):
        _Device.stack.append(self.id)

    def __exit__(self, *_):
        _Device.stack.pop()


class _Array:
    """CuPy's ndarray, on the current device."""

    def __init__(self, values):
        self._values, self.device = values, _Device()

    dtype = property(lambda self: self._values.dtype)
    shape = property(lambda self: self._values.shape)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    strides = property(lambda self: self._values.strides)
    data = property(lambda self: SimpleNamespace(ptr=self._values.ctypes.data))

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getitem__(self, key):
        with self.device:
            return _Array(self._values[key, ...])

    def __setitem__(self, key, value):
        self._values[key] = value

    def get(self):
        return self._values.copy()

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        with self.device:
            return _Array(self._values.astype(dtype, copy=copy))

    def copy(self):
        return self.astype(self.dtype)

    def view(self, dtype):
        with self.device:
            return _Array(self._values.view(dtype))


class _Random:
    """CuPy's Generator and RandomState, bound to the device that they were made on."""

    def __init__(self, seed=None):
        self._native, self._device = np.random.default_rng(seed), _Device()

    def _draw(self, law, size, dtype):
        assert self._device == _Device(), "the generator's state is on another device"
        assert np.dtype(dtype) in (np.float32, np.float64)
        assert 0 not in size, "a launch of nothing"
        return _Array(np.asarray(getattr(self._native, law)(size, dtype=dtype)))

    def standard_normal(self, size=None, dtype=float, out=None):
        return self._draw("standard_normal", size, dtype)


class _Generator(_Random):
    def random(self, size=None, dtype=float, out=None):
        return self._draw("random", size, dtype)


class _RandomState(_Random):
    def random_sample(self, size=None, dtype=float):
        return self._draw("random", size, dtype)


def _stub():
    """The module ``cupy`` as far as the adapter uses it."""

    def array(a, dtype=None):
        assert isinstance(a, np.ndarray)
        return _Array(np.array(a, dtype=dtype))

    def count():
        if not _Device.count:
            raise _Driver("cudaErrorInsufficientDriver")
        return _Device.count

    def concatenate(tup, axis=0):
        assert all(x.device == _Device() for x in tup)
        return _Array(np.concatenate([x._values for x in tup], axis=axis))

    stub = ModuleType("cupy")
    stub.__version__ = "14.2.0"
    stub.ndarray, stub.asarray, stub.concatenate = _Array, array, concatenate
    stub.empty = lambda shape, dtype=float: _Array(np.empty(shape, dtype))
    stub.random = SimpleNamespace(
        Generator=_Generator,
        RandomState=_RandomState,
        default_rng=_Generator,
        standard_normal=lambda size=None, dtype=float: _RandomState().standard_normal(size, dtype),
        random_sample=lambda size=None, dtype=float: _RandomState().random_sample(size, dtype),
    )
    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=_Driver)
    stub.cuda = SimpleNamespace(Device=_Device, runtime=runtime, is_available=lambda: _Device.count > 0)
    return stub


def _on_stub():
    """The CuPy adapter loaded a second time, with the stub as its ``cupy``."""
    spec = importlib.util.spec_from_file_location("anystep_backends._cupy_on_numpy", PACKAGE / "_cupy.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", _stub())
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module.backend


def load(subject):
    """A backend by subject, or a skip that says why."""
    if subject == "cupy on NumPy":
        return ON_STUB
    pytest.importorskip(subject, reason=f"{subject} is not installed")
    return importlib.import_module(f"anystep_backends.{MODULES[subject]}").backend


ON_STUB = _on_stub()


@pytest.fixture(params=SUBJECTS)
def backend(request):
    return load(request.param)


def dtypes(backend, among=EVERY):
    return [name for name in among if name not in WITHOUT.get(backend.name, ())]


def floats(backend):
    return dtypes(backend, EVERY[:4])


def dtype_name(x):
    return str(x.dtype).split(".")[-1]


def zeros(backend, shape=(2, 3), dtype="float32", device=None):
    return backend.asarray(np.zeros(shape), dtype=dtype, device=device)


def native(backend, seed):
    return backend.generator(seed)


def equal(actual, expected):
    """Dtype, shape, then every value."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected, strict=True)


def rounded(values, dtype):
    """What a dtype holds of float32 or float64 values, as ``to_numpy`` shows it."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(dtype)
    import ml_dtypes

    return np.asarray(values).astype(ml_dtypes.bfloat16).astype(np.float32)


# The protocol


def test_every_member_has_the_protocols_signature(backend):
    members = [name for name in vars(Backend) if not name.startswith("_")]
    assert {
        "name",
        "version",
        "devices",
        "device",
        "asarray",
        "to_numpy",
        "generator",
        "normal",
        "uniform",
    } < set(members)
    for name in members:
        declared = vars(Backend)[name]
        if isinstance(declared, property):
            assert isinstance(getattr(backend, name), dict if name == "transforms" else str)
            continue
        ours = list(inspect.signature(getattr(backend, name)).parameters.values())
        theirs = list(inspect.signature(declared).parameters.values())[1:]
        assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_the_name_is_the_entry_points(backend):
    root = PACKAGE.parent.parent / "pyproject.toml"
    if not root.exists():
        pytest.skip("not a checkout: no pyproject.toml beside the package")
    entries = tomllib.loads(root.read_text())["project"]["entry-points"]["anystep.backends"]
    assert entries[backend.name] == f"anystep_backends.{MODULES[backend.name]}:backend"


@pytest.mark.parametrize("subject", [name for name in SUBJECTS if name in MODULES])
def test_the_name_is_the_arrays_top_level_module(subject):
    backend = load(subject)
    assert backend.name == type(zeros(backend)).__module__.split(".")[0].replace("jaxlib", "jax")


def test_a_backend_is_frozen(backend):
    with pytest.raises(AttributeError):
        backend.name = "other"


def test_the_package_alone_imports_no_array_library():
    code = """
import sys, anystep_backends, anystep_backends._protocol, anystep_backends._common
print(sorted({"torch", "jax", "cupy", "array_api_strict", "ml_dtypes"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Values: host to library and back


def test_values_survive_the_round_trip_in_every_dtype(backend):
    for dtype in dtypes(backend):
        values = np.array([[0.0, 1.0, -2.5], [3.0, 1 / 3, 2.0]])
        there = backend.asarray(values, dtype=dtype)
        assert dtype_name(there) == dtype
        equal(backend.to_numpy(there), rounded(values, dtype))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0)[::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6.0).reshape(2, 3).T[::2, ::-1],
        np.broadcast_to(np.float64(2), (2, 3)),
        np.arange(3, dtype=">f8"),
        np.float64(1.5),
        np.array(2),
        np.zeros((0, 3)),
        [1.0, 2.0],
        [[1, 2], [3, 4]],
        [],
        7,
        True,
    ],
    ids=repr,
)
def test_values_of_any_layout_are_taken(backend, values):
    equal(backend.to_numpy(backend.asarray(values, dtype="float32")), np.array(values, dtype=np.float32))


def test_read_only_values_are_taken_and_never_aliased(backend):
    for values in (np.arange(4096, dtype=np.float32), np.arange(4096, dtype=np.float32)[::-1]):
        kept = values.copy()
        there = backend.asarray(values)
        values[...] = -1
        equal(backend.to_numpy(there), kept)
        values.flags.writeable = False
        equal(backend.to_numpy(backend.asarray(values)), values)


def test_to_numpy_is_a_writable_copy(backend):
    for dtype in dtypes(backend):
        there = backend.asarray(np.ones(4096), dtype=dtype)
        copy = backend.to_numpy(there)
        copy[...] = 0
        assert backend.to_numpy(there).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_alike_everywhere(backend, dtype):
    """Float64 values beside a tie: torch alone would round by way of float32, and float16 comes out different."""
    if dtype not in floats(backend):
        return
    bits = {"float16": 10, "bfloat16": 7}[dtype]
    rng = np.random.default_rng(0)
    ties = 1 + (rng.integers(0, 2**bits, 1000) + 0.5) / 2**bits
    values = ties + rng.choice([-1, 0, 1], 1000) * 2.0**-40
    equal(backend.to_numpy(backend.asarray(values, dtype=dtype)), rounded(values, dtype))


def test_bfloat16_values_are_taken_as_they_are(backend):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1 / 3, -2.0]).astype(ml_dtypes.bfloat16)
    if "bfloat16" in floats(backend):
        there = backend.asarray(values)
        assert dtype_name(there) == "bfloat16"
        equal(backend.to_numpy(there), values.astype(np.float32))


def test_without_a_dtype_the_library_chooses(backend):
    long, double = np.array([1]), np.array([1.0])
    narrow = backend.name == "jax"
    assert dtype_name(backend.asarray(double)) == ("float32" if narrow else "float64")
    assert dtype_name(backend.asarray(long)) == ("int32" if narrow else "int64")
    assert dtype_name(backend.asarray([1.0])) == (
        "float32" if narrow or backend.name == "torch" else "float64"
    )
    assert dtype_name(backend.asarray(np.float32([1]))) == "float32"
    assert dtype_name(backend.asarray(np.array([True]))) == "bool"


def test_a_dtype_that_does_not_exist_is_refused(backend):
    with pytest.raises(ValueError, match=r"dtype='float8': expected one of float16, .*pass one of these"):
        backend.asarray([1.0], dtype="float8")


def test_strict_has_no_half_precision():
    with pytest.raises(ValueError, match=r"dtype='bfloat16'.*ask for float32"):
        load("array_api_strict").asarray([1.0], dtype="bfloat16")


@pytest.mark.parametrize("subject", ["numpy", "cupy on NumPy"])
def test_bfloat16_without_ml_dtypes_says_what_to_install(subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r"dtype='bfloat16'.*pip install ml_dtypes"):
        load(subject).asarray([1.0], dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_jax_gives_64_bits_or_says_why_not(dtype):
    backend, jax = load("jax"), importlib.import_module("jax")
    with pytest.raises(ValueError, match=rf"dtype='{dtype}'.*jax_enable_x64.*ask for {dtype[:-2]}32"):
        backend.asarray([1.0], dtype=dtype)
    with jax.enable_x64(True):
        assert dtype_name(backend.asarray([1.0], dtype=dtype)) == dtype
        noise = backend.normal((3,), generator=jax.random.key(0), like=zeros(backend, dtype="float64"))
        assert dtype_name(noise) == "float64"


# Devices


def test_every_device_present_is_usable(backend):
    assert backend.devices()
    for name in backend.devices():
        device = backend.device(name)
        assert backend.device(device) == device
        x = backend.asarray(np.float32([1, 2]), device=name)
        assert x.device == device
        equal(backend.to_numpy(x), np.float32([1, 2]))
        equal(backend.to_numpy(backend.asarray(np.float32([1, 2]), device=device)), np.float32([1, 2]))
        noise = backend.normal((2,), generator=backend.generator(0, name), like=x)
        assert noise.device == device
        noise = backend.normal((2,), generator=[np.random.default_rng(i) for i in range(2)], like=x)
        assert noise.device == device


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", "nowhere:0", 99, -1, 1.5])
def test_an_absent_device_is_named_with_those_present(backend, name):
    present = ", ".join(repr(device) for device in backend.devices()).replace(".", r"\.")
    for call in (
        backend.device,
        lambda n: backend.asarray([1.0], device=n),
        lambda n: backend.generator(0, n),
    ):
        with pytest.raises(
            ValueError, match=rf"device={name!r}: .* has {present} on this machine; pass one of"
        ):
            call(name)


def test_the_default_device_is_the_first(backend):
    assert backend.device() == backend.device(backend.devices()[0])


def test_device_names_have_the_usual_forms():
    stub = load("cupy on NumPy")
    assert [stub.device(name).id for name in (1, "cuda:1", "gpu:1", "cuda", "gpu", None)] == [
        1,
        1,
        1,
        0,
        0,
        0,
    ]
    with stub.device(1):
        assert stub.device().id == 1


def test_torch_devices():
    backend, torch = load("torch"), importlib.import_module("torch")
    assert (
        backend.device("cpu")
        == backend.device(torch.device("cpu"))
        == backend.device()
        == torch.device("cpu")
    )
    assert backend.device("meta") == torch.device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device='cuda': PyTorch has 'cpu' on this machine"):
            backend.device("cuda")


def test_jax_devices_and_shardings():
    backend, jax = load("jax"), importlib.import_module("jax")
    cpu = jax.local_devices(backend="cpu")[0]
    sharding = jax.sharding.SingleDeviceSharding(cpu)
    assert backend.device("cpu") == backend.device("cpu:0") == cpu
    assert backend.device(0) == backend.device() == jax.local_devices()[0]
    assert backend.device(sharding) is sharding


def test_strict_devices_without_64_bits():
    backend = load("array_api_strict")
    for device in ("no_float64", "no_x64"):
        assert dtype_name(backend.asarray([1.0], device=device)) == "float32"
        like = backend.asarray(np.zeros(3), dtype="float32", device=device)
        assert dtype_name(backend.normal((3,), generator=np.random.default_rng(0), like=like)) == "float32"


def test_cupy_without_a_gpu_has_no_devices(monkeypatch):
    backend = load("cupy on NumPy")
    monkeypatch.setattr(_Device, "count", 0)
    assert backend.devices() == ()
    for name in (None, 0, "cuda"):
        with pytest.raises(ValueError, match=rf"device={name!r}: CuPy has no device on this machine"):
            backend.device(name)


# Noise


def test_one_seed_is_one_noise(backend):
    for dtype in floats(backend):
        like = zeros(backend, dtype=dtype)
        one, again, other = (
            backend.normal((64, 2), generator=native(backend, s), like=like) for s in (5, 5, 6)
        )
        assert dtype_name(one) == dtype
        assert tuple(one.shape) == (64, 2)
        equal(backend.to_numpy(one), backend.to_numpy(again))
        assert np.any(backend.to_numpy(one) != backend.to_numpy(other))


def test_each_step_is_fresh(backend):
    generator, like = native(backend, 5), zeros(backend)
    first, second = (backend.normal((64,), generator=generator, like=like, index=i) for i in range(2))
    assert np.all(backend.to_numpy(first) != backend.to_numpy(second))


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(0, 3), max_size=4).map(tuple), data=st.data())
def test_a_numpy_generator_gives_its_own_draw_everywhere(shape, data):
    for subject in INSTALLED:
        backend = load(subject)
        dtype = data.draw(st.sampled_from(floats(backend)), label=subject)
        noise = backend.normal(
            shape, generator=np.random.default_rng(3), like=zeros(backend, (1,), dtype), index=7
        )
        assert dtype_name(noise) == dtype
        drawn = np.float64 if dtype == "float64" else np.float32
        equal(
            backend.to_numpy(noise),
            rounded(np.random.default_rng(3).standard_normal(shape, dtype=drawn), dtype),
        )


@settings(max_examples=5, deadline=None)
@given(shape=st.lists(st.integers(0, 3), max_size=4).map(tuple))
def test_a_native_generator_draws_any_shape(shape):
    for subject in INSTALLED:
        backend = load(subject)
        noise = backend.normal(shape, generator=native(backend, 0), like=zeros(backend, (1,)))
        assert tuple(noise.shape) == shape


def test_a_legacy_random_state_is_taken(backend):
    for dtype in floats(backend):
        noise = backend.normal((5,), generator=np.random.RandomState(1), like=zeros(backend, dtype=dtype))
        drawn = np.float64 if dtype == "float64" else np.float32
        equal(
            backend.to_numpy(noise), rounded(np.random.RandomState(1).standard_normal(5).astype(drawn), dtype)
        )


@pytest.mark.parametrize(("host", "kind"), [(False, list), (True, tuple)], ids=["native", "NumPy"])
def test_a_list_gives_each_sample_its_own_draw(backend, host, kind):
    make = np.random.default_rng if host else backend.generator
    for dtype in floats(backend):
        like = zeros(backend, dtype=dtype)
        noise = backend.normal((3, 2, 5), generator=kind(make(s) for s in (7, 8, 9)), like=like, index=2)
        assert dtype_name(noise) == dtype
        for row, seed in zip(backend.to_numpy(noise), (7, 8, 9), strict=True):
            alone = backend.normal((1, 2, 5), generator=make(seed), like=like, index=2)
            equal(row[None], backend.to_numpy(alone))


def test_a_list_of_one_is_the_one_in_it(backend):
    like = zeros(backend)
    for shape in ((4, 3), (0, 3), ()):
        listed = backend.normal(shape, generator=[native(backend, 1)], like=like)
        equal(
            backend.to_numpy(listed),
            backend.to_numpy(backend.normal(shape, generator=native(backend, 1), like=like)),
        )


@pytest.mark.parametrize(("shape", "count"), [((3, 2), 2), ((2, 2), 3), ((), 2), ((2,), 0), ((0, 2), 0)])
def test_a_list_of_the_wrong_length_is_refused(backend, shape, count):
    with pytest.raises(
        ValueError, match=rf"generator is a list of {count} for shape=\({shape[0] if shape else ''}"
    ):
        backend.normal(shape, generator=[native(backend, i) for i in range(count)], like=zeros(backend))


@pytest.mark.parametrize("generator", [5, "cuda", np.uint32([0, 1]), [5, None]], ids=repr)
def test_a_generator_of_another_kind_is_refused(backend, generator):
    first = 5 if isinstance(generator, list) else generator
    with pytest.raises(
        TypeError, match=r"generator=.* of type .*: expected .*, numpy.random.Generator, .*; make one"
    ) as error:
        backend.normal((2, 2), generator=generator, like=zeros(backend))
    assert repr(first) in str(error.value)


def test_noise_like_integers_is_refused(backend):
    like = zeros(backend, dtype="int32")
    for generator in (native(backend, 0), np.random.default_rng(0)):
        with pytest.raises(TypeError, match=r"like has dtype .*int32: expected one of float16, .*; cast it"):
            backend.normal((2,), generator=generator, like=like)


def test_without_a_generator_the_librarys_own_is_used(backend):
    like = zeros(backend)
    if backend.name == "jax":
        with pytest.raises(
            ValueError, match=r"generator=None: JAX has no global .* pass generator=jax.random.key"
        ):
            backend.normal((4,), generator=None, like=like)
        return
    first, second = (backend.to_numpy(backend.normal((4,), generator=None, like=like)) for _ in range(2))
    assert np.all(first != second)
    assert backend.normal((0,), generator=None, like=like).shape == (0,)


def test_noise_is_standard_normal(backend):
    """Mean, variance and fourth moment of 1e5 draws within 5 standard errors.

    The fourth moment sees what JAX's own half-precision normals lack: their tails.
    """
    n = 100_000
    for dtype in floats(backend):
        for generator in (native(backend, 11), np.random.default_rng(12)):
            noise = backend.normal((n,), generator=generator, like=zeros(backend, dtype=dtype))
            z = backend.to_numpy(noise).astype(np.float64)
            for moment, expected, variance in ((z, 0, 1), (z**2, 1, 2), (z**4, 3, 96)):
                assert abs(moment.mean() - expected) < 5 * np.sqrt(variance / n)


# Uniform numbers


def uniform_dtype(dtype):
    """float32 beside half precision, in which some numbers below 1 would round to 1."""
    return "float64" if dtype == "float64" else "float32"


def test_one_seed_is_one_uniform_draw_and_each_step_is_fresh(backend):
    for dtype in floats(backend):
        like = zeros(backend, dtype=dtype)
        one, again, other = (
            backend.uniform((64, 2), generator=native(backend, s), like=like) for s in (5, 5, 6)
        )
        assert dtype_name(one) == uniform_dtype(dtype)
        assert tuple(one.shape) == (64, 2)
        equal(backend.to_numpy(one), backend.to_numpy(again))
        assert np.any(backend.to_numpy(one) != backend.to_numpy(other))
        generator = native(backend, 5)
        first, second = (backend.uniform((64,), generator=generator, like=like, index=i) for i in range(2))
        assert np.all(backend.to_numpy(first) != backend.to_numpy(second))


@settings(max_examples=20, deadline=None)
@given(shape=st.lists(st.integers(0, 3), max_size=4).map(tuple), data=st.data())
def test_a_numpy_generator_gives_its_own_uniform_draw_everywhere(shape, data):
    for subject in INSTALLED:
        backend = load(subject)
        dtype = data.draw(st.sampled_from(floats(backend)), label=subject)
        like = zeros(backend, (1,), dtype)
        drawn = backend.uniform(shape, generator=np.random.default_rng(3), like=like, index=7)
        equal(
            backend.to_numpy(drawn),
            np.asarray(np.random.default_rng(3).random(shape, dtype=uniform_dtype(dtype))),
        )
        assert tuple(backend.uniform(shape, generator=native(backend, 0), like=like).shape) == shape


def test_a_legacy_random_state_gives_uniform_numbers_below_one(backend):
    class AlmostOne(np.random.RandomState):
        def random_sample(self, size=None):
            return np.full(size, 1 - 2.0**-53)

    for dtype in floats(backend):
        like = zeros(backend, dtype=dtype)
        drawn = backend.to_numpy(backend.uniform((5,), generator=np.random.RandomState(1), like=like))
        assert drawn.dtype == uniform_dtype(dtype)
        np.testing.assert_allclose(drawn, np.random.RandomState(1).random_sample(5), atol=2.0**-24, rtol=0)
        assert (backend.to_numpy(backend.uniform((5,), generator=AlmostOne(), like=like)) < 1).all()


@pytest.mark.parametrize("host", [False, True], ids=["native", "NumPy"])
def test_a_list_gives_each_sample_its_own_uniform_draw(backend, host):
    make, like = np.random.default_rng if host else backend.generator, zeros(backend)
    drawn = backend.to_numpy(
        backend.uniform((3, 2, 5), generator=[make(s) for s in (7, 8, 9)], like=like, index=2)
    )
    for row, seed in zip(drawn, (7, 8, 9), strict=True):
        alone = backend.uniform((1, 2, 5), generator=make(seed), like=like, index=2)
        equal(row[None], backend.to_numpy(alone))
    with pytest.raises(ValueError, match=r"generator is a list of 2 for shape=\(3"):
        backend.uniform((3, 2), generator=[make(0), make(1)], like=like)


def test_uniform_refuses_what_normal_refuses(backend):
    with pytest.raises(
        TypeError, match=r"generator=5 of type .*: expected .*, numpy.random.Generator, .*; make one"
    ):
        backend.uniform((2, 2), generator=5, like=zeros(backend))
    with pytest.raises(TypeError, match=r"like has dtype .*int32"):
        backend.uniform((2,), generator=native(backend, 0), like=zeros(backend, dtype="int32"))
    if backend.name == "jax":
        with pytest.raises(ValueError, match="generator=None: JAX has no global"):
            backend.uniform((4,), generator=None, like=zeros(backend))
    else:
        first, second = (
            backend.to_numpy(backend.uniform((4,), generator=None, like=zeros(backend))) for _ in range(2)
        )
        assert np.all(first != second)


def test_uniform_numbers_are_uniform(backend):
    """Mean, second and fourth moment of 1e5 draws within 5 standard errors, all in [0, 1)."""
    n = 100_000
    for dtype in floats(backend):
        for generator in (native(backend, 11), np.random.default_rng(12)):
            u = backend.to_numpy(backend.uniform((n,), generator=generator, like=zeros(backend, dtype=dtype)))
            assert u.min() >= 0 and u.max() < 1
            for power in (1, 2, 4):
                spread = np.sqrt((1 / (2 * power + 1) - 1 / (power + 1) ** 2) / n)
                assert abs((u.astype(np.float64) ** power).mean() - 1 / (power + 1)) < 5 * spread


@pytest.mark.parametrize("dtype", EVERY[:4])
def test_torch_draws_uniform_numbers_as_torch_rand_does(dtype):
    backend, torch = load("torch"), importlib.import_module("torch")
    wanted = getattr(torch, uniform_dtype(dtype))
    like = zeros(backend, dtype=dtype)
    ours, theirs = (torch.Generator().manual_seed(4) for _ in range(2))
    for _ in range(2):
        drawn = backend.uniform((4, 17), generator=ours, like=like)
        assert torch.equal(drawn, torch.rand((4, 17), generator=theirs, dtype=wanted))
    assert backend.uniform((4,), generator=ours, like=torch.zeros(2, device="meta")).device.type == "meta"


def test_jax_draws_uniform_numbers_of_the_folded_key_also_under_jit():
    backend, jax = load("jax"), importlib.import_module("jax")
    key, like = jax.random.key(4), zeros(backend)
    expected = np.array(jax.random.uniform(jax.random.fold_in(key, 6), (3, 5)))
    equal(np.array(backend.uniform((3, 5), generator=key, like=like, index=6)), expected)
    traced = jax.jit(lambda key, x, i: backend.uniform((3, 5), generator=key, like=x, index=i))
    equal(np.array(traced(key, like, 6)), expected)
    with pytest.raises(TypeError, match=r"generator is NumPy's and the sample is traced"):
        jax.jit(lambda x: backend.uniform((2,), generator=np.random.default_rng(0), like=x))(like)


# PyTorch


@pytest.mark.parametrize("dtype", EVERY[:4])
@pytest.mark.parametrize("shape", [(1,), (4, 3, 8, 8), (4, 17), (4, 0, 2)], ids=str)
def test_torch_draws_what_diffusers_draws(dtype, shape):
    backend, torch = load("torch"), importlib.import_module("torch")
    randn_tensor = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    like = zeros(backend, dtype=dtype)

    def seeded(count):
        return [torch.Generator().manual_seed(40 + i) for i in range(count)]

    for make in (lambda: seeded(1)[0], lambda: seeded(1), lambda: seeded(shape[0])):
        ours, theirs = make(), make()
        for _ in range(2):  # the generators advance alike
            noise = backend.normal(shape, generator=ours, like=like)
            expected = randn_tensor(shape, generator=theirs, device=like.device, dtype=like.dtype)
            assert noise.dtype == expected.dtype
            assert torch.equal(noise, expected)
    torch.manual_seed(3)
    noise = backend.normal(shape, generator=None, like=like)
    torch.manual_seed(3)
    assert torch.equal(noise, randn_tensor(shape, device=like.device, dtype=like.dtype))


def test_a_cpu_generator_draws_on_the_cpu_for_any_device():
    backend, torch = load("torch"), importlib.import_module("torch")
    generator, there = torch.Generator().manual_seed(0), torch.zeros(2, device="meta")
    assert backend.normal((4,), generator=generator, like=there).device.type == "meta"
    expected = torch.Generator().manual_seed(0)
    torch.randn((4,), generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_a_gpu_generator_cannot_serve_the_cpu():
    backend, torch = load("torch"), importlib.import_module("torch")

    class OnGPU(torch.Generator):
        device = torch.device("cuda:0")

    with pytest.raises(
        ValueError, match=r"generator is on device='cuda:0' and the sample on 'cpu'.*Generator\('cpu'\)"
    ):
        backend.normal((2,), generator=OnGPU(), like=torch.zeros(2))


def test_torch_to_numpy_takes_gradients_and_lazy_views():
    backend, torch = load("torch"), importlib.import_module("torch")
    values = torch.tensor([1 + 2j, 3 - 4j])
    equal(backend.to_numpy(values.conj()), np.array([1 - 2j, 3 + 4j], dtype=np.complex64))
    equal(backend.to_numpy(values.conj().imag), np.float32([-2, 4]))
    equal(backend.to_numpy(torch.ones(2, requires_grad=True)), np.ones(2, np.float32))
    equal(backend.to_numpy(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)), np.ones(2, np.float32))
    equal(backend.to_numpy(torch.ones(1).expand(3)), np.ones(3, np.float32))


def test_torch_compiles():
    backend, torch = load("torch"), importlib.import_module("torch")

    def step(x, table, entry):
        found = backend.position(table, entry)
        assert found is None
        return backend.normal(x.shape, generator=None, like=x)

    table = torch.arange(4)
    noise = torch.compile(step, backend="eager", fullgraph=True)(torch.zeros(2, 3), table, table[1])
    assert noise.shape == (2, 3)


# Positions


@pytest.mark.parametrize("subject", WITH_VIEWS)
@pytest.mark.parametrize(
    "values", [np.arange(5), np.full(5, 7.0), np.float32([1.0])], ids=["int", "equal", "one"]
)
def test_an_entry_knows_its_position(subject, values):
    backend = load(subject)
    table = backend.asarray(values)
    n = len(values)
    assert [backend.position(table, table[i]) for i in range(n)] == list(range(n))
    assert [backend.position(table, table[i : i + 1]) for i in range(n)] == list(range(n))
    entry = table[n - 1]
    table[n - 1] = 3
    assert backend.position(table, entry) == n - 1, "values do not matter"


@pytest.mark.parametrize("subject", WITH_VIEWS)
def test_slices_keep_their_place_in_the_full_table(subject):
    backend = load(subject)
    table = backend.asarray(np.arange(8))
    tail, even = table[3:], table[::2]
    assert backend.position(table, tail[0]) == 3
    assert backend.position(tail, table[5]) == 2
    assert backend.position(tail, table[2]) is None
    assert backend.position(table[:3], table[3]) is None
    assert backend.position(even, table[4]) == 2
    assert backend.position(even, table[3]) is None
    assert backend.position(table, even[3]) == 6


@pytest.mark.parametrize("subject", WITH_VIEWS)
def test_what_is_no_entry_has_no_position(subject):
    backend = load(subject)
    table = backend.asarray(np.arange(5))
    copy = table.clone() if subject == "torch" else table.copy()
    grid = backend.asarray(np.zeros((2, 2)))
    bits = backend.asarray(np.arange(5), dtype="int32")
    assert backend.position(bits, bits.view(zeros(backend).dtype)[1]) is None, (
        "an entry has the table's dtype"
    )
    other = backend.asarray(np.arange(5))
    for entry in (copy[2], other[2], table[1:3], table[0:0], 2, 2.0, None, np.int64(2), np.arange(5)[2:3]):
        assert backend.position(table, entry) is None
    assert backend.position(grid, grid[0, 0] if subject == "torch" else grid[0][0]) is None


def test_a_cupy_table_may_run_backwards():
    backend = load("cupy on NumPy")
    table = backend.asarray(np.arange(5))
    assert backend.position(table[::-1], table[4]) == 0
    assert backend.position(table[::-1], table[0]) == 4


@pytest.mark.parametrize("subject", ["numpy", "jax", "array_api_strict"])
def test_libraries_without_views_have_no_position(subject):
    backend = load(subject)
    table = backend.asarray(np.arange(5))
    assert all(backend.position(table, table[i]) is None for i in range(5))


def test_torch_positions_read_no_value():
    backend, torch = load("torch"), importlib.import_module("torch")
    table = torch.arange(6, device="meta")
    assert [backend.position(table, entry) for entry in table] == list(range(6))
    assert [backend.position(table, entry) for entry in table.unbind()] == list(range(6))
    assert backend.position(table, torch.arange(6, device="meta")[2]) is None
    assert backend.position(table, table.clone()[2]) is None
    assert backend.position(table[2:], table[3]) == 1


def test_torch_positions_of_odd_tensors():
    backend, torch = load("torch"), importlib.import_module("torch")
    table = torch.arange(4.0)
    assert backend.position(table[:1].expand(4), table[0]) is None, "four entries at one place"
    assert backend.position(table, table[2].detach()) == 2
    assert backend.position(table, table[2].to("cpu")) == 2
    assert backend.position(table.requires_grad_(), table[2]) == 2
    assert backend.position(table, table.to_sparse()[2]) is None
    seen = []
    torch.func.vmap(lambda row: (seen.append(backend.position(row, row[1])), row)[1])(torch.zeros(2, 3))
    assert seen == [None]


@given(
    length=st.integers(0, 9),
    stride=st.integers(-3, 3),
    offset=st.integers(-30, 30),
)
def test_view_index_is_the_entry_at_the_offset(length, stride, offset):
    places = [i * stride for i in range(length)]
    expected = places.index(offset) if stride and offset in places else None
    assert _common.view_index(offset, stride, length) == expected


# JAX


def test_jax_draws_fold_in_of_the_index():
    backend, jax = load("jax"), importlib.import_module("jax")
    like = zeros(backend)
    for key in (jax.random.key(4), jax.random.PRNGKey(4), jax.random.key(4, impl="rbg")):
        noise = backend.normal((3, 5), generator=key, like=like, index=6)
        expected = jax.random.normal(jax.random.fold_in(key, 6), (3, 5))
        equal(np.array(noise), np.array(expected))
        half = backend.normal((3, 5), generator=key, like=zeros(backend, dtype="bfloat16"), index=6)
        equal(backend.to_numpy(half), rounded(np.array(expected), "bfloat16"))


def test_jax_takes_an_array_of_keys_as_a_list():
    backend, jax = load("jax"), importlib.import_module("jax")
    like = zeros(backend)
    for keys in (jax.random.split(jax.random.key(0), 3), jax.random.split(jax.random.PRNGKey(0), 3)):
        noise = backend.normal((3, 4), generator=keys, like=like)
        equal(np.array(noise), np.array(backend.normal((3, 4), generator=list(keys), like=like)))
        with pytest.raises(ValueError, match="generator is a list of 3"):
            backend.normal((2, 4), generator=keys, like=like)


def test_jax_draws_under_jit_scan_and_vmap():
    backend, jax = load("jax"), importlib.import_module("jax")
    like, key = zeros(backend, (4, 3)), jax.random.key(9)

    def draw(key, x, index):
        return backend.normal(x.shape, generator=key, like=x, index=index)

    expected = [np.array(draw(key, like, i)) for i in range(3)]
    compiled = jax.jit(draw)
    for i in range(3):
        equal(np.array(compiled(key, like, i)), expected[i])
    _, scanned = jax.lax.scan(lambda x, i: (x, draw(key, x, i)), like, np.arange(3))
    equal(np.array(scanned), np.stack(expected))
    keys = jax.random.split(key, 3)
    mapped = jax.vmap(lambda k, x: draw(k, x, 0))(keys, np.zeros((3, 4, 3), np.float32))
    equal(np.array(mapped), np.stack([np.array(draw(k, like, 0)) for k in keys]))
    equal(
        np.array(jax.jit(lambda k, x: draw(k, x, 1))(list(keys), like[:3])), np.array(draw(keys, like[:3], 1))
    )


def test_a_numpy_generator_is_refused_while_jax_traces():
    backend, jax = load("jax"), importlib.import_module("jax")
    generator = np.random.default_rng(0)
    with pytest.raises(
        TypeError, match=r"generator is NumPy's and the sample is traced.*pass generator=jax.random.key"
    ):
        jax.jit(lambda x: backend.normal(x.shape, generator=generator, like=x))(np.zeros(2, np.float32))


def test_jax_noise_lies_where_the_sample_lies():
    """Two forced host devices, in a process of their own."""
    load("jax")
    code = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from anystep_backends._jax import backend
assert backend.devices() == ("cpu:0", "cpu:1"), backend.devices()
second = backend.device("cpu:1")
assert second == backend.device(1) == jax.devices()[1]
x = backend.asarray(np.zeros((2, 3)), dtype="float32", device="cpu:1")
key = jax.random.key(0)
here = backend.normal((2, 3), generator=key, like=backend.asarray(np.zeros(1), dtype="float32"))
for generator in (key, backend.generator(0, "cpu:0"), [key, jax.random.key(1)], np.random.default_rng(0)):
    noise = backend.normal((2, 3), generator=generator, like=x)
    assert noise.devices() == {second}, noise.devices()
np.testing.assert_array_equal(np.array(here), np.array(backend.normal((2, 3), generator=key, like=x)))
spread = jax.device_put(np.zeros((2, 3), np.float32), NamedSharding(Mesh(np.array(jax.devices()), ("b",)), P("b")))
noise = backend.normal((2, 3), generator=key, like=spread)
assert noise.sharding == spread.sharding
np.testing.assert_array_equal(np.array(here), np.array(noise))
assert (spread + backend.normal((3,), generator=key, like=spread)).shape == (2, 3)
print("done")
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "done", done.stderr


# CuPy

# How the adapter calls CuPy: (name, positional arguments, keywords). The first of a method's is self.
CALLS = [
    ("asarray", 1, ()),
    ("empty", 1, ("dtype",)),
    ("concatenate", 1, ()),
    ("random.default_rng", 1, ()),
    ("random.standard_normal", 1, ("dtype",)),
    ("random.Generator.standard_normal", 2, ("dtype",)),
    ("random.RandomState.standard_normal", 2, ("dtype",)),
    ("random.random_sample", 1, ("dtype",)),
    ("random.Generator.random", 2, ("dtype",)),
    ("random.RandomState.random_sample", 2, ("dtype",)),
    ("cuda.Device", 0, ()),
    ("cuda.Device", 1, ()),
    ("cuda.Device.__enter__", 1, ()),
    ("cuda.runtime.getDeviceCount", 0, ()),
    ("ndarray.astype", 2, ("copy",)),
    ("ndarray.get", 1, ()),
]
ATTRIBUTES = ("dtype", "shape", "ndim", "size", "strides", "data", "device")


def names_in_adapter():
    """Each dotted name that the adapter takes from ``cupy``."""
    tree = ast.parse((PACKAGE / "_cupy.py").read_text())
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return sorted(name.removeprefix("cupy.") for name in found if name.startswith("cupy."))


def look_up(module, name):
    for part in name.split("."):
        module = getattr(module, part)
    return module


@pytest.mark.parametrize("subject", ["stub", "cupy"])
def test_cupy_has_every_name_and_keyword_that_the_adapter_uses(subject):
    """Needs no GPU: CuPy imports without one. The stub is held to the same table."""
    module = _stub() if subject == "stub" else pytest.importorskip("cupy", reason="cupy is not installed")
    names = names_in_adapter()
    assert {"asarray", "concatenate", "cuda.Device", "random.Generator", "ndarray"} <= set(names)
    for name in names:
        look_up(module, name)
    array = look_up(module, "ndarray")
    assert [name for name in ATTRIBUTES if not hasattr(array, name) and subject == "cupy"] == []
    for name, positional, keywords in CALLS:
        called = look_up(module, name)
        try:
            signature = inspect.signature(called)
        except (
            ValueError
        ):  # compiled; where its docstring opens with a signature, that is held to the keywords
            opening = (called.__doc__ or "").split("\n", 1)[0]
            assert all(f"{keyword}=" in opening for keyword in keywords)
            continue
        signature.bind(*range(positional), **dict.fromkeys(keywords))


def test_cupy_runs_every_test_of_the_protocol_where_there_is_a_gpu():
    if not HAS_GPU:
        pytest.skip(
            "no CUDA device or no CuPy: its adapter runs on the stub instead, and its names are checked"
        )
    assert "cupy" in SUBJECTS


def test_cupy_before_14_has_no_bfloat16():
    backend = type(ON_STUB)(version="13.6.0")
    pytest.importorskip("ml_dtypes")
    with pytest.raises(ValueError, match=r"dtype='bfloat16': CuPy 13.6.0 has none; install CuPy 14"):
        backend.asarray([1.0], dtype="bfloat16")


def test_cupy_draws_on_the_samples_device():
    backend = load("cupy on NumPy")
    like = zeros(backend, device=1)
    for generator in (None, backend.generator(0, 1), np.random.default_rng(0)):
        assert backend.normal((2, 3), generator=generator, like=like).device.id == 1
    assert backend.device().id == 0


def test_cupy_counts_noise_on_the_samples_device(monkeypatch):
    """CuPy launches on the current device, wherever its arguments are."""
    backend, seen = load("cupy on NumPy"), []
    names = type(backend).counter_noise.__globals__
    monkeypatch.setitem(names, "namespace", lambda x: "xp")
    monkeypatch.setitem(names, "generate", lambda *a, **k: seen.append((_Device().id, *a, k)))
    like = zeros(backend, device=1)
    backend.counter_noise(like, 5, 6, 7, None, law="normal")
    assert seen == [(1, "xp", like.device, 5, 6, 7, None, {"law": "normal"})]
    assert backend.device().id == 0
