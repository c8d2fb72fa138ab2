"""How long ``nnunet-din leaderboard`` takes for 200 volumes of 10 x 256 x 216 voxels with three structures.

Volumes are drawn (nested ellipsoids, predictions shifted and with ragged borders), written as NIfTI, and scored by the
command in a process of its own, start to end. Writes ``leaderboard.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from common import head, write
from tqdm import trange

SHAPE, SPACING = (10, 256, 216), (10.0, 1.5, 1.5)  # z, y, x


def draw(rng: np.random.Generator, centre: np.ndarray, radius: float, ragged: float) -> np.ndarray:
    """Three nested structures whose radius varies from voxel to voxel by ``ragged`` mm."""
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, SPACING, strict=True)), indexing="ij", sparse=True)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    distance = distance + rng.normal(0, ragged, SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    for value, share in ((1, 1.0), (2, 0.7), (3, 0.5)):
        label[distance < share * radius] = value
    return label


def save(label: np.ndarray, path: Path) -> None:
    """Write a label map."""
    image = sitk.GetImageFromArray(label)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path), True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="runs (default: 3)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        truth, predicted = Path(folder, "truth"), Path(folder, "predicted")
        truth.mkdir()
        predicted.mkdir()
        for i in trange(args.volumes, desc="drawing"):
            centre = np.array([45, 190, 160]) + rng.uniform(-20, 20, 3)
            radius = rng.uniform(50, 70)
            save(draw(rng, centre, radius, 0), truth / f"case_{i:03d}.nii.gz")
            save(draw(rng, centre + rng.normal(0, 2, 3), radius, 1), predicted / f"case_{i:03d}.nii.gz")
        labels = {"labels": {"background": 0, "outer": 1, "middle": 2, "inner": 3}, "file_ending": ".nii.gz"}
        Path(folder, "dataset.json").write_text(json.dumps(labels))
        seconds = []
        for i in range(args.repeats):
            command = [sys.executable, "-m", "nnunet_din.commands.main", "leaderboard", "--pred", f"model={predicted}"]
            command += ["--gt", str(truth), "-o", str(Path(folder, f"out{i}"))]
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - begin, 1))
    result = {"volumes": args.volumes, "processes": os.cpu_count(), "seconds": seconds}
    write(head("cpu") | result)
    print(f"{args.volumes} volumes: {statistics.median(seconds)} s ({min(seconds)} to {max(seconds)})")


if __name__ == "__main__":
    main()
