"""Order of convergence toward solutions known in closed form, or to 12 digits, on even and uneven grids.

With y = x_t / alpha_t and κ = sigma_t / alpha_t the data seen through the noise are p * N(0, κ²), the estimate is E[x_0 | y], and

    probability flow, DDIM(eta=0) and Euler:       dy/dκ =   (y - x̂₀) / κ
    mean drift of the reverse process, DDPM:       dy/dκ = 2 (y - x̂₀) / κ

For Gaussian data N(m, s²), x̂₀ = (s² y + κ² m) / (s² + κ²), so y - m is proportional to √(s² + κ²) and to s² + κ² in turn.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from anystep import (
    DDIM,
    DDPM,
    VE,
    VP,
    Cosine,
    EDMSchedule,
    Euler,
    Levels,
    RectifiedFlow,
    init,
    scale_input,
    update,
)
from anystep.predictions import PREDICTIONS

# The ODE from κ = 8 to κ = 0.1: what comes above and below adds no difficulty, only steps.
HIGH, LOW = 8.0, 0.1
STEPS = (64, 128, 256)
STARTS = np.linspace(-2, 2, 5)


@dataclass(frozen=True)
class Gaussian:
    """Data N(m, s²)."""

    mean: float = 0.3
    std: float = 0.6

    def estimate(self, y, ratio):
        return (self.std**2 * y + ratio**2 * self.mean) / (self.std**2 + ratio**2)

    def solution(self, y, drift):
        return self.mean + (y - self.mean) * ((self.std**2 + LOW**2) / (self.std**2 + HIGH**2)) ** (drift / 2)


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians of different weight and width."""

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-1.0, 0.8)
    stds: tuple[float, ...] = (0.3, 0.5)

    def estimate(self, y, ratio):
        weights, means, stds = (np.asarray(part)[:, None] for part in (self.weights, self.means, self.stds))
        variance = stds**2 + ratio**2
        log_likelihood = np.log(weights) - (y - means) ** 2 / (2 * variance) - np.log(variance) / 2
        share = np.exp(log_likelihood - log_likelihood.max(axis=0))
        return (share / share.sum(axis=0) * (stds**2 * y + ratio**2 * means) / variance).sum(axis=0)

    def solution(self, y, drift):
        def slope(log_ratio, y):
            return drift * (y - self.estimate(y, np.exp(log_ratio)))

        found = solve_ivp(slope, (np.log(HIGH), np.log(LOW)), y, method="DOP853", rtol=1e-12, atol=1e-12)
        return found.y[:, -1]


PROBLEMS = {"gaussian": Gaussian(), "mixture": Mixture()}


@cache
def solved(problem, drift):
    return PROBLEMS[problem].solution(start(HIGH), drift)


def start(ratio):
    """Where a few samples lie at pure noise, more or less."""
    return STARTS * ratio


# ---------------------------------------------------------------- models and grids

SCHEDULES = {
    "vp": VP(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "ve": VE(),
    "edm": EDMSchedule(),
}


def model_output(predicts, problem, x, alpha_t, sigma_t):
    """The exact model: the estimate, said in each prediction's terms (formulas as in test_predictions)."""
    ratio = sigma_t / alpha_t
    x0 = PROBLEMS[problem].estimate(x / alpha_t, ratio)
    eps = (x - alpha_t * x0) / sigma_t
    c_skip, c_out = 0.25 / (ratio**2 + 0.25), ratio * 0.5 / np.sqrt(ratio**2 + 0.25)
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": alpha_t * eps - sigma_t * x0,
        "flow_prediction": eps - x0,
        "score": -eps / sigma_t,
        "edm": (x0 - c_skip * x / alpha_t) / c_out,
    }[predicts]


