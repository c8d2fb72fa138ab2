"""``nnunet-din train-zero-dce``: weights of the enhancement Zero-DCE, fitted to the images of a raw data set."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.enhancement.intensity import INTENSITIES
from nnunet_din.nnunet.devices import usable_device
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder, weights_file
from nnunet_din.planners.slices import training_slices


def add_parser(subparsers) -> None:
    """Add the sub-command ``train-zero-dce`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "train-zero-dce",
        help="fit the enhancement Zero-DCE to a data set",
        description="Fit the network of Zero-DCE, which brightens each pixel by a curve of its own, to the training "
        "images of a raw data set. Labels are not read. The default is meant for a GPU; on a CPU with two cores, "
        "`--size 64 --batch 4 --iterations 500` takes one to two minutes.",
    )
    parser.add_argument("-d", dest="dataset", metavar="ID", required=True, help="number or name of the data set")
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="FILE",
        help="weights to write (default: zero_dce.pth in the data set's folder in $nnUNet_preprocessed)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--iterations", type=int, default=10_000, metavar="N", help="steps of the optimizer (default: %(default)s)"
    )
    length.add_argument("--epochs", type=int, metavar="N", help="instead: how often the slices are gone through")
    parser.add_argument(
        "--size", type=int, default=128, metavar="N", help="pixels of the square crops (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="crops in a step (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: cuda if there is one, or cpu")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="overwrite weights that exist")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit, write the weights, and say how to use them."""
    name = dataset_name(args.dataset)
    output = args.output or weights_file(name)
    if output.exists() and not args.force:
        raise ValueError(f"{output} exists: name another file with -o, or overwrite it with --force.")
    raw = nnunet_folder("nnUNet_raw") / name
    refuse_overwriting([output], raw.rglob("*"))
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {args.epochs}.")

    device = usable_device(args.device)
    slices, color = training_slices(raw, size=args.size, seed=args.seed)

    from nnunet_din.data.weight_files import write_checkpoint
    from nnunet_din.enhancement.zero_dce import zero_dce_parameters
    from nnunet_din.network.alternatives.zero_dce import fit_zero_dce

    iterations = math.ceil(args.epochs * len(slices) / args.batch) if args.epochs else args.iterations
    fit = fit_zero_dce(slices, iterations, size=args.size, batch=args.batch, device=device, seed=args.seed)
    write_checkpoint(fit.network.state_dict(), output)

    parameters = zero_dce_parameters(output)
    entry = {"enhancement": {"method": "zero_dce", **parameters, **INTENSITIES, "color": color}}
    print(
        f"{name}: {len(slices)} slices {'in colour' if color else 'of one channel'}, "
        f"{iterations} steps of {args.batch} crops of {fit.size} x {fit.size} on {device}\n"
        f"Mean loss {fit.loss_before:.4f} before, {fit.loss_after:.4f} after\n"
        f"Wrote {output}\n"
        f"sha256 {parameters['sha256']}\n"
        f"In the plans: {json.dumps(entry)}\n"
        f"Next: nnunet-din configure -d {args.dataset} -p nnUNetDINPlans --from 2d --name 2d_zero_dce "
        "--enhancement zero_dce\n"
        "Predicting needs the same file at the same place: copy it along with the model."
    )
    return 0
