"""On a GPU: steps beside diffusers, the memory's own bandwidth, kernels launched, graph capture, agreement with the CPU.

Times are between two events on the stream, which wait for what was launched; a step that only launches would look free.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from anystep import init, update

from .cases import Library, Size, library, subjects
from .fixed import fixed_draws
from .goals import Record
from .own import plans
from .run import quiet
from .timing import Candidate, Clock, Rounds

__all__ = ["measure"]

DEVICE = "cuda"
MEBIBYTES = (1, 16, 64, 256)
SIZES = (Size("tiny", (1, 4, 8, 8)), Size("2 MiB", (8, 4, 128, 128)), Size("video", (1, 16, 21, 90, 160)))


class Stream(Clock):
    """Seconds of the host's clock, after the device has done all that it was given."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait

    def now(self) -> float:
        self._wait()
        return super().now()


def measure(rounds: int) -> Iterator[Record]:
    """All of it; RuntimeError where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "device=cuda: no GPU that PyTorch can use was found; run this on a machine that has one, or leave out --device."
        )
    with quiet(), torch.inference_mode():
        yield from _roofs(rounds)
        yield from _steps(rounds)
        yield from _updates(rounds)
        yield from _launches()
        yield from _graphs(rounds)
        yield from _agreement()
        yield from _cupy(rounds)


def _torch() -> Library:
    import torch

    return replace(library("torch"), device=DEVICE, wait=lambda x: torch.cuda.synchronize())


def _timed(candidates: dict[str, Candidate], rounds: int) -> Rounds:
    import torch

    return Rounds.run(candidates, rounds, clock=Stream(torch.cuda.synchronize))


def _events(go: Callable[[], object], calls: int) -> float:
    """Microseconds of one of so many calls, as the device counts them."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    go()
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        go()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / calls


def _roofs(rounds: int) -> Iterator[Record]:
    """A copy on the device: two bytes of traffic for each byte."""
    import torch

    for mebibytes in MEBIBYTES:
        a = torch.empty(mebibytes * 2**18, device=DEVICE)
        b = torch.empty_like(a)
        times = [_events(lambda a=a, b=b: b.copy_(a), 50) for _ in range(rounds)]
        micro = float(np.median(times))
        value = 2 * mebibytes * 2**20 / micro / 1e3
        yield Record(
            "copy",
            "device to device",
            value,
            "GB/s",
            "torch",
            f"{mebibytes} MiB",
            "float32",
            microseconds=micro,
            rounds=rounds,
        )


def _steps(rounds: int) -> Iterator[Record]:
    """Facades beside diffusers."""
    import torch

    entry = _torch()
    with fixed_draws():
        for subject, size in itertools.product(subjects(), SIZES):
            candidates = {
                "diffusers": subject.loop(subject.theirs(), entry, size, "float32", size.steps),
                "torch": subject.loop(subject.ours(), entry, size, "float32", size.steps),
            }
            found = _timed(candidates, rounds)
            ratio = found.ratio("torch", "diffusers")
            yield Record(
                "step",
                subject.name,
                ratio.value,
                "x diffusers",
                "torch",
                size.name,
                "float32",
                low=ratio.low,
                high=ratio.high,
                microseconds=1e6 * found.time("torch").value,
                reference=1e6 * found.time("diffusers").value,
                rounds=ratio.rounds,
                clean=ratio.clean,
            )
            torch.cuda.empty_cache()


def _own(plan: Any, x: Any, m: Any, donate: bool = False) -> Callable[[], Any]:
    def go() -> Any:
        state = init(plan, x.clone() if donate else x)
        for i in range(len(plan)):
            state = update(plan, i, state, m, donate=donate)
        return state.x

    return go


def _updates(rounds: int) -> Iterator[Record]:
    """`update` beside a copy of the same size, by the device's clock."""
    import torch

    for (name, plan), mebibytes in itertools.product(plans(8).items(), MEBIBYTES):
        x, m = (torch.randn(mebibytes * 2**18, device=DEVICE) for _ in range(2))
        out = torch.empty_like(x)
        roof = float(np.median([_events(lambda x=x, out=out: out.copy_(x), 50) for _ in range(rounds)]))
        times = [_events(_own(plan, x, m), 4) / len(plan) for _ in range(rounds)]
        micro = float(np.median(times))
        yield Record(
            "update",
            name,
            micro / roof,
            "x copy",
            "torch",
            f"{mebibytes} MiB",
            "float32",
            "fresh",
            microseconds=micro,
            reference=roof,
            rounds=rounds,
        )


