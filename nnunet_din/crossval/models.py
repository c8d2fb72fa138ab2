"""What to cross-validate: models, how their plans are made, and what their jobs get from a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_din.nnunet.folders import nnunet_folder, validation_cases
from nnunet_din.nnunet.plans import ancestors, read_plans

#: Name of plans -> the planner that gives this name to its plans.
PLANNERS = {
    "nnUNetDINPlans": "nnUNetPlannerDIN",
    "nnUNetDINTinyPlans": "nnUNetPlannerDINTiny",
    "nnUNetDINAttoPlans": "nnUNetPlannerDINAtto",
    "nnUNetDINFastPlans": "nnUNetPlannerDINFast",
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetPlans": "ResEncUNetPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
#: nnU-Net's cascade, by its stock names.
CASCADE, FIRST_STAGE = "3d_cascade_fullres", "3d_lowres"
#: Options of nnUNetv2_train that are not the user's here: the first three and the device are keys of their own.
_OURS = ("-tr", "-p", "-num_gpus", "-device", "--npz", "--c", "--val", "--val_best", "--disable_checkpointing")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_ANYTHING = re.compile(r"\S.*")


@dataclass(frozen=True)
class TrainedModel:
    """A model to train on every fold.

    Attributes
    ----------
    name : str
        What leaderboards call it.
    trainer, plans, configuration : str
        nnU-Net's names.
    folds : tuple of int
        Folds of the cross-validation.
    arguments : tuple of str
        More arguments of ``nnUNetv2_train``.
    num_gpus : int
        GPUs that one training takes, nnU-Net's ``-num_gpus``.
    """

    name: str
    trainer: str
    plans: str
    configuration: str
    folds: tuple[int, ...]
    arguments: tuple[str, ...] = ()
    num_gpus: int = 1

    @property
    def folder(self) -> str:
        """Name of its folder in nnU-Net's results."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"


@dataclass(frozen=True)
class Planning:
    """How plans are made where they are missing: a planner, and more arguments of nnUNetv2_plan_and_preprocess."""

    planner: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """What a job gets from Slurm.

    Attributes
    ----------
    gpu, cpu : dict
        Resources in Snakemake's terms of the jobs that train or predict, and of those that need no GPU. The number of
        GPUs is the model's.
    setup : tuple of str
        Lines of shell before every command.
    """

    gpu: Mapping[str, str | int] = field(default_factory=dict)
    cpu: Mapping[str, str | int] = field(default_factory=dict)
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelsFile:
    """What a models file says; see ``docs/crossval.md``."""

    models: tuple[TrainedModel, ...]
    planning: Mapping[str, Planning] = field(default_factory=dict)
    cluster: Cluster = field(default_factory=Cluster)


#: Key of ``slurm`` in a models file -> Snakemake's resource, and what may stand there.
_RESOURCES: dict[str, tuple[str, type, re.Pattern]] = {
    "partition": ("slurm_partition", str, _ANYTHING),
    "account": ("slurm_account", str, _ANYTHING),
    "time": ("runtime", str, re.compile(r"(\d+(\.\d+)?[smhdw]){1,5}")),
    "memory": ("mem", str, re.compile(r"\d+(\.\d+)?\s*[MGT]i?B")),
    "cpus": ("cpus_per_task", int, re.compile(r"[1-9]\d*")),
    "gpu_model": ("gpu_model", str, re.compile(r"[\w.]+")),
    "options": ("slurm_extra", str, _ANYTHING),
}


def read_models_file(path: Path, folds: Sequence[int]) -> ModelsFile:
    """Read and check a models file.

    Parameters
    ----------
    path
        YAML.
    folds
        Those of models that name none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no models file; the message names the place.
    """
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from error
    where = str(path)
    entries = _mapping(content, where, ("models", "planning", "slurm"))
    if not isinstance(entries.get("models"), list) or not entries["models"]:
        raise ValueError(f"{where}: `models` must be a list of models, each with trainer, plans and configuration.")
    models = [_model(entry, f"{where}, model {i}", folds) for i, entry in enumerate(entries["models"], 1)]
    planning = {}
    for plans, entry in _mapping(entries.get("planning") or {}, f"{where}, planning").items():
        place = f"{where}, planning of {plans}"
        entry = _mapping(entry, place, ("planner", "arguments"))
        planner = entry.get("planner") or PLANNERS.get(plans)
        if planner is None:
            raise ValueError(f"{place}: name the `planner`.")
        planning[str(plans)] = Planning(str(planner), _texts(entry.get("arguments", ()), f"{place}: `arguments`"))
    return ModelsFile(tuple(models), planning, _cluster(entries.get("slurm") or {}, f"{where}, slurm"))


def _mapping(value: Any, where: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping" + (f" of {', '.join(keys)}." if keys else "."))
    unknown = [str(key) for key in value if keys and key not in keys]
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}. There are: {', '.join(keys)}.")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (str, int, float)) for v in value):
        raise ValueError(f"{what} must be a list of texts, for example [-pretrained_weights, FILE].")
    return tuple(str(v) for v in value)


