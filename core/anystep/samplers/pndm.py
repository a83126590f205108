"""PNDM: pseudo numerical methods for diffusion models (Liu, Ren, Lin, Zhao 2022), second order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from anystep._array import Float64
from anystep.levels import Level, Levels
from anystep.samplers._base import Sampler
from anystep.schedules import Schedule

__all__ = ["PNDM", "STAGES", "stage_rows"]

CUR, MIDDLE, NXT = 0, 1, 2
"""Points of a step."""


class Stage(NamedTuple):
    """One model call: where it is, where φ ends, and the slope e that φ takes."""

    at: int
    ends: int
    slope: tuple[float, ...]
    """Weights in e of (ε̂, the ε̂ of the last three steps, the running sum)."""
    based: bool = False
    """Whether φ starts from the remembered sample, else from x, which is remembered then."""
    total: tuple[float, float] = (0.0, 0.0)
    """Weights of (ε̂, the running sum) in the next running sum."""
    remembers: bool = True
    """Whether ε̂ joins the last three."""


STAGES: dict[str, Stage] = {
    "prk1": Stage(CUR, MIDDLE, (1, 0, 0, 0, 0), total=(1 / 6, 0)),
    "prk2": Stage(MIDDLE, MIDDLE, (1, 0, 0, 0, 0), based=True, total=(1 / 3, 1), remembers=False),
    "prk3": Stage(MIDDLE, NXT, (1, 0, 0, 0, 0), based=True, total=(1 / 3, 1), remembers=False),
    "prk4": Stage(NXT, NXT, (1 / 6, 0, 0, 0, 1), based=True, remembers=False),
    "plms1": Stage(CUR, NXT, (1, 0, 0, 0, 0)),
    "improve": Stage(NXT, NXT, (1 / 2, 1 / 2, 0, 0, 0), based=True, remembers=False),
    "plms2": Stage(CUR, NXT, (3 / 2, -1 / 2, 0, 0, 0)),
    "plms3": Stage(CUR, NXT, (23 / 12, -16 / 12, 5 / 12, 0, 0)),
    "euler": Stage(CUR, NXT, (1, 0, 0, 0, 0), remembers=False),
    "idle": Stage(CUR, CUR, (0, 0, 0, 0, 0), remembers=False),
    "plms4": Stage(CUR, NXT, (55 / 24, -59 / 24, 37 / 24, -9 / 24, 0)),
}

X, NOISE, X0, BASE, PAST, TOTAL = 0, 1, 2, 3, 4, 7
"""Columns; a memory's row is its column less 2."""


