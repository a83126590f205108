"""Continuous-time processes. The model is told ``t = time_scale * u`` with u in [u_min, 1]."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from anystep._array import namespace
from anystep.levels import Level
from anystep.schedules._base import Schedule

__all__ = ["VE", "VP", "Continuous", "Cosine", "Crash", "EDMSchedule", "RectifiedFlow"]


@dataclass(frozen=True)
class Continuous(Schedule):
    """Abstract: u in [u_min, 1], noisier with u.

    Parameters
    ----------
    time_scale
        What the model is told at u = 1, > 0.
    u_min
        Least noisy u at which a model may be called, in (0, 1).
    """

    time_scale: float = 1.0
    u_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.u_min < 1:
            raise ValueError(
                f"u_min={self.u_min} is outside (0, 1): 1e-3 is usual; the process has no noise at 0."
            )
        if not 0 < self.time_scale < np.inf:
            raise ValueError(
                f"time_scale={self.time_scale}: expected a number > 0, what the model is told at pure noise."
            )

    @property
    def t_range(self) -> tuple[float, float]:
        """(time_scale u_min, time_scale)."""
        return self.time_scale * self.u_min, self.time_scale

    def timestep(self, karras_sigma: Any) -> Any:
        """Inverse in closed form, clamped."""
        with np.errstate(divide="ignore"):
            u = self._u_of(np.asarray(karras_sigma, dtype=np.float64))
        return self.time_scale * np.clip(u, self.u_min, 1.0)

    def warp(self, progress: Any) -> Any:
        """The t at even progress in [0, 1] through the process; the model is never called below ``u_min``."""
        return self.time_scale * np.maximum(np.asarray(progress, dtype=np.float64), self.u_min)

    @abstractmethod
    def _u_of(self, ratio: Any) -> Any:
        """The u of a noise-to-signal ratio."""


@dataclass(frozen=True)
class VP(Continuous):
    """Variance-preserving SDE: Song et al. 2021, https://arxiv.org/abs/2011.13456, equations 32 and 33.

    alpha = exp(-u² (beta_max - beta_min) / 4 - u beta_min / 2), sigma = √(1 - alpha²).

    Parameters
    ----------
    beta_min, beta_max
        Rate of noising at u = 0 and u = 1.

    Examples
    --------
    >>> round(float(VP().timestep(VP().level(0.25).karras_sigma)), 12)
    0.25
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def level(self, t: Any) -> Level:
        """Level at t."""
        t = self._checked(t)
        xp, u = namespace(t), t / self.time_scale
        log_alpha = -0.25 * u * u * (self.beta_max - self.beta_min) - 0.5 * u * self.beta_min
        return Level(t, xp.exp(log_alpha), xp.sqrt(-xp.expm1(2 * log_alpha)))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta_min < self.beta_max < np.inf:
            raise ValueError(
                f"beta_min={self.beta_min}, beta_max={self.beta_max}: expected 0 <= beta_min < beta_max; 0.1 and 20 are usual."
            )

    def rates(self, t: Any) -> tuple[Any, Any]:
        """(f, g²) of the process dx = f x dt + g dw at t: -β / 2 and β."""
        u = self._checked(t) / self.time_scale
        beta = (self.beta_min + u * (self.beta_max - self.beta_min)) / self.time_scale
        return -0.5 * beta, beta

    def _u_of(self, ratio: Any) -> Any:
        # -2 log alpha = log(1 + ratio²) = u² d / 2 + u beta_min, with d = beta_max - beta_min
        total, d = np.log1p(np.minimum(ratio, self.sigma_max) ** 2), self.beta_max - self.beta_min
        below = self.beta_min + np.sqrt(self.beta_min**2 + 2 * d * total)
        u = np.divide(2 * total, below, out=np.zeros_like(total), where=below > 0)
        return np.where(ratio >= self.sigma_max, 1.0, u)


