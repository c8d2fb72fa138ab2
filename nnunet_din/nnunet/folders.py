"""nnU-Net's folders, and the data sets in them."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_din.data.files import read_json


def nnunet_folder(variable: str) -> Path:
    """Return one of nnU-Net's folders.

    Raises
    ------
    ValueError
        If the environment variable is not set.
    """
    if not os.environ.get(variable):
        raise ValueError(f"The environment variable {variable} is not set: set nnU-Net's three folders first.")
    return Path(os.environ[variable])


def dataset_name(dataset: str | int) -> str:
    """Name of a data set, ``DatasetXXX_Name``, from its number or name; it is looked for in all of nnU-Net's folders.

    Raises
    ------
    FileNotFoundError
        If no folder holds it.
    ValueError
        If several data sets have the number, or no folder is set.
    """
    folders = [nnunet_folder("nnUNet_results")]
    folders += [Path(os.environ[v]) for v in ("nnUNet_raw", "nnUNet_preprocessed") if os.environ.get(v)]
    pattern = f"Dataset{int(dataset):03d}_*" if str(dataset).isdecimal() else str(dataset)
    names = sorted({path.name for folder in folders for path in folder.glob(pattern) if path.is_dir()})
    if not names:
        raise FileNotFoundError(f"No data set {pattern} in {', '.join(map(str, folders))}.")
    if len(names) > 1:
        raise ValueError(f"Several data sets have the number {dataset}: {', '.join(names)}. Rename all but one.")
    return names[0]


def truth_folder(dataset: str | int) -> Path:
    """Folder with the label maps of a data set's training cases: nnU-Net's copy of them, or the raw ones.

    Raises
    ------
    FileNotFoundError
        If neither exists.
    """
    name = dataset_name(dataset)
    folders = [
        Path(os.environ[variable], name, sub)
        for variable, sub in (("nnUNet_preprocessed", "gt_segmentations"), ("nnUNet_raw", "labelsTr"))
        if os.environ.get(variable)
    ]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"No label maps for {name}: looked for {' and '.join(map(str, folders)) or 'nothing'}.")


def validation_cases(dataset: str | int) -> dict[str, list[str]]:
    """Fold -> its validation cases, from nnU-Net's splits; empty where there are none."""
    if not os.environ.get("nnUNet_preprocessed"):
        return {}
    path = Path(os.environ["nnUNet_preprocessed"], dataset_name(dataset), "splits_final.json")
    if not path.is_file():
        return {}
    return {str(i): split["val"] for i, split in enumerate(read_splits(path))}


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Read a ``splits_final.json``: names of cases under ``train`` and ``val`` for every fold.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file does not exist, or holds something else.
    """
    splits = read_json(path)
    try:
        if not isinstance(splits, list):
            raise TypeError
        return [{part: [str(case) for case in split[part]] for part in ("train", "val")} for split in splits]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a list of objects with `train` and `val`, as nnU-Net writes it.") from error


def weights_file(dataset: str | int) -> Path:
    """Where the weights of a data set, named by number or name, are looked for."""
    return nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset) / "zero_dce.pth"
