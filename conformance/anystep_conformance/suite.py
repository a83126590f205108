"""Which cases are run: a sample of the combinations of subject, array library, dtype and mode, or all of them."""

import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .adapters import ADAPTER, DRAWS
from .case import MODES, Case, Result
from .finding import find_libraries, find_subjects
from .libraries import FLOATS, WIDE, Library
from .transforms import has_gradient
from .walk import Planned

__all__ = ["Suite", "plan_suite", "provenance"]

ALIASES = {"jit": "compile"}


@dataclass(frozen=True)
class Suite:
    """What will be run, and what cannot be run here."""

    cases: list[Case]
    absent: list[Result] = field(default_factory=list[Result])
    """One result, "not run", for each library that is not here."""


def plan_suite(
    *,
    backends: Iterable[str] = (),
    device: str | None = None,
    dtypes: Iterable[str] = (),
    modes: Iterable[str] = (),
    subjects: Iterable[str] = (),
    everything: bool = False,
    steps: int = 8,
) -> Suite:
    """The cases for a choice; whatever is left out is chosen here.

    Parameters
    ----------
    backends
        Names of registered backends, of entries in the list of libraries, or dotted paths ``package.module:attribute`` to a
        `Library`, an adapter or an array-API namespace; by default every registered backend.
    device
        Name of a device; by default each library's own, and every hostile one in the list.
    dtypes, modes
        By default float32 and float64 and every mode, with half precision, and transforms, on one subject of each structure.
    subjects
        Names, or dotted paths; by default the list and the entry points ``anystep.subjects``.
    everything
        Every subject in every dtype and mode that the library has.
    steps
        Steps of each plan, >= 2.

    Raises
    ------
    ValueError
        If a name matches nothing.
    """
    wanted_modes = [ALIASES.get(mode, mode) for mode in modes] or list(MODES)
    wanted_dtypes = list(dtypes)
    for given, known, name in ((wanted_modes, MODES, "mode"), (wanted_dtypes, FLOATS, "dtype")):
        for one in given:
            if one not in known:
                raise ValueError(f"{name}={one!r}: expected one of {', '.join(known)}.")
    subjects = list(subjects)
    chosen, few = find_subjects(subjects), None
    cases: list[Case] = []
    absent: list[Result] = []
    for library in find_libraries(backends, device):
        if isinstance(library, Result):
            absent.append(library)
            continue
        few = _one_of_each_structure(chosen, steps) if few is None else few
        full = everything or bool(subjects)
        narrow = wanted_dtypes or list(FLOATS if full else WIDE)
        for dtype in (dtype for dtype in library.dtypes if dtype in (wanted_dtypes or FLOATS)):
            if not subjects and "eager" in wanted_modes:
                cases += [Case(about, library, dtype, "eager", 2) for about in _about(library)]
            for mode in wanted_modes:
                if mode not in _modes_of(library) or (mode == "grad" and dtype not in WIDE):
                    continue
                single = dtype == "float32"  # what is left out in other dtypes takes time or differs little
                every = (
                    full or (mode == "eager" and dtype in narrow) or (mode in ("fused", "index") and single)
                )
                cases += [
                    Case(subject, library, dtype, mode, steps)
                    for subject in (chosen if every else few)
                    if (every or _sampled(library, dtype, mode, bool(wanted_dtypes)))
                    and (mode != "grad" or has_gradient(subject.plan(steps)))
                ]
    return Suite(cases, absent)


def _about(library: Library) -> list[Any]:
    return [ADAPTER, DRAWS] if library.adapter is not None else [DRAWS]


def _sampled(library: Library, dtype: str, mode: str, chosen: bool) -> bool:
    """Without --all: half precision step by step alone, and torch's slow compiler in float32 alone."""
    if chosen or dtype == "float32":
        return True
    return (
        mode in ("eager", "fused")
        if dtype not in WIDE
        else not (mode == "compile" and library.module == "torch")
    )


def _modes_of(library: Library) -> list[str]:
    transforms = getattr(library.adapter, "transforms", {})
    fused = ["fused"] if hasattr(library.adapter, "fuse") else []
    return ["eager", *fused, "index", *(mode for mode in MODES if mode in transforms)]


def _one_of_each_structure(subjects: Sequence[Planned], steps: int) -> list[Planned]:
    """The first subject with each number of memories (0, 1, more), of noises (0, 1, more) and kind of bound."""
    found: dict[Any, Planned] = {}
    for subject in subjects:
        plan = subject.plan(steps)
        found.setdefault((min(plan.memories, 2), min(plan.noises, 2), type(plan.threshold)), subject)
    return list(found.values())


def provenance(cases: Iterable[Case]) -> dict[str, str]:
    """Versions and platform, for reports."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }
    modules = {"anystep": "anystep", "numpy": "numpy", "array-api-compat": "array-api-compat"}
    modules |= {case.library.module: case.library.module.replace("_", "-") for case in cases}
    for module, distribution in modules.items():
        try:
            found[module] = version(distribution)
        except PackageNotFoundError:
            found[module] = str(getattr(sys.modules.get(module), "__version__", "unknown"))
    return found
