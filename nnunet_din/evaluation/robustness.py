"""Trained models on bad images: corrupted as they are stored, then preprocessed, predicted and scored as always."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nnunet_din.data.corruption import CORRUPTION_VERSION, CORRUPTIONS, corrupt_file, refusal, sensible_corruptions
from nnunet_din.data.images import read_image
from nnunet_din.data.progress import progress
from nnunet_din.evaluation.collection import NO_FOLD, begun_folds
from nnunet_din.evaluation.metrics import TOLERANCE
from nnunet_din.evaluation.scoring import ScoreCache, describe_settings, read_placed, score_maps, states
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder, validation_cases
from nnunet_din.nnunet.labels import read_dataset_json, read_labels
from nnunet_din.nnunet.models import Model

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from pandas import DataFrame

    from nnunet_din.nnunet.predictor import TrainedModel

#: Name of the images as they are, whose severity is 0.
CLEAN = "clean"
_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class CleanCase:
    """A case with its truth.

    Attributes
    ----------
    name, fold : str
        Name of the case, and the fold whose networks predict it; :data:`NO_FOLD` for a test case, which all folds
        predict together.
    images : list of pathlib.Path
        Files of its channels.
    truth : pathlib.Path
        Its label map.
    """

    name: str
    fold: str
    images: list[Path]
    truth: Path


@dataclass(frozen=True)
class Network:
    """A model's trained folds that predict together, read when they are first needed.

    Attributes
    ----------
    name : str
        Name of the model to show.
    folder : pathlib.Path
        Its folder.
    folds : list of str
        One fold, or several whose logits are averaged.
    device : str or None
        See :func:`nnunet_din.nnunet.predictor.make_predictor`.
    """

    name: str
    folder: Path
    folds: list[str]
    device: str | None = None

    @cached_property
    def state(self) -> list[list]:
        """What tells whether the network is the same as before."""
        return states([self.folder / "plans.json", *(self.folder / f"fold_{f}" / _CHECKPOINT for f in self.folds)])

    @cached_property
    def model(self) -> TrainedModel:
        """The model with its weights.

        Raises
        ------
        ValueError
            If it is one of a cascade.
        """
        from nnunet_din.nnunet.predictor import read_model_folder

        model = read_model_folder(self.folder, self.folds)
        if model.configuration_manager.previous_stage_name:
            raise ValueError(f"{self.name} needs the predictions of another model (a cascade): leave it out.")
        return model

    @cached_property
    def predictor(self) -> nnUNetPredictor:
        """Predictor of nnU-Net for it."""
        from nnunet_din.nnunet.predictor import make_predictor

        return make_predictor(self.model, self.device)


@dataclass
class Study:
    """Models, cases and corruptions.

    Attributes
    ----------
    dataset_json : pathlib.Path
        Description of the data set.
    networks : dict of str to list of Network
        Fold -> networks of it, one for each model that has it.
    cases : list of CleanCase
        Cases of these folds.
    corruptions, severities
        Keys of :data:`nnunet_din.data.corruption.CORRUPTIONS`, and numbers from 1 to 5.
    seed : int
        See :func:`nnunet_din.data.corruption.corrupt_file`.
    missing : list of str
        A sentence for each fold that is not there, and for corruptions that make no sense for the data set.
    """

    dataset_json: Path
    networks: dict[str, list[Network]]
    cases: list[CleanCase]
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = (1, 2, 3, 4, 5)
    seed: int = 0
    missing: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.labels = read_labels(self.dataset_json)
        self.description = read_dataset_json(self.dataset_json)
        names = self.description.get("channel_names") or self.description.get("modality") or {}
        self.ct = [str(name).lower() == "ct" for name in names.values()]
        kind = (any(self.ct), read_image(self.cases[0].images[0]).color)
        unfit = {name: reason for name in self.corruptions or CORRUPTIONS if (reason := refusal(name, *kind))}
        if self.corruptions and unfit:
            raise ValueError(f"{next(iter(unfit.values()))} Leave it out of --corruptions.")
        if unfit:
            images = "CT" if any(self.ct) else "colour pictures"
            self.missing.append(f"{', '.join(unfit)} make no sense for {images} and are left out")
        self.corruptions = list(self.corruptions) or sensible_corruptions(*kind)

    @property
    def models(self) -> list[str]:
        """Names of the models that predict, in their order."""
        return list(dict.fromkeys(network.name for networks in self.networks.values() for network in networks))

    @property
    def bad(self) -> list[tuple[str, int]]:
        """Every corruption and severity, the clean image first."""
        return [(CLEAN, 0), *product(self.corruptions, self.severities)]

    @contextmanager
    def corrupted(self, case: CleanCase, corruption: str, severity: int) -> Iterator[list[Path]]:
        """Gives files of a case's bad image, which are there for as long as the context lasts."""
        if corruption == CLEAN:
            yield case.images
            return
        with TemporaryDirectory() as folder:
            files = [Path(folder, image.name) for image in case.images]
            for source, target, ct in zip(case.images, files, self.ct, strict=False):
                corrupt_file(source, target, corruption, severity, self.seed, ct)
            yield files


