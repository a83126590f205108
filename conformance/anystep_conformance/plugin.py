"""The suite as pytest items: ``pytest --anystep-backend torch`` adds one item for each case to whatever else is collected.

Nothing but pytest is imported until an option asks for it.
"""

from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["ConformanceItem", "pytest_addoption", "pytest_collection_modifyitems"]

OPTIONS = {
    "backends": "array libraries: names or package.module:attribute, commas between",
    "subjects": "schedulers: names or package.module:attribute, semicolons between",
    "dtypes": "floating dtypes, commas between",
    "modes": "modes, commas between",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The choices of the command line."""
    group = parser.getgroup("anystep", "conformance of array libraries and schedulers")
    for name, text in OPTIONS.items():
        group.addoption(f"--anystep-{name[:-1]}", default=None, help=text)
    group.addoption("--anystep-device", default=None, help="device of that library")
    group.addoption("--anystep-all", action="store_true", help="every subject in every dtype and mode")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the cases, if a backend or a subject is named."""
    given = {name: config.getoption(f"anystep_{name[:-1]}") for name in OPTIONS}
    if given["backends"] is None and given["subjects"] is None:
        return
    items += _items(session, config, given)


def _items(
    session: pytest.Session, config: pytest.Config, given: dict[str, str | None]
) -> Iterator[pytest.Item]:
    from .suite import plan_suite

    chosen: dict[str, Any] = {
        name: [
            part.strip() for part in (text or "").split(";" if name == "subjects" else ",") if part.strip()
        ]
        for name, text in given.items()
    }
    try:
        suite = plan_suite(
            device=config.getoption("anystep_device"),
            everything=bool(config.getoption("anystep_all")),
            **chosen,
        )
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    for case in suite.cases:
        yield ConformanceItem.from_parent(session, name=f"anystep[{case.id}]", case=case)
    for result in suite.absent:
        yield ConformanceItem.from_parent(session, name=f"anystep[{result.library}]", absent=result.reason)


class ConformanceItem(pytest.Item):
    """One case."""

    def __init__(self, *, case: Any = None, absent: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.case, self.absent = case, absent

    def runtest(self) -> None:
        """Run the case; a gap is an expected failure, and what is not here is skipped."""
        if self.case is None:
            pytest.skip(self.absent)
        from .checks import run

        result = run(self.case)
        if result.outcome == "gap":
            pytest.xfail(result.reason)
        if result.outcome == "failed":
            raise AssertionError(f"{result.check}: {result.reason}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        """The message alone: a traceback would show the suite, not the fault."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Where pytest says that the item is."""
        return self.path, None, self.name