@dataclass(frozen=True)
class PNDM(Sampler):
    """x_nxt = φ(x, e) = alpha_nxt / alpha_cur x + (sigma_nxt - alpha_nxt / alpha_cur sigma_cur) e: a DDIM step
    with a better slope e than ε̂.

    After the warm-up, e is the linear multistep (55 ε̂ - 59 ε̂₁ + 37 ε̂₂ - 9 ε̂₃) / 24 of the noise estimates at this and
    the three levels before.

    Parameters
    ----------
    schedule
        The process of the levels, needed by Runge-Kutta, whose second and third calls lie half-way in t.
    warmup
        ``"runge_kutta"``: three steps of four calls, so N + 9 calls for N >= 4. ``"improved_euler"``: one step of two
        calls, then multisteps of 2 and 3 estimates, so N + 1 calls, as in the PLMS sampler of latent diffusion.

    Raises
    ------
    ValueError
        If ``warmup`` is none of these, Runge-Kutta lacks its schedule, or a level where the model is called has no signal.

    Notes
    -----
    A row is a model call. With fewer than four steps, the last is a multistep of as many estimates as there are: one step
    is `DDIM`. The weights are those of even steps in t: the order is 2 if the steps change smoothly, else 1. With a
    threshold, every ε̂ is made of the bounded x̂₀.

    References
    ----------
    Luping Liu, Yi Ren, Zhijie Lin, Zhou Zhao. Pseudo Numerical Methods for Diffusion Models on Manifolds, 2022,
    https://arxiv.org/abs/2202.09778, equations 11 (φ, there for alpha² + sigma² = 1), 12 and 13, property 3.2 (order).
    Improved Euler is the warm-up of S-PNDM in its appendix.

    Examples
    --------
    >>> from anystep import BetaSchedule, Leading
    >>> schedule = BetaSchedule.named("linear")
    >>> plan = PNDM(schedule).plan(Leading().levels(schedule, steps=5), "epsilon")
    >>> plan.timesteps.astype(int).tolist()
    [800, 700, 700, 600, 600, 500, 500, 400, 400, 300, 300, 200, 200, 0]
    """

    schedule: Schedule | None = None
    warmup: Literal["runge_kutta", "improved_euler"] = "runge_kutta"
    order: ClassVar[int] = 2
    bounds_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.warmup not in ("runge_kutta", "improved_euler"):
            raise ValueError(f"warmup={self.warmup!r}: expected 'runge_kutta' or 'improved_euler'.")
        if self.warmup == "runge_kutta" and self.schedule is None:
            raise ValueError(
                "schedule=None: Runge-Kutta calls the model between the levels; pass the schedule, or warmup='improved_euler'."
            )

    def stages(self, steps: int) -> list[tuple[int, str]]:
        """(step, stage) of each model call.

        Examples
        --------
        >>> PNDM(warmup="improved_euler").stages(3)
        [(0, 'plms1'), (0, 'improve'), (1, 'plms2'), (2, 'plms3')]
        """
        if self.warmup == "improved_euler":
            multistep = [(step, f"plms{min(step, 3) + 1}") for step in range(steps)]
            return multistep if steps == 1 else [multistep[0], (0, "improve"), *multistep[1:]]
        single = min(3, steps - 1)  # a last step that ends without noise has no level for a fourth call
        return [(step, f"prk{k}") for step in range(single) for k in (1, 2, 3, 4)] + [
            (step, f"plms{min(step, 3) + 1}") for step in range(single, steps)
        ]

    def calls(self, levels: Levels) -> Levels:
        """The level of each model call, and the level that x is at after it."""
        points = [(levels.cur, levels.scale), self._middle(levels), (levels.nxt, _scale_of_next(levels))]
        calls = [(step, STAGES[name]) for step, name in self.stages(levels.steps)]

        def gather(which: Sequence[int]) -> tuple[Level, Float64]:
            steps = np.asarray([step for step, _ in calls])
            fields = [
                np.stack(
                    [np.broadcast_to(part, levels.steps) for part in (lev.t, lev.alpha_t, lev.sigma_t, scale)]
                )
                for lev, scale in points
            ]
            t, alpha_t, sigma_t, scale = np.stack(fields)[np.asarray(which), :, steps].T
            return Level(t, alpha_t, sigma_t), scale

        cur, scale = gather([stage.at for _, stage in calls])
        return Levels(cur, gather([stage.ends for _, stage in calls])[0], scale)

    def rows(self, levels: Levels) -> Float64:
        """Coefficients of (x, ε̂, x̂₀, memories), a row for each model call; memories are the sample that φ starts from, the
        ε̂ of three steps, and for Runge-Kutta their running sum.
        """
        steps, names = zip(*self.stages(levels.steps), strict=True)
        rows = stage_rows(names, levels.cur[list(steps)], self.calls(levels).nxt)
        return rows if self.warmup == "runge_kutta" else rows[:, :-1, :-1]

    def _middle(self, levels: Levels) -> tuple[Level, Float64]:
        """Levels half-way in t in the sampler's coordinates, and their scale."""
        if self.schedule is None:
            return levels.cur, levels.scale  # not used
        level = self.schedule.level(
            (levels.cur.t + np.where(np.isfinite(levels.nxt.t), levels.nxt.t, levels.cur.t)) / 2
        )
        if (levels.scale == 1).all():
            return level, np.ones(levels.steps)
        return Level(level.t, np.ones(levels.steps), level.karras_sigma), level.alpha_t


def _scale_of_next(levels: Levels) -> Float64:
    """Scale at the end of each step, where the next one begins."""
    return np.append(levels.scale[1:], levels.scale[-1])


def stage_rows(names: Sequence[str], start: Level, end: Level, *, velocity: bool = False) -> Float64:
    """Rows of calls, each φ from a level to a level.

    With ``velocity`` the slopes are combined of v as the model returned it, and the sum is read as ε at ``start``:
    as diffusers does; no published source.
    """
    start = Level(*(np.asarray(part, float) for part in (start.t, start.alpha_t, start.sigma_t)))
    if (start.alpha_t <= 0).any():
        raise ValueError(
            "alpha_t=0 at a level where the model is called: PNDM divides by it; choose a spacing that skips the last "
            "training timestep, or another sampler."
        )
    carry = np.asarray(end.alpha_t) / start.alpha_t
    slope = end.sigma_t - carry * start.sigma_t
    if velocity:
        carry, slope = carry + slope * start.sigma_t, slope * start.alpha_t
    table = _STAGE_ROWS[[_NUMBER[name] for name in names]]
    # What φ starts from is what is remembered as its start.
    table[:, 0] = carry[:, None] * table[:, BASE - 2] + slope[:, None] * table[:, 0]
    return table


def _unit_rows(stage: Stage) -> Float64:
    """Rows of a stage, the first with the slope alone, as of unit weight."""
    rows = np.zeros((6, 8))
    rows[0, [NOISE, PAST, PAST + 1, PAST + 2, TOTAL]] = stage.slope
    rows[BASE - 2, BASE if stage.based else X] = 1.0
    for age in range(3):
        rows[PAST - 2 + age, PAST + age - stage.remembers if age or not stage.remembers else NOISE] = 1.0
    rows[TOTAL - 2, [NOISE, TOTAL]] = stage.total
    return rows


_STAGE_ROWS = np.stack([_unit_rows(stage) for stage in STAGES.values()])
_NUMBER = {name: number for number, name in enumerate(STAGES)}
