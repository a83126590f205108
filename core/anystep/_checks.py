"""Checks of plain numbers, each with the one message that it has."""

from typing import Any

import numpy as np

__all__ = ["integer"]


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
