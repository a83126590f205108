"""RePaint: inpainting with a model that knows nothing of masks (Lugmayr et al. 2022).

Where the mask is 1 the picture is known, where it is 0 it is made up. Each step moves the whole picture by any one-step
plan, then puts the known part, noised to the same level, in place. Going back up some levels and down again (resampling)
lets the two parts fit each other.

References
----------
Andreas Lugmayr, Martin Danelljan, Andres Romero, Fisher Yu, Radu Timofte, Luc Van Gool. RePaint: Inpainting using
Denoising Diffusion Probabilistic Models, 2022, https://arxiv.org/abs/2201.09865, equation 8 and algorithm 1. We differ from
its letter twice: the known part has the level at which the step ends, since the other part is there, and its noise is
scaled by a standard deviation, where line 5 has a variance.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from anystep._array import Array, Float64, expand, kind, like, namespace
from anystep._checks import integer
from anystep._draw import draw
from anystep._inpainting import painted
from anystep._update import State, scale_input, takes_plain_path, update
from anystep.forward import mix
from anystep.plan import Plan

__all__ = ["Move", "blend", "inpaint", "inpaint_step", "known", "renoise", "resampling", "undo_step", "walk"]


class Move(NamedTuple):
    """Down one level, or back up."""

    row: int
    """Of the plan."""
    undo: bool
    """Whether the row's step is undone, instead of done."""


def known(plan: Plan, i: Any, original: Array, noise: Array) -> Array:
    """The known part at the level at which row ``i`` ends: alpha_nxt original + sigma_nxt noise (equation 8a).

    Parameters
    ----------
    plan
        Of a one-step method.
    i
        Row: an int, or an integer array as in `anystep.update`.
    original
        The clean picture; what the mask hides does not matter.
    noise
        Standard normals of its shape, drawn afresh for every call.

    Returns
    -------
    Array
        Shape, dtype and device of ``original``.
    """
    return mix(original, noise, _at(plan.alpha[1:], i, original), _at(plan.sigma[1:], i, original))


def undo_step(plan: Plan, i: Any, x: Array, noise: Array) -> Array:
    """Back from the level at which row ``i`` ends to the one at which it starts, by the forward process (algorithm 1, line 10).

    k x + √(sigma_cur² - k² sigma_nxt²) noise with k = alpha_cur / alpha_nxt. Parameters of `known`.

    Examples
    --------
    Noise that is added leaves the level's own:

    >>> from anystep import DDIM, BetaSchedule, Leading
    >>> plan = DDIM().plan(Leading().levels(BetaSchedule.named("linear"), steps=4), "epsilon")
    >>> one = np.ones((1,))
    >>> kept, added = undo_step(plan, 2, one, 0 * one), undo_step(plan, 2, 0 * one, one)
    >>> np.allclose(kept * plan.alpha[3], plan.alpha[2]), np.allclose((kept * plan.sigma[3])**2 + added**2, plan.sigma[2]**2)
    (True, True)
    """
    kept = plan.alpha[:-1] / plan.alpha[1:]
    added = np.sqrt(np.maximum(plan.sigma[:-1] ** 2 - (kept * plan.sigma[1:]) ** 2, 0.0))
    return mix(x, noise, _at(kept, i, x), _at(added, i, x))


def renoise(x: Array, betas: Float64, noises: Iterable[Array]) -> Array:
    """Through one step N(√(1 - beta) x, beta) of the forward process for each beta, with a noise for each, rounded once."""
    found = kind(x)
    later = np.cumprod(1 - betas[::-1])[::-1]
    weights = np.sqrt(betas * np.append(later[1:], 1.0))
    terms = (
        found.xp.astype(noise, found.work, copy=False) * float(weight)
        for weight, noise in zip(weights, noises, strict=True)
    )
    added = sum(terms, start=next(terms))  # apart from x, beside which each would be rounded more
    return found.xp.astype(
        found.xp.astype(x, found.work, copy=False) * float(np.sqrt(later[0])) + added, x.dtype, copy=False
    )


