"""The studies: their settings name what exists, seeds of one model share a row."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import nnunetv2
import pytest
from nnunetv2.utilities import find_class_by_name

from nnunet_din.planners.configurations import PAPER_TABLES

FOLDER = Path(__file__).parents[1] / "benchmarks"
SETTINGS = [
    "acdc/cpu.json", "acdc/gpu.json", "acdc/volumes.json", "hippocampus/cpu.json", "hippocampus/cpu20.json",
    "nuclei/cpu20.json",
]  # fmt: skip
RESULTS = [(name, path) for name in SETTINGS for path in sorted((FOLDER / name).with_suffix("").glob("*.json"))]


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["study"]


def settings_and_runs(name):
    settings = json.loads((FOLDER / name).read_text())
    return settings, [{**settings["defaults"], **run} for run in settings["runs"]]


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_name_what_exists(name):
    settings, runs = settings_and_runs(name)
    trainers = str(Path(nnunetv2.__file__).parent / "training" / "nnUNetTrainer")
    configurations = {
        (plans, configuration)
        for plans, arguments in settings["plans"].items()
        for configuration in ("2d", "3d_fullres")
        if configuration in (arguments if "-c " in arguments else "2d").split()
    }
    for command in settings.get("configure", []):
        words = shlex.split(command)
        plans = words[words.index("-p") + 1]
        names = PAPER_TABLES if "--paper-tables" in words else [words[words.index("--name") + 1]]
        configurations |= {(plans, configuration) for configuration in names}
    for run in runs:
        found = find_class_by_name.recursive_find_python_class(
            trainers, run["trainer"], "nnunetv2.training.nnUNetTrainer"
        )
        assert found is not None and found.__name__ == run["trainer"]
        assert (run["plans"], run["configuration"]) in configurations
        assert ("minutes" in run) != ("iterations" in run)
        if "DIN" in run["trainer"]:
            assert all(hasattr(found, attribute) for attribute in run["set"])


@pytest.mark.parametrize("name", SETTINGS)
def test_every_run_has_a_folder_of_its_own(study, name):
    _, runs = settings_and_runs(name)
    assert len({study.class_name(run) for run in runs}) == len(runs)


@pytest.mark.parametrize("name", SETTINGS)
def test_only_seeds_share_a_label(name):
    """Fails if the table would take two different models for two seeds of one."""
    _, runs = settings_and_runs(name)
    first = {}
    for run in runs:
        model = {key: value for key, value in run.items() if key not in ("name", "seed")}
        assert first.setdefault(run["label"], model) == model


@pytest.mark.parametrize(("name", "path"), RESULTS, ids=[f"{Path(n).parent}-{path.stem}" for n, path in RESULTS])
def test_results_are_of_the_settings(name, path):
    settings, runs = settings_and_runs(name)
    result = json.loads(path.read_text())
    assert result["run"] in [*runs, *settings.get("ensembles", [])]
    assert result["run"]["name"] == path.stem


@pytest.mark.parametrize("name", SETTINGS)
def test_ensembles_are_of_runs(study, name):
    settings, runs = settings_and_runs(name)
    members = {member for ensemble in settings.get("ensembles", []) for member in ensemble["members"]}
    assert members <= {run["name"] for run in runs}
    assert not members or study.Study.of(settings).test, "there are probabilities of test cases only"


def test_seeds_share_a_row(study):
    def result(seed, mean):
        return {
            "run": {"label": "a", "seed": seed},
            "scores": {"Dice": {"RV": mean, "MYO": mean, "LV": mean, "mean": mean}},
            "iterations": 500,
            "training_minutes": 12,
            "seconds_per_epoch": 70,
        }

    lines = study.table([result(0, 0.5), result(1, 0.7)]).splitlines()
    assert len(lines) == 3
    assert "60.00 (50.00 to 70.00)" in lines[-1]
