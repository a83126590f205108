"""Reverse steps of VQ-diffusion on arrays of classes: the posterior in logarithms, and two ways to draw from it.

A continuous step is linear in its arrays and goes through `anystep.update`; a token step is a distribution over classes.
These functions are array-API code: the arrays are of any one library, nothing is read back from a device (but see
`sample_sparse`), and all but `sample_sparse` with ``dense=False`` can be traced.

Shapes: tokens (B, L), any integer dtype, with classes 0 .. K, of which K is the mask; log-probabilities of the clean
token (B, K, L), as the model returns them; of the previous token (B, K + 1, L). Half precision is computed in float32.

References: Gu et al., Vector Quantized Diffusion Model for Text-to-Image Synthesis, 2021,
https://arxiv.org/abs/2111.14822, equations 5, 7, 8 and 11.
"""

import math

from anystep._array import Array, kind, namespace, place
from anystep._token_arrays import TINY, beside, levels, linear, log, log_add, log_sum, wide, working
from anystep._token_draws import Mixture, mixture, sample_race, sample_sparse
from anystep.schedules.vq import TokenStep, Transition

__all__ = [
    "Mixture",
    "add_token_noise",
    "apply_transition",
    "gumbel_max",
    "log_one_hot",
    "log_transition_to",
    "mixture",
    "q_posterior",
    "sample_race",
    "sample_sparse",
]


def log_one_hot(x: Array, classes: int, like: Array, floor: float = 0.0) -> Array:
    """Logarithm of one-hot vectors, 0 or log(floor), shape (B, classes, L), in the working dtype of ``like``.

    Examples
    --------
    >>> import numpy as np
    >>> log_one_hot(np.asarray([[1]]), 3, np.zeros(1))[0, :, 0]
    array([-inf,   0., -inf])
    """
    found = kind(like, "like")
    xp = found.xp
    hit = xp.expand_dims(x, axis=1) == levels(xp, x, classes)
    zero = xp.zeros(hit.shape, dtype=found.work, device=place(x))
    return xp.where(hit, zero, zero + log(floor))


def log_transition_to(x_t: Array, log_hot: Array, transition: Transition, *, cumulative: bool) -> Array:
    """Logarithm of the probability that each earlier class became the one seen: a column of the transition matrix.

    Parameters
    ----------
    x_t
        Tokens seen, shape (B, L).
    log_hot
        `log_one_hot` of them, shape (B, K + 1, L).
    transition
        Which one; see `MaskAndReplace.transition`.
    cumulative
        Whether it begins at a clean token, which is never the mask.

    Returns
    -------
    Array
        Shape (B, K, L) if cumulative, else (B, K + 1, L), the mask's row last.

    References
    ----------
    Equation 7; cumulative, equation 8.
    """
    xp, log_hot = namespace(x_t, log_hot), wide(log_hot)
    log_a, log_b, log_c = beside(transition, log_hot)
    mask = log_hot.shape[1] - 1
    rows = log_add(xp, log_hot[:, :mask, :] + log_a, log_b)
    masked = xp.expand_dims(x_t == mask, axis=1)
    rows = xp.where(masked, xp.zeros_like(rows) + log_c, rows)
    return rows if cumulative else xp.concat([rows, log_hot[:, mask:, :]], axis=1)


def apply_transition(log_q: Array, transition: Transition) -> Array:
    """Logarithm of the distribution after a transition, shape (B, K + 1, L), from one over clean classes, (B, K, L)."""
    log_q = wide(log_q)
    xp, (log_a, log_b, log_c) = namespace(log_q), beside(transition, log_q)
    last = xp.zeros_like(log_q[:, :1, :]) + log_c
    return xp.concat([log_add(xp, log_q + log_a, log_b), last], axis=1)


def q_posterior(log_p_x0: Array, x_t: Array, step: TokenStep, *, floor: float = 0.0) -> Array:
    """Logarithm of p(x_nxt | x_cur) = Σ q(x_cur | x_nxt) q(x_nxt | x_0) p(x_0) / q(x_cur | x_0), summed over x_0.

    Parameters
    ----------
    log_p_x0
        Log-probabilities of the clean token, shape (B, K, L); the sum over classes is carried through.
    x_t
        Tokens at the step's ``cur``, shape (B, L).
    step
        See `MaskAndReplace.step`; any two timesteps.
    floor
        Probability given to a class that is none of the one-hot vector's. 0 is exact; diffusers has 1e-30.

    Returns
    -------
    Array
        Shape (B, K + 1, L), in the working dtype of ``log_p_x0``.

    References
    ----------
    Equation 11, by equation 5; steps that skip timesteps are the paper's fast inference strategy. A class x_0 from
    which x_cur cannot have come counts for nothing.

    Examples
    --------
    From all masks a step of the last transition's length leaves a mask with probability c̄_nxt / c̄_cur.

    >>> import numpy as np
    >>> from anystep.schedules.vq import MaskAndReplace
    >>> process = MaskAndReplace(3)
    >>> step = process.step(99, 98)
    >>> posterior = np.exp(q_posterior(np.log([[[0.3], [0.7]]]), np.asarray([[2]]), step))
    >>> ratio = np.exp(step.nxt.log_c - step.cur.log_c)
    >>> bool(np.isclose(posterior[0, 2, 0], ratio)), bool(np.isclose(posterior.sum(), 1))
    (True, True)
    """
    log_p_x0, xp = working(log_p_x0, x_t)
    log_hot = log_one_hot(x_t, log_p_x0.shape[1] + 1, log_p_x0, floor)
    seen = log_transition_to(x_t, log_hot, step.cur, cumulative=True)
    possible = seen > -math.inf
    ratio = xp.where(
        possible, log_p_x0 - xp.where(possible, seen, xp.zeros_like(seen)), xp.zeros_like(seen) - math.inf
    )
    total = log_sum(xp, ratio)
    last = log_transition_to(x_t, log_hot, step.one, cumulative=False)
    return apply_transition(ratio - total, step.nxt) + last + total


def gumbel_max(log_p: Array, uniform: Array) -> Array:
    """Classes drawn from log-probabilities (B, C, L), normalised or not: argmax of log p + Gumbel noise; shape (B, L).

    Parameters
    ----------
    log_p
        Log-probabilities.
    uniform
        Uniform numbers in [0, 1), shape of ``log_p``.
    """
    xp, log_p = namespace(log_p, uniform), wide(log_p)
    noise = -xp.log(-xp.log(uniform + TINY) + TINY)
    return xp.argmax(xp.astype(noise, log_p.dtype, copy=False) + log_p, axis=1)


def add_token_noise(x0: Array, transition: Transition, uniform: Array, classes: int) -> Array:
    """Tokens of q(x_t | x_0).

    Parameters
    ----------
    x0
        Clean tokens, shape (B, L).
    transition
        From the clean sample to t; see `MaskAndReplace.transition`.
    uniform
        Uniform numbers in [0, 1), shape (B, 2, L).
    classes
        K + 1, with the mask.

    Returns
    -------
    Array
        Shape and dtype of ``x0``.

    References
    ----------
    Equation 8.
    """
    xp = namespace(x0, uniform)
    a, b, _ = linear(transition)
    first, second, mask = uniform[:, 0, :], uniform[:, 1, :], classes - 1
    other = xp.astype(xp.clip(xp.floor(second * mask), max=mask - 1), x0.dtype)
    taken = xp.where(first < a + mask * b, other, xp.full_like(x0, mask))
    return xp.where(first < a, x0, taken)
