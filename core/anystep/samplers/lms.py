"""LMS: linear multistep of Adams and Bashforth in karras_sigma (K. Crowson's k-diffusion, 2022), any order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep._checks import integer
from anystep.levels import Levels, check_descending
from anystep.samplers._base import Sampler

__all__ = ["LMS", "lagrange_integrals", "lms_rows"]


@dataclass(frozen=True)
class LMS(Sampler):
    """x_nxt / alpha_nxt = x / alpha_cur + Σ_j c_j ε̂_j, where j = 0 is the present call and j > 0 earlier ones.

    c_j = ∫ ℓ_j(κ) dκ over the step, with ℓ_j the Lagrange polynomial that is 1 at call j's karras_sigma κ and
    0 at the others': the exact step if ε̂ is a polynomial in κ of degree below ``order_max``.

    Parameters
    ----------
    order_max
        Number of calls that a step uses, >= 1, as soon as there are so many: 1 is `Euler`, 4 is usual.

    Raises
    ------
    ValueError
        If ``order_max`` is not such an integer, or levels do not descend.

    Notes
    -----
    The formula has order ``order_max``; that of a run is at most 2, because its first step has order 1. Pure
    noise (alpha_t = 0) has no κ, so the call there counts as no earlier one, and its own step is `DDIM`'s.

    References
    ----------
    E. Hairer, S. P. Nørsett, G. Wanner. Solving Ordinary Differential Equations I, 1993, section III.5
    (explicit Adams methods with variable step size). As a sampler of diffusion models: no published source;
    ``sample_lms`` of k-diffusion.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [4.0, 2.0, 0.0])
    >>> LMS(2).plan(levels, "epsilon").folded[1, 0].tolist()  # even steps: x - 2 (3/2 ε - 1/2 ε of before)
    [1.0, -3.0, 0.0, 1.0]
    """

    order_max: int = 4
    bounds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("order_max", self.order_max)

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the formula; see the notes."""
        return self.order_max

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, ε̂ of 1 .. order_max - 1 calls before)."""
        return lms_rows(levels, self.order_max, self.order_max, self.order_max - 1)


def lms_rows(levels: Levels, nodes: int, used: int, kept: int) -> Float64:
    """Rows whose c_j are made of up to ``nodes`` calls, of which the ``used`` latest are summed and ``kept`` carried on."""
    cur, nxt, steps = levels.cur.karras_sigma, levels.nxt.karras_sigma, levels.steps
    check_descending("sigmas", np.append(cur, nxt[-1]))
    pure = int(np.isinf(cur[0]))
    rows = np.zeros((steps, 1 + kept, 3 + kept))
    rows[:, 0, 2] = levels.nxt.alpha_t
    rows[:pure, 0, 1] = levels.nxt.sigma_t[:pure]
    for count in range(1, nodes + 1):
        first = pure + count - 1
        i = np.arange(first, steps if count == nodes else min(first + 1, steps))
        c = lagrange_integrals(cur[i[:, None] - np.arange(count)], nxt[i])[:, :used]
        c[:, 0] += cur[i]  # x / alpha = x̂₀ + κ ε̂
        columns = [1, *range(3, 2 + c.shape[1])]
        rows[i[:, None], 0, columns] = levels.nxt.alpha_t[i, None] * c
    for k in range(kept):
        rows[:, 1 + k, 1 if k == 0 else 2 + k] = 1.0
    return rows


def lagrange_integrals(nodes: Float64, end: Float64) -> Float64:
    """∫ of each Lagrange polynomial of the nodes, shape (..., n), from the first of them to ``end``, exact but for rounding.

    ``end`` lies on the far side of the first node from the others, so that no sum cancels.

    Examples
    --------
    >>> lagrange_integrals(np.asarray([0.0, -1.0, -2.0]), np.asarray(1.0)) * 12  # the weights of Adams and Bashforth
    array([ 23., -16.,   5.])
    """
    step = np.asarray(end - nodes[..., 0])[..., None]
    u = (nodes - nodes[..., :1]) / step  # the step is from 0 to 1, other nodes are below 0
    count = u.shape[-1]
    powers = np.zeros((count, *u.shape))  # of u, ascending, last axis
    powers[..., 0] = 1.0
    for j in range(count):
        for k in set(range(count)) - {j}:
            node = u[..., k, None]
            raised = np.concatenate([np.zeros_like(node), powers[j, ..., :-1]], axis=-1)
            powers[j] = (raised - node * powers[j]) / (u[..., j, None] - node)
    integrals = (powers / np.arange(1, count + 1)).sum(axis=-1)
    return np.moveaxis(integrals, 0, -1) * step
