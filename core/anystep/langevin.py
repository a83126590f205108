"""Langevin correction and predictor-corrector sampling (Song et al. 2021).

The size of a correction comes from norms of the arrays themselves, so it is no plan row: it is array-API code, which reads
nothing from a device and compiles.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np

from anystep._array import Array, backend, expand, kind, place
from anystep._checks import integer
from anystep._combination import Combination
from anystep._draw import draw
from anystep._update import init, scale_input, takes_plain_path, update
from anystep.plan import Plan

__all__ = ["langevin_step", "predictor_corrector"]


def langevin_step(
    x: Array, score: Array, noise: Array, snr: float = 0.16, *, alpha: float = 1.0, per_sample: bool = False
) -> Array:
    """X + e score + √(2 e) z with e = 2 alpha (snr |z| / |score|)², one step of Langevin dynamics at a level.

    Parameters
    ----------
    x, score, noise
        Samples, ∇ log p at them and fresh standard normals z, shape (B, ...); unchanged. Norms are over all axes but the first.
    snr
        Ratio of the sizes of score and noise, >= 0; the paper uses 0.16 (VE, images), 0 changes nothing.
    alpha
        1 for a variance-exploding process; for DDPM's table, 1 - β of the level.
    per_sample
        Take each sample's own norms instead of their means over the batch, so that samples do not depend on their neighbours.

    Returns
    -------
    Array
        Shape, dtype and device of ``x``. Where the score is 0, and so gives no scale, ``x`` unchanged.

    Raises
    ------
    ValueError
        If a shape differs, or ``snr`` or ``alpha`` is out of range.

    References
    ----------
    Yang Song et al. Score-Based Generative Modeling through Stochastic Differential Equations, 2021,
    https://arxiv.org/abs/2011.13456, algorithms 4 (VE) and 5 (VP). The means over the batch are the original code's.

    Examples
    --------
    >>> x, score, z = np.zeros((1, 2)), np.asarray([[3.0, 4.0]]), np.asarray([[0.0, 1.0]])
    >>> langevin_step(x, score, z, snr=0.5)  # e = 2 (0.5 / 5)² = 0.02
    array([[0.06, 0.28]])
    """
    for name, value, high in (("snr", snr, np.inf), ("alpha", alpha, 1.0)):
        if not 0 <= value <= high or value == np.inf:
            raise ValueError(f"{name}={value}: expected a number in [0, {high}]; 0 changes nothing.")
    xp, work, _ = kind(x)
    for name, array in (("score", score), ("noise", noise)):
        if kind(array, name).xp is not xp or array.shape != x.shape or not x.ndim:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}: expected an array like the samples, {tuple(x.shape)}, batch first."
            )
    if 0 in x.shape:  # no norms, and nothing to move
        return xp.astype(x, x.dtype)
    wide, slope, fresh = (
        array if array.dtype == work else xp.astype(array, work) for array in (x, score, noise)
    )
    move = _of_each if per_sample or x.shape[0] == 1 else _of_the_batch
    if place(x) is None and not takes_plain_path():
        move = _compiled(move)
    moved = move(wide, slope, fresh, float(snr), float(alpha))
    return moved if x.dtype == work else xp.astype(moved, x.dtype)


@cache
def _compiled(move: Callable[..., Array]) -> Any:
    """One program on JAX, where each operation would be one."""
    return backend("jax").transforms["compile"](move)


def _of_each(x: Array, score: Array, noise: Array, snr: float, alpha: float) -> Array:
    return _moved(x, score, noise, _norms(score), _norms(noise), snr, alpha)


def _of_the_batch(x: Array, score: Array, noise: Array, snr: float, alpha: float) -> Array:
    mean = kind(x).xp.mean
    return _moved(x, score, noise, mean(_norms(score)), mean(_norms(noise)), snr, alpha)


def _moved(
    x: Array, score: Array, noise: Array, of_score: Array, of_noise: Array, snr: float, alpha: float
) -> Array:
    """The step, where norms are given; all in working precision."""
    xp = kind(x).xp
    ratio = of_noise / xp.where(of_score == 0, xp.full_like(of_score, np.inf), of_score)
    root = ratio * (2.0 * alpha**0.5 * snr)  # √(2 e)
    return x + (score * expand(root * root * 0.5, x) + noise * expand(root, x))


def _norms(array: Array) -> Array:
    """Euclidean norm of each sample, shape (B,)."""
    xp = kind(array).xp
    flat = xp.reshape(array, (array.shape[0], math.prod(array.shape[1:])))
    if hasattr(xp, "linalg"):  # an extension of the standard, which not every library has
        return xp.linalg.vector_norm(flat, axis=1)
    return xp.sqrt(xp.sum(flat * flat, axis=1))


def predictor_corrector(
    model: Callable[[Array, float], Array],
    plan: Plan,
    x: Array,
    *,
    snr: float = 0.16,
    corrections: int = 1,
    per_sample: bool = False,
    generator: Any = None,
    noise: Callable[[int], Array] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Array:
    """Run a plan with Langevin corrections at the level of each of its calls, before the call.

    Parameters
    ----------
    model
        As for `anystep.sample`; any prediction, since the score is made of the plan's estimate: (alpha x̂₀ - x) / sigma².
    plan
        Of the predictor, such as `ReverseDiffusion`, with at most one noise.
    x
        Start sample: standard normals times ``plan.sigma[0]`` for a generation from noise, any array library.
    snr, per_sample
        See `langevin_step`.
    corrections
        Number M >= 0 of them at each level; the model is called N (1 + M) times.
    generator
        Source of all noise; see `anystep.draw`.
    noise
        Instead of a generator: called with the number of the draw, returns standard normals like ``x``.
    progress
        Wraps the iterable of rows.

    Returns
    -------
    Array
        The final sample, with shape, dtype and device of ``x``.

    Raises
    ------
    ValueError
        If both a generator and noise are given, the plan has several noises, or an option is out of range.

    References
    ----------
    Song et al. 2021, algorithms 2 and 3, with the corrections of a level before the prediction from it, as in the original
    code: the paper has them after the prediction to it, so that its first level has none.

    Examples
    --------
    >>> from anystep import VE, Exponential, ReverseDiffusion
    >>> plan = ReverseDiffusion().plan(Exponential().levels(VE(), steps=5), "sample")
    >>> start = np.random.default_rng(0).standard_normal((1, 2)) * 50
    >>> predictor_corrector(lambda x, t: np.full_like(x, 0.5), plan, start, generator=np.random.default_rng(1))
    array([[0.5, 0.5]])
    """
    if generator is not None and noise is not None:
        raise ValueError("generator and noise were both given: pass one; the noise is used as it is.")
    if plan.noises > 1:
        raise ValueError(f"plan takes {plan.noises} noises a call: expected a predictor with at most one.")
    integer("corrections", corrections, 0)
    score, drawn = score_combination(plan), 0
    state = init(plan, x)
    for i in progress(range(len(plan))):
        t = float(plan.timesteps[i])
        for last in (False,) * corrections + (True,):
            output, fresh = model(scale_input(plan, i, state.x), t), None
            if not last or plan.stochastic[i]:
                fresh = draw(state.x, generator, drawn) if noise is None else noise(drawn)
                drawn += 1
            if last:
                state = update(plan, i, state, output, fresh)
            else:
                slope = _score(score, i, state.x, output)
                alpha = min(1.0, float(plan.alpha[i] / plan.alpha[i + 1]) ** 2)
                moved = langevin_step(state.x, slope, fresh, snr, alpha=alpha, per_sample=per_sample)
                state = state._replace(x=moved)
    return state.x


def score_combination(plan: Plan) -> Combination:
    """How to form ∇ log p of x and the model's output at each call, without the plan's threshold."""
    alpha, sigma = plan.alpha[:-1, None], plan.sigma[:-1, None]
    return Combination((plan.estimate * alpha - [1.0, 0.0]) / sigma**2)


def _score(combination: Combination, i: int, x: Array, output: Array) -> Array:
    """The score in working precision."""
    xp, work, _ = kind(x)
    return combination(i, [xp.astype(array, work, copy=False) for array in (x, output)], x)
