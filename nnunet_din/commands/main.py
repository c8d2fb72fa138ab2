"""The command ``nnunet-din``: what nnU-Net's own commands do not do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nnunet_din import __version__
from nnunet_din.commands import (
    configure,
    convert,
    curves,
    demo,
    doctor,
    enhance,
    export,
    figure,
    import_model,
    leaderboard,
    predict,
    profile,
    train_zero_dce,
)

#: Each module adds its sub-command with ``add_parser(subparsers)`` and sets ``run``, a function of the parsed arguments
#: that returns the exit code.
COMMANDS = (
    doctor,
    enhance,
    train_zero_dce,
    profile,
    demo,
    convert,
    configure,
    leaderboard,
    figure,
    curves,
    predict,
    export,
    import_model,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="nnunet-din",
        description="Companion of the Dual Interaction Network plug-in for nnU-Net v2. Planning, training and "
        "prediction are nnU-Net's own commands: nnUNetv2_plan_and_preprocess -pl nnUNetPlannerDIN, "
        "nnUNetv2_train -tr nnUNetTrainerDIN -p nnUNetDINPlans, nnUNetv2_predict.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-din {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"nnunet-din {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
