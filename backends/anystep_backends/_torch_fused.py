"""A row of a plan as PyTorch kernels that scale and add at once: k of them for k terms, k - 1 if the sample's weight is 1.

The order of summation is chosen for accuracy at that number of kernels: in x + Σ c_k v_k, with c the largest c_k, first
u = v + Σ (c_k / c) v_k and then x + c u, so that only small numbers are rounded before x is met once. With fused
multiply-add, a float32 trajectory ends within 5 % of the error of float64 sums rounded once a step; summing into x, with
the same number of kernels, is 1.3 to 1.9 times as far off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch

from anystep import Plan, State
from anystep._combination import Row
from anystep._update import state_of

from ._fused import Form, Step, Writer, flat, given, unpacked

__all__ = ["fuse"]

Tensors = Sequence[torch.Tensor]

BLOCK = 2**18
"""Elements of a block, for each thread."""
LARGE, LARGE_HALF = 2**22, 2**19
"""Elements from which blocks are faster, where a call is more than one kernel; half precision is widened besides."""


def fuse(plan: Plan, i: int, x: torch.Tensor) -> Step | None:
    """Row ``i`` for tensors like ``x``; None while compiling, since a compiler fuses by itself."""
    if torch.compiler.is_compiling():
        return None
    half = x.dtype in (torch.float16, torch.bfloat16)
    into = partial(_into, plan, i, x.dtype, half)
    large = f"v0.numel() >= {LARGE}"
    step = into() if half else flat(plan, i, partial(_write, x.dtype), _KERNELS, large, into)
    make = _triton() if x.is_cuda else None
    return step if make is None else make(plan, i, step)


_KERNELS = {"add": torch.add, "lerp": torch.lerp, "mul": torch.mul}


@cache
def _triton() -> Any:
    """What makes one kernel of a whole row on CUDA, where Triton is installed, as it is with PyTorch's CUDA builds."""
    try:
        from ._triton_fused import fuse as one_kernel
    except ImportError:
        return None
    return one_kernel


def _write(dtype: torch.dtype, writer: Writer, row: Row, total: str, out: str) -> None:
    """The kernels of a row."""
    number, place = writer.number, f", out={out}" if out else ""
    rest, scale = list(row.terms or ((0, 0.0),)), row.scale

    def scalar(value: float) -> str:
        # A 0-d tensor of the same dtype takes 1 µs less than a Python float; added terms have theirs as an argument.
        return number(torch.tensor(value, dtype=dtype))

    if row.base is None:
        first, c = rest.pop(0)  # the sample, where it is among them
        writer(f"{total} = mul(v{first}, {scalar(c)}{place})")
    elif row.opposed:
        # Of s (x - m) + ...: one kernel takes the difference, as in m + s (x - m), and the next takes the m back.
        inner = 1.0 if row.late else scale
        scale = scale if row.late else 1.0
        rest = [(k, inner * value - (k == 1)) for k, value in ({1: 0.0} | dict(row.terms)).items()]
        writer(f"{total} = lerp(v1, v0, {number(inner)}{place})")
    elif scale != 1.0 and not row.late:
        first, c = rest.pop(0)
        writer(f"{total} = add(v{row.base}, v{first}, alpha={number(c)}{place})")
    else:
        pivot, c = max(rest, key=lambda term: abs(term[1]))
        others = [(k, value / c) for k, value in rest if k != pivot]
        v, rest = f"v{pivot}", list[tuple[int, float]]()
        if others:
            (first, ratio), *others = others
            writer(f"u = add({v}, v{first}, alpha={number(ratio)})")
            writer(*(f"u.add_(v{k}, alpha={number(value)})" for k, value in others))
            v, place = "u", place or ", out=u"
        writer(f"{total} = add(v{row.base}, {v}, alpha={number(c)}{place})")
    writer(*(f"{total}.add_(v{k}, alpha={number(value)})" for k, value in (*rest, *row.late)))
    if scale != 1.0:
        writer(f"{total}.mul_({scalar(scale)})")


def _into(plan: Plan, i: int, dtype: torch.dtype, half: bool) -> Step:
    """Call ``i``, written to arrays made for it, or to the sample.

    Half precision is widened once for all outputs, summed in float32, and each output is rounded once. Large arrays are
    done in blocks, whose intermediate sums stay in a cache.
    """
    outputs, writer = [*enumerate(plan.outputs(i))], Writer()
    moves = {n: one for n, one in outputs if isinstance(one, int)}
    # The sample last: memories may be made of an x that is then written to.
    sums = {n: one for n, one in (*outputs[1:], outputs[0]) if not isinstance(one, int)}
    writer(f"{unpacked('v', range(given(plan, i)))} = arrays", f"{unpacked('e', sums)} = ends")
    if half:
        reads = {k for row in sums.values() for k in Form.of(row).reads}
        writer(*(f"v{k} = v{k}.float()" for k in sorted(reads)))
    begun = len(writer.lines)
    for n, row in sums.items():
        _write(torch.float32 if half else dtype, writer, row, f"o{n}", "" if half else f"e{n}")
        if half:
            writer(f"e{n}.copy_(o{n})")
    kernels = len(writer.lines) - begun
    whole = writer.function("whole(arrays, ends)", _KERNELS)
    over = 0 not in moves.values()  # else a memory keeps the sample

    def step(arrays: Tensors, donate: bool) -> State:
        x = arrays[0]
        found = {n: x if n == 0 and donate and over else torch.empty_like(x) for n in sums}
        ends = [*found.values()]
        if kernels == 1 or _fits(arrays, LARGE_HALF if half else LARGE):
            whole(arrays, ends)
        else:
            size = BLOCK * torch.get_num_threads()
            split = (zip(*(one.view(-1).split(size) for one in some), strict=True) for some in (arrays, ends))
            for parts in zip(*split, strict=True):
                whole(*parts)
        first, *others = [found[n] if n in found else arrays[moves[n]] for n in range(len(outputs))]
        return state_of((first, tuple(others)))

    return step


def _fits(arrays: Tensors, large: int) -> bool:
    """Whether arrays are best summed as a whole."""
    return (
        arrays[0].numel() < large
        or arrays[0].device.type != "cpu"
        or any(array.requires_grad or not array.is_contiguous() for array in arrays)
    )
