"""The one list of subjects: a sampler on a schedule and a spacing. A new one joins every generic test by one line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anystep import (
    DDIM,
    DDPM,
    IPNDM,
    LMS,
    PNDM,
    VE,
    VP,
    BetaSchedule,
    Clip,
    Crash,
    DPMSolver,
    DynamicThreshold,
    EDMSchedule,
    Euler,
    EulerAncestral,
    EulerMaruyama,
    Exponential,
    Heun,
    Karras,
    Leading,
    Linspace,
    MultistepConsistency,
    Plan,
    RectifiedFlow,
    ReverseDiffusion,
    Sampler,
    Schedule,
    Shifted,
    Spacing,
    Threshold,
    Trailing,
    UniPC,
)

__all__ = ["SUBJECTS", "Subject", "random_plan", "scale_of"]


@dataclass(frozen=True)
class Subject:
    """A scheduler by its parts."""

    name: str
    sampler: Sampler
    schedule: Schedule
    spacing: Spacing
    predicts: str
    threshold: Threshold | None = None
    karras: bool = False
    """Whether the sampler works on x_t / alpha_t."""

    def plan(self, steps: int = 50) -> Plan:
        """Its table."""
        levels = self.spacing.levels(self.schedule, steps)
        return self.sampler.plan(levels.to_karras() if self.karras else levels, self.predicts, self.threshold)


_LINEAR, _SCALED, _COSINE = map(BetaSchedule.named, ("linear", "scaled_linear", "squaredcos_cap_v2"))

SUBJECTS: tuple[Subject, ...] = (
    Subject("DDIM", DDIM(), _LINEAR, Leading(), "epsilon"),
    Subject("DDIM eta=1", DDIM(eta=1.0), _SCALED, Trailing(), "v_prediction"),
    Subject("DDIM reestimates noise", DDIM(reestimate_noise=True), _COSINE, Linspace(), "epsilon", Clip(1.0)),
    Subject("DDPM small", DDPM(), _LINEAR, Leading(), "epsilon"),
    Subject("DDPM large, clipped", DDPM("large"), VP(), Trailing(), "epsilon", Clip(1.0)),
    Subject(
        "DDPM small, dynamic threshold", DDPM(), _LINEAR, Trailing(), "sample", DynamicThreshold(0.9, 2.0)
    ),
    Subject("Euler", Euler(), _SCALED, Karras(), "epsilon", karras=True),
    Subject("Euler, flow", Euler(), RectifiedFlow(), Linspace(), "flow_prediction"),
    Subject("Euler ancestral", EulerAncestral(), _SCALED, Karras(), "epsilon", karras=True),
    Subject(
        "Euler ancestral, eta=0.5", EulerAncestral(0.5, 1.01), RectifiedFlow(), Linspace(), "flow_prediction"
    ),
    Subject("LMS", LMS(), _SCALED, Karras(), "epsilon", karras=True),
    Subject("LMS, x_t, clipped", LMS(3), _LINEAR, Trailing(), "v_prediction", Clip(1.0)),
    Subject("IPNDM", IPNDM(), Crash(), Trailing(), "v_prediction"),
    Subject("IPNDM, EDM", IPNDM(2), EDMSchedule(), Karras(), "edm"),
    Subject("PNDM", PNDM(_LINEAR), _LINEAR, Leading(), "epsilon"),
    Subject(
        "PNDM, improved Euler, clipped",
        PNDM(warmup="improved_euler"),
        _SCALED,
        Trailing(),
        "v_prediction",
        Clip(1.0),
    ),
    Subject("Euler, EDM", Euler(), EDMSchedule(), Karras(), "edm"),
    Subject("Euler, score", Euler(), VE(), Exponential(), "score"),
    Subject("Heun", Heun(), VP(), Linspace(), "v_prediction"),
    Subject("Heun, churn", Heun(40.0, 0.05, 50.0, 1.003, EDMSchedule()), EDMSchedule(), Karras(), "edm"),
    Subject(
        "multistep consistency, flow",
        MultistepConsistency(),
        RectifiedFlow(),
        Shifted(Linspace(), 3.0),
        "flow_prediction",
    ),
    Subject("DPM-Solver++", DPMSolver(), _SCALED, Karras(), "epsilon"),
    Subject(
        "DPM-Solver++, third order, flow",
        DPMSolver(3, variant="heun"),
        RectifiedFlow(),
        Trailing(),
        "flow_prediction",
    ),
    Subject("DPM-Solver, noise, clipped", DPMSolver(3, "noise"), VP(), Trailing(), "v_prediction", Clip(1.0)),
    Subject("SDE-DPM-Solver++", DPMSolver(stochastic=True), _LINEAR, Karras(), "epsilon", karras=True),
    Subject("SDE-DPM-Solver", DPMSolver(2, "noise", stochastic=True), _COSINE, Trailing(), "sample"),
    Subject("UniPC", UniPC(), _SCALED, Karras(), "epsilon"),
    Subject(
        "UniPC, noise, clipped",
        UniPC(3, "bh1", "noise", skip_corrector=(1,)),
        VP(),
        Trailing(),
        "v_prediction",
        Clip(1.0),
    ),
    Subject("reverse diffusion", ReverseDiffusion(), VE(), Exponential(), "score"),
    Subject("Euler-Maruyama", EulerMaruyama(VP()), VP(), Linspace(), "epsilon"),
    Subject(
        "Euler with churn",
        Euler(s_churn=40.0, s_noise=1.003, schedule=_SCALED),
        _SCALED,
        Karras(),
        "epsilon",
        karras=True,
    ),
)
"""One line enrols a scheduler in every generic test."""


_SPECIAL = (
    0.5,
    np.nextafter(0.5, 0),
    1.0,
    1 - 2**-26,
    1 + 2**-52,
    2.0,
    np.nextafter(2.0, 0),
    -1.0,
    1e-3,
    157.4,
)
"""Coefficients at which `anystep._combination` decides differently, or that float32 cannot hold."""


def random_plan(
    rows: int,
    memories: int = 0,
    noises: int = 0,
    threshold: Threshold | None = None,
    *,
    density: float = 0.7,
    seed: int = 0,
) -> Plan:
    """A plan of no method, with every structure a plan may have: zero columns, memories that only move, rows without noise.

    Parameters
    ----------
    rows, memories, noises
        N >= 1, K and R.
    threshold
        Its bound on x̂₀.
    density
        Share of coefficients that are not 0, in [0, 1].
    seed
        Which one.
    """
    rng = np.random.default_rng([rows, memories, noises, seed])

    def draw(*shape: int) -> npt.NDArray[np.float64]:
        values = np.where(rng.random(shape) < 0.3, rng.choice(_SPECIAL, shape), rng.uniform(-2, 2, shape))
        if shape[-1] > 1:  # a large multiple of a difference, as estimates are at high noise
            opposed = -values[..., 0] * rng.choice([0.5, 1 - 1e-5, 1.0, 1 + 1e-3, 2.0], shape[:-1])
            values[..., 1] = np.where(
                (values[..., 0] >= 2) & (rng.random(shape[:-1]) < 0.7), opposed, values[..., 1]
            )
        return values * (rng.random(shape) < density)

    update = draw(rows, 1 + memories, 3 + memories + noises)
    for row in range(1, 1 + memories):
        if rng.random() < 0.5:
            update[:, row] = np.eye(update.shape[2])[rng.integers(3 + memories)]
    if noises:
        update[rng.random(rows) < 0.2, :, 3 + memories :] = 0.0
    return Plan(
        timesteps=np.arange(rows, dtype=np.float64)[::-1],
        alpha=rng.random(rows + 1),
        sigma=rng.random(rows + 1),
        input_scale=draw(rows),
        estimate=draw(rows, 2),
        update=update,
        threshold=threshold,
    )


def scale_of(
    plan: Plan, i: int, arrays: Sequence[npt.ArrayLike], *, folded: bool = True
) -> npt.NDArray[np.float64]:
    """Σ|c v| of each output of row i, shape (1 + K, ...): what rounding errors of the row are proportional to.

    Parameters
    ----------
    plan, i
        The row.
    arrays
        x, m, memories and noises, on the host.
    folded
        Whether x̂₀ counts as folded into x and m, as the row is applied, or by its own terms |a x| + |b m|. A
        bounded x̂₀ always counts by its own terms, since their errors pass through the bound.
    """
    x, m, *rest = (np.abs(np.asarray(array, np.float64)) for array in arrays)
    a, b = np.abs(plan.estimate[i])
    coefficients = plan.folded[i] if folded else plan.update[i]
    return np.einsum("rc,c...->r...", np.abs(coefficients), np.stack([x, m, a * x + b * m, *rest]))