def blend(mask: Array, known: Array, unknown: Array) -> Array:
    """``mask`` known + (1 - ``mask``) unknown (equation 8c).

    Parameters
    ----------
    mask
        1 or true where the picture is known, 0 or false where it is not; broadcasts over the picture. Of its library, any
        real dtype or bool.
    known, unknown
        The two parts, of one shape.

    Returns
    -------
    Array
        Shape, dtype and device of ``unknown``.

    Raises
    ------
    TypeError, ValueError
        If the mask is of another library or does not fit.
    """
    found = kind(unknown)
    check_over("mask", mask, unknown)
    m, one, other = (found.xp.astype(part, found.work, copy=False) for part in (mask, known, unknown))
    return found.xp.astype(m * one + (1.0 - m) * other, unknown.dtype, copy=False)


def check_over(name: str, part: Array, x: Array) -> None:
    """Raise TypeError or ValueError unless an array is of the library of ``x`` and broadcasts over it."""
    if namespace(part) is not kind(x).xp:
        raise TypeError(
            f"{name} is a {type(part).__module__} array, the sample a {type(x).__module__} one: convert one of them."
        )
    key = type(part), part.dtype
    if key not in _REAL:
        _REAL[key] = str(part.dtype).split(".")[-1].startswith(("bool", "int", "uint", "float", "bfloat"))
    if not _REAL[key]:
        raise TypeError(f"{name} has dtype {part.dtype}: expected real numbers.")
    if part.shape == x.shape:
        return
    shape, whole = tuple(part.shape), tuple(x.shape)
    if len(shape) > len(whole) or any(
        a not in (1, b) for a, b in zip(shape[::-1], whole[::-1], strict=False)
    ):
        raise ValueError(f"{name} has shape {shape}: expected one that broadcasts over {whole}.")


_REAL: dict[tuple[type, Any], bool] = {}
"""Whether a dtype is one of real numbers, by type, because libraries refuse to compare their dtypes with others'."""


def inpaint_step(
    plan: Plan,
    i: Any,
    x: Array,
    model_output: Array,
    original: Array,
    mask: Array,
    known_noise: Array,
    noise: Array | None = None,
) -> Array:
    """One step (algorithm 1, lines 4 to 8).

    Parameters
    ----------
    plan
        Of a one-step method; `anystep.DDPM` is the paper's.
    i
        Row, as in `anystep.update`.
    x, model_output
        Sample and model output, of one shape.
    original, mask
        The picture, in part, and where it is known: see `blend`. Both broadcast over ``x``.
    known_noise
        Standard normals of the shape of ``x``, for the known part.
    noise
        Others, for the unknown part, if the row is stochastic.

    Returns
    -------
    Array
        The next sample, shape, dtype and device of ``x``.

    Raises
    ------
    ValueError, TypeError
        If the plan remembers earlier calls, or an array does not fit.
    """
    if plan.memories:
        raise ValueError(
            f"plan has {plan.memories} memories: expected a one-step method such as DDPM; going back would leave them stale."
        )
    kind(original, "original")
    for name, part in (("original", original), ("mask", mask)):
        check_over(name, part, x)
    if i.__class__ is int and not takes_plain_path():
        moved = painted(plan, i, x, model_output, original, mask, known_noise, noise)
        if moved is not None:
            return moved
    unknown, xp = update(plan, i, State(x), model_output, noise).x, kind(x).xp
    if original.shape != x.shape:
        original = xp.broadcast_to(original, x.shape)
    return blend(mask, known(plan, i, xp.astype(original, x.dtype, copy=False), known_noise), unknown)


_MOST_MOVES = 10**6


