"""iPNDM: pseudo linear multistep, begun with lower orders (Liu et al. 2022; Zhang, Chen 2022), second order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep._array import Float64
from anystep._checks import integer
from anystep.levels import Levels
from anystep.samplers._base import Sampler

__all__ = ["IPNDM", "ipndm_rows"]

_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Of Adams and Bashforth for even steps, the present call first."""


@dataclass(frozen=True)
class IPNDM(Sampler):
    """x_nxt = (alpha_nxt / alpha_cur) (x - sigma_cur e) + sigma_nxt e, with e = Σ_j w_j ε̂_j over this and earlier calls.

    The w_j are those of Adams and Bashforth for even steps, whatever the levels: (1), (3, -1) / 2, (23, -16,
    5) / 12, (55, -59, 37, -9) / 24.

    Parameters
    ----------
    order_max
        Number of calls that a step uses, in [1, 4], as soon as there are so many: 1 is `DDIM`, 4 is usual.

    Raises
    ------
    ValueError
        If ``order_max`` is out of range.

    Notes
    -----
    Of order 2 however many calls it uses, 1 for one: "pseudo" means that the weights are those of even steps
    while the step is exact for a constant ε̂. Steps must change smoothly: where long and short ones alternate
    the order is 1. Where they are even in karras_sigma it is `LMS`. `PNDM` begins with Runge-Kutta steps.

    References
    ----------
    Luping Liu, Yi Ren, Zhijie Lin, Zhou Zhao. Pseudo Numerical Methods for Diffusion Models on Manifolds,
    2022, https://arxiv.org/abs/2202.09778, equations 11 and 12. Qinsheng Zhang, Yongxin Chen. Fast
    Sampling of Diffusion Models with Exponential Integrator, 2022, https://arxiv.org/abs/2204.13902, where
    the start with lower orders is called iPNDM.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [4.0, 2.0, 0.0])
    >>> IPNDM(2).plan(levels, "epsilon").folded[1, 0].tolist()  # x - 2 (3/2 ε - 1/2 ε of before)
    [1.0, -3.0, 0.0, 1.0]
    """

    order_max: int = 4
    bounds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("order_max", self.order_max, 1, len(_WEIGHTS), "the longest published formula")

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2, or 1 with ``order_max`` = 1; see the notes."""
        return min(self.order_max, 2)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, ε̂ of 1 .. order_max - 1 calls before)."""
        return ipndm_rows(levels, self.order_max, self.order_max - 1)


def ipndm_rows(levels: Levels, used: int, kept: int) -> Float64:
    """Rows that use up to ``used`` calls and carry on ``kept`` noise estimates.

    With x = alpha_cur x̂₀ + sigma_cur ε̂ the step is alpha_nxt x̂₀ + sigma_nxt ε̂ + g (e - ε̂), g = sigma_nxt
    - alpha_nxt κ_cur, where κ may be infinite as long as e = ε̂.
    """
    rows = np.zeros((levels.steps, 1 + kept, 3 + kept))
    rows[:, 0, 1], rows[:, 0, 2] = levels.nxt.sigma_t, levels.nxt.alpha_t
    later = slice(1, None)
    g = np.zeros(levels.steps)
    g[later] = levels.nxt.sigma_t[later] - levels.nxt.alpha_t[later] * levels.cur.karras_sigma[later]
    for count in range(2, used + 1):
        present, *earlier = _WEIGHTS[count - 1]
        i = slice(count - 1, count if count < used else None)
        rows[i, 0, 1] += g[i] * (present - 1)
        rows[i, 0, 3 : 2 + count] = g[i, None] * np.asarray(earlier)
    for k in range(kept):
        rows[:, 1 + k, 1 if k == 0 else 2 + k] = 1.0
    return rows
