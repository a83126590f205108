"""What counter noise costs beside each library's own generator, and how well its numbers are distributed.

    python -m benchmarks.noise [--rounds 31] [--statistics]

One process and one thread; `benchmarks.timing` interleaves the subjects. Writes benchmarks/noise.json and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anystep import CounterNoise
from benchmarks.timing import Rounds, repeated

Pairs = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]
"""Ours and the library's own, by name."""
SHAPES = {"10^6 values": (16, 62_500), "4 x 64 x 64": (1, 4, 64, 64)}
NOISE = CounterNoise(0)


def on_numpy(shape: tuple[int, ...]) -> Pairs:
    """NumPy's PCG64 and ziggurat."""
    rng = np.random.default_rng(0)

    def pair(dtype: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        like = np.zeros(shape, dtype)
        return lambda: NOISE.normal(like, 1), lambda: rng.standard_normal(shape, dtype=dtype)

    return {f"NumPy {dtype}": pair(dtype) for dtype in ("float32", "float64")}


def on_torch(shape: tuple[int, ...]) -> Pairs:
    """PyTorch's Mersenne Twister on the CPU."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def pair(dtype: torch.dtype) -> tuple[Callable[[], Any], Callable[[], Any]]:
        like = torch.zeros(shape, dtype=dtype)
        return lambda: NOISE.normal(like, 1), lambda: torch.randn(shape, generator=generator, dtype=dtype)

    found = {f"PyTorch {str(dtype)[6:]}": pair(dtype) for dtype in (torch.float32, torch.float64)}
    like, step = torch.zeros(shape), torch.tensor(1)
    NOISE.normal(like)  # finds the backend, which Dynamo cannot
    ours = torch.compile(lambda like, step: NOISE.normal(like, step) * 2.0, fullgraph=True)
    native = torch.compile(lambda like: torch.randn_like(like) * 2.0, fullgraph=True)
    return found | {"PyTorch float32, compiled": (lambda: ours(like, step), lambda: native(like))}


def on_jax(shape: tuple[int, ...]) -> Pairs:
    """JAX's own Threefry and inverse error function."""
    import jax

    key, like = jax.random.key(0), jax.numpy.zeros(shape)
    ours = jax.jit(lambda like, step: NOISE.normal(like, step) * 2.0)
    native = jax.jit(lambda key: jax.random.normal(key, shape) * 2.0)
    return {
        "JAX float32": (
            lambda: NOISE.normal(like, 1).block_until_ready(),
            lambda: jax.random.normal(key, shape).block_until_ready(),
        ),
        "JAX float32, compiled": (
            lambda: ours(like, 1).block_until_ready(),
            lambda: native(key).block_until_ready(),
        ),
    }


def throughput(rounds: int) -> list[dict[str, Any]]:
    """A row for each subject and shape."""
    pairs: Pairs = {}
    for label, shape in SHAPES.items():
        for make in (on_numpy, on_torch, on_jax):
            try:
                pairs |= {f"{name} | {label}": pair for name, pair in make(shape).items()}
            except ImportError as error:
                print(f"{make.__name__}: {error}")
    calls = {name: 10 if "64 x 64" in name else 1 for name in pairs}
    candidates = {
        (name, who): repeated(pair[who], calls[name]) for name, pair in pairs.items() for who in (0, 1)
    }
    named = {f"{name} | {who}": candidate for (name, who), candidate in candidates.items()}
    found = Rounds.run(named, rounds)
    return [
        {
            "subject": name,
            "ours_ms": found.time(f"{name} | 0").value * 1e3,
            "native_ms": found.time(f"{name} | 1").value * 1e3,
            "ratio": found.ratio(f"{name} | 0", f"{name} | 1").value,
        }
        for name in pairs
    ]


def distribution(total: int = 200_000_000, piece: int = 4_000_000) -> dict[str, float]:
    """Standard deviations by which sample moments, tail counts and correlations are off, of that many normals."""
    sums, tails, cross, squares = np.zeros(6), np.zeros(5), 0.0, 0.0
    edges = np.arange(1.0, 6.0)
    for step in range(total // piece):
        z = CounterNoise(2026).normal((1, piece), step)[0].astype(np.float64)
        sums += [(z**power).sum() for power in range(1, 7)]
        tails += [(np.abs(z) > edge).sum() for edge in edges]
        cross += float(z[:-1] @ z[1:])
        squares += float((z[:-1] ** 2 - 1) @ (z[1:] ** 2 - 1))
    moments = zip(range(1, 7), (0, 1, 0, 3, 0, 15), (1, 2, 15, 96, 945, 10170), strict=True)
    found = {f"mean of z^{k}": (sums[k - 1] / total - m) / math.sqrt(v / total) for k, m, v in moments}
    for edge, count in zip(edges, tails, strict=True):
        p = math.erfc(edge / math.sqrt(2))
        found[f"|z| > {edge:.0f}"] = (count - total * p) / math.sqrt(total * p * (1 - p))
    return found | {
        "neighbours": cross / math.sqrt(total),
        "squares of neighbours": squares / math.sqrt(4 * total),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument(
        "--statistics", action="store_true", help="2e8 normals' moments and tails as well: minutes"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Dynamo's, of what it does itself
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    target = Path(__file__).with_suffix(".json")
    report = json.loads(target.read_text()) if target.exists() else {}
    report["machine"] = f"{platform.machine()}, Python {platform.python_version()}, one thread"
    report["throughput"] = throughput(options.rounds)
    if options.statistics:
        report["statistics"] = distribution()
    target.write_text(json.dumps(report, indent=1) + "\n")
    print("| library | values | ours, ms | native, ms | ratio |\n|---|---|--:|--:|--:|")
    for row in report["throughput"]:
        times = f"{row['ours_ms']:.2f} | {row['native_ms']:.2f} | {row['ratio']:.1f}"
        print(f"| {row['subject']} | {times} |")
    for name, value in report.get("statistics", {}).items():
        print(f"{name}: {value:+.2f}")


if __name__ == "__main__":
    main()
