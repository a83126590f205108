"""The frozen config of a scheduler: recorded from its constructor, handed between classes, saved as JSON.

Names, JSON format and the rules for handing a config on are those of diffusers 0.42.1.
"""

import copy
import difflib
import functools
import inspect
import json
import logging
import os
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, ClassVar, NoReturn, cast

import numpy as np

from anystep.schedulers import _mixin as files

__all__ = ["ConfigMixin", "FrozenConfigError", "FrozenDict", "register_to_config"]

# Files name the version of diffusers whose format and meaning they have: diffusers reads them as its own.
_DIFFUSERS_VERSION = "0.42.1"
_NOT_SAVED = {"_use_default_values", "_ignore_files", "_pre_quantization_dtype"}
logger = logging.getLogger(__name__)


class FrozenConfigError(TypeError, AttributeError):
    """An attempt to change a config in place."""


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise: the config is immutable."""
    raise FrozenConfigError(
        "The config is immutable: make a new scheduler with from_config(scheduler.config, key=value)."
    )


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
            if isinstance(value, list | dict | np.ndarray):
                entries[key] = copy.deepcopy(cast(Any, value))
        self = super().__new__(cls)
        super().update(self, entries)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        # Python probes objects for special methods: a key of that name must not answer.
        if name in self and not name.startswith("__"):
            return self[name]
        raise AttributeError(f"The config has no key {name!r}{_suggestion(name, self)}")

    def __copy__(self) -> "FrozenDict":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = __ior__ = cast(Any, _refuse)
    pop = popitem = clear = update = setdefault = cast(Any, _refuse)


def _suggestion(name: str, names: Any) -> str:
    """The end of a message about an unknown name: the one that may be meant, and all there are."""
    close: list[str] = difflib.get_close_matches(name, names, n=1)
    return f"{f': did you mean {close[0]!r}?' if close else '.'} There are {', '.join(sorted(names))}."


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate an `__init__` so that its arguments are in `self.config` before its body runs.

    Arguments left at their defaults are listed under "_use_default_values". Keyword arguments that begin with "_"
    go into the config only. The decorated `__init__` raises TypeError for an argument that is unknown, missing or
    repeated, and RuntimeError if its class does not inherit from `ConfigMixin`.
    """
    signature = inspect.signature(init)
    named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)][1:]

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        kind, attributes = type(self).__name__, cast(dict[str, Any], self.__dict__)
        if not isinstance(self, ConfigMixin):
            raise RuntimeError(f"{kind} uses register_to_config: it must inherit from ConfigMixin.")
        public = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        config = {key: value for key, value in kwargs.items() if key.startswith("_")}
        try:
            given = signature.bind(self, *args, **public).arguments
        except TypeError as error:
            unknown = next((key for key in public if key not in signature.parameters), "")
            raise TypeError(f"{kind}() {error}{_suggestion(unknown, [p.name for p in named])}") from None
        names = [p for p in named if p.name not in self.ignore_for_config]
        config |= {p.name: given.get(p.name, p.default) for p in names}
        # A subclass whose __init__ calls this one has recorded its arguments already, and knows what was given.
        outer: dict[str, Any] = attributes.get("_internal_dict", {}) if "_building" in attributes else {}
        defaults = [p.name for p in names if p.name not in given and p.name not in outer]
        if defaults := [*outer.get("_use_default_values", ()), *defaults]:
            config["_use_default_values"] = defaults
        outermost = attributes.setdefault("_building", wrapper) is wrapper
        try:
            self.register_to_config(**config)
            init(self, *args, **public)
        finally:
            if outermost:
                attributes.pop("_building", None)

    return wrapper


