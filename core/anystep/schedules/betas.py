"""Discrete-time variance-preserving processes given by a table of betas: alpha_t² = Π (1 - beta_s), sigma_t²
= 1 - alpha_t².

All tables are float64. diffusers builds the same in float32, which is where its 1e-5 relative error of small
sigma comes from.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from anystep._array import Float64
from anystep._checks import integer
from anystep.levels import Level
from anystep.schedules._base import Schedule

__all__ = ["BETAS", "BetaSchedule"]


def linear(steps: int, beta_start: float, beta_end: float) -> Float64:
    """Evenly spaced betas: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239, section 4."""
    return np.linspace(beta_start, beta_end, steps)


def scaled_linear(steps: int, beta_start: float, beta_end: float) -> Float64:
    """Evenly spaced √beta: Rombach et al. 2022, latent diffusion; no published equation."""
    return np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2


def sigmoid(steps: int, beta_start: float, beta_end: float) -> Float64:
    """Logistic curve over [-6, 6]: Xu et al. 2022, GeoDiff, https://arxiv.org/abs/2203.02923, appendix."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, steps)))


def squaredcos_cap_v2(steps: int, beta_start: float, beta_end: float) -> Float64:
    """Cosine: Nichol, Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 17, betas capped at 0.999.

    Ends are not used.
    """
    return _from_alpha_bar(steps, lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2)


def exp(steps: int, beta_start: float, beta_end: float) -> Float64:
    """alpha_t² = e^(-12 t), betas capped at 0.999; no published source; ends are not used."""
    return _from_alpha_bar(steps, lambda t: np.exp(-12 * t))


def laplace(steps: int, beta_start: float, beta_end: float) -> Float64:
    """Laplace-distributed log-SNR: Hang, Gu 2024, https://arxiv.org/abs/2407.03297, table 1, with location 0
    and scale 1/2.

    As published models use it: √(SNR / (1 + SNR)) takes the place of alpha_t², and 1e-6 keeps the logarithm
    finite.
    """

    def alpha_bar(t: Float64) -> Float64:
        off = 0.5 - t
        log_snr = -0.5 * np.where(off < 0, -1.0, 1.0) * np.log(1 - 2 * np.abs(off) + 1e-6)
        return np.sqrt(1 / (1 + np.exp(-log_snr)))

    return _from_alpha_bar(steps, alpha_bar)


def _from_alpha_bar(steps: int, alpha_bar: Callable[[Float64], Float64]) -> Float64:
    t = np.arange(steps + 1) / steps
    return np.minimum(1 - alpha_bar(t[1:]) / alpha_bar(t[:-1]), 0.999)


BETAS: dict[str, Callable[[int, float, float], Float64]] = {
    f.__name__: f for f in (linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace, exp)
}


