"""``nnunet-din profile``: what a network costs, counted and measured on this device."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nnunet_din.devices import usable_device
from nnunet_din.nnunet.configurations import PAPER_TABLES, network_arguments
from nnunet_din.nnunet.labels import number_of_channels, number_of_classes, read_dataset_json
from nnunet_din.nnunet.plans import read_plans, resolve
from nnunet_din.presets import PRESETS

_NETWORK = ".DualInteractionNetwork"


def add_parser(subparsers) -> None:
    """Add the sub-command ``profile`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "profile",
        help="what a network costs, counted and measured",
        description="Parameters and multiply-adds by part, time and memory of a forward pass and of a training step "
        "on this device. For a preset, or for a configuration of a plans file; or all of them in one table.",
    )
    parser.add_argument("plans", nargs="?", type=Path, metavar="PLANS.json", help="plans file of a DIN planner")
    parser.add_argument("configuration", nargs="?", default="2d", help="its configuration (default: 2d)")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="instead of plans (default: base)")
    parser.add_argument(
        "--all",
        action="store_true",
        help="a table in Markdown, counted, of every DIN configuration of the plans, or of the paper's tables at the "
        "size of the preset",
    )
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="EDGE", help="H W, or Z H W (default: the plans' patch, or 224 224)"
    )
    parser.add_argument("--batch", type=int, help="images a step (default: the plans' batch size, or 1)")
    parser.add_argument("--channels", type=int, help="of the original image (default: the plans' data set's, or 1)")
    parser.add_argument("--classes", type=int, help="default: those of the data set, or 4")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each kind (default: 3)")
    parser.add_argument("--device", help="default: cuda if there is one, or cpu")
    parser.add_argument("--count-only", action="store_true", help="measure nothing")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the network costs."""
    if args.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {args.repeats}.")
    for name in ("batch", "channels", "classes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if args.size and (len(args.size) not in (2, 3) or min(args.size) < 1):
        raise ValueError(f"--size takes two or three edges from 1 on, got {_text(args.size)}.")
    if args.plans is not None:
        _describe_data(args)
    args.channels, args.classes = args.channels or 1, args.classes or 4
    if args.all:
        if args.json:
            raise ValueError("--all prints a table in Markdown: leave out --json, or profile one configuration.")
        print(_all(args))
        return 0
    kwargs, size, batch = _what_to_profile(args)
    axes = len(kwargs["strides"][0]) if kwargs.get("strides") else 2
    if len(size) != axes:
        raise ValueError(f"--size takes {axes} edges for this network, got {_text(size)}.")
    device = None if args.count_only else usable_device(args.device)
    from nnunet_din.cost.measurement import count, expected_memory, measure

    shape = (batch, kwargs.get("versions", 2) * args.channels, *size)
    report = {
        "network": kwargs,
        "input_shape": list(shape),
        "parts": count(kwargs, args.channels, args.classes, size),
        "expected_training_memory_bytes": expected_memory(kwargs, args.channels, args.classes, shape),
    }
    if device is not None:
        report["measured"] = measure(kwargs, args.classes, shape, device, args.repeats)
    print(json.dumps(report, indent=2) if args.json else _table(report))
    return 0


def _all(args: argparse.Namespace) -> str:
    """Parameters and multiply-adds of every configuration, as a table in Markdown."""
    import pandas as pd

    from nnunet_din.cost.measurement import count
    from nnunet_din.evaluation.report import markdown_table

    if args.plans is None:
        base = _preset(args.preset)
        networks = {name: (network_arguments(base, *what), [224, 224]) for name, what in PAPER_TABLES.items()}
        networks = {"2d": (base, [224, 224]), **networks}
    else:
        manager = _read_plans(args)
        networks = {}
        for name in manager.available_configurations:
            configuration = manager.get_configuration(name)
            if configuration.network_arch_class_name.endswith(_NETWORK):
                networks[name] = (configuration.network_arch_init_kwargs, list(configuration.patch_size))
        if not networks:
            raise ValueError(f"{args.plans} has no DIN configuration: use plans made with -pl nnUNetPlannerDIN.")
    rows = []
    for name, (kwargs, size) in networks.items():
        if args.size and len(args.size) == len(size):
            size = args.size
        total = count(kwargs, args.channels, args.classes, size)["total"]
        rows.append(
            {
                "configuration": f"`{name}`",
                "parameters (M)": f"{total['parameters'] / 1e6:.2f}",
                "multiply-adds (G)": f"{total['multiply_adds'] / 1e9:.1f}",
                "as printed (G)": f"{total['literal_multiply_adds'] / 1e9:.1f}",
                "image": _text(size),
            }
        )
    return "\n".join(markdown_table(pd.DataFrame(rows)))


def _preset(name: str | None) -> dict:
    return dict(PRESETS[name or "base"])


def _describe_data(args: argparse.Namespace) -> None:
    """Check what the plans file says without loading anything large, and take channels and classes from the data set
    beside it, where they are not given.
    """
    if args.preset:
        raise ValueError("Give a plans file or --preset, not both.")
    plans = read_plans(args.plans)
    if not args.all:
        resolve(plans, args.configuration)
    description = args.plans.parent / "dataset.json"
    if description.is_file():
        content = read_dataset_json(description)
        args.channels = args.channels or number_of_channels(content)
        args.classes = args.classes or number_of_classes(content)
    args.channels = args.channels or len(plans.get("foreground_intensity_properties_per_channel", ()))


def _read_plans(args: argparse.Namespace):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(read_plans(args.plans))


def _what_to_profile(args: argparse.Namespace) -> tuple[dict, list[int], int]:
    """Find out what to profile: the network's keyword arguments, the size of an image, and the batch."""
    if args.plans is None:
        return _preset(args.preset), args.size or [224, 224], args.batch or 1
    manager = _read_plans(args)
    configuration = manager.get_configuration(args.configuration)
    if not configuration.network_arch_class_name.endswith(_NETWORK):
        raise ValueError(
            f"Configuration '{args.configuration}' of {args.plans} holds a {configuration.network_arch_class_name}, "
            "not a DualInteractionNetwork: use plans made with -pl nnUNetPlannerDIN."
        )
    return (
        configuration.network_arch_init_kwargs,
        args.size or list(configuration.patch_size),
        args.batch or configuration.batch_size,
    )


def _text(size) -> str:
    return " x ".join(map(str, size))


def _table(report: dict) -> str:
    n, _, *size = report["input_shape"]
    heads = f"{'part':<10} {'parameters':>12} {'multiply-adds':>14} {'as printed':>12}"
    lines = [f"{heads}   (one image of {_text(size)})"]
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
            reserved = row["reserved_memory_bytes"]
            lines.append(
                f"{name:<24} {row['seconds']:>9.3f} {low:>7.3f} to {high:<5.3f} {row['images_per_second']:>9.2f} "
                f"{row['peak_memory_bytes'] / 1e9:>9.2f} GB" + (f" ({reserved / 1e9:.2f} reserved)" if reserved else "")
            )
    return "\n".join(lines)
