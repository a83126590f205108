"""What schedulers share besides their config: its file, the Hub, related classes, copies.

What reads and writes files is imported where it is used: most programs do neither.
"""

import copy
import os
import sys
import warnings
from collections import deque
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, Self, cast

import numpy as np

__all__ = ["SCHEDULER_CONFIG_NAME", "KarrasDiffusionSchedulers", "SchedulerMixin"]

SCHEDULER_CONFIG_NAME = "scheduler_config.json"
_MUTABLE: Any = (list, dict, set, deque, bytearray)
_Path = str | os.PathLike[str]

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
        from anystep.schedulers import _config_files as files

        path = files.locate(pretrained_model_name_or_path, cls.config_name, kwargs)
        config = files.read(path)
        extra = [kwargs] * bool(return_unused_kwargs) + [files.commit_of(path)] * bool(return_commit_hash)
        return (config, *extra) if extra else config

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """Do as `load_config`, under its former name."""
        warnings.warn("get_config_dict is deprecated: use load_config.", FutureWarning, stacklevel=2)
        return cls.load_config(*args, **kwargs)

    def to_json_file(self, json_file_path: _Path) -> None:
        """Write the config to a file, which is replaced whole."""
        from anystep._files import write_atomically

        write_atomically(json_file_path, cast(Any, self).to_json_string().encode())

    def save_config(self, save_directory: _Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the config into a folder, which is made if missing; a file of its name is replaced whole.

        With `push_to_hub` it is uploaded too: to `repo_id`, by default the folder's name, with the options of
        `SchedulerMixin.push_to_hub`. Raises AssertionError if `save_directory` is a file, as diffusers does, and
        TypeError, before anything is written, if a value has no JSON form.
        """
        from pathlib import Path

        from anystep._files import write_atomically

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
        from anystep.schedulers import _config_files as files

        text, folder, hub = cast(Any, self).to_json_string(), files.inside(subfolder), files.hub()
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
