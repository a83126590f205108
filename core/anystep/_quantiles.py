"""From random bits to normals, Gumbels and uniforms, to the last bit alike on every library, eager or compiled.

A word's sign bit is the half of the distribution and its other bits m the tail mass p = (m | 1) / 2^32. The leading bit of m is
the octave, the next 8 the segment, the next 12 the place f in it, -2048 <= f < 2048. Then z = T + D f, with D of 13 significant
bits: the product of 13 bits with 11 and a sign is exact in float32, so one rounding remains, whether a compiler fuses the two
operations or not. In float64 a second word extends m to 63 bits, and a polynomial is evaluated in 64-bit fixed point, where there
is nothing to fuse. `examples/build_noise_tables.py` builds the tables.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep._array import Array
from anystep._threefry import shifted

__all__ = ["LAWS", "narrow", "wide"]

LAWS = ("normal", "gumbel", "uniform")
"""Laws in the order of their codes."""
LOW31 = 2**31 - 1
TOP_BITS = 15
"""Leading zeros are counted that many bits at a time, by table: a third of the operations that comparing and shifting takes."""
SEGMENT_BITS, FRACTION_BITS = 8, 12
WIDE_SEGMENT_BITS, SCALE, GUARD = 4, 57, 4


@cache
def tables() -> dict[str, npt.NDArray[Any]]:
    """Every table by name, read-only; read once, when noise is first drawn."""
    with np.load(Path(__file__).with_name("_noise_tables.npz"), allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    found["zeros"] = np.array([[TOP_BITS - n.bit_length() for n in range(2**TOP_BITS)]], np.int32)
    for table in found.values():
        table.flags.writeable = False
    return found


_KEPT: dict[tuple[Any, str, str], list[Array]] = {}


def columns(xp: Any, name: str, device: Any) -> list[Array]:
    """The rows of a table's first axis, each flat, on a device; kept there for the next draw."""
    found = _KEPT.get((xp, name, str(device)))
    if found is None:
        # Copies, because torch warns of read-only memory.
        found = [xp.asarray(row.flatten(), device=device) for row in tables()[name]]
        # Not while a library traces: its arrays, JAX's (device None) and those of private classes, belong to the trace.
        if device is not None and "._" not in type(found[0]).__module__:
            _KEPT[xp, name, str(device)] = found
    return found


def narrow(xp: Any, word: Array, law: str, device: Any) -> Array:
    """float32 values of a flat int32 array of random words."""
    if law == "uniform":
        return xp.astype(shifted(xp, word, 8), xp.float32) * 2.0**-24
    octave, m = _normalised(xp, (word & LOW31) | 1, 31, device)
    segment = xp.bitwise_right_shift(m, 30 - SEGMENT_BITS) & 2**SEGMENT_BITS - 1
    place = xp.bitwise_right_shift(m, 30 - SEGMENT_BITS - FRACTION_BITS) & 2**FRACTION_BITS - 1
    fraction = xp.astype(place - 2 ** (FRACTION_BITS - 1), xp.float32)
    middle, slope = columns(xp, law, device)
    at = (octave * 2**SEGMENT_BITS) + segment
    if law == "gumbel":
        at = at + xp.astype(word < 0, xp.int32) * (31 * 2**SEGMENT_BITS)
    z = xp.take(middle, at, axis=0) + xp.take(slope, at, axis=0) * fraction
    return _mirrored(xp, word, z) if law == "normal" else z


def wide(xp: Any, word: Array, more: Array, law: str, device: Any) -> Array:
    """float64 values of a flat int32 array of random words and a second one that refines them."""
    low = xp.astype(more, xp.int64) & 0xFFFFFFFF
    if law == "uniform":
        high = xp.astype(shifted(xp, word, 5), xp.int64) * 2**26
        return xp.astype(high + xp.bitwise_right_shift(low, 6), xp.float64) * 2.0**-53
    m = xp.bitwise_left_shift(xp.astype(word & LOW31, xp.int64), 32) | low | 1
    octave, m = _normalised(xp, m, 63, device)
    rest = 62 - WIDE_SEGMENT_BITS
    segment = xp.astype(xp.bitwise_right_shift(m, rest), xp.int32) & 2**WIDE_SEGMENT_BITS - 1
    at = octave * 2**WIDE_SEGMENT_BITS + segment
    if law == "gumbel":
        at = at + xp.astype(word < 0, xp.int32) * (63 * 2**WIDE_SEGMENT_BITS)
    # The place in the segment, in [-1, 1) times 2^62, as its upper and lower 31 bits.
    place = xp.bitwise_left_shift(m & 2**rest - 1, WIDE_SEGMENT_BITS + 1) - 2**62
    upper, lower = xp.bitwise_right_shift(place, 31), place & LOW31
    constant, *slopes = columns(xp, law + "_wide", device)
    total = xp.take(slopes[-1], at, axis=0)
    for column in slopes[-2::-1]:
        total = xp.take(column, at, axis=0) + _share(xp, total, upper, lower)
    change = _share(xp, total, upper, lower) + 2 ** (GUARD - 1)
    total = xp.take(constant, at, axis=0) + xp.bitwise_right_shift(change, GUARD)
    z = xp.astype(total, xp.float64) * 2.0**-SCALE
    return _mirrored(xp, word, z) if law == "normal" else z


def _mirrored(xp: Any, word: Array, z: Array) -> Array:
    """Upper tails made lower ones where the sign bit says so."""
    return xp.where(word < 0, -z, z)


def _share(xp: Any, total: Array, upper: Array, lower: Array) -> Array:
    """``total * place / 2^62`` by long multiplication; the product of the lower halves is too small to count."""
    head, tail = xp.bitwise_right_shift(total, 31), total & LOW31
    return head * upper + xp.bitwise_right_shift(tail * upper + head * lower, 31)


def _normalised(xp: Any, m: Array, bits: int, device: Any) -> tuple[Array, Array]:
    """Leading zeros of positive integers of that many bits, as int32, and the integers shifted left by them."""
    (zeros,) = columns(xp, "zeros", device)
    octave = None
    for _ in range(0, bits - 1, TOP_BITS):
        more = xp.take(zeros, xp.bitwise_right_shift(m, bits - TOP_BITS), axis=0)
        m = xp.bitwise_left_shift(m, xp.astype(more, m.dtype, copy=False))
        octave = more if octave is None else octave + more
    return octave, m
