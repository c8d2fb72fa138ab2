"""The plans files of nnU-Net, read and looked over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_din.data.files import read_json

_NUMBERS = "a list of numbers"
#: Key of a configuration -> what nnU-Net and this package write there, in words and as a test.
_KEYS: dict[str, tuple[str, Any]] = {
    "inherits_from": ("a name", lambda value: isinstance(value, str)),
    "data_identifier": ("a name", lambda value: isinstance(value, str)),
    "preprocessor_name": ("a name", lambda value: isinstance(value, str)),
    "batch_size": ("a whole number", lambda value: isinstance(value, int)),
    "patch_size": (_NUMBERS, lambda value: _is_list(value, int)),
    "spacing": (_NUMBERS, lambda value: _is_list(value, (int, float))),
    "normalization_schemes": ("a list of names", lambda value: _is_list(value, str)),
    "use_mask_for_norm": ("a list of true and false", lambda value: _is_list(value, bool)),
    "architecture": (
        "an object with network_class_name and arch_kwargs",
        lambda value: (
            isinstance(value, dict)
            and isinstance(value.get("network_class_name"), str)
            and isinstance(value.get("arch_kwargs"), dict)
        ),
    ),
}
#: Those without which a configuration of DIN is none, its own or inherited.
_NEEDED = ("patch_size", "spacing", "architecture")


def read_plans(path: Path) -> dict[str, Any]:
    """Read a plans file and check that it is one, as far as this package uses it.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message names the plans that lie beside it.
    ValueError
        If it is no plans file, a value is of another kind, or configurations inherit from each other in a circle.
    """
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*Plans*.json"))
        do = f"Beside it: {', '.join(there)}." if there else "Plan with -pl nnUNetPlannerDIN first."
        raise FileNotFoundError(f"{path} does not exist. {do}")
    plans = read_json(path)
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise ValueError(f"{path} is no plans file of nnU-Net: it has no `configurations`.")
    for key in ("plans_name", "dataset_name"):
        if not isinstance(plans.get(key), str):
            raise ValueError(f"{path} is no plans file of nnU-Net: `{key}` must be a name.")
    for name, configuration in plans["configurations"].items():
        if not isinstance(configuration, dict):
            raise ValueError(f"{path}: configuration '{name}' must be an object.")
        for key, (words, fits) in _KEYS.items():
            if key in configuration and not fits(configuration[key]):
                raise ValueError(f"{path}: `{key}` of configuration '{name}' must be {words}.")
    for name in plans["configurations"]:
        try:
            ancestors(plans, name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return plans


def ancestors(plans: Mapping, configuration: str) -> list[str]:
    """The configuration, the one it inherits from, and so on.

    Raises
    ------
    ValueError
        If one of them is not in the plans, or they inherit in a circle.
    """
    chain: list[str] = []
    name: str | None = configuration
    while name is not None:
        if name in chain:
            raise ValueError(f"Configurations inherit in a circle: {' from '.join([*chain, name])}.")
        if name not in plans["configurations"]:
            inheriting = f", from which {chain[-1]} inherits" if chain else ""
            raise ValueError(
                f"The plans have no configuration '{name}'{inheriting}. They have: "
                f"{', '.join(plans['configurations'])}."
            )
        chain.append(name)
        name = plans["configurations"][name].get("inherits_from")
    return chain


def descendants(plans: Mapping, configuration: str) -> list[str]:
    """Configurations that inherit from one, directly or not."""
    return [name for name in plans["configurations"] if configuration in ancestors(plans, name)[1:]]


def resolve(plans: Mapping, configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits.

    Raises
    ------
    ValueError
        If it is not in the plans, or lacks what a network needs.
    """
    resolved: dict[str, Any] = {}
    for name in reversed(ancestors(plans, configuration)):
        resolved |= plans["configurations"][name]
    resolved.pop("inherits_from", None)
    missing = [key for key in _NEEDED if key not in resolved]
    if missing:
        raise ValueError(f"Configuration '{configuration}' of the plans lacks {', '.join(missing)}.")
    return resolved


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


def has_enhancement(plans: Mapping, configuration: str) -> bool:
    """Whether a configuration of the plans is one of a DIN planner, by inheritance or by itself.

    Raises
    ------
    ValueError
        If configurations inherit from each other in a circle.
    """
    if configuration not in plans["configurations"]:
        return False
    entries = [plans["configurations"][name] for name in ancestors(plans, configuration)]
    nearest: Mapping = next((entry for entry in entries if "enhancement" in entry), {})
    return bool(enhancements_of(nearest))


def _is_list(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
