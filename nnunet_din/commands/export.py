"""``nnunet-din export``: a trained model as files for programs without nnU-Net, or to give to others."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_din.commands.arguments import add_model_folder


def add_parser(subparsers) -> None:
    """Add the sub-command ``export`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained model as ONNX for other programs, or as safetensors to share",
        description="Write the network of each fold of a trained model as ONNX, for any batch, height and width, and "
        "model.json with everything else that a program needs to run it without nnU-Net: spacing, normalization, "
        "enhancement, patch, mirroring, labels. examples/onnx_predict.py is such a program. Or, with --format "
        "safetensors, write weights, plans, dataset.json, scores and a manifest of hashes, for `nnunet-din predict -m` "
        "and `nnunet-din import` of others; that works for nnU-Net's own models, too.",
    )
    add_model_folder(parser)
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--format", choices=("onnx", "safetensors"), default="onnx", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and name the files."""
    if args.format == "safetensors":
        from nnunet_din.deployment.sharing import share_model as write
    else:
        from nnunet_din.deployment.export import export_model as write

    paths = write(args.model, args.out, args.folds, args.checkpoint)
    for path in paths:
        print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
