"""anystep's own face: bandwidth, memory, `lax.scan`, and k-diffusion's formulas beside it."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from anystep import (
    DDIM,
    LMS,
    BetaSchedule,
    DPMSolver,
    Euler,
    EulerAncestral,
    Karras,
    Leading,
    Linspace,
    Plan,
    RectifiedFlow,
    State,
    init,
    update,
)

from .cases import SIZES, Library, installed
from .goals import Record
from .kdiffusion import FORMULAS
from .run import Run, micro, record
from .timing import Candidate, repeated

__all__ = ["k_diffusion", "memory", "own_loop", "plans", "roof", "scan", "updates"]

_log = logging.getLogger(__name__)


def plans(steps: int) -> dict[str, Plan]:
    """The samplers whose bandwidth is measured."""
    scaled, linear = BetaSchedule.named("scaled_linear"), BetaSchedule.named("linear")
    return {
        "Euler": Euler().plan(Linspace().levels(scaled, steps).to_karras(), "epsilon"),
        "Euler, flow": Euler().plan(Linspace().levels(RectifiedFlow(), steps), "flow_prediction"),
        "DDIM": DDIM().plan(Leading().levels(linear, steps), "epsilon"),
        "DPM-Solver++ 2": DPMSolver().plan(Leading().levels(linear, steps), "epsilon"),
    }


def own_loop(plan: Plan, entry: Library, shape: tuple[int, ...], dtype: str, donate: bool) -> Candidate:
    """All rows of a plan on one array."""
    rng = np.random.default_rng(0)
    start, m = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    m = entry.array(m, dtype)
    kept = entry.array(start, dtype)

    def prepare() -> Callable[[], object]:
        x = kept + 0 if donate else kept  # an array of the library's own, which can be given up
        entry.wait(x)
        state = init(plan, x)

        def go() -> object:
            now = state
            for i in range(len(plan)):
                now = update(plan, i, now, m, donate=donate)
            return entry.wait(now.x)

        return go

    return Candidate(prepare, len(plan))


def roof(shape: tuple[int, ...], calls: int, dtype: str = "float32") -> Candidate:
    import torch

    a, b = (torch.randn(shape).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return repeated(lambda: torch.add(a, b, out=out), calls)


def updates(run: Run) -> Iterator[Record]:
    """`anystep.update` beside the fastest that memory allows, `torch.add` of two arrays into a third of the same size."""
    size = SIZES[1] if run.quick else SIZES[3]
    for name, plan in plans(6).items():
        run.tick(f"update() of {name}, {size.label}")
        candidates = {"roof": roof(size.shape, 6)}
        for entry, donate in itertools.product(run.entries(), (False, True)):
            key = f"{entry.name} {'donated' if donate else 'fresh'}"
            candidates[key] = own_loop(plan, entry, size.shape, "float32", donate)
        found = run.time(candidates)
        for key in candidates:
            if key == "roof":
                continue
            name_of, detail = key.split()
            yield record(
                "update",
                name,
                found.ratio(key, "roof"),
                "x torch.add(out=)",
                library=name_of,
                size=size.name,
                dtype="float32",
                detail=detail,
                microseconds=micro(found.time(key)),
                reference=micro(found.time("roof")),
            )
            faults = _faults(candidates[key]) / (size.elements * 4)
            yield Record(
                "faults",
                name,
                faults,
                "x pages of a tensor",
                name_of,
                size.name,
                "float32",
                detail,
            )


def _faults(candidate: Candidate) -> float:
    """Bytes of pages that a call touched for the first time."""
    try:
        import resource
    except ImportError:  # not on Windows
        return math.nan
    go = candidate.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    go()
    seen = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return seen * resource.getpagesize() / candidate.calls


def memory(run: Run) -> Iterator[Record]:
    """64 MiB: what a fresh array costs where the allocator maps every one anew."""
    shape = (1, 16, 1024, 256) if run.quick else (1, 16, 1024, 1024)
    for name, plan in list(plans(4).items())[:3]:
        for entry in run.entries():
            run.tick(f"memory of {name}, {entry.name}")
            candidates = {
                detail: own_loop(plan, entry, shape, "float32", detail == "donated")
                for detail in ("fresh", "donated")
            }
            found = run.time(candidates, max(5, run.rounds // 2))
            size = "16 MiB" if run.quick else "64 MiB"
            rest: dict[str, Any] = {"library": entry.name, "size": size, "dtype": "float32"}
            yield record(
                "memory",
                name,
                found.ratio("donated", "fresh"),
                "x fresh",
                detail="donated / fresh",
                microseconds=micro(found.time("donated")),
                reference=micro(found.time("fresh")),
                **rest,
            )
            for detail, candidate in candidates.items():
                pages = _faults(candidate) / (math.prod(shape) * 4)
                yield Record("memory", name, pages, "x pages of a tensor", detail=f"faults {detail}", **rest)


def scan(run: Run) -> Iterator[Record]:
    """A whole loop inside `jax.lax.scan`: what a step costs where nothing is called."""
    if "jax" not in installed(run.libraries):
        return
    import jax
    import jax.numpy as jnp

    count = 200
    for name, plan in plans(count).items():
        run.tick(f"lax.scan of {name}")

        def body(state: State, i: Any, plan: Plan = plan) -> tuple[State, None]:
            return update(plan, i, state, state.x * 0.1), None

        whole = jax.jit(lambda state, body=body: jax.lax.scan(body, state, jnp.arange(count))[0].x)
        state = init(plan, jnp.ones(SIZES[0].shape))
        go = repeated(lambda whole=whole, state=state: whole(state).block_until_ready(), 1)
        found = run.time({"scan": Candidate(go.prepare, count)}).time("scan")
        yield record(
            "scan",
            name,
            found,
            "s",
            library="jax",
            size="tiny",
            dtype="float32",
            microseconds=micro(found),
        )


def k_diffusion(run: Run) -> Iterator[Record]:
    """Anystep's own loop beside k-diffusion's formulas, in torch."""
    import torch

    samplers = {"Euler": Euler(), "EulerAncestral": EulerAncestral(), "DPMSolver": DPMSolver(), "LMS": LMS()}
    levels = Karras().levels(BetaSchedule.named("scaled_linear"), 20).to_karras()
    for (name, (formula, ours, _)), size in itertools.product(FORMULAS.items(), SIZES[:2]):
        run.tick(f"{name}, {size.label}")
        plan = samplers[ours].plan(levels, "sample")
        sigmas = torch.tensor(plan.sigma / plan.alpha, dtype=torch.float32)
        clean, noise = (torch.randn(size.shape) for _ in range(2))
        x = torch.randn(size.shape) * sigmas[0]
        extra = (noise,) if plan.noises else ()

        def model(x: Any, i: int, clean: Any = clean) -> Any:
            return clean

        def theirs(
            formula: Any = formula, model: Any = model, x: Any = x, sigmas: Any = sigmas, extra: Any = extra
        ) -> Any:
            return formula(model, x, sigmas, *extra)

        def mine(plan: Plan = plan, x: Any = x, clean: Any = clean, noise: Any = noise) -> Any:
            state = init(plan, x)
            for i in range(len(plan)):
                state = update(plan, i, state, clean, noise if plan.stochastic[i] else None)
            return state.x

        apart = float((mine() - theirs()).abs().max() / theirs().abs().max())
        if not apart < 1e-3:
            _log.warning("%s is %.1e from ours: not the same formula", name, apart)
        pair = {"ours": Candidate(lambda go=mine: go, 20), "theirs": Candidate(lambda go=theirs: go, 20)}
        found = run.time(pair)
        yield record(
            "k-diffusion",
            name,
            found.ratio("ours", "theirs"),
            "x k-diffusion's formula",
            library="torch",
            size=size.name,
            dtype="float32",
            microseconds=micro(found.time("ours")),
            reference=micro(found.time("theirs")),
        )
