"""nnU-Net's readers: which one it is, the files of a case, and label maps written through them."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nnunet_din.data.files import written_whole
from nnunet_din.data.integrity import check_name


def find_reader(dataset_json: Mapping | None, example: Path) -> Any:
    """nnU-Net's reader of a data set without plans.

    Parameters
    ----------
    dataset_json
        Content of ``dataset.json``, which may name a reader; None: by the ending of the example's name.
    example
        One of its files.

    Raises
    ------
    ValueError
        If nnU-Net has none.
    """
    from nnunetv2.imageio.reader_writer_registry import (
        determine_reader_writer_from_dataset_json,
        determine_reader_writer_from_file_ending,
    )

    check_name(example)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # tracebacks of the readers that do not fit
            if dataset_json is not None:
                return determine_reader_writer_from_dataset_json(dict(dataset_json), str(example))()
            ending = "".join(example.suffixes[-2:]) if example.name.endswith(".gz") else example.suffix
            return determine_reader_writer_from_file_ending(ending, str(example))()
    except RuntimeError as error:
        raise ValueError(f"No reader of nnU-Net's can read {example}.") from error


def write_label_map(path: Path, labels: np.ndarray, properties: dict, reader: Any) -> None:
    """Write a label map by nnU-Net's writer, whole or not at all, and with what the writer puts beside it.

    Parameters
    ----------
    path
        File to write.
    labels
        Shape ``(Z, Y, X)`` as the reader reads it.
    properties
        What the reader noted about the image.
    reader
        One of nnU-Net's.

    Raises
    ------
    OSError
        If the file does not hold what was written to it, as where the disk is full, which SimpleITK does not notice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", suffix=f".partial.{path.name}", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        reader.write_seg(labels, str(temporary), properties)
        try:
            whole = np.array_equal(reader.read_seg(str(temporary))[0][0], labels)
        except Exception:  # readers raise what they please
            whole = False
        if not whole:
            raise OSError(errno.ENOSPC, "the file does not hold what was written: is the disk full?", str(path))
        for file in sorted(temporary.parent.iterdir(), key=lambda file: file == temporary):  # the label map last
            with written_whole(path.with_name(file.name)) as final:
                file.replace(final)


def channel_files(first: Path, channels: int, file_ending: str) -> list[Path]:
    """The files of a case from its first, ``CASE_0000.nii.gz``: one for each channel, or one that holds all of them.

    Parameters
    ----------
    first
        The file of the first channel.
    channels
        Number of channels of the data set.
    file_ending
        Ending of its files.

    Raises
    ------
    ValueError
        If the name does not end so.
    FileNotFoundError
        If a file is missing.
    """
    mark = f"_0000{file_ending}"
    if not first.name.endswith(mark):
        raise ValueError(f"{first}: with plans, name the first channel of a case, CASE{mark}.")
    files = [first.with_name(f"{first.name.removesuffix(mark)}_{c:04d}{file_ending}") for c in range(channels)]
    if channels > 1 and not files[1].is_file() and channels_in(first) == channels:
        return [first]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: the data set has {channels} channels.")
    return files


def channels_in(file: Path) -> int:
    """Number of channels in a file, colours and opacity counted, by its header; 1 where that cannot be read."""
    import SimpleITK

    check_name(file)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 1
    return reader.GetNumberOfComponents()
