"""Writing files whole or not at all."""

import os
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or leave what was there: a new file beside it, synced, then renamed over it."""
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    try:
        # Created with the mode that the umask leaves, as any other new file.
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
