"""Names to choose from."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not among those that are known.

    Parameters
    ----------
    what
        Kind of thing that is named, for the message.
    name
        The name.
    known
        All that are known.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists those that are, the nearest first.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"Unknown {what} '{name}'{hint} Known: {', '.join(known)}.")
