"""The φ-functions of exponential integrators, on the host in float64, without cancellation."""

from math import factorial
from typing import Any

import numpy as np

from anystep._array import Float64

__all__ = ["phi"]


def phi(k: int, z: Any) -> Float64:
    """φ_k(z) = ∫₀¹ e^((1 - s) z) s^(k - 1) / (k - 1)! ds, to a few ulp for every real z, 0 and ±∞ included.

    φ₁ = (e^z - 1) / z, φ_{k+1} = (φ_k - 1 / k!) / z and φ_k(0) = 1 / k!: so the term of order k - 1 of a function's Taylor
    series contributes h^k φ_k(∓h) times its derivative to ∫ e^(±λ) over a step of width h, up to a factor.

    Parameters
    ----------
    k
        Index, >= 1.
    z
        Real numbers, any shape.

    References
    ----------
    Marlis Hochbruck, Alexander Ostermann. Exponential integrators. Acta Numerica 19, 2010, equations 2.10 and 2.11.

    Examples
    --------
    >>> phi(1, 0.0).item(), phi(2, [0.0, -np.inf]).tolist()
    (1.0, [0.5, 0.0])
    """
    points = np.asarray(z, dtype=np.float64)
    # The recurrence loses digits where φ_{k-1} is near its value at 0; the series, where its terms alternate and grow.
    near = np.abs(points) < 1.5 * (k - 1)
    safe = np.where(near | (points == 0) | np.isinf(points), 1.0, points)
    with np.errstate(over="ignore"):
        far = np.expm1(safe) / safe
    for j in range(1, k):
        far = (far - 1 / factorial(j)) / safe
    far = np.where(points == 0, 1 / factorial(k), np.where(np.isinf(points), np.maximum(points, 0.0), far))
    return np.where(near, _series(k, np.where(near, points, 0.0)), far)


def _series(k: int, z: Float64) -> Float64:
    """Σ z^n / (n + k)!, by Horner's rule."""
    largest = float(np.abs(z).max(initial=0.0))
    terms, bound = 1, 1.0
    while bound > 2.0**-60:
        bound *= largest / (terms + k)
        terms += 1
    total = np.ones_like(z)
    for n in range(terms, 0, -1):
        total = 1 + total * z / (n + k)
    return total / factorial(k)
