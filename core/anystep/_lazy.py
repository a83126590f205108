"""Packages whose names are imported when they are first used, so that one class does not cost the import of all."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["attach"]


def attach(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and the names of a package.

    Parameters
    ----------
    package
        Its ``__name__``.
    homes
        Module of the package to the names that it defines, separated by spaces.

    Examples
    --------
    >>> load, _, names = attach("anystep", {"levels": "Level Levels"})
    >>> load("Levels").__module__, names
    ('anystep.levels', ['Level', 'Levels'])
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted({*home, *vars(sys.modules[package])}), sorted(home)
