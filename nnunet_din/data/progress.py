"""Progress of long loops: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds between two lines where there is no terminal.
INTERVAL = 5.0


class _Lines:
    """A stream that makes a line of each state of a bar, which otherwise overwrites the one before."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "") -> tqdm:
    """Tqdm's bar on standard error, or one line every :data:`INTERVAL` seconds if that is no terminal.

    Parameters
    ----------
    iterable, total, desc, unit
        Arguments of tqdm.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(iterable, total=total, desc=desc, unit=unit)
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        file=_Lines(sys.stderr),
        mininterval=INTERVAL,
        maxinterval=INTERVAL,
        miniters=1,
        leave=True,
        bar_format="{desc}: {n_fmt} of {total_fmt} {unit} in {elapsed}",
    )
