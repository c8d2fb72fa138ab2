"""Locks that the kernel releases when the processes that hold them have ended, however they end; not on Windows."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


def lock(path: Path) -> IO | None:
    """Open a file to append to it, and lock it until it is closed.

    A process that inherits the open file holds the lock, too. So a training that writes to the log of its step holds
    this, even if the program that has started it was killed.

    Returns
    -------
    file object or None
        None if another process holds the lock.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        print(f"NOTE: {path.parent} is on a file system without locks: start nothing twice.", file=sys.stderr)
    return file


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file.

    Raises
    ------
    OSError
        If there is no such file, or its file system has no locks.
    """
    import fcntl

    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_for(take: Callable[[], T | None], what: str) -> T:
    """What ``take`` returns, as soon as it returns something; says once what it waits for."""
    taken = take()
    if taken is None:
        print(f"waiting for {what}", flush=True)
    while taken is None:
        time.sleep(1)
        taken = take()
    return taken


@contextmanager
def gpus(names: Sequence[str], number: int) -> Iterator[list[str]]:
    """Wait for free ones among the GPUs, and hold them: no other cross-validation of this user's gets them.

    Parameters
    ----------
    names
        As ``CUDA_VISIBLE_DEVICES`` has them.
    number
        How many are needed.
    """
    folder = Path(tempfile.gettempdir()) / f"nnunet-din-gpus-{os.getuid()}"

    def take() -> tuple[ExitStack, list[str]] | None:
        free: list[str] = []
        with ExitStack() as stack:
            for name in names:
                if len(free) < number and (file := lock(folder / f"{name}.lock")):
                    stack.enter_context(file)
                    free.append(name)
            return (stack.pop_all(), free) if len(free) == number else None

    stack, free = wait_for(take, f"{number} of the GPUs {', '.join(names)}")
    with stack:
        yield free
