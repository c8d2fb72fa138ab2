"""Progress of long loops: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: Seconds between two lines where there is no terminal.
INTERVAL = 5.0


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "") -> tqdm:
    """Tqdm's bar on standard error, or one line every :data:`INTERVAL` seconds if that is no terminal.

    Parameters
    ----------
    iterable, total, desc, unit
        Arguments of tqdm.
    """
    from tqdm import tqdm

    lines: dict[str, Any] = {
        "mininterval": INTERVAL,
        "maxinterval": INTERVAL,
        "miniters": 1,
        "bar_format": "{desc}: {n_fmt} of {total_fmt} {unit} in {elapsed}\n",
    }
    return tqdm(iterable, total=total, desc=desc, unit=unit, **({} if sys.stderr.isatty() else lines))
