"""A small nnU-Net data set, planned and preprocessed in this process, for the tests of planners and trainers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import pytest

from nnunet_dataset import SMALL_NETWORK, preprocess, write_fingerprint

DATASET = "Dataset998_TestPhantom"

# Workers of pytest-xdist share the cores; torch is not imported yet, and the commands that tests start inherit it.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

#: nnU-Net's three folders. nnunetv2 2.7 reads the environment once, when it is imported: before any test runs.
FOLDERS = {name: Path(mkdtemp(prefix=f"nnUNet_{name}_")) for name in ("raw", "preprocessed", "results")}
os.environ.update({f"nnUNet_{name}": str(folder) for name, folder in FOLDERS.items()}, nnUNet_n_proc_DA="1")


#: Files that take minutes: first, so that no worker is left with one of them while the others have nothing to do.
LONG_FILES = (
    "test_demo.py",
    "test_commands.py",
    "test_network.py",
    "test_parts.py",
    "test_crossval.py",
    "test_deployment.py",
    "test_leaderboard.py",
    "test_planner.py",
    "test_profiling.py",
    "test_trainer.py",
)


def pytest_configure(config):
    """Keep the order of the files where workers get whole files (pytest-xdist reorders them by number of tests)."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest."""
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_sessionfinish():
    """Remove the folders."""
    for folder in FOLDERS.values():
        shutil.rmtree(folder, ignore_errors=True)


#: What a sitecustomize.py says to fork nnU-Net's workers: a spawned one imports torch again, for ten seconds or more.
FORKED_WORKERS = """\
import multiprocessing
context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: context("fork" if method == "spawn" else method)
"""


@pytest.fixture(scope="session")
def forked_workers(tmp_path_factory):
    """A folder for PYTHONPATH, with which nnU-Net's commands fork their workers."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(FORKED_WORKERS)
    return folder


@pytest.fixture(scope="session")
def nnunet_folders():
    """nnU-Net's three folders, as the environment names them."""
    return SimpleNamespace(**FOLDERS)


@pytest.fixture(scope="session")
def dataset(nnunet_folders):
    """The phantom as a data set: raw, atto plans, preprocessed 2d configuration."""
    from nnunet_din.data import write_dataset
    from nnunet_din.planners.din_planners import nnUNetPlannerDINAtto

    raw = nnunet_folders.raw / DATASET
    write_dataset(raw, train=5, test=1, size=40, slices=4)
    preprocessed = nnunet_folders.preprocessed / DATASET
    write_fingerprint(raw, preprocessed)
    plans = nnUNetPlannerDINAtto(DATASET).plan_experiment()
    preprocess(DATASET, plans)
    return SimpleNamespace(
        name=DATASET, raw=raw, preprocessed=preprocessed, dataset_json=json.loads((raw / "dataset.json").read_text())
    )


@pytest.fixture
def plans(dataset):
    """A fresh copy of the data set's plans, as nnUNetv2_train hands them to a trainer."""
    plans = json.loads((dataset.preprocessed / "nnUNetDINAttoPlans.json").read_text())
    return {**plans, "continue_training": False}


@pytest.fixture
def model(tmp_path, dataset, plans):
    """Makes a model folder with networks that were not trained, and returns it."""
    import torch

    from nnunet_din.network import DualInteractionNetwork

    def make(folds=(0,), regions=False, mirroring=(0, 1), enhancement=None, arguments=None, **changes):
        configuration = plans["configurations"]["2d"]
        configuration.update(patch_size=[32, 48], spacing=[1.5, 1.2], **changes)
        configuration["architecture"]["arch_kwargs"] = {**SMALL_NETWORK, **(arguments or {})}
        if enhancement:
            configuration["enhancement"] = enhancement
        dataset_json = dict(dataset.dataset_json)
        if regions:
            dataset_json["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "spot": 3}
            dataset_json["regions_class_order"] = [1, 2, 3]
        folder = tmp_path / "nnUNetTrainerDIN__nnUNetDINAttoPlans__2d"
        folder.mkdir()
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
        for fold in folds:
            (folder / f"fold_{fold}").mkdir()
            torch.manual_seed(0 if fold == "all" else int(fold))
            weights = DualInteractionNetwork(1, 3 if regions else 4, **configuration["architecture"]["arch_kwargs"])
            arguments = {"configuration": "2d", "plans": plans, "fold": fold, "dataset_json": dataset_json}
            torch.save(
                {
                    "network_weights": weights.state_dict(),
                    "trainer_name": "nnUNetTrainerDIN",
                    "init_args": arguments,
                    "inference_allowed_mirroring_axes": mirroring,
                },
                folder / f"fold_{fold}" / "checkpoint_final.pth",
            )
        return folder

    return make
