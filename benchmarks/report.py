"""From records to what is read: tables in the terminal, a section of docs/performance.md, and a figure."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .goals import Record, Verdict, judge

__all__ = ["from_json", "plot", "to_markdown", "to_tables", "write_between_markers"]

BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
SIZES = ("tiny", "64 KiB", "2 MiB", "video", "1024²")
LIBRARIES = ("torch", "numpy", "jax")
SHAPES = {
    "tiny": "1x4x8x8",
    "64 KiB": "1x4x64x64",
    "2 MiB": "8x4x128x128",
    "video": "1x16x21x90x160",
    "1024²": "1x3x1024x1024",
}


def from_json(text: str) -> dict[str, Any]:
    """What was measured; ValueError if the text is something else."""
    found = json.loads(text)
    if not isinstance(found, dict) or {"about", "records"} - set(found):
        raise ValueError("not a report: expected the JSON that --json writes.")
    return found


def records_of(found: dict[str, Any]) -> list[Record]:
    return [Record(**one) for one in found["records"]]


def speed(ratio: float) -> str:
    """A ratio to diffusers as how many times faster or slower.

    Examples
    --------
    >>> speed(0.1), speed(0.5), speed(1.25), speed(0.01234)
    ('10x', '2.0x', '0.80x', '81x')
    """
    times = 1 / ratio
    return f"{times:.0f}x" if times >= 9.95 else f"{times:.1f}x" if times >= 0.995 else f"{times:.2f}x"


def number(value: float) -> str:
    """Three digits.

    Examples
    --------
    >>> number(0.01234), number(3.14159), number(31.4), number(31415.9)
    ('0.0123', '3.14', '31.4', '31416')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _verdict_rows(verdicts: Iterable[Verdict]) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for one in verdicts:
        if one.worst is None:
            rows.append((one.goal.id, one.goal.says, "", one.text))
            continue
        if one.goal.unit == "x diffusers" and one.goal.limit < 1 and one.value < 1:
            shown = f"1/{number(1 / one.value)}"
        else:
            shown = (
                f"{number(one.value)} {one.goal.unit.removeprefix('x ') if one.goal.unit[0] != 'x' else ''}"
            )
        pinned = {key for key, value in one.goal.where.items() if isinstance(value, str)}
        free = (key for key in ("subject", "library", "size", "dtype", "detail") if key not in pinned)
        parts = (part for key in free if (part := getattr(one.worst, key)) not in ("", "float32"))
        where = ", ".join(parts)
        row = (one.goal.id, one.goal.says, f"{shown.strip()}{f' ({where})' if where else ''}", one.text)
        rows.append(row)
    return rows


def _step_rows(records: Sequence[Record], item: str) -> list[tuple[str, str, list[str]]]:
    """For each class and library a cell for each size and dtype: times faster, and µs."""
    columns = _columns(records, item)
    subjects = list(dict.fromkeys(one.subject for one in records if one.item == item))
    rows: list[tuple[str, str, list[str]]] = []
    for subject in subjects:
        theirs = {
            (one.size, one.dtype): one.reference
            for one in records
            if (one.item, one.subject) == (item, subject)
        }
        cells = [f"{number(v)} µs" if (v := theirs.get(key)) is not None else "" for key in columns]
        rows.append((subject, "diffusers", cells))
        for library in LIBRARIES:
            found = {
                (one.size, one.dtype): one
                for one in records
                if (one.item, one.subject, one.library) == (item, subject, library)
            }
            if found:
                rows.append(("", library, [_cell(found.get(key)) for key in columns]))
    return rows


def _cell(one: Record | None) -> str:
    if one is None:
        return ""
    return f"{speed(one.value)} ({number(one.microseconds or 0)})"


def _columns(records: Sequence[Record], item: str) -> list[tuple[str, str]]:
    keys = {(one.size, one.dtype) for one in records if one.item == item}
    return sorted(keys, key=lambda key: (SIZES.index(key[0]) if key[0] in SIZES else 9, key[1] != "float16"))


