"""What the fusions of ``fast`` cost: training steps and predictions of several, in images and in volumes.

Processor time, so that other programs beside do little. Writes ``fusions.json`` beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import batch_of, head, write

from nnunet_din.diagnosis.measurement import Prediction, TrainingStep, seconds_in_turn
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.cost import count_multiply_adds, count_parameters
from nnunet_din.network.presets import preset_for_volumes
from nnunet_din.planners.configurations import network_arguments

PAPER = {"fusion": "difm", "merging_convolution": "dense", "ffn_convolution": "dense", "joint_ffn": False}
#: Name -> what is set among the arguments of ``fast``.
VARIANTS: dict[str, dict] = {
    "fast": {},
    "fast, a feed-forward network for each direction": {"joint_ffn": False},
    "the paper's DIFM at every level": PAPER,
    "light DIFM at every level": {"fusion": "difm"},
    "concatenation at every level": {"fusion": "concat"},
    "original image alone": {"inputs": [0]},
}
#: Arguments of ``fast``, batch and patch: ACDC at 3 mm, and Hippocampus.
SHAPES = {
    "images": (PRESETS["fast"], (3, 128, 112)),
    "volumes": (preset_for_volumes("fast", [[1] * 3, *[[2] * 3] * 3], [[3] * 3] * 4), (2, 40, 56, 40)),
}


def measure(arguments: dict, shape: tuple[int, ...], repeats: int) -> dict[str, dict]:
    """Milliseconds of every variant: the shortest and the median of its steps and predictions, taken in turn."""
    steps, rows = {}, {}
    for name, changes in VARIANTS.items():
        torch.manual_seed(0)
        network = DualInteractionNetwork(1, 4, **network_arguments(arguments, changes))
        multiply_adds = count_multiply_adds(network, (1, 2, *shape[1:]))
        rows[name] = {"parameters": count_parameters(network), "multiply_adds": multiply_adds}
        network.add_auxiliary_heads()
        x, target = batch_of(shape, 2, 4)
        steps[name, "step"] = TrainingStep(network, x, target)
        steps[name, "prediction"] = Prediction(network, x)
    seconds = seconds_in_turn(steps, repeats, torch.device("cpu"), clock=time.process_time)
    for (name, what), values in seconds.items():
        rows[name][f"{what}_ms"] = [round(1e3 * f(values)) for f in (min, statistics.median)]
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    result: dict = head("cpu")
    for kind, (arguments, shape) in SHAPES.items():
        result[kind] = measure(arguments, shape, repeats)
        print(f"\n{kind}, batch and patch {shape}: shortest (median) of {repeats}\n")
        print(
            "| fusions | parameters | multiply-adds | step, ms | prediction, ms |\n| --- | ---: | ---: | ---: | ---: |"
        )
        for name, row in result[kind].items():
            cells = [f"{row['parameters'] / 1e6:.1f} M", f"{row['multiply_adds'] / 1e9:.2f} G"]
            cells += ["{} ({})".format(*row[f"{what}_ms"]) for what in ("step", "prediction")]
            print(f"| {name} | {' | '.join(cells)} |")
    write(result)


if __name__ == "__main__":
    main()
