"""What the enhanced channels cost in preprocessing: ``nnUNetv2_preprocess`` with DIN's plans and with nnU-Net's own.

Plans both, then preprocesses the same configuration of both in turn, with the same number of processes, and compares
pair by pair. nnU-Net's three folders must be set and the data set's fingerprint extracted
(``nnUNetv2_extract_fingerprint -d ID``). Writes to ``preprocessing.json`` beside this file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from common import append, head, ratios


def run(command: str, *arguments: str) -> float:
    """Wall-clock seconds of one of nnU-Net's commands."""
    begin = time.perf_counter()
    subprocess.run([str(Path(sys.executable).parent / command), *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, help="ID of the data set")
    parser.add_argument("-c", default="2d", help="configuration (default: 2d)")
    parser.add_argument("-np", default="2", help="processes (default: 2)")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of runs (default: 2)")
    args = parser.parse_args()
    models = {"nnU-Net": ("ExperimentPlanner", "nnUNetPlans"), "DIN": ("nnUNetPlannerDINFast", "nnUNetDINFastPlans")}
    for planner, _ in models.values():
        run("nnUNetv2_plan_experiment", "-d", args.d, "-pl", planner)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.pairs):
        for name, (_, plans) in models.items():
            options = ("-d", args.d, "-plans_name", plans, "-c", args.c, "-np", args.np)
            seconds[name].append(run("nnUNetv2_preprocess", *options))
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    result = head("cpu") | {
        "seconds": {name: [round(s, 1) for s in values] for name, values in seconds.items()},
        "ratio": ratios(seconds["DIN"], seconds["nnU-Net"]),
    }
    append(result)
    print(f"DIN / nnU-Net: {result['ratio']}")


if __name__ == "__main__":
    main()
