"""ISIC 2018, task 1: dermoscopic images with the outline of the lesion."""

from __future__ import annotations

from pathlib import Path

from nnunet_din.data.converters.case_files import color_dataset
from nnunet_din.data.raw_dataset import Found, locate, pair_files

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
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    problems, counts = [], []
    for part, count in PARTS.items():
        inputs = _files(folder / f"ISIC2018_Task1-2_{part}_Input", "ISIC_*.jpg")
        masks = _files(folder / f"ISIC2018_Task1_{part}_GroundTruth", "ISIC_*_segmentation.png")
        images |= {path.stem: path for path in inputs}
        labels |= {path.stem.removesuffix("_segmentation"): path for path in masks}
        if inputs or masks:
            counts.append(f"{len(inputs)} of {part}")
        if len(inputs) not in (0, count):
            problems.append(f"{len(inputs)} images in place of {count} in the part {part}")
    found = pair_files(images, labels, images.keys() | labels.keys())
    return Found(found.cases, problems + found.problems, [f"{len(found.cases)} images: {', '.join(counts)}"])


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of an archive that was unpacked in place or into a folder of its own name."""
    return [*folder.glob(pattern), *(folder / folder.name).glob(pattern)]


DATASET = color_dataset(
    number=113,
    name="ISIC18",
    labels={"background": 0, "lesion": 1},
    reference="Codella et al., arXiv 1902.03368, 2019; Tschandl et al., Scientific Data 5, 180161, 2018; "
    "https://challenge.isic-archive.com/data/#2018",
    licence="CC BY-NC 4.0; see LICENSE.txt and ATTRIBUTION.txt of the archives",
    find=find,
)
