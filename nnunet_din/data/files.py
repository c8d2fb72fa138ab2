"""Files that are there whole or not at all, and JSON that says which file is wrong."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Seconds without a write after which a file is one that a killed process left.
_ABANDONED = 3600


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, beside ``path`` and with its ending, and renames it when it is written.

    An error or an interruption leaves what was there before, and nothing else; what a killed process left is removed
    the next time. The folder is made if needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # some file systems say only here that they are full
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, see :func:`written_whole`; returns its path."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not valid JSON.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
