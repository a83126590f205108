"""Bases of the facades whose noise levels are sigmas that may be respaced between two ends."""

from typing import Any, ClassVar

import numpy as np

from anystep._array import Float64
from anystep._checks import number
from anystep.schedulers._facade import Facade
from anystep.schedulers._indexed import IndexedFacade
from anystep.spacings.sigma import beta, exponential, karras, lu

__all__ = ["RespacedFacade", "RespacingFacade"]

_RESPACINGS = {
    "karras": (karras, "use_karras_sigmas"),
    "lu": (lu, "use_lu_lambdas"),
    "exponential": (exponential, "use_exponential_sigmas"),
    "beta": (beta, "use_beta_sigmas"),
}
"""Formula and config key; where several are set, the first counts."""


class RespacingFacade(IndexedFacade):
    """Abstract: ``sigmas`` has one entry more than steps, and the ends of respaced ones may be overridden."""

    def _configured(self) -> None:
        flags = [f"use_{name}_sigmas" for name in ("karras", "exponential", "beta")]
        flags = [flag for flag in flags if self._option(flag)]
        if len(flags) > 1:
            raise ValueError(f"{flags[0]} and {flags[1]} are both set: at most one can respace the sigmas.")
        super()._configured()

    _sigmas: Float64

    def _hand_out(self) -> None:
        super()._hand_out()
        self.sigmas = self._export(self._sigmas)

    @property
    def _respacing(self) -> str | None:
        return next((name for name, (_, flag) in _RESPACINGS.items() if self._option(flag)), None)

    def _respaced(self, name: str, sigmas: Float64, steps: int) -> Float64:
        """Karras, exponential, beta or lu levels between the same ends, or the config's."""
        low, high = (self._end(key) for key in ("sigma_min", "sigma_max"))
        low = float(sigmas[-1]) if low is None else number("sigma_min", low, "a number or None")
        high = float(sigmas[0]) if high is None else number("sigma_max", high, "a number or None")
        if not 0 < low <= high < np.inf or (low == high and steps > 1):
            raise ValueError(f"sigma_min={low}, sigma_max={high}: expected 0 < sigma_min < sigma_max.")
        return _RESPACINGS[name][0](high, low, steps)

    _ends: ClassVar[tuple[str, ...]] = ()
    """Config keys that override the ends of respaced sigmas."""

    _foreign_ends: ClassVar[tuple[str, ...]] = ()
    """Respacings that heed such keys of another class's config, as diffusers does, though this class has none."""

    def _end(self, key: str) -> Any:
        """What overrides an end of respaced sigmas, or None."""
        foreign = self._respacing in self._foreign_ends and "foreign-ends" not in self._corrections
        return self.config.get(key) if key in self._ends or foreign else None


class RespacedFacade(RespacingFacade, Facade):
    """Abstract: such a facade on a table of betas."""

    _terminal = 2.0**-24
    """alpha² of the last timestep after rescaling to zero terminal SNR.

    0 would be an infinite sigma. As in diffusers.
    """
    _interpolation = {"interpolation": "linear"}  # noqa: RUF012

    @property
    def _last_sigma(self) -> float:
        return self._schedule.sigma_min if self._option("final_sigmas_type") == "sigma_min" else 0.0
