"""Threefry-2x32 with 20 rounds: 64 bits of counter in, 64 random bits out, under a 64-bit key.

For each key it is a bijection of counters, so no block is ever drawn twice. Written once on Python's ints, for keys, and once on
int32 arrays, whose additions wrap: the one integer type in which every library adds and shifts.

References
----------
J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
https://doi.org/10.1145/2063384.2063405, Threefry. The rotations and the parity are those of the authors' library Random123,
whose known answers the tests hold this to.
"""

from typing import Any

from anystep._array import Array

__all__ = ["block", "low_bits", "shifted", "signed", "words"]

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
"""Bits of the left rotation in rounds 1 to 8, 9 to 16, ..."""
PARITY = 0x1BD11BDA
"""Skein's constant: the third key word is it, xored with the other two."""
MASK = 0xFFFFFFFF


def block(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Two unsigned 32-bit words for a key and a counter of two words each.

    Examples
    --------
    >>> [hex(word) for word in block((0, 0), (0, 0))]  # Random123's first known answer
    ['0x6b200159', '0x99ba4efe']
    """
    schedule = (*key, key[0] ^ key[1] ^ PARITY)
    a, b = (word + k & MASK for word, k in zip(counter, schedule, strict=False))
    for r in range(20):
        left = ROTATIONS[r % 8]
        a = a + b & MASK
        b = (b << left & MASK | b >> 32 - left) ^ a
        if r % 4 == 3:
            turn = r // 4 + 1
            a = a + schedule[turn % 3] & MASK
            b = b + schedule[(turn + 1) % 3] + turn & MASK
    return a, b


def words(xp: Any, key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """`block` on int32 arrays that broadcast; keys are arrays too, because NumPy warns where scalars wrap."""
    schedule = (*key, key[0] ^ key[1] ^ PARITY)
    a, b = counter[0] + key[0], counter[1] + key[1]
    for r in range(20):
        left = ROTATIONS[r % 8]
        a = a + b
        b = (xp.bitwise_left_shift(b, left) | shifted(xp, b, 32 - left)) ^ a
        if r % 4 == 3:
            turn = r // 4 + 1
            a = a + schedule[turn % 3]
            b = b + (schedule[(turn + 1) % 3] + turn)
    return a, b


def shifted(xp: Any, x: Array, right: int) -> Array:
    """An int32 array shifted right with zeros coming in, right > 1; the standard's shift repeats the sign."""
    # The function, not the operator: that of PyTorch's DTensor returns its input.
    return xp.bitwise_right_shift(x, right) & (1 << 32 - right) - 1


def signed(word: int) -> int:
    """The two's complement reading of an unsigned 32-bit word."""
    return word - (word >> 31 << 32)


def low_bits(xp: Any, x: Array) -> Array:
    """Integers modulo 2^32, as int32; out-of-range conversions are left to no library."""
    if x.dtype == xp.int32:
        return x
    if x.dtype == xp.int64:
        x = ((x + 2**31) & MASK) - 2**31
    return xp.astype(x, xp.int32)
