"""ISIC 2018, task 1: dermoscopic images with the outline of the lesion."""

from __future__ import annotations

from pathlib import Path

from nnunet_din.data.converters.case_files import write_color_case
from nnunet_din.data.converters.splits import split_80_10_10
from nnunet_din.data.raw_dataset import Case, Found, RawDataset, locate, pair_files

__all__ = ["DATASET", "PARTS", "find"]

#: Images of each part of the challenge.
PARTS = {"Training": 2594, "Validation": 100, "Test": 1000}
LAYOUT = (
    "one or more of the pairs ISIC2018_Task1-2_PART_Input with ISIC_NNNNNNN.jpg and ISIC2018_Task1_PART_GroundTruth "
    "with ISIC_NNNNNNN_segmentation.png, where PART is Training, Validation or Test"
)


def find(source: Path) -> Found:
    """Find the images of all the parts that are there.

    Parameters
    ----------
    source : pathlib.Path
        Folder with the unpacked archives.

    Returns
    -------
    Found
        Cases `ISIC_NNNNNNN`; each image is a group.

    Raises
    ------
    FileNotFoundError
        If the layout is another one.
    """
    folder = locate(source, ("", "ISIC2018"), ["ISIC2018_Task1-2_*_Input"], LAYOUT)
    cases, problems, counts = [], [], []
    for part, count in PARTS.items():
        images = {path.stem: path for path in _files(folder / f"ISIC2018_Task1-2_{part}_Input", "ISIC_*.jpg")}
        masks = _files(folder / f"ISIC2018_Task1_{part}_GroundTruth", "ISIC_*_segmentation.png")
        labels = {path.stem.removesuffix("_segmentation"): path for path in masks}
        if not images and not labels:
            continue
        names, wrong = pair_files(images, labels, images.keys() | labels.keys())
        if len(images) != count:
            wrong.append(f"{len(images)} images in place of {count} in the part {part}")
        problems += wrong
        counts.append(f"{len(names)} of {part}")
        cases += [Case(name, images[name], labels[name], group=name) for name in names]
    cases.sort(key=lambda case: case.name)
    return Found(cases, problems, [f"{len(cases)} images: {', '.join(counts)}"])


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of an archive that was unpacked in place or into a folder of its own name."""
    return [*folder.glob(pattern), *(folder / folder.name).glob(pattern)]


DATASET = RawDataset(
    number=113,
    name="ISIC18",
    channel_names=("R", "G", "B"),
    labels={"background": 0, "lesion": 1},
    file_ending=".png",
    reference="Codella et al., arXiv 1902.03368, 2019; Tschandl et al., Scientific Data 5, 180161, 2018; "
    "https://challenge.isic-archive.com/data/#2018",
    licence="CC BY-NC 4.0; see LICENSE.txt and ATTRIBUTION.txt of the archives",
    find=find,
    split=split_80_10_10,
    write=write_color_case,
    reader="NaturalImage2DIO",
)
