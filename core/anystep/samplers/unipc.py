"""UniPC: a predictor and a corrector of any order, with one model call a step (Zhao, Bai, Rao, Zhou, Lu 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import ClassVar, Literal

import numpy as np

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

    def orders(self, levels: Levels) -> list[int]:
        """Number of estimates in each step's predictor."""
        count = levels.steps
        left = [count - i if self.lower_order_final else count for i in range(count)]
        return [min(self.order_max, i + 1, left[i]) for i in range(count)]

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, c of the call before, estimates of 1 .. order_max calls before).

        Without a corrector, of (x, ε̂, x̂₀, estimates of 1 .. order_max - 1 calls before).
        """
        data = self.integrand == "x0"
        orders, steps = self.orders(levels), _Steps(levels, self.order_max + 1, data, self.variant)
        rows = np.zeros((levels.steps, 2 + self.order_max, 4 + self.order_max))
        present = X0 if data else NOISE
        for i, row in enumerate(rows):
            row[PAST - 2, present] = 1.0
            for k in range(1, self.order_max):
                row[PAST - 2 + k, PAST + k - 1] = 1.0
            corrected = row[CORRECTED - 2]
            if i and self.corrector and i - 1 not in self.skip_corrector and steps.correctable(i - 1):
                carry, (*past, new) = steps.corrector(i - 1, orders[i - 1])
                corrected[CORRECTED], corrected[present] = carry, new
                corrected[PAST : PAST + len(past)] = past
            else:
                corrected[X] = 1.0
            carry, (now, *past) = steps.predictor(i, orders[i])
            if data or not corrected[X]:
                row[0] = carry * corrected
                row[0, present] += now
            else:  # the same from c = x = alpha x̂₀ + sigma ε̂, but nothing cancels where alpha is small or 0
                row[0, X0], row[0, NOISE] = levels.nxt.alpha_t[i], levels.nxt.sigma_t[i] - sum(past)
            row[0, PAST : PAST + len(past)] += past
        if self.corrector:
            return rows
        return np.delete(np.delete(rows, [CORRECTED - 2, -1], axis=1), [CORRECTED, -1], axis=2)


class _Steps:
    """What predictor and corrector have in common: a step's length in λ, and integrals of powers over it.

    In u = (λ - λ_cur) / h, from 0 to 1, the integral of u^k is ``moments[i][k]``, and the sample is ``scale`` times the
    sum over the estimates, each with the integral of its Lagrange polynomial.
    """

    def __init__(self, levels: Levels, count: int, data: bool, variant: str) -> None:
        cur, nxt = levels.cur, levels.nxt
        ratio, end = np.asarray(cur.karras_sigma), np.asarray(nxt.karras_sigma)
        with np.errstate(divide="ignore", invalid="ignore"):
            h = np.log1p((ratio - end) / end)
            carry = nxt.sigma_t / cur.sigma_t if data else nxt.alpha_t / cur.alpha_t
            scale = nxt.alpha_t if data else -nxt.alpha_t * ratio
            b = h * (1.0 if data else np.exp(-h)) if variant == "bh1" else -np.expm1(-h)
        self._h, self._carry, self._scale = h.tolist(), carry.tolist(), scale.tolist()
        self._moments, self._b = _moments(h, count, data).tolist(), b.tolist()

    def correctable(self, i: int) -> bool:
        """Whether the correction of step i has a limit."""
        return bool(np.isfinite(self._scale[i] * self._b[i]))

    def predictor(self, i: int, order: int) -> tuple[float, list[float]]:
        """Factors on c and on the estimates of this call and the ones before."""
        return self._formula(i, self._nodes(i, order), halved=order == 2)

    def corrector(self, i: int, order: int) -> tuple[float, list[float]]:
        """Factors on c of the start, on the estimates of the start and before, and last on that of the end."""
        earlier = [np.nan if u == 1.0 else u for u in self._nodes(i, order)]
        return self._formula(i, [*earlier, 1.0], halved=order == 1)

    def _nodes(self, i: int, order: int) -> list[float]:
        """Where the estimates of the call that starts step i and of the ones before lie in u.

        NaN for one that does not count: infinitely far in a step of h = 0, or at the place of a later one, as all are in a
        step to sigma_t = 0, where h is infinite.
        """
        found, back, h = [0.0], 0.0, self._h[i]
        for k in range(1, order):
            back += self._h[i - k]
            u = -back / h if h else -np.inf
            found.append(u if np.isfinite(u) and u not in found else np.nan)
        return found

    def _formula(self, i: int, nodes: Sequence[float], halved: bool) -> tuple[float, list[float]]:
        moments, used = self._moments[i], [u for u in nodes if u == u]
        if halved:
            moments = [moments[0], self._b[i] / 2]
        weights = [0.0 if u != u else self._scale[i] * _integral(u, used, moments) for u in nodes]
        return self._carry[i], weights


def _integral(node: float, nodes: Sequence[float], moments: Sequence[float]) -> float:
    """The integral of the Lagrange polynomial that is 1 at the node and 0 at the others."""
    powers = [1.0]
    for other in nodes:
        if other != node:
            shifted, lower = [0.0, *powers], [*powers, 0.0]
            powers = [(a - other * b) / (node - other) for a, b in zip(shifted, lower, strict=True)]
    return sum(power * moment for power, moment in zip(powers, moments, strict=False))


def _moments(h: Float64, count: int, data: bool) -> Float64:
    """Integrals h ∫₀¹ e^((u - 1) h) u^k du, or for noise h ∫₀¹ e^(-u h) u^k du, for k < count, shape (..., count)."""
    found: list[Float64] = []
    for k in range(count):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if data:
                found.append(np.where(np.isinf(h), 1.0, factorial(k) * h * phi(k + 1, -h)))
            else:  # beyond h = 100, the integral to 1 is that to infinity
                whole = factorial(k) * h * np.exp(-h) * phi(k + 1, h)
                found.append(np.where(h > 100, factorial(k) / h**k, whole))
    return np.stack(found, axis=-1)
