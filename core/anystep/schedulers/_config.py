"""The frozen config of a scheduler: recorded from its constructor, handed between classes, saved as JSON.

Names, JSON format and the rules for handing a config on are those of diffusers 0.42.1.
"""

import copy
import functools
import inspect
import os
import reprlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, cast

import numpy as np

from anystep.schedulers._mixin import ConfigFiles, find_class, unshared

__all__ = ["ConfigMixin", "FrozenConfigError", "FrozenDict", "register_to_config"]

# Files name the version of diffusers whose format and meaning they have: diffusers reads them as its own.
_DIFFUSERS_VERSION = "0.42.1"
_NOT_SAVED = {"_use_default_values", "_ignore_files", "_pre_quantization_dtype"}
_Dict = dict[str, Any]


class FrozenConfigError(TypeError, AttributeError):
    """An attempt to change a config in place."""


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    advice = "make a new scheduler with from_config(scheduler.config, key=value)"
    raise FrozenConfigError(f"The config is immutable: {advice}.")


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed; `config.key` and `config["key"]` read the same entry.

    Lists, dicts and NumPy arrays among the values are copied, so that nobody else's are tied to the config.
    An attempt to change it raises `FrozenConfigError`, which is a TypeError and an AttributeError.

    Examples
    --------
    >>> config = FrozenDict(steps=4)
    >>> config.steps, config["steps"], hasattr(config, "eta"), config == {"steps": 4}
    (4, 4, False, True)
    >>> config.steps = 5
    Traceback (most recent call last):
    ...
    anystep.schedulers._config.FrozenConfigError: The config is immutable: make a new scheduler with ...
    """

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "FrozenDict":
        """Fill the dict here, because `__init__` could be called again."""
        entries: dict[Any, Any] = dict(*args, **kwargs)
        for key, value in entries.items():
            if not isinstance(key, str):
                raise TypeError(f"config key {key!r}: expected a string.")
            if isinstance(value, (list, dict, np.ndarray)):
                entries[key] = copy.deepcopy(cast(Any, value))
        self = super().__new__(cls)
        super().update(self, entries)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        # Python probes objects for special methods: a key of that name must not answer.
        if name in self and not name.startswith("__"):
            return self[name]
        raise AttributeError(f"The config has no key {name!r}; config.keys() lists them.")

    def __copy__(self) -> "FrozenDict":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = __ior__ = cast(Any, _refuse)
    pop = popitem = clear = update = setdefault = cast(Any, _refuse)


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate an `__init__` so that its arguments are in `self.config` before its body runs.

    Arguments left at their defaults are listed under "_use_default_values". Keyword arguments that begin with "_"
    go into the config only. The decorated `__init__` raises TypeError for an argument that is unknown, missing or
    repeated, and RuntimeError if its class does not inherit from `ConfigMixin`.
    """
    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())[1:]
    named = {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, ConfigMixin):
            raise RuntimeError(f"{type(self).__name__} has register_to_config: inherit from ConfigMixin too.")
        private = {key: value for key, value in kwargs.items() if key.startswith("_")}
        public = {key: value for key, value in kwargs.items() if key not in private}
        given = _bound(signature, self, args, public)
        attributes = self.__dict__
        # A subclass whose __init__ calls this one has recorded its arguments, which the defaults here must not hide.
        outer: _Dict = attributes.get("_internal_dict", {}) if "_building" in attributes else {}
        names = [k for k in named if k not in self.ignore_for_config and (k in given or k not in outer)]
        recorded = {key: given.get(key, named[key]) for key in names}
        if defaults := [*outer.get("_use_default_values", ()), *(k for k in names if k not in given)]:
            recorded["_use_default_values"] = defaults
        outermost = attributes.setdefault("_building", wrapper) is wrapper
        try:
            self.register_to_config(**{**private, **recorded})
            init(self, *args, **public)
        finally:
            if outermost:
                attributes.pop("_building", None)

    return wrapper