@dataclass(frozen=True, eq=False)
class BetaSchedule(Schedule):
    """Training timesteps 0 .. T - 1 with alpha_t² the running product of 1 - beta.

    Parameters
    ----------
    betas
        Shape (T,), each in [0, 1]; 1 only at the end, where it means zero terminal SNR.
    interpolation
        How karras_sigma is read between timesteps: ``"log"`` (k-diffusion's, and the inverse of `timestep`)
        or ``"linear"`` (diffusers' Euler family).

    Raises
    ------
    ValueError
        If a beta is outside its range.

    Examples
    --------
    >>> schedule = BetaSchedule.named("linear")
    >>> schedule.train_timesteps, round(schedule.sigma_max, 2)
    (1000, 157.41)
    >>> round(float(schedule.timestep(schedule.level(250.5).karras_sigma)), 9)
    250.5
    """

    betas: Float64
    interpolation: Literal["log", "linear"] = "log"
    alphas_cumprod: Float64 = field(default_factory=lambda: np.empty(0), repr=False)
    """alpha_t², shape (T,); the running product of 1 - betas unless given."""

    def __post_init__(self) -> None:
        betas = np.array(self.betas, dtype=np.float64)
        if betas.ndim != 1 or not betas.size:
            raise ValueError(
                f"betas has shape {betas.shape}: expected a flat list with one beta per training timestep."
            )
        bad = np.flatnonzero(~((betas >= 0) & (betas <= 1)))
        if bad.size:
            raise ValueError(
                f"betas[{bad[0]}]={betas[bad[0]]} is outside [0, 1]: betas are variances added per timestep."
            )
        product = (
            np.array(self.alphas_cumprod, dtype=np.float64)
            if len(self.alphas_cumprod)
            else np.cumprod(1 - betas)
        )
        if (product[:-1] <= 0).any() and (betas[:-1] >= 1).any():
            raise ValueError("betas reach 1 before the last timestep: only the last may leave no signal.")
        # The last may stand above the one before it, where zero terminal SNR is replaced by a small number.
        ordered = (np.diff(product[:-1]) <= 0).all() and ((product >= 0) & (product <= 1)).all()
        if product.shape != betas.shape or not ordered:
            raise ValueError(
                f"alphas_cumprod of shape {product.shape}: expected {betas.shape} numbers from 1 down to 0."
            )
        if self.interpolation not in ("log", "linear"):
            raise ValueError(f"interpolation={self.interpolation!r}: expected 'log' or 'linear'.")
        for name, table in (("betas", betas), ("alphas_cumprod", product)):
            table.flags.writeable = False
            object.__setattr__(self, name, table)

    @classmethod
    def named(
        cls,
        name: str,
        train_timesteps: int = 1000,
        *,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        **options: Any,
    ) -> "BetaSchedule":
        """One of the published tables: linear, scaled_linear, squaredcos_cap_v2, sigmoid, laplace, exp.

        Raises
        ------
        NotImplementedError
            If the name is unknown.
        ValueError
            If ``train_timesteps`` is not a positive integer or the ends are outside [0, 1].
        """
        if name not in BETAS:
            raise NotImplementedError(
                f"beta_schedule={name!r} is not implemented: expected one of {', '.join(BETAS)}."
            )
        count = integer("train_timesteps", train_timesteps)
        for label, value in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{label}={value} is outside [0, 1]: betas are variances added per timestep."
                )
        return cls(BETAS[name](count, float(beta_start), float(beta_end)), **options)

    def rescaled_to_zero_terminal_snr(self, terminal: float = 0.0) -> "BetaSchedule":
        """alpha_t shifted and scaled so that the last is 0: Lin et al. 2024,
        https://arxiv.org/abs/2305.08891, algorithm 1.

        Parameters
        ----------
        terminal
            alpha² of the last timestep, 0 as in the paper; a sampler in Karras coordinates needs it above 0.
        """
        if self.train_timesteps < 2:
            raise ValueError(
                "train_timesteps=1: zero terminal SNR needs two timesteps, one of them with signal."
            )
        root = np.sqrt(self.alphas_cumprod)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        product = root**2
        ratio = product / np.append(1.0, product[:-1])
        product[-1] = terminal
        return BetaSchedule(np.clip(1 - ratio, 0.0, 1.0), self.interpolation, product)

    @property
    def train_timesteps(self) -> int:
        """Number T of training timesteps."""
        return len(self.betas)

    @property
    def t_range(self) -> tuple[float, float]:
        """(0, T - 1)."""
        return 0.0, self.train_timesteps - 1.0

    @cached_property
    def karras_sigmas(self) -> Float64:
        """√((1 - alpha²) / alpha²), shape (T,), ascending."""
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def level(self, t: Any) -> Level:
        """Level at t, exact at integers and interpolated between; NumPy values only, in [0, T - 1]."""
        times = np.asarray(t, dtype=np.float64)
        outside = ~((times >= 0) & (times <= self.train_timesteps - 1))
        if outside.any():
            first = np.atleast_1d(times)[np.atleast_1d(outside)][0]
            raise ValueError(
                f"t={first:g} is outside [0, {self.train_timesteps - 1}]: choose one of the training timesteps."
            )
        whole = times.astype(np.int64)
        if (whole == times).all():
            product = self.alphas_cumprod[whole]
            return Level(times, np.sqrt(product), np.sqrt(1 - product))
        grid = np.arange(self.train_timesteps)
        if self.interpolation == "linear":
            ratio = np.interp(times, grid, self.karras_sigmas)
        else:
            ratio = np.exp(np.interp(times, grid, self._log_sigmas))
        return self._level_of(ratio, times)

    def timestep(self, karras_sigma: Any) -> Any:
        """Fractional t by interpolation in log karras_sigma, clamped to [0, T - 1]."""
        log_sigma = np.log(np.maximum(np.asarray(karras_sigma, dtype=np.float64), 1e-10))
        return np.interp(log_sigma, self._log_sigmas, np.arange(self.train_timesteps))

    @cached_property
    def _log_sigmas(self) -> Float64:
        with np.errstate(divide="ignore"):
            return np.log(self.karras_sigmas)

    @cached_property
    def coefficients(self) -> Float64:
        """(alpha_t, sigma_t) of every training timestep, shape (T, 2)."""
        return np.stack([np.sqrt(self.alphas_cumprod), np.sqrt(1 - self.alphas_cumprod)], axis=-1)
