"""Levels and plans that were asked for before: shared between schedulers, since both are immutable."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from anystep.schedulers._facade import AnyFacade

__all__ = ["remembered"]

CAPACITY = 64
"""Answers that are kept: each holds a run's levels and the plans that its steps used."""

_answers: OrderedDict[Any, dict[str, Any]] = OrderedDict()
_lock = threading.Lock()
_Method = TypeVar("_Method", bound=Callable[..., None])


def remembered(set_timesteps: _Method) -> _Method:
    """A `set_timesteps` that computes nothing when a scheduler of the same class and config was asked the same before.

    Arguments other than numbers, strings and devices are not remembered. What beside config and arguments the answer
    depends on, the class says in ``_depends``.
    """

    @wraps(set_timesteps)
    def remembering(self: AnyFacade, *args: Any, **kwargs: Any) -> None:
        key = _key(self, args, kwargs)
        found = None if key is None else _answers.get(key)
        if found is not None:
            _recall(self, found)
            return
        own = vars(self)
        own["_committed"] = None  # where `_commit` puts what it changes
        try:
            with np.errstate(all="ignore"):
                set_timesteps(self, *args, **kwargs)
        finally:
            changes = own.pop("_committed")
        if key is None or changes is None:
            return
        with _lock:
            _answers[key] = {name: _own(value) for name, value in changes.items()}
            while len(_answers) > CAPACITY:
                _answers.popitem(last=False)

    remembering.quiet = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
    return cast(_Method, remembering)


def _recall(scheduler: AnyFacade, changes: dict[str, Any]) -> None:
    """Make the same changes again, with lists and handed-out tables of the scheduler's own."""
    own = vars(scheduler)
    for name, value in changes.items():
        own[name] = _own(value)
    scheduler._hand_out()  # pyright: ignore[reportPrivateUsage]


def _own(value: Any) -> Any:
    """What no other scheduler can change: lists are copied, all else is replaced and never written to."""
    return value.copy() if value.__class__ is list else value


def _key(scheduler: AnyFacade, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the answer follows from, or None where that cannot be told by value."""
    own, config = vars(scheduler), scheduler.config
    known = own.get("_config_key")
    if known is None or known[0] is not config:
        known = own["_config_key"] = (config, _frozen(scheduler))
    if known[1] is None:
        return None
    given = [*args, *kwargs.values()]
    for value in given:
        cls = value.__class__
        if cls not in _BY_VALUE and (hasattr(value, "__len__") or cls.__hash__ is None):
            return None  # a list, or an array that may be changed
    # With their classes, because True is equal to 1 and 20.0 to 20.
    return (
        known[1],
        scheduler._corrections,  # pyright: ignore[reportPrivateUsage]
        scheduler._target,  # pyright: ignore[reportPrivateUsage]
        scheduler._depends,  # pyright: ignore[reportPrivateUsage]
        tuple(kwargs),
        *given,
        *map(type, given),
    )


_BY_VALUE = (int, float, str, bool, type(None))


def _frozen(scheduler: AnyFacade) -> Any:
    """Class and config as something that can be looked up, with one hash computed once; None for an unusual config."""
    # Which arguments were left at their defaults changes nothing.
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    try:
        values = [value if value.__class__ in _BY_VALUE else _by_value(value) for value in config.values()]
        return _Frozen((type(scheduler), *config, *map(type, values), *values))
    except TypeError:
        return None


def _by_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_by_value, cast("list[Any]", value)))
    return type(value), value


class _Frozen:
    """A tuple that remembers its hash."""

    __slots__ = ("hash", "items")

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items, self.hash = items, hash(items)

    def __hash__(self) -> int:
        return self.hash

    def __reduce__(self) -> tuple[Any, ...]:
        return _Frozen, (self.items,)  # hashes of strings differ between processes

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Frozen) and self.items == other.items)
