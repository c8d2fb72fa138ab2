"""``nnunet-din corrupt``: bad images of known badness."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from nnunet_din.data.corruption import CORRUPTIONS, corrupt_file
from nnunet_din.data.progress import progress


def add_parser(subparsers) -> None:
    """Add the sub-command ``corrupt`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "corrupt",
        help="write noisy, blurred or otherwise bad versions of images",
        description="Corrupt images as they are stored; geometry and type of number are kept. These are the images "
        "that `nnunet-din robustness` predicts.",
    )
    parser.add_argument(
        "input", type=Path, metavar="IN", help="image that SimpleITK reads, or a folder of images CASE_0000.nii.gz"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write, or a folder if IN is one")
    parser.add_argument("--corruption", required=True, choices=CORRUPTIONS)
    parser.add_argument("--severity", required=True, type=int, choices=range(1, 6))
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--ct", action="store_true", help="intensities are Hounsfield units")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Corrupt the files that the arguments name."""
    pairs = [(args.input, args.output)]
    if args.input.is_dir():
        images = sorted(path for path in args.input.iterdir() if re.search(r"^[^.].*_\d{4}\.[^_]+$", path.name))
        if not images:
            raise FileNotFoundError(f"{args.input} holds no image called CASE_0000.nii.gz, CASE_0000.png or alike.")
        pairs = [(path, args.output / path.name) for path in images]
    for source, target in progress(pairs, desc="corrupting", unit="images"):
        corrupt_file(source, target, args.corruption, args.severity, args.seed, args.ct)
    print(f"Wrote {args.output}")
    return 0
