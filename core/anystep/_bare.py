"""Plans of rows that estimate nothing, for steps that are told their level and for parts of a step."""

from typing import Any

import numpy as np

from anystep._array import Array
from anystep._update import State, update
from anystep.plan import Plan

__all__ = ["bare_plan", "moved_by"]


def bare_plan(x: Any, model_output: Any, *noises: Any) -> Plan:
    """A row for each number of the longest argument: coefficients of the sample, of the model's output as it is, of noises."""
    columns = np.broadcast_arrays(np.atleast_1d(x), model_output, 0.0, *noises)
    count = len(columns[0])
    ends = np.ones(count + 1)
    return Plan(
        timesteps=ends[1:],
        alpha=ends,
        sigma=ends,
        input_scale=ends[1:],
        estimate=np.zeros((count, 2)),
        update=np.stack(columns, axis=-1)[:, None, :],
    )


def moved_by(plan: Plan, row: Any, sample: Array, model_output: Array, noise: Any = None) -> Array:
    """The next sample alone."""
    return update(plan, row, State(sample), model_output, noise).x
