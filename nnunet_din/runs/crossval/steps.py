"""The steps of a cross-validation: nnU-Net's own commands, in their order.

This is the one place where the commands are put together; a dry run prints them, and the workflow runs them.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_din.data.files import read_json, write_text
from nnunet_din.nnunet.folders import nnunet_folder
from nnunet_din.nnunet.plans import ancestors, read_plans
from nnunet_din.runs.crossval.models import CASCADE, ModelSpec, Planning, first_stage, plans_file
from nnunet_din.runs.crossval.state import FoldFiles

Command = tuple[str, ...]
#: Folds of nnU-Net's own splits.
_FOLDS = 5


@dataclass(frozen=True)
class Step:
    """A step, and what it waits for.

    Attributes
    ----------
    name : str
        ``KIND/...``.
    commands : tuple of tuple of str
        Run one after the other.
    inputs : tuple of str
        Files of other steps that must be there.
    output : str
        File that is there when the step has succeeded; of preparations and of the kind ``best`` a mark of ours.
    gpus : int
        How many GPUs it takes; 0: none.
    probabilities : bool
        Of a training: whether its validation must hold probabilities.
    chosen : dict or None
        Of the kind ``best``: what the commands depend on, see :func:`best_commands`.
    """

    name: str
    commands: tuple[Command, ...]
    inputs: tuple[str, ...]
    output: str
    gpus: int = 0
    probabilities: bool = False
    chosen: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        """First part of its name: prepare, train, choose, predict, best or compare."""
        return self.name.partition("/")[0]

    def left(self) -> list[Command]:
        """The commands that are left to run now; of all but trainings, all."""
        if self.kind == "train":
            return continued(tuple(self.commands[0]), FoldFiles(Path(self.output).parents[1], self.probabilities))
        return list(self.commands) if self.chosen is None else best_commands(self.chosen)

    def environment(self, gpus: Sequence[str]) -> dict[str, str]:
        """Variables that its commands need, with the GPUs that it has got."""
        variables = {}
        if self.gpus and gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        # nnU-Net's planners take this for a number of threads, which cannot be the 0 that trainings may have.
        if self.kind == "prepare" and os.environ.get("nnUNet_n_proc_DA") == "0":
            variables["nnUNet_n_proc_DA"] = "1"
        return variables


def shell_line(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command as a shell takes it; on Windows the variables of its environment are comments before it."""
    if os.name == "nt":
        notes = [f"# with the environment variable {name}={value}:" for name, value in (environment or {}).items()]
        return "\n".join([*notes, subprocess.list2cmdline(command)])
    return " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()), shlex.join(command)]
    )


def _file_command(function: str, source: Path, target: Path) -> Command:
    """Move or copy a file by a function of :mod:`shutil`, on every system."""
    return (sys.executable, "-c", f"import shutil, sys; shutil.{function}(*sys.argv[1:])", str(source), str(target))


def continued(command: Command, files: FoldFiles) -> list[Command]:
    """What is left of a training, with ``--c`` or ``--val`` where nnU-Net can go on.

    Parameters
    ----------
    command
        ``nnUNetv2_train`` as for a training that was not begun.
    files
        The fold. Checkpoints that cannot be read are moved aside, because nnU-Net would try them first.
    """
    if files.complete():
        return []
    aside = [_file_command("move", path, path.with_name(f"{path.name}.unreadable")) for path in files.damaged()]
    begun = files.checkpoints()
    if not begun:
        return [*aside, command]
    words = list(command)
    if "-pretrained_weights" in words:  # for the beginning of a training only: nnU-Net refuses them later
        place = words.index("-pretrained_weights")
        del words[place : place + 2]
    return [*aside, (*words, "--val" if "checkpoint_final.pth" in begun else "--c")]


