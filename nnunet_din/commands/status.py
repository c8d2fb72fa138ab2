"""``nnunet-din status``: how far the trainings of a data set are."""

from __future__ import annotations

import argparse

from nnunet_din.commands.arguments import add_trained_models


def add_parser(subparsers) -> None:
    """Add the sub-command ``status`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "status",
        help="how far the trainings of a data set are",
        description="Print a line for every fold: done, running, failed, interrupted or missing; epochs, pseudo Dice, "
        "seconds per epoch and the time left, from nnU-Net's own logs. Trainings that were started by hand are there, "
        "too; whether these run is told by the age of their logs.",
    )
    add_trained_models(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from nnunet_din.runs.crossval.state import states_of, table

    if args.dataset is None:
        raise ValueError("Say which data set: -d ID.")
    print(table(states_of(args.dataset, args.models, args.folds)))
    return 0
