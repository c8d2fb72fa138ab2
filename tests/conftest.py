"""A small nnU-Net data set, planned and preprocessed in this process, for the tests of planners and trainers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

DATASET = "Dataset998_TestPhantom"


@pytest.fixture(scope="session")
def nnunet_folders(tmp_path_factory):
    """nnU-Net's three folders, in the environment for the whole session."""
    root = tmp_path_factory.mktemp("nnunet")
    before = {k: os.environ.get(k) for k in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA")}
    folders = {}
    for name in ("raw", "preprocessed", "results"):
        folders[name] = root / f"nnUNet_{name}"
        folders[name].mkdir()
        os.environ[f"nnUNet_{name}"] = str(folders[name])
    os.environ["nnUNet_n_proc_DA"] = "1"
    yield SimpleNamespace(**folders)
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def write_fingerprint(raw: Path, preprocessed: Path, relative_size: float = 1.0) -> None:
    """What nnUNetv2_extract_fingerprint writes, without its worker processes."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    dataset_json = json.loads((raw / "dataset.json").read_text())
    cases = list(get_filenames_of_train_images_and_targets(str(raw), dataset_json).values())
    reader = determine_reader_writer_from_dataset_json(dataset_json, cases[0]["images"][0], verbose=False)
    results = [DatasetFingerprintExtractor.analyze_case(c["images"], c["label"], reader) for c in cases]
    n_channels = len(dataset_json["channel_names"])
    intensities = [np.concatenate([r[2][c] for r in results]) for c in range(n_channels)]
    fingerprint = {
        "spacings": [list(map(float, r[1])) for r in results],
        "shapes_after_crop": [list(map(int, r[0])) for r in results],
        "foreground_intensity_properties_per_channel": {
            str(c): {
                "mean": float(v.mean()),
                "median": float(np.median(v)),
                "std": float(v.std()),
                "min": float(v.min()),
                "max": float(v.max()),
                "percentile_00_5": float(np.percentile(v, 0.5)),
                "percentile_99_5": float(np.percentile(v, 99.5)),
            }
            for c, v in enumerate(intensities)
        },
        "median_relative_size_after_cropping": relative_size,
    }
    preprocessed.mkdir(exist_ok=True)
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def preprocess(dataset: str, plans: dict, configuration: str = "2d") -> None:
    """What nnUNetv2_preprocess writes, in this process."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = Path(os.environ["nnUNet_raw"]) / dataset
    base = Path(os.environ["nnUNet_preprocessed"]) / dataset
    manager = PlansManager(plans)
    config = manager.get_configuration(configuration)
    out = base / config.data_identifier
    out.mkdir(exist_ok=True)
    preprocessor = config.preprocessor_class(verbose=False)
    dataset_json = json.loads((raw / "dataset.json").read_text())
    for case, files in get_filenames_of_train_images_and_targets(str(raw), dataset_json).items():
        preprocessor.run_case_save(str(out / case), files["images"], files["label"], manager, config, dataset_json)


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
