"""``nnunet-din import``: a model folder of nnU-Net from what ``nnunet-din export --format safetensors`` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers) -> None:
    """Add the sub-command ``import`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "import",
        help="make a model folder of nnU-Net from an export as safetensors",
        description="Compare a folder that `nnunet-din export --format safetensors` wrote with its manifest, and make "
        "a model folder of it, with checkpoints for nnUNetv2_predict and -pretrained_weights. A model that is there "
        "already is never overwritten.",
    )
    parser.add_argument("shared", type=Path, help="folder with manifest.json")
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        help="folder in which DATASET/TRAINER__PLANS__CONFIGURATION is made (default: nnUNet_results)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import and name the folder."""
    from nnunet_din.deployment.sharing import import_model
    from nnunet_din.nnunet.folders import nnunet_folder

    folder = import_model(args.shared, args.results or nnunet_folder("nnUNet_results"))
    print(f"Wrote {folder}")
    return 0
