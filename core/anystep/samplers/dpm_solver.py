"""DPM-Solver and DPM-Solver++, multistep, for the ODE and the SDE (Lu, Zhou, Bao, Chen, Li, Zhu 2022), order 1 to 3."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from anystep._array import Float64
from anystep._checks import integer
from anystep.levels import Level, Levels
from anystep.samplers._base import Sampler
from anystep.samplers._phi import phi

__all__ = ["DPMSolver", "dpm_rows"]

X, NOISE, X0, FIRST_MEMORY = range(4)
"""Columns."""


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """The exact solution over a step, with the estimate's Taylor polynomial in λ = log(alpha_t / sigma_t) for the estimate.

    With D⁽ᵏ⁾ the derivatives of the polynomial through this and earlier estimates, h = λ_nxt - λ_cur and the functions
    φ₁ = (e^z - 1) / z, φ₂ = (φ₁ - 1) / z, φ₃ = (φ₂ - 1/2) / z:

    - ``integrand="x0"`` (DPM-Solver++):
      x_nxt = (sigma_nxt / sigma_cur) x + alpha_nxt Σ_k h^(k+1) φ_{k+1}(-h) D⁽ᵏ⁾;
    - ``integrand="noise"`` (DPM-Solver):
      x_nxt = (alpha_nxt / alpha_cur) x - sigma_nxt Σ_k h^(k+1) φ_{k+1}(h) D⁽ᵏ⁾;
    - stochastic, x0:
      (sigma_nxt / sigma_cur) e^-h x + 2 alpha_nxt Σ_k h^(k+1) φ_{k+1}(-2h) D⁽ᵏ⁾ + sigma_nxt √(1 - e^-2h) z;
    - stochastic, noise:
      (alpha_nxt / alpha_cur) x - 2 sigma_nxt Σ_k h^(k+1) φ_{k+1}(h) D⁽ᵏ⁾ + sigma_nxt √(e^2h - 1) z.

    Parameters
    ----------
    order_max
        Number of estimates that a step uses, in [1, 3], as soon as there are so many: 1 is `DDIM`, with eta = 1 where
        stochastic; 2 is the authors' 2M, usual with guidance; 3 is usual without.
    integrand
        ``"x0"`` or ``"noise"``: the estimate that is integrated.
    stochastic
        Whether to solve the reverse SDE instead of the probability-flow ODE.
    variant
        The term of D' in a step of two estimates: ``"midpoint"`` takes h² φ₁ / 2 for h² φ₂, ``"heun"`` is exact. The orders
        are the same.
    last_orders
        Largest numbers of estimates in the last steps, the very last last: (2, 1) is the authors' advice for fewer than 15
        steps.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Notes
    -----
    The formulas have order ``order_max``; that of a run is at most 2, because its first step has order 1. Where stochastic,
    that is the order of the mean drift; the variance has order 2 at most. At the ends of the process, where no polynomial
    in λ reaches: a step to sigma_t = 0 is the estimate, alpha_t x̂₀; the step from alpha_t = 0 is `DDIM`'s (stochastic:
    alpha_t x̂₀ + sigma_t z), and the estimate made there is no part of a later D. Of estimates at one level the latest
    counts, and a step between equal levels changes nothing; one that goes up is the ODE's. With a threshold, ε̂ is made of
    the bounded x̂₀.

    References
    ----------
    Cheng Lu, Yuhao Zhou, Fan Bao, Jianfei Chen, Chongxuan Li, Jun Zhu. DPM-Solver, 2022, https://arxiv.org/abs/2206.00927,
    proposition 3.1 and equation 3.6 (noise). The same. DPM-Solver++, 2022, https://arxiv.org/abs/2211.01095, proposition 4.1
    and equation 9 (x0), algorithm 2 (2M, midpoint), section 5 (SDE). The third-order term of the authors' multistep code
    is half of the one here, which makes it second-order.

    Examples
    --------
    >>> levels = Levels.chain([2, 1, 0], [0.6, 0.8, 1.0], [0.8, 0.6, 0.0])
    >>> DPMSolver().rows(levels)[:, 0].round(3).tolist()  # x, ε̂, x̂₀, x̂₀ of before; DDIM, then the estimate
    [[0.75, 0.0, 0.35, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """

    order_max: int = 2
    integrand: Literal["x0", "noise"] = "x0"
    stochastic: bool = False
    variant: Literal["midpoint", "heun"] = "midpoint"
    last_orders: tuple[int, ...] = ()
    bounds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("order_max", self.order_max, 1, 3, "the highest of the published formulas")
        if self.integrand not in ("x0", "noise"):
            raise ValueError(f"integrand={self.integrand!r}: expected 'x0' or 'noise'.")
        if self.variant not in ("midpoint", "heun"):
            raise ValueError(f"variant={self.variant!r}: expected 'midpoint' or 'heun'.")
        object.__setattr__(self, "last_orders", tuple(integer("last_orders", o) for o in self.last_orders))

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of the formula; see the notes."""
        return self.order_max

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, the integrand of 1 .. order_max - 1 calls before, z)."""
        return dpm_rows(levels, self, self.order_max - 1, self.order_max - 1)


def dpm_rows(
    levels: Levels,
    solver: DPMSolver,
    held: npt.ArrayLike,
    kept: int,
    third: Callable[[Float64, Float64, Float64], Float64] | None = None,
) -> Float64:
    """Rows that use up to ``held`` earlier estimates, each or all, and carry on ``kept``.

    ``third`` takes the factor of D″ of every row, alpha_nxt and h, and gives another.
    """
    h = _width(levels.cur, levels.nxt)
    inside = np.abs(h) < _LONG
    finite_h = np.where(inside, h, 0.0)
    # Noise is added on the way down only.
    noises = np.where(solver.stochastic & (h >= 0), 2.0, 1.0)
    near, far = (inverse * inside for inverse in _inverse_distances(levels, solver, held))
    slope, bend = _derivatives(near, far)
    lone = (near == 0) | (far == 0)
    first, second = _factors(levels.nxt, solver, finite_h, noises, lone)
    if third is not None:
        second = third(second, levels.nxt.alpha_t, finite_h)
    rows = np.zeros((levels.steps, 1 + kept, 3 + kept + solver.stochastic))
    constant, std = _first_order(levels, solver.integrand, h, noises)
    rows[:, 0, X], rows[:, 0, NOISE], rows[:, 0, X0] = constant
    if solver.stochastic:
        rows[:, 0, -1] = np.where(noises == 2, std, 0.0)
    columns = [X0 if solver.integrand == "x0" else NOISE, *range(FIRST_MEMORY, FIRST_MEMORY + kept)]
    for column, tilt, curve in zip(columns, slope, bend, strict=False):
        rows[:, 0, column] += first * tilt + second * curve
    for k, column in enumerate(columns[:kept]):
        rows[:, 1 + k, column] = 1.0
    return rows


_LONG = 700.0
"""h whose e^h is near the end of float64: such a step is as one to or from an end of the process."""


def _width(start: Level, end: Level) -> Float64:
    """λ_end - λ_start, from one ratio: a difference would cancel, and equal levels must be 0 apart."""
    with np.errstate(divide="ignore", invalid="ignore"):
        width = -np.log((start.alpha_t * end.sigma_t) / (end.alpha_t * start.sigma_t))
    return np.where(np.isnan(width), 0.0, width)  # from pure noise to pure noise


def _inverse_distances(levels: Levels, solver: DPMSolver, held: npt.ArrayLike) -> list[Float64]:
    """1 / distance in λ to the two levels before; 0, infinitely far, where a row may not use the estimate made there.

    Of estimates at one level the latest counts.
    """
    orders = np.minimum(np.minimum(held, np.arange(levels.steps)) + 1, solver.order_max)
    for back, order in enumerate(solver.last_orders[::-1][: levels.steps], start=1):
        orders[-back] = min(orders[-back], order)
    near, far = np.zeros((2, levels.steps))
    for j, found in enumerate((near, far)[: min(solver.order_max, levels.steps) - 1], start=1):
        width = _width(levels.cur[: levels.steps - j], levels.cur[j:])
        with np.errstate(divide="ignore"):
            found[j:] = np.where((orders[j:] > j) & (width != 0), 1 / width, 0.0)
    return [near, np.where(far == near, 0.0, far)]


def _derivatives(near: Float64, far: Float64) -> tuple[list[Float64], list[Float64]]:
    """Weights of D' and D″ on this estimate and the two before, from the inverse distances to those.

    An estimate infinitely far away has no weight.
    """
    apart = np.where(near == far, 1.0, near - far)
    slope = [near + far, -(near**2) / apart, far**2 / apart]
    return slope, [2 * near * far, 2 * far * slope[1], 2 * near * slope[2]]


def _factors(
    nxt: Level, solver: DPMSolver, h: Float64, noises: Float64, lone: Any
) -> tuple[Float64, Float64]:
    """Factors of D' and D″ in the step."""
    noise = solver.integrand == "noise"
    z = h if noise else -noises * h
    size = noises * (-nxt.sigma_t if noise else nxt.alpha_t)
    midpoint = solver.variant == "midpoint"
    if lone.all():  # no D″
        return size * h**2 * (phi(1, z)[0] / 2 if midpoint else phi(2, z)[1]), np.zeros_like(h)
    phi_1, phi_2, phi_3 = phi(3, z)
    first = size * h**2 * np.where(lone & midpoint, phi_1 / 2, phi_2)
    return first, size * h**3 * phi_3


def _first_order(
    levels: Levels, integrand: str, h: Float64, noises: Float64
) -> tuple[Sequence[Any], Float64]:
    """Coefficients of (x, ε̂, x̂₀) for a constant estimate, and the standard deviation of the noise."""
    cur, nxt = levels.cur, levels.nxt
    keep = nxt.sigma_t / cur.sigma_t * np.where(noises > 1, np.exp(-h), 1.0)
    grown = np.sqrt(np.maximum(-np.expm1(-2 * h), 0.0))
    data = keep, 0.0, -nxt.alpha_t * np.expm1(-noises * h)
    std = nxt.sigma_t * grown
    if integrand == "x0":
        return data, std
    # As alpha_nxt x̂₀ + sigma_nxt ε̂, which has a limit where e^h = alpha_nxt sigma_cur / (sigma_nxt alpha_cur) has none.
    with np.errstate(divide="ignore"):
        grew = nxt.alpha_t * cur.karras_sigma
    inside = np.isfinite(grew) & (nxt.sigma_t > 0)
    grew = np.where(inside, grew, nxt.sigma_t)
    ode = 0.0, nxt.sigma_t - (noises - 1) * (grew - nxt.sigma_t), nxt.alpha_t
    native = ((noises == 1) | inside) & (h != 0)
    columns = [np.where(native, one, other) for one, other in zip(ode, data, strict=True)]
    return columns, np.where(native, grew * grown, std)
