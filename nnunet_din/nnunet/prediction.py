"""Prediction by nnU-Net's predictor in this process, case by case: what fails for one leaves the others alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_din.data.files import refuse_overwriting, write_text
from nnunet_din.data.integrity import check_file
from nnunet_din.nnunet.images import channel_files, channels_in, write_label_map
from nnunet_din.nnunet.labels import number_of_channels

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_din.nnunet.predictor import TrainedModel


@dataclass(frozen=True)
class Prediction:
    """What was predicted of a case.

    Attributes
    ----------
    labels : numpy.ndarray
        Label map, shape ``(Z, Y, X)`` as the data set's reader reads it.
    data, properties
        What the network got, see :meth:`nnunet_din.nnunet.planned.PlannedModel.preprocess`.
    """

    labels: np.ndarray
    data: np.ndarray
    properties: dict


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    name : str
        Name of the case.
    images : list of pathlib.Path
        Its channels.
    label_map : pathlib.Path
        The file that was written.
    result : Prediction or Exception
        What was predicted, or what kept it from being written.
    """

    name: str
    images: list[Path]
    label_map: Path
    result: Prediction | Exception


def find_cases(sources: Sequence[Path], dataset_json: Mapping) -> dict[str, list[Path] | Exception]:
    """Cases to predict, and the files of their channels; of an incomplete case in a folder, what is wrong with it.

    Parameters
    ----------
    sources
        First channels of cases, ``CASE_0000.nii.gz``, beside which the others lie; folders of them; or, for models
        whose images are one file, files of any name.
    dataset_json
        ``dataset.json`` of the training.

    Raises
    ------
    FileNotFoundError
        If a source or a channel of it is not there, or a folder holds no case.
    ValueError
        If a file is not called as nnU-Net calls images, or two have the name of one case.
    """
    ending = dataset_json["file_ending"]
    mark = f"_0000{ending}"
    channels = number_of_channels(dataset_json)
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
    cases: dict[str, list[Path] | Exception] = {}
    origins: dict[str, Path] = {}
    for first in firsts:
        files: list[Path] | Exception
        if first.name.endswith(mark):
            name = first.name.removesuffix(mark)
            try:
                files = channel_files(first, channels, ending)
            except (ValueError, FileNotFoundError) as error:
                if first in sources:
                    raise
                files = error
        elif first.name.endswith(ending) and channels in (1, channels_in(first)):
            name, files = first.name.removesuffix(ending), [first]
        else:
            raise ValueError(f"{first}: the model takes {channels} channels in files called CASE{mark} and so on.")
        if name in cases:
            raise ValueError(f"{first} and {origins[name]} are both of the case {name}.")
        cases[name], origins[name] = files, first
    return cases


def predict_cases(
    model: TrainedModel,
    cases: Mapping[str, list[Path] | Exception],
    out: Path,
    device: str | None = None,
    mirroring: bool = True,
) -> Iterator[Outcome]:
    """Predict as ``nnUNetv2_predict`` does, and go on where a case cannot be.

    Parameters
    ----------
    model
        A trained model, of DIN or not.
    cases
        As :func:`find_cases` gives them.
    out
        Folder for the label maps, ``plans.json`` and ``dataset.json``; made if it is not there.
    device, mirroring
        See :func:`nnunet_din.nnunet.predictor.make_predictor`.

    Raises
    ------
    ValueError
        If something would be written onto an image or its spacing, or into the folder of a data set or a model; if the
        device is not there, the weights do not fit the plans, or nnU-Net does not find the trainer.
    """
    from nnunet_din.nnunet.predictor import make_predictor

    targets = {case: out / f"{case}{model.dataset_json['file_ending']}" for case in cases}
    outputs = [*targets.values()]
    inputs = [file for files in cases.values() if isinstance(files, list) for file in files]
    if type(model.reader).__name__ == "Tiff3DIO":  # beside volumes and label maps, CASE.json holds the spacing
        outputs += [target.with_suffix(".json") for target in targets.values()]
        inputs += [file.with_name(f"{file.stem.removesuffix('_0000')}.json") for file in inputs]
    refuse_overwriting(outputs, inputs)
    if (out / "dataset.json").is_file() and not (out / "plans.json").is_file():
        raise ValueError(f"{out} is the folder of a data set, with a dataset.json of its own: choose another by -o.")
    if any(out.glob("fold_*/")):
        raise ValueError(f"{out} is the folder of a model, with a plans.json of its own: choose another by -o.")
    predictor = make_predictor(model, device, mirroring)
    # What nnU-Net's commands for ensembles and postprocessing look for beside predictions.
    for name, content in (("dataset.json", model.dataset_json), ("plans.json", model.plans)):
        write_text(out / name, json.dumps(content, indent=4) + "\n")
    for case, files in cases.items():
        if isinstance(files, Exception):
            yield Outcome(case, [], targets[case], files)
            continue
        result: Prediction | Exception
        try:
            with redirect_stdout(StringIO()):  # nnU-Net says what it does at every step
                result = predict_case(model, predictor, files, targets[case])
        except Exception as error:  # readers and preprocessors raise what they please
            result = error
        yield Outcome(case, files, targets[case], result)


def predict_case(model: TrainedModel, predictor: nnUNetPredictor, files: Sequence[Path], target: Path) -> Prediction:
    """Predict a case and write its label map.

    Parameters
    ----------
    model, predictor
        A trained model, and what :func:`nnunet_din.nnunet.predictor.make_predictor` makes of it.
    files
        Channels of the case.
    target
        File to write.

    Raises
    ------
    ValueError
        If a file is not whole or cannot be read, or the network's output is not finite.
    OSError
        If the label map cannot be written.
    """
    for file in files:
        check_file(file)
    data, properties = model.preprocess(files)
    labels = predict_preprocessed(model, predictor, data, properties)
    write_label_map(target, labels, properties, model.reader)
    return Prediction(labels, data, properties)


def predict_preprocessed(
    model: TrainedModel, predictor: nnUNetPredictor, data: np.ndarray, properties: dict
) -> np.ndarray:
    """Predict what :meth:`nnunet_din.nnunet.planned.PlannedModel.preprocess` gives, of this model or of another one of
    the same :attr:`~nnunet_din.nnunet.planned.PlannedModel.preprocessing`.

    Returns
    -------
    numpy.ndarray
        Label map, shape ``(Z, Y, X)`` as the data set's reader reads it.

    Raises
    ------
    ValueError
        If the network's output is not finite.
    """
    import torch
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    if not torch.isfinite(torch.stack(torch.aminmax(logits))).all():
        raise ValueError("The network's output is NaN or infinite, and no label map follows from it.")
    return convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        model.manager,
        model.configuration_manager,
        model.label_manager,
        properties,
    )
