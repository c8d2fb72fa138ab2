"""``nnunet-din profile``: what a network costs, counted and measured on this device."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from nnunet_din.commands.arguments import positive
from nnunet_din.nnunet.devices import usable_device


def add_parser(subparsers) -> None:
    """Add the sub-command ``profile`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "profile",
        help="what a network costs, counted and measured",
        description="Parameters and multiply-adds by part, time and memory of a forward pass and of a training step "
        "on this device. For a preset, or for a configuration of a plans file; or all of them in one table.",
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument("plans", nargs="?", type=Path, metavar="PLANS.json", help="plans file of a DIN planner")
    parser.add_argument("configuration", nargs="?", default="2d", help="its configuration (default: 2d)")
    network.add_argument("--preset", help="instead of plans: base, tiny, atto or fast (default: base)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="a table in Markdown, counted, of every DIN configuration of the plans, or of the paper's tables at the "
        "size of the preset",
    )
    parser.add_argument(
        "--size", type=positive, nargs="+", metavar="EDGE", help="H W, or Z H W (default: the plans' patch, or 224 224)"
    )
    parser.add_argument("--batch", type=positive, help="images a step (default: the plans' batch size, or 1)")
    parser.add_argument(
        "--channels", type=positive, help="of the original image (default: the plans' data set's, or 1)"
    )
    parser.add_argument("--classes", type=positive, help="default: those of the data set, or 4")
    parser.add_argument("--repeats", type=positive, default=3, help="measurements of each kind (default: 3)")
    parser.add_argument("--device", help="default: cuda if there is one, or cpu")
    parser.add_argument("--count-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the network costs, or what all of them cost."""
    from nnunet_din.diagnosis.profiling import Profile, networks_of_tables, planned_networks
    from nnunet_din.network.presets import get_preset

    changes = {"batch": args.batch, "channels": args.channels, "classes": args.classes}
    if args.all:
        networks = planned_networks(args.plans) if args.plans else networks_of_tables(args.preset or "base")
        rows = {name: _counted(profile.changed(**changes), args.size) for name, profile in networks.items()}
        print(json.dumps(rows, indent=2) if args.json else _table_of_all(rows))
        return 0
    if args.plans:
        profile = planned_networks(args.plans, args.configuration)[args.configuration]
    else:
        profile = Profile(get_preset(args.preset or "base"))
    profile = profile.changed(**changes, size=args.size)
    device = None if args.count_only else usable_device(args.device)
    report = {
        "network": profile.arguments,
        "input_shape": profile.input_shape,
        "parts": profile.parts(),
        "expected_training_memory_bytes": profile.expected_memory(),
    }
    if device is not None:
        report["measured"] = profile.measured(device, args.repeats)
    print(json.dumps(report, indent=2) if args.json else _table(report))
    return 0


def _counted(profile, size: list[int] | None) -> dict:
    """Size and totals of a network; another size is for networks with as many axes."""
    if size and len(size) == len(profile.size):
        profile = profile.changed(size=size)
    return {"size": profile.size, **profile.parts()["total"]}


def _table_of_all(rows: Mapping[str, Mapping]) -> str:
    lines = [
        "| configuration | parameters (M) | multiply-adds (G) | as printed (G) | image |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        printed, size = row["literal_multiply_adds"] / 1e9, " x ".join(map(str, row["size"]))
        counts = f"{row['parameters'] / 1e6:.2f} | {row['multiply_adds'] / 1e9:.1f} | {printed:.1f}"
        lines.append(f"| `{name}` | {counts} | {size} |")
    return "\n".join(lines)


def _table(report: Mapping) -> str:
    n, _, *size = report["input_shape"]
    lines = [f"{'part':<10} {'parameters':>12} {'multiply-adds':>14} {'as printed':>12}"]
    lines[0] += f"   (one image of {' x '.join(map(str, size))})"
    for part, row in report["parts"].items():
        numbers = (row["parameters"] / 1e6, row["multiply_adds"] / 1e9, row["literal_multiply_adds"] / 1e9)
        lines.append("{:<10} {:>10.2f} M {:>12.1f} G {:>10.1f} G".format(part, *numbers))
    memory = {name: f"{value / 1e9:.2f} GB" for name, value in report["expected_training_memory_bytes"].items()}
    lines.append(
        f"expected memory of a training step, batch {n}: {memory['fp32']} in fp32, {memory['half']} in half precision"
    )
    if "measured" in report:
        lines.append(f"\n{'batch of ' + str(n):<24} {'seconds':>9} {'spread':>16} {'images/s':>9} {'peak memory':>12}")
    for name, row in report.get("measured", {}).items():
        low, high = row["seconds_spread"]
        reserved = row["reserved_memory_bytes"]
        lines.append(
            f"{name:<24} {row['seconds']:>9.3f} {low:>7.3f} to {high:<5.3f} {row['images_per_second']:>9.2f} "
            f"{row['peak_memory_bytes'] / 1e9:>9.2f} GB" + (f" ({reserved / 1e9:.2f} reserved)" if reserved else "")
        )
    return "\n".join(lines)
