"""The steps of a cross-validation: nnU-Net's own commands, in their order.

This is the one place where the commands are put together; a dry run prints them, and the workflow runs them.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_din.crossval.models import CASCADE, FIRST_STAGE, Planning, TrainedModel, planner_of, plans_file
from nnunet_din.crossval.state import FoldFiles
from nnunet_din.data.files import read_json
from nnunet_din.nnunet.folders import nnunet_folder
from nnunet_din.nnunet.plans import ancestors, read_plans

Command = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A step, and what it waits for.

    Attributes
    ----------
    name : str
        ``KIND/...``; the kinds are the rules of the workflow.
    commands : tuple of tuple of str
        Run one after the other.
    after : tuple of str
        Names of the steps that must have succeeded.
    gpus : int
        How many GPUs it takes; 0: none.
    fold : str or None
        Of a training: the folder of the fold.
    probabilities : bool
        Of a training: whether its validation must hold probabilities.
    chosen : dict or None
        Of the kind ``best``: what the commands depend on, see :func:`best_commands`.
    environment : dict of str to str
        Variables that are set for the commands.
    """

    name: str
    commands: tuple[Command, ...]
    after: tuple[str, ...] = ()
    gpus: int = 0
    fold: str | None = None
    probabilities: bool = False
    chosen: Mapping[str, Any] | None = None
    environment: Mapping[str, str] | None = None

    @property
    def kind(self) -> str:
        """The rule of the workflow that runs it."""
        return self.name.partition("/")[0]

    def files(self) -> FoldFiles:
        """What a training has left so far."""
        assert self.fold is not None
        return FoldFiles(Path(self.fold), self.probabilities)

    def left(self) -> list[Command]:
        """The commands that are left to run now."""
        if self.kind == "train":
            return continued(self.commands[0], self.files())
        if self.kind == "best":
            assert self.chosen is not None
            return best_commands(self.chosen)
        return list(self.commands)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Step:
        """A step from the workflow's configuration."""
        lists = {key: tuple(map(tuple, content[key])) if key == "commands" else tuple(content[key]) for key in _LISTS}
        return Step(**{**content, **lists})


