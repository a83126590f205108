"""A model's output read with the coefficients of another process, as some of diffusers' classes do; no published source."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from anystep.levels import Level
from anystep.predictions import Pair, Prediction

__all__ = ["Misread"]


@dataclass(frozen=True)
class Misread(Prediction):
    """v read as where alpha_t² + sigma_t² = 1, or a flow's velocity as x - karras_sigma m, whatever the level is.

    Parameters
    ----------
    output
        What the model returns.
    integrand
        Which estimate is read so; the other is made to agree with it.
    """

    name: ClassVar[str] = "misread"
    output: Literal["v_prediction", "flow_prediction"]
    integrand: Literal["x0", "noise"] = "x0"

    def to_sample(self, level: Level) -> Pair:
        """(alpha_t, -sigma_t) or (1, -karras_sigma), or what agrees with ε̂."""
        if self.integrand == "noise":
            c, d = level.sigma_t, level.alpha_t
            return (1 - level.sigma_t * c) / level.alpha_t, -level.sigma_t * d / level.alpha_t
        if self.output == "v_prediction":
            return level.alpha_t, -level.sigma_t
        return level.alpha_t**0, -level.karras_sigma

    def to_noise(self, level: Level) -> Pair:
        """(sigma_t, alpha_t), or what agrees with x̂₀."""
        if self.integrand == "noise":
            return level.sigma_t, level.alpha_t
        a, b = self.to_sample(level)
        return (1 - level.alpha_t * a) / level.sigma_t, -level.alpha_t * b / level.sigma_t
