"""Two ways to draw from the posterior of a token step without computing all of it; see `anystep.tokens`."""

import math
from typing import Any, NamedTuple

from anystep._array import Array, place
from anystep._token_arrays import TINY, levels, linear, log_sum, pick, working
from anystep.schedules.vq import TokenStep

__all__ = ["Mixture", "mixture", "sample_race", "sample_sparse"]


def sample_race(log_p_x0: Array, x_t: Array, step: TokenStep | None, uniform: Array) -> Array:
    """The classes that `gumbel_max` of `q_posterior` draws, in half the passes.

    log p + Gumbel noise is greatest where E / p is least, E = -log(uniform): an exponential race. Without logarithms the
    posterior is p(x_0) plus a number per token, up to factors, everywhere but at the class seen, which races separately.
    Ties within rounding apart, the winner is the same.

    Parameters
    ----------
    log_p_x0, x_t
        As for `q_posterior`; the log-probabilities need not be normalised.
    step
        The step, or None for one that ends at the clean sample: then p(x_0) itself is drawn from.
    uniform
        Uniform numbers in [0, 1), shape (B, K + 1, L), or (B, K, L) with None.

    Returns
    -------
    Array
        Tokens at the step's ``nxt``, shape (B, L), dtype of ``x_t``.
    """
    log_p_x0, xp = working(log_p_x0, x_t)
    classes = log_p_x0.shape[1]
    p = _relative(xp, log_p_x0)
    # Minus the time each class needs is p over this negative number: the least quotient wins.
    clock = xp.astype(xp.log(uniform + TINY), p.dtype, copy=False)
    if step is None:
        return _least(xp, p / clock, x_t)[1]
    total = xp.sum(p, axis=1)
    masked = x_t == classes
    itself = xp.where(masked, xp.zeros_like(x_t), x_t)
    p_itself = xp.where(masked, xp.zeros_like(total), pick(xp, p, itself))
    w = _race_weights(step)
    # p(x_0) / q(x_cur | x_0), summed, in units in which each class but the one seen counts as it is
    seen = total - w.excess * p_itself
    least, winner = _least(xp, (p + xp.expand_dims(w.replaced * seen, axis=1)) / clock[:, :classes, :], x_t)
    here = (1 - w.excess) * p_itself + w.replaced * seen
    here = xp.full_like(here, math.inf) if w.stays == math.inf else w.stays * here
    stays = xp.where(masked, w.stays_mask * total, here) / pick(xp, clock, x_t)
    return xp.where(stays <= least, x_t, winner)


def _least(xp: Any, values: Array, x_t: Array) -> tuple[Array, Array]:
    """Least value over classes, and the first class that has it as a token; argmin takes ten times as long as both."""
    least = xp.min(values, axis=1, keepdims=True)
    ranks, last = xp.astype(levels(xp, x_t, values.shape[1]), xp.int32), values.shape[1] - 1
    first = xp.min(xp.where(values == least, ranks, xp.full_like(ranks, last)), axis=1)
    return least[:, 0, :], xp.astype(first, x_t.dtype, copy=False)


class _RaceWeights(NamedTuple):
    """Of a step, relative to the weight that another class's p(x_0) has in the posterior."""

    excess: float
    """1 - q(x_cur | x_0 other) / q(x_cur | x_0 itself)."""
    replaced: float
    """Weight of the sum of p(x_0) / q(x_cur | x_0) in every class: replacement before ``nxt``."""
    stays: float
    """Factor of the class seen: it need not be replaced between ``nxt`` and ``cur``."""
    stays_mask: float
    """Weight of the sum in the mask, where that is seen."""


def _race_weights(step: TokenStep) -> _RaceWeights:
    (a, b, c), (a_nxt, b_nxt, c_nxt), (a_cur, b_cur, _) = (
        linear(part) for part in (step.one, step.nxt, step.cur)
    )
    return _RaceWeights(
        excess=a_cur / (a_cur + b_cur) if a_cur else 0.0,
        replaced=b_nxt / a_nxt,
        stays=(a + b) / b if b else math.inf,
        stays_mask=c_nxt / (c * a_nxt) if c else math.inf,
    )


