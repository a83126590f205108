"""The comparison itself: it must fail on each thing that may be wrong, and in the stated order."""

import numpy as np
import pytest

from anystep._array import host
from anystep_conformance.compare import BOUNDS, compare, eps, rounded, spacing
from anystep_conformance.libraries import FLOATS, HALVES, LIBRARIES, cases, library, numpy_dtype

VALUES = np.array([[1.0, -2.5, 0.0], [0.75, 3.0, -0.125]])


def neighbour(values, dtype, ulps=1):
    """Each value some units in the last place further from 0, made from the bits."""
    values = np.array(values).astype(numpy_dtype(dtype))
    width = {"float16": np.int16, "bfloat16": np.int16, "float32": np.int32, "float64": np.int64}[dtype]
    return (values.view(width) + width(ulps)).view(values.dtype)


@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_equal_arrays_pass(entry, dtype):
    with entry.scope(dtype):
        x = entry.array(VALUES, dtype)
        assert compare(x, entry.array(VALUES, dtype)) == 0
        assert compare(x, VALUES, like=x) == 0


@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_one_ulp_is_noticed(entry, dtype):
    with entry.scope(dtype):
        x = entry.array(VALUES, dtype)
        off = np.array(VALUES).astype(numpy_dtype(dtype))
        off[1, 2] = neighbour(off[1, 2:], dtype)[0]
        off = entry.seal(entry.make(off))
        with pytest.raises(
            AssertionError,
            match=r"result differs in 1 of 6 values, most at \[1, 2\].* 1 ulp apart, at most 0 allowed",
        ):
            compare(off, x)
        with pytest.raises(AssertionError, match=r"1 ulp apart, at most 0\.5 allowed"):
            compare(off, x, ulp=0.5)
        assert compare(off, x, ulp=1) == 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulps_are_counted(dtype):
    one = np.ones(1).astype(numpy_dtype(dtype))
    for ulps in (1, 2, 3):
        far = neighbour(one, dtype, ulps)
        assert compare(far, one, ulp=3) == ulps
        assert compare(far, one, ulp=3, scale=1.0) == ulps  # at 1, an ulp is eps
        assert compare(far, one, ulp=3, scale=2.0) == ulps / 2
        with pytest.raises(AssertionError, match=f"{ulps} eps of the scale apart"):
            compare(far, one, scale=1.0, ulp=ulps - 0.5)


def test_a_cancelled_result_is_measured_against_its_terms():
    expected, found = np.float32([1e-7]), np.float32([1e-7 + 6e-8])
    with pytest.raises(AssertionError, match="ulp apart"):
        compare(found, expected, ulp=4)
    assert compare(found, expected, scale=np.array([1.0]), ulp=1) == pytest.approx(0.5, rel=0.1)
    with pytest.raises(AssertionError, match=r"most at \[1\]"):
        compare(np.float32([1.0, 1.001]), np.float32([1.0, 1.0]), scale=np.array([1e9, 1.0]), ulp=1)


def test_the_order_is_namespace_dtype_shape_device_values():
    pytest.importorskip("array_api_strict")
    strict, other = library("array_api_strict"), library("array_api_strict on device1")
    good = strict.array(VALUES, "float64")
    worst = np.zeros(2, np.float32)
    with pytest.raises(AssertionError, match=r"^x has namespace numpy: expected array_api_strict\.$"):
        compare(worst, good, name="x")
    with pytest.raises(
        AssertionError, match=r"^x has dtype array_api_strict.float32: expected array_api_strict.float64\.$"
    ):
        compare(other.array(worst, "float32"), good, name="x")
    with pytest.raises(AssertionError, match=r"^x has shape \(2,\): expected \(2, 3\)\.$"):
        compare(other.array(worst, "float64"), good, name="x")
    with pytest.raises(AssertionError, match=r"^x has device .*device1.*: expected .*CPU_DEVICE"):
        compare(other.array(VALUES + 1, "float64"), good, name="x")
    with pytest.raises(AssertionError, match=r"^x differs in 6 of 6 values"):
        compare(strict.array(VALUES + 1, "float64"), good, name="x")


@pytest.mark.parametrize(
    ("entry", "dtype"), cases(["float32"], [entry.name for entry in LIBRARIES if "numpy" not in entry.name])
)
def test_the_namespace_is_checked(entry, dtype):
    x = entry.array(VALUES, dtype)
    with pytest.raises(AssertionError, match="has namespace numpy"):
        compare(VALUES.astype(dtype), x)
    with pytest.raises(AssertionError, match="expected numpy"):
        compare(x, VALUES.astype(dtype))


def test_a_numpy_scalar_is_no_array():
    with pytest.raises(AssertionError, match="namespace numpy scalar: expected numpy"):
        compare(np.float64(1), np.array(1.0))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
def test_dtype_and_shape_are_checked(entry, dtype):
    x = entry.array(VALUES, dtype)
    wrong = entry.index(VALUES)
    with pytest.raises(AssertionError, match="has dtype"):
        compare(x, wrong)
    with pytest.raises(AssertionError, match="has dtype"):
        compare(x, VALUES, like=wrong)
    for shape in ((3, 2), (6,), (1, 2, 3)):
        with pytest.raises(AssertionError, match=r"has shape .*expected"):
            compare(x, entry.array(VALUES.reshape(shape), dtype))
    with pytest.raises(AssertionError, match=r"has shape \(1, 3\)"):  # would broadcast
        compare(entry.array(VALUES[:1], dtype), x)
    with pytest.raises(AssertionError, match=r"has shape \(\)"):
        compare(entry.array(1.0, dtype), entry.array([1.0], dtype))


