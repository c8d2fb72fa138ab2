"""CVC-ClinicDB: 612 frames of colonoscopy videos with polyps, from 29 sequences."""

from __future__ import annotations

import csv
from pathlib import Path

from nnunet_din.data.converters.case_files import write_color_case
from nnunet_din.data.converters.splits import split_80_10_10
from nnunet_din.data.raw_dataset import Case, Found, RawDataset, locate, pair_files

__all__ = ["DATASET", "find"]

FRAMES = 612
LAYOUT = (
    "the folders Original and Ground Truth with 1.tif to 612.tif (or .png) in each, and, in the mirrors that have it, "
    "metadata.csv with frame_id and sequence_id"
)


def find(source: Path) -> Found:
    """Find the frames that are there.

    Parameters
    ----------
    source : pathlib.Path
        Folder of the archive.

    Returns
    -------
    Found
        Cases `clinicdb_NNN`. The group is the video sequence if a `metadata.csv` tells it, else the frame itself.

    Raises
    ------
    FileNotFoundError
        If the layout is another one.
    ValueError
        If `metadata.csv` does not tell the sequence of each frame.
    """
    places = [f"{top}{kind}" for top in ("", "CVC-ClinicDB/") for kind in ("", "TIF", "PNG")]
    folder = locate(source, places, ["Original", "Ground Truth"], LAYOUT)
    images, labels = (_frames(folder / kind) for kind in ("Original", "Ground Truth"))
    names, problems = pair_files(images, labels, (_name(number) for number in range(1, FRAMES + 1)))
    sequences, note = _sequences([folder, folder.parent, source], names)
    cases = [Case(name, images[name], labels[name], group=sequences.get(name, name)) for name in names]
    return Found(cases, problems, [note])


def _frames(folder: Path) -> dict[str, Path]:
    """List the files by case; TIFF is preferred to PNG."""
    paths = [path for ending in ("png", "tif") for path in folder.glob(f"*.{ending}") if path.stem.isdecimal()]
    return {_name(int(path.stem)): path for path in paths}


def _name(number: int) -> str:
    return f"clinicdb_{number:03d}"


def _sequences(folders: list[Path], names: list[str]) -> tuple[dict[str, str], str]:
    """Sequence of each case, empty without a file that tells it; and what to tell the user."""
    for path in (folder / "metadata.csv" for folder in folders):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            sequences = {_name(int(row["frame_id"])): f"sequence_{int(row['sequence_id']):02d}" for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has no whole numbers in columns frame_id and sequence_id; correct it.") from error
        if without := sorted(set(names) - sequences.keys()):
            raise ValueError(
                f"{path} has no sequence for {len(without)} frames, the first is {without[0]}; correct it."
            )
        return sequences, f"the split keeps video sequences whole, as {path} tells them"
    return {}, (
        "there is no metadata.csv with sequences, so the split is by frame: near-identical frames of one video "
        "sequence lie on both sides, as in the published numbers"
    )


DATASET = RawDataset(
    number=112,
    name="ClinicDB",
    channel_names=("R", "G", "B"),
    labels={"background": 0, "polyp": 1},
    file_ending=".png",
    reference="Bernal et al., Computerized Medical Imaging and Graphics 43, 2015, "
    "doi 10.1016/j.compmedimag.2015.02.007; https://polyp.grand-challenge.org/CVCClinicDB/",
    licence="Terms of CVC-ClinicDB: research and education; images of Hospital Clinic Barcelona, masks of the Computer "
    "Vision Center; cite the reference",
    find=find,
    split=split_80_10_10,
    write=write_color_case,
    reader="NaturalImage2DIO",
)
