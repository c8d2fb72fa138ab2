"""Files that are there whole or not at all, and JSON that says which file is wrong."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

#: Seconds without a write after which a file is one that a killed process left.
_ABANDONED = 24 * 3600
#: Seconds for which another program, such as a virus scanner, may keep a file in its place; and between attempts.
_PATIENCE, _POLL = 2.0, 0.1


class HeldFileError(PermissionError):
    """A file that is there cannot be replaced; Windows says so while any program has it open."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(
            f"{path} could not be replaced ({error.strerror}): another program holds it, or it belongs to another user."
        )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, beside ``path`` and with its ending, and renames it when it is written.

    An error or an interruption leaves what was there before, and nothing else; what a killed process left is removed
    a day later. The folder is made if needed, and the file can be read by whom the umask lets.

    Raises
    ------
    HeldFileError
        If the file that was there before cannot be replaced within two seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial.{path.name}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    _remove_abandoned(path, temporary)
    try:
        yield temporary
        if temporary.stat().st_mode != mode:  # some writers make a file that others may not read
            temporary.chmod(mode)
        _sync(temporary)
        _replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk has no name
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Gives a folder to fill, beside ``path``, and renames it when it is full.

    Raises
    ------
    ValueError
        If ``path`` is there and not an empty folder, at the beginning or at the end.
    """
    _refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=path.parent) as temporary:
        filled = Path(temporary, "new")
        filled.mkdir()
        yield filled
        _refuse_existing(path)
        if path.is_dir():
            path.rmdir()
        filled.rename(path)


def _refuse_existing(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} is already there, and nothing is overwritten: remove it, or choose another place.")


def _remove_abandoned(path: Path, fresh: Path) -> None:
    """Remove what killed processes left in place of ``path``; ``fresh`` was just made, by the same clock."""
    for left in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        with suppress(OSError):  # another process removes it, too
            if fresh.stat().st_mtime - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def _sync(path: Path) -> None:
    """Wait until a file is on the disk: some file systems say only then that they are full."""
    with path.open("rb+") as file:  # Windows refuses it for a file that was opened for reading
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            source.replace(target)
            return
        except PermissionError as error:
            if time.monotonic() >= end:
                raise HeldFileError(target, error) from error
        time.sleep(_POLL)


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
        If it is not valid JSON, or nested too deeply to be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write onto what is read, under whatever name the two are given.

    Raises
    ------
    ValueError
        If an output is one of the inputs; the message names it.
    """
    read = {(status.st_dev, status.st_ino) for status in (path.stat() for path in inputs if path.exists())}
    for path in outputs:
        if path.exists() and (path.stat().st_dev, path.stat().st_ino) in read:
            raise ValueError(f"{path} would be overwritten, and it is one of the inputs: choose another output by -o.")
