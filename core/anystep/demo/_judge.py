"""The judge of `anystep.demo.digits`: a small NumPy classifier, and a distance between two sets of images."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Quality", "classify", "frechet"]

Host: TypeAlias = npt.NDArray[Any]


class Quality(NamedTuple):
    """What `anystep.demo.digits.judge` found, each figure beside the one that real digits get."""

    accuracy: float
    """Share of the images that the classifier reads as the label they were drawn for, in [0, 1]."""
    real_accuracy: float
    """Share of the held-out digits that the classifier reads right."""
    distance: float
    """Squared Fréchet distance between the images and the held-out digits; 0 if mean and covariance agree."""
    real_distance: float
    """The same distance for as many training digits as there are images, or for all 1437 if fewer."""


def classify(weights: Mapping[str, Host], images: Host) -> Host:
    """Read digits.

    Parameters
    ----------
    weights
        ``in`` (64, H), ``in_bias`` (H,), ``middle`` (H, F), ``middle_bias`` (F,), ``out`` (F, 10), ``out_bias`` (10,).
    images
        Shape (N, 1, 8, 8), in about [-1, 1]; unchanged.

    Returns
    -------
    array
        The digit read in each image, shape (N,).
    """
    hidden = np.maximum(images.reshape(-1, 64) @ weights["in"] + weights["in_bias"], 0)
    hidden = np.tanh(hidden @ weights["middle"] + weights["middle_bias"])
    return np.argmax(hidden @ weights["out"] + weights["out_bias"], axis=1)


def frechet(one: Host, two: Host) -> float:
    """Squared Fréchet distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of Gaussians fitted to two sets.

    Parameters
    ----------
    one, two
        One point a row, shapes (N, F) and (M, F), N and M at least 2; unchanged.

    Returns
    -------
    float
        At least 0; 0 if mean and covariance agree.

    Examples
    --------
    Moving a set by d moves it a distance of d squared.

    >>> rows = np.random.default_rng(0).standard_normal((100, 3))
    >>> round(frechet(rows, rows + [0, 2, 0]), 6)
    4.0
    """
    first, second = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = np.mean(one, axis=0) - np.mean(two, axis=0)
    return max(0.0, float(apart @ apart + np.trace(first) + np.trace(second) - 2 * cross))
