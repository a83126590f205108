"""Shifts toward noise, as flow-matching models of high resolution use them: Esser et al. 2024,
https://arxiv.org/abs/2403.03206.

A shift s multiplies the noise-to-signal ratio: with u = sigma_t of rectified flow, u' = s u / (1 + (s - 1) u)
(equation 23) is u' / (1 - u') = s u / (1 - u). So it applies to any schedule and any spacing.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anystep._array import Float64
from anystep._checks import number
from anystep.levels import Level
from anystep.schedules import Schedule
from anystep.spacings._base import Spacing

__all__ = ["Shifted", "dynamic_shift", "shift_flow", "stretch_to_terminal"]


def shift_flow(sigma: Any, shift: float, power: float = 1.0) -> Any:
    """U' = s u / (1 + (s - 1) u) of flow sigmas in [0, 1]; 1 leaves them.

    With a power p, the noise-to-signal ratio is raised to it before it is multiplied: u' / (1 - u') = s (u / (1 - u))^p.

    Examples
    --------
    >>> shift_flow(0.5, 3.0), shift_flow(0.75, 1.0, power=2.0)
    (0.75, 0.9)
    """
    if not 1e-9 <= shift <= 1e9:  # beyond, 1 + (s - 1) u loses what it is made of
        raise ValueError(
            f"shift={shift}: expected a factor > 0, in [1e-9, 1e9]; 1 leaves the levels as they are."
        )
    if power != 1:
        noise = shift * sigma**power
        return noise / (noise + (1 - sigma) ** power)
    return shift * sigma / (1 + (shift - 1) * sigma)


def dynamic_shift(mu: float, kind: Literal["exponential", "linear"] = "exponential") -> float:
    """The factor that a resolution-dependent mu stands for: e^mu, or mu itself.

    Examples
    --------
    >>> dynamic_shift(0.0), dynamic_shift(2.0, "linear")
    (1.0, 2.0)
    """
    if kind not in ("exponential", "linear"):
        raise ValueError(f"kind={kind!r}: expected 'exponential' or 'linear'.")
    mu = number("mu", mu)
    with np.errstate(over="ignore"):
        return float(np.exp(mu)) if kind == "exponential" else mu


def stretch_to_terminal(sigmas: Float64, terminal: float) -> Float64:
    """Flow sigmas with 1 - sigma scaled so that the last becomes ``terminal``; no published source.

    Examples
    --------
    >>> stretch_to_terminal(np.asarray([1.0, 0.5]), 0.2)
    array([1. , 0.2])
    """
    if not sigmas[-1] < 1:
        raise ValueError(
            f"shift_terminal={terminal}: the last level is pure noise and cannot be stretched to it; use more steps."
        )
    if not 0 <= terminal < 1:
        raise ValueError(
            f"shift_terminal={terminal} is outside [0, 1): it is the last flow sigma at which the model is called."
        )
    rest = 1 - sigmas
    return 1 - rest / (rest[-1] / (1 - terminal))


@dataclass(frozen=True)
class Shifted(Spacing):
    """Another spacing with every karras_sigma multiplied.

    Parameters
    ----------
    spacing
        The spacing to shift.
    shift
        Factor > 0; above 1 spends more steps on noisy levels. See `dynamic_shift` for one that follows the
        resolution.
    terminal
        Last flow sigma, in (0, 1), to stretch the levels to; None leaves them.
    """

    spacing: Spacing
    shift: float = 1.0
    terminal: float | None = None

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels of the other spacing, moved."""
        ratio = self.spacing.points(schedule, steps).karras_sigma
        with np.errstate(divide="ignore", invalid="ignore"):
            flow = shift_flow(np.where(np.isinf(ratio), 1.0, ratio / (1 + ratio)), self.shift)
            if self.terminal is not None:
                flow = stretch_to_terminal(flow, self.terminal)
            moved = flow / (1 - flow)
        return schedule.at(np.minimum(moved, schedule.sigma_max))
