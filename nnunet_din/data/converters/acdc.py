"""ACDC: cine MRI of 100 patients, each with the labels of end-diastole and end-systole.

Source of the test and validation patients: the lists that came with the 2-D comparisons on ACDC (70, 10 and 20
patients), which DIN's paper uses. The challenge's own 50 test patients are not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunet_din.data.converters.case_files import write_volume_case
from nnunet_din.data.converters.splits import cross_validation
from nnunet_din.data.raw_dataset import Case, Found, RawDataset, Split, locate, pair_files

__all__ = ["DATASET", "TEST", "VALIDATION", "find", "split"]

PATIENTS = tuple(f"patient{number:03d}" for number in range(1, 101))
TEST = tuple(
    f"patient{number:03d}" for number in (2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95)
)
VALIDATION = tuple(f"patient{number:03d}" for number in (19, 21, 29, 33, 41, 50, 61, 71, 76, 80))
LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
LAYOUT = (
    "training/patientXXX with Info.cfg, patientXXX_frameYY.nii.gz and patientXXX_frameYY_gt.nii.gz (give the folder "
    "of the archive, or the folder training)"
)


def find(source: Path) -> Found:
    """Find the two labelled frames of each patient that is there.

    Parameters
    ----------
    source : pathlib.Path
        Folder of the archive, or its folder `training`.

    Returns
    -------
    Found
        Cases `patientXXX_frameYY`; the group is the patient.

    Raises
    ------
    FileNotFoundError
        If the layout is another one.
    """
    # The challenge's test patients have numbers from 101 on and lie in a folder of their own.
    places = ("", "training", "database/training", "ACDC/database/training")
    folder = locate(source, places, ["patient0[0-9][0-9]"], LAYOUT)
    cases, problems = [], []
    for patient in PATIENTS:
        if not (folder / patient).is_dir():
            problems.append(f"no folder {patient}")
            continue
        images: dict[str, Path] = {}
        labels: dict[str, Path] = {}
        for path in (folder / patient).iterdir():
            if match := re.fullmatch(rf"({patient}_frame\d\d)(_gt)?\.nii\.gz", path.name):
                (labels if match[2] else images)[match[1]] = path
        frames = _labelled_frames(folder / patient / "Info.cfg")
        if len(frames) != 2:
            problems.append(f"no {patient}/Info.cfg with the numbers of ED and ES")
            expected = images.keys() | labels.keys()
        else:
            expected = {f"{patient}_frame{frame:02d}" for frame in frames}
        names, wrong = pair_files(images, labels, expected)
        problems += wrong
        cases += [Case(name, images[name], labels[name], group=patient) for name in names]
    return Found(cases, problems)


def split(cases: Sequence[Case]) -> Split:
    """Split by patient: the published test patients, five folds over the others, and the published fold.

    Parameters
    ----------
    cases : sequence of Case
        All cases.

    Returns
    -------
    Split
        Folds 0 to 4, and as fold 5 the published split if both of its sides are there.

    Raises
    ------
    ValueError
        If there are fewer than five training patients.
    """
    groups = {case.name: case.group for case in cases if case.group not in TEST}
    folds = cross_validation(groups)
    validation = sorted(name for name, patient in groups.items() if patient in VALIDATION)
    training = sorted(groups.keys() - set(validation))
    if validation and training:
        folds.append({"train": training, "val": validation})
        notes = ["fold 5 is the published split into 70 training and 10 validation patients"]
    else:
        notes = ["there is no fold 5, because the training or validation patients of the published split are missing"]
    return Split(frozenset(case.name for case in cases if case.group in TEST), folds, notes)


def _labelled_frames(info: Path) -> set[int]:
    """Read the numbers of the end-diastolic and the end-systolic frame."""
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    return {int(number) for number in re.findall(r"^\s*E[DS]\s*:\s*(\d+)", text, flags=re.MULTILINE)}


DATASET = RawDataset(
    number=27,
    name="ACDC",
    channel_names=("cineMRI",),
    labels=LABELS,
    file_ending=".nii.gz",
    reference="Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018, doi 10.1109/TMI.2018.2837502; "
    "https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    licence="Terms of the ACDC challenge: research, not commercial; cite the reference",
    find=find,
    split=split,
    write=partial(write_volume_case, mapping={value: value for value in LABELS.values()}),
)
