"""Configs as files: where one is found, how it is read, how it is written.

A config file is input from strangers: it is parsed as data, within limits, and nothing in it is ever run.
"""

import importlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any, cast

__all__ = ["commit_of", "dump", "hub", "inside", "locate", "parse", "read"]

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
logger = logging.getLogger(__name__)


def locate(source: Any, name: str, kwargs: dict[str, Any]) -> str:
    """Path of the file `name` that a file, folder or repository stands for; takes its options out of `kwargs`."""
    subfolder = inside(kwargs.pop("subfolder", None))
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


def inside(subfolder: Any) -> str:
    """A subfolder that cannot lead out of its folder, by the rules of any system; "" for none."""
    text = str(subfolder or "")
    parts = PureWindowsPath(text)
    if parts.anchor or ".." in parts.parts or "\0" in text:
        raise ValueError(f"subfolder={text!r}: expected a relative path without '..', such as 'scheduler'.")
    return text


def hub() -> Any:
    """The Hub's client; ImportError, naming the extra, if it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError('The Hub needs huggingface_hub: pip install "anystep[hub]".') from error


def commit_of(path: str) -> str | None:
    """The Hub's commit that a file of its cache belongs to, or None."""
    found = re.search(r"snapshots/([0-9a-f]{40})/", PurePath(path).as_posix())
    return found and found[1]


def _download(repo_id: str, name: str, subfolder: str, options: Mapping[str, Any]) -> str:
    """Path of the cached file; any failure is an OSError."""
    download = hub().hf_hub_download
    try:
        return str(download(repo_id, filename=name, subfolder=subfolder or None, **options))
    except Exception as error:
        known = [_ADVICE[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _ADVICE]
        advice = known[0] if known else f"{type(error).__name__}: {error}"
        raise OSError(f"Could not load {name} of {repo_id!r} from the Hub: {advice}") from error


def read(path: str) -> dict[str, Any]:
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


def dump(record: Mapping[str, Any]) -> str:
    """JSON as diffusers formats it."""

    def plain(value: Any) -> Any:
        if isinstance(value, PurePath):
            return value.as_posix()
        if callable(getattr(value, "tolist", None)):  # arrays and their scalars
            return value.tolist()
        raise TypeError(f"it is a {type(value).__name__}")

    return json.dumps(record, indent=2, sort_keys=True, default=plain) + "\n"
