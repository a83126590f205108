"""What is paid once or for everything: import, dispatch; and a step of tokens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from anystep._array import kind

from .goals import Record
from .run import Run, micro, record
from .timing import median, repeated

__all__ = ["dispatch", "imports", "tokens"]

IMPORTS = {
    "numpy": "import numpy",
    "import anystep": "import anystep",
    "from anystep import DDIMScheduler": "from anystep import DDIMScheduler",
    "torch": "import torch",
    "from diffusers import DDIMScheduler": "from diffusers import DDIMScheduler",
}
_IMPORTED = """
import time
begin = time.perf_counter()
{}
seconds = time.perf_counter() - begin
try:
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    peak = 0
print(seconds, peak)
"""


def imports(run: Run) -> Iterator[Record]:
    """In interpreters begun anew, in turn, after a round that leaves bytecode, which installed packages have."""
    names = [name for name in IMPORTS if not run.quick or "numpy" in name or "anystep" in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "PYTHONDONTWRITEBYTECODE": ""}
        for i in range(4 if run.quick else 10):
            run.tick("imports")
            for name in names:
                command = [sys.executable, "-c", _IMPORTED.format(IMPORTS[name])]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                time, peak = map(float, done.stdout.split())
                if i:
                    seconds[name].append(time)
                    peaks[name].append(peak / 1024)
    for name in names[1:]:
        ratios = [a / b for a, b in zip(seconds[name], seconds["numpy"], strict=True)]
        yield Record(
            "import" if "anystep" in name else "import of others",
            name,
            median(ratios),
            "x import numpy",
            detail="time",
            low=min(ratios),
            high=max(ratios),
            microseconds=1e6 * median(seconds[name]),
            reference=1e6 * median(seconds["numpy"]),
            rounds=len(ratios),
        )
        more = median(peaks[name]) - median(peaks["numpy"])
        yield Record(
            "import" if "anystep" in name else "import of others",
            name,
            more,
            "MB above numpy",
            detail="memory",
            rounds=len(ratios),
        )


def dispatch(run: Run) -> Iterator[Record]:
    """From an array to its namespace and working precision."""
    for entry in run.entries():
        run.tick(f"dispatch, {entry.name}")
        x = entry.array(np.zeros(3), "float32")
        found = run.time({"kind": repeated(lambda x=x: kind(x), 2000), "empty": repeated(lambda: None, 2000)})
        pairs = zip(found.seconds["kind"], found.seconds["empty"], strict=True)
        value = median([a - b for a, b in pairs]) * 1e6
        yield Record("dispatch", "kind(x)", value, "µs", entry.name, microseconds=value, rounds=run.rounds)


def tokens(run: Run) -> Iterator[Record]:
    """VQ-diffusion: 4096 classes and the mask, 1024 tokens of which half are masked, in the middle of a run."""
    import diffusers
    import torch

    import anystep

    classes, length, batch = 4097, 1024, 1
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes - 1, length, generator=source) * 2
    log_p = torch.log_softmax(logits.double(), dim=1).float().clamp(-70, 0)
    x = torch.randint(0, classes - 1, (batch, length), generator=source)
    x[:, ::2] = classes - 1
    ours = anystep.VQDiffusionScheduler(classes)
    theirs = diffusers.VQDiffusionScheduler(classes)
    ours.set_timesteps(100)
    theirs.set_timesteps(100)
    run.tick("tokens")

    def step(scheduler: Any) -> Callable[[], Any]:
        return lambda: scheduler.step(log_p, 50, x, generator=torch.Generator().manual_seed(1)).prev_sample

    same = float((step(ours)() == step(theirs)()).float().mean())
    candidates = {
        "diffusers": repeated(step(theirs), 1),
        "seed-compatible": repeated(step(ours), 1),
        "sparse": repeated(step(ours.sparse()), 4),
    }
    found = run.time(candidates, max(5, run.rounds // 2))
    for name in ("seed-compatible", "sparse"):
        yield record(
            "tokens",
            name,
            found.ratio(name, "diffusers"),
            "x diffusers",
            library="torch",
            size="4097 x 1024",
            dtype="float32",
            microseconds=micro(found.time(name)),
            reference=micro(found.time("diffusers")),
        )
    yield Record("agreement", "seed-compatible", same, "share of tokens equal", "torch", "4097 x 1024")
