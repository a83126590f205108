"""What a model returns, as the estimate of the clean sample and of the noise that it amounts to.

Every prediction is linear in the model's input x_t and its output m, so it is four coefficients a level:
x̂₀ = a x_t + b m and ε̂ = c x_t + d m, with x_t = alpha_t x_0 + sigma_t ε. They agree: alpha_t x̂₀ + sigma_t
ε̂ = x_t.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from anystep.levels import Level

__all__ = ["EDM", "PREDICTIONS", "Epsilon", "Flow", "Prediction", "Sample", "Score", "Velocity", "prediction"]

Pair = tuple[Any, Any]


class Prediction(ABC):
    """Conversion of a model's output.

    All methods take a level (fields of any one shape) in the model's coordinates.
    """

    name: ClassVar[str]

    @abstractmethod
    def to_sample(self, level: Level) -> Pair:
        """(a, b) of x̂₀ = a x_t + b m."""

    @abstractmethod
    def to_noise(self, level: Level) -> Pair:
        """(c, d) of ε̂ = c x_t + d m."""

    def input_scale(self, level: Level) -> Any:
        """Factor on x_t before the model; 1 except for EDM preconditioning."""
        return np.ones_like(level.alpha_t)

    def timestep(self, level: Level) -> Any:
        """What the model is told; the schedule's t except for EDM preconditioning."""
        return level.t

    def target(self, level: Level) -> Pair:
        """(p, q) of the training target p x_0 + q ε.

        From m = (x̂₀ - a x_t) / b, with x_t = alpha_t x_0 + sigma_t ε.
        """
        a, b = self.to_sample(level)
        return (1 - a * level.alpha_t) / b, -a * level.sigma_t / b


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise ε: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239, equation 12.

    Notes
    -----
    At alpha_t = 0 the noise says nothing of the clean sample. There alpha_t is taken as 1e-20, so that a
    clipped estimate is the sign of x_t - ε times the bound; `compose` refuses such a level when nothing is
    clipped.
    """

    name: ClassVar[str] = "epsilon"

    def to_sample(self, level: Level) -> Pair:
        """(1, -sigma_t) / alpha_t."""
        alpha_t = np.maximum(level.alpha_t, 1e-20)
        return 1 / alpha_t, -level.sigma_t / alpha_t

    def to_noise(self, level: Level) -> Pair:
        """(0, 1)."""
        return np.zeros_like(level.sigma_t), np.ones_like(level.sigma_t)

    def target(self, level: Level) -> Pair:
        """(0, 1), exactly."""
        return self.to_noise(level)


@dataclass(frozen=True)
class Sample(Prediction):
    """The clean sample x_0 itself."""

    name: ClassVar[str] = "sample"

    def to_sample(self, level: Level) -> Pair:
        """(0, 1)."""
        return np.zeros_like(level.sigma_t), np.ones_like(level.sigma_t)

    def to_noise(self, level: Level) -> Pair:
        """(1, -alpha_t) / sigma_t."""
        return 1 / level.sigma_t, -level.alpha_t / level.sigma_t


@dataclass(frozen=True)
class Velocity(Prediction):
    """v = alpha_t ε - sigma_t x_0: Salimans, Ho 2022, https://arxiv.org/abs/2202.00512, section 4 and
    appendix D.

    Notes
    -----
    The paper has alpha_t² + sigma_t² = 1; dividing by that sum makes the formulas hold on any schedule.
    """

    name: ClassVar[str] = "v_prediction"

    def to_sample(self, level: Level) -> Pair:
        """(alpha_t, -sigma_t) / (alpha_t² + sigma_t²)."""
        norm = level.alpha_t**2 + level.sigma_t**2
        return level.alpha_t / norm, -level.sigma_t / norm

    def to_noise(self, level: Level) -> Pair:
        """(sigma_t, alpha_t) / (alpha_t² + sigma_t²)."""
        norm = level.alpha_t**2 + level.sigma_t**2
        return level.sigma_t / norm, level.alpha_t / norm


@dataclass(frozen=True)
class Flow(Prediction):
    """u = ε - x_0, the velocity of rectified flow: Liu, Gong, Liu 2022, https://arxiv.org/abs/2209.03003,
    equation 1.

    Parameters
    ----------
    toward_data
        Whether the model returns x_0 - ε, as in the paper, whose time runs from noise to data; most published models
        return ε - x_0.

    Notes
    -----
    On its own schedule alpha_t + sigma_t = 1; dividing by that sum makes the formulas hold on any
    schedule.
    """

    name: ClassVar[str] = "flow_prediction"
    toward_data: bool = False

    @property
    def _sign(self) -> float:
        return -1.0 if self.toward_data else 1.0

    def to_sample(self, level: Level) -> Pair:
        """(1, -sigma_t) / (alpha_t + sigma_t)."""
        norm = level.alpha_t + level.sigma_t
        return 1 / norm, -level.sigma_t / norm * self._sign

    def to_noise(self, level: Level) -> Pair:
        """(1, alpha_t) / (alpha_t + sigma_t)."""
        norm = level.alpha_t + level.sigma_t
        return 1 / norm, level.alpha_t / norm * self._sign


@dataclass(frozen=True)
class Score(Prediction):
    """∇ log p_t(x_t) = -ε / sigma_t.

    Song et al. 2021, https://arxiv.org/abs/2011.13456, equation 7 for a Gaussian kernel.
    """

    name: ClassVar[str] = "score"

    def to_sample(self, level: Level) -> Pair:
        """(1, sigma_t²) / alpha_t, with alpha_t = 0 as for `Epsilon`."""
        alpha_t = np.maximum(level.alpha_t, 1e-20)
        return 1 / alpha_t, level.sigma_t**2 / alpha_t

    def to_noise(self, level: Level) -> Pair:
        """(0, -sigma_t)."""
        return np.zeros_like(level.sigma_t), -level.sigma_t


@dataclass(frozen=True)
class EDM(Prediction):
    """The raw network F of D(x; σ) = c_skip x + c_out F(c_in x; c_noise): Karras et al. 2022, equation 7 and
    table 1.

    https://arxiv.org/abs/2206.00364. There x has alpha = 1, so with κ = sigma_t / alpha_t it is x_t / alpha_t
    here.

    Parameters
    ----------
    sigma_data
        Standard deviation of the data, > 0; the paper uses 0.5.
    """

    name: ClassVar[str] = "edm"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < np.inf:
            raise ValueError(
                f"sigma_data={self.sigma_data}: expected a standard deviation > 0; the paper uses 0.5."
            )

    def to_sample(self, level: Level) -> Pair:
        """(c_skip / alpha_t, c_out)."""
        variance = level.karras_sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / variance / level.alpha_t, level.karras_sigma * self.sigma_data / np.sqrt(
            variance
        )

    def to_noise(self, level: Level) -> Pair:
        """((1 - c_skip) / sigma_t, -c_out / κ), with 1 - c_skip = κ² / (κ² + sigma_data²) written without
        cancellation.
        """
        variance = level.karras_sigma**2 + self.sigma_data**2
        return level.karras_sigma / variance / level.alpha_t, -self.sigma_data / np.sqrt(variance)

    def input_scale(self, level: Level) -> Any:
        """c_in / alpha_t = 1 / (alpha_t √(κ² + sigma_data²))."""
        return 1 / (level.alpha_t * np.sqrt(level.karras_sigma**2 + self.sigma_data**2))

    def timestep(self, level: Level) -> Any:
        """c_noise = ln(κ) / 4."""
        return np.log(level.karras_sigma) / 4


PREDICTIONS: dict[str, type[Prediction]] = {p.name: p for p in (Epsilon, Sample, Velocity, Flow, Score, EDM)}


def prediction(choice: str | Prediction) -> Prediction:
    """A prediction from its name, or the prediction itself.

    Examples
    --------
    >>> prediction("v_prediction").to_sample(Level(0, 0.6, 0.8))
    (0.6, -0.8)
    >>> prediction("noise")
    Traceback (most recent call last):
    ...
    ValueError: prediction='noise': expected one of epsilon, sample, v_prediction, flow_prediction, score,
    edm.
    """
    if isinstance(choice, Prediction):
        return choice
    if choice not in PREDICTIONS:
        raise ValueError(f"prediction={choice!r}: expected one of {', '.join(PREDICTIONS)}.")
    return PREDICTIONS[choice]()
