"""What schedulers share besides their config: related classes, config files, the Hub, copies.

A config file is input from strangers: it is parsed as data, within limits, and nothing in it is ever run.
"""

import copy
import inspect
import json
import logging
import os
import re
import secrets
import sys
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, Self, cast

import numpy as np

__all__ = ["SCHEDULER_CONFIG_NAME", "KarrasDiffusionSchedulers", "SchedulerMixin"]

SCHEDULER_CONFIG_NAME = "scheduler_config.json"
HUB_OPTIONS = (
    "cache_dir", "local_dir", "local_dir_use_symlinks", "force_download", "proxies", "token", "local_files_only",
    "revision", "user_agent",
)  # fmt: skip
_MAX_BYTES = 16 * 2**20
_MAX_DEPTH = 32
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_ADVICE = {
    "GatedRepoError": "access is restricted: ask for it on the repository's page, then pass token=... .",
    "RepositoryNotFoundError": "there is no such repository, or it is private: check the name, or pass token=... .",
    "RevisionNotFoundError": "there is no such revision: pass revision= a branch, a tag or a commit.",
    "LocalEntryNotFoundError": "it is not in the cache and the Hub was not reached: check the network.",
    "EntryNotFoundError": "the repository has no such file: pass subfolder=... if it is in a folder.",
    "HFValidationError": "it is neither an existing folder nor a repository name such as 'owner/name'.",
}
logger = logging.getLogger(__name__)

KarrasDiffusionSchedulers = Enum(
    "KarrasDiffusionSchedulers",
    "DDIMScheduler DDPMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler HeunDiscreteScheduler "
    "EulerAncestralDiscreteScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler "
    "KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler DEISMultistepScheduler UniPCMultistepScheduler "
    "DPMSolverSDEScheduler EDMEulerScheduler",
)
"""Names of the schedulers that can replace each other in pipelines of Stable Diffusion's kind."""


