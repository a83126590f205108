"""The one comparison: namespace, dtype, shape, device, then values, counted in units in the last place."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from array_api_compat import device  # pyright: ignore[reportUnknownVariableType]

from anystep._array import Array, host, namespace

__all__ = ["BOUNDS", "Bound", "Difference", "compare", "eps", "rounded", "spacing"]


class Bound(NamedTuple):
    """How far two results may lie apart, and where the number comes from."""

    ulp: float
    """In ulps of the expected value, or, where a scale is given, in eps times that scale."""
    measured: str
    """What was measured, on what."""


BOUNDS: dict[str, Bound] = {
    "eager": Bound(0, "0 in 50 steps of every subject, float16 to float64, all libraries, signed zeros too"),
    "gather": Bound(0, "0 between an int index, an index array and a 0-d one on random plans, all libraries"),
    "jit": Bound(1, "scale Σ|c v|; 1.000 in 50 steps of every subject of x and m alone, 20 000 values each"),
    "jit, more terms": Bound(3, "scale Σ|c v|; 2.62 for LMS with a bound, 1.99 for the other subjects"),
    "vmap": Bound(0, "0 in every subject, every sample at another row, float16 to float64, torch and JAX"),
    "scan": Bound(
        2, "scale Σ|c v| of the largest row so far, times the calls so far; 0.991 in every subject"
    ),
    "grad": Bound(2, "scale |w| Σ|c|; 1.67 in every subject with no bound or Clip, torch and JAX"),
    "fused": Bound(
        1.5, "scale Σ|c v|; 1.11 for rows of x and m alone on large random arrays, tests/test_fused.py"
    ),
    "fused, more terms": Bound(
        3, "scale Σ|c v|; 2.74 there, 1.36 in the suite on torch, 1.33 on JAX, 0 on NumPy"
    ),
    "reference": Bound(4, "scale Σ|c v| of the unfolded row; 2.9 on 4000 random plans of up to 9 columns"),
    "dynamic threshold": Bound(2, "scale 1; 0.7 from NumPy's quantile in float64, 2000 random arrays"),
}
"""The one table of tolerances."""


class Difference(AssertionError):
    """What `compare` raises."""

    def __init__(self, aspect: str, message: str, distance: float = np.inf) -> None:
        super().__init__(message)
        self.aspect = aspect
        """The first of namespace, dtype, shape, device and values that is not as it should be."""
        self.distance = distance
        """How far apart values are, in the unit of ``ulp``."""


_FORMATS = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}
"""Significant bits, and exponent of the least normal number, of each floating dtype."""


def compare(
    actual: Array,
    expected: Array | npt.ArrayLike,
    *,
    like: Array | None = None,
    ulp: float = 0.0,
    scale: Array | npt.ArrayLike | None = None,
    nan: bool = False,
    signed_zeros: bool = False,
    name: str = "result",
) -> float:
    """Raise AssertionError unless ``actual`` is what it should be in every respect.

    Parameters
    ----------
    actual
        The array under test.
    expected
        Its shape and values; of any library and, if ``like`` is given, any dtype.
    like
        An array with the namespace, dtype and device that ``actual`` should have; by default ``expected``.
    ulp
        Largest distance allowed, >= 0; 0 asks for equal values.
    scale
        None counts in ulps of each expected value, in the dtype of ``actual``. A number, or an array that
        broadcasts over it, counts in eps times this scale: what is left over from a cancellation is as exact
        as the terms that cancelled, not more.
    nan
        Whether NaN counts as equal to NaN.
    signed_zeros
        Whether 0 differs from -0.
    name
        What messages call the array.

    Returns
    -------
    float
        The largest distance found, in the unit of ``ulp``.

    Raises
    ------
    Difference
        An AssertionError, at the first difference, in the order namespace, dtype, shape, device, values.

    Examples
    --------
    >>> one = np.float32(1) * np.ones(2, np.float32)
    >>> compare(np.nextafter(one, np.float32(2)), one, ulp=1)
    1.0
    >>> compare(one, one.astype(float))
    Traceback (most recent call last):
    ...
    anystep_conformance.compare.Difference: result has dtype float32: expected float64.
    """
    pattern: Any = expected if like is None else like
    _check(name, "namespace", _namespace_name(actual), _namespace_name(pattern))
    _check(name, "dtype", actual.dtype, pattern.dtype)
    found, wanted = host(actual), host(expected)
    _check(name, "shape", tuple(actual.shape), wanted.shape)
    _check(name, "device", device(actual), device(pattern))
    label = str(actual.dtype).split(".")[-1]
    if label not in _FORMATS:  # integers and booleans
        differs = found != wanted
        return _judge(name, differs, differs.astype(float), found, wanted, 0.0, "")
    apart = _distance(found, wanted, label, scale, nan)
    differs = ~(apart <= ulp)
    if signed_zeros:
        differs |= (found == 0) & (wanted == 0) & (np.signbit(found) != np.signbit(wanted))
    return _judge(name, differs, apart, found, wanted, ulp, "ulp" if scale is None else "eps of the scale")


def eps(dtype: Any) -> float:
    """Distance from 1 to the next number of a floating dtype of any library.

    Examples
    --------
    >>> eps("bfloat16"), eps(np.dtype("float64"))
    (0.0078125, 2.220446049250313e-16)
    """
    return 2.0 ** (1 - _FORMATS[str(dtype).split(".")[-1]][0])


def spacing(values: npt.ArrayLike, dtype: Any) -> npt.NDArray[np.float64]:
    """One unit in the last place of each value in a floating dtype, float64.

    Examples
    --------
    >>> spacing([1.0, -3.0, 0.0], "float16").tolist() == [2**-10, 2**-9, 2**-24]
    True
    """
    digits, least = _FORMATS[str(dtype).split(".")[-1]]
    exponent = np.frexp(np.asarray(values, np.float64))[1] - 1
    exponent = np.where(np.asarray(values) == 0, least, np.maximum(exponent, least))
    return np.ldexp(1.0, exponent + 1 - digits)


def rounded(values: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float64]:
    """Each value rounded once to a floating dtype, to nearest, ties to even, as float64; values stay below the dtype's overflow.

    Written without the dtype, so that it needs no library that has it and shares nothing with the code under test.

    Examples
    --------
    >>> rounded([1 + 2**-9, 1 + 3 * 2**-9], "bfloat16").tolist()
    [1.0, 1.0078125]
    """
    unit = spacing(values, dtype)
    return np.rint(np.asarray(values, np.float64) / unit) * unit


def _namespace_name(array: Array) -> str:
    """Readable name of the namespace; a NumPy scalar is no array."""
    scalar = " scalar" if isinstance(array, np.generic) else ""
    return namespace(array).__name__.replace("array_api_compat.", "") + scalar


def _check(name: str, what: str, actual: Any, expected: Any) -> None:
    if actual != expected:
        raise Difference(what, f"{name} has {what} {actual}: expected {expected}.")


def _distance(found: Any, wanted: Any, label: str, scale: Any, nan: bool) -> npt.NDArray[np.float64]:
    """Distance of each value; infinite where a NaN or an infinity is on one side only."""
    found, wanted = (np.asarray(part, np.float64) for part in (found, wanted))
    if scale is None:
        unit = spacing(np.where(np.isfinite(wanted), wanted, 0), label)
    else:
        unit = np.maximum(np.abs(np.asarray(host(scale), np.float64)) * eps(label), spacing(0.0, label))
    same = (found == wanted) | (nan & np.isnan(found) & np.isnan(wanted))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(found - wanted) / unit
    return np.where(same, 0.0, np.where(np.isfinite(apart), apart, np.inf))


def _judge(name: str, differs: Any, apart: Any, found: Any, wanted: Any, ulp: float, unit: str) -> float:
    if differs.any():
        worst = np.unravel_index(np.argmax(np.where(differs, apart, -1.0)), differs.shape)
        distance = f", {apart[worst]:.4g} {unit} apart, at most {ulp:g} allowed" if unit else ""
        where = f" at {[int(i) for i in worst]}" if differs.ndim else ""
        count = f"{name} differs in {differs.sum()} of {differs.size} values, most{where}"
        message = f"{count}: {found[worst]!r} is not {wanted[worst]!r}{distance}."
        raise Difference("values", message, float(apart.max()))
    return float(apart.max()) if apart.size else 0.0
