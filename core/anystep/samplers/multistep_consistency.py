"""Multistep consistency sampling: estimate the clean sample, then noise it anew (Song, Dhariwal, Chen, Sutskever 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep.levels import Levels
from anystep.samplers._base import Sampler, one_step_rows

__all__ = ["MultistepConsistency"]


@dataclass(frozen=True)
class MultistepConsistency(Sampler):
    """x_nxt = alpha_nxt x̂₀ + sigma_nxt z.

    On rectified flow, with a velocity v: (1 - sigma_nxt) (x - sigma_cur v) + sigma_nxt z.

    Notes
    -----
    Exact, in any number of steps, for a consistency model, whose x̂₀ is the end of the path through x; so are the "ping-pong"
    samplers of models that were distilled to few steps. For an ordinary model, whose x̂₀ is the mean of what x may have come
    from, a step forgets x but for that mean, and more steps do not come nearer to the data's distribution: ``order`` is 0.
    `EulerAncestral` is stochastic and converges.

    References
    ----------
    Yang Song, Prafulla Dhariwal, Mark Chen, Ilya Sutskever. Consistency Models, 2023, https://arxiv.org/abs/2303.01469,
    algorithm 1. There alpha = 1, and a last level sigma_min > 0 is taken for the clean one.

    Examples
    --------
    >>> from anystep.levels import Levels
    >>> levels = Levels.chain([2, 1, 0], [0.25, 0.75, 1.0], [0.75, 0.25, 0.0])
    >>> MultistepConsistency().rows(levels).tolist()
    [[[0.0, 0.0, 0.75, 0.25]], [[0.0, 0.0, 1.0, 0.0]]]
    """

    order: ClassVar[int] = 0

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, z)."""
        zero = np.zeros(levels.steps)
        return one_step_rows(zero, zero, np.asarray(levels.nxt.alpha_t), np.asarray(levels.nxt.sigma_t))
