"""The ``anystep`` command: draw digits, list array libraries, compare schedulers."""

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from anystep._array import backend, backend_names
from anystep._files import write_atomically
from anystep.demo import digits
from anystep.demo.drawing import SCHEDULERS, Drawing, draw_digits, grid

try:
    import typer
    from PIL import Image, ImageDraw
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track
    from rich.table import Table
except ImportError as error:  # pragma: no cover
    sys.exit(f'The anystep command needs {error.name}: pip install "anystep[cli]"')

__all__ = ["main"]

app = typer.Typer(
    help="Diffusion-model schedulers for every array library.", no_args_is_help=True, add_completion=False
)
console = Console()

Scheduler = Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.")]
Backend = Annotated[str, typer.Option(help="Array library; `anystep backends` lists them.")]
Device = Annotated[str | None, typer.Option(help="Device of that library, such as cpu or cuda:0.")]
Dtype = Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")]
Seed = Annotated[int, typer.Option(help="Same seed, same noise, on every backend.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")]


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("digits.png"),
    scheduler: Scheduler = "ddim",
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 25,
    backend: Backend = "numpy",
    device: Device = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
    count: Annotated[int, typer.Option(help="Number of digits.")] = 100,
    class_: Annotated[
        list[int] | None, typer.Option("--class", help="Digit to draw; may be repeated.")
    ] = None,
    guidance: Guidance = digits.GUIDANCE,
) -> None:
    """Draw handwritten digits with the built-in model and say how good they are."""
    _check(out)
    drawing = draw_digits(
        scheduler,
        steps,
        backend_name=backend,
        device=device,
        dtype=dtype,
        seed=seed,
        count=count,
        classes=class_ or range(10),
        guidance=guidance,
        progress=_progress(f"{scheduler}, {steps} steps"),
    )
    _save(out, grid(drawing.images, zoom=8))
    console.print(
        f"{out}: {count} digits, {steps} steps, {drawing.calls} model calls, {drawing.seconds:.2f} s"
    )
    if count > 1:
        console.print(_verdict(drawing))


@app.command()
def backends() -> None:
    """List array libraries: installed or not, version, devices."""
    table = Table("backend", "version", "devices")
    for name in backend_names():
        try:
            found = backend(name)
            table.add_row(name, found.version, ", ".join(found.devices()) or "none found")
        except ImportError as error:
            table.add_row(name, "not installed", f"[dim]{escape(str(error))}[/dim]")
    console.print(table)


@app.command()
def compare(
    steps: Annotated[str, typer.Option(help="Numbers of steps, separated by commas.")] = "5,10,25",
    schedulers: Annotated[str, typer.Option(help="Schedulers, separated by commas.")] = ",".join(SCHEDULERS),
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("compare.png"),
    count: Annotated[int, typer.Option(help="Digits judged in each cell; the first ten are drawn.")] = 200,
    backend: Backend = "numpy",
    seed: Seed = 0,
    guidance: Guidance = digits.GUIDANCE,
) -> None:
    """Draw a grid of schedulers by steps, and judge every cell."""
    _check(out)
    columns, names = _numbers(steps), schedulers.split(",")
    cells = [(name, n) for name in names for n in columns]
    table = Table("scheduler", *(f"{n} steps" for n in columns), title="accuracy (distance)")
    strips: dict[tuple[str, int], Any] = {}
    verdicts: dict[tuple[str, int], str] = {}
    for name, n in track(cells, "drawing", console=console):
        drawing = draw_digits(
            name, n, backend_name=backend, seed=seed, count=max(count, 10), guidance=guidance
        )
        quality = digits.judge(drawing.images, drawing.labels)
        strips[name, n] = grid(drawing.images[:10], zoom=5)
        verdicts[name, n] = f"{quality.accuracy:.1%} ({quality.distance:.1f})"
    for name in names:
        table.add_row(name, *(verdicts[name, n] for n in columns))
    _save(out, _sheet(names, columns, strips))
    console.print(table)
    console.print(f"{out}: rows {', '.join(names)}; columns {steps} steps")


def main() -> None:
    """Run the command; what the user typed wrongly is said in one line, without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        # Escaped, because "anystep[torch]" looks like markup.
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"steps={text!r}: expected integers separated by commas, such as 5,10,25."
        ) from error


def _progress(label: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    return lambda steps: track(list(steps), label, console=console)


def _verdict(drawing: Drawing) -> str:
    quality = digits.judge(drawing.images, drawing.labels)
    return (
        f"a classifier of real digits reads {quality.accuracy:.1%} of them as asked ({quality.real_accuracy:.1%} of real "
        f"held-out digits); distance to held-out digits {quality.distance:.1f} "
        f"(real training digits: {quality.real_distance:.1f})"
    )


def _sheet(names: list[str], columns: list[int], strips: dict[tuple[str, int], Any]) -> Any:
    """The strips with a line of text over each column and before each row."""
    height, width = strips[names[0], columns[0]].shape
    top, gap = 20, 8
    left = 8 + max(int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) for name in names)
    picture = Image.new("L", (left + len(columns) * (width + gap), top + len(names) * (height + gap)), 255)
    pen = ImageDraw.Draw(picture)
    for j, n in enumerate(columns):
        pen.text((left + j * (width + gap), 4), f"{n} steps", fill=0)
    for i, name in enumerate(names):
        pen.text((4, top + i * (height + gap) + height // 2 - 6), name, fill=0)
        for j, n in enumerate(columns):
            picture.paste(
                Image.fromarray(strips[name, n]), (left + j * (width + gap), top + i * (height + gap))
            )
    return np.asarray(picture)


def _check(path: Path) -> None:
    """Raise before any work if the file could not be written."""
    if not path.parent.is_dir():
        raise OSError(f"out={path}: the folder {path.parent} does not exist; make it first.")
    if path.is_dir():
        raise OSError(f"out={path}: is a folder; name a file in it, such as {path / 'digits.png'}.")


def _save(path: Path, pixels: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