def test_the_device_is_checked_in_torch():
    torch = pytest.importorskip("torch")
    x = torch.ones(2)
    with pytest.raises(AssertionError, match="has device cpu: expected meta"):
        compare(x, np.ones(2), like=torch.ones(2, device="meta"))


@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_nan_equals_nothing_unless_asked(entry, dtype):
    with entry.scope(dtype):
        clean, nan = entry.array([1.0, 2.0], dtype), entry.array([1.0, np.nan], dtype)
        for a, b in ((nan, nan), (nan, clean), (clean, nan)):
            with pytest.raises(AssertionError, match=r"differs in 1 of 2 values, most at \[1\].*nan"):
                compare(a, b, ulp=1e30, scale=1e30)
        assert compare(nan, nan, nan=True) == 0
        for a, b in ((nan, clean), (clean, nan)):
            with pytest.raises(AssertionError, match="differs in 1 of 2"):
                compare(a, b, nan=True, ulp=1e30)


def test_infinities():
    one, high, low = np.array([1.0]), np.array([np.inf]), np.array([-np.inf])
    assert compare(high, high) == 0
    for a, b in ((high, low), (high, one), (one, high), (high, np.array([np.nan]))):
        with pytest.raises(AssertionError, match="differs in 1 of 1"):
            compare(a, b, ulp=1e30, nan=True)


def test_signed_zeros_differ_when_asked():
    assert compare(np.array([-0.0]), np.array([0.0])) == 0
    with pytest.raises(AssertionError, match="differs in 1 of 1"):
        compare(np.array([-0.0]), np.array([0.0]), signed_zeros=True)
    compare(np.array([-0.0]), np.array([-0.0]), signed_zeros=True)


def test_integers_and_booleans_are_equal_or_not():
    assert compare(np.array([2**62 + 1]), np.array([2**62 + 1])) == 0
    with pytest.raises(AssertionError, match="differs in 1 of 1"):
        compare(np.array([2**62 + 1]), np.array([2**62]), ulp=9)
    with pytest.raises(AssertionError, match=r"differs in 1 of 2 values, most at \[1\]"):
        compare(np.array([True, False]), np.array([True, True]))


def test_nothing_is_equal_to_nothing():
    assert compare(np.zeros((0, 2)), np.zeros((0, 2))) == 0


def test_the_worst_value_is_named():
    with pytest.raises(
        AssertionError,
        match=r"differs in 2 of 3 values, most at \[2\]: np.float64\(5.0\) is not np.float64\(3.0\)",
    ):
        compare(np.array([1.0, 2.5, 5.0]), np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_spacing_is_numpys(dtype):
    values = np.array(
        [1.0, 1.5, 2.0, 3.9, 1e-3, 6e4, np.finfo(dtype).tiny, 0.0, 3 * np.finfo(dtype).smallest_subnormal],
        dtype,
    )
    assert spacing(values, dtype).tolist() == np.spacing(values).astype(float).tolist()
    assert spacing(-values, dtype).tolist() == spacing(values, dtype).tolist()
    assert eps(dtype) == np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_the_dtypes(dtype):
    """Every pair of neighbours of the dtype: their middle, and a little off it."""
    infinity = {"float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    every = np.arange(0, infinity - 1, 7, dtype=np.int16).view(numpy_dtype(dtype)).astype(np.float64)
    unit = spacing(every, dtype)
    for part in (0.0, 0.25, 0.5, 0.5 - 2**-10, 0.5 + 2**-10, 0.75):
        for sign in (1, -1):
            values = np.float32(sign * (every + part * unit))  # exact; ml_dtypes rounds float64 twice
            assert np.array_equal(
                rounded(values, dtype), values.astype(numpy_dtype(dtype)).astype(np.float64)
            )


@pytest.mark.parametrize(("entry", "dtype"), cases())
def test_what_adapters_read_is_what_is_there(entry, dtype):
    """`compare` reads arrays through the adapters; the list of libraries does it without them."""
    with entry.scope(dtype):
        x = entry.array(np.random.default_rng(0).normal(size=(3, 5)) * 1e3, dtype)
        own = entry.read(x)
        assert own.dtype == numpy_dtype(dtype)
        assert np.array_equal(host(x).astype(np.float64), own.astype(np.float64))


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["read-only numpy"]))
def test_the_hostile_list_is_hostile(entry, dtype):
    with pytest.raises(ValueError, match="read-only"):
        entry.array(VALUES, dtype)[0, 0] = 1


@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"], ["array_api_strict on device1"]))
def test_the_hostile_device_is_hostile(entry, dtype):
    x = entry.array(VALUES, dtype)
    with pytest.raises((ValueError, RuntimeError)):
        x + library("array_api_strict").array(VALUES, dtype)
    with pytest.raises((ValueError, RuntimeError)):
        np.asarray(x)


def test_lists_have_no_entry_twice():
    names = [entry.name for entry in LIBRARIES]
    assert len(set(names)) == len(names)
    assert all(bound.ulp >= 0 and bound.measured for bound in BOUNDS.values())
    assert {"numpy", "torch", "jax", "array_api_strict"} <= {entry.module for entry in LIBRARIES}
