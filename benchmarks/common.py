"""What the benchmarks share: the head of a result, its file, and plans that are not written to disk."""

from __future__ import annotations

import contextlib
import io
import json
import platform
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from tqdm import trange

from nnunet_din.cost.measurement import seconds_of
from nnunet_din.data.files import write_text


def head(device: str | torch.device) -> dict:
    """Command, date and machine."""
    script = Path(sys.argv[0])
    return {
        "command": " ".join([f"python benchmarks/{script.name}", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "torch": torch.__version__,
    }


def write(result: dict) -> None:
    """Write the result beside the script that is running."""
    write_text(Path(sys.argv[0]).resolve().with_suffix(".json"), json.dumps(result, indent=2) + "\n")


def append(result: dict) -> None:
    """Write the result to those beside the script that is running, in place of that of the same command."""
    path = Path(sys.argv[0]).resolve().with_suffix(".json")
    results = json.loads(path.read_text()) if path.exists() else []
    results = [other for other in results if other["command"] != result["command"]]
    write_text(path, json.dumps([*results, result], indent=2) + "\n")


def rounds(
    steps: Mapping[Hashable, Callable[[], object]], repeats: int, device: torch.device
) -> dict[Hashable, list[float]]:
    """Seconds of every step, one after the other in each round, after a round that is not timed."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in steps}
    for i in trange(repeats + 1, desc="rounds"):
        for name, step in steps.items():
            elapsed = seconds_of(step, device)
            if i:
                seconds[name].append(elapsed)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and range of the ratios pair by pair."""
    values = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def plan(planner: type, dataset: str, **kwargs) -> tuple[dict, str]:
    """The plans that a planner makes for a data set whose fingerprint is extracted, and what it prints; nothing is
    written.
    """

    class Planner(planner):
        def save_plans(self, plans):
            """Leave it out."""

    with contextlib.redirect_stdout(io.StringIO()) as output:
        plans = Planner(dataset, **kwargs).plan_experiment()
    recursive_fix_for_json_export(plans)  # numpy's numbers to Python's
    return plans, output.getvalue()