def best_commands(chosen: Mapping[str, Any]) -> list[Command]:
    """The chosen ensemble and postprocessing, from predictions that are there.

    Parameters
    ----------
    chosen
        ``information``, nnU-Net's ``inference_information.json``; ``predictions``, the folder with the predictions of
        each model, by the name of the model's folder; ``output``, a folder.

    Raises
    ------
    FileNotFoundError
        If nothing was chosen yet.
    """
    best = read_json(Path(chosen["information"]))["best_model_or_ensemble"]
    members = [
        "__".join(m[k] for k in ("trainer", "plans_identifier", "configuration"))
        for m in best["selected_model_or_models"]
    ]
    source = chosen["predictions"][members[0]]
    commands: list[Command] = []
    if len(members) > 1:
        folders = [chosen["predictions"][member] for member in members]
        source = f"{chosen['output']}_before_postprocessing"
        commands.append(("nnUNetv2_ensemble", "-i", *folders, "-o", source))
    post = ("-pp_pkl_file", best["postprocessing_file"], "-plans_json", best["some_plans_file"])
    return [*commands, ("nnUNetv2_apply_postprocessing", "-i", source, "-o", chosen["output"], *post)]


@dataclass(frozen=True)
class CrossValidation:
    """Models of a data set to train on every fold, choose from, test and compare.

    Attributes
    ----------
    dataset : str
        ``DatasetXXX_Name``.
    models : sequence of ModelSpec
        In the order of the leaderboard.
    planning : dict of str to Planning
        How missing plans are made.
    device : {"cuda", "cpu", "mps"}
        nnU-Net's ``-device``.
    test : tuple of pathlib.Path or None
        Folders with test images and their true label maps.
    """

    dataset: str
    models: Sequence[ModelSpec]
    planning: Mapping[str, Planning]
    device: str
    test: tuple[Path, Path] | None = None

    @property
    def results(self) -> Path:
        """nnU-Net's folder with the models."""
        return nnunet_folder("nnUNet_results") / self.dataset

    @property
    def folder(self) -> Path:
        """Where everything goes that is not nnU-Net's."""
        return self.results / "crossval"

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's folder with the plans and the preprocessed data."""
        return nnunet_folder("nnUNet_preprocessed") / self.dataset

    @property
    def number(self) -> str:
        """Number of the data set, as nnU-Net's commands take it."""
        return str(int(self.dataset[7:10]))

    def groups(self) -> dict[str, list[ModelSpec]]:
        """Models among which nnU-Net chooses: the configurations of one trainer, plans and set of folds."""
        groups: dict[str, list[ModelSpec]] = {}
        for model in self.models:
            group = f"{model.trainer}__{model.plans}"
            if group in groups and set(groups[group][0].folds) != set(model.folds):
                group += f".folds_{'_'.join(map(str, sorted(model.folds)))}"
            groups.setdefault(group, []).append(model)
        return groups

    def ensembled(self) -> set[str]:
        """Names of the models whose ensembles nnU-Net tries, for which it needs probabilities."""
        return {model.name for models in self.groups().values() if len(models) > 1 for model in models}

    def steps(self) -> list[Step]:
        """Every step, each after those that it waits for; of the preparations, those that are missing."""
        preparations = self._preparations()
        order = sorted(self.models, key=lambda model: model.configuration == CASCADE)
        steps = [*preparations.values()]
        for model in order:
            prepared = [preparations[model.plans].output] if model.plans in preparations else []
            steps += [self._training(model, fold, prepared) for fold in model.folds]
        steps += [self._choice(group, models) for group, models in self.groups().items()]
        if self.test:
            steps += [self._prediction(model, *self.test) for model in order]
            steps += [self._best(group, models) for group, models in self.groups().items()]
        return [*steps, *self._comparisons()]

    def _mark(self, step: str) -> str:
        return str(self.folder / "done" / step.replace("/", "."))

    def _preparations(self) -> dict[str, Step]:
        """What is missing of plans and data, by the plans; one after the other, because they share the fingerprint."""
        steps: dict[str, Step] = {}
        for plans in dict.fromkeys(model.plans for model in self.models):
            configurations = list(dict.fromkeys(m.configuration for m in self.models if m.plans == plans))
            name, before = f"prepare/{plans}", tuple(step.output for step in steps.values())
            if command := self._preparation(plans, configurations):
                steps[plans] = Step(name, (command,), before, self._mark(name))
        return steps

    def _preparation(self, plans: str, configurations: Sequence[str]) -> Command | None:
        """The command that makes what is missing of plans and data."""
        path, planning = plans_file(self.dataset, plans), self.planning.get(plans)
        arguments = planning.arguments if planning else ()
        if planning and not path.is_file():
            # The data of the cascade are those of the full resolution.
            wanted = dict.fromkeys("3d_fullres" if c == CASCADE else c for c in configurations)
            return (
                "nnUNetv2_plan_and_preprocess", "-d", self.number, "-pl", planning.planner, "-overwrite_plans_name",
                plans, "-c", *wanted, "--verify_dataset_integrity", *arguments,
            )  # fmt: skip
        content = read_plans(path)
        missing: dict[str, str] = {}
        for configuration in configurations:
            data = _data_of(content, configuration)
            if not is_preprocessed(self.preprocessed, data):
                missing.setdefault(data, configuration)
        workers = arguments[arguments.index("-np") :][:2] if "-np" in arguments else ()
        command = ("nnUNetv2_preprocess", "-d", self.number, "-plans_name", plans, "-c", *missing.values(), *workers)
        return command if missing else None

    def _device(self) -> Command:
        return () if self.device == "cuda" else ("-device", self.device)

    def _gpus(self, model: ModelSpec) -> int:
        return model.num_gpus if self.device == "cuda" else 0

    def _scores(self, model: ModelSpec) -> list[str]:
        """Summaries of the validations of a model, which are there when it is trained."""
        return [str(FoldFiles(self.results / model.folder / f"fold_{fold}").summary) for fold in model.folds]

    def _training(self, model: ModelSpec, fold: int, prepared: Sequence[str]) -> Step:
        first = first_stage(model, self.models) if model.configuration == CASCADE else None
        before = [*prepared, *(self._scores(first) if first else ())]
        probabilities = model.name in self.ensembled()
        command = (
            "nnUNetv2_train", self.number, model.configuration, str(fold), *_names(model), *self._device(),
            *(("-num_gpus", str(model.num_gpus)) if model.num_gpus > 1 else ()),
            *(("--npz",) if probabilities else ()), *model.arguments,
        )  # fmt: skip
        output = self._scores(model)[model.folds.index(fold)]
        name = f"train/{model.folder}/fold_{fold}"
        return Step(name, (command,), tuple(before), output, self._gpus(model), probabilities)

    def _information(self, group: str) -> Path:
        """What nnU-Net notes about its choice, or the copy of it where the next choice would replace it."""
        name = f"inference_information__{group}.json" if len(self.groups()) > 1 else "inference_information.json"
        return self.results / name

    def _choice(self, group: str, models: Sequence[ModelSpec]) -> Step:
        command = (
            "nnUNetv2_find_best_configuration", self.number, "-c", *(model.configuration for model in models),
            *_names(models[0]), "-f", *map(str, models[0].folds),
        )  # fmt: skip
        note, output = self.results / "inference_information.json", self._information(group)
        copies = [_file_command("copy", note, output)] if output != note else []
        scores = [score for model in models for score in self._scores(model)]
        return Step(f"choose/{group}", (command, *copies), tuple(scores), str(output))

    def _predictions(self, name: str) -> str:
        return str(self.folder / "predictions" / name)

    def _prediction(self, model: ModelSpec, images: Path, labels: Path) -> Step:
        output = self._predictions(model.name)
        before = self._scores(model)
        stage: Command = ()
        if model.configuration == CASCADE and (first := first_stage(model, self.models)):
            stage = ("-prev_stage_predictions", self._predictions(first.name))
            before.append(f"{stage[1]}/summary.json")
        predict = (
            "nnUNetv2_predict", "-d", self.number, "-i", str(images), "-o", output, "-c", model.configuration,
            *_names(model), "-f", *map(str, model.folds), *self._device(), *stage,
            *(("--save_probabilities",) if model.name in self.ensembled() else ()),
        )  # fmt: skip
        evaluate = (
            "nnUNetv2_evaluate_folder", str(labels), output, "-djfile", f"{output}/dataset.json", "-pfile",
            f"{output}/plans.json",
        )  # fmt: skip
        gpus = min(1, self._gpus(model))
        return Step(f"predict/{model.folder}", (predict, evaluate), tuple(before), f"{output}/summary.json", gpus)

    def _best(self, group: str, models: Sequence[ModelSpec]) -> Step:
        predictions = {model.folder: self._predictions(model.name) for model in models}
        information, output = str(self._information(group)), self._predictions(f"best__{group}")
        chosen = {"information": information, "predictions": predictions, "output": output}
        before = (information, *(f"{folder}/summary.json" for folder in predictions.values()))
        return Step(f"best/{group}", (), before, self._mark(f"best/{group}"), chosen=chosen)

    def _comparisons(self) -> list[Step]:
        named = [m.folder if m.name == m.folder else f"{m.name}={m.folder}" for m in self.models]
        folds = self.models[0].folds
        same = all(set(model.folds) == set(folds) for model in self.models)
        options = ("-d", self.number, "--models", *named, *(("-f", *map(str, folds)) if same else ()))
        scores = tuple(score for model in self.models for score in self._scores(model))
        steps = [_leaderboard("crossval", options, scores, self.results / "leaderboard")]
        if self.test:
            names = [*(model.name for model in self.models), *(f"best__{group}" for group in self.groups())]
            output = self.folder / "leaderboard_test"
            predictions = (f"{name}={self._predictions(name)}" for name in names)
            options = ("--pred", *predictions, "--gt", str(self.test[1]), "-o", str(output))
            before = tuple(self._mark(f"best/{group}") for group in self.groups())
            steps.append(_leaderboard("test", options, before, output))
        return steps


