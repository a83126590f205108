"""Checks of plain numbers, each with the one message that it has."""

from typing import Any

import numpy as np

from anystep._array import Float64, host

__all__ = ["MOST_STEPS", "flag", "integer", "number", "numbers", "reals"]

MOST_STEPS = 10**5
"""Steps of a facade's run: a service must not be made to fill its memory by one number."""


def integer(name: str, value: Any, low: int = 1, high: int | None = None, why: str = "") -> int:
    """The value as an int in [low, high], or ValueError; a float or a bool is not an integer.

    Examples
    --------
    >>> integer("steps", 0)
    Traceback (most recent call last):
    ...
    ValueError: steps=0: expected an integer >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name}={value!r}: expected an integer >= {low}.")
    if high is not None and value > high:
        raise ValueError(f"{name}={value}: expected at most {high}{why and ', ' + why}.")
    return int(value)


def number(name: str, value: Any, what: str = "a number") -> float:
    """The value as a float, infinite or not, or ValueError; a bool, a NaN or a text is not a number.

    Examples
    --------
    >>> number("eta", "1")
    Traceback (most recent call last):
    ...
    ValueError: eta='1': expected a number.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or value != value:
        raise ValueError(f"{name}={value!r}: expected {what}.")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}={value}: expected {what} that a float can hold.") from None


def numbers(name: str, values: Any) -> Float64:
    """A flat list or array of any library as float64, or ValueError if it is anything but real numbers.

    Examples
    --------
    >>> numbers("sigmas", [[1, 2], [3]])
    Traceback (most recent call last):
    ...
    ValueError: sigmas=[[1, 2], [3]]: expected a flat list of numbers.
    """
    found = reals(name, values, "a flat list of numbers")
    if found.ndim != 1:
        raise ValueError(f"{name} has shape {found.shape}: expected a flat list of numbers.")
    return found


def reals(name: str, values: Any, what: str = "numbers") -> Float64:
    """Numbers of any shape and library as float64 on the host, or ValueError."""
    try:
        found = host(values)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # ragged lists; devices that cannot be read
        found = np.asarray(None)
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{name}={values!r}: expected {what}.")
    return found.astype(np.float64)


def flag(name: str, value: Any) -> bool:
    """The value as a bool, or ValueError; None, 0 and 1 are taken too."""
    simple = value is None or isinstance(value, bool | int | float | np.bool_)
    if not simple or value not in (None, True, False):
        raise ValueError(f"{name}={value!r}: expected true or false.")
    return bool(value)
