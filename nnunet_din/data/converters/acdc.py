"""ACDC: cine MRI of 100 patients, each with the labels of end-diastole and end-systole.

Source of the test and validation patients: the lists that came with the 2-D comparisons on ACDC (70, 10 and 20
patients), which DIN's paper uses. The challenge's own 50 test patients are not part of it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunet_din.data.converters.case_files import write_volume_case
from nnunet_din.data.converters.splits import published_split
from nnunet_din.data.raw_dataset import Found, RawDataset, locate, pair_files

PATIENTS = tuple(f"patient{number:03d}" for number in range(1, 101))
TEST = tuple(
    f"patient{number:03d}" for number in (2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95)
)
VALIDATION = tuple(f"patient{number:03d}" for number in (19, 21, 29, 33, 41, 50, 61, 71, 76, 80))
LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
LAYOUT = (
    "training/patientXXX with patientXXX_frameYY.nii.gz and patientXXX_frameYY_gt.nii.gz (give the folder of the "
    "archive, or the folder training)"
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
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    problems = []
    for patient in PATIENTS:
        before = images.keys() | labels.keys()
        for path in (folder / patient).glob(f"{patient}_frame[0-9][0-9]*.nii.gz"):
            name = path.name.removesuffix(".nii.gz")
            (labels if name.endswith("_gt") else images)[name.removesuffix("_gt")] = path
        if (count := len((images.keys() | labels.keys()) - before)) != 2:
            problems.append(f"{count} frames of {patient} in place of 2")
    found = pair_files(images, labels, images.keys() | labels.keys(), group=lambda name: name.partition("_")[0])
    return Found(found.cases, problems + found.problems)


DATASET = RawDataset(
    number=27,
    name="ACDC",
    channel_names=("cineMRI",),
    labels=LABELS,
    reference="Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018, doi 10.1109/TMI.2018.2837502; "
    "https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    licence="Terms of the ACDC challenge: research, not commercial; cite the reference",
    find=find,
    split=partial(published_split, test=TEST, validation=VALIDATION),
    write=partial(write_volume_case, mapping={value: value for value in LABELS.values()}),
)
