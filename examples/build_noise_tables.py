"""Build core/anystep/_noise_tables.npz, the quantile functions behind `anystep.CounterNoise`.

    python examples/build_noise_tables.py

takes ten seconds and needs mpmath and scipy.

Every number is computed with 50 digits and rounded once, so that the file can be rebuilt bit for bit. The tail mass p in (0, 1/2)
is cut into octaves, p in [2^-j-2, 2^-j-1) the j-th, and each octave into equal segments; `anystep._quantiles` reads them.

normal, gumbel
    float32, first axis (T, D): the value at the middle of the segment, and the slope per 4096th of it, rounded to 13 significant
    bits, so that its product with 11 bits and a sign is exact.
normal_wide, gumbel_wide
    int64, first axis the coefficients of a polynomial on [-1, 1) over the segment: the constant times 2^57, the others 2^61.

Gumbel's has a further axis: the upper half of the distribution (u = 1 - p), then the lower (u = p).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from scipy.special import ndtri

TARGET = Path(__file__).resolve().parents[1] / "core" / "anystep" / "_noise_tables.npz"
OCTAVES, SEGMENTS, FRACTION = 31, 256, 4096
"""Of the float32 tables: 31 bits of mass, of which 8 after the leading one tell the segment and 12 the place in it."""
WIDE_OCTAVES, WIDE_SEGMENTS, DEGREE, SCALE, GUARD = 63, 16, 9, 57, 4

mp = mpmath.mp.clone()
mp.dps = 50


def normal(p: Any) -> Any:
    """The z with tail mass p: one Halley step of third order from double precision."""
    z = mp.mpf(-float(ndtri(float(p))))
    slip = (mp.erfc(z / mp.sqrt(2)) / 2 - p) * mp.sqrt(2 * mp.pi) * mp.exp(z * z / 2)
    z += slip / (1 - z * slip / 2)
    # The next step's size is the error of this one, but for the digits that it has itself.
    slip = (mp.erfc(z / mp.sqrt(2)) / 2 - p) * mp.sqrt(2 * mp.pi) * mp.exp(z * z / 2)
    return z + slip


def gumbel_upper(p: Any) -> Any:
    """-log(-log(1 - p))."""
    return -mp.log(-mp.log1p(-p))


def gumbel_lower(p: Any) -> Any:
    """-log(-log(p))."""
    return -mp.log(-mp.log(p))


def line(law: Any, octave: int, segment: int) -> tuple[np.float32, np.float32]:
    """(T, D) of one segment: the line whose greatest error is least, then rounded."""
    # Masses are odd multiples of 2^-32: below the fraction's last bit lies its middle, until there are no more bits.
    below = mp.mpf(1) / 2 if octave <= 9 else mp.mpf(0)
    start = mp.mpf(SEGMENTS + segment) / SEGMENTS
    places = [mp.mpf(place) / FRACTION for place in (-FRACTION // 2, 0, FRACTION // 2 - 1)]
    masses = [
        (start + (place + mp.mpf(1) / 2 + below / FRACTION) / SEGMENTS) * mp.mpf(2) ** (-2 - octave)
        for place in places
    ]
    values = [law(mass) for mass in masses]
    slope = (values[2] - values[0]) / (places[2] - places[0])
    slope = significant(slope, 13)
    rest = [value - slope * place for value, place in zip(values, places, strict=True)]
    middle = (max(rest) + min(rest)) / 2
    return np.float32(float32(middle)), np.float32(float(slope / FRACTION))


def significant(value: Any, bits: int) -> Any:
    """Rounded to that many significant bits."""
    unit = mp.mpf(2) ** (int(mp.floor(mp.log(abs(value), 2))) + 1 - bits)
    return mp.nint(value / unit) * unit


def float32(value: Any) -> float:
    """Rounded to float32 once, not by way of float64."""
    return float(significant(value, 24))


def polynomial(law: Any, octave: int, segment: int) -> list[int]:
    """Fixed-point coefficients of the interpolation at Chebyshev's nodes, lowest degree first."""
    start = mp.mpf(2 * (WIDE_SEGMENTS + segment) + 1) / (2 * WIDE_SEGMENTS)
    values = mp.matrix(
        [law((start + node / (2 * WIDE_SEGMENTS)) * mp.mpf(2) ** (-2 - octave)) for node in NODES]
    )
    scales = [SCALE] + [SCALE + GUARD] * DEGREE
    return [int(mp.nint(c * mp.mpf(2) ** scale)) for c, scale in zip(INVERSE * values, scales, strict=True)]


NODES = [mp.cos(mp.pi * (2 * k + 1) / (2 * DEGREE + 2)) for k in range(DEGREE + 1)]
INVERSE = mp.matrix([[node**k for k in range(DEGREE + 1)] for node in NODES]) ** -1


def lines(law: Any, octaves: Any = range(OCTAVES), segments: Any = range(SEGMENTS)) -> np.ndarray:
    """(2, octaves, segments) float32."""
    pairs = [[line(law, octave, segment) for segment in segments] for octave in octaves]
    return np.ascontiguousarray(np.moveaxis(np.array(pairs, np.float32), -1, 0))


def polynomials(
    law: Any, octaves: Any = range(WIDE_OCTAVES), segments: Any = range(WIDE_SEGMENTS)
) -> np.ndarray:
    """(degree + 1, octaves, segments) int64."""
    rows = [[polynomial(law, octave, segment) for segment in segments] for octave in octaves]
    return np.ascontiguousarray(np.moveaxis(np.array(rows, np.int64), -1, 0))


def build() -> dict[str, np.ndarray]:
    """All tables, by name."""
    halves = (gumbel_upper, gumbel_lower)
    return {
        "normal": lines(normal),
        "gumbel": np.stack([lines(half) for half in halves], axis=1),
        "normal_wide": polynomials(normal),
        "gumbel_wide": np.stack([polynomials(half) for half in halves], axis=1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TARGET)
    out = parser.parse_args().out
    np.savez_compressed(out, **build())
    print(f"{out}: {out.stat().st_size} bytes")