_LISTS = ("commands", "after")


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
    models : sequence of TrainedModel
        In the order of the leaderboard.
    planning : dict of str to Planning
        How missing plans are made, where their name does not say it.
    device : {"cuda", "cpu", "mps"}
        nnU-Net's ``-device``.
    test : tuple of pathlib.Path or None
        Folders with test images and their true label maps.
    """

    dataset: str
    models: Sequence[TrainedModel]
    planning: Mapping[str, Planning]
    device: str
    test: tuple[Path, Path] | None = None

    @property
    def folder(self) -> Path:
        """Where everything goes that is not nnU-Net's."""
        return crossval_folder(self.dataset)

    @property
    def number(self) -> str:
        """Number of the data set, as nnU-Net's commands take it."""
        return str(int(self.dataset[7:10]))

    def groups(self) -> dict[str, list[TrainedModel]]:
        """Models among which nnU-Net chooses: the configurations of one trainer, plans and set of folds."""
        groups: dict[tuple, list[TrainedModel]] = {}
        for model in self.models:
            groups.setdefault((model.trainer, model.plans, tuple(sorted(model.folds))), []).append(model)
        several = {kind[:2] for kind in groups if sum(kind[:2] == other[:2] for other in groups) > 1}
        return {
            "__".join(kind[:2]) + (f".folds_{'_'.join(map(str, kind[2]))}" if kind[:2] in several else ""): models
            for kind, models in groups.items()
        }

    def steps(self) -> list[Step]:
        """Every step, finished or not, each after those that it waits for."""
        steps = self._preparations()
        groups = self.groups()
        ensembled = {model.name for models in groups.values() if len(models) > 1 for model in models}
        order = sorted(self.models, key=lambda model: model.configuration == CASCADE)
        steps += [self._training(m, fold, m.name in ensembled) for m in order for fold in m.folds]
        steps += [self._choice(group, models, len(groups) > 1) for group, models in groups.items()]
        if self.test:
            steps += [self._prediction(model, model.name in ensembled) for model in order]
            steps += [self._best(group, models, len(groups) > 1) for group, models in groups.items()]
        return [*steps, *self._comparisons()]

    def _preparations(self) -> list[Step]:
        """Plans and data; one after the other, because they share the fingerprint."""
        steps: list[Step] = []
        # nnU-Net's planners take this for a number of threads, which cannot be the 0 that trainings may have.
        environment = {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA") == "0" else None
        for plans in dict.fromkeys(model.plans for model in self.models):
            configurations = list(dict.fromkeys(m.configuration for m in self.models if m.plans == plans))
            command = self._preparation(plans, configurations)
            after = (steps[-1].name,) if steps else ()
            steps.append(Step(f"prepare/{plans}", (command,) if command else (), after, environment=environment))
        return steps

    def _preparation(self, plans: str, configurations: Sequence[str]) -> Command | None:
        """The command that makes what is missing of plans and data."""
        path = plans_file(self.dataset, plans)
        if not path.is_file():
            planning = planner_of(plans, self.planning)
            # The data of the cascade are those of the full resolution.
            wanted = dict.fromkeys("3d_fullres" if c == CASCADE else c for c in configurations)
            name = () if self.planning.get(plans) is None else ("-overwrite_plans_name", plans)
            return (
                "nnUNetv2_plan_and_preprocess", "-d", self.number, "-pl", planning.planner, *name, "-c", *wanted,
                "--verify_dataset_integrity", *planning.arguments,
            )  # fmt: skip
        folder = path.parent
        content = read_plans(path)
        missing: dict[str, str] = {}
        for configuration in configurations:
            data = _data_of(content, configuration)
            if not _is_preprocessed(folder, data):
                missing.setdefault(data, configuration)
        if not missing:
            return None
        arguments = self.planning[plans].arguments if plans in self.planning else ()
        workers = arguments[arguments.index("-np") :][:2] if "-np" in arguments else ()
        return ("nnUNetv2_preprocess", "-d", self.number, "-plans_name", plans, "-c", *missing.values(), *workers)

    def _names(self, model: TrainedModel) -> Command:
        return ("-tr", model.trainer, "-p", model.plans)

    def _device(self) -> Command:
        return () if self.device == "cuda" else ("-device", self.device)

    def _gpus(self, model: TrainedModel) -> int:
        return model.num_gpus if self.device == "cuda" else 0

    def _training(self, model: TrainedModel, fold: int, probabilities: bool) -> Step:
        after = [f"prepare/{model.plans}"]
        if model.configuration == CASCADE:
            first = self._first_stage(model)
            after += [f"train/{first.name}/fold_{other}" for other in first.folds]
        command = (
            "nnUNetv2_train", self.number, model.configuration, str(fold), *self._names(model), *self._device(),
            *(("-num_gpus", str(model.num_gpus)) if model.num_gpus > 1 else ()),
            *(("--npz",) if probabilities else ()), *model.arguments,
        )  # fmt: skip
        folder = nnunet_folder("nnUNet_results") / self.dataset / model.folder / f"fold_{fold}"
        name = f"train/{model.name}/fold_{fold}"
        return Step(name, (command,), tuple(after), self._gpus(model), str(folder), probabilities)

    def _first_stage(self, model: TrainedModel) -> TrainedModel:
        kind = (model.trainer, model.plans, FIRST_STAGE)
        return next(m for m in self.models if (m.trainer, m.plans, m.configuration) == kind)

    def _information(self, group: str, several: bool) -> Path:
        """What nnU-Net notes about its choice, or the copy of it where the next choice would replace it."""
        name = f"inference_information__{group}.json" if several else "inference_information.json"
        return nnunet_folder("nnUNet_results") / self.dataset / name

    def _choice(self, group: str, models: Sequence[TrainedModel], several: bool) -> Step:
        folds = models[0].folds
        configurations = [model.configuration for model in models]
        command = (
            "nnUNetv2_find_best_configuration", self.number, "-c", *configurations, *self._names(models[0]),
            "-f", *map(str, folds),
        )  # fmt: skip
        note = self._information(group, False)
        copies = [_file_command("copy", note, self._information(group, True))] if several else []
        after = [f"train/{model.name}/fold_{fold}" for model in models for fold in folds]
        return Step(f"choose/{group}", (command, *copies), tuple(after))

    def _predictions(self, name: str) -> Path:
        return self.folder / "predictions" / name

    def _prediction(self, model: TrainedModel, probabilities: bool) -> Step:
        assert self.test is not None
        images, labels = map(str, self.test)
        output = str(self._predictions(model.name))
        after = [f"train/{model.name}/fold_{fold}" for fold in model.folds]
        stage: Command = ()
        if model.configuration == CASCADE:
            first = self._first_stage(model)
            stage = ("-prev_stage_predictions", str(self._predictions(first.name)))
            after.append(f"predict/{first.name}")
        predict = (
            "nnUNetv2_predict", "-d", self.number, "-i", images, "-o", output, "-c", model.configuration,
            *self._names(model), "-f", *map(str, model.folds), *self._device(), *stage,
            *(("--save_probabilities",) if probabilities else ()),
        )  # fmt: skip
        evaluate = (
            "nnUNetv2_evaluate_folder", labels, output, "-djfile", f"{output}/dataset.json", "-pfile",
            f"{output}/plans.json",
        )  # fmt: skip
        return Step(f"predict/{model.name}", (predict, evaluate), tuple(after), min(1, self._gpus(model)))

    def _best(self, group: str, models: Sequence[TrainedModel], several: bool) -> Step:
        chosen = {
            "information": str(self._information(group, several)),
            "predictions": {model.folder: str(self._predictions(model.name)) for model in models},
            "output": str(self._predictions(f"best__{group}")),
        }
        after = [f"choose/{group}", *(f"predict/{model.name}" for model in models)]
        return Step(f"best/{group}", (), tuple(after), chosen=chosen)

    def _comparisons(self) -> list[Step]:
        named = [m.folder if m.name == m.folder else f"{m.name}={m.folder}" for m in self.models]
        folds = [str(fold) for fold in self.models[0].folds]
        same = all(set(model.folds) == set(self.models[0].folds) for model in self.models)
        command = (
            "nnunet-din",
            "leaderboard",
            "-d",
            self.number,
            "--models",
            *named,
            *(("-f", *folds) if same else ()),
        )
        trained = [f"train/{model.name}/fold_{fold}" for model in self.models for fold in model.folds]
        steps = [Step("compare/crossval", (command,), tuple(trained))]
        if self.test:
            names = [model.name for model in self.models] + [f"best__{group}" for group in self.groups()]
            command = (
                "nnunet-din", "leaderboard", "--pred", *(f"{name}={self._predictions(name)}" for name in names),
                "--gt", str(self.test[1]), "-o", str(self.folder / "leaderboard_test"),
            )  # fmt: skip
            steps.append(Step("compare/test", (command,), tuple(f"best/{group}" for group in self.groups())))
        return steps


def crossval_folder(dataset: str) -> Path:
    """The folder of the cross-validation of a data set, beside nnU-Net's models."""
    return nnunet_folder("nnUNet_results") / dataset / "crossval"


def _data_of(plans: Mapping[str, Any], configuration: str) -> str:
    """Name of the folder with the preprocessed data of a configuration."""
    for name in ancestors(plans, configuration):
        if "data_identifier" in plans["configurations"][name]:
            return plans["configurations"][name]["data_identifier"]
    raise ValueError(f"Configuration '{configuration}' of the plans has no data_identifier.")


def _is_preprocessed(folder: Path, data: str) -> bool:
    """Whether every case is there. nnU-Net copies the true label maps last, and writes a case's properties last."""
    if not (folder / "dataset.json").is_file():
        return False
    ending = read_json(folder / "dataset.json")["file_ending"]
    truth = {path.name.removesuffix(ending) for path in (folder / "gt_segmentations").glob(f"*{ending}")}
    return bool(truth) and truth <= {path.stem for path in (folder / data).glob("*.pkl")}
