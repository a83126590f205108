"""What a step costs that no clock is needed for: kernels, host reads and allocations of every facade.

Goals: k full-size kernels for a sum of k terms, k - 1 where the sample's weight is 1; none on anything smaller; nothing read from
the device, also if timesteps lie there; one full-size array for each that is returned or stored, none if the sample is given up
and one kernel does the row.
"""

import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
import torch

from anystep import DDIM, BetaSchedule, Euler, Leading, Linspace, RectifiedFlow, State, init, update
from harness import load
from kernels import Kernels

cases, run = load("cases"), load("run")
TINY = cases.Size("tiny", (1, 4, 8, 8))


class Counts(NamedTuple):
    """The most that one call of a loop of ten steps needs, draws taken out."""

    kernels: int
    """On full-size tensors."""
    made: int = 1
    """Full-size tensors allocated."""
    small: int = 0
    """Kernels on anything else."""


# What is above a goal names it.
COUNTS = {
    "DDIMScheduler": Counts(2),
    "DDIMScheduler, eta=1": Counts(3),
    "DDPMScheduler": Counts(3),
    "DPMSolverMultistepScheduler": Counts(5, made=2),  # the sample 3 and the estimate 2
    "DPMSolverMultistepScheduler, sde": Counts(6, made=2),
    "EulerAncestralDiscreteScheduler": Counts(2),
    "EulerDiscreteScheduler": Counts(1),
    "FlowMatchEulerDiscreteScheduler": Counts(1),
    "HeunDiscreteScheduler": Counts(2),
    "IPNDMScheduler": Counts(7, made=2),  # the sample 5 and the noise estimate 2
    "KarrasVeScheduler": Counts(1),
    "LMSDiscreteScheduler": Counts(4),
    "PNDMScheduler": Counts(6, made=2),
    # goal 3 made: the estimate 2 kernels, its bound 1, the unknown part 2, the known one 2, their mixture 1
    "RePaintScheduler": Counts(8, made=5),
    "ScoreSdeVeScheduler": Counts(2),
    "ScoreSdeVpScheduler": Counts(3),
    "UniPCMultistepScheduler": Counts(12, made=3),  # the sample 5, the corrected one 5 and the estimate 2
}
METHODS = ("step", "step_pred", "add_noise_to_input")


def counted_loop(subject, entry, around):
    """The second of two loops of ten steps, whose calls are made inside ``around()``; what that yielded."""
    scheduler, seen = subject.ours(), []
    loop = subject.loop(scheduler, entry, TINY, "float32", 10)
    loop.prepare()()

    def wrapped(method):
        def call(*args, **kwargs):
            with around() as one:
                out = method(*args, **kwargs)
            seen.append(one)
            return out

        return call

    for name in METHODS:
        if hasattr(scheduler, name):
            setattr(scheduler, name, wrapped(getattr(scheduler, name)))
    loop.prepare()()
    assert len(seen) >= 10
    return seen


@pytest.fixture(autouse=True)
def _given_draws():
    with load("fixed").fixed_draws(), run.quiet():
        yield


@pytest.mark.parametrize("subject", cases.subjects(), ids=lambda subject: subject.name)
def test_kernels_reads_and_allocations_of_a_step(subject):
    """Equal, not below: a change that needs fewer is written down here, and then kept."""
    if subject.name not in COUNTS:
        pytest.fail(f"{subject.name} has no row in COUNTS: add one with what this test counts.")
    seen = counted_loop(subject, cases.library("torch"), lambda: Kernels(TINY.elements))
    most = {name: max(getattr(one, name) for one in seen) for name in ("full", "made", "scalar", "reads")}
    assert most["reads"] == 0, "a value is read from the device"
    found = Counts(most["full"], most["made"], most["scalar"])
    assert found == COUNTS[subject.name]


@pytest.mark.parametrize("subject", cases.subjects(), ids=lambda subject: subject.name)
def test_nothing_is_read_where_there_is_nothing_to_read(subject):
    """On the meta device, timesteps too: a read would raise, also one that the counter does not know."""
    meta = cases.Library("torch", device="meta")
    assert counted_loop(subject, meta, lambda: Kernels(TINY.elements))[-1].reads == 0


def test_the_counter_counts():
    """A kernel, a view, one on a scalar, a read, memory that is reused."""
    x = torch.ones(2, 3)
    with Kernels(6) as seen:
        y = (x * 2).view(3, 2).T
        y.add_(1)
        torch.mul(x, 2, out=x)
        torch.ones(4)
        float(x[0, 0])
        x.nonzero()
    assert (seen.full, seen.scalar, seen.reads, seen.made) == (3, 1, 2, 1)


def _row(name):
    scaled = BetaSchedule.named("scaled_linear")
    return {
        "Euler": lambda: Euler().plan(Linspace().levels(scaled, 4).to_karras(), "epsilon"),
        "Euler, flow": lambda: Euler().plan(Linspace().levels(RectifiedFlow(), 4), "flow_prediction"),
        "DDIM": lambda: DDIM().plan(Leading().levels(scaled, 4), "epsilon"),
    }[name]()


@pytest.mark.parametrize("name", ["Euler", "Euler, flow"])
def test_one_kernel_into_the_sample_given_up(name):
    plan = _row(name)
    for i in range(len(plan)):
        x, m = (torch.randn(TINY.shape) for _ in range(2))
        update(plan, i, State(x.clone()), m, donate=True)
        with Kernels(TINY.elements) as seen:
            update(plan, i, State(x), m, donate=True)
        assert (seen.full, seen.made, seen.scalar, seen.reads) == (1, 0, 0, 0)


def peak(call, size):
    """Largest memory that a call held at one time beside what there was, in arrays."""
    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        kept = call()
        found = (tracemalloc.get_traced_memory()[1] - before) / size
        del kept
    finally:
        tracemalloc.stop()
    return found


@pytest.mark.parametrize("name", ["Euler", "Euler, flow", "DDIM"])
@pytest.mark.parametrize("donate", [False, True])
def test_numpy_holds_no_array_but_the_result(name, donate):
    """From 2^19 elements on, where sums are made in blocks; below, terms are whole arrays, which NumPy keeps for reuse."""
    plan, rng = _row(name), np.random.default_rng(0)
    x, m = (rng.standard_normal(2**20, dtype=np.float32) for _ in range(2))
    for i in range(len(plan)):
        state = init(plan, x)
        held = peak(lambda i=i, state=state: update(plan, i, state, m, donate=donate), x.nbytes)
        # Two blocks of 2^15 elements beside it.
        assert held <= (not donate) + 0.07, i


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_numpy_facade_holds_what_it_returns_and_stores(name):
    (subject,) = [one for one in cases.subjects() if one.name == name]
    scheduler, rng = subject.ours(), np.random.default_rng(0)
    x, m = (rng.standard_normal(2**20, dtype=np.float32) for _ in range(2))

    def steps():
        scheduler.set_timesteps(4)
        scheduler.is_scale_input_called = True
        for t in scheduler.timesteps:
            yield lambda t=t: scheduler.step(m, t, x, return_dict=False)[0]

    for step in steps():  # rows are made ready at their first call
        step()
    for step in steps():
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            kept = step()
            held = (tracemalloc.get_traced_memory()[1] - before) / x.nbytes
        finally:
            tracemalloc.stop()
        assert kept.shape == x.shape
        assert held <= COUNTS[name].made + 0.1
