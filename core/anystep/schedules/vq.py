"""The mask-and-replace process of VQ-diffusion: a Markov chain on classes instead of a path from data to noise."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from anystep._array import Float64
from anystep._checks import integer

__all__ = ["MaskAndReplace", "TokenStep", "Transition"]


class Transition(NamedTuple):
    """One transition matrix, as the logarithms of the three probabilities that it is made of.

    A class stays itself with probability a + b, becomes each other class with probability b, and becomes the mask with
    probability c; the mask stays the mask. Each field is a number, an array with one number per timestep, or, where
    `anystep.tokens` takes it, an array of the sample's library, 0-d or with one number per sample.
    """

    log_a: Any
    """Logarithm of the probability to be kept."""
    log_b: Any
    """Logarithm of the probability to be replaced by one given class, itself included."""
    log_c: Any
    """Logarithm of the probability to be masked."""


class TokenStep(NamedTuple):
    """What a step from timestep ``cur`` down to ``nxt`` needs of the process."""

    cur: Transition
    """From the clean sample to ``cur``."""
    nxt: Transition
    """From the clean sample to ``nxt``."""
    one: Transition
    """From ``nxt`` to ``cur``, in one go."""


@dataclass(frozen=True)
class MaskAndReplace:
    """q(x_t | x_0): kept with probability ā_t + b̄_t, each other class b̄_t, masked c̄_t; ā_t and c̄_t are linear in t.

    With K = classes - 1 classes that are not the mask, ā_t + K b̄_t + c̄_t = 1. The mask is the last class. A transition
    between two timesteps s < t has a = ā_t / ā_s, c = 1 - (1 - c̄_t) / (1 - c̄_s), and b is what is left.

    Parameters
    ----------
    classes
        Number of classes with the mask, K + 1 >= 2.
    train_timesteps
        T >= 1; timesteps are 0 .. T - 1, and -1 stands for the clean sample. T = 1 has the end values.
    alpha_cum_start, alpha_cum_end
        ā of the first and the last timestep, in [0, 1]; the first is greater.
    gamma_cum_start, gamma_cum_end
        c̄ of the first and the last timestep, in [0, 1]; the last is greater. (0, 0.9) with ā_T = 0 is the paper's; what is
        left over is replacement, 1e-6 by default, and with none at all it is absorbing diffusion.

    Raises
    ------
    ValueError
        If a value is out of range, or some b would be negative.

    References
    ----------
    Gu et al., Vector Quantized Diffusion Model for Text-to-Image Synthesis, 2021, https://arxiv.org/abs/2111.14822,
    equations 7 and 8. Tables are in float64, without the cancellation of 1 - a - c.

    Examples
    --------
    Every row of a transition matrix sums to one, and two transitions make one.

    >>> process = MaskAndReplace(4, train_timesteps=10, gamma_cum_end=0.9)
    >>> process.matrix(-1, 5).sum(axis=1)
    array([1., 1., 1., 1.])
    >>> np.allclose(process.matrix(-1, 2) @ process.matrix(2, 7), process.matrix(-1, 7), rtol=1e-14)
    True
    """

    classes: int
    train_timesteps: int = 100
    alpha_cum_start: float = 0.99999
    alpha_cum_end: float = 0.000009
    gamma_cum_start: float = 0.000009
    gamma_cum_end: float = 0.99999

    def __post_init__(self) -> None:
        integer("classes", self.classes, 2, 2**31 - 1)
        integer("train_timesteps", self.train_timesteps, 1, 10**7)
        for name in ("alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or 0 < value < 1e-30:  # less is 0 in float32
                raise ValueError(f"{name}={value!r}: expected a probability in [0, 1], 0 or at least 1e-30.")
        self._falling("alpha_cum_end", self.alpha_cum_end, "alpha_cum_start", self.alpha_cum_start)
        self._falling("gamma_cum_start", self.gamma_cum_start, "gamma_cum_end", self.gamma_cum_end)
        if self.alpha_cum_start == 0 or self.gamma_cum_start == 1:
            raise ValueError(
                "alpha_cum_start=0 or gamma_cum_start=1: nothing of x_0 would ever be seen; leave some."
            )
        for end in ("start", "end"):
            alpha, gamma = getattr(self, f"alpha_cum_{end}"), getattr(self, f"gamma_cum_{end}")
            if _left(alpha, gamma) < 0:
                raise ValueError(
                    f"alpha_cum_{end}={alpha!r}, gamma_cum_{end}={gamma!r}: expected a sum of at most 1; lower one of them."
                )
        if (self.single[1] < 0).any():
            raise ValueError(
                f"alpha_cum_*, gamma_cum_*: at t={int(np.argmin(self.single[1]))} the probability of replacement would be "
                "negative; let 1 - alpha_cum - gamma_cum fall more slowly than alpha_cum."
            )

    @staticmethod
    def _falling(low_name: str, low: float, high_name: str, high: float) -> None:
        if low > high:
            raise ValueError(f"{low_name}={low!r}: expected at most {high_name}={high!r}; exchange them.")

    @cached_property
    def cumulative(self) -> tuple[Float64, Float64, Float64]:
        """(ā, b̄, c̄) of every timestep and, at the end, so that index -1 is it, of the clean sample; shape (T + 1,) each."""
        alpha = self._line(self.alpha_cum_start, self.alpha_cum_end, 1.0)
        gamma = self._line(self.gamma_cum_start, self.gamma_cum_end, 0.0)
        return alpha, self._replaced / (self.classes - 1), gamma

    @cached_property
    def _replaced(self) -> Float64:
        """K b̄ = 1 - ā - c̄, from its own ends: it may be a millionth of either."""
        start = _left(self.alpha_cum_start, self.gamma_cum_start)
        return self._line(start, _left(self.alpha_cum_end, self.gamma_cum_end), 0.0)

    def _line(self, start: float, end: float, clean: float) -> Float64:
        steps = self.train_timesteps
        along = np.arange(steps) / (steps - 1) if steps > 1 else np.ones(1)
        return np.append(start * (1 - along) + end * along, clean)

    @cached_property
    def single(self) -> tuple[Float64, Float64, Float64]:
        """(a, b, c) of each step t - 1 -> t, shape (T,) each."""
        ends = np.arange(self.train_timesteps)
        return self._between(ends - 1, ends)

    def _between(self, start: Any, end: Any) -> tuple[Float64, Float64, Float64]:
        """The transition s -> t; each difference is of numbers that are far apart, or of two that are exact."""
        alpha, _, gamma = self.cumulative
        left, kept = self._replaced, alpha[start] + self._replaced[start]
        a = alpha[end] / alpha[start]
        b = (left[end] * alpha[start] - left[start] * alpha[end]) / (alpha[start] * kept)
        # Two products that should be equal differ by rounding where nothing is replaced at this step.
        noise = 4 * np.finfo(np.float64).eps * left[end] / kept
        return (
            a,
            np.where(np.abs(b) <= noise, 0.0, b) / (self.classes - 1),
            np.maximum(gamma[end] - gamma[start], 0.0) / kept,  # below 0 by rounding alone
        )

    def transition(self, start: int, end: int) -> Transition:
        """The transition from timestep ``start`` (-1: the clean sample) to ``end`` > ``start``, as logarithms.

        Raises
        ------
        ValueError
            If the timesteps are not in that order, or outside [-1, T - 1].
        """
        if not -1 <= start <= end < self.train_timesteps:
            raise ValueError(
                f"start={start}, end={end}: expected -1 <= start <= end <= {self.train_timesteps - 1}, with -1 the clean sample."
            )
        if start == end:
            return Transition(0.0, -np.inf, -np.inf)
        parts = (table[end] for table in self.cumulative) if start == -1 else self._between(start, end)
        return Transition(*(float(_log(part)) for part in parts))

    def step(self, cur: int, nxt: int) -> TokenStep:
        """What a step from timestep ``cur`` down to ``nxt`` needs; -1 is the clean sample."""
        return TokenStep(self.transition(-1, cur), self.transition(-1, nxt), self.transition(nxt, cur))

    @property
    def log_single(self) -> Transition:
        """Logarithms of `single`."""
        return Transition(*map(_log, self.single))

    @property
    def log_cumulative(self) -> Transition:
        """Logarithms of `cumulative`."""
        return Transition(*map(_log, self.cumulative))

    def matrix(self, start: int, end: int) -> Float64:
        """The transition matrix, [i, j] = q(x_end = j | x_start = i), shape (K + 1, K + 1)."""
        a, b, c = np.exp(self.transition(start, end))
        table = np.full((self.classes, self.classes), b)
        table[np.diag_indices(self.classes)] += a
        table[:, -1], table[-1] = c, 0.0
        table[-1, -1] = 1.0
        return table


def _left(alpha: float, gamma: float) -> float:
    """1 - alpha - gamma, where what only rounding leaves is nothing."""
    left = (1 - max(alpha, gamma)) - min(alpha, gamma)  # the first difference is exact if it is small
    return 0.0 if abs(left) <= 4 * np.finfo(np.float64).eps else left


def _log(values: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(values)
