"""Noise as a function of counters: what `anystep.CounterNoise` computes once its arguments are checked."""

from functools import lru_cache
from typing import Any

from anystep._array import Array
from anystep._quantiles import LAWS, narrow, wide
from anystep._threefry import MASK, block, signed, words

__all__ = ["derive", "draw_counters", "generate"]

Key = tuple[Array, Array]
LAW_BIT, REFINEMENT_BIT = 28, 31
"""Where the counter of a key tells its law, and whether it is of float64's second words; the stream is below."""


def generate(
    xp: Any,
    device: Any,
    seed: int,
    stream: int,
    step: int | Array,
    samples: Array,
    *,
    elements: int,
    law: str,
    double: bool,
    block: int | None = None,
) -> Array:
    """(B, elements) float32, or float64 for ``double``, of int32 sample ids (B,).

    ``step`` is an int, an int32 array of one element, or one of B. Where a library runs one operation after the other on a
    processor with caches, ``block`` elements are drawn at a time, an even number, for twice the speed.
    """
    keys = derive(xp, device, seed, stream, step, law=law, double=double)
    batch = samples.shape[0]
    if block is None or batch * elements <= block:
        return draw_counters(xp, device, keys, samples, elements=elements, law=law)

    def piece(i: int, j: int) -> Array:
        """Rows from ``i`` and elements from ``j`` on."""
        each = tuple((a, b) if a.shape[0] == 1 else (a[i : i + rows, :], b[i : i + rows, :]) for a, b in keys)
        count = min(block, elements - j)
        return draw_counters(xp, device, each, samples[i : i + rows], elements=count, law=law, first=j)

    rows = max(1, block // elements)
    columns = ([piece(i, j) for j in range(0, elements, block)] for i in range(0, batch, rows))
    return xp.concat([xp.concat(row, axis=1) if len(row) > 1 else row[0] for row in columns], axis=0)


def derive(
    xp: Any, device: Any, seed: int, stream: int, step: int | Array, *, law: str, double: bool
) -> tuple[Key, ...]:
    """The key of a step, and for ``double`` a second one; int32 arrays that broadcast over (B, pairs)."""
    tags = [stream | LAWS.index(law) << LAW_BIT | part << REFINEMENT_BIT for part in range(1 + double)]
    if isinstance(step, int):
        pairs = (_host_key(seed, tag, step) for tag in tags)
        return tuple((_cell(xp, device, a), _cell(xp, device, b)) for a, b in pairs)
    root = (_cell(xp, device, signed(seed & MASK)), _cell(xp, device, signed(seed >> 32)))
    step = xp.reshape(step, (-1, 1))
    return tuple(words(xp, root, (step, _cell(xp, device, signed(tag)))) for tag in tags)


def _cell(xp: Any, device: Any, word: int) -> Array:
    return xp.full((1, 1), word, dtype=xp.int32, device=device)


@lru_cache(4096)
def _host_key(seed: int, tag: int, step: int) -> tuple[int, int]:
    a, b = block((seed & MASK, seed >> 32), (step & MASK, tag))
    return signed(a), signed(b)


def draw_counters(
    xp: Any, device: Any, keys: tuple[Key, ...], samples: Array, *, elements: int, law: str, first: int = 0
) -> Array:
    """`generate` of keys that are known, from an even element on.

    Integers and exact products alone, so that compiling changes no bit.
    """
    pairs = xp.arange(first // 2, (first + elements + 1) // 2, dtype=xp.int32, device=device)
    counter = (xp.reshape(samples, (-1, 1)), xp.reshape(pairs, (1, -1)))
    drawn = [_flat(xp, words(xp, key, counter)) for key in keys]
    values = (
        narrow(xp, drawn[0], law, device) if len(drawn) == 1 else wide(xp, drawn[0], drawn[1], law, device)
    )
    return xp.reshape(values, (samples.shape[0], 2 * pairs.shape[0]))[:, :elements]


def _flat(xp: Any, pair: tuple[Array, Array]) -> Array:
    """Words of one pair side by side, so that a longer row begins like a shorter one."""
    return xp.reshape(xp.stack(pair, axis=-1), (-1,))
