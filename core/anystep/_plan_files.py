"""Plans as text and as files: data only, nothing in them can run, and what is not a plan is a ValueError that says so."""

import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anystep._files import write_atomically
from anystep.thresholding import Threshold

__all__ = ["checked", "from_npz", "from_text", "read", "to_npz", "to_text", "write"]

FORMAT = "anystep plan 1"

Tables = Mapping[str, npt.NDArray[np.float64]]


def to_text(tables: Tables, threshold: Threshold | None) -> str:
    """JSON; float64 values survive exactly."""
    bound = None if threshold is None else threshold.to_dict()
    return json.dumps({"format": FORMAT, **{n: t.tolist() for n, t in tables.items()}, "threshold": bound})


def from_text(text: str | bytes) -> Any:
    """What `to_text` wrote, unchecked."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a plan: {error}; expected the text of Plan.to_json.") from error


def to_npz(tables: Tables, threshold: Threshold | None) -> bytes:
    """An archive of NumPy arrays."""
    bound, buffer = None if threshold is None else threshold.to_dict(), io.BytesIO()
    fields: dict[str, Any] = {**tables, "format": np.array(FORMAT), "threshold": np.array(json.dumps(bound))}
    np.savez(buffer, **fields)
    return buffer.getvalue()


def from_npz(name: Any, data: bytes) -> dict[str, Any]:
    """What `to_npz` wrote, unchecked; ``name`` is what an error calls it."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            found: dict[str, Any] = {key: archive[key] for key in archive.files}
        found["format"] = str(found.get("format"))
        found["threshold"] = json.loads(str(found.get("threshold", "null")))
    except Exception as error:  # zipfile, zlib and NumPy each have errors of their own for a damaged archive
        raise ValueError(f"{name}: not a plan ({error}); expected a file of Plan.save.") from error
    return found


def write(path: str | os.PathLike[str], tables: Tables, threshold: Threshold | None) -> None:
    """Write a ``.npz`` file, or JSON under any other name, whole or not at all."""
    packed = Path(path).suffix == ".npz"
    write_atomically(path, to_npz(tables, threshold) if packed else to_text(tables, threshold).encode())


def read(path: str | os.PathLike[str]) -> Any:
    """What `write` wrote, unchecked."""
    data = Path(path).read_bytes()
    return from_npz(path, data) if Path(path).suffix == ".npz" else from_text(data)


def checked(found: Any, names: Iterable[str]) -> tuple[list[npt.NDArray[Any]], Threshold | None]:
    """The tables of these names and the threshold."""
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise ValueError(f"not a plan: expected the fields of {FORMAT!r}; write one with Plan.save.")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"not a plan: {missing[0]} is missing; write one with Plan.save.")
    try:
        return [np.asarray(found[name]) for name in names], Threshold.from_dict(found.get("threshold"))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a plan: {error}") from error