def _model(value: Any, where: str, folds: Sequence[int]) -> TrainedModel:
    needed = ("trainer", "plans", "configuration")
    entry = _mapping(value, where, ("name", *needed, "folds", "arguments", "num_gpus"))
    names = {key: str(entry[key]) for key in needed if entry.get(key)}
    missing = [key for key in needed if key not in names]
    if missing:
        raise ValueError(f"{where} has no {' and no '.join(missing)}.")
    own = entry.get("folds", list(folds))
    if not isinstance(own, list) or not own or not all(isinstance(f, int) and f >= 0 for f in own):
        raise ValueError(f"{where}: `folds` must be a list of numbers from 0 on.")
    gpus = entry.get("num_gpus", 1)
    if not isinstance(gpus, int) or gpus < 1:
        raise ValueError(f"{where}: `num_gpus` must be a number from 1 on.")
    return TrainedModel(
        name=str(entry.get("name") or "__".join(names.values())),
        folds=tuple(dict.fromkeys(own)),
        arguments=_texts(entry.get("arguments", ()), f"{where}: `arguments`"),
        num_gpus=gpus,
        **names,
    )


def _cluster(value: Any, where: str) -> Cluster:
    entry = _mapping(value, where, (*_RESOURCES, "setup", "without_gpu"))
    for_both = [key for key in _RESOURCES if key != "gpu_model"]
    rest = _mapping(entry.get("without_gpu") or {}, f"{where}, without_gpu", for_both)
    setup = _texts(entry.get("setup") or (), f"{where}: `setup`")
    gpu = _resources({key: entry[key] for key in _RESOURCES if key in entry}, where)
    cpu = _resources({**{key: entry[key] for key in for_both if key in entry}, **rest}, where)
    return Cluster(gpu, cpu, setup)


def _resources(entries: Mapping[str, Any], where: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    examples = {"time": "48h or 1d12h", "memory": "64GB", "cpus": "12"}
    for key, value in entries.items():
        name, kind, pattern = _RESOURCES[key]
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not pattern.fullmatch(str(value)):
            raise ValueError(f"{where}: `{key}` cannot be {value!r}: write {examples.get(key, 'a text')}.")
        found[name] = kind(value)
    return found


def check_models(dataset: str, models: Sequence[TrainedModel], planning: Mapping[str, Planning]) -> None:
    """Check before anything starts that every model can be trained, as far as that can be known.

    Parameters
    ----------
    dataset
        Name of the data set.
    models, planning
        As in a models file.

    Raises
    ------
    FileNotFoundError
        If plans are missing and cannot be made.
    ValueError
        If a name is taken twice or cannot be one, or there is no such trainer, planner, configuration or fold.
    """
    _check_names(models)
    folds = validation_cases(dataset)
    for model in models:
        wrong = [fold for fold in model.folds if (str(fold) not in folds if folds else fold > 4)]
        if wrong:
            has = ", ".join(folds) if folds else "0, 1, 2, 3, 4"
            raise ValueError(f"{model.name}: the cross-validation has no fold {wrong[0]}. It has {has}.")
        for argument in model.arguments:
            if argument in _OURS:
                raise ValueError(f"{model.name}: {argument} is not for `arguments`: it is set for every training.")
        path = plans_file(dataset, model.plans)
        if path.is_file():
            ancestors(read_plans(path), model.configuration)
        elif model.plans not in planning and model.plans not in PLANNERS:
            raise FileNotFoundError(
                f"{model.name}: {path} does not exist, and no planner is known that gives its plans this name. Make "
                "the plans first, or name their planner under `planning` in a models file."
            )
        elif not (nnunet_folder("nnUNet_raw") / dataset / "dataset.json").is_file():
            raise FileNotFoundError(f"{dataset} is not in nnUNet_raw, so that {model.plans} cannot be made.")
        else:
            _check_class("planner", planner_of(model.plans, planning).planner)
        _check_class("trainer", model.trainer)
        if model.configuration == CASCADE:
            stage = [m for m in models if (m.trainer, m.plans, m.configuration) == (*_kind(model), FIRST_STAGE)]
            if not stage or set(stage[0].folds) != set(range(5)) | set(model.folds):
                raise ValueError(f"{model.name} needs {FIRST_STAGE} of the same trainer and plans, with all folds.")


def _kind(model: TrainedModel) -> tuple[str, str]:
    return model.trainer, model.plans


def _check_names(models: Sequence[TrainedModel]) -> None:
    for what in ("name", "folder"):
        seen: set[str] = set()
        for model in models:
            value = getattr(model, what)
            if value in seen:
                raise ValueError(f"There are two models {value}.")
            seen.add(value)
    for model in models:
        for text in (model.name, model.trainer, model.plans, model.configuration):
            if not _NAME.fullmatch(text):
                raise ValueError(f"'{text}' cannot be a name: letters, digits and . _ + - are allowed.")


def plans_file(dataset: str, plans: str) -> Path:
    """Where plans lie."""
    return nnunet_folder("nnUNet_preprocessed") / dataset / f"{plans}.json"


def planner_of(plans: str, planning: Mapping[str, Planning]) -> Planning:
    """The planner of plans, as the user says or by their name."""
    return planning.get(plans) or Planning(PLANNERS[plans])


def _check_class(what: str, name: str) -> None:
    """Check that nnU-Net finds a class."""
    from nnunet_din.nnunet.classes import find_planner, find_trainer

    {"planner": find_planner, "trainer": find_trainer}[what](name)