class Mixture(NamedTuple):
    """The posterior as a mixture of three parts, of which only one looks at the model: weights of each token, (B, L)."""

    stays: Array
    """Of the token as it is, the mask included."""
    even: Array
    """Of a class drawn evenly from the K that are not the mask."""
    model: Array
    """Of a class drawn from p(x_0)."""


def mixture(log_p_x0: Array, x_t: Array, step: TokenStep) -> Mixture:
    """Weights of the three parts; together they are `q_posterior` exactly, and sum to one.

    With K classes but the mask, they are, where the mask is seen, c̄_nxt, c K b̄_nxt and c ā_nxt, over c̄_cur; elsewhere
    a b̄_nxt + g, K b b̄_nxt - g and b ā_nxt, over b̄_cur, with g = K b b̄_nxt ā_cur / (ā_cur + b̄_cur) p(x_0 = x_cur).
    So the model's share is known without the model.

    Parameters
    ----------
    log_p_x0, x_t, step
        As for `q_posterior`, with floor 0; the log-probabilities are normalised here.

    Examples
    --------
    >>> import numpy as np
    >>> from anystep.schedules.vq import MaskAndReplace
    >>> weights = mixture(np.log([[[0.3], [0.7]]]), np.asarray([[2]]), MaskAndReplace(3).step(9, 8))
    >>> [round(float(weight[0, 0]), 3) for weight in weights]
    [0.889, 0.0, 0.111]
    """
    log_p_x0, xp = working(log_p_x0, x_t)
    log_p_x0 = log_p_x0 - log_sum(xp, log_p_x0)
    masked = x_t == log_p_x0.shape[1]
    p_itself = xp.exp(pick(xp, log_p_x0, xp.where(masked, xp.zeros_like(x_t), x_t)))
    of_mask, seen, slope = _shares(step, log_p_x0.shape[1])
    zero = xp.zeros_like(p_itself)
    more = xp.where(masked, zero, slope * p_itself)
    stays, even, model = (
        xp.where(masked, zero + one, zero + other) for one, other in zip(of_mask, seen, strict=True)
    )
    return Mixture(stays + more, even - more, model)


_Shares = tuple[float, float, float]


def _shares(step: TokenStep, classes: int) -> tuple[_Shares, _Shares, float]:
    """Weights of the mixture where the mask is seen; elsewhere but for g; and g over p(x_0 = x_cur)."""
    (a, b, c), (a_nxt, b_nxt, c_nxt), (a_cur, b_cur, c_cur) = (
        linear(part) for part in (step.one, step.nxt, step.cur)
    )
    mask = (c_nxt / c_cur, c * classes * b_nxt / c_cur, c * a_nxt / c_cur) if c_cur else (1.0, 0.0, 0.0)
    if not b_cur:  # nothing is ever replaced: what is seen was there
        return mask, (1.0, 0.0, 0.0), 0.0
    even = classes * b * b_nxt / b_cur
    return mask, (a * b_nxt / b_cur, even, b * a_nxt / b_cur), even * a_cur / (a_cur + b_cur)