def walk(steps: int, jump_length: int = 10, jump_n_sample: int = 10, shift: int = 0) -> list[int]:
    """Levels visited, as numbers from N - 1 (noisiest) down to 0, where one up means undoing a step.

    From every ``jump_length``-th level, 0 + ``shift`` included, ``jump_n_sample`` - 1 jumps of ``jump_length`` levels up
    (figure 9 of the paper, and its code).
    """
    steps = integer("num_inference_steps", steps)
    length, samples = integer("jump_length", jump_length), integer("jump_n_sample", jump_n_sample, 0)
    starts = range(0, steps - length, length)
    moves = steps + 2 * length * max(samples - 1, 0) * len(starts)
    if moves > _MOST_MOVES:
        raise ValueError(
            f"jump_n_sample={samples}: {moves} moves, expected at most {_MOST_MOVES}; jump less often."
        )
    jumps = {j + shift: samples - 1 for j in starts}
    visited, level = [], steps
    while level >= 1:
        level -= 1
        visited.append(level)
        if jumps.get(level, 0) > 0:
            jumps[level] -= 1
            visited.extend(range(level + 1, level + length + 1))
            level += length
    return visited


def resampling(steps: int, jump_length: int = 10, jump_n_sample: int = 10) -> list[Move]:
    """Moves of a run over N rows.

    Parameters
    ----------
    steps
        N, the rows of the plan.
    jump_length
        Levels of a jump, >= 1; the paper takes 10.
    jump_n_sample
        How often each stretch is walked down, >= 1; 1 is no resampling, the paper takes 10.

    Examples
    --------
    >>> [f"{'undo ' if move.undo else ''}{move.row}" for move in resampling(4, jump_length=2, jump_n_sample=2)]
    ['0', '1', '2', 'undo 2', 'undo 1', '1', '2', '3']
    """
    levels = [*walk(steps, jump_length, jump_n_sample), -1]
    return [Move(steps - 1 - max(pair), pair[1] > pair[0]) for pair in itertools.pairwise(levels)]


def inpaint(
    model: Callable[[Array, float], Array],
    plan: Plan,
    x: Array,
    original: Array,
    mask: Array,
    *,
    generator: Any = None,
    jump_length: int = 10,
    jump_n_sample: int = 10,
    progress: Callable[[Iterable[Move]], Iterable[Move]] = iter,
) -> Array:
    """Paint what the mask leaves open.

    Parameters
    ----------
    model
        As for `anystep.sample`.
    plan
        Of a one-step method; `anystep.DDPM` is the paper's.
    x
        Standard normals times ``plan.sigma[0]``, any array library.
    original, mask
        See `inpaint_step`.
    generator
        Source of all noise; see `anystep.draw`.
    jump_length, jump_n_sample
        See `resampling`.
    progress
        Wraps the iterable of moves, such as `tqdm.tqdm`.

    Returns
    -------
    Array
        Like ``x``; equal to ``original`` where the mask is 1, if the plan ends without noise.

    Examples
    --------
    >>> from anystep import DDPM, BetaSchedule, Trailing
    >>> plan = DDPM().plan(Trailing().levels(BetaSchedule.named("linear"), steps=20), "sample")
    >>> rng = np.random.default_rng(0)
    >>> inpaint(lambda x, t: 0 * x + 0.5, plan, rng.normal(size=(1, 2)), np.ones((1, 2)), np.asarray([1, 0]), generator=rng)
    array([[1. , 0.5]])
    """
    fresh = itertools.count()
    for move in progress(resampling(len(plan), jump_length, jump_n_sample)):
        i = move.row
        if move.undo:
            x = undo_step(plan, i, x, draw(x, generator, next(fresh)))
            continue
        model_output = model(scale_input(plan, i, x), float(plan.timesteps[i]))
        known_noise = draw(x, generator, next(fresh))
        noise = draw(x, generator, next(fresh)) if plan.stochastic[i] else None
        x = inpaint_step(plan, i, x, model_output, original, mask, known_noise, noise)
    return x


def _at(table: Float64, i: Any, x: Array) -> Any:
    """Coefficient of row i: a Python float, or gathered where ``x`` is for an array of rows."""
    if isinstance(i, int | np.integer):
        if not 0 <= i < len(table):
            raise IndexError(f"i={i} is outside [0, {len(table)}): the plan has {len(table)} rows.")
        return float(table[int(i)])
    xp = kind(x).xp
    rows = xp.take(like(table, x), xp.reshape(xp.asarray(i), (-1,)), axis=0)
    return expand(rows if i.ndim else rows[0, ...], x)