@dataclass(frozen=True)
class VE(Continuous):
    """Variance-exploding SDE: Song et al. 2021, https://arxiv.org/abs/2011.13456, equation 30: sigma = min
    (max / min)^u.

    Parameters
    ----------
    smallest, largest
        sigma at u = 0 and at u = 1, in the unit of the data.
    """

    smallest: float = 0.01
    largest: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ends(self.smallest, self.largest)

    def level(self, t: Any) -> Level:
        """Level at t."""
        t = self._checked(t)
        xp = namespace(t)
        sigma_t = self.smallest * xp.exp(t / self.time_scale * float(np.log(self.largest / self.smallest)))
        return Level(t, xp.ones_like(sigma_t), sigma_t)

    def rates(self, t: Any) -> tuple[Any, Any]:
        """(f, g²) of the process dx = f x dt + g dw at t: 0 and the growth of sigma²."""
        level = self.level(t)
        growth = 2 * float(np.log(self.largest / self.smallest)) / self.time_scale
        return 0.0 * level.sigma_t, growth * level.sigma_t * level.sigma_t

    def _u_of(self, ratio: Any) -> Any:
        return np.log(ratio / self.smallest) / np.log(self.largest / self.smallest)

    def _level_of(self, ratio: Any, t: Any) -> Level:
        return Level(t, np.ones_like(ratio), ratio)


@dataclass(frozen=True)
class EDMSchedule(Schedule):
    """alpha = 1 and sigma = t: Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1, last column.

    Parameters
    ----------
    smallest, largest
        Range of sigma, 0.002 and 80 in the paper.
    """

    smallest: float = 0.002
    largest: float = 80.0

    def __post_init__(self) -> None:
        _check_ends(self.smallest, self.largest)

    @property
    def t_range(self) -> tuple[float, float]:
        """(smallest, largest)."""
        return self.smallest, self.largest

    def level(self, t: Any) -> Level:
        """Level at t = sigma."""
        t = self._checked(t)
        return Level(t, namespace(t).ones_like(t), t)

    def timestep(self, karras_sigma: Any) -> Any:
        """The ratio itself, clamped."""
        return np.clip(np.asarray(karras_sigma, dtype=np.float64), self.smallest, self.largest)

    def _level_of(self, ratio: Any, t: Any) -> Level:
        return Level(t, np.ones_like(ratio), ratio)


@dataclass(frozen=True)
class Cosine(Continuous):
    """alpha = cos(π u / 2), sigma = sin(π u / 2).

    Salimans, Ho 2022, https://arxiv.org/abs/2202.00512, section 2.
    """

    def level(self, t: Any) -> Level:
        """Level at t."""
        t = self._checked(t)
        xp, angle = namespace(t), t / self.time_scale * (np.pi / 2)
        # cos through sin, so that it is exactly 0 at u = 1
        return Level(t, xp.sin(np.pi / 2 - angle), xp.sin(angle))

    def _u_of(self, ratio: Any) -> Any:
        return np.arctan(ratio) * (2 / np.pi)


@dataclass(frozen=True)
class Crash(Continuous):
    """sigma = sin²(π u / 2), alpha = √(1 - sigma²), the "crash" schedule of v-diffusion (K. Crowson 2021); no
    published source.

    The model is told atan2(sigma, alpha) 2 / π, the u at which `Cosine` has the same level.
    """

    def level(self, t: Any) -> Level:
        """Level at t, as the model is told it."""
        return Cosine(self.time_scale, self.u_min).level(t)

    def warp(self, progress: Any) -> Any:
        """The t at even progress of the angle whose squared sine is sigma."""
        sigma = np.sin(np.asarray(progress, dtype=np.float64) * np.pi / 2) ** 2
        u = np.arctan2(sigma, np.sqrt(1 - sigma**2)) * (2 / np.pi)
        return self.time_scale * np.maximum(u, self.u_min)

    def _u_of(self, ratio: Any) -> Any:
        return np.arctan(ratio) * (2 / np.pi)


@dataclass(frozen=True)
class RectifiedFlow(Continuous):
    """alpha = 1 - u, sigma = u: Liu, Gong, Liu 2022, https://arxiv.org/abs/2209.03003, equation 1 with data
    at u = 0.

    Examples
    --------
    >>> RectifiedFlow().level(250.0).karras_sigma == 0.25 / 0.75
    np.True_
    """

    time_scale: float = 1000.0

    def level(self, t: Any) -> Level:
        """Level at t."""
        t = self._checked(t)
        return Level(t, 1 - t / self.time_scale, t / self.time_scale)

    def _u_of(self, ratio: Any) -> Any:
        return 1 / (1 + 1 / ratio)

    def _level_of(self, ratio: Any, t: Any) -> Level:
        with np.errstate(divide="ignore"):
            return Level(t, 1 / (1 + ratio), np.where(ratio == 0, 0.0, 1 / (1 + 1 / ratio)))


def _check_ends(smallest: float, largest: float) -> None:
    if not 0 < smallest < largest < np.inf:
        raise ValueError(f"smallest={smallest}, largest={largest}: expected 0 < smallest < largest.")
