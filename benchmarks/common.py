"""What the benchmarks share: the head of a result, its file, nnU-Net's training step, and plans that are not written
to disk.
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_din.data.files import write_text
from nnunet_din.diagnosis.measurement import TrainingStep


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


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and range of the ratios pair by pair."""
    values = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


class StockStep(TrainingStep):
    """A training step as nnUNetTrainer does it: Dice and cross-entropy of all outputs but the smallest, SGD."""

    moments = 1

    def make_optimizer(self) -> torch.optim.Optimizer:
        """SGD with nnU-Net's numbers."""
        return torch.optim.SGD(self.network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)

    def loss(self, output: Sequence[Tensor]) -> Tensor:
        """Weighted mean of the outputs' losses."""
        weights = [0.5**i for i in range(len(output) - 1)]
        losses = [
            weight * dice_and_cross_entropy(logits, F.interpolate(self.target.float(), size=logits.shape[2:]).long())
            for weight, logits in zip(weights, output[:-1], strict=True)
        ]
        return sum(losses) / sum(weights)


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """nnU-Net's loss of one output ``(N, K, *size)`` against labels ``(N, 1, *size)``."""
    p = logits.softmax(1)
    truth = torch.zeros_like(p).scatter_(1, labels, 1)[:, 1:]
    axes = [axis for axis in range(p.ndim) if axis != 1]
    overlap, volume = (p[:, 1:] * truth).sum(axes), (p[:, 1:].sum(axes) + truth.sum(axes))
    return F.cross_entropy(logits, labels[:, 0]) - ((2 * overlap + 1e-5) / (volume + 1e-5)).mean()


def batch_of(
    shape: Sequence[int], channels: int, classes: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random images ``(N, channels, *patch)`` and labels ``(N, 1, *patch)`` of a batch and patch."""
    n, *patch = shape
    x = torch.randn(n, channels, *patch, device=device)
    return x, torch.randint(0, classes, (n, 1, *patch), device=device)


def plan(planner: type, dataset: str, **kwargs) -> tuple[dict, str]:
    """The plans that a planner makes for a data set whose fingerprint is extracted, and what it prints; nothing is
    written.
    """
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    class Planner(planner):
        def save_plans(self, plans):
            """Leave it out."""

    with contextlib.redirect_stdout(io.StringIO()) as output:
        plans = Planner(dataset, **kwargs).plan_experiment()
    recursive_fix_for_json_export(plans)  # numpy's numbers to Python's
    return plans, output.getvalue()
