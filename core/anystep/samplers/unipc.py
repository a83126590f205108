"""UniPC: a predictor and a corrector of any order, with one model call a step (Zhao, Bai, Rao, Zhou, Lu 2023)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from anystep._array import Float64
from anystep._checks import integer
from anystep.levels import Levels
from anystep.samplers._base import Sampler
from anystep.samplers._phi import phi

__all__ = ["UniPC"]

X, NOISE, X0, CORRECTED, PAST = range(5)
"""Columns; a memory's row is its column less 2."""


@dataclass(frozen=True)
class UniPC(Sampler):
    """x_nxt = (sigma_nxt / sigma_cur) c + alpha_nxt ∫ e^(λ - λ_nxt) D(λ) dλ over the step, with D a polynomial in λ through
    estimates x̂₀ and λ = log(alpha_t / sigma_t).

    The predictor (UniP) takes D through this and earlier estimates. The next call's estimate, made of the sample that was
    predicted, is then added to D for the corrector (UniC), which repeats the step: its result c is where the next step
    starts, and the model is not called again. With ``integrand="noise"`` it is
    x_nxt = (alpha_nxt / alpha_cur) c - sigma_nxt ∫ e^(λ_nxt - λ) D(λ) dλ, with D through ε̂.

    Parameters
    ----------
    order_max
        Number p of estimates in the predictor, >= 1, as soon as there are so many; the corrector has one more. 3 is usual
        for unconditional models, 2 with guidance.
    variant
        B(h) of the paper: ``"bh1"`` is h, ``"bh2"`` is e^h - 1 (1 - e^-h for x̂₀). It is used where D is through two
        estimates: a predictor of order 2, a corrector of order 1. There ∫ e^(λ - λ_nxt) (λ - λ_cur) / h dλ is taken for
        B(h) / 2.
    integrand
        ``"x0"`` or ``"noise"``: the estimate that D goes through.
    corrector
        False leaves c = x at all steps: UniP alone.
    skip_corrector
        Steps, counted from 0, that are not corrected.
    lower_order_final
        Whether the last steps have orders ..., 2, 1.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Notes
    -----
    The formulas have order p, and p + 1 with the corrector. A run has order 2, and 3 with the corrector, at most, because
    its first step has p = 1. At the ends of the process, where no polynomial in λ reaches: a step to sigma_t = 0 has
    p = 1, which is `DDIM`; an estimate at alpha_t = 0 is no part of a later D, and the step from there is corrected
    only for x̂₀ and bh2, where the correction has a limit. Of estimates at the same level, the last one counts, and a
    step between equal levels changes nothing. With a threshold, ε̂ is made of the bounded x̂₀.

    References
    ----------
    Wenliang Zhao, Lujia Bai, Yongming Rao, Jie Zhou, Jiwen Lu. UniPC: A Unified Predictor-Corrector Framework for Fast
    Sampling of Diffusion Models, 2023, https://arxiv.org/abs/2302.04867, algorithms 1 (UniC) and 2 (UniP), theorem 3.1 and
    corollary 3.2; for x̂₀, the appendix. B(h) cancels where the weights solve the paper's linear system, whose solution is
    these integrals; the authors' code solves it but for a single weight, which is 1/2.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [0.6, 0.8, 1.0], [0.8, 0.6, 0.0])
    >>> plan = UniPC().plan(levels, "sample")
    >>> plan.folded[0, 0].round(3).tolist()  # DDIM, of x and the model's output x̂₀: nothing is remembered yet
    [0.75, 0.35, 0.0, 0.0, 0.0, 0.0]
    >>> plan.folded[1, 1].round(3).tolist()  # the same step once more, with the estimates at both of its ends
    [0.0, 0.175, 0.0, 0.75, 0.175, 0.0]
    """

    order_max: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    integrand: Literal["x0", "noise"] = "x0"
    corrector: bool = True
    skip_corrector: Sequence[int] = ()
    lower_order_final: bool = True
    bounds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("order_max", self.order_max)
        for name, options in (("variant", ("bh1", "bh2")), ("integrand", ("x0", "noise"))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(options)}.")
        skipped = tuple(sorted({integer("skip_corrector", step, 0) for step in self.skip_corrector}))
        object.__setattr__(self, "skip_corrector", skipped)

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the formulas; see the notes."""
        return self.order_max + self.corrector

    def orders(self, levels: Levels) -> npt.NDArray[np.intp]:
        """Number of estimates in each step's predictor."""
        step = np.arange(levels.steps)
        left = levels.steps - step if self.lower_order_final else levels.steps
        return np.minimum(np.minimum(step + 1, left), self.order_max)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, c of the call before, estimates of 1 .. order_max calls before).

        Without a corrector, of (x, ε̂, x̂₀, estimates of 1 .. order_max - 1 calls before).
        """
        data, count = self.integrand == "x0", self.order_max
        rows = np.zeros((levels.steps, 2 + count, 4 + count))
        present = X0 if data else NOISE
        with np.errstate(all="ignore"):  # what has no limit is not used
            steps = _Steps(levels, count + 1, data, self.variant)
            (now, *past), (*earlier, new) = steps.weights(self.orders(levels))
            corrects = self._corrects(steps.correctable)[:, None]
            start, again = rows[:, CORRECTED - 2], np.zeros((levels.steps, 4 + count))
            start[:, X] = 1.0
            again[1:, CORRECTED], again[1:, present] = steps.carry[:-1], new[:-1]
            for k, weight in enumerate(earlier):
                again[1:, PAST + k] = weight[:-1]
            start[:] = np.where(corrects, again, start)
            moved = steps.carry[:, None] * start
            moved[:, present] += now
            if not data:
                # The same from c = x = alpha x̂₀ + sigma ε̂, but nothing cancels where alpha is small or 0.
                native = np.zeros_like(moved)
                native[:, X0], native[:, NOISE] = levels.nxt.alpha_t, levels.nxt.sigma_t - sum(past)
                moved = np.where(corrects, moved, native)
        for k, weight in enumerate(past):
            moved[:, PAST + k] += weight
            rows[:, PAST - 1 + k, PAST + k] = 1.0
        rows[:, 0] = moved
        rows[:, PAST - 2, present] = 1.0
        if self.corrector:
            return rows
        return np.delete(np.delete(rows, [CORRECTED - 2, -1], axis=1), [CORRECTED, -1], axis=2)

    def _corrects(self, correctable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Whether each call corrects the step that ended at it."""
        found = np.zeros_like(correctable)
        if self.corrector:
            found[1:] = correctable[:-1]
            found[[step + 1 for step in self.skip_corrector if step + 1 < len(found)]] = False
        return found


