"""What nnU-Net's ``dataset.json`` says about labels and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @property
    def values(self) -> set[int]:
        """All values that a label map may hold."""
        ignored = set() if self.ignore is None else {self.ignore}
        return {0, *ignored}.union(*self.structures.values())


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a data set's description and check that it is one, as far as this package uses it.

    Returns
    -------
    dict
        As in the file, ``labels`` as whole numbers or lists of them, ``file_ending`` ``.nii.gz`` where it is missing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no ``dataset.json``, or a value is of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: it names the structures.")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise ValueError(f"{path} is no dataset.json of nnU-Net: it has no `labels`, names and numbers.")
    try:
        labels = {
            name: [_whole(number) for number in value] if isinstance(value, list) else _whole(value)
            for name, value in content["labels"].items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: `labels` must give each name a whole number, or a list of them.") from error
    ending = content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith(".") or set("/\\") & set(ending):
        raise ValueError(f"{path}: `file_ending` must be the ending of a file's name, for example .nii.gz.")
    for key in ("channel_names", "modality"):
        if key in content and not (isinstance(content[key], dict) and content[key]):
            raise ValueError(f"{path}: `{key}` must give each channel's number a name.")
    reader = content.get("overwrite_image_reader_writer", "")
    if not isinstance(reader, str):
        raise ValueError(f"{path}: `overwrite_image_reader_writer` must be the name of one of nnU-Net's readers.")
    return {**content, "labels": labels, "file_ending": ending}


def _whole(value: Any) -> int:
    """A label as a number; text is read as one."""
    if (number := int(value)) != float(value):
        raise ValueError(f"{value} is not whole")
    return number


def read_labels(dataset_json: Path) -> Labels:
    """Read the structures named in a ``dataset.json``.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file does not exist or names no structures.
    """
    content = read_dataset_json(dataset_json)
    structures, ignore = {}, None
    for name, value in content["labels"].items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if name == "ignore":
            ignore = values[0]
        elif values != (0,):
            structures[name] = values
    if not structures:
        raise ValueError(f"{dataset_json} names no labels but the background.")
    return Labels(structures, ignore, content["file_ending"])


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


def check_label_numbers(dataset_json: Mapping[str, Any]) -> None:
    """Refuse labels with which a training fails, by the rules of nnU-Net's ``LabelManager``.

    Parameters
    ----------
    dataset_json : mapping
        What :func:`read_dataset_json` returns.

    Raises
    ------
    ValueError
        If the background is missing, not 0 or alone, the labels are not 0, 1, 2 and so on, regions have no order, or
        the ignored voxels do not have the highest number.
    """
    labels = dict(dataset_json["labels"])
    ignore = labels.pop("ignore", None)
    if labels.get("background") != 0:
        raise ValueError(f"`background` in dataset.json must be there, with 0, and it is {labels.get('background')}.")
    if len(labels) < 2 or [] in labels.values():
        raise ValueError("`labels` in dataset.json must have a class besides the background, each with numbers.")
    groups = [value if isinstance(value, list) else [value] for value in labels.values()]
    numbers = sorted(number for group in groups for number in group)
    if any(len(group) > 1 for group in groups):
        regions = [group for group in groups if set(group) != {0}]
        order = dataset_json.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(regions):
            raise ValueError(
                "`labels` in dataset.json has regions: `regions_class_order` must give each of the "
                f"{len(regions)} the number that it has in predictions."
            )
    elif numbers != list(range(len(numbers))):
        raise ValueError(
            "`labels` in dataset.json must be consecutive, 0, 1, 2 and so on, each once, and they are "
            f"{', '.join(map(str, numbers))}: renumber them there and in the label maps."
        )
    if ignore is not None and ignore != numbers[-1] + 1:
        raise ValueError(f"`ignore` in dataset.json must be the highest label, {numbers[-1] + 1}, and it is {ignore}.")


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the channels of an image, in their order."""
    # "modality" is what nnU-Net's first version called them.
    return list((dataset_json.get("channel_names") or dataset_json.get("modality") or {}).values())


def number_of_channels(dataset_json: Mapping[str, Any]) -> int:
    """Channels of an image."""
    return len(channel_names(dataset_json))


def is_color(dataset_json: Mapping[str, Any], images: Sequence, reader: str) -> bool:
    """Whether the channels are the red, green and blue of natural 2-D images: three, in one file.

    Parameters
    ----------
    dataset_json : mapping
        Content of nnU-Net's `dataset.json`.
    images : sequence
        Files of a case.
    reader : str
        Name of the class that nnU-Net reads them with.
    """
    return number_of_channels(dataset_json) == 3 and len(images) == 1 and reader == "NaturalImage2DIO"
