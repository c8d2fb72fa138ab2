"""Locks that the kernel releases when a process ends, however it ends."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

#: What file systems without locks say.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_POLL = 1.0  # s


@contextmanager
def held(path: Path, waiting: str = "", timeout: float = -1) -> Iterator[None]:
    """Hold a lock.

    Parameters
    ----------
    path
        A file; made if needed, and left empty.
    waiting
        What to say once if somebody else holds it.
    timeout
        Seconds to wait; below 0: for ever.

    Raises
    ------
    TimeoutError
        If somebody else still holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting:
                    print(waiting, flush=True)
                lock.acquire(timeout=timeout, poll_interval=_POLL)
            stack.callback(lock.release)
        except Timeout:
            raise TimeoutError(f"{path} is held by another process.") from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            print(f"NOTE: {path.parent} is on a file system without locks: start nothing twice.", file=sys.stderr)
        yield


def is_held(path: Path) -> bool:
    """Whether somebody else holds a lock."""
    try:
        with held(path, timeout=0):
            return False
    except TimeoutError:
        return True


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
    said = False
    while True:
        with ExitStack() as stack:
            free: list[str] = []
            for name in names:
                if len(free) < number:
                    try:
                        stack.enter_context(held(folder / f"{name}.lock", timeout=0))
                        free.append(name)
                    except TimeoutError:
                        pass
            if len(free) == number:
                yield free
                return
        if not said:
            print(f"waiting for {number} of the GPUs {', '.join(names)}", flush=True)
            said = True
        time.sleep(_POLL)
