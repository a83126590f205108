"""One step on arrays: a linear combination with the coefficients of one plan row.

There are two paths. The plain one multiplies and adds: only ``*`` and ``+`` touch the user's arrays (and the
threshold's clip where one is set), coefficients meet them as Python floats, or as gathered tables when the index is
an array, so nothing is read from a device, nothing branches on a value, and every eager library gives the same bits.
The fused one is what a backend makes of a row for speed: the same sum in another order, or with products that are not
rounded before they are added, so that it differs by a rounding or two in sum|c v|. It is the default where a backend has
one; `reproducible` chooses the plain one.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from anystep._array import Array, Kind, backend_of, kind, namespace, place
from anystep.plan import Plan

__all__ = [
    "State",
    "estimate",
    "init",
    "matching",
    "reproducible",
    "scale_input",
    "takes_plain_path",
    "update",
]


class _Path(threading.local):
    """Which path this thread takes; not a context variable, because Dynamo cannot trace one."""

    plain = False


_path = _Path()


def takes_plain_path() -> bool:
    """Whether this thread is inside `reproducible`."""
    return _path.plain


@contextmanager
def reproducible() -> Generator[None]:
    """Inside, every step takes the plain path: the same bits on every eager library.

    Holds for this thread alone, and until the block ends: do not await another task in it.

    Examples
    --------
    >>> from anystep import Euler, Linspace, RectifiedFlow
    >>> plan = Euler().plan(Linspace().levels(RectifiedFlow(), steps=2), "flow_prediction")
    >>> with reproducible():
    ...     update(plan, 0, init(plan, np.ones((1, 2))), np.ones((1, 2))).x
    array([[0.001, 0.001]])
    """
    before, _path.plain = _path.plain, True
    try:
        yield
    finally:
        _path.plain = before


class State(NamedTuple):
    """All that a sampler carries from call to call; a JAX pytree as it is."""

    x: Array
    """The sample."""
    memory: tuple[Array, ...] = ()
    """Arrays of earlier calls, as many as the plan has memories."""


state_of = partial(cast("Any", tuple.__new__), State)
"""A state of a pair (x, memory), in half the time of its constructor."""


def init(plan: Plan, x: Array) -> State:
    """The state before the first call.

    Parameters
    ----------
    plan
        Any plan.
    x
        Start sample, any shape, batch first; kept by reference, never written to.

    Returns
    -------
    State
        Its memories refer to ``x`` until a row has written them; no row reads one earlier.
    """
    kind(x)
    backend_of(x)
    plan.prepare(x)
    return State(x, (x,) * plan.memories)


def scale_input(plan: Plan, i: Any, x: Array) -> Array:
    """The model's input at call i, ``input_scale[i] * x``, with the dtype of ``x``.

    ``x`` itself where the factor is always 1.
    """
    found = kind(x)
    i = _index(plan, i, x, found)
    return x if plan.identity_input else _finish(plan.input_combination(i, (_widen(x, found),), x), x, found)


def estimate(plan: Plan, i: Any, x: Array, model_output: Array) -> Array:
    """The estimate x̂₀ of the clean sample at call i, bounded if the plan has a threshold.

    Dtype and device of ``x``.
    """
    found = kind(x)
    pair = (_widen(x, found), _widen(matching(x, model_output, "model_output"), found))
    return _finish(_estimate(plan, _index(plan, i, x, found), pair, x), x, found)


def update(
    plan: Plan,
    i: Any,
    state: State | tuple[Array, tuple[Array, ...]],
    model_output: Array,
    noise: Array | Sequence[Array] | None = None,
    *,
    donate: bool = False,
) -> State:
    """One model call's worth of sampling.

    Parameters
    ----------
    plan
        The table, N rows.
    i
        Which row: a Python int in [0, N); or an integer array of the sample's library, of shape (B,) for one
        row per sample or 0-d, traced or not. Such an array is not range-checked: that would read it from the
        device.
    state
        From `init` or the call before; its arrays are never written to.
    model_output
        The model's output at this call, shape of ``state.x``.
    noise
        Standard normals of that shape if the plan is stochastic; a sequence of R of them if it has R > 1
        noises. May be left out at a call that does not use it.
    donate
        Whether ``state.x`` is given up: its memory may hold the next sample then, where the library and the method allow
        it, and large steps allocate nothing.

    Returns
    -------
    State
        New arrays with shape, dtype and device of ``state.x``; a memory that only moves is passed on by
        reference.

    Raises
    ------
    IndexError
        If a Python int ``i`` is outside the plan.
    TypeError, ValueError
        If a dtype or shape differs, noise is missing for a stochastic call, or given to a plan that has none.

    Examples
    --------
    >>> from anystep import DDIM, BetaSchedule, Leading
    >>> plan = DDIM().plan(Leading().levels(BetaSchedule.named("linear"), steps=2), "sample")
    >>> x0, state = np.zeros((1, 3)), init(plan, np.ones((1, 3)))
    >>> for i in range(len(plan)):
    ...     state = update(plan, i, state, model_output=x0)
    >>> state.x  # a model that knows the clean sample is believed in the end
    array([[0., 0., 0.]])
    """
    x, memory = state
    if i.__class__ is int and not _path.plain:
        cls, dtype = x.__class__, getattr(x, "dtype", None)
        step, count = plan.fused.get((i, cls, dtype)) or _fuse(plan, i, x)
        if model_output.__class__ is cls and model_output.dtype == dtype and model_output.shape == x.shape:
            alone = count == 2 and noise is None and not memory
            arrays = (x, model_output) if alone else _arrays(plan, count, state, model_output, noise)
            if arrays:
                try:
                    return step(arrays, donate)
                except _NOT_FUSED:
                    pass
    return _update(plan, i, state, model_output, noise)


def _arrays(
    plan: Plan,
    count: int,
    state: State | tuple[Array, tuple[Array, ...]],
    model_output: Array,
    noise: Array | Sequence[Array] | None,
) -> tuple[Array, ...]:
    """The arrays of a fused step; none where one is not like the sample, or too many or few are there.

    The plain path says what is wrong then, or widens.
    """
    x, memory = state
    arrays, fresh = (x, model_output, *memory), cast("Sequence[Array]", ())
    if noise is not None:
        fresh = cast("Sequence[Array]", noise if isinstance(noise, list | tuple) else (noise,))
        if len(fresh) != plan.noises or not fresh:
            return ()
    if len(arrays) != count and len(arrays) + len(fresh) != count:
        return ()
    cls, dtype, shape = x.__class__, x.dtype, x.shape
    for array in (*memory, *fresh):
        differs = array.__class__ is not cls or array.dtype != dtype or array.shape != shape
        if differs and not _is_wide_noise(array, fresh, x):
            return ()
    return (*arrays, *fresh)[:count]


_NOT_FUSED = (RuntimeError, TypeError)
"""What a fused step raises for 0-d data of NumPy, or under a transform that forbids writing in place."""


def _is_wide_noise(array: Array, noise: Sequence[Array], x: Array) -> bool:
    """Whether an array is noise in the working precision of a half-precision sample, which it is added in."""
    alike = array.__class__ is x.__class__ and array.shape == x.shape
    return alike and array.dtype == kind(x).work and any(array is one for one in noise)


def _fuse(plan: Plan, i: int, x: Array) -> tuple[Any, int]:
    """What the backend of ``x`` makes of row ``i``, and how many arrays that takes: -1 if it makes nothing."""
    make = None
    if 0 <= i < len(plan) and plan.threshold is None:
        make = getattr(backend_of(x), "fuse", None)
    step = None if make is None else make(plan, i, x)
    count = 2 + plan.memories + (plan.noises if plan.stochastic[i] else 0) if step else -1
    if step:
        plan.fused[i, x.__class__, x.dtype] = step, count
    return step, count


def _update(
    plan: Plan,
    i: Any,
    state: State | tuple[Array, tuple[Array, ...]],
    model_output: Array,
    noise: Array | Sequence[Array] | None,
) -> State:
    """The plain path."""
    x, memories = state
    found = kind(x)
    i = _index(plan, i, x, found)
    if len(memories) != plan.memories:
        raise ValueError(
            f"state has {len(memories)} memories, the plan {plan.memories}: start with init(plan, x)."
        )
    memory = [matching(x, array, f"memory[{k}]") for k, array in enumerate(memories)]
    narrow = [x, matching(x, model_output, "model_output"), None, *memory, *_noises(plan, i, x, noise)]
    wide = [None if array is None else _widen(array, found) for array in narrow]
    if plan.threshold is not None:
        wide[2] = _estimate(plan, i, wide[:2], x)
    out: list[Array] = []
    moves = plan.moves[i] if plan.memories and isinstance(i, int) else None
    for output, (source, combination) in enumerate(plan.combinations):
        if source is None and moves is not None:
            source = moves[output]
        if source is not None:  # passed on by reference, unless it has another dtype than the sample
            out.append(found.xp.astype(narrow[source], x.dtype, copy=False))
        else:
            out.append(_finish(combination(i, wide, x), x, found))
    return State(out[0], tuple(out[1:]))


def _estimate(plan: Plan, i: Any, pair: Sequence[Array], x: Array) -> Array:
    """x̂₀ in working precision."""
    x0 = plan.estimate_combination(i, pair, x)
    return x0 if plan.threshold is None else plan.threshold(x0)


def _widen(array: Array, found: Kind) -> Array:
    """The array in working precision."""
    return array if array.dtype == found.work else found.xp.astype(array, found.work, copy=False)


def _finish(total: Array, x: Array, found: Kind) -> Array:
    """Rounded once to the dtype of ``x``; NumPy's 0-d results made arrays again."""
    if found.rounds:
        total = found.xp.astype(total, x.dtype, copy=False)
    return np.asarray(total) if isinstance(total, np.generic) and not isinstance(x, np.generic) else total


