"""What schedulers share besides their config: its file, the Hub, related classes, copies.

A config file is input from strangers: it is parsed as data, within limits, and nothing in it is ever run.
"""

import copy
import importlib
import json
import logging
import os
import re
import sys
import warnings
from collections import Counter, deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, Self, cast

import numpy as np

from anystep._files import write_atomically

__all__ = ["SCHEDULER_CONFIG_NAME", "KarrasDiffusionSchedulers", "SchedulerMixin"]

SCHEDULER_CONFIG_NAME = "scheduler_config.json"
_HUB_OPTIONS = (
    "cache_dir", "local_dir", "local_dir_use_symlinks", "force_download", "proxies", "token",
    "local_files_only", "revision", "user_agent",
)  # fmt: skip
_MAX_BYTES, _MAX_DEPTH = 16 * 2**20, 32
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_ADVICE = {
    "RepositoryNotFoundError": "there is no such repository, or no access to it: check the name, pass token=... .",
    "RevisionNotFoundError": "there is no such revision: pass revision= a branch, a tag or a commit.",
    "LocalEntryNotFoundError": "it is not in the cache, and the Hub was not reached: check the network.",
    "EntryNotFoundError": "the repository has no such file: pass subfolder=... if it is in a folder.",
}
_MUTABLE: Any = (list, dict, set, deque, bytearray)
_Path = str | os.PathLike[str]
logger = logging.getLogger(__name__)

KarrasDiffusionSchedulers = Enum(
    "KarrasDiffusionSchedulers",
    "DDIMScheduler DDPMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler "
    "EulerAncestralDiscreteScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler "
    "KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler DEISMultistepScheduler UniPCMultistepScheduler "
    "DPMSolverSDEScheduler EDMEulerScheduler",
)
"""Names of the schedulers that can replace each other in pipelines of Stable Diffusion's kind."""


