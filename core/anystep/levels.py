"""Points of a forward process and the descending chain of them that a sampler walks.

A level is (t, alpha_t, sigma_t) with x_t = alpha_t x_0 + sigma_t eps. Its noise-to-signal ratio sigma_t /
alpha_t, the ``karras_sigma`` of Karras et al. (2022), does not change when x_t is rescaled, so it names a
level in any coordinates.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from anystep._array import Float64

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Level", "Levels", "check_descending"]


@dataclass(frozen=True)
class Level:
    """One level, or many at once: each field is a float64 scalar or array, all of one shape.

    Parameters
    ----------
    t
        What a model trained on the process is told, in the model's own unit.
    alpha_t
        Factor on the clean sample, >= 0.
    sigma_t
        Standard deviation of the noise, >= 0.

    Examples
    --------
    >>> level = Level(t=500, alpha_t=0.6, sigma_t=0.8)
    >>> round(float(level.karras_sigma), 4), round(float(level.lambda_t), 4)
    (1.3333, -0.2877)
    """

    t: Any
    alpha_t: Any
    sigma_t: Any

    @property
    def karras_sigma(self) -> Any:
        """sigma_t / alpha_t; infinite where alpha_t is 0."""
        with np.errstate(divide="ignore"):
            return np.divide(self.sigma_t, self.alpha_t)

    @property
    def lambda_t(self) -> Any:
        """log(alpha_t / sigma_t), half the log signal-to-noise ratio; infinite where either is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha_t) - np.log(self.sigma_t)

    def __getitem__(self, index: Any) -> "Level":
        return Level(
            np.asarray(self.t)[index], np.asarray(self.alpha_t)[index], np.asarray(self.sigma_t)[index]
        )


@dataclass(frozen=True)
class Levels:
    """The two ends of every step, in the coordinates of the sampler.

    Parameters
    ----------
    cur, nxt
        Levels at the start and at the end of each step, fields of shape (N,). In a chain ``nxt[i]`` is
        ``cur[i + 1]``; a facade that reproduces a scheduler whose steps do not meet gives the two apart.
    scale
        Factor from the sampler's coordinates to those of the model, shape (N,): 1 when the sampler works on
        x_t itself, alpha_t when it works on x_t / alpha_t.

    Raises
    ------
    ValueError
        If there is no step, a value is not finite, or the model would be called without noise. `chain` also wants
        strictly descending levels.
    """

    cur: Level
    nxt: Level
    scale: Float64 = field(default_factory=lambda: np.ones(1))

    def __post_init__(self) -> None:
        cur, nxt, noise = self.cur, self.nxt, np.asarray(self.cur.sigma_t)
        scale = np.asarray(self.scale, float)
        if scale.shape != noise.shape:
            scale = np.full(noise.shape, scale)
        object.__setattr__(self, "scale", scale)
        if not noise.shape or not len(noise):
            raise ValueError("levels are empty: a plan needs at least one step; ask for steps >= 1.")
        # t of a final level means nothing (no model is called there), so it may be NaN.
        every = np.concatenate([cur.alpha_t, nxt.alpha_t, noise, nxt.sigma_t], axis=None)
        if not (np.isfinite(every).all() and every.min() >= 0 and np.isfinite(cur.t).all()):
            _check_finite("alpha_t", np.concatenate([cur.alpha_t, nxt.alpha_t], axis=None))
            _check_finite("sigma_t", np.concatenate([noise, nxt.sigma_t], axis=None))
            _check_finite("timesteps", np.atleast_1d(cur.t))
        if noise.min() <= 0:
            raise ValueError(
                "sigma_t is 0 at a level where the model is called: only the final level may have no noise."
            )

    @classmethod
    def chain(
        cls, t: "ArrayLike", alpha_t: "ArrayLike", sigma_t: "ArrayLike", scale: "ArrayLike" = 1.0
    ) -> "Levels":
        """Levels from N + 1 points, noisiest first, final level included.

        Examples
        --------
        >>> levels = Levels.chain([2, 1, 0], [1, 1, 1], [4.0, 2.0, 0.0])
        >>> levels.steps, levels.nxt.sigma_t.tolist()
        (2, [2.0, 0.0])
        """
        points = Level(*(np.array(part, float) for part in (t, alpha_t, sigma_t)))
        check_descending("sigmas", points.karras_sigma)
        return cls(points[:-1], points[1:], np.asarray(scale, float))

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.cur.sigma_t)

    def to_karras(self) -> "Levels":
        """The same levels for a sampler that works on x_t / alpha_t, where alpha is 1 and sigma is
        ``karras_sigma``.
        """

        def convert(level: Level) -> Level:
            return Level(level.t, np.ones_like(level.alpha_t), level.karras_sigma)

        return replace(
            self, cur=convert(self.cur), nxt=convert(self.nxt), scale=self.scale * self.cur.alpha_t
        )

    @property
    def model_level(self) -> Level:
        """``cur`` in the model's coordinates, where the prediction's formulas hold."""
        return Level(self.cur.t, self.scale * self.cur.alpha_t, self.scale * self.cur.sigma_t)


def check_descending(name: str, values: "ArrayLike") -> None:
    """Raise ValueError unless the values are finite numbers that strictly descend.

    Examples
    --------
    >>> check_descending("sigmas", [3.0, 1.0, 2.0])
    Traceback (most recent call last):
    ...
    ValueError: sigmas[2]=2.0 is not below sigmas[1]=1.0: expected strictly descending values; sort them,
    noisiest first.
    """
    array = np.asarray(values, float)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: expected a flat list of numbers.")
    _check_finite(name, array, first_may_be_infinite=True)
    for i in np.flatnonzero(array[1:] >= array[:-1])[:1]:
        raise ValueError(
            f"{name}[{i + 1}]={array[i + 1]} is not below {name}[{i}]={array[i]}: "
            "expected strictly descending values; sort them, noisiest first."
        )


def _check_finite(name: str, array: Float64, *, first_may_be_infinite: bool = False) -> None:
    bad = ~np.isfinite(array)
    if first_may_be_infinite and bad.size and array[0] == np.inf:  # alpha_t = 0: pure noise
        bad[0] = False
    if bad.any() or ((array < 0).any() and name != "timesteps"):
        i = int(np.flatnonzero(bad | (array < 0))[0])
        raise ValueError(
            f"{name}[{i}]={array[i]}: expected finite numbers >= 0; check how the levels were made."
        )
