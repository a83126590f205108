"""Schedulers and plans used by several at once, copied in the middle of a run and broken off: each run ends as if it were alone.

Bit for bit, for every diffusers-named class, on NumPy and on PyTorch.
"""

import asyncio
import contextlib
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from anystep import (
    DDIM,
    DDPM,
    IPNDM,
    LMS,
    BetaSchedule,
    Clip,
    DPMSolver,
    DynamicThreshold,
    EulerAncestral,
    Heun,
    Leading,
    Plan,
    UniPC,
    init,
    reproducible,
    scale_input,
    update,
)
from anystep._array import backend
from facade_runs import FACADES, STEPS, VARIANTS, Run, invoke

LIBRARIES = ("numpy", "torch")
CELLS = [
    pytest.param(cls, config, library, id="-".join([cls.__name__, *map(str, config.values()), library]))
    for cls, config in VARIANTS
    for library in LIBRARIES
]
THREADS = 8
COPIES = {
    "clone": lambda scheduler: scheduler.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
}


def same(samples: list[Any], expected: list[Any]) -> None:
    """Equal in number, type, dtype and every bit."""
    assert len(samples) == len(expected)
    for mine, other in zip(samples, expected, strict=True):
        assert type(mine) is type(other) and mine.dtype == other.dtype
        a, b = (np.asarray(part) for part in (mine, other))
        np.testing.assert_array_equal(a, b)


def alone(cls: Any, config: Any, library: str, seed: int = 0) -> list[Any]:
    """A run of a scheduler of its own."""
    return list(Run(cls(**config), library, seed))


@pytest.mark.parametrize(("cls", "config", "library"), CELLS)
def test_runs_differ_and_repeat(cls, config, library):
    """Or the tests below would pass whatever was shared."""
    one, two = (alone(cls, config, library, seed) for seed in (0, 1))
    same(alone(cls, config, library), one)
    assert all(np.isfinite(np.asarray(x)).all() for x in one)
    with pytest.raises(AssertionError):
        same(one, two)


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize(("cls", "config", "library"), CELLS)
def test_two_requests_interleaved_on_clones(cls, config, library, ahead):
    """The second begins ``ahead`` calls later, on a clone of the first where it stands then; set_timesteps begins it anew."""
    first = Run(cls(**config), library, 0)
    mine = [next(first.samples) for _ in range(ahead)]
    second, other = Run(first.scheduler.clone(), library, 1), []
    while len(mine) < len(expected := alone(cls, config, library, 0)) or len(other) < len(expected):
        for run, samples in ((first, mine), (second, other)):
            with contextlib.suppress(StopIteration):
                samples.append(next(run.samples))
    same(mine, expected)
    same(other, alone(cls, config, library, 1))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(("cls", "config", "library"), CELLS)
def test_copied_in_the_middle_of_a_run(cls, config, library, way):
    """The copy goes on where the original stood, whatever the original does after, and the original as if nothing were."""
    expected = alone(cls, config, library)
    for calls in (1, 3, len(expected) - 1):
        run = Run(cls(**config), library)
        samples = [next(run.samples) for _ in range(calls)]
        original, run.scheduler = run.scheduler, COPIES[way](run.scheduler)
        other = Run(original, library, 5)  # a new run of the original
        list(zip(range(2), other.samples, strict=False))
        same(samples + list(run), expected)
        same(list(Run(original, library)), expected)


