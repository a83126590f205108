"""The φ-functions of exponential integrators, on the host in float64, without cancellation."""

from math import factorial
from typing import Any

import numpy as np

from anystep._array import Float64

__all__ = ["phi"]


_INVERSE_FACTORIALS = [np.asarray(1 / factorial(n)) for n in range(256)]


def phi(count: int, z: Any) -> Float64:
    """φ_1 .. φ_count, shape (count, ...): φ_k(z) = ∫₀¹ e^((1 - s) z) s^(k - 1) / (k - 1)! ds, to a few ulp for every real z,
    0 and ±∞ included.

    φ₁ = (e^z - 1) / z, φ_{k+1} = (φ_k - 1 / k!) / z and φ_k(0) = 1 / k!: so the term of order k - 1 of a function's Taylor
    series contributes h^k φ_k(∓h) times its derivative to ∫ e^(±λ) over a step of width h, up to a factor.

    Parameters
    ----------
    count
        Number of functions, >= 1.
    z
        Real numbers, any shape.

    References
    ----------
    Marlis Hochbruck, Alexander Ostermann. Exponential integrators. Acta Numerica 19, 2010, equations 2.10 and 2.11.

    Examples
    --------
    >>> phi(2, [0.0, -np.inf]).tolist()
    [[1.0, 0.0], [0.5, 0.0]]
    """
    points = np.asarray(z, dtype=np.float64)
    size = np.abs(points)
    # 0 is left to the series; e^z is infinite long before z is, and the quotient of both has no value.
    safe = np.where(size == 0, 1.0, np.minimum(points, 1e300))
    with np.errstate(over="ignore"):
        far = [np.expm1(safe) / safe]
        for inverse in _INVERSE_FACTORIALS[1:count]:
            far.append((far[-1] - inverse) / safe)
    # The recurrence loses digits where φ_{k-1} is near its value at 0; the series, where its terms alternate and grow.
    k = np.arange(1, count + 1).reshape(-1, *[1] * points.ndim)
    near = (size < 1.5 * (k - 1)) | (size == 0)
    return np.where(near, _close(count, np.where(near[-1], points, 0.0)), far)


def _close(count: int, z: Float64) -> list[Float64]:
    """φ_count = Σ z^n / (n + count)! by Horner's rule, and the others by φ_k = 1 / k! + z φ_{k+1}."""
    largest, bound, terms = float(np.abs(z).max(initial=0.0)), 1.0, 1
    while bound > 2.0**-60:
        bound *= largest / (terms + count)
        terms += 1
    total = np.zeros_like(z)
    for inverse in _INVERSE_FACTORIALS[count + terms : count : -1]:
        total = (inverse + total) * z
    found = [_INVERSE_FACTORIALS[count] + total]
    for inverse in _INVERSE_FACTORIALS[count - 1 : 0 : -1]:
        found.append(inverse + z * found[-1])
    return found[::-1]
