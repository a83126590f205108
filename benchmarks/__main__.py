"""``python -m benchmarks``: measure, and write JSON, Markdown and a figure."""

import json
import os
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")  # the last is XLA's


def _threads() -> int:
    """How many threads were asked for: libraries must be told before they are imported."""
    for i, argument in enumerate(sys.argv):
        if argument == "--threads" and i + 1 < len(sys.argv):
            return int(sys.argv[i + 1])
        if argument.startswith("--threads="):
            return int(argument.partition("=")[2])
    return 1


for variable in VARIABLES:
    os.environ[variable] = str(_threads())

try:
    import typer
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
except ImportError as error:  # pragma: no cover
    sys.exit(f'The benchmarks need {error.name}: pip install -e ".[test]"')

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
console = Console()


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Half a minute: few classes, small arrays.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="One measurement; may be repeated.")] = None,
    scheduler: Annotated[list[str] | None, typer.Option(help="One class; may be repeated.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="One size, such as tiny; may be repeated.")] = None,
    library: Annotated[list[str] | None, typer.Option(help="torch, numpy or jax; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each comparison.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every library.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, or cuda for the measurements of a GPU.")] = "cpu",
    out: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    read: Annotated[Path | None, typer.Option(help="JSON file to report, instead of measuring.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/performance.md and .png.")] = False,
    seed: Annotated[int, typer.Option(help="Order of the candidates.")] = 0,
) -> None:
    """Measure anystep beside diffusers; without --write the report goes to the terminal alone."""
    from .report import from_json, plot, to_markdown, to_tables, write_between_markers

    if read is not None:
        found = from_json(read.read_text(encoding="utf-8"))
    elif device.startswith("cuda"):
        from .cuda import measure

        found = {"about": about(threads), "records": [one.to_dict() for one in measure(rounds)]}
    elif device == "cpu":
        found = _measured(quick, only, scheduler, size, library, rounds, threads, seed, out)
    else:
        raise typer.BadParameter(f"device={device!r}: expected cpu or cuda.")
    if out is not None:
        _save(out, found)
    for table in to_tables(found):
        console.print(table)
    if write:
        write_between_markers(DOCS / "performance.md", to_markdown(found))
        plot(found, DOCS / "performance.png")


def _measured(
    quick: bool,
    only: list[str] | None,
    scheduler: list[str] | None,
    size: list[str] | None,
    library: list[str] | None,
    rounds: int,
    threads: int,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    from .items import ITEMS
    from .run import Run, quiet

    unknown = set(only or ()) - set(ITEMS)
    if unknown:
        raise typer.BadParameter(f"only={sorted(unknown)}: expected some of {', '.join(ITEMS)}.")
    import torch

    torch.set_num_threads(threads)
    records: list[dict[str, Any]] = []
    found = {"about": about(threads) | {"quick": quick, "rounds": 5 if quick else rounds}, "records": records}
    columns = (SpinnerColumn(), TextColumn("{task.fields[item]:12} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, quiet():
        task = progress.add_task("", total=None, item="")

        def tick(label: str) -> None:
            progress.update(task, description=label)

        run = Run(5 if quick else rounds, quick, seed, tick=tick)
        run.subjects = None if scheduler is None else tuple(scheduler)
        run.sizes = None if size is None else tuple(size)
        run.libraries = run.libraries if library is None else tuple(library)
        for name in only or ITEMS:
            progress.update(task, item=name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # diffusers' deprecations
                records += [one.to_dict() for one in ITEMS[name](run)]
            if out is not None:  # a run that is broken off leaves what it has
                _save(out, found)
    return found


def _save(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def about(threads: int) -> dict[str, Any]:
    """Versions, machine and date: without them a figure says nothing."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    names = ("anystep", "diffusers", "numpy", "torch", "jax", "jaxlib", "cupy-cuda12x", "array-api-compat")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "threads": threads,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in names if (found := of(name)) is not None},
    }


def _processor() -> str:
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


if __name__ == "__main__":
    try:
        typer.run(main)
    except (OSError, RuntimeError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
