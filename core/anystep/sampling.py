"""The plain loop: model and plan in, sample out."""

from collections.abc import Callable, Iterable
from typing import Any

from anystep._array import Array
from anystep._draw import draw
from anystep._update import State, init, scale_input, update
from anystep.plan import Plan

__all__ = ["sample"]

Model = Callable[[Array, float], Array]


def sample(
    model: Model,
    plan: Plan,
    x: Array,
    *,
    generator: Any = None,
    noise: Callable[[int], Any] | None = None,
    callback: Callable[[int, State], None] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Array:
    """Run a whole plan.

    Parameters
    ----------
    model
        Called as ``model(input, timestep)`` with the input in the dtype and on the device of ``x`` and the
        timestep a Python float; returns what the plan's prediction says, shape of ``x``.
    plan
        From a sampler.
    x
        Start sample: standard normals times ``plan.sigma[0]`` for a generation from noise, any array library.
    generator
        Source of the noise of a stochastic plan; see `anystep.draw`. With `anystep.CounterNoise`, and its noise for the start
        sample, a seed gives the same numbers on every library.
    noise
        Instead of a generator: called with the row, returns that row's noise, one array or R of them.
    callback
        Called after each step with the row and the state.
    progress
        Wraps the iterable of rows, such as `tqdm.tqdm`.

    Returns
    -------
    Array
        The final sample, with shape, dtype and device of ``x``.

    Raises
    ------
    ValueError
        If both a generator and noise are given.

    Examples
    --------
    >>> import numpy as np
    >>> from anystep import DDIM, BetaSchedule, Trailing
    >>> plan = DDIM().plan(Trailing().levels(BetaSchedule.named("linear"), steps=10), "sample")
    >>> sample(lambda x, t: np.full_like(x, 0.5), plan, np.ones((1, 2)))
    array([[0.5, 0.5]])
    """
    if generator is not None and noise is not None:
        raise ValueError("generator and noise were both given: pass one; the noise is used as it is.")
    state = init(plan, x)
    for i in progress(range(len(plan))):
        model_output = model(scale_input(plan, i, state.x), float(plan.timesteps[i]))
        fresh = None
        if plan.stochastic[i]:
            fresh = (
                noise(i)
                if noise is not None
                else tuple(draw(x, generator, i * plan.noises + r) for r in range(plan.noises))
            )
        state = update(plan, i, state, model_output, fresh)
        if callback is not None:
            callback(i, state)
    return state.x