def widths(grid, steps):
    """Relative widths of the steps."""
    if grid == "alternating":
        return np.tile([1.0, 3.0], steps // 2)
    if grid == "random":  # each finer grid cuts every step in two, unevenly
        rng = np.random.default_rng(0)
        found = rng.uniform(0.5, 1.5, STEPS[0])
        while len(found) < steps:
            cut = rng.uniform(0.4, 0.6, len(found))
            found = np.stack([found * cut, found * (1 - cut)], -1).ravel()
        return found[:steps]
    return np.ones(steps)


def levels_of(schedule, grid, steps):
    """Levels from κ = 8 to 0.1, both included, made without a spacing; even in t unless the grid is Karras'."""
    progress = np.append(0.0, np.cumsum(widths(grid, steps)))
    progress /= progress[-1]
    if grid == "karras":
        level = schedule.at((HIGH ** (1 / 7) + progress * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7)
    else:
        first, last = (schedule.timestep(end) for end in (HIGH, LOW))
        level = schedule.level(first + progress * (last - first))
    return Levels.chain(level.t, level.alpha_t, level.sigma_t)


GRIDS = ("even", "karras", "alternating", "random")


def error(sampler, problem, levels, predicts, drift):
    plan = sampler.plan(levels, predicts)
    state = init(plan, plan.alpha[0] * start(HIGH))
    quiet = np.zeros_like(state.x) if plan.noises else None
    for i in range(len(plan)):
        level = levels.model_level[i]
        x = scale_input(plan, i, state.x) / PREDICTIONS[predicts]().input_scale(level)
        output = model_output(predicts, problem, x, level.alpha_t, level.sigma_t)
        state = update(plan, i, state, output, quiet)
    return np.abs(state.x / plan.alpha[-1] - solved(problem, drift)).max()


def slope(errors):
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def measured(sampler, problem, schedule, grid, predicts, drift=1, moved=False):
    def levels(steps):
        found = levels_of(SCHEDULES[schedule], grid, steps)
        return found.to_karras() if moved else found

    return [error(sampler, problem, levels(steps), predicts, drift) for steps in STEPS]


def check_order(sampler, errors):
    assert sampler.order == 1
    assert (np.diff(errors) < 0).all()
    assert abs(slope(errors) - sampler.order) < 0.05


each_grid = pytest.mark.parametrize("grid", GRIDS)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
each_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)


@each_schedule
@each_grid
@each_prediction
def test_ddim_has_order_1(schedule, grid, predicts):
    """Measured 0.98 to 1.01, on random grids 0.97: cutting a step in two unevenly leaves more than half of its error."""
    check_order(DDIM(), measured(DDIM(), "mixture", schedule, grid, predicts))


@each_schedule
@each_grid
@pytest.mark.parametrize("sampler", [DDIM(), Euler()], ids=["DDIM", "Euler"])
def test_closed_form(sampler, schedule, grid):
    check_order(sampler, measured(sampler, "gaussian", schedule, grid, "epsilon"))


@each_schedule
@each_prediction
@pytest.mark.parametrize("grid", ["alternating", "random"])
def test_euler_has_order_1_in_karras_coordinates(schedule, grid, predicts):
    check_order(Euler(), measured(Euler(), "mixture", schedule, grid, predicts, moved=True))


@each_schedule
@each_grid
def test_the_mean_of_ddpm_has_order_1(schedule, grid):
    """Without its noise it follows the drift of the reverse process; measured 0.97 to 1.03."""
    check_order(DDPM(), measured(DDPM(), "mixture", schedule, grid, "v_prediction", drift=2))


@each_schedule
@each_grid
@pytest.mark.parametrize("sampler", [DDPM(), DDPM("large"), DDIM(eta=1.0)], ids=["small", "large", "eta=1"])
def test_the_mean_of_ddpm_is_exact_for_a_gaussian(sampler, schedule, grid):
    """For any step width: (s² + κ_nxt²) / (s² + κ_cur²) is both the step's factor and the solution's."""
    for steps in (1, 2, 64) if grid != "alternating" else (2, 64):
        levels = levels_of(SCHEDULES[schedule], grid, steps)
        assert error(sampler, "gaussian", levels, "epsilon", 2) < 1e-12


def test_the_reference_solutions_agree():
    """A mixture of one component, solved numerically, is the Gaussian in closed form."""
    one = Mixture((0.5, 0.5), (0.3, 0.3), (0.6, 0.6))
    for drift in (1, 2):
        np.testing.assert_allclose(
            one.solution(start(HIGH), drift), Gaussian().solution(start(HIGH), drift), rtol=1e-9, atol=1e-10
        )


def test_the_measure_tells_orders_apart():
    """An estimate that is off by a part in 100 √N is seen."""

    class Off(DDIM):
        def rows(self, levels):
            rows = super().rows(levels)
            rows[:, 0, 2] *= 1 + 0.01 / levels.steps**0.5
            return rows

    errors = measured(Off(), "gaussian", "cosine", "even", "epsilon")
    assert abs(slope(errors) - 1) > 0.1
