"""The entry ``enhancement`` of a configuration in the plans: one enhancement, or a list of several."""

from __future__ import annotations

from collections.abc import Mapping


def enhancements_of(configuration: Mapping) -> list[dict]:
    """Keyword arguments of :func:`nnunet_din.enhancement.enhance`, one set for each enhanced version.

    Parameters
    ----------
    configuration
        A configuration of the plans, inheritance resolved.

    Returns
    -------
    list of dict
        Empty if the configuration has no enhancement.

    Raises
    ------
    ValueError
        If the entry is neither an enhancement nor a list of them.
    """
    entry = configuration.get("enhancement") or []
    entries = [entry] if isinstance(entry, Mapping) else entry
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) and "method" in e for e in entries):
        raise ValueError(
            f"`enhancement` in the plans must be an object with a `method`, or a list of them, not {entry}."
        )
    return [dict(e) for e in entries]