def find_study(
    dataset: str,
    models: Mapping[str, Model],
    folds: Sequence[str] | None = None,
    test: bool = False,
    device: str | None = None,
    **settings: Any,
) -> Study:
    """A study of validation cases, each predicted by the networks of its own fold, or of test cases.

    Parameters
    ----------
    dataset
        Number or name of the data set.
    models
        Models by the name to show.
    folds
        Folds to take; None: those that any model has begun, or for test cases each model's own.
    test
        Whether to take the test cases, which a model's folds predict together, as nnU-Net predicts.
    device
        See :func:`nnunet_din.nnunet.predictor.make_predictor`.
    **settings
        Attributes of :class:`Study`.

    Raises
    ------
    ValueError, FileNotFoundError
        If a fold or an image is missing, no model has been trained, or a corruption makes no sense for the data set.
    """
    raw = nnunet_folder("nnUNet_raw") / dataset_name(dataset)
    if test:
        cases, parts = _test_cases(raw), {NO_FOLD: folds}
    else:
        folds = list(folds or begun_folds(models))
        cases, parts = _validation_cases(raw, folds), {fold: [fold] for fold in folds}
    networks: dict[str, list[Network]] = {part: [] for part in parts}
    missing = []
    for (name, model), (part, chosen) in product(models.items(), parts.items()):
        members = list(chosen or model.folds)
        absent = [fold for fold in members if not (model.folder / f"fold_{fold}" / _CHECKPOINT).is_file()]
        missing += [f"{name}: fold {fold} has no {_CHECKPOINT}" for fold in absent]
        if members and not absent:
            networks[part].append(Network(name, model.folder, members, device))
    if not any(networks.values()):
        raise ValueError(f"There is nothing to predict with: {'; '.join(missing) or 'no fold was begun'}.")
    return Study(raw / "dataset.json", networks, cases, missing=missing, **settings)


def _validation_cases(raw: Path, folds: Sequence[str]) -> list[CleanCase]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    files = get_filenames_of_train_images_and_targets(str(raw), read_dataset_json(raw / "dataset.json"))
    validation = validation_cases(raw.name)
    cases: dict[str, CleanCase] = {}
    for fold in folds:
        if fold not in validation:
            raise ValueError(f"Fold {fold} has no validation cases: splits_final.json has {', '.join(validation)}.")
        for name in validation[fold]:
            if name not in files:
                raise FileNotFoundError(f"The validation case {name} of fold {fold} is not in {raw}.")
            if name in cases:
                raise ValueError(f"The folds {', '.join(folds)} share validation cases: choose others with -f.")
            images = [Path(image) for image in files[name]["images"]]
            cases[name] = CleanCase(name, fold, images, Path(files[name]["label"]))
    return list(cases.values())


