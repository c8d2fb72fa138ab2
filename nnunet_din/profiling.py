"""``nnunet-din profile``: what a network costs, counted and measured on this device."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from nnunet_din.losses import DINLoss
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.accounting import count_parameters, multiply_adds_by_part, training_memory

#: Direct children of the network -> name in the report.
PARTS = {"encoders": "encoders", "difms": "DIFMs", "decoder": "decoder"}


def add_parser(subparsers) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "profile",
        help="what a network costs, counted and measured",
        description="Parameters and multiply-adds by part, time and memory of a forward pass and of a training step "
        "on this device. For a preset, or for a configuration of a plans file.",
    )
    parser.add_argument("plans", nargs="?", type=Path, metavar="PLANS.json", help="plans file of a DIN planner")
    parser.add_argument("configuration", nargs="?", default="2d", help="its configuration (default: 2d)")
    parser.add_argument("--preset", choices=list(PRESETS), help="a preset instead of plans (default: base)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="default: the plans' patch, or 224 224")
    parser.add_argument("--batch", type=int, help="images a step (default: the plans' batch size, or 1)")
    parser.add_argument("--channels", type=int, default=1, help="channels of the original image (default: 1)")
    parser.add_argument("--classes", type=int, default=4, help="classes (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each kind (default: 3)")
    parser.add_argument("--device", help="default: cuda if there is one, or cpu")
    parser.add_argument("--count-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    if args.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {args.repeats}.")
    kwargs, size, batch = _what_to_profile(args)
    shape = (batch, kwargs.get("versions", 2) * args.channels, *size)
    report = {
        "network": kwargs,
        "input_shape": list(shape),
        "parts": count(kwargs, args.channels, args.classes, size),
        "expected_training_memory_bytes": _expected_memory(kwargs, args.channels, args.classes, shape),
    }
    if not args.count_only:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        report["measured"] = measure(kwargs, args.classes, shape, device, args.repeats)
    print(json.dumps(report, indent=2) if args.json else _table(report))
    return 0


def count(kwargs: dict, channels: int, classes: int, size: Sequence[int]) -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of one image by part of the network; ``literal`` as the paper prints the decoder."""
    with torch.device("meta"):
        network = DualInteractionNetwork(channels, classes, **kwargs)
    multiply_adds = multiply_adds_by_part(network, (1, network.versions * channels, *size))
    decoded = [edge // kwargs.get("stem_stride", 1) for edge in size]
    parts: dict[str, dict[str, int]] = {}
    for child, part in PARTS.items():
        module = getattr(network, child)
        row = parts.setdefault(part, {"parameters": 0, "multiply_adds": 0, "literal_multiply_adds": 0})
        row["parameters"] += count_parameters(module)
        row["multiply_adds"] += multiply_adds[child]
        literal = getattr(module, "literal_multiply_adds", None)
        row["literal_multiply_adds"] += literal(decoded) if literal else multiply_adds[child]
    parts["total"] = {key: sum(row[key] for row in parts.values()) for key in parts["decoder"]}
    return parts


def measure(
    kwargs: dict, classes: int, shape: Sequence[int], device: torch.device, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds, images a second, and peak memory of a forward pass and of a training step, with and without
    checkpointing; in bf16 autocast on a GPU that has it, else in fp32.
    """
    torch.manual_seed(0)
    x = torch.randn(*shape, device=device)
    target = torch.randint(0, classes, (shape[0], 1, *shape[2:]), device=device)
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    report = {}
    with tqdm(total=3 * (repeats + 2), desc="measuring", leave=False) as progress:
        for checkpointing in (False, True):
            network = DualInteractionNetwork(
                shape[1] // kwargs.get("versions", 2), classes, **{**kwargs, "checkpointing": checkpointing}
            ).to(device)
            cases = {
                "training, checkpointing" if checkpointing else "training": training_step(network, x, target, half)
            }
            if not checkpointing:
                cases = {"prediction": prediction(network, x, half), **cases}
            for name, step in cases.items():
                step()  # warm-up
                progress.update()
                seconds = []
                for _ in range(repeats):
                    seconds.append(seconds_of(step, device))
                    progress.update()
                median = statistics.median(seconds)
                report[name] = {
                    "seconds": median,
                    "seconds_spread": [min(seconds), max(seconds)],
                    "images_per_second": shape[0] / median,
                    "peak_memory_bytes": peak_memory(step, network, device),
                }
                progress.update()
    return report


def prediction(network: nn.Module, x: torch.Tensor, half: bool = False) -> Callable[[], None]:
    """One forward pass in evaluation mode."""

    def step() -> None:
        network.eval()
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            network(x)

    return step


def training_step(network: nn.Module, x: torch.Tensor, target: torch.Tensor, half: bool = False) -> Callable[[], None]:
    """Forward pass, loss, backward pass, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=x.device.type in ("cuda", "cpu"))
    loss = DINLoss()

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            output = network(x)
        loss(output, target).backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    """Wall-clock seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak_memory(step: Callable[[], None], network: nn.Module, device: torch.device) -> int:
    """Bytes that torch's allocator holds at the peak of one call, weights and optimizer included."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    # The CPU's allocator keeps no count of its own: follow what the call allocates and frees. What was there before:
    # the weights, and AdamW's moments if the call trains. The gradients of the step before go now: the profiler does
    # not see the end of what it has not seen the beginning of.
    held = sum(p.nbytes for p in network.parameters())
    held += 2 * sum(p.nbytes for p in network.parameters() if p.grad is not None)
    network.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = peak = 0
    # The profiler's public tables give sums by operation, not the order of events.
    events = (e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return held + peak


def _what_to_profile(args: argparse.Namespace) -> tuple[dict, list[int], int]:
    """Keyword arguments of the network, size, batch."""
    if args.plans is None:
        return dict(PRESETS[args.preset or "base"]), args.size or [224, 224], args.batch or 1
    if args.preset:
        raise ValueError("Give a plans file or --preset, not both.")
    configurations = json.loads(args.plans.read_text())["configurations"]
    if args.configuration not in configurations:
        raise ValueError(
            f"{args.plans} has no configuration '{args.configuration}'. It has: {', '.join(configurations)}."
        )
    configuration = configurations[args.configuration]
    architecture = configuration["architecture"]
    if not architecture["network_class_name"].endswith(".DualInteractionNetwork"):
        raise ValueError(
            f"Configuration '{args.configuration}' of {args.plans} holds a {architecture['network_class_name']}, not "
            "a DualInteractionNetwork: use plans made with -pl nnUNetPlannerDIN."
        )
    return (
        architecture["arch_kwargs"],
        args.size or configuration["patch_size"],
        args.batch or configuration["batch_size"],
    )


def _expected_memory(kwargs: dict, channels: int, classes: int, shape: Sequence[int]) -> dict[str, int]:
    with torch.device("meta"):
        network = DualInteractionNetwork(channels, classes, **kwargs)
    return {"fp32": training_memory(network, shape), "half": training_memory(network, shape, half_precision=True)}


def _table(report: dict) -> str:
    n, _, h, w = report["input_shape"]
    lines = [f"{'part':<10} {'parameters':>12} {'multiply-adds':>14} {'as printed':>12}   (one image of {h} x {w})"]
    for part, row in report["parts"].items():
        numbers = (row["parameters"] / 1e6, row["multiply_adds"] / 1e9, row["literal_multiply_adds"] / 1e9)
        lines.append("{:<10} {:>10.2f} M {:>12.1f} G {:>10.1f} G".format(part, *numbers))
    expected = report["expected_training_memory_bytes"]
    lines.append(
        f"expected memory of a training step, batch {n}: {expected['fp32'] / 1e9:.2f} GB in fp32, "
        f"{expected['half'] / 1e9:.2f} GB in half precision"
    )
    if "measured" in report:
        lines.append(f"\n{'batch of ' + str(n):<24} {'seconds':>9} {'spread':>16} {'images/s':>9} {'peak memory':>12}")
        for name, row in report["measured"].items():
            low, high = row["seconds_spread"]
            lines.append(
                f"{name:<24} {row['seconds']:>9.3f} {low:>7.3f} to {high:<5.3f} {row['images_per_second']:>9.2f} "
                f"{row['peak_memory_bytes'] / 1e9:>9.2f} GB"
            )
    return "\n".join(lines)
