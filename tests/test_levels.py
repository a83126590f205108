"""Points of a process, chains of them, and their change of coordinates."""

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import BetaSchedule, Level, Levels, Trailing
from anystep.levels import check_descending

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=100)
positive = st.floats(1e-6, 1e6)


@EXAMPLES
@given(alpha_t=positive, sigma_t=positive)
def test_ratios(alpha_t, sigma_t):
    level = Level(0, alpha_t, sigma_t)
    with mpmath.workdps(50):
        ratio = mpmath.mpf(sigma_t) / mpmath.mpf(alpha_t)
        assert float(level.karras_sigma) == float(ratio)
        # The two logarithms are rounded apart: the error is relative to them, not to their difference.
        assert abs(level.lambda_t + mpmath.log(ratio)) <= 4e-16 * (
            1 + abs(np.log(alpha_t)) + abs(np.log(sigma_t))
        )


def test_ratios_at_the_ends():
    ends = Level(np.zeros(2), np.asarray([1.0, 0.0]), np.asarray([0.0, 1.0]))
    assert ends.karras_sigma.tolist() == [0.0, np.inf]
    assert ends.lambda_t.tolist() == [np.inf, -np.inf]


def test_indexing_keeps_the_three_together():
    points = Level(np.arange(3), np.asarray([0.1, 0.2, 0.3]), np.asarray([3.0, 2.0, 1.0]))
    assert (points[1].t, points[1].alpha_t, points[1].sigma_t) == (1, 0.2, 2.0)
    assert points[1:].sigma_t.tolist() == [2.0, 1.0]


def test_chain():
    levels = Levels.chain([9, 4, 1], [0.5, 0.8, 1.0], [2.0, 0.7, 0.0])
    assert levels.steps == 2
    assert (levels.cur.t.tolist(), levels.nxt.t.tolist()) == ([9, 4], [4, 1])
    assert (levels.cur.alpha_t.tolist(), levels.nxt.alpha_t.tolist()) == ([0.5, 0.8], [0.8, 1.0])
    assert (levels.cur.sigma_t.tolist(), levels.nxt.sigma_t.tolist()) == ([2.0, 0.7], [0.7, 0.0])
    assert levels.scale.tolist() == [1.0, 1.0]


def test_pure_noise_may_only_come_first():
    assert Levels.chain([1, 0], [0.0, 1.0], [1.0, 0.0]).cur.karras_sigma.tolist() == [np.inf]
    with pytest.raises(ValueError, match="sigmas"):
        Levels.chain([2, 1, 0], [0.0, 0.0, 1.0], [1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("t", "alpha_t", "sigma_t", "message"),
    [
        ([0], [1], [1], "empty"),
        ([1, 0], [1, 1], [1, 1], "not below"),
        ([1, 0], [1, 1], [1, 2], "not below"),
        ([1, 0], [1, 1], [np.nan, 0], "finite"),
        ([1, 0], [np.nan, 1], [1, 0], "finite"),
        ([np.nan, 0], [1, 1], [1, 0], "timesteps"),
        ([1, 0], [1, 1], [np.inf, 0], "finite"),
        ([1, 0], [1, 1], [1, -1], ">= 0"),
        ([1, 0], [-1, 1], [-1, 0], ">= 0"),
        ([2, 1, 0], [1, 1, 1], [0, 0, 0], "not below"),
        ([[1, 0]], [[1, 1]], [[1, 0]], "flat"),
    ],
)
def test_chain_refuses(t, alpha_t, sigma_t, message):
    with pytest.raises(ValueError, match=message):
        Levels.chain(t, alpha_t, sigma_t)


def test_the_end_needs_no_timestep():
    assert np.isnan(Levels.chain([1, np.nan], [1, 1], [1, 0]).nxt.t).all()


def test_steps_need_not_meet():
    cur = Level(np.asarray([2.0, 1.0]), np.ones(2), np.asarray([4.0, 3.0]))
    nxt = Level(np.zeros(2), np.ones(2), np.asarray([2.0, 0.0]))
    assert Levels(cur, nxt).steps == 2
    for bad, message in ((np.asarray([np.nan, 0.0]), "finite"), (np.asarray([-1.0, 0.0]), ">= 0")):
        with pytest.raises(ValueError, match=message):
            Levels(cur, Level(np.zeros(2), np.ones(2), bad))
    with pytest.raises(ValueError, match="sigma_t is 0"):
        Levels(Level(np.ones(1), np.ones(1), np.zeros(1)), Level(np.zeros(1), np.ones(1), np.zeros(1)))


@EXAMPLES
@given(ratios=st.lists(positive, min_size=1, max_size=8, unique=True), alpha=st.floats(1e-3, 1e3))
def test_karras_coordinates_leave_the_model_where_it_is(ratios, alpha):
    ratios = np.sort(np.asarray(ratios))[::-1]
    alpha_t = alpha / np.sqrt(1 + ratios**2)
    points = np.append(ratios * alpha_t, 0.0), np.append(alpha_t, alpha)
    levels = Levels.chain(np.arange(len(ratios) + 1)[::-1], points[1], points[0], scale=0.5)
    moved = levels.to_karras()
    assert (moved.cur.alpha_t == 1).all() and (moved.nxt.alpha_t == 1).all()
    assert moved.cur.sigma_t.tolist() == levels.cur.karras_sigma.tolist()
    assert moved.nxt.sigma_t.tolist() == levels.nxt.karras_sigma.tolist()
    assert moved.cur.t.tolist() == levels.cur.t.tolist()
    for name in ("t", "alpha_t", "sigma_t"):
        before, after = getattr(levels.model_level, name), getattr(moved.model_level, name)
        np.testing.assert_allclose(after, before, rtol=4e-16, atol=0)
    # Moving again changes nothing.
    np.testing.assert_allclose(moved.to_karras().scale, moved.scale, rtol=0)


def test_pure_noise_has_no_karras_coordinates():
    with pytest.raises(ValueError, match="finite"):
        Trailing().levels(BetaSchedule.named("linear").rescaled_to_zero_terminal_snr(), 3).to_karras()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 1.0], r"x\[1\]=1.0 is not below x\[0\]=1.0"),
        ([3.0, 2.0, 2.5], r"x\[2\]=2.5 is not below x\[1\]=2.0"),
        ([3.0, np.nan], r"x\[1\]=nan"),
        ([np.nan, 3.0], r"x\[0\]=nan"),
        ([3.0, -np.inf], r"x\[1\]=-inf"),
        (5.0, r"shape \(\)"),
        ([[2.0, 1.0]], r"shape \(1, 2\)"),
    ],
)
def test_descending(values, message):
    with pytest.raises(ValueError, match=message):
        check_descending("x", values)


def test_descending_lets_pass():
    for values in ([], [1.0], [2.0, 1.0, 0.0], [np.inf, 1.0], np.asarray([3, 2])):
        check_descending("x", values)
