"""Synapse: abdominal CT of 30 patients with eight of the organs of the challenge "Beyond the Cranial Vault" (BTCV).

Source of the twelve test scans: the list of the 2-D comparisons on Synapse (18 and 12 scans), which DIN's paper uses.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunet_din.data.converters.case_files import write_volume_case
from nnunet_din.data.converters.splits import published_split
from nnunet_din.data.raw_dataset import Found, RawDataset, locate, pair_files

SCANS = tuple(f"case{number:04d}" for number in (*range(1, 11), *range(21, 41)))
TEST = tuple(f"case{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38))
#: In the order of the paper's table, which is that of the values in the label maps that are written.
ORGANS = ("background", "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
LABELS = {organ: value for value, organ in enumerate(ORGANS)}
#: The values in the archive's label maps.
BTCV_LABELS = {
    "background": 0,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic vein": 10,
    "pancreas": 11,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
}
LAYOUT = (
    "RawData/Training with img/imgNNNN.nii.gz and label/labelNNNN.nii.gz (give the folder of the archive, RawData or "
    "Training)"
)


def find(source: Path) -> Found:
    """Find the scans that are there.

    Parameters
    ----------
    source : pathlib.Path
        Folder of the archive, or one of its folders `RawData` and `Training`.

    Returns
    -------
    Found
        Cases `caseNNNN`; each scan is a group.

    Raises
    ------
    FileNotFoundError
        If the layout is another one.
    """
    places = ("", "Training", "RawData/Training", "Abdomen/RawData/Training")
    folder = locate(source, places, ["img/img*.nii.gz", "label"], LAYOUT)
    images, labels = (
        {f"case{path.name[len(kind) : -len('.nii.gz')]}": path for path in (folder / kind).glob(f"{kind}*.nii.gz")}
        for kind in ("img", "label")
    )
    return pair_files(images, labels, SCANS)


DATASET = RawDataset(
    number=111,
    name="Synapse",
    channel_names=("CT",),
    labels=LABELS,
    reference="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault, 2015; "
    "https://www.synapse.org/Synapse:syn3193805",
    licence="Terms of the challenge on synapse.org, after registration",
    find=find,
    split=partial(published_split, test=TEST),
    write=partial(write_volume_case, mapping={value: LABELS.get(organ, 0) for organ, value in BTCV_LABELS.items()}),
)
