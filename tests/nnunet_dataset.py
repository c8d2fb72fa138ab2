"""What nnU-Net's commands write, made in this process and without their worker processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

#: The least network that has every part.
SMALL_NETWORK = {"encoder": "plain_atto", "decoder_channels": 16, "stem_stride": 2, "upsampling": "pixel_shuffle"}


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


def save_image(path: Path, spacing=(1.3, 1.1, 6.0), border=0, seed=0) -> Path:
    """Write a smooth random volume, 0 to 255, of which ``border`` pixels at the top and at the right are empty."""
    data = np.random.default_rng(seed).gamma(4, 30, size=(5, 50, 61))
    data = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(data), 2.0))
    if border:
        data[:, :border] = data[:, :, -border:] = data[0] = 0
    image = sitk.GetImageFromArray(data.clip(0, 255).astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin((3, -7, 11))
    sitk.WriteImage(image, str(path))
    return path