def _bound(signature: inspect.Signature, self: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; TypeError, with the names there are, if they do not fit."""
    try:
        return signature.bind(self, *args, **kwargs).arguments
    except TypeError as error:
        import difflib

        names = list(signature.parameters)[1:]
        close = difflib.get_close_matches(next((k for k in kwargs if k not in names), ""), names, n=1)
        hint = f": did you mean {close[0]!r}?" if close else "."
        raise TypeError(f"{type(self).__name__}() {error}{hint} It takes {', '.join(names)}.") from None


class ConfigMixin(ConfigFiles):
    """Base of classes that have a config.

    A subclass sets `config_name`, the name of its file, and decorates `__init__` with `register_to_config`. What
    it derives from the config it computes in a method `_configured`, which `__init__` calls, and which is called
    again whenever a finished object gets another config; if that raises, the object is left as it was.

    Examples
    --------
    >>> class Toy(ConfigMixin):
    ...     config_name = "toy.json"
    ...     @register_to_config
    ...     def __init__(self, steps=4, eta=0.0):
    ...         self._configured()
    ...     def _configured(self):
    ...         self.times = list(range(self.config.steps))
    >>> toy = Toy.from_config(Toy(2).config, eta=1.0)
    >>> toy.register_to_config(steps=3)
    >>> toy.config.steps, toy.config.eta, toy.times
    (3, 1.0, [0, 1, 2])
    """

    ignore_for_config: ClassVar[list[str]] = []
    has_compatibles: ClassVar[bool] = False
    _deprecated_kwargs: ClassVar[list[str]] = []

    @property
    def config(self) -> FrozenDict:
        """The arguments of the constructor, and keys of other classes that came with them."""
        return self._internal_dict

    def _vetted(self) -> None:
        """Raise for a config that no object can have, before anything is made of it."""

    def _configured(self) -> None:
        """Recompute what depends on the config."""

    @property
    def _internal_dict(self) -> FrozenDict:
        """Where diffusers' pipelines put a new config."""
        if "_internal_dict" not in self.__dict__:
            raise AttributeError
        return self.__dict__["_internal_dict"]

    @_internal_dict.setter
    def _internal_dict(self, config: Mapping[str, Any]) -> None:
        attributes, before = self.__dict__, unshared(self.__dict__)
        attributes["_internal_dict"] = FrozenDict(config)
        try:
            self._vetted()
            if "_internal_dict" not in before or "_building" in before:
                return
            attributes["_building"] = True
            self._configured()
            del attributes["_building"]
        except BaseException:
            attributes.clear()
            attributes.update(before)
            raise

    def register_to_config(self, /, **kwargs: Any) -> None:
        """Merge keys into the config, and recompute what depends on it."""
        if self.config_name is None:
            raise NotImplementedError(f"{type(self).__name__}.config_name is None: name the config's file.")
        kwargs.pop("kwargs", None)
        self._internal_dict = {**self.__dict__.get("_internal_dict", {}), **kwargs}

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("_internal_dict", {})
        if name not in config or name.startswith("__"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        message = f"Accessing config attribute {name} directly is deprecated: use scheduler.config.{name}."
        warnings.warn(message, FutureWarning, stacklevel=2)
        return config[name]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make an object from a config such as `scheduler.config`, of this class or of one compatible with it.

        Values that were given travel, those left at their defaults do not; keys of other classes are kept, out of
        use; keyword arguments override. With `return_unused_kwargs` the result is (object, dict of all that the
        constructor did not get). Raises ValueError if it is no dict, or a key beginning with "_" is malformed.
        """
        config = kwargs.pop("pretrained_model_name_or_path", config)
        if isinstance(config, str | os.PathLike):
            warnings.warn(f"For a path, use {cls.__name__}.from_pretrained.", FutureWarning, stacklevel=2)
            config, kwargs = cls.load_config(cast(Any, config), return_unused_kwargs=True, **kwargs)
        if not isinstance(config, Mapping):
            raise ValueError(f"config is a {type(config).__name__}: expected a dict, as scheduler.config is.")
        init, unused, hidden = cls.extract_init_dict(cast(Any, config), **kwargs)
        init |= {name: unused.pop(name) for name in cls._deprecated_kwargs if name in unused}
        made = cls(**init)
        if "_class_name" in hidden:
            hidden["_class_name"] = cls.__name__
        if hidden:
            made.register_to_config(**hidden)
        return (made, {**unused, **hidden}) if return_unused_kwargs else made

    @classmethod
    def extract_init_dict(cls, config_dict: _Dict, /, **kwargs: Any) -> tuple[_Dict, _Dict, _Dict]:
        """Split a config into constructor arguments, what is unknown, and what the constructor does not get."""
        defaults = config_dict.get("_use_default_values", ())
        if not isinstance(defaults, list | tuple | set | frozenset):
            raise ValueError(f"_use_default_values={reprlib.repr(defaults)}: expected a list of config keys.")
        implicit = {key for key in cast(Any, defaults) if isinstance(key, str)} | {"_use_default_values"}
        config = {key: value for key, value in FrozenDict(config_dict).items() if key not in implicit}
        expected = cls._get_init_keys(cls) - {"self", "kwargs", *cls.ignore_for_config}
        foreign = cls._foreign_keys(config.get("_class_name", cls.__name__), expected)
        known = {k: v for k, v in config.items() if k not in foreign and not k.startswith("_")}
        init = {key: kwargs.pop(key, known.get(key)) for key in expected if key in kwargs or key in known}
        unknown = {key: value for key, value in known.items() if key not in init}
        missing = sorted(expected - init.keys())
        if unknown or missing:
            import logging

            logger = logging.getLogger(__name__)
            if unknown:
                text = "The config attributes %s were passed to %s, which does not take them. Check %s."
                logger.warning(text, sorted(unknown)[:32], cls.__name__, cls.config_name)
            if missing:
                logger.info("%s was not found in the config: default values are taken.", missing)
        hidden = {key: value for key, value in config.items() if key not in init}
        return init, {**unknown, **kwargs}, hidden

    @classmethod
    def _foreign_keys(cls, maker: Any, expected: set[str]) -> set[str]:
        """Keys that the config's maker or a compatible class takes, and this class does not."""
        if not isinstance(maker, str | list | tuple):
            raise ValueError(f"_class_name={maker!r}: expected the name of a class.")
        relatives: list[type] = cast(Any, cls)._get_compatibles() if cls.has_compatibles else []
        keys = set[str]().union(*map(cls._get_init_keys, relatives)) - cls._get_init_keys(cls)
        found = find_class(cls, maker) if isinstance(maker, str) and maker != cls.__name__ else None
        if found is not None and issubclass(found, ConfigMixin):
            keys |= cls._get_init_keys(found) - expected
        return keys | {"quantization_config"}

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        return set(inspect.signature(cast(Any, input_class).__init__).parameters)

    def _record(self) -> dict[str, Any]:
        """Return what is saved."""
        saved = {k: v for k, v in self.__dict__.get("_internal_dict", {}).items() if k not in _NOT_SAVED}
        return saved | {"_class_name": type(self).__name__, "_diffusers_version": _DIFFUSERS_VERSION}

    def to_json_string(self) -> str:
        """Return the text of the config's file; TypeError, naming the key, if a value has no JSON form."""
        from anystep.schedulers._config_files import dump, parse

        record = self._record()
        for key, value in record.items():
            try:
                parse(dump({key: value}))  # what could not be read back is not written
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"{key}={reprlib.repr(value)} cannot be saved as JSON: {error}.") from error
        return dump(record)

    def __repr__(self) -> str:
        try:
            return f"{type(self).__name__} {self.to_json_string()}"
        except TypeError:
            return f"{type(self).__name__} {self._record()}"
