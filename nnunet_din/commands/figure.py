"""``nnunet-din figure``: panels that compare the predictions of several models, case by case."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_din.commands.arguments import add_picture, add_trained_models, check_output, named_folders
from nnunet_din.data.files import refuse_overwriting
from nnunet_din.evaluation.comparison import Comparison, choose_cases, compare_folders, compare_models, read_row
from nnunet_din.plotting.panel import panel
from nnunet_din.plotting.style import save_figure

__all__ = ["add_parser", "run"]

_DPI = 300


def add_parser(subparsers) -> None:
    """Add the sub-command ``figure`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "figure",
        help="draw cases with the predictions of several models side by side",
        description="One case a row: image, enhanced image, the prediction of each model, and the ground truth. Yellow "
        "boxes mark where the models differ most from each other, or where one model differs from the truth. With -d "
        "or --plans the enhanced image is the one that the network gets, brought back to the grid of the image; "
        "without, the image is enhanced as it is stored.",
    )
    source = parser.add_argument_group("folders of images and predictions")
    source.add_argument("--images", type=Path, metavar="FOLDER", help="images, called CASE_0000.nii.gz and so on")
    source.add_argument("--gt", type=Path, metavar="FOLDER", help="true label maps; without them there is no Dice")
    source.add_argument(
        "--pred", nargs="+", action="extend", default=[], metavar="NAME=FOLDER", help="predictions of each model"
    )
    source.add_argument("--dataset-json", type=Path, metavar="FILE", help="names the labels (default: looked for)")
    source.add_argument("--plans", type=Path, metavar="FILE", help="plans of a DIN planner, for their enhancement")
    trained = parser.add_argument_group("or models that nnU-Net has trained, with their validation predictions")
    add_trained_models(trained)
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="default: best, median and worst Dice of model 1")
    parser.add_argument("--channel", type=int, default=0, metavar="N", help="channel to show (default: %(default)s)")
    parser.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        help="slice axis in the order z, y, x (default: the one of largest spacing)",
    )
    parser.add_argument(
        "--slice", type=int, metavar="K", help="slice, counted from 0 (default: the one where the models differ most)"
    )
    parser.add_argument("--style", choices=("filled", "contour"), default="filled", help="default: %(default)s")
    parser.add_argument(
        "--boxes", type=int, choices=range(10), default=1, metavar="N", help="boxes a case (default: %(default)s)"
    )
    parser.add_argument("--no-crop", action="store_true", help="show the whole slice, not only where structures are")
    add_picture(parser, "figure.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the figure that the arguments ask for."""
    check_output(args.output)
    if (args.dataset is None) == (not args.pred):
        raise ValueError("Give either -d with the number of a data set, or --images and --pred NAME=FOLDER.")
    comparison = _compare(args)
    files = [[*case.images, *case.predictions.values(), case.truth] for case in comparison.cases]
    refuse_overwriting([args.output], [file for of_case in files for file in of_case if file])
    rows = []
    for case, remark in choose_cases(comparison, bool(args.cases)):
        rows.append(read_row(case, comparison, remark, args.axis, args.slice, args.boxes, not args.no_crop))
        print(rows[-1]["name"])
    save_figure(panel(rows, comparison.names, args.style), args.output, dpi=_DPI)
    print(f"Wrote {args.output}")
    return 0


def _compare(args: argparse.Namespace) -> Comparison:
    if args.pred:
        if args.images is None:
            raise ValueError("--images FOLDER is missing: the images that were predicted.")
        if args.folds or args.models:
            raise ValueError("--models and -f go with -d, not with --pred.")
        folders = named_folders(args.pred, "--pred")
        return compare_folders(args.images, folders, args.gt, args.cases, args.channel, args.dataset_json, args.plans)
    if args.images or args.gt or args.dataset_json or args.plans:
        raise ValueError("With -d the images, labels and plans are nnU-Net's: leave out --images, --gt and their like.")
    return compare_models(args.dataset, args.models, args.folds, args.cases, args.channel)
