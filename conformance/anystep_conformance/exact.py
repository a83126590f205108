"""A row of a plan in exact rational arithmetic: what a step should give, worked out without any of the code that gives it.

A float is a rational number, so sums, products, bounds and quotients of floats have one exact value. This file shares
nothing with the step but the plan's tables, read as `anystep.plan` documents them.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from anystep import Clip, DynamicThreshold, Plan
from anystep.thresholding import Threshold

__all__ = ["Exact", "Sample", "bounded", "exact_row"]

Sample = Sequence[float]
"""The values of one sample of a batch, flat."""


class Exact(NamedTuple):
    """The results of one call for one sample, flat."""

    model_input: list[Fraction]
    estimate: list[Fraction]
    outputs: list[list[Fraction]]
    """The next sample, then the next memories."""


def exact_row(
    plan: Plan, i: int, x: Sample, m: Sample, memories: Sequence[Sample], noises: Sequence[Sample]
) -> Exact:
    """Row ``i`` of a plan for one sample.

    Parameters
    ----------
    plan, i
        The row.
    x, m, memories, noises
        The sample, the model's output, K memories and R noises.

    Raises
    ------
    NotImplementedError
        If the plan bounds x̂₀ in a way that this file does not know.

    Examples
    --------
    >>> from anystep import DDIM, BetaSchedule, Leading
    >>> plan = DDIM().plan(Leading().levels(BetaSchedule.named("linear"), steps=2), "sample")
    >>> [float(v) for v in exact_row(plan, 1, [7.0], [0.5], [], []).estimate]
    [0.5]
    """
    columns = [list(map(Fraction, column)) for column in (x, m)]
    a, b = (Fraction(float(c)) for c in plan.estimate[i])
    estimate = bounded(plan.threshold, [a * u + b * v for u, v in zip(*columns, strict=True)])
    columns.append(estimate)
    columns += [list(map(Fraction, column)) for column in (*memories, *noises)]
    outputs = [
        [
            sum((c * v for c, v in zip(row, values, strict=True)), Fraction(0))
            for values in zip(*columns, strict=True)
        ]
        for row in ([Fraction(float(c)) for c in row] for row in plan.update[i])
    ]
    scale = Fraction(float(plan.input_scale[i]))
    return Exact([scale * v for v in columns[0]], estimate, outputs)


def bounded(threshold: Threshold | None, x0: Sequence[Fraction]) -> list[Fraction]:
    """One sample's estimate, bounded.

    Examples
    --------
    >>> [str(v) for v in bounded(DynamicThreshold(1.0, 10.0), [Fraction(-4), Fraction(1)])]
    ['-1', '1/4']
    """
    if threshold is None:
        return list(x0)
    if isinstance(threshold, Clip):
        bound = Fraction(threshold.bound)
        return [min(max(v, -bound), bound) for v in x0]
    if not isinstance(threshold, DynamicThreshold):
        raise NotImplementedError(f"threshold={threshold!r}: expected Clip or DynamicThreshold.")
    ordered = sorted(map(abs, x0))
    position = Fraction(threshold.ratio) * (len(ordered) - 1)
    low = int(position)
    above = ordered[min(low + 1, len(ordered) - 1)]
    quantile = ordered[low] + (above - ordered[low]) * (position - low)
    s = min(max(quantile, Fraction(1)), Fraction(threshold.max_value))
    return [min(max(v, -s), s) / s for v in x0]