def _leaderboard(name: str, options: Command, inputs: tuple[str, ...], folder: Path) -> Step:
    command = ("nnunet-din", "leaderboard", *options)
    return Step(f"compare/{name}", (command,), inputs, str(folder / "leaderboard.html"))


def _names(model: ModelSpec) -> Command:
    return ("-tr", model.trainer, "-p", model.plans)


def _data_of(plans: Mapping[str, Any], configuration: str) -> str:
    """Name of the folder with the preprocessed data of a configuration."""
    for name in ancestors(plans, configuration):
        if "data_identifier" in plans["configurations"][name]:
            return plans["configurations"][name]["data_identifier"]
    raise ValueError(f"Configuration '{configuration}' of the plans has no data_identifier.")


def training_cases(preprocessed: Path) -> list[str]:
    """Sorted names of the cases of a data set, from the true label maps that nnU-Net copies at the end."""
    if not (preprocessed / "dataset.json").is_file():
        return []
    ending = read_json(preprocessed / "dataset.json")["file_ending"]
    return sorted(path.name.removesuffix(ending) for path in (preprocessed / "gt_segmentations").glob(f"*{ending}"))


def is_preprocessed(preprocessed: Path, data: str) -> bool:
    """Whether every case is in a folder of preprocessed data. nnU-Net writes the properties of a case last."""
    cases = training_cases(preprocessed)
    return bool(cases) and set(cases) <= {path.stem for path in (preprocessed / data).glob("*.pkl")}


def write_splits(preprocessed: Path) -> None:
    """Write the splits that nnU-Net would write, where there are none: trainings that begin at once would collide."""
    cases, path = training_cases(preprocessed), preprocessed / "splits_final.json"
    if path.is_file() or len(cases) < _FOLDS:  # which nnU-Net reports
        return
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = generate_crossval_split(cases, seed=12345, n_splits=_FOLDS)
    write_text(path, json.dumps([{part: list(map(str, names)) for part, names in fold.items()} for fold in splits]))
