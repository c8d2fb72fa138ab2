"""From the archive of a data set, as it was downloaded, to a raw nnU-Net data set.

A data set is described by one :class:`RawDataset`: where its files are, how they are split and how a case is written.
What all data sets share is here: checks, the folders of nnU-Net, `dataset.json`, `splits_final.json`, and that an
interrupted conversion can go on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_din.data.files import read_json, write_text
from nnunet_din.data.progress import progress

_NAMED = 5  # problems that a message names
_THREADS = 4


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes
    ----------
    name : str
        Name in the nnU-Net data set, without channel and file ending.
    image, label : pathlib.Path
        Files of the archive.
    group : str
        Patient or video sequence; the cases of one group are never split.
    """

    name: str
    image: Path
    label: Path
    group: str


@dataclass(frozen=True)
class Found:
    """What an archive holds.

    Attributes
    ----------
    cases : list of Case
        Cases with image and label, sorted by name.
    problems : list of str
        Each way in which this is not the whole official archive.
    notes : list of str
        What the user should know about it.
    """

    cases: list[Case]
    problems: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """How the cases are split.

    Attributes
    ----------
    test : frozenset of str
        Names of the cases for `imagesTs`; all others are for training and validation.
    folds : list of dict
        Content of `splits_final.json`: for each fold the names of its cases, sorted, by "train" and "val".
    note : str
        What the user should know about it.
    """

    test: frozenset[str]
    folds: list[dict[str, list[str]]]
    note: str


@dataclass(frozen=True)
class RawDataset:
    """A data set that can be converted.

    Attributes
    ----------
    number : int
        Default number, 1 to 999.
    name : str
        The part `Name` of DatasetXXX_Name.
    channel_names : tuple of str
        Names of the channels as nnU-Net wants them: they decide about the normalization.
    labels : dict of str to int
        Names of the label values, background included.
    reference, licence : str
        What `dataset.json` says about the origin of the data.
    find : callable
        Takes the source folder and returns :class:`Found`; raises FileNotFoundError if the layout is another one.
    split : callable
        Takes the cases and returns :class:`Split`.
    write : callable
        Takes a case and the files to write for its image and its label.
    file_ending : str
        Ending of the images and labels that are written.
    reader : str, optional
        nnU-Net's reader, where the file ending alone does not tell it.
    """

    number: int
    name: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    reference: str
    licence: str
    find: Callable[[Path], Found]
    split: Callable[[Sequence[Case]], Split]
    write: Callable[[Case, Path, Path], None]
    file_ending: str = ".nii.gz"
    reader: str | None = None


@dataclass(frozen=True)
class Conversion:
    """A conversion that was checked and can run.

    Attributes
    ----------
    dataset : RawDataset
        The data set that is converted.
    folder : pathlib.Path
        Folder DatasetXXX_Name.
    training, test : int
        Numbers of cases, those that are written already included.
    missing : list of tuple
        Cases that are still to be written, each with the files of its image and its label.
    json_files : dict
        JSON files that are still to be written, with their content.
    notes : list of str
        What the user should know.
    """

    dataset: RawDataset
    folder: Path
    training: int
    test: int
    missing: list[tuple[Case, Path, Path]]
    json_files: dict[Path, object]
    notes: list[str]


def locate(source: Path, places: Iterable[str], patterns: Sequence[str], layout: str) -> Path:
    """Find the folder of the files in or below the folder that the user gave.

    Parameters
    ----------
    source : pathlib.Path
        The folder that the user gave.
    places : iterable of str
        Folders below it to look in, "" for itself; the first that fits is taken.
    patterns : sequence of str
        Glob patterns; a folder fits if each matches something in it.
    layout : str
        The layout to expect, which the error message names.

    Returns
    -------
    pathlib.Path
        The first folder that fits.

    Raises
    ------
    FileNotFoundError
        If no folder fits.
    """
    for folder in (source / place for place in places):
        if all(next(folder.glob(pattern), None) for pattern in patterns):
            return folder
    raise FileNotFoundError(f"{source} does not have the layout of the official archive; expected {layout}.")


def pair_files(
    images: Mapping[str, Path], labels: Mapping[str, Path], expected: Iterable[str], group: Callable[[str], str] = str
) -> Found:
    """Pair the images and labels that are there, and compare them with those that should be.

    Parameters
    ----------
    images, labels : mapping of str to pathlib.Path
        Files by the name of their case.
    expected : iterable of str
        Names of the cases of the official archive.
    group : callable
        Takes the name of a case and returns its group.

    Returns
    -------
    Found
        Expected cases with image and label. Problems are images without label, labels without image, cases that are
        missing and cases that should not be there.
    """
    expected = set(expected)
    both = images.keys() & labels.keys()
    problems = [
        *(f"no image and no label of {name}" for name in sorted(expected - images.keys() - labels.keys())),
        *(f"no image of {name}" for name in sorted(labels.keys() - images.keys())),
        *(f"no label of {name}" for name in sorted(images.keys() - labels.keys())),
        *(f"{name} does not belong there" for name in sorted(both - expected)),
    ]
    return Found([Case(name, images[name], labels[name], group(name)) for name in sorted(both & expected)], problems)


