"""What the enhanced channels cost in preprocessing: ``nnUNetv2_preprocess`` with DIN's plans and with nnU-Net's own.

Plans both, then preprocesses the 2-D configuration of both in turn, with the same number of processes, and compares
pair by pair. nnU-Net's three folders must be set and the data set's fingerprint extracted
(``nnUNetv2_extract_fingerprint -d ID``). Writes ``preprocessing.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path


def run(command: str, *arguments: str) -> float:
    """Wall-clock seconds of one of nnU-Net's commands."""
    begin = time.perf_counter()
    subprocess.run([str(Path(sys.executable).parent / command), *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, help="ID of the data set")
    parser.add_argument("-np", default="2", help="processes (default: 2)")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of runs (default: 2)")
    args = parser.parse_args()
    models = {"nnU-Net": ("ExperimentPlanner", "nnUNetPlans"), "DIN": ("nnUNetPlannerDINAtto", "nnUNetDINAttoPlans")}
    for planner, _ in models.values():
        run("nnUNetv2_plan_experiment", "-d", args.d, "-pl", planner)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.pairs):
        for name, (_, plans) in models.items():
            options = ("-d", args.d, "-plans_name", plans, "-c", "2d", "-np", args.np)
            seconds[name].append(run("nnUNetv2_preprocess", *options))
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    ratios = [din / stock for din, stock in zip(seconds["DIN"], seconds["nnU-Net"], strict=True)]
    result = {
        "command": f"python benchmarks/preprocessing.py -d {args.d} -np {args.np} --pairs {args.pairs}",
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "seconds": {name: [round(s, 1) for s in values] for name, values in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"DIN / nnU-Net: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