def _index(plan: Plan, i: Any, x: Array, found: Kind) -> Any:
    """A Python int in range, or an integer array that fits ``x``."""
    if isinstance(i, (int, np.integer)):
        if not 0 <= i < len(plan):
            raise IndexError(
                f"i={i} is outside [0, {len(plan)}): the plan has {len(plan)} rows; stop, or make a longer plan."
            )
        return int(i)
    if isinstance(i, (np.ndarray, list, tuple)):  # known on the host: check, then move to where x is
        rows = np.asarray(i)
        if rows.size and not (rows.dtype.kind in "iu" and rows.min() >= 0 and rows.max() < len(plan)):
            raise IndexError(
                f"i={rows.tolist()}: expected integers in [0, {len(plan)}), one row of the plan per sample."
            )
        i = found.xp.asarray(rows.astype(np.int32), device=place(x))
    if not hasattr(i, "dtype"):
        raise TypeError(
            f"i={i!r}: expected an int or an integer array, a row of the plan or one row per sample."
        )
    if namespace(i) is not found.xp:
        raise _foreign("i", i, x)
    if not found.xp.isdtype(i.dtype, "integral"):
        raise TypeError(f"i has dtype {i.dtype}: expected integers, rows of the plan.")
    if i.ndim > 1 or (i.ndim == 1 and (x.ndim == 0 or i.shape[0] != x.shape[0])):
        raise ValueError(
            f"i has shape {tuple(i.shape)}: expected 0-d or one row per sample, shape {x.shape[:1]}."
        )
    # The one integer type that every library both has and can index with.
    return i if i.dtype in (found.xp.int32, found.xp.int64) else found.xp.astype(i, found.xp.int32)


