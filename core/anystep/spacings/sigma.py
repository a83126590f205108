"""Spacings in the noise-to-signal ratio between a largest and a smallest ``karras_sigma``."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from anystep._array import Float64
from anystep.levels import Level
from anystep.schedules import Schedule
from anystep.spacings._base import Spacing
from anystep.spacings._timesteps import check_steps

__all__ = ["Beta", "Exponential", "Karras", "Lu", "SigmaSpacing", "beta", "exponential", "karras", "lu"]


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> Float64:
    """Even in sigma^(1/rho): Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 5.

    Examples
    --------
    >>> karras(16.0, 1.0, 3, rho=1.0)
    array([16. ,  8.5,  1. ])
    """
    ramp = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    return _exact_ends(ramp**rho, sigma_max, sigma_min)


def exponential(sigma_max: float, sigma_min: float, steps: int) -> Float64:
    """Even in log sigma.

    Examples
    --------
    >>> exponential(16.0, 1.0, 3)
    array([16.,  4.,  1.])
    """
    return _exact_ends(np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), steps)), sigma_max, sigma_min)


def beta(sigma_max: float, sigma_min: float, steps: int, a: float = 0.6, b: float = 0.6) -> Float64:
    """At even quantiles of a beta distribution: Lee et al. 2024, https://arxiv.org/abs/2407.12173, section 4.

    Raises
    ------
    ImportError
        If SciPy, which inverts the incomplete beta function, is not installed.
    """
    try:
        from scipy.special import betaincinv  # pyright: ignore[reportUnknownVariableType,reportMissingTypeStubs]
    except ImportError as error:
        raise ImportError('beta spacing needs SciPy: pip install "anystep[beta]".') from error
    quantiles: Float64 = betaincinv(a, b, np.linspace(1, 0, steps))
    return sigma_min + quantiles * (sigma_max - sigma_min)


def lu(sigma_max: float, sigma_min: float, steps: int, rho: float = 1.0) -> Float64:
    """Even in lambda^(1/rho) of the half log-SNR: Lu et al. 2022, https://arxiv.org/abs/2206.00927, section
    3.4.

    rho = 1 is even in lambda, which is `exponential`. Other values need lambda of one sign throughout.
    """
    first, last = -np.log(sigma_max), -np.log(sigma_min)
    if not 0 < rho < np.inf or (rho != 1.0 and not first > 0):
        raise ValueError(
            f"rho={rho}: expected 1, since lambda changes sign or is not positive; other rho need sigmas below 1."
        )
    ramp = np.linspace(
        first ** (1 / rho) if rho != 1.0 else first, last ** (1 / rho) if rho != 1.0 else last, steps
    )
    return _exact_ends(np.exp(-(ramp**rho if rho != 1.0 else ramp)), sigma_max, sigma_min)


def _exact_ends(sigmas: Float64, sigma_max: float, sigma_min: float) -> Float64:
    """The ends as given, not as rounding left them, so that they stay inside the schedule's range."""
    sigmas[-1], sigmas[0] = sigma_min, sigma_max
    return sigmas


@dataclass(frozen=True)
class SigmaSpacing(Spacing):
    """Abstract.

    Parameters
    ----------
    sigma_max, sigma_min
        First and last karras_sigma; None takes the schedule's own ends.
    """

    sigma_max: float | None = None
    sigma_min: float | None = None

    def points(self, schedule: Schedule, steps: int | None) -> Level:
        """Levels at the sigmas."""
        count = check_steps(steps)
        high = schedule.sigma_max if self.sigma_max is None else self.sigma_max
        low = schedule.sigma_min if self.sigma_min is None else self.sigma_min
        if not 0 < low <= high < np.inf or (low == high and count > 1):
            raise ValueError(
                f"sigma_min={low:g}, sigma_max={high:g}: expected 0 < sigma_min < sigma_max < inf; "
                "a schedule that ends in pure noise has no finite sigma_max, so give one."
            )
        return schedule.at(self.sigmas(high, low, count))

    @abstractmethod
    def sigmas(self, high: float, low: float, steps: int) -> Float64:
        """N descending karras_sigmas from high to low."""


@dataclass(frozen=True)
class Karras(SigmaSpacing):
    """Even in sigma^(1/rho).

    Parameters
    ----------
    rho
        > 0; the paper uses 7, 1 is even in sigma, and large values approach even in log sigma.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.rho < np.inf:
            raise ValueError(f"rho={self.rho}: expected a number > 0; the paper uses 7.")

    def sigmas(self, high: float, low: float, steps: int) -> Float64:
        """See `karras`."""
        return karras(high, low, steps, self.rho)


@dataclass(frozen=True)
class Exponential(SigmaSpacing):
    """Even in log sigma."""

    def sigmas(self, high: float, low: float, steps: int) -> Float64:
        """See `exponential`."""
        return exponential(high, low, steps)


@dataclass(frozen=True)
class Lu(SigmaSpacing):
    """Even in lambda^(1/rho)."""

    rho: float = 1.0

    def sigmas(self, high: float, low: float, steps: int) -> Float64:
        """See `lu`."""
        return lu(high, low, steps, self.rho)


@dataclass(frozen=True)
class Beta(SigmaSpacing):
    """Quantiles of a beta distribution with parameters a, b > 0; 1, 1 is even in sigma."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        if not (0 < self.a < np.inf and 0 < self.b < np.inf):
            raise ValueError(f"a={self.a}, b={self.b}: expected numbers > 0; 0.6 and 0.6 are usual.")

    def sigmas(self, high: float, low: float, steps: int) -> Float64:
        """See `beta`."""
        return beta(high, low, steps, self.a, self.b)
