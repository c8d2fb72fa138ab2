"""What nnU-Net's ``dataset.json`` says about labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_din.data.files import read_json


@dataclass(frozen=True)
class Labels:
    """The structures of a data set.

    Attributes
    ----------
    structures : dict of str to tuple of int
        Values in the truth that make up each structure; several for a region.
    ignore : int or None
        Value of voxels that do not count.
    file_ending : str
        Ending of the label maps' files.
    """

    structures: Mapping[str, tuple[int, ...]]
    ignore: int | None = None
    file_ending: str = ".nii.gz"


def read_labels(dataset_json: Path) -> Labels:
    """Read the structures named in a ``dataset.json``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file does not exist or names no structures.
    """
    if not dataset_json.is_file():
        raise FileNotFoundError(f"{dataset_json} does not exist: it names the structures.")
    content = read_json(dataset_json)
    structures, ignore = {}, None
    for name, value in content.get("labels", {}).items():
        values = tuple(value) if isinstance(value, list) else (int(value),)
        if name == "ignore":
            ignore = values[0]
        elif values != (0,):
            structures[name] = values
    if not structures:
        raise ValueError(f"{dataset_json} names no labels but the background.")
    return Labels(structures, ignore, content.get("file_ending", ".nii.gz"))


def label_names(dataset_json: Mapping[str, Any]) -> dict[int, str]:
    """Names of the values in a predicted label map.

    Parameters
    ----------
    dataset_json : mapping
        Content of nnU-Net's `dataset.json`. Where its labels are regions, nnU-Net writes the values of
        `regions_class_order`.

    Returns
    -------
    dict of int to str
        Without background and ignored voxels.
    """
    names = [name for name in dataset_json["labels"] if name not in ("background", "ignore")]
    order = dataset_json.get("regions_class_order") or [dataset_json["labels"][name] for name in names]
    return dict(zip(order, names, strict=True))


def number_of_classes(dataset_json: Mapping[str, Any]) -> int:
    """Channels of a network's output: classes with the background, or regions, without ignored voxels."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
    return len(labels) - ("background" in labels if regions else 0)
