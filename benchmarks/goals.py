"""What was aimed at, as data: each goal names the measurements it is about and the limit they may not pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["GOALS", "Goal", "Record", "Verdict", "judge"]


@dataclass(frozen=True)
class Record:
    """One measurement."""

    item: str
    subject: str
    value: float
    unit: str
    library: str = ""
    size: str = ""
    dtype: str = ""
    detail: str = ""
    low: float | None = None
    high: float | None = None
    microseconds: float | None = None
    reference: float | None = None
    """Microseconds of what the value is a ratio to."""
    rounds: int = 0
    clean: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Goal:
    """A limit: the largest of the records that fit ``where`` may not pass it."""

    id: str
    says: str
    item: str
    limit: float
    where: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    measure: str = "value"
    unit: str = "x diffusers"

    def fits(self, record: Record) -> bool:
        """Whether a record is what the goal is about."""

        def one(name: str, wanted: str | tuple[str, ...]) -> bool:
            found = getattr(record, name)
            return found in wanted if isinstance(wanted, tuple) else found == wanted

        return record.item == self.item and all(one(*pair) for pair in self.where.items())


@dataclass(frozen=True)
class Verdict:
    """A goal beside what was measured; nothing if that was not part of the run."""

    goal: Goal
    worst: Record | None = None
    value: float = float("nan")
    within: tuple[int, int] = (0, 0)
    """How many measurements keep it, of how many."""

    @property
    def met(self) -> bool | None:
        return None if self.worst is None else self.value <= self.goal.limit

    @property
    def text(self) -> str:
        """Met or missed, and by how much."""
        if self.met is None:
            return "not measured"
        by = self.value / self.goal.limit
        if self.met:
            return f"met, {1 / by:.1f}x below" if 0 < by <= 0.95 else "met"
        kept, count = self.within
        rest = f"; {kept} of {count} keep it" if kept else ""
        return (f"**missed by {100 * (by - 1):.0f} %**" if by < 2 else f"**missed {by:.1f}x**") + rest


def judge(records: Sequence[Record], goals: Sequence[Goal] | None = None) -> list[Verdict]:
    """Every goal with the measurement that is furthest from it."""
    found: list[Verdict] = []
    for goal in GOALS if goals is None else goals:
        values = [(getattr(one, goal.measure), one) for one in records if goal.fits(one)]
        known = [(value, one) for value, one in values if value is not None]
        if known:
            value, worst = max(known, key=lambda pair: pair[0])
            kept = sum(value <= goal.limit for value, _ in known)
            found.append(Verdict(goal, worst, value, (kept, len(known))))
        else:
            found.append(Verdict(goal))
    return found


def _step(id: str, says: str, limit: float, subject: str | tuple[str, ...], **where: Any) -> Goal:
    return Goal(id, says, "step", limit, {"subject": subject, **where})


_MAIN = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
_TINY, _VIDEO = {"size": "tiny"}, {"size": "video"}
_TORCH, _NUMPY = {"library": "torch"}, {"library": "numpy"}
_FLOW = "FlowMatchEulerDiscreteScheduler"

GOALS: tuple[Goal, ...] = (
    _step("G2", "torch, 256 elements: DDIM ≤ 1/6", 1 / 6, "DDIMScheduler", **_TORCH, **_TINY),
    _step("G2", "torch, 256 elements: Euler ≤ 1/6", 1 / 6, "EulerDiscreteScheduler", **_TORCH, **_TINY),
    _step(
        "G2", "torch, 256 elements: DPM++2M ≤ 1/7", 1 / 7, "DPMSolverMultistepScheduler", **_TORCH, **_TINY
    ),
    _step("G2", "torch, 256 elements: UniPC ≤ 1/12", 1 / 12, "UniPCMultistepScheduler", **_TORCH, **_TINY),
    _step("G2", "torch, 256 elements: FlowMatch ≤ 1/2", 1 / 2, _FLOW, **_TORCH, **_TINY),
    _step("G2", "torch, 256 elements: DDPM ≤ 1/6, draw taken out", 1 / 6, "DDPMScheduler", **_TORCH, **_TINY),
    _step("G2", "torch, 256 elements: LMS ≤ 1/50", 1 / 50, "LMSDiscreteScheduler", **_TORCH, **_TINY),
    _step("G2", "numpy, 256 elements: DDIM, Euler, DPM++2M, UniPC ≤ 1/10", 1 / 10, _MAIN, **_NUMPY, **_TINY),
    _step("G2", "numpy, 256 elements: FlowMatch ≤ 1/3.5", 1 / 3.5, _FLOW, **_NUMPY, **_TINY),
    Goal(
        "G3",
        "jax: a step of DDIM, Euler, FlowMatch, DPM++2M up to 64 KiB ≤ 35 µs",
        "step",
        35,
        {"library": "jax", "size": ("tiny", "64 KiB"), "subject": (*_MAIN[:3], _FLOW)},
        "microseconds",
        "µs",
    ),
    Goal("G3", "jax: a step inside lax.scan ≤ 1 µs", "scan", 1, {}, "microseconds", "µs"),
    *(
        Goal(
            "G4",
            f"{library}, video: update() of {subject}, {detail} ≤ {limit}",
            "update",
            limit,
            {"library": library, "subject": subject, "size": "video", "detail": detail},
            unit="x torch.add(out=)",
        )
        for library, subject, detail, limit in (
            ("torch", "Euler", "fresh", 1.2),
            ("torch", "Euler, flow", "fresh", 1.2),
            ("torch", "DDIM", "fresh", 1.7),
            ("numpy", "Euler", "fresh", 1.6),
            ("numpy", "Euler, flow", "fresh", 1.6),
            ("numpy", "DDIM", "fresh", 1.8),
            ("torch", "Euler", "donated", 1.0),
            ("torch", "Euler, flow", "donated", 1.0),
            ("torch", "DDIM", "donated", 1.7),
            ("numpy", "Euler", "donated", 1.6),
            ("numpy", "Euler, flow", "donated", 1.6),
            ("numpy", "DDIM", "donated", 1.8),
            ("jax", "DDIM", "fresh", 1.5),
            ("jax", "DDIM", "donated", 1.0),
        )
    ),
    _step("G5", "torch, video: DDIM ≤ 1/3.5", 1 / 3.5, "DDIMScheduler", **_TORCH, **_VIDEO),
    _step("G5", "torch, video: Euler ≤ 1/4.5", 1 / 4.5, "EulerDiscreteScheduler", **_TORCH, **_VIDEO),
    _step("G5", "torch, video: DPM++2M ≤ 1/2.2", 1 / 2.2, "DPMSolverMultistepScheduler", **_TORCH, **_VIDEO),
    _step("G5", "torch, video: UniPC ≤ 1/3.3", 1 / 3.3, "UniPCMultistepScheduler", **_TORCH, **_VIDEO),
    _step("G5", "torch, video: FlowMatch ≤ 1/1.5", 1 / 1.5, _FLOW, **_TORCH, **_VIDEO),
    _step("G5", "numpy, video: DDIM, Euler, DPM++2M, UniPC ≤ 1/2", 1 / 2, _MAIN, **_NUMPY, **_VIDEO),
    _step("G5", "numpy, video: FlowMatch ≤ 1/1.1", 1 / 1.1, _FLOW, **_NUMPY, **_VIDEO),
    Goal(
        "G6",
        "torch, 64 MiB: a donated Euler step ≤ 1/3 of a fresh one",
        "memory",
        1 / 3,
        {"detail": "donated / fresh", "subject": "Euler", "library": "torch"},
        unit="x fresh",
    ),
    Goal(
        "G6",
        "torch, numpy, 64 MiB: page faults of a donated Euler step: none",
        "memory",
        0.01,
        {"detail": "faults donated", "subject": "Euler", "library": ("torch", "numpy")},
        unit="x pages of a tensor",
    ),
    Goal(
        "G7",
        "time of a step, 500 steps over 10 steps ≤ 1.1",
        "growth",
        1.1,
        {"detail": "500 steps / 10 steps"},
        unit="x",
    ),
    Goal(
        "G7",
        "four times the elements: grows at most 1.1 as much as torch.add(out=)",
        "growth",
        1.1,
        {"detail": "2²⁴ / 2²² elements, beside torch.add(out=)"},
        unit="x",
    ),
    Goal("G8", "set_timesteps(50) ≤ 150 µs", "set_timesteps", 150, {"detail": "new"}, "microseconds", "µs"),
    Goal(
        "G8",
        "set_timesteps(50) asked again ≤ 5 µs",
        "set_timesteps",
        5,
        {"detail": "again"},
        "microseconds",
        "µs",
    ),
    *(
        Goal(
            "G9", f"{code}: ≤ {limit} {unit}", "import", limit, {"subject": code, "detail": detail}, unit=unit
        )
        for code in ("import anystep", "from anystep import DDIMScheduler")
        for detail, limit, unit in (("time", 1.25, "x import numpy"), ("memory", 5, "MB above numpy"))
    ),
    Goal(
        "G10",
        "float32 trajectory ≤ 1.15 of the floor",
        "accuracy",
        1.15,
        {"dtype": "float32"},
        unit="x floor",
    ),
    Goal(
        "G10",
        "float32 trajectory: no further off than diffusers",
        "accuracy beside diffusers",
        1,
        {"dtype": "float32"},
    ),
    Goal(
        "G11",
        "float16 and bfloat16 trajectory ≤ 1.05 of the floor",
        "accuracy",
        1.05,
        {"dtype": ("float16", "bfloat16")},
        unit="x floor",
    ),
    Goal(
        "G11",
        "float16 DDIM step: error ≤ 1/1.9 of diffusers'",
        "accuracy of a step",
        1 / 1.9,
        {"dtype": "float16"},
    ),
    _step("G11", "torch, float16, 1024²: DDIM no slower", 1, "DDIMScheduler", **_TORCH, dtype="float16"),
    Goal(
        "G12",
        "4097 classes, same seed, same tokens ≤ 1/3.5",
        "tokens",
        1 / 3.5,
        {"subject": "seed-compatible"},
    ),
    Goal("G12", "4097 classes, sparse ≤ 1/12", "tokens", 1 / 12, {"subject": "sparse"}),
    Goal("G12", "4097 classes, sparse and normalised ≤ 1/80", "tokens", 1 / 80, {"subject": "sparse"}),
    Goal("G14", "looking up what an array is ≤ 0.1 µs", "dispatch", 0.1, {}, "microseconds", "µs"),
)
"""G1, kernels and host reads of a step, is counted in tests/test_counters.py; G13 is the draws taken out above."""
