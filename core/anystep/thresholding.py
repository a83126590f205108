"""The one thing done to an estimate x̂₀ between the model and the update that is not linear: bounding it."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

from anystep._array import Array, expand, namespace

__all__ = ["Clip", "DynamicThreshold", "Threshold"]


class Threshold(ABC):
    """A bound on x̂₀: an elementwise or per-sample function of an array, of the same shape and dtype."""

    @abstractmethod
    def __call__(self, x0: Array) -> Array:
        """The bounded estimate, a new array."""

    def to_dict(self) -> dict[str, Any]:
        """Kind and parameters, as `from_dict` takes them."""
        return {"kind": type(self).__name__, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @staticmethod
    def from_dict(fields: "dict[str, Any] | None") -> "Threshold | None":
        """The threshold that `to_dict` described; None for None.

        Examples
        --------
        >>> Threshold.from_dict(Clip(2.0).to_dict())
        Clip(bound=2.0)
        """
        if fields is None:
            return None
        kinds = {"Clip": Clip, "DynamicThreshold": DynamicThreshold}
        if fields.get("kind") not in kinds:
            raise ValueError(f"threshold kind={fields.get('kind')!r}: expected one of {', '.join(kinds)}.")
        return kinds[fields["kind"]](**{key: value for key, value in fields.items() if key != "kind"})


@dataclass(frozen=True)
class Clip(Threshold):
    """Every element to [-bound, bound].

    Parameters
    ----------
    bound
        Largest magnitude kept, > 0; 1 for images in [-1, 1].

    Examples
    --------
    >>> import numpy as np
    >>> Clip(1.0)(np.asarray([-3.0, 0.5]))
    array([-1. ,  0.5])
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "bound", float(self.bound))
        if not self.bound > 0:
            raise ValueError(f"bound={self.bound}: expected a magnitude > 0; 1 fits images in [-1, 1].")

    def __call__(self, x0: Array) -> Array:
        """Clipped values."""
        return namespace(x0).clip(x0, -self.bound, self.bound)


@dataclass(frozen=True)
class DynamicThreshold(Threshold):
    """Each sample clipped to its own quantile of magnitude s, then divided by s.

    Saharia et al. 2022, Imagen, https://arxiv.org/abs/2205.11487, section 2.3. s is kept in [1, max_value],
    so that a sample inside [-1, 1] is left alone, and max_value = 1 is a plain clip to [-1, 1].

    Parameters
    ----------
    ratio
        Which quantile of |x̂₀|, in [0, 1], linearly interpolated.
    max_value
        Upper bound on s, >= 1.

    Examples
    --------
    >>> import numpy as np
    >>> DynamicThreshold(ratio=1.0, max_value=10.0)(np.asarray([[-4.0, 1.0, 2.0]]))
    array([[-1.  ,  0.25,  0.5 ]])
    """

    ratio: float = 0.995
    max_value: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ratio", "max_value"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} is outside [0, 1]: 0.995 is the usual quantile.")
        if not self.max_value >= 1:
            raise ValueError(
                f"max_value={self.max_value}: expected a bound >= 1; 1 is a plain clip to [-1, 1]."
            )

    def __call__(self, x0: Array) -> Array:
        """Thresholded values; the first axis counts samples, and 0-d data is one sample."""
        xp = namespace(x0)
        if 0 in x0.shape:
            return x0
        flat = xp.reshape(x0, (x0.shape[0] if x0.ndim else 1, -1))
        ordered = xp.sort(xp.abs(flat), axis=1)
        position = self.ratio * (flat.shape[1] - 1)
        low = int(position)
        weight = position - low
        below, above = ordered[:, low], ordered[:, min(low + 1, flat.shape[1] - 1)]
        # Interpolate from the nearer end, so that equal ends give exactly that value.
        s = below + (above - below) * weight if weight < 0.5 else above - (above - below) * (1 - weight)
        # Broadcast before it divides: XLA would turn a smaller divisor into its reciprocal, an ulp off.
        s = xp.broadcast_to(expand(xp.clip(s, 1.0, self.max_value), flat), flat.shape)
        return xp.reshape(xp.minimum(xp.maximum(flat, -s), s) / s, x0.shape)