def to_tables(found: dict[str, Any]) -> list[Any]:
    """For the terminal."""
    from rich.table import Table

    records = records_of(found)
    tables: list[Any] = []
    for item in ("step", "step with draw"):
        columns = _columns(records, item)
        if columns:
            table = Table("class", "library", *(f"{size} {dtype}" for size, dtype in columns), title=item)
            for subject, library, cells in _step_rows(records, item):
                table.add_row(subject, library, *cells)
            tables.append(table)
    for item in dict.fromkeys(one.item for one in records if not one.item.startswith("step")):
        table = Table("what", "where", "value", "µs", title=item)
        for one in (one for one in records if one.item == item):
            where = " ".join(part for part in (one.library, one.size, one.dtype) if part)
            micro = "" if one.microseconds is None else number(one.microseconds)
            value = f"{number(one.value)} {one.unit}" if one.unit != "s" else ""
            table.add_row(f"{one.subject} {one.detail}".strip(), where, value, micro)
        tables.append(table)
    goals = Table("goal", "aimed at", "measured", "verdict", title="goals")
    for row in _verdict_rows(one for one in judge(records) if one.worst is not None):
        goals.add_row(*(cell.replace("**", "") for cell in row))
    tables.append(goals)
    return tables


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> list[str]:
    lines = [f"| {' | '.join(head)} |"]
    lines.append("|" + "|".join("---" if i < numbers_from else "--:" for i in range(len(head))) + "|")
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def to_markdown(found: dict[str, Any]) -> str:
    """The measured part of docs/performance.md."""
    records, about = records_of(found), found["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    lines = [
        f"{about['date']}, {about['processor']}, {threads}, Python {about['python']}, {versions}.",
        "",
    ]
    for item, title in (
        ("step", "A step, diffusers' time and how many times faster anystep is"),
        ("step with draw", "With the draw of the noise"),
    ):
        columns = _columns(records, item)
        if not columns:
            continue
        heads = [f"{SHAPES[size]} {'' if dtype == 'float32' else dtype}".strip() for size, dtype in columns]
        rows = [[subject, library, *cells] for subject, library, cells in _step_rows(records, item)]
        lines += [f"### {title}", "", *_markdown_table(["class", "", *heads], rows, 2), ""]
    lines += _pivot(records, "update", "Bandwidth: `update()` over `torch.add(out=)`", "subject", "detail")
    lines += _pivot(records, "faults", "Pages touched for the first time, in tensors", "subject", "detail")
    lines += _pivot(records, "memory", "64 MiB", "subject", "detail")
    lines += _listed(records, "k-diffusion", "k-diffusion's formulas, written out")
    lines += _listed(records, "scan", "Inside `lax.scan`")
    lines += _listed(records, "set_timesteps", "`set_timesteps(50)`")
    lines += _listed(records, "growth", "Growth")
    lines += _listed(records, ("import", "import of others"), "Import")
    lines += _listed(records, ("tokens", "agreement"), "Tokens")
    lines += _listed(records, "dispatch", "Dispatch")
    lines += _pivot(
        records,
        ("accuracy", "accuracy of diffusers"),
        "Error over that of float64 sums rounded once a step",
        "subject",
        "dtype",
    )
    rows = [list(row) for row in _verdict_rows(judge(records))]
    lines += ["### Goals", "", *_markdown_table(["", "aimed at", "measured", ""], rows, 9), ""]
    return "\n".join(lines)


def _of(records: Sequence[Record], item: str | tuple[str, ...]) -> list[Record]:
    items = (item,) if isinstance(item, str) else item
    return [one for one in records if one.item in items]


def _pivot(
    records: Sequence[Record], item: str | tuple[str, ...], title: str, row: str, column: str
) -> list[str]:
    chosen = _of(records, item)
    if not chosen:
        return []
    keys = list(dict.fromkeys((one.library, getattr(one, column)) for one in chosen))
    names = list(dict.fromkeys(getattr(one, row) for one in chosen))
    table = {(getattr(one, row), one.library, getattr(one, column)): number(one.value) for one in chosen}
    rows = [[name, *(table.get((name, *key), "") for key in keys)] for name in names]
    heads = ["", *(" ".join(key) for key in keys)]
    return [f"### {title}", "", *_markdown_table(heads, rows, 1), ""]


def _listed(records: Sequence[Record], item: str | tuple[str, ...], title: str) -> list[str]:
    chosen = _of(records, item)
    if not chosen:
        return []
    rows = [
        [
            one.subject,
            " ".join(part for part in (one.library, one.size, one.detail) if part),
            f"{number(one.value)} {one.unit}" if one.unit != "s" else "",
            "" if one.microseconds is None else f"{number(one.microseconds)} µs",
        ]
        for one in chosen
    ]
    return [f"### {title}", "", *_markdown_table(["", "", "value", "time"], rows, 2), ""]


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers, and nothing else; ValueError where there are none."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the markers {BEGIN} and {END}; add them where the figures go.")
    path.write_text(f"{before}{BEGIN}\n\n{text.rstrip()}\n\n{END}{after}", encoding="utf-8")


def plot(found: dict[str, Any], path: Path) -> None:
    """How many times faster than diffusers each class is: a panel for each size, a mark for each library."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    records = [one for one in records_of(found) if one.item == "step"]
    if not records:
        return
    columns = [key for key in _columns(records, "step") if key[1] in ("float32", "float16")]
    first = columns[0]
    fastest = {
        one.subject: 1 / one.value
        for one in records
        if one.library == "torch" and (one.size, one.dtype) == first
    }
    order = sorted(fastest, key=lambda name: fastest[name])
    styles = {"torch": ("#d1495b", "o"), "numpy": ("#00798c", "s"), "jax": ("#7b5ea7", "^")}
    size = (2.2 * len(columns) + 2.2, 0.3 * len(order) + 1.6)
    figure, panels = plt.subplots(
        1, len(columns), sharex=True, sharey=True, figsize=size, layout="constrained", squeeze=False
    )
    for panel, (name, dtype) in zip(panels[0], columns, strict=True):
        for library, (colour, marker) in styles.items():
            chosen = [one for one in records if (one.size, one.dtype, one.library) == (name, dtype, library)]
            x = [1 / one.value for one in chosen]
            y = [order.index(one.subject) for one in chosen if one.subject in order]
            if len(x) == len(y):
                panel.plot(
                    x, y, marker, color=colour, label=library, markersize=6, linestyle="none", alpha=0.9
                )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xscale("log")
        panel.margins(y=0.04)
        panel.set_title(f"{SHAPES[name]}\n{dtype}", fontsize=9)
        panel.grid(axis="both", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        panel.tick_params(labelsize=8)
    labels = [name.replace("Scheduler", "").replace("Discrete", "") for name in order]
    panels[0][0].set_yticks(range(len(order)), labels)
    slowest, highest = panels[0][0].get_xlim()
    for panel in panels[0]:
        panel.axvspan(slowest, 1, color="#f2f2f2", zorder=0)
    panels[0][0].set_xlim(slowest, highest)
    figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=9, loc="outside upper right", ncols=3)
    figure.supxlabel("times faster than diffusers' step", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())
