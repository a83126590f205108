"""Subjects and array libraries by name, by dotted path ``package.module:attribute``, or by entry point."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from anystep import Plan
from anystep._array import backend as load_backend
from anystep._array import backend_names

from .case import Result
from .libraries import FLOATS, LIBRARIES, WIDE, Library, refusing_reads
from .subjects import SUBJECTS
from .walk import Planned

__all__ = ["find_libraries", "find_subjects"]


@dataclass(frozen=True)
class _Named:
    """A third party's plan or function of steps, under a name."""

    name: str
    make: Callable[[int], Plan]

    def plan(self, steps: int = 8) -> Plan:
        """The table."""
        return self.make(steps)


def find_subjects(names: Iterable[str] = ()) -> list[Planned]:
    """Subjects by name or dotted path; without names, the list and what is registered as ``anystep.subjects``.

    Raises
    ------
    ValueError
        If a name matches nothing, or two subjects share one.
    """
    names = list(names)
    known: list[Planned] = [*SUBJECTS]
    if not names:
        for entry in entry_points(group="anystep.subjects"):
            known += _as_subjects(entry.load(), entry.name)
        found = known
    else:
        found = []
        for name in names:
            if ":" in name:
                found += _as_subjects(_load(name, "subject"), name.partition(":")[2])
                continue
            matching = [subject for subject in known if subject.name == name]
            if not matching:
                listed = ", ".join(repr(subject.name) for subject in known)
                raise ValueError(f"subject={name!r}: expected package.module:attribute or one of {listed}.")
            found += matching
    seen = [subject.name for subject in found]
    for name in seen:
        if seen.count(name) > 1:
            raise ValueError(f"subject={name!r} is there twice: give each subject a name of its own.")
    return found


def _as_subjects(found: Any, name: str) -> list[Planned]:
    """A subject, a list of them, a plan, or a function from steps to a plan."""
    if isinstance(found, Plan):
        plan = found
        return [_Named(name, lambda steps: plan)]
    if isinstance(found, list | tuple):
        return [subject for one in found for subject in _as_subjects(one, name)]  # pyright: ignore[reportUnknownVariableType]
    if hasattr(found, "plan") and hasattr(found, "name"):
        return [found]
    if callable(found):
        make: Any = found
        return [_Named(name, make)]
    raise ValueError(
        f"subject={name!r} is a {type(found).__name__}: expected a Subject, a Plan, or a function from steps to one."
    )


def find_libraries(names: Iterable[str] = (), device: str | None = None) -> Iterator[Library | Result]:
    """Libraries by name, or a result "not run" that says why one is not here."""
    for name in list(names) or sorted(backend_names(), key=_place):
        if ":" in name:
            yield _as_library(_load(name, "backend"), name.partition(":")[0].split(".")[0], device)
            continue
        listed = [one for one in LIBRARIES if name in (one.name, one.module) and device in (None, one.device)]
        if listed and listed[0].missing is None:
            for one in listed:
                if "bfloat16" in one.dtypes and importlib.util.find_spec("ml_dtypes") is None:
                    yield Result("(all)", one.name, "bfloat16", "", "not run", reason=_NO_BFLOAT16)
                    one = replace(one, dtypes=tuple(name for name in one.dtypes if name != "bfloat16"))
                yield one
        elif name not in (known := {*backend_names(), *(one.name for one in LIBRARIES)}):
            raise ValueError(
                f"backend={name!r}: expected package.module:attribute or one of {', '.join(sorted(known))}."
            )
        else:
            try:
                adapter = load_backend(name)
            except ImportError as error:
                yield _absent(name, str(error))
                continue
            if not adapter.devices():
                yield _absent(
                    name, f"{name} {adapter.version} has no device on this machine: nothing was run on it"
                )
            elif not (found := _on(adapter, device)).dtypes:
                yield _absent(
                    name, f"{found.name} has no floating dtype that can be read back: nothing was run on it"
                )
            else:
                yield found


_NO_BFLOAT16 = "NumPy, which results are compared in, has bfloat16 from ml_dtypes: pip install ml_dtypes"


def _place(name: str) -> int:
    """Backends in the order of the list of libraries, then the others."""
    order = [library.module for library in LIBRARIES]
    return order.index(name) if name in order else len(order)


def _absent(name: str, reason: str) -> Result:
    return Result("(all)", name, "", "", "not run", reason=reason)


def _load(path: str, what: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what}={path!r}: {error}; expected package.module:attribute that can be imported."
        ) from error


def _as_library(found: Any, root: str, device: str | None) -> Library:
    """A library of a `Library`, an adapter, or a namespace of the array API standard."""
    if isinstance(found, Library):
        return found
    if hasattr(found, "to_numpy"):
        return _on(found, device)
    if not hasattr(found, "asarray"):
        raise ValueError(
            f"backend is a {type(found).__name__}: expected a Library, an adapter or an array-API namespace."
        )

    def make(values: Any) -> Any:
        return found.asarray(values.copy(), **({} if device is None else {"device": device}))

    return Library(root, root, make, np.array, WIDE, device=device, lazily=refusing_reads)


def _on(adapter: Any, device: str | None) -> Library:
    """Arrays made and read by the adapter, on one device."""
    place = adapter.device(device)
    label = adapter.name if device is None else f"{adapter.name} on {device}"
    known = next((one for one in LIBRARIES if one.module == adapter.name), None)

    def make(values: Any) -> Any:
        return adapter.asarray(values, device=place)

    def read(x: Any) -> Any:
        return np.asarray(adapter.to_numpy(x))

    dtypes = tuple(dtype for dtype in FLOATS if _has(adapter, dtype, place))
    if known is not None:
        return replace(known, name=label, make=make, read=read, dtypes=dtypes, device=device)
    found = Library(label, adapter.name, make, read, dtypes, device=device, lazily=refusing_reads)
    found.__dict__["adapter"] = adapter  # known, registered or not
    return found


def _has(adapter: Any, dtype: str, place: Any) -> bool:
    try:
        made = adapter.asarray(np.zeros(1), dtype=dtype, device=place)
        return str(made.dtype).split(".")[-1] == dtype and adapter.to_numpy(made).shape == (1,)
    except Exception:  # each library in its own words; a device that cannot be read has no dtype
        return False