class SchedulerMixin:
    """Base of every scheduler, beside `ConfigMixin`: loading, saving, related classes, copies.

    A subclass lists in ``_compatibles`` the names of the classes that its config may be handed to.
    """

    config_name: ClassVar[str | None] = SCHEDULER_CONFIG_NAME
    has_compatibles: ClassVar[bool] = True
    _compatibles: ClassVar[list[str]] = []

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Make a scheduler from a config file.

        Parameters
        ----------
        pretrained_model_name_or_path
            The file, a folder that holds `scheduler_config.json`, or a repository on the Hub such as "owner/name".
        subfolder
            Where in the folder or repository the file is.
        return_unused_kwargs
            Whether to return (scheduler, what was not used).
        **kwargs
            Options of the download (`revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, ...), and
            config keys that override the file's.

        Raises
        ------
        OSError
            If there is no such file, or it is not a config.
        ValueError
            If an argument or a value in the file is out of range.
        ImportError
            If the Hub is needed and huggingface_hub is not installed.
        """
        this = cast(Any, cls)
        config, kwargs = this.load_config(
            pretrained_model_name_or_path, return_unused_kwargs=True, subfolder=subfolder, **kwargs
        )
        return this.from_config(config, return_unused_kwargs, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write `scheduler_config.json` into a folder; see `ConfigMixin.save_config`."""
        cast(Any, self).save_config(save_directory, push_to_hub, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,  # noqa: ARG002  diffusers' signature; a scheduler has no weights
        variant: str | None = None,  # noqa: ARG002
        subfolder: str | None = None,
    ) -> Any:
        """Upload `scheduler_config.json`, and no other file, to a repository, which is created if it is missing."""
        text = cast(Any, self).to_json_string()
        return upload(
            text, str(self.config_name), repo_id, commit_message, private, token, create_pr, subfolder
        )

    @property
    def compatibles(self) -> list[type]:
        """This class, then those of ``_compatibles`` that exist."""
        return self._get_compatibles()

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        names = dict.fromkeys(cls._compatibles)
        found = [find_class(cls, name) for name in names if name != cls.__name__]
        return [cls, *(each for each in found if each is not None)]

    def clone(self) -> Self:
        """A copy to run on its own, for a fraction of the cost of `copy.deepcopy`.

        Lists, dicts, sets and writable NumPy arrays held as attributes are copied, one level deep. All else is
        shared: the frozen config, and arrays of other libraries, which schedulers replace and never write to.
        """
        clone = copy.copy(self)
        clone.__dict__.update(unshared(self.__dict__))
        return clone


def unshared(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with the mutable ones copied, one level deep."""

    def mutable(value: Any) -> bool:
        if isinstance(value, np.ndarray):
            return value.flags.writeable
        return isinstance(value, list | dict | set | deque | bytearray)

    return {name: copy.copy(value) if mutable(value) else value for name, value in attributes.items()}


def find_class(cls: type, name: str) -> type | None:
    """The class of that name at the top of `cls`'s own package, else of anystep; None if there is none."""
    for package in (cls.__module__.partition(".")[0], __name__.partition(".")[0]):
        found = getattr(sys.modules.get(package), name, None)
        if isinstance(found, type):
            return found
    return None


def locate(source: Any, name: str, subfolder: Any, options: Mapping[str, Any]) -> str:
    """Path of the config file `name` that a file, a folder or a repository stands for."""
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"pretrained_model_name_or_path={source!r}: expected a file, a folder or a repository name."
        )
    path, subfolder = str(cast(Any, source)), _inside(subfolder)
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        candidates = [os.path.join(path, subfolder, name), os.path.join(path, name)]
        found = next(filter(os.path.isfile, candidates), None)
        if found is None:
            raise FileNotFoundError(f"{candidates[0]!r} does not exist: pass a folder that holds {name}.")
        if subfolder and found == candidates[1]:
            logger.warning("%s does not exist; %s is read instead.", *candidates)
        return found
    if not _REPOSITORY.fullmatch(path):
        raise FileNotFoundError(
            f"pretrained_model_name_or_path={path!r} is neither an existing file or folder nor a repository name: "
            "pass a folder made by save_pretrained, or 'owner/name'."
        )
    return _download(path, name, subfolder, options)


def _inside(subfolder: Any) -> str:
    """A subfolder that cannot lead out of its folder, under the rules of any system; "" for none."""
    text = str(subfolder or "")
    parts = PureWindowsPath(text)
    if parts.anchor or ".." in parts.parts or "\0" in text:
        raise ValueError(f"subfolder={text!r}: expected a relative path without '..', such as 'scheduler'.")
    return text


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('The Hub needs huggingface_hub: pip install "anystep[hub]".') from error
    return huggingface_hub


def _download(repo_id: str, name: str, subfolder: str, options: Mapping[str, Any]) -> str:
    """Path of the cached file; any failure is an OSError."""
    download = _hub().hf_hub_download
    given = {key: value for key, value in options.items() if value is not None}
    unsupported = given.keys() - inspect.signature(download).parameters.keys()
    if unsupported:
        logger.warning("This version of huggingface_hub ignores %s.", ", ".join(sorted(unsupported)))
    given = {key: value for key, value in given.items() if key not in unsupported}
    try:
        return str(download(repo_id, filename=name, subfolder=subfolder or None, **given))
    except Exception as error:
        kinds = (kind.__name__ for kind in type(error).__mro__)
        advice = next(
            (_ADVICE[kind] for kind in kinds if kind in _ADVICE), f"{type(error).__name__}: {error}"
        )
        raise OSError(f"Could not load {name} of {repo_id!r} from the Hub: {advice}") from error


def upload(
    text: str,
    name: str,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> Any:
    """Put one file into a repository on the Hub; what `huggingface_hub.upload_file` returns."""
    folder, hub = _inside(subfolder), _hub()
    repository = hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    return hub.upload_file(
        path_or_fileobj=text.encode(),
        path_in_repo=f"{folder}/{name}" if folder else name,
        repo_id=repository,
        token=token,
        commit_message=commit_message or "Upload scheduler",
        create_pr=create_pr,
    )


def read_config(path: str) -> dict[str, Any]:
    """The object in a JSON file; OSError for anything else."""
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        return parse(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise OSError(
            f"{path!r} is not a config: {error}. Expected JSON as save_pretrained writes it."
        ) from error


def parse(text: str) -> dict[str, Any]:
    """A JSON object with no key twice, no NaN, and little nesting; ValueError or RecursionError otherwise."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"it has {max(keys, key=keys.count)!r} twice")
        return record

    def constant(name: str) -> float:
        if name == "NaN":
            raise ValueError("it has a NaN")
        return float(name)

    def depth(value: Any) -> int:
        children: Any = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        return 1 + max(map(depth, children), default=0)

    record = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, not an object")
    if depth(record) > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
    return cast(dict[str, Any], record)


def write(path: Path, text: str) -> None:
    """Replace a file as a whole: after a failure the old one is there, and nothing else."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
