"""A trained token model of the 8 x 8 handwritten digits, in array-API code: for VQ-diffusion.

A pixel's grey level, 0 to 16, is its class, and 17 is the mask: 64 tokens of 18 classes. The model is a class-conditional
residual MLP that predicts the distribution of each clean token from all the noisy ones, under `MaskAndReplace(18)`.
``examples/train_digit_tokens.py`` trains it on the digits that `anystep.demo.digits` was trained on, in a few minutes on a
CPU, and writes ``digit_tokens.npz``. Data: see `anystep.demo.digits`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, final

import numpy as np
import numpy.typing as npt

from anystep._array import Array, backend, namespace, place
from anystep.demo._denoiser import normalized, outlives_call, silu
from anystep.demo.digits import folder
from anystep.demo.drawing import Drawing
from anystep.schedulers.vq_diffusion import VQDiffusionScheduler

__all__ = ["CLASSES", "DigitTokens", "draw_tokens", "images", "load", "network"]

CLASSES = 18
"""Grey levels 0 to 16 and the mask, 17."""


@final
@dataclass(frozen=True, eq=False)
class DigitTokens:
    """The model: ``model(x, t, labels)`` is log p(x_0 | x_t) of each token, by the library and on the device of x.

    Made by `load`. Nothing is read back from a device, so a call can be traced and compiled. The weights are copied to
    each (library, dtype, device) on first use and kept.

    Parameters
    ----------
    weights
        Float32 NumPy arrays by name, as `network` takes them.

    References
    ----------
    Gu et al., 2021, https://arxiv.org/abs/2111.14822, equation 11, for what is predicted.

    Examples
    --------
    The mask is never predicted, and probabilities sum to one.

    >>> model = load()
    >>> log_p = model(np.full((2, 64), 17), 99, np.asarray([3, 8]))
    >>> log_p.shape, bool(np.allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-6))
    ((2, 17, 64), True)
    """

    weights: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    _copies: dict[Any, Mapping[str, Array]] = field(default_factory=dict[Any, Any], init=False, repr=False)

    def __call__(self, x: Array, t: int, labels: Array, dtype: str = "float32") -> Array:
        """Predict the clean tokens.

        Parameters
        ----------
        x
            Noisy tokens, shape (B, 64), any integer dtype, 0 to 17; unchanged.
        t
            Timestep, 0 to 99.
        labels
            Shape (B,), any integer dtype, of the library of ``x``: the digit wanted, or 10 for any.
        dtype
            Of the result: ``"float32"`` or ``"float64"``.

        Returns
        -------
        Array
            log p(x_0), shape (B, 17, 64).

        Raises
        ------
        ValueError
            If a shape is wrong, or ``t`` is outside [0, 99].
        TypeError
            If ``x`` or ``labels`` is no integer array, or they belong to two libraries.
        """
        xp = namespace(x, labels)
        for name, array, shape in (("x", x, (x.shape[0], 64)), ("labels", labels, (x.shape[0],))):
            if not xp.isdtype(array.dtype, "integral"):
                raise TypeError(
                    f"{name}.dtype={array.dtype}: expected an integer dtype; cast it, for example to int32."
                )
            if tuple(array.shape) != shape:
                raise ValueError(f"{name}.shape={tuple(array.shape)}: expected {shape}; reshape it.")
        last = len(self.weights["evidence"]) - 1
        if not 0 <= int(t) <= last:
            raise ValueError(
                f"t={t} is outside [0, {last}]: give a timestep of a scheduler trained with {last + 1}."
            )
        return network(self._placed(xp, x, dtype), x, int(t), labels)

    def _placed(self, xp: Any, x: Array, dtype: str) -> Mapping[str, Array]:
        """The weights on the device of x."""
        key = (xp.__name__, dtype, place(x))
        copies = self._copies.get(key)
        if copies is None:
            wanted, device = getattr(xp, dtype), place(x)
            copies = {
                name: xp.asarray(np.array(w), dtype=wanted, device=device) for name, w in self.weights.items()
            }
            if outlives_call(copies["in"]):
                self._copies[key] = copies
        return copies


def network(weights: Mapping[str, Array], x: Array, t: Any, labels: Array) -> Array:
    """The log-probabilities from explicit weights, unchecked; training differentiates through it too.

    Parameters
    ----------
    weights
        Arrays of one floating dtype, of the library and on the device of ``x``: ``frequencies`` (F,), ``time_in`` (2F, E),
        ``time_bias`` (E,), ``time_out`` (E, E), ``label`` (11, E), ``token`` (18, D), ``in`` (64 D, W), ``in_bias`` (W,);
        for L blocks ``film`` (L, E, 2W), ``film_bias`` (L, 2W), ``up`` (L, W, H), ``up_bias`` (L, H), ``down`` (L, H, W);
        ``out`` (W, 64 D), ``out_bias`` (64 D,), ``head`` (D, 17), ``head_bias`` (64, 17); and ``evidence`` (T,): the log of
        q(x_t | x_0 = x_t) / q(x_t | x_0 ≠ x_t), by which a token that is not masked speaks for itself.
    x
        Shape (B, 64), any integer dtype, 0 to 17.
    t
        A number, or an integer array of shape (B,).
    labels
        Shape (B,), any integer dtype, 0 to 10.

    Returns
    -------
    Array
        log p(x_0), shape (B, 17, 64).
    """
    xp, real = namespace(x), weights["in"].dtype
    times = xp.full((1,), t, dtype=xp.int32, device=place(x)) if isinstance(t, int) else t
    angles = xp.reshape(xp.astype(times, real), (-1, 1)) * weights["frequencies"]
    waves = xp.concat([xp.sin(angles), xp.cos(angles)], axis=1)
    time = xp.matmul(
        silu(xp, xp.matmul(waves, weights["time_in"]) + weights["time_bias"]), weights["time_out"]
    )
    condition = silu(xp, time + xp.take(weights["label"], xp.astype(labels, xp.int32), axis=0))
    tokens = xp.astype(xp.reshape(x, (-1,)), xp.int32)
    hidden = xp.reshape(xp.take(weights["token"], tokens, axis=0), (x.shape[0], -1))
    hidden = xp.matmul(hidden, weights["in"]) + weights["in_bias"]
    width = weights["in"].shape[1]
    for block in range(weights["up"].shape[0]):
        film = xp.matmul(condition, weights["film"][block, ...]) + weights["film_bias"][block, ...]
        inner = normalized(xp, hidden) * (film[:, :width] + 1.0) + film[:, width:]
        inner = silu(xp, xp.matmul(inner, weights["up"][block, ...]) + weights["up_bias"][block, ...])
        hidden = hidden + xp.matmul(inner, weights["down"][block, ...])
    out = xp.reshape(
        xp.matmul(normalized(xp, hidden), weights["out"]) + weights["out_bias"],
        (-1, 64, weights["head"].shape[0]),
    )
    logits = xp.matmul(out, weights["head"]) + weights["head_bias"]
    levels = xp.arange(CLASSES - 1, dtype=x.dtype, device=place(x))
    itself = xp.astype(xp.expand_dims(x, axis=2) == levels, real)
    logits = logits + itself * xp.reshape(xp.take(weights["evidence"], times, axis=0), (-1, 1, 1))
    return xp.permute_dims(_log_softmax(xp, logits), (0, 2, 1))


def _log_softmax(xp: Any, x: Array) -> Array:
    x = x - xp.max(x, axis=-1, keepdims=True)
    return x - xp.log(xp.sum(xp.exp(x), axis=-1, keepdims=True))


@cache
def load() -> DigitTokens:
    """The trained model; read from disk once, so every call gives the same object.

    Examples
    --------
    >>> load() is load()
    True
    """
    with np.load(folder() / "digit_tokens.npz", allow_pickle=False) as file:
        return DigitTokens({name: file[name].astype(np.float32) for name in file.files})


def images(tokens: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Tokens (B, 64) on the host as images (B, 1, 8, 8) in [-1, 1]; a mask that is left over is grey, 0.

    Examples
    --------
    >>> images([[0, 16, 17, 12] + [0] * 60])[0, 0, 0, :4]
    array([-1. ,  1. ,  0. ,  0.5], dtype=float32)
    """
    levels = np.asarray(tokens)
    pixels = np.where(levels == CLASSES - 1, 0, levels / 8 - 1).astype(np.float32)
    return pixels.reshape(-1, 1, 8, 8)


