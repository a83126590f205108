"""``python -m anystep_conformance``: run the suite, or write golden vectors."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from .case import MODES, Result
from .checks import run as run_case
from .finding import find_subjects
from .report import overview, shown, to_html, to_json, to_junit, verdict
from .suite import plan_suite, provenance
from .vectors import COMMAND, check_vector, read_vectors, slug, write_vectors

try:
    import typer
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Column, Table
    from rich.text import Text
except ImportError as error:  # pragma: no cover
    sys.exit(f'The suite\'s command needs {error.name}: pip install "anystep[conformance]"')

__all__ = ["main"]

app = typer.Typer(add_completion=False, invoke_without_command=True)
COLOURS = {"exact": "green", "close": "cyan", "gap": "yellow", "failed": "red", "absent": "dim"}


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@app.callback()
def suite(
    context: typer.Context,
    backend: Annotated[
        str | None, typer.Option(help="Names, or package.module:attribute; commas between.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of that library, such as cpu or cuda:0.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16, float32, float64; commas between.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help=f"{', '.join(MODES)}; commas between.")] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="A scheduler's name, or package.module:attribute; may be repeated."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every subject in every dtype and mode.")] = False,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each plan.")] = 8,
    json: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
) -> None:
    """Prove that array libraries give equal results.

    Exit code: 0 all passed, 1 a failure, 2 wrong usage, 3 nothing could be run.
    """
    if context.invoked_subcommand is not None:
        return
    console = Console()
    chosen = plan_suite(
        backends=_listed(backend),
        device=device,
        dtypes=_listed(dtype),
        modes=_listed(mode),
        subjects=subject or (),
        everything=every,
        steps=steps,
    )
    results: list[Result] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen.cases))
        for case in chosen.cases:
            progress.update(task, description=f"{case.library.name}, {case.mode}")
            results.append(run_case(case))
            progress.advance(task)
    results += chosen.absent
    found = provenance(chosen.cases)
    command = shlex.join(["python", "-m", "anystep_conformance", *sys.argv[1:]])
    for path, text in (
        (json, lambda: to_json(results, found)),
        (junit, lambda: to_junit(results, found)),
        (html, lambda: to_html(results, found, command)),
    ):
        if path is not None:
            path.write_text(text(), encoding="utf-8")
    console.print(_table(results))
    for result in results:
        if result.outcome != "passed":
            where = f"{result.id}: {result.check}" if result.check else result.library
            colour = COLOURS["failed" if result.outcome == "failed" else "gap"]
            console.print(
                Text(result.outcome, style=colour), Text(f"{where}: {result.reason}"), soft_wrap=True
            )
    console.print(verdict(results), highlight=False, soft_wrap=True)
    ran = [result for result in results if result.outcome != "not run"]
    raise typer.Exit(1 if any(result.outcome == "failed" for result in results) else 0 if ran else 3)


@app.command()
def golden(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; without it, those in the package are checked.")
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="A scheduler's name, or package.module:attribute; may be repeated."),
    ] = None,
) -> None:
    """Write golden vectors for ports to other languages, or hold the present code to those in the package."""
    console = Console()
    subjects = find_subjects(subject or ())
    if out is not None:
        for path in write_vectors(out, subjects):
            console.print(Text(str(path)), soft_wrap=True)
        return
    vectors, wrong = read_vectors(), 0
    for one in subjects:
        try:
            if f"{slug(one.name)}.json" not in vectors:
                raise AssertionError(f"{one.name}: no vector; write one with: {COMMAND}")
            check_vector(vectors[f"{slug(one.name)}.json"], one)
        except AssertionError as error:
            wrong += 1
            console.print(Text("failed", style="red"), Text(str(error)), soft_wrap=True)
    console.print(f"{len(subjects) - wrong} passed, {wrong} failed", highlight=False)
    raise typer.Exit(1 if wrong else 0)


def _table(results: list[Result]) -> Table:
    """Libraries by modes."""
    found = overview(results)
    modes = [mode for mode in MODES if any(mode in row for row in found.values())]
    table = Table(Column("library", min_width=14, overflow="fold"), *modes, show_lines=True)
    table.caption = "largest distance from NumPy: ulp; eps of Σ|c v| in fused, compile, scan and grad"
    for library, row in found.items():
        cells = [row.get(mode) for mode in modes]
        texts = [
            f"[{COLOURS[c.tone]}]{shown(c.distance)}[/]\n{c.passed}/{c.total}" if c else "" for c in cells
        ]
        table.add_row(library, *(texts if row else ["[dim]not run[/]"]))
    return table


def main() -> None:
    """Run the command; wrong usage is said in one line, without a traceback."""
    try:
        app(prog_name="python -m anystep_conformance")
    except (ValueError, OSError) as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False
        )
        sys.exit(2)
