"""Prediction by nnU-Net's predictor in this process, case by case: what fails for one leaves the others alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_din.data.images import read_image
from nnunet_din.nnunet.network_input import channel_files

if TYPE_CHECKING:
    from nnunet_din.nnunet.predictor import TrainedModel


@dataclass(frozen=True)
class Predicted:
    """What became of a case.

    Attributes
    ----------
    name : str
        Name of the case.
    images : list of pathlib.Path
        Its channels.
    label_map : pathlib.Path
        What was written.
    error : Exception or None
        What kept it from being written.
    """

    name: str
    images: list[Path]
    label_map: Path
    error: Exception | None = None


def find_cases(sources: Sequence[Path], dataset_json: Mapping) -> dict[str, list[Path]]:
    """Cases to predict, and the files of their channels.

    Parameters
    ----------
    sources
        First channels of cases, ``CASE_0000.nii.gz``, beside which the others lie; folders of them; or, for models
        with one channel, files of any name.
    dataset_json
        ``dataset.json`` of the training.

    Raises
    ------
    FileNotFoundError
        If a source or a channel is not there, or a folder holds no case.
    ValueError
        If a file is not called as nnU-Net calls images, or two have the name of one case.
    """
    ending = dataset_json["file_ending"]
    mark = f"_0000{ending}"
    channels = len(dataset_json.get("channel_names") or dataset_json["modality"])
    firsts: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(source.glob(f"*{mark}"))
            if not inside:
                raise FileNotFoundError(f"{source} holds no image called CASE{mark}.")
            firsts += inside
        elif source.is_file():
            firsts.append(source)
        else:
            raise FileNotFoundError(f"{source} does not exist.")
    cases: dict[str, list[Path]] = {}
    for first in firsts:
        count = 1 if channels == 3 and _in_colour(first) else channels
        if first.name.endswith(mark):
            name, files = first.name.removesuffix(mark), channel_files(first, count, ending)
        elif count == 1 and first.name.endswith(ending):
            name, files = first.name.removesuffix(ending), [first]
        else:
            raise ValueError(f"{first}: the model takes {count} channels in files called CASE{mark} and so on.")
        if name in cases:
            raise ValueError(f"{first} and {cases[name][0]} are both of the case {name}.")
        cases[name] = files
    return cases


def _in_colour(path: Path) -> bool:
    """Whether a file holds all three channels; one that cannot be read is found when it is predicted."""
    try:
        return read_image(path).color
    except ValueError:
        return False


def predict_cases(
    model: TrainedModel,
    cases: Mapping[str, Sequence[Path]],
    out: Path,
    device: str = "cuda",
    mirroring: bool = True,
) -> Iterator[Predicted]:
    """Predict as ``nnUNetv2_predict`` does, and go on where a case cannot be.

    Parameters
    ----------
    model
        A trained model, of DIN or not.
    cases
        As :func:`find_cases` gives them.
    out
        Folder for the label maps; made if it is not there.
    device, mirroring
        See :func:`nnunet_din.nnunet.predictor.make_predictor`.

    Raises
    ------
    ValueError
        If the device is not there, the weights do not fit the plans, or nnU-Net does not find the trainer.
    """
    from nnunet_din.nnunet.predictor import make_predictor

    predictor = make_predictor(model, device, mirroring)
    out.mkdir(parents=True, exist_ok=True)
    ending = predictor.dataset_json["file_ending"]
    for case, files in cases.items():
        error = None
        try:
            with redirect_stdout(StringIO()):  # nnU-Net counts the processes and cases of each call
                predictor.predict_from_files_sequential([[str(file) for file in files]], [str(out / case)])
        except Exception as raised:  # readers and preprocessors raise what they please
            error = raised
        yield Predicted(case, list(files), out / f"{case}{ending}", error)
