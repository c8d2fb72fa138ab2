"""The network against its literal twin: same weights, same machine, same precision (that of training), one run.

The peak memory of a training step of each, in a process of its own (what torch's allocator holds, and on Linux what the
process held); then forward passes and training steps (forward, loss, backward, AdamW) of both, in turn, so that a
machine that slows down slows both. Writes ``network.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import batch_of, head, ratios, write

from nnunet_din.diagnosis.measurement import Prediction, TrainingStep, peak_memory, seconds_in_turn
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.reference import ReferenceNetwork
from nnunet_din.nnunet.devices import autocast_dtype

CLASSES = 4


def build(preset: str, size: int, batch: int, device: torch.device, compiled: bool = False):
    """Both networks on the same parameters, compiled where asked, and a batch."""
    torch.manual_seed(0)
    ours = DualInteractionNetwork(1, CLASSES, **PRESETS[preset]).to(device)
    networks = {"literal": ReferenceNetwork(ours), "ours": ours}
    if compiled:
        networks = {name: torch.compile(network) for name, network in networks.items()}
    return networks, *batch_of((batch, size, size), 2, CLASSES, device)


def measure_memory(name: str, networks, x: torch.Tensor, target: torch.Tensor) -> dict:
    """The peak of the second training step of one network: allocator, process."""
    network = networks[name]
    step = TrainingStep(network, x, target, autocast_dtype(x.device))
    step()
    process = None
    if sys.platform == "linux" and x.device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        step()
        status = Path("/proc/self/status").read_text()
        process = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"allocator": peak_memory(step), "process": process}


def measure_speed(networks, x: torch.Tensor, target: torch.Tensor, repeats: int) -> dict:
    """Seconds of forward passes and training steps of both, in turn, and their ratios."""
    result = {}
    dtype = autocast_dtype(x.device)
    for kind in ("forward", "training step"):
        steps = {
            name: Prediction(network, x, dtype) if kind == "forward" else TrainingStep(network, x, target, dtype)
            for name, network in networks.items()
        }
        seconds = seconds_in_turn(steps, repeats, x.device)
        ratio = ratios(seconds["literal"], seconds["ours"])
        rounded = {name: [round(s, 5) for s in values] for name, values in seconds.items()}
        result[kind] = {"seconds": rounded, "literal / ours": ratio}
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--size", type=int, default=224, help="edge of the images (default: 224)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of each kind (default: 3)")
    parser.add_argument("--compile", action="store_true", help="compile both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory-of", choices=["literal", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    what = (args.preset, args.size, args.batch, torch.device(args.device), args.compile)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of, *build(*what))))
        return
    result = head(args.device)
    memory = {}
    for name in ("literal", "ours"):
        command = [sys.executable, "-W", "ignore", __file__, "--memory-of", name, "--device", args.device]
        command += ["--preset", args.preset, "--size", str(args.size), "--batch", str(args.batch)]
        command += ["--compile"] * args.compile
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        memory[name] = json.loads(output.splitlines()[-1])
    for kind in ("allocator", "process"):
        if memory["ours"][kind]:
            memory[f"ours / literal, {kind}"] = round(memory["ours"][kind] / memory["literal"][kind], 3)
    result["peak memory of a training step"] = memory
    print(f"peak memory of a training step: {json.dumps(memory)}")
    speed = measure_speed(*build(*what), args.repeats)
    for kind, row in speed.items():
        ratio = row["literal / ours"]
        print(f"{kind}: literal / ours {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    write(result | speed)


if __name__ == "__main__":
    main()