def plan_conversion(
    dataset: RawDataset, source: Path, parent: Path, number: int | None = None, allow_incomplete: bool = False
) -> Conversion:
    """Check the archive and what is in the target folder already; writes nothing.

    Parameters
    ----------
    dataset : RawDataset
        The data set to convert.
    source : pathlib.Path
        Folder of the unpacked archive.
    parent : pathlib.Path
        Folder for DatasetXXX_Name.
    number : int, optional
        Number of the data set, 1 to 999. Default: the data set's own.
    allow_incomplete : bool
        Convert what is there where cases are missing.

    Returns
    -------
    Conversion
        The conversion, which :func:`convert` carries out.

    Raises
    ------
    FileNotFoundError
        If `source` is not there or has another layout.
    ValueError
        If the archive is incomplete, the number is out of range or taken, or the target folder holds something else.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is no folder: unpack the archive and give its folder.")
    number = dataset.number if number is None else number
    if not 1 <= number <= 999:
        raise ValueError(f"The number of a data set is 1 to 999, not {number}.")
    name = f"Dataset{number:03d}_{dataset.name}"
    folder = parent / name
    _refuse_taken_number(parent, name)
    found = dataset.find(source)
    notes = list(found.notes)
    if found.problems:
        more = len(found.problems) - _NAMED
        problems = ", ".join(found.problems[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        if not allow_incomplete:
            raise ValueError(
                f"{source} is not the whole official archive: {problems}. Download what is missing, or convert what is "
                "there with --allow-incomplete."
            )
        notes.append(f"{len(found.cases)} cases are there, the archive is not the whole official one: {problems}.")
    split = dataset.split(found.cases)
    notes.append(split.note)
    files = []
    for case in found.cases:
        part = "Ts" if case.name in split.test else "Tr"
        image = folder / f"images{part}" / f"{case.name}_0000{dataset.file_ending}"
        files.append((case, image, folder / f"labels{part}" / f"{case.name}{dataset.file_ending}"))
    refuse_other_files(folder, {path for _, *pair in files for path in pair})
    training = len(files) - len(split.test)
    json_files: dict[Path, object] = {folder / "splits_final.json": split.folds}
    if preprocessed := os.environ.get("nnUNet_preprocessed"):
        json_files[Path(preprocessed) / name / "splits_final.json"] = split.folds
    else:
        notes.append(
            "nnUNet_preprocessed is not set: before training, copy splits_final.json to the folder "
            f"{name} there, where nnU-Net looks for it"
        )
    # Last: a folder with dataset.json is complete.
    json_files[folder / "dataset.json"] = _describe(dataset, training)
    return Conversion(
        dataset=dataset,
        folder=folder,
        training=training,
        test=len(split.test),
        missing=[task for task in files if not all(path.exists() for path in task[1:])],
        json_files={path: content for path, content in json_files.items() if _is_missing(path, content)},
        notes=notes,
    )


def convert(conversion: Conversion) -> None:
    """Write what is missing; each file appears under its name when it is complete.

    Parameters
    ----------
    conversion : Conversion
        From :func:`plan_conversion`.

    Raises
    ------
    ValueError
        If an image or a label cannot be used; the message names the case. What was written stays, and a further run
        goes on from there.
    """
    partial = conversion.folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def write(task: tuple[Case, Path, Path]) -> None:
        case, *targets = task
        temporary = [partial / path.name for path in targets]
        conversion.dataset.write(case, *temporary)
        for source, target in zip(temporary, targets, strict=True):
            target.parent.mkdir(exist_ok=True)
            source.replace(target)

    try:
        # The work is done in libraries that let other threads run meanwhile.
        with ThreadPoolExecutor(_THREADS) as pool:
            written = pool.map(write, conversion.missing)
            for _ in progress(written, total=len(conversion.missing), desc=conversion.folder.name, unit="cases"):
                pass
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for path, content in conversion.json_files.items():
        write_text(path, json.dumps(content, indent=2) + "\n")


def refuse_other_files(folder: Path, wanted: set[Path]) -> None:
    """Refuse files in a raw data set that are none of its own: nnU-Net would take them for cases.

    Raises
    ------
    ValueError
        If there are some; the message names the first. Hidden files do not count.
    """
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        other = sorted(path for path in {*(folder / name).glob("*")} - wanted if not path.name.startswith("."))
        if other:
            raise ValueError(
                f"{folder / name} holds {len(other)} other files, the first is {other[0].name}; remove {folder}, or "
                "choose another folder or number."
            )


def _describe(dataset: RawDataset, training: int) -> dict[str, object]:
    """Make the content of `dataset.json`."""
    description = {
        "name": dataset.name,
        "reference": dataset.reference,
        "licence": dataset.licence,
        "channel_names": {str(index): name for index, name in enumerate(dataset.channel_names)},
        "labels": dataset.labels,
        "numTraining": training,
        "file_ending": dataset.file_ending,
    }
    return description | ({"overwrite_image_reader_writer": dataset.reader} if dataset.reader else {})


def _refuse_taken_number(parent: Path, name: str) -> None:
    """Refuse a number that another data set has: nnU-Net does not work with two of the same number."""
    variables = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    for place in {parent, *(Path(os.environ[variable]) for variable in variables if os.environ.get(variable))}:
        for other in place.glob(f"{name.partition('_')[0]}_*"):
            if other.name != name:
                raise ValueError(f"{place} already holds {other.name}; choose another number than {name} with -d.")


def _is_missing(path: Path, content: object) -> bool:
    """Whether a JSON file is to be written; a different one is never overwritten."""
    if not path.exists():
        return True
    if read_json(path) != content:
        raise ValueError(
            f"{path} exists with other content and is not overwritten; move it away if it is not needed any more."
        )
    return False
