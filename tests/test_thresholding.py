"""Bounds on the estimate: their meaning, special cases, the same on every library, and how they stand in a plan."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from anystep import Clip, DynamicThreshold, Plan, Threshold, estimate, init, update
from anystep_conformance.compare import BOUNDS, compare, rounded
from anystep_conformance.libraries import HALVES, WIDE, cases, library
from anystep_conformance.subjects import random_plan

quick = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
shapes = st.sampled_from([(1,), (3,), (2, 5), (1, 1, 1), (3, 2, 4), (2, 1, 2, 3)])
ratios = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.995, 1.0])
greatest = st.floats(1, 8) | st.sampled_from([1.0, 2.0, float("inf")])


def values(shape, seed, size=3.0):
    return np.random.default_rng(seed).normal(size=shape) * size


def dynamic(x0, ratio, max_value):
    """Section 2.3 of the Imagen paper, sample by sample, in float64, with NumPy's quantile."""
    results = []
    for sample in np.asarray(x0, np.float64):
        s = np.clip(np.quantile(np.abs(sample), ratio), 1, max_value)
        results.append(np.clip(sample, -s, s) / s)
    return np.stack(results)


# Clip


@quick
@given(shapes, st.integers(0, 99), st.floats(0.01, 10))
@pytest.mark.parametrize(("entry", "dtype"), cases(WIDE))
def test_clip_is_exact(entry, dtype, shape, seed, bound):
    with entry.scope(dtype):
        x0 = entry.array(values(shape, seed), dtype)
        limit = float(np.asarray(bound, dtype))
        expected = np.minimum(np.maximum(entry.read(x0).astype(float), -limit), limit)
        compare(Clip(bound)(x0), expected, like=x0)


def test_clip_keeps_what_is_inside_and_the_ends():
    x0 = np.array([-2.0, -1.0, -0.0, 0.5, 1.0, np.nextafter(1.0, 2.0), np.inf, -np.inf])
    compare(Clip()(x0), np.array([-1.0, -1.0, -0.0, 0.5, 1.0, 1.0, 1.0, -1.0]), signed_zeros=True)
    assert np.isnan(Clip()(np.array([np.nan]))).all()  # a model's NaN is not hidden


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_clip_refuses(bound):
    with pytest.raises(ValueError, match=f"bound={bound}.*> 0"):
        Clip(bound)


# Dynamic thresholding


@quick
@given(shapes, st.integers(0, 99), ratios, greatest)
@pytest.mark.parametrize(("entry", "dtype"), cases(WIDE))
def test_dynamic_threshold_is_the_papers(entry, dtype, shape, seed, ratio, max_value):
    with entry.scope(dtype):
        x0 = entry.array(values(shape, seed), dtype)
        bound = BOUNDS["dynamic threshold"].ulp
        compare(
            DynamicThreshold(ratio, max_value)(x0),
            dynamic(entry.read(x0), ratio, max_value),
            like=x0,
            scale=1.0,
            ulp=bound,
        )


@pytest.mark.parametrize(("entry", "dtype"), cases(WIDE))
def test_dynamic_threshold_agrees_between_libraries(entry, dtype):
    with entry.scope(dtype):
        for ratio, max_value in ((0.995, 2.0), (0.5, np.inf), (1.0, 7.3)):
            x0, threshold = values((8, 5, 100), 3), DynamicThreshold(ratio, max_value)
            expected = threshold(library("numpy").array(x0, dtype))
            found = threshold(given := entry.array(x0, dtype))
            compare(found, expected, like=given, ulp=BOUNDS["eager"].ulp)


@quick
@given(shapes, st.integers(0, 99), ratios)
def test_greatest_bound_of_one_is_a_clip(shape, seed, ratio):
    x0 = values(shape, seed)
    compare(DynamicThreshold(ratio, 1.0)(x0), Clip(1.0)(x0))


@quick
@given(shapes, st.integers(0, 99), ratios, greatest)
def test_a_sample_inside_the_range_is_left_alone(shape, seed, ratio, max_value):
    x0 = np.tanh(values(shape, seed))
    compare(DynamicThreshold(ratio, max_value)(x0), x0)


@quick
@given(shapes, st.integers(0, 99), ratios, greatest)
def test_results_lie_in_the_unit_range(shape, seed, ratio, max_value):
    assert (np.abs(DynamicThreshold(ratio, max_value)(values(shape, seed))) <= 1).all()


@quick
@given(shapes, st.integers(0, 99))
def test_the_largest_magnitude_scales_to_one(shape, seed):
    x0 = values(shape, seed, size=5.0)
    found = DynamicThreshold(1.0, float("inf"))(x0)
    s = np.maximum(np.abs(x0).reshape(shape[0], -1).max(axis=1), 1).reshape(-1, *[1] * (len(shape) - 1))
    compare(found, x0 / s)