def _test_cases(raw: Path) -> list[CleanCase]:
    from nnunet_din.nnunet.prediction import find_cases

    description = read_dataset_json(raw / "dataset.json")
    cases = []
    for name, images in find_cases([raw / "imagesTs"], description).items():
        if isinstance(images, Exception):
            raise images
        cases.append(CleanCase(name, NO_FOLD, images, raw / "labelsTs" / f"{name}{description['file_ending']}"))
    return cases


def score_study(study: Study, cache: Path) -> DataFrame:
    """Predict and score every case, clean and corrupted, by every model.

    A bad image is made once, and preprocessed once for all networks that get the same data.

    Parameters
    ----------
    study
        What to predict.
    cache
        File of the scores, see :class:`nnunet_din.evaluation.scoring.ScoreCache`. A score counts as long as network,
        images, truth, seed and settings are the same.

    Returns
    -------
    pandas.DataFrame
        A row for each model, case, corruption, severity and structure, as
        :func:`nnunet_din.evaluation.scoring.score_maps` returns, with ``corruption`` and ``severity``.

    Raises
    ------
    FileNotFoundError
        If an image or a truth is not there.
    ValueError
        If an image cannot be corrupted, preprocessed, predicted or scored; the message names it. What was scored stays
        in ``cache``.
    """
    from pandas import DataFrame

    done, rows = ScoreCache(cache), []
    jobs = [
        (case, bad, {key_of(study, network, case, *bad): network for network in study.networks[case.fold]})
        for case, bad in product(study.cases, study.bad)
    ]
    with progress(total=sum(len(networks) for *_, networks in jobs), desc="bad images", unit="predictions") as bar:
        for case, bad, networks in jobs:
            todo = {key: network for key, network in networks.items() if key not in done}
            for key, scores in _scores(study, todo, case, *bad) if todo else ():
                done.add(key, scores)
            bar.update(len(networks))
    for case, (corruption, severity), networks in jobs:
        of_case = {"fold": case.fold, "case": case.name, "corruption": corruption, "severity": severity}
        rows += [{"model": network.name, **of_case, **row} for key, network in networks.items() for row in done[key]]
    return DataFrame(rows)


def key_of(study: Study, network: Network, case: CleanCase, corruption: str, severity: int) -> str:
    """Everything that a prediction and its score depend on, as text.

    Raises
    ------
    FileNotFoundError
        If a file of the network or of the case is not there.
    """
    image = [] if corruption == CLEAN else [CORRUPTION_VERSION, corruption, severity, study.seed, study.ct]
    settings = list(describe_settings(study.labels).values())
    return json.dumps([network.state, states([*case.images, case.truth]), settings, image])


def _scores(
    study: Study, todo: Mapping[str, Network], case: CleanCase, corruption: str, severity: int
) -> Iterator[tuple[str, list[dict]]]:
    """Yields keys with rows, one a structure, of one bad image."""
    import torch

    from nnunet_din.nnunet.prediction import predict_preprocessed

    tolerances = dict.fromkeys(study.labels.structures, TOLERANCE)
    preprocessed: dict[str, tuple] = {}
    try:
        reader = next(iter(todo.values())).model.plans.get("image_reader_writer")
        truth, place = read_placed(case.truth, study.labels, reader)
        with study.corrupted(case, corruption, severity) as files:
            for key, network in todo.items():
                model = network.model
                with redirect_stdout(StringIO()):  # nnU-Net says what it does at every step
                    if model.preprocessing not in preprocessed:
                        preprocessed[model.preprocessing] = model.preprocess(files)
                    labels = predict_preprocessed(model, network.predictor, *preprocessed[model.preprocessing])
                labels = labels.reshape(truth.shape)  # a 2-D image has one slice
                yield key, score_maps(labels, truth, place, study.labels, tolerances)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{case.name}, {corruption} {severity}: {error}") from error
