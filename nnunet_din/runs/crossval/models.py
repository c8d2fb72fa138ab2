"""What to cross-validate: models, how their plans are made, and what their jobs get from a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_din.nnunet import classes
from nnunet_din.nnunet.folders import nnunet_folder, validation_cases
from nnunet_din.nnunet.plans import ancestors, read_plans

#: nnU-Net's cascade, by its stock names.
CASCADE, FIRST_STAGE = "3d_cascade_fullres", "3d_lowres"

#: Kind of value in a models file, as messages call it -> whether a value is one.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, (str, int)) and bool(str(value).strip()),
    "a number from 1 on": lambda value: isinstance(value, int) and value >= 1,
    "a list of numbers from 0 on": lambda value: (
        isinstance(value, list) and bool(value) and all(isinstance(fold, int) and fold >= 0 for fold in value)
    ),
    "a list of texts": lambda value: isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value),
    "a mapping": lambda value: isinstance(value, dict),
    "a list of models": lambda value: isinstance(value, list) and bool(value),
}
_FILE = {"models": "a list of models", "planning": "a mapping", "slurm": "a mapping"}
_NAMES = {"trainer": "a text", "plans": "a text", "configuration": "a text"}
_MODEL = {
    **_NAMES,
    "name": "a text",
    "folds": "a list of numbers from 0 on",
    "arguments": "a list of texts",
    "num_gpus": "a number from 1 on",
}
_PLANNING = {"planner": "a text", "arguments": "a list of texts"}
#: Key of ``slurm`` in a models file -> Snakemake's resource.
_RESOURCES = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "time": "runtime",
    "memory": "mem",
    "cpus": "cpus_per_task",
    "options": "slurm_extra",
    "gpu_model": "gpu_model",
}


@dataclass(frozen=True)
class ModelSpec:
    """A model to train on every fold.

    Attributes
    ----------
    name : str
        Name in leaderboards.
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


#: How plans are made that have one of nnU-Net's or DIN's names.
PLANNING = {
    "nnUNetDINPlans": Planning("nnUNetPlannerDIN"),
    "nnUNetDINTinyPlans": Planning("nnUNetPlannerDINTiny"),
    "nnUNetDINAttoPlans": Planning("nnUNetPlannerDINAtto"),
    "nnUNetDINFastPlans": Planning("nnUNetPlannerDINFast"),
    "nnUNetPlans": Planning("ExperimentPlanner"),
    "nnUNetResEncUNetPlans": Planning("ResEncUNetPlanner"),
    "nnUNetResEncUNetMPlans": Planning("nnUNetPlannerResEncM"),
    "nnUNetResEncUNetLPlans": Planning("nnUNetPlannerResEncL"),
    "nnUNetResEncUNetXLPlans": Planning("nnUNetPlannerResEncXL"),
}


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

    models: tuple[ModelSpec, ...]
    planning: Mapping[str, Planning] = field(default_factory=PLANNING.copy)
    cluster: Cluster = field(default_factory=Cluster)


