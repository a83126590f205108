"""What the fused steps of all libraries share: from combinations of arrays to a step from state to state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from anystep import Plan, State
from anystep._combination import Row
from anystep._update import state_of

__all__ = [
    "Combination",
    "Form",
    "Step",
    "Writer",
    "combined",
    "flat",
    "given",
    "stepper",
    "unpacked",
]

Combination: TypeAlias = Callable[[Sequence[Any], Any], Any]
"""From arrays (x, m, memories, noises) to a new array, or to the one given as second argument, which may be x."""

Step: TypeAlias = Callable[[Sequence[Any], bool], State]
"""From arrays (x, m, memories, noises), and whether x may be written to."""


class Form(NamedTuple):
    """What of a row is compiled in: which arrays it reads and how it is summed. Its numbers are arguments."""

    columns: tuple[int, ...]
    base: int | None
    opposed: bool
    late: tuple[int, ...]

    @classmethod
    def of(cls, row: Row) -> Form:
        """The form of a row."""
        columns, late = (tuple([k for k, _ in part]) for part in (row.terms, row.late))
        return cls(columns, row.base, row.opposed, late)

    @staticmethod
    def numbers(row: Row) -> list[float]:
        """Coefficients of the columns and of the late ones, then the scale."""
        return [*(c for _, c in (*row.terms, *row.late)), row.scale]

    @property
    def reads(self) -> tuple[int, ...]:
        """The arrays that it reads, at least one."""
        base = () if self.base is None else (self.base,)
        return tuple(sorted({*self.columns, *self.late, *base, *((1,) if self.opposed else ())})) or (0,)

    def source(self, value: Callable[[int], str], number: Callable[[int], str]) -> str:
        """The sum, in the order of the plain path, where ``value(k)`` is array k and ``number(n)`` one of `numbers`."""
        products = [f"{number(n)} * {value(k)}" for n, k in enumerate((*self.columns, *self.late))]
        total = " + ".join(products[: len(self.columns)])
        if self.base is not None:
            base = f"({value(self.base)} - {value(1)})" if self.opposed else value(self.base)
            total = f"{base} + ({total})" if total else base
        total = " + ".join([f"({total or f'{value(self.reads[0])} * 0'})", *products[len(self.columns) :]])
        return f"({total}) * {number(len(products))}"


class Writer:
    """Python statements on arrays v0, v1, ..., and the numbers in them, which are not part of the text.

    A step of small arrays costs what its calls of Python functions cost, so all that it does is written into one; rows of
    the same form have the same text, which is compiled once.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.numbers: list[Any] = []

    def number(self, value: Any) -> str:
        """The name of a number."""
        self.numbers.append(value)
        return f"c{len(self.numbers) - 1}"

    def __call__(self, *lines: str) -> None:
        self.lines += lines

    def function(self, head: str, names: Mapping[str, Any]) -> Any:
        """The statements as a function with this head, which knows the names."""
        return _executed(head, tuple(self.lines), len(self.numbers), tuple(names))(
            *names.values(), *self.numbers
        )


@lru_cache(maxsize=1024)
def _executed(head: str, lines: tuple[str, ...], numbers: int, names: tuple[str, ...]) -> Any:
    known = ", ".join([*names, *(f"c{n}" for n in range(numbers))])
    body = "".join(f"        {line}\n" for line in lines)
    found: dict[str, Any] = {}
    exec(f"def make({known}):\n    def {head}:\n{body}    return {head.partition('(')[0]}\n", found)
    return found["make"]


Write: TypeAlias = Callable[[Writer, Row, str, str], None]
"""Writes the statements that leave a row in a variable: writer, row, variable, and the name of what is written to, or ""."""


def combined(row: Row, count: int, write: Write, names: Mapping[str, Any]) -> Combination:
    """One row as a function of (arrays, out), where there are ``count`` arrays."""
    writer = Writer()
    writer(f"{unpacked('v', range(count))} = arrays")
    write(writer, row, "total", "out")
    writer("return total")
    return writer.function("combination(arrays, out)", names)


def unpacked(letter: str, numbers: Iterable[int]) -> str:
    """Variables that a sequence is unpacked into."""
    return "".join([f"{letter}{n}, " for n in numbers])


def given(plan: Plan, i: int) -> int:
    """How many arrays call ``i`` takes."""
    return 2 + plan.memories + (plan.noises if plan.stochastic[i] else 0)


def flat(
    plan: Plan, i: int, write: Write, names: Mapping[str, Any], large: str, other: Callable[[], Step]
) -> Step:
    """Call ``i`` in one function.

    What is given up, or large and more than one operation, goes to the step that ``other`` makes when it is first needed.
    """
    writer, outputs = Writer(), plan.outputs(i)
    results = [f"v{one}" if isinstance(one, int) else f"o{n}" for n, one in enumerate(outputs)]
    for one, result in zip(outputs, results, strict=True):
        if not isinstance(one, int):
            write(writer, one, result, "")
    condition = f"donate or {large}" if len(writer.lines) > 1 else "donate"
    writer.lines[:0] = [
        f"{unpacked('v', range(given(plan, i)))} = arrays",
        f"if {condition}: return other(arrays, donate)",
    ]
    writer(f"return state_of(({results[0]}, ({''.join([f'{name}, ' for name in results[1:]])})))")
    return writer.function(
        "step(arrays, donate)", {**names, "state_of": state_of, "other": _when_needed(other)}
    )


def _when_needed(make: Callable[[], Step]) -> Step:
    made: list[Step] = []

    def step(arrays: Sequence[Any], donate: bool) -> State:
        if not made:
            made.append(make())
        return made[0](arrays, donate)

    return step


def stepper(plan: Plan, i: int, combination: Callable[[Row], Combination]) -> Step:
    """Call ``i`` as combinations; an array that is only passed on is passed on by reference."""
    first, *others = (one if isinstance(one, int) else combination(one) for one in plan.outputs(i))
    assert not isinstance(first, int)
    keeps = any(one == 0 for one in others)

    def step(arrays: Sequence[Any], donate: bool) -> State:
        # Memories first: they may be made of an x that is then written to.
        memory = tuple([arrays[one] if isinstance(one, int) else one(arrays, None) for one in others])
        return state_of((first(arrays, arrays[0] if donate and not keeps else None), memory))

    return step
