"""The planner's count of a training step's memory against the measured peak, for presets and patch and batch sizes.

In what training computes in, by torch.cuda's own maximum on a GPU and by what torch's allocator holds on a CPU. Prints
the ratio measured / counted of each and the overhead factor that fits them best; writes ``memory.json`` beside this
file after every case, and leaves out those that are in it already (``--again`` does not).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common import head, write
from tqdm import tqdm

from nnunet_din.cost.accounting import training_memory
from nnunet_din.cost.measurement import TrainingStep, peak_memory
from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride
from nnunet_din.nnunet.training_device import autocast_dtype

CLASSES = 4
#: (height, width, batch), rounded up to what the network takes; those over ``--limit`` are left out.
SHAPES = [(56, 40, 2), (56, 40, 8), (128, 112, 2), (128, 112, 4), (224, 224, 1), (224, 224, 2), (256, 216, 1)]


def measure(row: dict, limit: float, device: torch.device) -> dict | None:
    """The row with counted and measured GB; None where the count is over the limit."""
    dtype = autocast_dtype(device)
    shape = (row["batch"], 2, *row["patch"])
    options = {**PRESETS[row["preset"]], "checkpointing": row["checkpointing"]}
    with torch.device("meta"):
        counted = training_memory(
            DualInteractionNetwork(1, CLASSES, **options), shape, half_precision=dtype is not None
        )
    if counted > limit * 1e9:
        return None
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, CLASSES, **options).to(device)
    x = torch.randn(*shape, device=device)
    target = torch.randint(0, CLASSES, (shape[0], 1, *shape[2:]), device=device)
    step = TrainingStep(network, x, target, dtype)
    step()
    measured = peak_memory(step, network, device)
    gigabytes = {"counted_gb": round(counted / 1e9, 3), "measured_gb": round(measured / 1e9, 3)}
    return {**row, **gigabytes, "ratio": round(measured / counted, 3)}


def cases(presets: Sequence[str]) -> Iterator[dict]:
    """Every preset with every shape, with checkpointing and without."""
    for preset, (height, width, batch), checkpointing in itertools.product(presets, SHAPES, (False, True)):
        stride = input_stride(**PRESETS[preset])
        patch = [stride * math.ceil(edge / stride) for edge in (height, width)]
        yield {"preset": preset, "patch": patch, "batch": batch, "checkpointing": checkpointing}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--limit", type=float, default=14, help="leave out steps of more GB than this (default: 14)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    args = parser.parse_args()
    device = torch.device(args.device)
    path = Path(__file__).with_suffix(".json")
    rows = json.loads(path.read_text())["cases"] if path.exists() and not args.again else []
    for case in tqdm(list(cases(args.presets))):
        if any(case.items() <= row.items() for row in rows) or (row := measure(case, args.limit, device)) is None:
            continue
        rows.append(row)
        tqdm.write(
            f"{row['preset']:<5} {row['patch'][0]} x {row['patch'][1]}, batch {row['batch']}, "
            f"{'' if row['checkpointing'] else 'no '}checkpointing: counted {row['counted_gb']} GB, measured / counted "
            f"{row['ratio']}"
        )
        ratios = [row["ratio"] for row in rows]
        factor = math.exp(statistics.mean(math.log(r) for r in ratios))
        write(head(device) | {"overhead": round(factor, 4), "cases": rows})
    ratios = [row["ratio"] for row in rows]
    factor = math.exp(statistics.mean(math.log(r) for r in ratios))
    print(f"{len(rows)} cases: overhead {factor:.3f}, measured / counted {min(ratios)} to {max(ratios)}")


if __name__ == "__main__":
    main()
