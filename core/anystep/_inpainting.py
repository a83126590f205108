"""A step of `anystep.inpaint_step` in as few operations as a library allows, beside the plain path in repaint.py.

The unknown part, the known part and their mixture are each a sum of few terms, and a bound stands between the first two sums.
Libraries with a fused `anystep.update` get a plan for each sum, and mix in place. JAX gets one program for all rows of all
plans, whose numbers are an argument.
"""

import math
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep._array import Array, Float64, backend, backend_of, kind, loaded, place
from anystep._bare import bare_plan, moved_by
from anystep._combination import Row
from anystep.plan import FIRST_MEMORY, MODEL_OUTPUT, X0, Plan, X
from anystep.thresholding import Clip, Threshold

__all__ = ["painted"]

BLOCK = 2**17
"""Elements that are stepped at a time, for each thread, so that what lies between two sums stays in a cache."""
LARGE = 2**18
"""Elements from which that is faster."""


def painted(
    plan: Plan,
    i: int,
    x: Array,
    model_output: Array,
    original: Array,
    mask: Array,
    known_noise: Array,
    noise: Any,
) -> Array | None:
    """The next sample, or None where the plain path must make it, which judges unusual arguments.

    The plan has no memories, and picture and mask have been checked to be of the library of ``x`` and to broadcast over it.
    """
    torch = loaded("torch")
    compiling = torch is not None and torch.compiler.is_compiling()  # what follows is its work then
    if compiling or not 0 <= i < len(plan) or not hasattr(backend_of(x), "fuse"):
        return None
    fresh = () if noise is None else tuple(noise) if isinstance(noise, list | tuple) else (noise,)
    if not fresh and not plan.stochastic[i]:
        fresh = (known_noise,) * plan.noises  # that the row does not use
    if len(fresh) != plan.noises:
        return None
    cls, dtype, shape = x.__class__, x.dtype, x.shape
    for array in (model_output, known_noise, *fresh):
        if array.__class__ is not cls or array.dtype != dtype or array.shape != shape:
            return None
    parts = plan.fused.get(_KEY)
    if parts is None:
        parts = plan.fused[_KEY] = _Parts(plan)
    try:
        if place(x) is None:
            numbers = parts.numbers(i, kind(x).work)
            return parts.program(numbers, (x, model_output, original, mask, known_noise, *fresh))
        return _painted(parts, i, x, model_output, original, mask, known_noise, *fresh)
    except (RuntimeError, TypeError):  # under a transform that forbids writing in place
        return None


_KEY = -2, Plan, None
"""Where a plan keeps its parts."""


class _Parts:
    """A plan without memories, in sums."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._numbers: dict[tuple[int, Any], npt.NDArray[Any]] = {}

    @cached_property
    def estimate(self) -> Plan:
        """x̂₀."""
        return bare_plan(*self.plan.estimate.T)

    @cached_property
    def unknown(self) -> Plan:
        """The next sample, with x̂₀ as the first of its noises: they are added in the order of the plan's own columns."""
        update = self.plan.folded[:, 0]
        return bare_plan(update[:, X], update[:, MODEL_OUTPUT], *update[:, X0:].T)

    @cached_property
    def known(self) -> Plan:
        """Of the picture and its noise."""
        return bare_plan(self.plan.alpha[1:], self.plan.sigma[1:])

    @cached_property
    def program(self) -> Any:
        """All of it on JAX."""
        return _compiled(self.plan.threshold)

    def numbers(self, i: int, dtype: Any) -> npt.NDArray[Any]:
        """Those of row ``i``, as `_program` reads them."""
        found = self._numbers.get((i, dtype))
        if found is None:
            plan = self.plan
            sums = (
                _spread(plan.estimate_combination.row(i), 2),
                _spread(plan.combinations[0][1].row(i), FIRST_MEMORY + plan.noises),
            )
            found = np.concatenate([*sums, [plan.alpha[i + 1], plan.sigma[i + 1]]]).astype(dtype)
            self._numbers[i, dtype] = found
        return found


def _painted(
    parts: _Parts,
    i: int,
    x: Array,
    model_output: Array,
    original: Array,
    mask: Array,
    *noises: Array,
) -> Array:
    """Plan by plan; what does not fit a cache, in blocks."""
    found, size = kind(x), math.prod(x.shape)
    step = partial(_mixed, parts, i, found.work)
    if original.shape != x.shape:
        original = found.xp.broadcast_to(original, x.shape)
    arrays = (x, model_output, original, mask, *noises)
    whole = size < LARGE or not isinstance(parts.plan.threshold, Clip | None)
    if whole or not _divisible(arrays):
        total = step(*arrays)
        return found.xp.astype(total, x.dtype, copy=False) if found.rounds else total
    result = found.xp.empty(size, dtype=x.dtype, device=place(x))
    if mask.shape != x.shape:
        mask = found.xp.broadcast_to(mask, x.shape)
    arrays = (x, model_output, original, mask, *noises)
    flat = [found.xp.reshape(array, (-1,)) for array in arrays]
    torch = loaded("torch")
    block = BLOCK * (1 if torch is None else torch.get_num_threads())
    for begin in range(0, size, block):
        here = slice(begin, begin + block)
        result[here] = step(*(array[here] for array in flat))  # rounded here, once
    return found.xp.reshape(result, tuple(x.shape))