@pytest.mark.parametrize(("cls", "config", "library"), CELLS)
def test_used_again_after_errors(cls, config, library):
    """The model fails once at every level, and every call is first made with a wrong shape: nothing has changed."""
    failed = 0

    def clumsy(scheduler: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal failed
        arrays = [i for i, value in enumerate(args) if getattr(value, "ndim", 0) > 1]
        for i in arrays if len(arrays) > 1 else ():
            if method == "step" and i > 2:  # broadcasts
                continue
            wrong = (*args[:i], args[i][..., :1], *args[i + 1 :])
            with pytest.raises((ValueError, TypeError), match="shape"):
                invoke(scheduler, method, wrong, kwargs)
            failed += 1
        heeded = False
        with contextlib.suppress(ValueError, TypeError):  # not every call heeds its generator
            heeded = "generator" in kwargs
            invoke(scheduler.clone(), method, args, {**kwargs, "generator": "seed"})
            heeded = False
        if heeded:
            with pytest.raises((ValueError, TypeError), match="generator"):
                invoke(scheduler, method, args, {**kwargs, "generator": "seed"})
            failed += 1
        return invoke(scheduler, method, args, kwargs)

    run = Run(cls(**config), library)
    run.call, run.stumbles = clumsy, True
    same(list(run), alone(cls, config, library))
    assert failed


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize(("cls", "config", "library"), CELLS)
def test_set_timesteps_again_in_the_middle(cls, config, library, calls):
    """The run begins anew, with the same number of steps or after another."""
    scheduler = cls(**config)
    for steps in (STEPS, STEPS + 1, STEPS):
        run = Run(scheduler, library, 9, steps=steps)
        for _ in range(calls):
            next(run.samples)
    same(list(Run(scheduler, library)), alone(cls, config, library))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("cls", FACADES, ids=lambda cls: cls.__name__)
def test_threads_with_clones_of_one(cls, library):
    """Clones of one scheduler share its plans, and what is made of them at the first call."""
    for config in (config for kind, config in VARIANTS if kind is cls):
        expected = [alone(cls, config, library, seed) for seed in range(THREADS)]
        for fresh in (False, True):  # set before it is cloned, or by each thread
            origin, start = cls(**config), Barrier(THREADS)
            prepared = Run(origin, library)

            def work(seed: int) -> list[Any]:
                clone = origin.clone()
                start.wait()
                if fresh:
                    return list(Run(clone, library, seed))
                run = Run(clone, library, seed, steps=None)
                return list(run)

            with ThreadPoolExecutor(THREADS) as pool:
                for found, wanted in zip(pool.map(work, range(THREADS)), expected, strict=True):
                    same(found, wanted)
            same(list(prepared), expected[0])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("cls", FACADES, ids=lambda cls: cls.__name__)
def test_tasks_that_take_turns(cls, library):
    """Requests of a server: each awaits its model between two calls."""
    configs = [config for kind, config in VARIANTS if kind is cls]

    async def request(scheduler: Any, seed: int) -> list[Any]:
        run, samples = Run(scheduler, library, seed), []
        for x in run:
            samples.append(x)
            await asyncio.sleep(0)
        return samples

    async def serve() -> list[list[Any]]:
        origins = [cls(**config) for config in configs]
        return await asyncio.gather(
            *(request(origin.clone(), seed) for origin in origins for seed in range(3))
        )

    found = iter(asyncio.run(serve()))
    for config in configs:
        for seed in range(3):
            same(next(found), alone(cls, config, library, seed))


# --- own face ---

LEVELS = Leading().levels(BetaSchedule.named("linear"), steps=STEPS)
PLANS = {
    "ddim": lambda: DDIM().plan(LEVELS, "epsilon"),
    "ddim-clipped": lambda: DDIM().plan(LEVELS, "epsilon", Clip(1.0)),
    "ddpm-dynamic": lambda: DDPM().plan(LEVELS, "epsilon", DynamicThreshold(0.9, 2.0)),
    "lms": lambda: LMS().plan(LEVELS.to_karras(), "epsilon"),
    "heun": lambda: Heun().plan(LEVELS.to_karras(), "epsilon"),
    "ipndm": lambda: IPNDM().plan(LEVELS, "v_prediction"),
    "ancestral": lambda: EulerAncestral().plan(LEVELS.to_karras(), "epsilon"),
    "dpm": lambda: DPMSolver().plan(LEVELS, "epsilon"),
    "unipc": lambda: UniPC().plan(LEVELS, "epsilon"),
}


def sampled(plan: Plan, library: str, seed: int, fused: bool, size: int) -> list[Any]:
    """A run on anystep's own face."""
    rng, lib = np.random.default_rng(seed), backend(library)

    def normal() -> Any:
        return lib.asarray(rng.standard_normal((2, size)), dtype="float32")

    state, samples = init(plan, normal()), []
    with contextlib.nullcontext() if fused else reproducible():
        for i in range(len(plan)):
            noise = [normal() for _ in range(plan.noises)]
            out = scale_input(plan, i, state.x) * 0.5
            state = update(plan, i, state, out, noise or None)
            samples.append(state.x)
    return samples


@pytest.mark.parametrize("size", [3, 5000])  # fused kernels may treat large arrays otherwise
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", PLANS)
def test_one_plan_in_many_threads(name, library, fused, size):
    """What a plan makes at its first call, it makes while others call it too; every second thread takes the other path."""
    expected = [
        sampled(PLANS[name](), library, seed, fused == (seed % 2 == 0), size) for seed in range(THREADS)
    ]
    plan, start = PLANS[name](), Barrier(THREADS)

    def work(seed: int) -> list[Any]:
        torch.set_num_threads(1)
        start.wait()
        return sampled(plan, library, seed, fused == (seed % 2 == 0), size)

    with ThreadPoolExecutor(THREADS) as pool:
        for found, wanted in zip(pool.map(work, range(THREADS)), expected, strict=True):
            same(found, wanted)
    assert plan == PLANS[name]()