def _foreign(name: str, array: Array, x: Array) -> TypeError:
    theirs, ours = (type(a).__module__.split(".")[0] for a in (array, x))
    return TypeError(f"{name} is a {theirs} array, the sample a {ours} one: convert one of them.")


def matching(x: Array, array: Array, name: str) -> Array:
    """The array, or TypeError or ValueError if its library or shape is not that of the sample ``x``."""
    if kind(array, name).xp is not kind(x).xp:
        raise _foreign(name, array, x)
    if array.shape != x.shape:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}: expected {tuple(x.shape)}, the shape of the sample."
        )
    return array


def _noises(plan: Plan, i: Any, x: Array, noise: Array | Sequence[Array] | None) -> list[Array | None]:
    if not plan.noises:
        if noise is not None:
            raise ValueError(
                "noise was given, but the plan is deterministic: leave it out, or ask for a stochastic sampler."
            )
        return []
    if noise is None:
        if isinstance(i, int) and not plan.stochastic[i]:
            return [None] * plan.noises
        raise ValueError(
            f"noise is missing: the plan is stochastic; pass {plan.noises} array(s) of standard normals like the sample."
        )
    several = cast("Sequence[Array]", noise if isinstance(noise, list | tuple) else (noise,))
    if len(several) != plan.noises:
        raise ValueError(f"noise holds {len(several)} array(s): the plan takes {plan.noises} at each call.")
    return [matching(x, array, "noise") for array in several]
