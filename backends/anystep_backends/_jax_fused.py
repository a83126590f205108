"""A row of a plan as one XLA program, compiled once for all rows of all plans of the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from anystep import Plan, State

from ._fused import Form, Step

__all__ = ["fuse"]


def fuse(plan: Plan, i: int, x: jax.Array) -> Step | None:
    """Row ``i`` for arrays like ``x``; None while tracing, when XLA fuses the plain path."""
    if isinstance(x, Tracer):
        return None
    outputs = plan.outputs(i)
    rows = [one for one in outputs if not isinstance(one, int)]
    numbers = [value for row in rows for value in Form.numbers(row)]
    # On the host: jit moves them together with the call, and a device array would have to be where x is.
    values = np.asarray(numbers, jnp.float32 if x.dtype in (jnp.float16, jnp.bfloat16) else x.dtype)
    forms = tuple(map(Form.of, rows))
    combine, overwrite = _compiled(forms)
    moves = tuple([one if isinstance(one, int) else None for one in outputs[1:]])
    if 0 in moves:
        overwrite = combine  # x stays in use as a memory

    def step(arrays: Sequence[Any], donate: bool) -> State:
        x, *others = arrays
        first, *made = (overwrite if donate else combine)(values, x, others)
        if not moves:
            return State(first)
        rest = iter(made)
        return State(first, tuple([next(rest) if one is None else arrays[one] for one in moves]))

    return step


@cache
def _compiled(forms: tuple[Form, ...]) -> tuple[Any, Any]:
    """One function for each structure, and one that may write to x.

    As a static argument the structure would be hashed at every call.
    """
    combine = partial(_combine, forms)
    return jax.jit(combine), jax.jit(combine, donate_argnums=1)


def _combine(
    forms: tuple[Form, ...], values: Any, x: jax.Array, others: Sequence[jax.Array]
) -> list[jax.Array]:
    wide = [array.astype(values.dtype) for array in (x, *others)]
    numbers, out = iter(values), list[jax.Array]()
    for form in forms:
        total: Any = None
        for k in form.columns:
            term = wide[k] * next(numbers)
            total = term if total is None else total + term
        if form.base is not None:
            base = wide[form.base] - wide[1] if form.opposed else wide[form.base]
            total = base if total is None else base + total
        total = jnp.zeros_like(wide[0]) if total is None else total
        for k in form.late:
            total = total + wide[k] * next(numbers)
        out.append((total * next(numbers)).astype(x.dtype))
    return out
