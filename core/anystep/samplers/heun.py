"""Heun's method with churn (Karras et al. 2022), second order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from anystep._array import Float64
from anystep.levels import Level, Levels
from anystep.samplers._base import Sampler
from anystep.samplers.euler import Euler
from anystep.schedules import Schedule

__all__ = ["Heun"]

X, NOISE, X0, START, SLOPE, FRESH = range(6)
"""Columns; a memory's row is its column less 2."""


@dataclass(frozen=True)
class Heun(Sampler):
    """x_nxt = x + (sigma_nxt - sigma_cur) (ε̂ + ε̂') / 2, where alpha = 1.

    ε̂ = (x - x̂₀) / sigma_cur as in `Euler`, whose step gives x', and ε̂' is the same of x' at sigma_nxt: two model calls a step.
    In any coordinates: (alpha_nxt / alpha_cur) x + (sigma_nxt - alpha_nxt / alpha_cur sigma_cur) (ε̂ + ε̂') / 2.

    Parameters
    ----------
    s_churn, s_tmin, s_tmax, s_noise, schedule
        Noise added before a step, as for `Euler`; s_churn = 0 is the ODE.

    Raises
    ------
    ValueError
        As `Euler`.

    Notes
    -----
    A row is a model call, and N steps are 2 N - 1 calls: the last step, at whose end no model is called, is Euler's; so is a
    first one from pure noise (alpha_t = 0), which has no κ. Neither lowers the order. The memories are x at the start of the step
    and ε̂ there.

    References
    ----------
    Tero Karras, Miika Aittala, Timo Aila, Samuli Laine. Elucidating the Design Space of Diffusion-Based Generative Models, 2022,
    https://arxiv.org/abs/2206.00364, algorithm 2; without churn, algorithm 1 for sigma(t) = t.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [4.0, 2.0, 0.0])
    >>> plan = Heun().plan(levels, "epsilon")
    >>> plan.sigma.tolist(), plan.folded[1, 0].tolist()  # the correction: start - (ε of before + ε)
    ([4.0, 2.0, 2.0, 0.0], [0.0, -1.0, 0.0, 1.0, -1.0])
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = np.inf
    s_noise: float = 1.0
    schedule: Schedule | None = None
    order: ClassVar[int] = 2
    bounds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self._euler

    @property
    def _euler(self) -> Euler:
        """The method that is corrected, with its range checks."""
        return Euler(self.s_churn, self.s_tmin, self.s_tmax, self.s_noise, self.schedule)

    def calls(self, levels: Levels) -> Levels:
        """The level of each model call, and the level that x is at after it."""
        step, second = _order(levels)
        raised = self._euler.raised(levels)
        first, end = raised.cur, levels.nxt
        # A step's end is the next one's start before it is raised.
        following = np.concatenate([levels.scale[1:], levels.scale[-1:]])
        starts = np.array(np.broadcast_arrays(first.t, first.alpha_t, first.sigma_t, raised.scale))
        ends = np.array(np.broadcast_arrays(end.t, end.alpha_t, end.sigma_t, following))
        *cur, scale = np.where(second, ends[:, step], starts[:, step])
        return Levels(Level(*cur), end[step], scale)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, start, slope, z), a row for each model call."""
        euler = self._euler
        raised = euler.raised(levels)
        predicted = euler.rows(raised)[:, 0]
        cur, nxt = raised.cur, raised.nxt
        step, second = _order(levels)
        first, again = np.zeros((2, levels.steps, 3, predicted.shape[1] + 2))
        first[:, 0, :START] = predicted[:, :START]
        first[:, START - 2, X] = first[:, SLOPE - 2, NOISE] = 1.0
        with np.errstate(divide="ignore", invalid="ignore"):  # a step from pure noise has no second call
            carry = nxt.alpha_t / cur.alpha_t
            again[:, 0, START] = carry
            again[:, 0, NOISE] = again[:, 0, SLOPE] = (nxt.sigma_t - carry * cur.sigma_t) / 2
        again[:, START - 2, START] = again[:, SLOPE - 2, SLOPE] = 1.0
        rows = np.where(second[:, None, None], again[step], first[step])
        if predicted.shape[1] > START:  # noise that raises the next step is added where this one ends
            last = np.append(~second[1:], True)
            rows[last, 0, FRESH:] = predicted[step[last], START:]
        return rows


def _order(levels: Levels) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """The step of each model call, and whether it is the step's second."""
    corrected = np.asarray(levels.cur.alpha_t) > 0
    corrected[-1] = False
    step = np.arange(levels.steps).repeat(1 + corrected)
    second = np.zeros(len(step), dtype=bool)
    second[1:] = step[1:] == step[:-1]
    return step, second