class ConfigFiles:
    """The part of `ConfigMixin` that reads and writes files."""

    config_name: ClassVar[str | None] = None

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: _Path,
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read a config, found as by `SchedulerMixin.from_pretrained`.

        Returns the config; with it, if asked for, the keyword arguments not used, and the Hub's commit or None.
        """
        if cls.config_name is None:
            raise ValueError(f"{cls.__name__}.config_name is None: name the file to load.")
        path = _locate(pretrained_model_name_or_path, cls.config_name, kwargs)
        config, commit = _read(path), re.search(r"snapshots/([0-9a-f]{40})/", Path(path).as_posix())
        extra = [kwargs] * bool(return_unused_kwargs) + [commit and commit[1]] * bool(return_commit_hash)
        return (config, *extra) if extra else config

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Do as `load_config`, under its former name."""
        warnings.warn("get_config_dict is deprecated: use load_config.", FutureWarning, stacklevel=2)
        return cls.load_config(*args, **kwargs)

    def to_json_file(self, json_file_path: _Path) -> None:
        """Write the config to a file, which is replaced whole."""
        write_atomically(json_file_path, cast(Any, self).to_json_string().encode())

    def save_config(self, save_directory: _Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the config into a folder, which is made if missing; a file of its name is replaced whole.

        With `push_to_hub` it is uploaded too: to `repo_id`, by default the folder's name, with the options of
        `SchedulerMixin.push_to_hub`. Raises AssertionError if `save_directory` is a file, as diffusers does, and
        TypeError, before anything is written, if a value has no JSON form.
        """
        this, folder = cast(Any, self), Path(save_directory)
        text = this.to_json_string()
        if folder.is_file():
            raise AssertionError(f"save_directory={str(folder)!r} is a file: pass a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / this.config_name, text.encode())
        if push_to_hub:
            this.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)


class SchedulerMixin:
    """Base of every scheduler, beside `ConfigMixin`: loading, saving, related classes, copies.

    A subclass lists in ``_compatibles`` the names of the classes that its config may be handed to.
    """

    config_name: ClassVar[str | None] = SCHEDULER_CONFIG_NAME
    has_compatibles: ClassVar[bool] = True
    _compatibles: ClassVar[list[str]] = []

    @classmethod
    def from_pretrained(
        cls: Any,
        pretrained_model_name_or_path: _Path | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Make a scheduler from a config file.

        Parameters
        ----------
        pretrained_model_name_or_path
            The file, a folder that holds `scheduler_config.json`, or a repository on the Hub: "owner/name".
        subfolder
            Where in the folder or repository the file is.
        return_unused_kwargs
            Whether to return (scheduler, dict of what was not used).
        **kwargs
            Options of the download (`revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, ...);
            config keys that override the file's.

        Raises
        ------
        OSError, ValueError, ImportError
            If there is no such file or it is no config; if an argument or entry is out of range; if the Hub is
            needed and huggingface_hub is not installed.
        """
        config, unused = cls.load_config(pretrained_model_name_or_path, True, subfolder=subfolder, **kwargs)
        return cls.from_config(config, return_unused_kwargs, **unused)

    def save_pretrained(self, save_directory: _Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `scheduler_config.json` into a folder; see `ConfigMixin.save_config`."""
        cast(Any, self).save_config(save_directory, push_to_hub, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> Any:
        """Upload `scheduler_config.json` alone; the repository is made if missing. Options for weights do nothing."""
        text, folder, hub = cast(Any, self).to_json_string(), _inside(subfolder), _hub()
        path = f"{folder}/{self.config_name}" if folder else self.config_name
        message = commit_message or "Upload scheduler"
        options = {"commit_message": message, "create_pr": create_pr, "token": token}
        name = hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        return hub.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=name, **options)

    @property
    def compatibles(self) -> list[type]:
        """The scheduler's own class, then those of ``_compatibles`` that exist."""
        return self._get_compatibles()

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        found = [find_class(cls, name) for name in dict.fromkeys(cls._compatibles) if name != cls.__name__]
        return [cls, *(each for each in found if each is not None)]

    def clone(self) -> Self:
        """Copy the scheduler for a run of its own, at a fraction of the cost of `copy.deepcopy`.

        Lists, dicts, sets and writable NumPy arrays held as attributes are copied, one level deep. The rest is
        shared, such as arrays of other libraries, which schedulers replace and never write to.
        """
        clone = copy.copy(self)
        clone.__dict__.update(unshared(self.__dict__))
        return clone


def unshared(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with the mutable ones copied, one level deep."""

    def mutable(value: Any) -> bool:
        return value.flags.writeable if isinstance(value, np.ndarray) else isinstance(value, _MUTABLE)

    return {name: copy.copy(value) if mutable(value) else value for name, value in attributes.items()}


def find_class(cls: type, name: str) -> type | None:
    """The class of that name at the top of `cls`'s own package, else of anystep; None if there is none."""
    packages = (cls.__module__.partition(".")[0], __name__.partition(".")[0])
    found = (getattr(sys.modules.get(package), name, None) for package in packages)
    return next((each for each in found if isinstance(each, type)), None)


def _locate(source: Any, name: str, kwargs: dict[str, Any]) -> str:
    """Path of the file `name` that a file, folder or repository stands for; takes its options out of `kwargs`."""
    subfolder = _inside(kwargs.pop("subfolder", None))
    options = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"pretrained_model_name_or_path={source!r}: expected a file, folder or repository.")
    path = str(cast(Any, source))
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        wanted, fallback = os.path.join(path, subfolder, name), os.path.join(path, name)
        if os.path.isfile(wanted):
            return wanted
        if os.path.isfile(fallback):
            logger.warning("%s does not exist: %s is read instead.", wanted, fallback)
            return fallback
        raise FileNotFoundError(f"{wanted!r} does not exist: pass a folder that holds {name}.")
    if _REPOSITORY.fullmatch(path):
        return _download(path, name, subfolder, options)
    what = "is neither an existing file or folder nor a repository: pass a folder that holds"
    raise FileNotFoundError(f"pretrained_model_name_or_path={path!r} {what} {name}, or 'owner/name'.")


def _inside(subfolder: Any) -> str:
    """A subfolder that cannot lead out of its folder, by the rules of any system; "" for none."""
    text = str(subfolder or "")
    parts = PureWindowsPath(text)
    if parts.anchor or ".." in parts.parts or "\0" in text:
        raise ValueError(f"subfolder={text!r}: expected a relative path without '..', such as 'scheduler'.")
    return text


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError('The Hub needs huggingface_hub: pip install "anystep[hub]".') from error


def _download(repo_id: str, name: str, subfolder: str, options: Mapping[str, Any]) -> str:
    """Path of the cached file; any failure is an OSError."""
    download = _hub().hf_hub_download
    try:
        return str(download(repo_id, filename=name, subfolder=subfolder or None, **options))
    except Exception as error:
        known = [_ADVICE[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _ADVICE]
        advice = known[0] if known else f"{type(error).__name__}: {error}"
        raise OSError(f"Could not load {name} of {repo_id!r} from the Hub: {advice}") from error


def _read(path: str) -> dict[str, Any]:
    """The object in a JSON file; OSError for anything else."""
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        return parse(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path!r} is not a config: {error}. Expected what save_pretrained writes.") from error


def parse(text: str) -> dict[str, Any]:
    """A JSON object with no key twice, no NaN, and little nesting; ValueError or RecursionError otherwise."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            raise ValueError(f"it has {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} twice")
        return record

    def infinity(name: str) -> float:
        if name == "NaN":
            raise ValueError("it has a NaN")
        return float(name)

    def depth(value: Any) -> int:
        children: Any = [*value.values()] if type(value) is dict else value
        return 1 + max(map(depth, children), default=0) if type(children) is list else 0

    record = json.loads(text, object_pairs_hook=unique, parse_constant=infinity)
    if not isinstance(record, dict) or depth(record) > _MAX_DEPTH:
        raise ValueError(f"it is not an object of at most {_MAX_DEPTH} levels")
    return cast(dict[str, Any], record)
