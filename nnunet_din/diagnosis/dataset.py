"""Whether a raw data set and its plans are what nnU-Net expects."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from nnunet_din.data.integrity import check_name, check_spacing
from nnunet_din.diagnosis.check import Check
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder, read_splits
from nnunet_din.nnunet.images import find_reader
from nnunet_din.nnunet.labels import check_label_numbers, number_of_channels, read_dataset_json

#: Folds of nnU-Net's cross-validation.
FOLDS = 5
#: JSON files beside the plans that are none.
_NOT_PLANS = {"dataset", "dataset_fingerprint", "splits_final"}
#: Pictures whose compression changes labels.
_LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Case:
    """Files of a training case.

    Attributes
    ----------
    images : tuple of Path
        One for each channel, or one that holds all of them.
    label : Path
        The label map.
    """

    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class Header:
    """What is in an image file.

    Attributes
    ----------
    channels : int
        Numbers a voxel; those of all time points.
    size : tuple of int
        Voxels along z, y and x.
    single : bool
        Whether it is one volume or one picture, as nnU-Net expects of a file: no time points and no vectors.
    """

    channels: int
    size: tuple[int, ...]
    single: bool = True


def dataset_checks(dataset: str, plans: str | None = None) -> Iterator[Check]:
    """Labels, cases and folds, files, channels, label maps, and names of the plans of a data set.

    Parameters
    ----------
    dataset
        Number or name.
    plans
        Name of the plans that are to be there, as it is given to ``nnUNetv2_train -p``.

    Yields
    ------
    Check
        Of the raw data set, where it is there, and of its plans. Of images and label maps only the headers are read.
    """
    try:
        name = dataset_name(dataset)
        raw, preprocessed = (nnunet_folder(variable) / name for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
        if raw.is_dir():
            description = read_dataset_json(raw / "dataset.json")
            cases = training_cases(raw, description)
            yield _labels(description)
            yield _cases(cases, [preprocessed, raw], f"nnUNetv2_train {dataset} 2d all")
            yield _names(raw, description)
            yield from _contents(cases, description)
    except (ValueError, FileNotFoundError) as error:
        yield Check("data set", False, str(error), "name a data set of nnU-Net's folders by its number with -d.")
        return
    yield _plans(preprocessed, plans, dataset)


def training_cases(raw: Path, dataset_json: Mapping) -> dict[str, Case]:
    """Files of every training case, as nnU-Net finds them: named in ``dataset.json``, or by the names in `imagesTr`.

    Raises
    ------
    ValueError
        If ``dataset.json`` does not name them as nnU-Net expects.
    """
    if "dataset" in dataset_json:
        try:
            return {
                case: Case(
                    tuple(raw / os.path.expandvars(image) for image in files["images"]),
                    raw / os.path.expandvars(files["label"]),
                )
                for case, files in dataset_json["dataset"].items()
            }
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("`dataset` in dataset.json must give each case `images`, a list, and `label`.") from error
    pattern, ending = _pattern(dataset_json), dataset_json["file_ending"]
    images: dict[str, list[Path]] = {}
    for path in sorted((raw / "imagesTr").glob("*")):
        if match := pattern.fullmatch(path.name):
            images.setdefault(match[1], []).append(path)
    return {case: Case(tuple(files), raw / "labelsTr" / f"{case}{ending}") for case, files in images.items()}


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


def _cases(cases: Mapping, folders: Sequence[Path], train: str) -> Check:
    """Enough of them for nnU-Net's folds, or folds of the user's own."""
    number = len(cases)
    for path in (folder / "splits_final.json" for folder in folders):  # planning copies the raw one if there is none
        if path.is_file():
            found = f"{number} for training, folds from splits_final.json"
            fault = _fault_in_splits(path, cases) if cases else "there are no cases"
            do = "fill imagesTr." if not cases else f"correct {path}: case names, without _0000 and file ending."
            return Check("cases", not fault, f"{found}: {fault}" if fault else found, do)
    do = (
        f"train on all of them without validation cases, `{train}`, or write {folders[0] / 'splits_final.json'} with "
        "folds of your own."
    )
    return Check("cases", number >= FOLDS, f"{number} for training; nnU-Net makes {FOLDS} folds of them", do)


def _fault_in_splits(path: Path, cases: Iterable[str]) -> str | None:
    """What hinders a training on these folds."""
    try:
        splits = read_splits(path)
    except ValueError as error:
        return str(error)
    if not splits:
        return "there are no folds"
    for fold, split in enumerate(splits):
        if both := set(split["train"]).intersection(split["val"]):
            return f"fold {fold} has {min(both)} under `train` and under `val`"
        for part, names in split.items():
            if not names:
                return f"fold {fold} has no cases under `{part}`"
            if unknown := set(names).difference(cases):
                return f"fold {fold} has {min(unknown)} under `{part}`, which is no training case"
    return None


def _names(raw: Path, dataset_json: Mapping) -> Check:
    """Files in a format that nnU-Net reads and writes, with the names by which it finds them."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    ending = dataset_json["file_ending"]
    formats = {known for reader in LIST_OF_IO_CLASSES for known in reader.supported_file_endings}
    # A reader that is named in dataset.json may take more.
    formats |= {ending.lower()} if "overwrite_image_reader_writer" in dataset_json else set()
    if ending.lower() not in formats.difference(_LOSSY):
        return Check(
            "files",
            False,
            f"nnU-Net has no label maps that end in {ending}, the `file_ending` in dataset.json",
            f"convert images and label maps to one of {', '.join(sorted(formats))}.",
        )
    images = [path.name for path in (raw / "imagesTr").glob("*") if path.name.lower().endswith((*formats, *_LOSSY))]
    others = [name for name in images if not _pattern(dataset_json).fullmatch(name)]
    if others and "dataset" not in dataset_json:
        return Check(
            "files",
            False,
            f"{len(others)} of {len(images)} in imagesTr are not called CASE_0000{ending}, for example {min(others)}",
            "rename or convert them, or take them out of the folder.",
        )
    return Check("files", True, f"end in {ending}")