def draw_tokens(
    steps: int = 100,
    *,
    backend_name: str = "numpy",
    device: Any = None,
    dtype: str = "float32",
    seed: int = 0,
    count: int = 100,
    classes: Sequence[int] = tuple(range(10)),
    sparse: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Drawing:
    """Draw handwritten digits by VQ-diffusion, from masks alone; steps are spread over all timesteps.

    Parameters
    ----------
    steps
        In [1, 100].
    backend_name, device, dtype, seed, count, classes, progress
        As for `anystep.demo.drawing.draw_digits`; ``dtype`` is ``"float32"`` or ``"float64"``.
    sparse
        Whether to draw by `VQDiffusionScheduler.sparse`.

    Raises
    ------
    ValueError, ImportError
        As for `anystep.demo.drawing.draw_digits`.

    Examples
    --------
    >>> draw_tokens(steps=5, count=4, classes=[3, 7]).images.shape
    (4, 1, 8, 8)
    """
    if count < 1 or not classes:
        raise ValueError(f"count={count}, classes={list(classes)}: expected at least one digit to draw.")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: expected 'float32' or 'float64'; tokens have no other precision.")
    lib, model = backend(backend_name), load()
    where = lib.device(device)
    scheduler = VQDiffusionScheduler(CLASSES).corrected()
    scheduler.set_timesteps(steps)
    scheduler = scheduler.sparse() if sparse else scheduler
    labels = np.resize(np.asarray(classes, dtype=np.int64), count)
    wanted = lib.asarray(labels, dtype="int32", device=where)
    x = lib.asarray(np.full((count, 64), scheduler.mask_class), dtype="int32", device=where)
    rng, begin = np.random.default_rng(seed), time.perf_counter()
    for t in progress(scheduler.timesteps):
        x = scheduler.step(model(x, int(t), wanted, dtype), t, x, generator=rng).prev_sample
    drawn = images(lib.to_numpy(x))
    return Drawing(drawn, labels, steps, steps, time.perf_counter() - begin)
