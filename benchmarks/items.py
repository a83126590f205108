"""All measurements by name. None decides what is good: that is in `goals`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .accuracy import accuracy
from .costs import dispatch, imports, tokens
from .goals import Record
from .own import k_diffusion, memory, scan, updates
from .run import Run
from .steps import draws, growth, steps, tables

__all__ = ["ITEMS"]

ITEMS: dict[str, Callable[[Run], Iterator[Record]]] = {
    "steps": steps,
    "draws": draws,
    "update": updates,
    "memory": memory,
    "scan": scan,
    "k-diffusion": k_diffusion,
    "tables": tables,
    "growth": growth,
    "imports": imports,
    "dispatch": dispatch,
    "tokens": tokens,
    "accuracy": accuracy,
}
"""What ``--only`` takes, in the order of a whole run."""