def _divisible(arrays: tuple[Array, ...]) -> bool:
    """Whether arrays are in a cache's memory, and are not recorded."""
    on_host = getattr(arrays[0], "is_cpu", isinstance(arrays[0], np.ndarray))
    return on_host and not any(getattr(array, "requires_grad", False) for array in arrays)


def _mixed(
    parts: _Parts,
    i: int,
    work: Any,
    x: Array,
    model_output: Array,
    original: Array,
    mask: Array,
    known_noise: Array,
    *fresh: Array,
) -> Array:
    """The next sample in working precision."""
    xp = kind(x).xp
    if x.dtype != work:
        x, model_output, original, known_noise = (
            xp.astype(array, work) for array in (x, model_output, original, known_noise)
        )
        fresh = tuple([xp.astype(array, work) for array in fresh])
    elif original.dtype != work:
        original = xp.astype(original, work)
    threshold = parts.plan.threshold
    if threshold is None:
        unknown = moved_by(parts.plan, i, x, model_output, fresh or None)
    else:
        x0 = _bounded(threshold, moved_by(parts.estimate, i, x, model_output))
        unknown = moved_by(parts.unknown, i, x, model_output, (x0, *fresh))
    known = moved_by(parts.known, i, original, known_noise)
    if xp.isdtype(mask.dtype, "bool"):
        return xp.where(mask, known, unknown)
    mask = xp.astype(mask, work, copy=False)
    if hasattr(unknown, "lerp"):  # PyTorch's, one kernel, and exact where the mask is 0 or 1
        return unknown.lerp(known, mask)
    known *= mask
    unknown *= 1.0 - mask
    unknown += known
    return unknown


def _bounded(threshold: Threshold, x0: Array) -> Array:
    """The bounded estimate, in the place of the other or beside it."""
    if isinstance(threshold, Clip):
        if hasattr(x0, "clamp"):  # PyTorch's, in half the time of the standard's clip
            return x0.clamp(-threshold.bound, threshold.bound)
        if isinstance(x0, np.ndarray):
            return np.minimum(np.maximum(x0, -threshold.bound, out=x0), threshold.bound, out=x0)
    return threshold(x0)


@cache
def _compiled(threshold: Threshold | None) -> Any:
    """The program for all plans with a bound."""
    return backend("jax").transforms["compile"](partial(_program, threshold))


def _program(
    threshold: Threshold | None,
    numbers: Array,
    arrays: tuple[Array, ...],
) -> Array:
    xp, work, _ = kind(arrays[0])
    wide = [xp.astype(array, work) for array in arrays]
    pair, picture, kept, noise, rest = wide[:2], *wide[2:5], wide[5:]
    x0 = _sum(numbers[:_ESTIMATE], pair)
    x0 = x0 if threshold is None else threshold(x0)
    unknown = _sum(numbers[_ESTIMATE:-2], [*pair, x0, *rest])
    known = picture * numbers[-2] + noise * numbers[-1]
    return xp.astype(kept * known + (1.0 - kept) * unknown, arrays[0].dtype)


def _spread(row: Row, width: int) -> Float64:
    """A row as numbers alone: for each column its part in the base, its coefficient, its late one; then the scale."""
    table = np.zeros((3, width))
    if row.base is not None:
        table[0, row.base] = 1.0
        table[0, MODEL_OUTPUT] -= row.opposed
    for part, terms in zip(table[1:], (row.terms, row.late), strict=True):
        for column, value in terms:
            part[column] = value
    return np.append(table, row.scale)


_ESTIMATE = 3 * 2 + 1
"""Numbers of the sum of two that is x̂₀."""


def _sum(numbers: Array, columns: list[Array]) -> Array:
    """What `_spread` has spread, in the order of `anystep._combination`."""
    count = len(columns)
    parts: list[Array] = []
    for first in range(0, 3 * count, count):
        terms = [column * numbers[first + k] for k, column in enumerate(columns)]
        parts.append(sum(terms[1:], start=terms[0]))
    base, terms, late = parts
    return ((base + terms) + late) * numbers[3 * count]
