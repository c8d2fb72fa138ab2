"""What the fusions of ``fast`` cost: training steps and predictions of several, in images and in volumes.

Processor time, so that other programs beside do little. Writes ``fusions.json`` beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import head, write
from tqdm import trange

from nnunet_din.cost.accounting import count_multiply_adds, count_parameters
from nnunet_din.cost.measurement import TrainingStep
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.nnunet.configurations import network_arguments
from nnunet_din.presets import preset_for_volumes

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
        batch, *patch = shape
        count = {"parameters": count_parameters(network)}
        count["multiply_adds"] = count_multiply_adds(network, (1, 2, *patch))
        network.add_auxiliary_heads()
        x, target = torch.randn(batch, 2, *patch), torch.randint(0, 4, (batch, 1, *patch))
        steps[name], rows[name] = (TrainingStep(network, x, target), network, x), count
    times: dict = {name: {"step": [], "prediction": []} for name in VARIANTS}
    for i in trange(repeats + 1, desc="rounds"):
        for name, (step, network, x) in steps.items():
            network.deep_supervision = True
            seconds = {"step": processor_time(step)}
            network.eval()
            network.deep_supervision = False
            with torch.no_grad():
                seconds["prediction"] = processor_time(lambda network=network, x=x: network(x))
            for what, value in seconds.items():
                times[name][what] += [value] if i else []
    for name, of_it in times.items():
        for what, values in of_it.items():
            rows[name][f"{what}_ms"] = [round(1e3 * f(values)) for f in (min, statistics.median)]
    return rows


def processor_time(function) -> float:
    """Seconds of this process."""
    start = time.process_time()
    function()
    return time.process_time() - start


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