class ConfigMixin:
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

    config_name: ClassVar[str | None] = None
    ignore_for_config: ClassVar[list[str]] = []
    has_compatibles: ClassVar[bool] = False
    _deprecated_kwargs: ClassVar[list[str]] = []

    @property
    def config(self) -> FrozenDict:
        """The arguments of the constructor, and keys of other classes that came with them."""
        return self._internal_dict

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
        attributes, before = self.__dict__, files.unshared(self.__dict__)
        attributes["_internal_dict"] = FrozenDict(config)
        if "_internal_dict" not in before or "_building" in before:
            return
        attributes["_building"] = True
        try:
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
        message = (
            f"Accessing config attribute {name} of a scheduler is deprecated: use scheduler.config.{name}."
        )
        warnings.warn(message, FutureWarning, stacklevel=2)
        return config[name]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make an object from a config of this class, or of one compatible with it.

        Values that were given travel; those left at their defaults do not. Keys that only other classes use are
        kept in the new config, out of use.

        Parameters
        ----------
        config
            A dict such as `scheduler.config`.
        return_unused_kwargs
            Whether to return (object, dict of all that the constructor did not get).
        **kwargs
            Override the config's values.

        Raises
        ------
        ValueError
            If `config` is not a dict, or its "_class_name" or "_use_default_values" is malformed.
        """
        config = kwargs.pop("pretrained_model_name_or_path", config)
        if isinstance(config, str | os.PathLike):
            message = f"from_config(path) is deprecated: use {cls.__name__}.from_pretrained(path)."
            warnings.warn(message, FutureWarning, stacklevel=2)
            config, kwargs = cls.load_config(cast(Any, config), return_unused_kwargs=True, **kwargs)
        if not isinstance(config, Mapping):
            raise ValueError(
                f"config is a {type(config).__name__}: expected a dict such as scheduler.config."
            )
        init, unused, hidden = cls.extract_init_dict(cast(Any, config), **kwargs)
        init |= {name: unused.pop(name) for name in cls._deprecated_kwargs if name in unused}
        made = cls(**init)
        if "_class_name" in hidden:
            hidden["_class_name"] = cls.__name__
        if hidden:
            made.register_to_config(**hidden)
        return (made, {**unused, **hidden}) if return_unused_kwargs else made

    @classmethod
    def extract_init_dict(
        cls, config_dict: Mapping[str, Any], /, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Split a config into constructor arguments, what is unknown, and what the constructor does not get."""
        defaults = config_dict.get("_use_default_values", ())
        if not isinstance(defaults, list | tuple | set | frozenset):
            raise ValueError(f"_use_default_values={defaults!r}: expected a list of config keys.")
        implicit = [*cast(Any, defaults), "_use_default_values"]
        config = {key: value for key, value in FrozenDict(config_dict).items() if key not in implicit}
        expected = cls._get_init_keys(cls) - {"self", "kwargs", *cls.ignore_for_config}
        foreign = cls._foreign_keys(config.get("_class_name", cls.__name__), expected)
        known = {
            key: value for key, value in config.items() if key not in foreign and not key.startswith("_")
        }
        init = {key: kwargs.pop(key, known.get(key)) for key in expected if key in kwargs or key in known}
        unknown = {key: value for key, value in known.items() if key not in init}
        if unknown:
            text = (
                "The config attributes %s were passed to %s, which ignores what it does not take. Check %s."
            )
            logger.warning(text, reprlib.repr(unknown), cls.__name__, cls.config_name)
        if missing := sorted(expected - init.keys()):
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
        found = files.find_class(cls, maker) if isinstance(maker, str) and maker != cls.__name__ else None
        if found is not None and issubclass(found, ConfigMixin):
            keys |= cls._get_init_keys(found) - expected
        return keys | {"quantization_config"}

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        return set(inspect.signature(cast(Any, input_class).__init__).parameters)

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read a config file, found as by `SchedulerMixin.from_pretrained`.

        Returns the config; with it, if asked for, the keyword arguments not used, and the Hub's commit or None.
        """
        if cls.config_name is None:
            raise ValueError(f"{cls.__name__}.config_name is None: name the file to load.")
        path = files.locate(pretrained_model_name_or_path, cls.config_name, kwargs)
        config = files.read_config(path)
        commit = re.search(r"snapshots/([0-9a-f]{40})/", Path(path).as_posix())
        extra = ([kwargs] if return_unused_kwargs else []) + (
            [commit and commit[1]] if return_commit_hash else []
        )
        return (config, *extra) if extra else config

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Do as `load_config`, under its former name."""
        warnings.warn("get_config_dict is deprecated: use load_config.", FutureWarning, stacklevel=2)
        return cls.load_config(*args, **kwargs)

    def save_config(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write the config into a folder, which is made if missing; a file of that name is replaced whole.

        With `push_to_hub` it is uploaded too: to `repo_id`, by default the folder's name, with the options of
        `SchedulerMixin.push_to_hub`. Raises AssertionError if `save_directory` is a file, as diffusers does, and
        TypeError, before anything is written, if a value has no JSON form.
        """
        folder, text, name = Path(save_directory), self.to_json_string(), str(self.config_name)
        if folder.is_file():
            raise AssertionError(f"save_directory={str(folder)!r} is a file: pass a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / name, text)
        if push_to_hub:
            files.upload(text, name, kwargs.pop("repo_id", folder.resolve().name), **kwargs)

    def _record(self) -> dict[str, Any]:
        """Return what is saved."""
        saved = {k: v for k, v in self.__dict__.get("_internal_dict", {}).items() if k not in _NOT_SAVED}
        return saved | {"_class_name": type(self).__name__, "_diffusers_version": _DIFFUSERS_VERSION}

    def to_json_string(self) -> str:
        """Return the text of the config's file; TypeError, naming the key, if a value has no JSON form."""
        record = self._record()
        for key, value in record.items():
            try:
                files.parse(_dump({key: value}))  # what could not be read back is not written
            except (TypeError, ValueError, RecursionError) as error:
                raise TypeError(f"{key}={reprlib.repr(value)} cannot be saved as JSON: {error}.") from error
        return _dump(record)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the config to a file, which is replaced whole."""
        files.write(Path(json_file_path), self.to_json_string())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {_dump(self._record(), otherwise=repr)}"


def _dump(record: Mapping[str, Any], otherwise: Callable[[Any], Any] | None = None) -> str:
    """JSON as diffusers formats it; `otherwise` is for values that have no JSON form."""

    def plain(value: Any) -> Any:
        if isinstance(value, PurePath):
            return value.as_posix()
        if callable(getattr(value, "tolist", None)):  # arrays and their scalars
            return value.tolist()
        if otherwise is None:
            raise TypeError(f"it is a {type(value).__name__}")
        return otherwise(value)

    return json.dumps(record, indent=2, sort_keys=True, default=plain) + "\n"