def sample_sparse(
    log_p_x0: Array, x_t: Array, step: TokenStep | None, uniform: Array, *, dense: bool | None = None
) -> Array:
    """Classes drawn from `q_posterior` by its `mixture`: of the model's output only the columns that change are read.

    The draws are other than `gumbel_max`'s, their distribution is the same.

    Parameters
    ----------
    log_p_x0, x_t
        As for `q_posterior`; the log-probabilities need not be normalised.
    step
        The step, or None for one that ends at the clean sample: then every column is read.
    uniform
        Uniform numbers in [0, 1), shape (B, 2, L).
    dense
        Whether to read every column, as shapes known beforehand require. None: only where the library has no shapes
        that depend on data, as JAX, or the array no data, as a meta tensor. Else the number of columns that change is read
        from the device.

    Returns
    -------
    Array
        Tokens at the step's ``nxt``, shape (B, L), dtype of ``x_t``.
    """
    log_p_x0, xp = working(log_p_x0, x_t)
    first, second = (xp.astype(uniform[:, i, :], log_p_x0.dtype, copy=False) for i in (0, 1))
    if step is None:
        return xp.astype(_inverse(xp, _relative(xp, log_p_x0), second), x_t.dtype, copy=False)
    if dense is None:
        static = not xp.__array_namespace_info__().capabilities()["data-dependent shapes"]
        dense = static or str(place(x_t)) == "meta"
    shares, classes = _shares(step, log_p_x0.shape[1]), log_p_x0.shape[1]
    if dense:
        return _draw_parts(xp, log_p_x0, x_t, shares, first, second)
    (stays_mask, *_), (stays, *_), _ = shares
    sure = xp.where(x_t == classes, xp.full_like(first, stays_mask), xp.full_like(first, stays))
    changes = xp.reshape(first >= sure, (-1,))
    chosen = xp.nonzero(changes)[0]
    if not chosen.shape[0]:
        return x_t
    columns = _columns(xp, log_p_x0, chosen)
    flat = (xp.expand_dims(xp.take(xp.reshape(part, (-1,)), chosen), axis=1) for part in (x_t, first, second))
    tokens, first, second = flat
    drawn = _draw_parts(xp, columns, tokens, shares, first, second)
    # The n-th token that changes takes the n-th that was drawn.
    order = xp.clip(xp.cumulative_sum(xp.astype(changes, chosen.dtype)) - 1, min=0)
    spread = xp.reshape(xp.take(xp.reshape(drawn, (-1,)), order), x_t.shape)
    return xp.where(xp.reshape(changes, x_t.shape), spread, x_t)


def _draw_parts(
    xp: Any, log_p: Array, x_t: Array, shares: tuple[_Shares, _Shares, float], first: Array, second: Array
) -> Array:
    """Tokens of the mixture: one uniform number picks the part, the other the class in it."""
    classes = log_p.shape[1]
    of_mask, seen, slope = shares
    masked = x_t == classes
    zero, p = xp.zeros_like(first), _relative(xp, log_p)
    stays = xp.where(masked, zero + of_mask[0], zero + seen[0])
    even = xp.where(masked, zero + (1 - of_mask[2]), zero + (1 - seen[2]))
    if slope:
        p_itself = pick(xp, p, xp.where(masked, xp.zeros_like(x_t), x_t)) / xp.sum(p, axis=1)
        stays = xp.where(masked, stays, stays + slope * p_itself)
    evenly = xp.astype(xp.clip(xp.floor(second * classes), max=classes - 1), x_t.dtype, copy=False)
    modelled = xp.astype(_inverse(xp, p, second), x_t.dtype, copy=False)
    return xp.where(first < stays, x_t, xp.where(first < even, evenly, modelled))


def _columns(xp: Any, log_p: Array, chosen: Array) -> Array:
    """The columns of tokens given by their number in (B, L), shape (n, K, 1); nothing else is read."""
    batch, classes, length = log_p.shape
    if batch == 1:  # half the time: rows are read one after the other
        rows = xp.take(xp.reshape(log_p, (classes, length)), chosen, axis=1)
        return xp.reshape(xp.reshape(xp.permute_dims(rows, (1, 0)), (-1,)), (-1, classes, 1))
    start = (chosen // length) * (classes * length) + chosen % length
    rows = xp.arange(classes, dtype=chosen.dtype, device=place(chosen)) * length
    where = xp.reshape(xp.expand_dims(start, axis=1) + xp.expand_dims(rows, axis=0), (-1,))
    return xp.reshape(xp.take(xp.reshape(log_p, (-1,)), where), (-1, classes, 1))


def _relative(xp: Any, log_p: Array) -> Array:
    """Probabilities as multiples of the largest."""
    return xp.exp(log_p - xp.max(log_p, axis=1, keepdims=True))


def _inverse(xp: Any, p: Array, uniform: Array) -> Array:
    """Classes by the inverse of the cumulative distribution, from one uniform number each; shape (B, L)."""
    wide = xp.__array_namespace_info__().dtypes(device=place(p), kind="real floating").get("float64", p.dtype)
    sums = xp.cumulative_sum(p, axis=1, dtype=wide)
    # Strictly below the total, so that some sum exceeds it, and never one of a class without probability.
    share = xp.clip(xp.astype(xp.expand_dims(uniform, axis=1), wide), max=1 - float(xp.finfo(wide).eps))
    return xp.argmax(xp.astype(sums > share * sums[:, -1:, :], xp.int32), axis=1)