def _contents(cases: Mapping[str, Case], dataset_json: Mapping) -> Iterator[Check]:
    """All cases with the channels that ``dataset.json`` names, and with label maps that fit.

    Yields
    ------
    Check
        ``channels`` and ``label maps``.
    """
    files = [file for case in cases.values() for file in (*case.images, case.label)]
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(_read_header, files))
    headers = {file: header or _open(file, dataset_json) for file, header in zip(files, read, strict=True)}
    expected = number_of_channels(dataset_json)
    yield _of_cases(
        "channels",
        {name: _fault_in_images(case, headers, expected) for name, case in cases.items()},
        f"{expected} in every case",
        f"do not have the {expected} of dataset.json; the first is {{}} with {{}}",
        "complete the files CASE_0000, CASE_0001, ... of every case, make all images grey or all RGB and none 4-D, or "
        "correct `channel_names` in dataset.json.",
    )
    yield _of_cases(
        "label maps",
        {name: _fault_in_label_map(case, headers) for name, case in cases.items()},
        "one for every case, of the images' size",
        "have none that fits; the first is {}: {}",
        "write one number for every voxel of the image, in a format without losses.",
    )


def _of_cases(name: str, faults: Mapping[str, str | None], right: str, wrong: str, do: str) -> Check:
    """Make one finding of what is wrong with each case, in words for a case and its fault."""
    found = [(case, fault) for case, fault in faults.items() if fault]
    if not found:
        return Check(name, True, right)
    return Check(name, False, f"{len(found)} of {len(faults)} cases {wrong.format(*found[0])}", do)


def _fault_in_images(case: Case, headers: Mapping[Path, Header | str], expected: int) -> str | None:
    """What is there in place of the expected channels."""
    channels, several = 0, []
    for file in case.images:
        header = headers[file]
        if isinstance(header, str):
            return header
        channels += header.channels
        several += [] if header.single else [file]
    if channels == expected and not several:
        return None
    names = ", ".join(file.name for file in several or case.images)
    return f"{channels} ({names}{', a file of several volumes or of vectors' if several else ''})"


def _fault_in_label_map(case: Case, headers: Mapping[Path, Header | str]) -> str | None:
    """What is wrong with a label map, by itself or beside its images."""
    label = headers[case.label]
    if isinstance(label, str):
        return label
    if case.label.suffix.lower() in _LOSSY:
        return f"the compression of {case.label} changes labels"
    if label.channels != 1 or not label.single:
        return f"{case.label} has {label.channels} numbers a voxel"
    for image in (headers[file] for file in case.images):
        if isinstance(image, Header) and image.size != label.size:
            sizes = (" x ".join(map(str, header.size)) for header in (label, image))
            return "{} has {} voxels, and the image has {}".format(case.label, *sizes)
    return None


def _read_header(file: Path) -> Header | str | None:
    """Read a header with SimpleITK: what is in the file, why nothing is, or None where SimpleITK does not know."""
    import SimpleITK as sitk
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    try:
        check_name(file)
    except ValueError as error:
        return str(error)
    if not file.is_file():
        return f"{file}, which does not exist"
    if file.name.lower().endswith((".nii", ".nii.gz")):
        try:
            check_spacing(file)
        except ValueError as error:
            return str(error)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    *times, depth, height, width = (1, *reader.GetSize()[::-1])[-max(3, reader.GetDimension()) :]
    components = reader.GetNumberOfComponents()
    picture = reader.GetDimension() == 2 and file.suffix.lower() in NaturalImage2DIO.supported_file_endings
    return Header(
        components * math.prod(times), (depth, height, width), single=not times and (components == 1 or picture)
    )


def _open(file: Path, dataset_json: Mapping) -> Header | str:
    """Read a file by nnU-Net's reader: what is in it, or why nothing is."""
    try:
        with redirect_stdout(StringIO()):  # readers print
            array = find_reader(dataset_json, file).read_images([str(file)])[0]
    except Exception as error:  # readers raise what they please
        return f"{file}, which cannot be read: {error}"
    return Header(len(array), array.shape[1:])


def _plans(preprocessed: Path, plans: str | None, dataset: str) -> Check:
    """Plans of this name, or which there are."""
    there = sorted(path.stem for path in preprocessed.glob("*.json") if path.stem not in _NOT_PLANS)
    listed = f"there are {', '.join(there)}" if there else "there are none"
    if plans is None:
        return Check("plans", True, f"{listed}; name them with -p")
    do = f"nnUNetv2_plan_and_preprocess -d {dataset} -pl nnUNetPlannerDIN -c 2d"
    if there:
        do = f"name one of these with -p: {', '.join(there)}; or make them: {do}"
    return Check("plans", plans in there, plans if plans in there else f"no {plans} in {preprocessed}; {listed}", do)
