"""What a run found, for machines (JSON, JUnit XML) and for people (one HTML page); the terminal is in `cli`."""

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple
from xml.etree import ElementTree

from .case import CHECKS, MODES, Result
from .compare import BOUNDS

__all__ = ["Cell", "overview", "to_html", "to_json", "to_junit", "tone", "verdict"]

UNITS = {"ulp": "ulp", "eps": "eps of Σ|c v|"}


class Cell(NamedTuple):
    """All results of one library in one mode."""

    passed: int
    total: int
    distance: float | None
    unit: str
    tone: str

    @property
    def text(self) -> str:
        """The largest distance, as it is shown."""
        return shown(self.distance)


def shown(distance: float | None) -> str:
    """A distance in few characters.

    Examples
    --------
    >>> shown(0.0), shown(0.0003), shown(0.9728), shown(183.2), shown(6.9e6), shown(None)
    ('0', '<0.01', '0.97', '183', '7e+06', '–')
    """
    if distance is None:
        return "–"  # noqa: RUF001
    if not math.isfinite(distance):
        return "∞"
    if 0 < distance < 0.01:
        return "<0.01"
    return f"{distance:.2g}" if distance < 10 else f"{distance:.0f}" if distance < 1e5 else f"{distance:.0e}"


def tone(result: Result) -> str:
    """Colour class of a result: exact, close (not 0, within its bound), gap, failed or absent."""
    named = {"gap": "gap", "failed": "failed", "not run": "absent"}
    return named.get(result.outcome) or ("close" if result.distance else "exact")


def overview(results: Sequence[Result]) -> dict[str, dict[str, Cell]]:
    """For each library and mode, how many passed and the largest distance."""
    order = ("absent", "exact", "close", "gap", "failed")
    found: dict[str, dict[str, Cell]] = {}
    for library in dict.fromkeys(result.library for result in results):
        found[library] = {}
        for mode in MODES:
            cell = [result for result in results if (result.library, result.mode) == (library, mode)]
            if not cell:
                continue
            distances = [result.distance for result in cell if result.distance is not None]
            unit = next((result.unit for result in cell if result.distance is not None), "ulp")
            passed = sum(result.outcome in ("passed", "gap") for result in cell)
            worst = max(map(tone, cell), key=order.index)
            found[library][mode] = Cell(passed, len(cell), max(distances, default=None), unit, worst)
    return found


def verdict(results: Sequence[Result]) -> str:
    """One sentence."""
    count = {name: sum(result.outcome == name for result in results) for name in ("passed", "failed", "gap")}
    absent = [result.library for result in results if result.outcome == "not run"]
    said = f"{count['passed']} passed, {count['failed']} failed"
    said += f", {count['gap']} expected gaps" if count["gap"] else ""
    return said + (f"; not run here: {', '.join(absent)}" if absent else "")


def to_json(results: Sequence[Result], provenance: dict[str, str]) -> str:
    """Every result with the bounds it was held to; results are in the order in which they were run."""
    bounds = {name: bound._asdict() for name, bound in BOUNDS.items()}
    content: dict[str, Any] = {
        "format": "anystep conformance 1",
        "verdict": verdict(results),
        "provenance": provenance,
        "checks": CHECKS,
        "modes": MODES,
        "bounds": bounds,
        "results": [result.as_dict() for result in results],
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def to_junit(results: Sequence[Result], provenance: dict[str, str]) -> str:
    """JUnit XML: a suite for each library; gaps and what was not run are skipped, with the reason."""
    root = ElementTree.Element("testsuites", name="anystep conformance")
    for library in dict.fromkeys(result.library for result in results):
        own = [result for result in results if result.library == library]
        suite = ElementTree.SubElement(root, "testsuite", name=library, tests=str(len(own)), errors="0")
        suite.set("failures", str(sum(result.outcome == "failed" for result in own)))
        suite.set("skipped", str(sum(result.outcome in ("gap", "not run") for result in own)))
        suite.set("time", f"{sum(result.seconds for result in own):.3f}")
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in provenance.items():
            ElementTree.SubElement(properties, "property", name=name, value=value)
        for result in own:
            where = ".".join(filter(None, (library, result.dtype, result.mode)))
            case = ElementTree.SubElement(suite, "testcase", classname=where, name=_printable(result.subject))
            case.set("time", f"{result.seconds:.3f}")
            if result.outcome == "failed":
                failure = ElementTree.SubElement(
                    case, "failure", type=result.check, message=_printable(result.reason)
                )
                failure.text = _printable(f"{result.id}: {result.check}: {result.reason}")
            elif result.outcome != "passed":
                ElementTree.SubElement(
                    case, "skipped", type=result.outcome, message=_printable(result.reason)
                )
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without the control characters that XML has no way to write."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def to_html(results: Sequence[Result], provenance: dict[str, str], command: str = "") -> str:
    """One page that needs nothing else: the matrix subject x dtype x mode of each library, reasons, versions."""
    from jinja2 import Environment

    source = files("anystep_conformance").joinpath("page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    libraries: list[dict[str, Any]] = []
    table = overview(results)
    for name in table:
        own = [result for result in results if result.library == name]
        at = {(result.subject, result.mode, result.dtype): result for result in own}
        columns = [(m, d) for m in MODES for d in dict.fromkeys(r.dtype for r in own if r.mode == m)]
        # The column with most subjects has them in the order of their list.
        longest = max(columns, key=lambda column: sum((r.mode, r.dtype) == column for r in own), default=None)
        ordered = sorted(own, key=lambda result: (result.mode, result.dtype) != longest)
        subjects = list(dict.fromkeys(result.subject for result in ordered))
        libraries.append(
            {
                "name": name,
                "overview": table[name],
                "absent": next((result.reason for result in own if result.outcome == "not run"), ""),
                "columns": columns,
                "modes": [(m, sum(mode == m for mode, _ in columns)) for m in MODES if m in dict(columns)],
                "rows": [(s, [at.get((s, *column)) for column in columns]) for s in subjects],
                "failed": sum(result.outcome == "failed" for result in own),
                "gaps": sum(result.outcome == "gap" for result in own),
            }
        )
    return template.render(
        verdict=verdict(results),
        good=not any(result.outcome == "failed" for result in results),
        libraries=libraries,
        modes=MODES,
        used=[mode for mode in MODES if any(mode in row for row in table.values())],
        reasons=[result for result in results if result.reason],
        provenance=provenance,
        bounds=BOUNDS,
        command=command,
        tone=tone,
        shown=shown,
        units=UNITS,
        short={"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"},
    )