def _launches() -> Iterator[Record]:
    """Kernels and copies that a step launches, from PyTorch's profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    entry, size = _torch(), SIZES[0]
    with fixed_draws():
        for subject in subjects():
            for library_name, made in (("diffusers", subject.theirs()), ("anystep", subject.ours())):
                candidate = subject.loop(made, entry, size, "float32", 20)
                candidate.prepare()()
                go = candidate.prepare()
                torch.cuda.synchronize()
                with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
                    go()
                    torch.cuda.synchronize()
                launched = sum(
                    event.count
                    for event in seen.key_averages()
                    if "Launch" in event.key or "Memcpy" in event.key
                )
                value = launched / candidate.calls
                yield Record(
                    "launches", subject.name, value, "launches a step", library_name, size.name, "float32"
                )


def _graphs(rounds: int) -> Iterator[Record]:
    """A whole loop, captured once and replayed: nothing may be read, and nothing depend on the host."""
    import torch

    for name, plan in plans(20).items():
        x, m = (torch.randn(SIZES[0].shape, device=DEVICE) for _ in range(2))
        go = _own(plan, x, m)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            eager = go()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = go()
        graph.replay()
        torch.cuda.synchronize()
        apart = float((captured - eager).abs().max())
        replayed = float(np.median([_events(graph.replay, 20) / len(plan) for _ in range(rounds)]))
        called = float(np.median([_events(go, 4) / len(plan) for _ in range(rounds)]))
        yield Record(
            "graph",
            name,
            replayed / called,
            "x eager",
            "torch",
            "tiny",
            "float32",
            microseconds=replayed,
            reference=called,
            rounds=rounds,
        )
        yield Record("graph apart", name, apart, "largest difference", "torch", "tiny", "float32")


def _agreement() -> Iterator[Record]:
    """One step on the CPU and on the GPU, in units of the last place at the size of the largest term."""
    import torch

    for name, plan in plans(20).items():
        worst = 0.0
        for i in range(len(plan)):
            source = torch.Generator().manual_seed(i)
            x, m = (torch.randn(4096, generator=source) for _ in range(2))
            memory = tuple(torch.randn(4096, generator=source) for _ in range(plan.memories))
            state = init(plan, x)._replace(memory=memory)
            there = state._replace(x=x.to(DEVICE), memory=tuple(part.to(DEVICE) for part in memory))
            here = update(plan, i, state, m).x
            apart = (update(plan, i, there, m.to(DEVICE)).x.cpu() - here).abs().double()
            a, b = plan.folded[i, 0, :2]
            weights = plan.folded[i, 0, 3:].tolist()
            scale = abs(a * x.double()) + abs(b * m.double())
            for c, part in zip(weights, memory, strict=False):
                scale = scale + abs(c * part.double())
            worst = max(worst, float((apart / scale).max()) / 2.0**-23)
        yield Record("agreement of devices", name, worst, "eps of Σ|c v|", "torch", "4096", "float32")


def _cupy(rounds: int) -> Iterator[Record]:
    """`update` with CuPy, beside its copy."""
    try:
        import cupy
    except ImportError:
        return
    entry = Library("cupy", ("float32",))
    for (name, plan), mebibytes in itertools.product(plans(8).items(), MEBIBYTES):
        rng = np.random.default_rng(0)
        values = [rng.standard_normal(mebibytes * 2**18, dtype=np.float32) for _ in range(2)]
        x, m = (entry.array(value, "float32") for value in values)
        out = cupy.empty_like(x)
        go = _own(plan, x, m)
        candidates = {
            "roof": Candidate(lambda x=x, out=out: lambda: [cupy.copyto(out, x) for _ in range(8)], 8),
            "update": Candidate(lambda go=go: go, len(plan)),
        }
        wait = cupy.cuda.Device().synchronize
        found = Rounds.run(candidates, rounds, clock=Stream(wait))
        ratio = found.ratio("update", "roof")
        yield Record(
            "update",
            name,
            ratio.value,
            "x copy",
            "cupy",
            f"{mebibytes} MiB",
            "float32",
            "fresh",
            microseconds=1e6 * found.time("update").value,
            reference=1e6 * found.time("roof").value,
            rounds=rounds,
        )
