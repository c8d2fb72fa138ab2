"""Names to choose from, and names to show."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


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


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Names of models without what all of them have in common.

    Of names of the form ``TRAINER__PLANS__CONFIGURATION`` only the parts that differ are kept, joined by a comma; other
    names, and the only one of that form, stay as they are.

    Parameters
    ----------
    models : iterable of str
        Names, repeated or not.

    Returns
    -------
    dict of str to str
        Short name of each model, in the given order; no two are the same.
    """
    models = list(dict.fromkeys(models))
    parts = {model: model.split("__") for model in models if len(model.split("__")) == 3}
    if len(parts) < 2:
        return {model: model for model in models}
    differing = [place for place in range(3) if len({name[place] for name in parts.values()}) > 1]
    short = {m: ", ".join(parts[m][place] for place in differing) if m in parts else m for m in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}