class _Steps:
    """What predictor and corrector have in common: a step's length in λ, and integrals of powers over it.

    In u = (λ - λ_cur) / h, from 0 to 1, the integral of u^k is ``moments[k]``, and the sample is ``scale`` times the
    sum over the estimates, each with the integral of its Lagrange polynomial. All of shape (..., N).
    """

    def __init__(self, levels: Levels, count: int, data: bool, variant: str) -> None:
        cur, nxt = levels.cur, levels.nxt
        ratio, end = np.asarray(cur.karras_sigma), np.asarray(nxt.karras_sigma)
        h = np.log1p((ratio - end) / end)
        self.carry: Float64 = nxt.sigma_t / cur.sigma_t if data else nxt.alpha_t / cur.alpha_t
        """Factor on c."""
        self._h, self._scale = h, nxt.alpha_t if data else -nxt.alpha_t * ratio
        self._b = h * (1.0 if data else np.exp(-h)) if variant == "bh1" else -np.expm1(-h)
        self._moments = _moments(h, count, data)
        self.correctable: npt.NDArray[np.bool_] = np.isfinite(self._scale * self._b)
        """Whether the correction of a step has a limit."""

    def weights(self, orders: npt.NDArray[np.intp]) -> tuple[list[Float64], list[Float64]]:
        """Factors on estimates: the predictor's on that of the call which starts a step and on the ones before; the
        corrector's on the same, and last on that of the step's end.
        """
        inverses = self._inverse_nodes(orders)
        at_end = [*np.where(inverses == 1.0, 0.0, inverses), np.ones_like(self._h)]
        return self._formula([*inverses], orders == 2), self._formula(at_end, orders == 1)

    def _inverse_nodes(self, orders: npt.NDArray[np.intp]) -> Float64:
        """1 / u of the estimates of the calls before the one that starts a step, whose own is at u = 0.

        0 for one that does not count: infinitely far in a step of h = 0, or at the place of a later one, as all are in a
        step to sigma_t = 0, where h is infinite.
        """
        found, back = np.zeros((len(self._moments) - 2, len(self._h))), np.zeros_like(self._h)
        for k in range(1, len(found) + 1):
            back[k:] += self._h[:-k]
            inverse = -self._h / back
            counts = (orders > k) & np.isfinite(inverse) & (found[: k - 1] != inverse).all(axis=0)
            found[k - 1] = np.where(counts, inverse, 0.0)
        return found

    def _formula(self, inverses: Sequence[Float64], halved: npt.NDArray[np.bool_]) -> list[Float64]:
        """``scale`` times the integral of the Lagrange polynomial that is 1 at each node and 0 at the others.

        With v = 1 / node and one more node at u = 0 it is u v_j Π (1 - u v_m) / (1 - v_m / v_j), and for that node
        Π (1 - u v_m): a node of v = 0, infinitely far, changes nothing.
        """
        first, second, *rest = self._moments
        moments = [first, np.where(halved & np.isfinite(self._b), self._b / 2, second), *rest]
        found = [self._scale * _multiplied(moments, inverses)]
        for j, own in enumerate(inverses):
            others = [*inverses[:j], *inverses[j + 1 :]]
            weight = self._scale * (own * _multiplied(moments[1:], others))
            for other in others:
                weight *= own / (own - other)
            found.append(np.where(own == 0, 0.0, weight))
        return found


def _multiplied(moments: Sequence[Float64], inverses: Sequence[Float64]) -> Float64:
    """The integral of Π (1 - u v), from the integrals of powers of u."""
    for v in inverses:
        moments = [low - v * high for low, high in itertools.pairwise(moments)]
    return moments[0]


def _moments(h: Float64, count: int, data: bool) -> Float64:
    """Integrals h ∫₀¹ e^((u - 1) h) u^k du, or for noise h ∫₀¹ e^(-u h) u^k du, for k < count, shape (count, ...)."""
    k = np.arange(count)[:, None]
    factorials = np.asarray([[float(factorial(n))] for n in range(count)])
    if data:
        return np.where(np.isinf(h), 1.0, factorials * h * phi(count, -h))
    # Beyond h = 100, the integral to 1 is that to infinity.
    return np.where(h > 100, factorials / h**k, factorials * h * np.exp(-h) * phi(count, h))
