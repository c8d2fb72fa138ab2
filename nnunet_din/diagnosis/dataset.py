"""Whether a raw data set and its plans are what nnU-Net expects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_din.data.integrity import check_name
from nnunet_din.diagnosis.check import Check
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder, read_splits
from nnunet_din.nnunet.labels import check_label_numbers, read_dataset_json

#: Folds of nnU-Net's cross-validation.
FOLDS = 5
#: JSON files beside the plans that are none.
_NOT_PLANS = {"dataset", "dataset_fingerprint", "splits_final"}


def dataset_checks(dataset: str, plans: str | None = None) -> Iterator[Check]:
    """Look at labels, cases and folds, names and headers of images, and names of the plans of a data set.

    Parameters
    ----------
    dataset
        Number or name.
    plans
        Name of the plans that are to be there, as it is given to ``nnUNetv2_train -p``.

    Yields
    ------
    Check
        Of the raw data set, where it is there, and of its plans. Voxels are left to nnU-Net's
        ``--verify_dataset_integrity``, and so is whether images and label maps fit each other.
    """
    try:
        name = dataset_name(dataset)
        raw, preprocessed = (nnunet_folder(variable) / name for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
        if raw.is_dir():
            description = read_dataset_json(raw / "dataset.json")
            images = training_images(raw, description)
            yield _labels(description)
            yield _cases(set(images), [preprocessed, raw], dataset)
            yield _names(raw, description)
            yield _single([raw / file for files in images.values() for file in files])
    except (ValueError, FileNotFoundError) as error:
        yield Check("data set", False, str(error), "correct it, or name another data set by its number with -d.")
        return
    yield _plans(preprocessed, plans, dataset)


def training_images(raw: Path, dataset_json: Mapping) -> dict[str, list[str]]:
    """Image files of every training case, as nnU-Net finds them: named in ``dataset.json``, or by their names."""
    if "dataset" in dataset_json:
        return {case: list(map(os.path.expandvars, f["images"])) for case, f in dataset_json["dataset"].items()}
    images: dict[str, list[str]] = {}
    for path in sorted((raw / "imagesTr").glob("*")):
        if match := _pattern(dataset_json).fullmatch(path.name):
            images.setdefault(match[1], []).append(f"imagesTr/{path.name}")
    return images


def _pattern(dataset_json: Mapping) -> re.Pattern:
    """Names of image files."""
    return re.compile(rf"(.+)_\d{{4}}{re.escape(dataset_json['file_ending'])}")


def _labels(dataset_json: Mapping) -> Check:
    """Labels with which a network can be trained."""
    try:
        check_label_numbers(dataset_json)
    except ValueError as error:
        return Check("labels", False, str(error), "correct dataset.json, and plan and preprocess again.")
    return Check("labels", True, f"{len(dataset_json['labels'])} in dataset.json")


def _cases(cases: set[str], folders: Sequence[Path], dataset: str) -> Check:
    """Enough of them for nnU-Net's folds, or folds of the user's own."""
    found = f"{len(cases)} for training"
    for path in (folder / "splits_final.json" for folder in folders):  # planning copies the raw one if there is none
        if path.is_file():
            named = {name for split in read_splits(path) for part in split.values() for name in part}
            unknown = f"; splits_final.json names {min(named - cases)} besides" if named - cases else ""
            do = f"correct {path}: case names, without _0000 and file ending."
            return Check("cases", not unknown, f"{found}, folds from splits_final.json{unknown}", do)
    do = (
        f"train on all of them without validation cases, `nnUNetv2_train {dataset} 2d all`, or write "
        f"{folders[0] / 'splits_final.json'} with folds of your own."
    )
    return Check("cases", len(cases) >= FOLDS, f"{found}; nnU-Net makes {FOLDS} folds of them", do)


def _names(raw: Path, dataset_json: Mapping) -> Check:
    """Images in a format that nnU-Net reads, with the names by which it finds them."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    ending = dataset_json["file_ending"]
    formats = {known for reader in LIST_OF_IO_CLASSES for known in reader.supported_file_endings}
    if ending.lower() not in formats and "overwrite_image_reader_writer" not in dataset_json:
        found = f"nnU-Net has no label maps that end in {ending}, the `file_ending` in dataset.json"
        return Check("files", False, found, f"convert images and label maps to one of {', '.join(sorted(formats))}.")
    endings = (*formats, ".jpg", ".jpeg")
    images = [path.name for path in (raw / "imagesTr").glob("*") if path.name.lower().endswith(endings)]
    others = [name for name in images if not _pattern(dataset_json).fullmatch(name)]
    if others and "dataset" not in dataset_json:
        found = (
            f"{len(others)} of {len(images)} in imagesTr are not called CASE_0000{ending}, for example {min(others)}"
        )
        return Check("files", False, found, "rename or convert them, or take them out of the folder.")
    return Check("files", True, f"end in {ending}")


def _single(files: Sequence[Path]) -> Check:
    """One volume a file: nnU-Net trains on 4-D images and volumes of vectors, and cannot write what it predicts."""
    import SimpleITK as sitk

    several = []
    for file in files:
        check_name(file)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # which nnU-Net says when it reads the file
            continue
        if reader.GetDimension() + (reader.GetNumberOfComponents() > 1) > 3:  # a colour picture has three axes, too
            several.append(file.name)
    found = f"{len(several)} of {len(files)} are 4-D, for example {several[0]}" if several else "one volume a file"
    return Check("volumes", not several, found, "split them into the files CASE_0000, CASE_0001, ... of a case.")


def _plans(preprocessed: Path, plans: str | None, dataset: str) -> Check:
    """Plans of this name, or which there are."""
    known = sorted(path.stem for path in preprocessed.glob("*.json") if path.stem not in _NOT_PLANS)
    listed = f"there are {', '.join(known) or 'none'}"
    if plans is None:
        return Check("plans", True, f"{listed}; name them with -p")
    make = f"nnUNetv2_plan_and_preprocess -d {dataset} -pl nnUNetPlannerDIN -c 2d"
    found = plans if plans in known else f"no {plans} in {preprocessed}; {listed}"
    return Check("plans", plans in known, found, f"name those that are there with -p, or make them: {make}")
