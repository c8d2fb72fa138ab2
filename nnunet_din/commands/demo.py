"""``nnunet-din demo``: from raw data to segmented test cases with nnU-Net's own commands, in a few minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_din.runs.demo import run_demo


def add_parser(subparsers) -> None:
    """Add the sub-command ``demo`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "demo",
        help="train and test DIN on a small synthetic data set",
        description="Draw a synthetic cardiac MR data set, then plan, train, predict and evaluate DIN on it with "
        "nnU-Net's own commands. Takes a few minutes on two CPU cores and needs no download.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("nnunet_din_demo"),
        metavar="FOLDER",
        help="where to write (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="RAW_FOLDER",
        help="raw nnU-Net data set DatasetXXX_Name to use instead of the phantom; it is only read",
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, or cpu")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantom (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    run_demo(args.folder, data=args.data, device=args.device, seed=args.seed)
    return 0
