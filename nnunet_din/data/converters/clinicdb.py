"""CVC-ClinicDB: 612 frames of colonoscopy videos with polyps, from 29 sequences."""

from __future__ import annotations

from pathlib import Path

from nnunet_din.data.converters.case_files import color_dataset
from nnunet_din.data.raw_dataset import Found, locate, pair_files

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
    tables = (place / "metadata.csv" for place in (folder, folder.parent, source))
    table = next((path for path in tables if path.is_file()), None)
    sequences = _sequences(table) if table else {}
    found = pair_files(images, labels, map(_name, range(1, FRAMES + 1)), lambda name: sequences.get(name, name))
    without = [case.name for case in found.cases if case.name not in sequences]
    if table and without:
        raise ValueError(f"{table} has no sequence for {len(without)} frames, the first is {without[0]}; correct it.")
    note = (
        f"the split keeps video sequences whole, as {table} tells them"
        if table
        else "there is no metadata.csv with sequences, so the split is by frame: near-identical frames of one video "
        "sequence lie on both sides, as in the published numbers"
    )
    return Found(found.cases, found.problems, [note])


def _frames(folder: Path) -> dict[str, Path]:
    """List the files by case; TIFF is preferred to PNG."""
    paths = [path for ending in ("png", "tif") for path in folder.glob(f"*.{ending}") if path.stem.isdecimal()]
    return {_name(int(path.stem)): path for path in paths}


def _name(number: int) -> str:
    return f"clinicdb_{number:03d}"


def _sequences(table: Path) -> dict[str, str]:
    """Sequence of each case."""
    import pandas

    try:
        rows = pandas.read_csv(table, usecols=["frame_id", "sequence_id"], dtype=int)
    except ValueError as error:
        raise ValueError(f"{table} has no whole numbers in columns frame_id and sequence_id: {error}.") from error
    return {_name(row.frame_id): f"sequence_{row.sequence_id:02d}" for row in rows.itertuples()}


DATASET = color_dataset(
    number=112,
    name="ClinicDB",
    labels={"background": 0, "polyp": 1},
    reference="Bernal et al., Computerized Medical Imaging and Graphics 43, 2015, "
    "doi 10.1016/j.compmedimag.2015.02.007; https://polyp.grand-challenge.org/CVCClinicDB/",
    licence="Terms of CVC-ClinicDB: research and education; images of Hospital Clinic Barcelona, masks of the Computer "
    "Vision Center; cite the reference",
    find=find,
)
