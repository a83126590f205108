"""A trained denoiser of 8 x 8 handwritten digits, in array-API code, and a judge of what is drawn with it.

The denoiser is a class-conditional residual MLP that predicts v = alpha_t eps - sigma_t x_0 under DDPM's linear
beta schedule (1000 steps, 1e-4 to 0.02). ``examples/train_digits.py`` trains it and the judge on 80 % of the
digits, in a few minutes on a CPU, and writes ``digits.npz``; samples are measured against the other 20 %, which
neither of them has seen.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0. The 1797 digits are those that scikit-learn
distributes; ``digits.npz`` holds them split and reordered, with unchanged pixels.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep.demo._denoiser import GUIDANCE, NO_CLASS, Digits
from anystep.demo._judge import Quality, classify, frechet

__all__ = [
    "GUIDANCE",
    "NO_CLASS",
    "Digits",
    "Quality",
    "folder",
    "held_out",
    "judge",
    "load",
    "scheduler_config",
]


def folder() -> Path:
    """Folder of the weights and of ``scheduler_config.json``, for a scheduler's ``from_pretrained``.

    Examples
    --------
    >>> [path.name for path in folder().glob("*.json")]
    ['scheduler_config.json']
    """
    return Path(__file__).parent


def scheduler_config() -> dict[str, Any]:
    """Configuration of the scheduler that the model was trained for, in diffusers' format; a new dict each time.

    Examples
    --------
    >>> config = scheduler_config()
    >>> config["prediction_type"], config["num_train_timesteps"]
    ('v_prediction', 1000)
    """
    return json.loads((folder() / "scheduler_config.json").read_text(encoding="utf-8"))


@cache
def load() -> Digits:
    """The trained denoiser; read from disk once, so every call gives the same object.

    Examples
    --------
    >>> load() is load()
    True
    """
    return Digits(_part("denoiser."))


def held_out() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The 360 real digits that no training has seen.

    Returns
    -------
    tuple of array
        Images, shape (360, 1, 8, 8), in [-1, 1] by steps of 1/8; and labels, shape (360,). The caller's own.

    Examples
    --------
    >>> images, labels = held_out()
    >>> images.shape, float(images.min()), float(images.max())
    ((360, 1, 8, 8), -1.0, 1.0)
    """
    return _images(_file()["held_out"]), _file()["held_out_labels"].astype(np.int64)


def judge(images: npt.ArrayLike, labels: npt.ArrayLike) -> Quality:
    """Whether images look like the digits they were drawn for, and as a whole like what people write.

    ``distance`` is the squared Fréchet distance between the pixels of the images and of the held-out digits. It grows
    with noise left over, with blur, and with too little variety, and so falls with more steps of a right sampler. Few
    images make it larger, so compare with ``real_distance``, which is for equally many. Both assume that all ten
    digits are asked for equally often.

    Parameters
    ----------
    images
        Shape (N, 1, 8, 8), N at least 2, on the host, in about [-1, 1]; unchanged.
    labels
        Shape (N,), the digit that each image was drawn for, 0 to 9.

    Returns
    -------
    Quality
        ``accuracy``, ``real_accuracy``, ``distance``, ``real_distance``.

    Raises
    ------
    ValueError
        If a shape is wrong, a label is outside 0 to 9, or the images are not finite.

    References
    ----------
    M. Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017,
    https://arxiv.org/abs/1706.08500, equation 6. We differ in the features: 64 pixels are few enough to be their own.

    Examples
    --------
    The held-out digits are at no distance from themselves; noise is far from them, and reads as nothing.

    >>> quality = judge(*held_out())
    >>> quality.accuracy == quality.real_accuracy, round(quality.distance, 6)
    (True, 0.0)
    >>> noise = judge(np.random.default_rng(0).standard_normal((200, 1, 8, 8)), np.arange(200) % 10)
    >>> noise.accuracy < 0.3, noise.distance > 10 * noise.real_distance
    (True, True)
    """
    drawn, wanted = np.asarray(images, dtype=np.float64), np.asarray(labels)
    if drawn.shape[1:] != (1, 8, 8) or drawn.shape[0] < 2:
        raise ValueError(
            f"images.shape={drawn.shape}: expected (N, 1, 8, 8), N at least 2; reshape, or draw more."
        )
    if wanted.shape != drawn.shape[:1]:
        raise ValueError(
            f"labels.shape={wanted.shape}: expected {drawn.shape[:1]}, one label per image; repeat or cut them."
        )
    if wrong := sorted(set(wanted.tolist()) - set(range(10))):
        raise ValueError(
            f"labels={wrong[0]} is not one of 0 to 9: give the digits the images were drawn for."
        )
    if not np.all(np.isfinite(drawn)):
        raise ValueError(
            "images hold NaN or infinity: expected finite pixels; the sampler diverged, check its steps."
        )
    (real, truth), weights = held_out(), _part("judge.")
    seen = _images(_file()["train"][: len(drawn)])
    return Quality(
        accuracy=float(np.mean(classify(weights, drawn) == wanted)),
        real_accuracy=float(np.mean(classify(weights, real) == truth)),
        distance=frechet(drawn.reshape(-1, 64), real.reshape(-1, 64)),
        real_distance=frechet(seen.reshape(-1, 64), real.reshape(-1, 64)),
    )


@cache
def _file() -> Mapping[str, npt.NDArray[Any]]:
    """Contents of digits.npz, read once and read-only."""
    with np.load(folder() / "digits.npz", allow_pickle=False) as file:
        arrays: dict[str, npt.NDArray[Any]] = {name: file[name] for name in file.files}
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


@cache
def _part(prefix: str) -> Mapping[str, npt.NDArray[np.float32]]:
    """Weights whose name begins with the prefix, without it, in float32."""
    return {
        name.removeprefix(prefix): x.astype(np.float32)
        for name, x in _file().items()
        if name.startswith(prefix)
    }


def _images(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Stored digits, 0 to 16, as images in [-1, 1]."""
    return (pixels.astype(np.float32) / np.float32(8) - np.float32(1)).reshape(-1, 1, 8, 8)