@quick
@given(shapes, st.integers(0, 99), ratios, greatest)
def test_each_sample_has_its_own_bound(shape, seed, ratio, max_value):
    x0, threshold = values(shape, seed), DynamicThreshold(ratio, max_value)
    together = threshold(x0)
    for b in range(shape[0]):
        compare(together[b : b + 1], threshold(x0[b : b + 1]))


def test_quantile_of_equal_values_is_that_value():
    """Interpolation must not leave it by a rounding: 0.1 + (0.1 - 0.1) w is exact, 0.1 (1 - w) + 0.1 w is not."""
    for dtype in WIDE:
        x0 = np.full((1, 7), 3.1, dtype)
        compare(DynamicThreshold(0.37, 10.0)(x0), np.ones((1, 7), dtype))


def test_one_value_is_its_own_quantile():
    compare(DynamicThreshold(0.995, 10.0)(np.array([[4.0], [0.5]])), np.array([[1.0], [0.5]]))
    compare(DynamicThreshold(0.995, 10.0)(np.array(-4.0)), np.array(-1.0))


def test_a_model_that_gives_nan_is_not_hidden():
    x0 = np.array([[np.nan, 0.5], [3.0, 0.5]])
    found = DynamicThreshold(1.0, 10.0)(x0)
    assert np.isnan(found[0]).any()
    compare(found[1:], np.array([[1.0, 0.5 / 3.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": -0.1}, r"ratio=-0.1 is outside \[0, 1\]"),
        ({"ratio": 1.1}, r"ratio=1.1 is outside \[0, 1\]"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"max_value": 0.5}, "max_value=0.5.*>= 1"),
        ({"max_value": float("nan")}, "max_value=nan"),
    ],
)
def test_dynamic_threshold_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicThreshold(**arguments)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32"]))
@pytest.mark.parametrize("threshold", [Clip(), DynamicThreshold(0.9, 2.0)])
def test_no_values(entry, dtype, shape, threshold):
    x0 = entry.array(np.zeros(shape), dtype)
    compare(threshold(x0), x0)


# In text


@pytest.mark.parametrize("threshold", [None, Clip(0.3), DynamicThreshold(0.9, 1.7)])
def test_there_and_back(threshold):
    assert Threshold.from_dict(None if threshold is None else threshold.to_dict()) == threshold


def test_text_of_another_kind():
    with pytest.raises(ValueError, match="kind='Clamp': expected one of Clip, DynamicThreshold"):
        Threshold.from_dict({"kind": "Clamp"})


# In a plan


@quick
@given(st.integers(0, 99), st.sampled_from([Clip(0.7), DynamicThreshold(0.8, 2.0)]))
@pytest.mark.parametrize(("entry", "dtype"), cases(WIDE))
def test_the_update_reads_the_bounded_estimate(entry, dtype, seed, threshold):
    """A row of (0, 0, 1) returns exactly what `estimate` gives, and a general row mixes it with the unbounded x and m."""
    rng = np.random.default_rng(seed)
    table = np.zeros((1, 1, 3))
    table[0, 0, 2] = 1.0
    only = Plan([0], [1, 1], [1, 0], [1], rng.normal(size=(1, 2)), table, threshold)
    with entry.scope(dtype):
        x, m = (entry.array(values((2, 6), seed + k), dtype) for k in (0, 1))
        x0 = estimate(only, 0, x, m)
        compare(update(only, 0, init(only, x), m).x, x0)
        raw = Plan([0], [1, 1], [1, 0], [1], only.estimate, table)
        compare(x0, threshold(estimate(raw, 0, x, m)))
        mixed = Plan([0], [1, 1], [1, 0], [1], only.estimate, table + np.array([0.25, -2.0, 1.0]), threshold)
        wide = [np.asarray(entry.read(part), np.float64) for part in (x, m, x0)]
        expected = 0.25 * wide[0] - 2 * wide[1] + 2 * wide[2]
        scale = 0.25 * abs(wide[0]) + 2 * abs(wide[1]) + 2 * abs(wide[2])
        compare(
            update(mixed, 0, init(mixed, x), m).x, expected, like=x, scale=scale, ulp=BOUNDS["reference"].ulp
        )


@pytest.mark.parametrize(("entry", "dtype"), cases(HALVES))
@pytest.mark.parametrize("threshold", [Clip(0.7), DynamicThreshold(0.8, 2.0)])
def test_half_precision_is_bounded_in_float32(entry, dtype, threshold):
    plan = random_plan(2, threshold=threshold, density=1.0)
    x, m = (entry.array(values((2, 9), k), dtype) for k in (0, 1))
    wide = [np.asarray(entry.read(part), np.float32) for part in (x, m)]
    compare(estimate(plan, 0, x, m), rounded(estimate(plan, 0, *wide), dtype), like=x)
    compare(
        update(plan, 1, init(plan, x), m).x,
        rounded(update(plan, 1, init(plan, wide[0]), wide[1]).x, dtype),
        like=x,
    )
