"""The planner's count of a training step's memory against the measured peak, for presets and patch and batch sizes.

On a GPU in bf16, by torch.cuda's own maximum; on a CPU in fp32, by what torch's allocator holds. Prints the ratio
measured / counted of each and the overhead factor that fits them best; writes ``memory.json`` beside this file.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from common import head, write
from tqdm import tqdm

from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.accounting import training_memory
from nnunet_din.profiling import peak_memory, training_step

CLASSES = 4
#: (height, width, batch); the larger ones are left out where they would exceed ``--limit``.
SHAPES = [(56, 40, 2), (56, 40, 8), (128, 112, 2), (128, 112, 4), (224, 224, 1), (224, 224, 2), (256, 216, 1)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--limit", type=float, default=14, help="leave out steps of more GB than this (default: 14)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    half = device.type == "cuda"
    rows = []
    cases = [(p, s, c) for p in args.presets for s in SHAPES for c in (False, True)]
    for preset, (height, width, batch), checkpointing in tqdm(cases):
        shape = (batch, 2, height, width)
        options = {**PRESETS[preset], "checkpointing": checkpointing}
        with torch.device("meta"):
            counted = training_memory(DualInteractionNetwork(1, CLASSES, **options), shape, half_precision=half)
        if counted > args.limit * 1e9:
            continue
        torch.manual_seed(0)
        network = DualInteractionNetwork(1, CLASSES, **options).to(device)
        x = torch.randn(*shape, device=device)
        target = torch.randint(0, CLASSES, (batch, 1, height, width), device=device)
        step = training_step(network, x, target, half)
        step()
        measured = peak_memory(step, network, device)
        row = {"preset": preset, "patch": [height, width], "batch": batch, "checkpointing": checkpointing}
        rows.append({**row, "counted": counted, "measured": measured, "ratio": round(measured / counted, 3)})
        tqdm.write(
            f"{preset:<5} {height} x {width}, batch {batch}, {'' if checkpointing else 'no '}checkpointing: "
            f"counted {counted / 1e9:.3f} GB, measured / counted {measured / counted:.3f}"
        )
    ratios = [row["ratio"] for row in rows]
    factor = math.exp(statistics.mean(math.log(r) for r in ratios))
    print(f"{len(rows)} cases: overhead {factor:.3f}, measured / counted {min(ratios)} to {max(ratios)}")
    write(head(device) | {"overhead": round(factor, 4), "cases": rows})


if __name__ == "__main__":
    main()