def read_models_file(path: Path, folds: Sequence[int]) -> ModelsFile:
    """Read and check a models file.

    Parameters
    ----------
    path
        YAML.
    folds
        Folds of models that name none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no models file; the message names the place.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from error
    content = _checked(content, str(path), _FILE, ["models"])
    models = [_model(entry, f"{path}, model {i}", folds) for i, entry in enumerate(content["models"], 1)]
    planning = PLANNING.copy()
    for plans, entry in content.get("planning", {}).items():
        where = f"{path}, planning of {plans}"
        entry = _checked(entry, where, _PLANNING)
        if "planner" not in entry and plans not in PLANNING:
            raise ValueError(f"{where}: name the `planner`.")
        planner = str(entry["planner"]) if "planner" in entry else PLANNING[plans].planner
        planning[str(plans)] = Planning(planner, tuple(map(str, entry.get("arguments", ()))))
    return ModelsFile(tuple(models), planning, _cluster(content.get("slurm", {}), f"{path}, slurm"))


def _checked(value: Any, where: str, kinds: Mapping[str, str], needed: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping of a models file, of which every value is of its kind."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping of {', '.join(kinds)}.")
    for key, content in value.items():
        if key not in kinds:
            raise ValueError(f"{where}: unknown {key}. There are: {', '.join(kinds)}.")
        if not _KINDS[kinds[key]](content):
            raise ValueError(f"{where}: `{key}` must be {kinds[key]}, not {content!r}.")
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}.")
    return value


def _model(value: Any, where: str, folds: Sequence[int]) -> ModelSpec:
    entry = _checked(value, where, _MODEL, list(_NAMES))
    names = {key: str(entry[key]) for key in _NAMES}
    return ModelSpec(
        name=str(entry.get("name", "__".join(names.values()))),
        folds=tuple(dict.fromkeys(entry.get("folds", folds))),
        arguments=tuple(map(str, entry.get("arguments", ()))),
        num_gpus=entry.get("num_gpus", 1),
        **names,
    )


def _cluster(value: Any, where: str) -> Cluster:
    kinds = dict.fromkeys(_RESOURCES, "a text")
    entry = _checked(value, where, {**kinds, "setup": "a list of texts", "without_gpu": "a mapping"})
    without_gpu = _checked(entry.get("without_gpu", {}), f"{where}, without_gpu", kinds)
    gpu = {name: entry[key] for key, name in _RESOURCES.items() if key in entry}
    cpu = {**gpu, **{_RESOURCES[key]: text for key, text in without_gpu.items()}}
    cpu.pop("gpu_model", None)
    return Cluster(gpu, cpu, tuple(map(str, entry.get("setup", ()))))


def check_models(dataset: str, models: Sequence[ModelSpec], planning: Mapping[str, Planning]) -> None:
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
    for names in ([model.name for model in models], [model.folder for model in models]):
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"There are two models {twice[0]}.")
    known = validation_cases(dataset) or dict.fromkeys("01234")
    for model in models:
        if re.search(r"[/\\={}]", model.name):
            raise ValueError(f"'{model.name}' cannot be a name, because files are called so: leave / \\ = {{ }} out.")
        if wrong := [fold for fold in model.folds if str(fold) not in known]:
            raise ValueError(f"{model.name}: the splits have no fold {wrong[0]}. They have {', '.join(known)}.")
        _check_plans(dataset, model, planning)
        classes.find_trainer(model.trainer)
        if model.configuration == CASCADE:
            stage = first_stage(model, models)
            if not stage or set(stage.folds) != set(range(5)) | set(model.folds):
                raise ValueError(f"{model.name} needs {FIRST_STAGE} of the same trainer and plans, with all folds.")


def _check_plans(dataset: str, model: ModelSpec, planning: Mapping[str, Planning]) -> None:
    path = plans_file(dataset, model.plans)
    if path.is_file():
        ancestors(read_plans(path), model.configuration)
    elif model.plans not in planning:
        raise FileNotFoundError(
            f"{model.name}: {path} does not exist, and no planner is known that gives its plans this name. Make the "
            "plans first, or name their planner under `planning` in a models file."
        )
    elif not (nnunet_folder("nnUNet_raw") / dataset / "dataset.json").is_file():
        raise FileNotFoundError(f"{dataset} is not in nnUNet_raw, so that {model.plans} cannot be made.")
    else:
        classes.find_planner(planning[model.plans].planner)


def first_stage(model: ModelSpec, models: Sequence[ModelSpec]) -> ModelSpec | None:
    """The model whose predictions a cascade refines; None if it is not among the models."""
    wanted = (model.trainer, model.plans, FIRST_STAGE)
    return next((m for m in models if (m.trainer, m.plans, m.configuration) == wanted), None)


def plans_file(dataset: str, plans: str) -> Path:
    """Where plans lie."""
    return nnunet_folder("nnUNet_preprocessed") / dataset / f"{plans}.json"
