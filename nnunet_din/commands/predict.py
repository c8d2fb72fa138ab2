"""``nnunet-din predict``: label maps of images, and pictures of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_din.commands.arguments import add_model_folder
from nnunet_din.nnunet.labels import read_dataset_json
from nnunet_din.nnunet.plans import read_plans


def add_parser(subparsers) -> None:
    """Add the sub-command ``predict`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "predict",
        help="predict images with a trained model, and draw what was predicted",
        description="Predict as nnUNetv2_predict does, in one process and case by case: what fails for one is said at "
        "the end and leaves the others alone. For many images on a GPU nnUNetv2_predict is faster.",
    )
    add_model_folder(parser)
    parser.add_argument(
        "images", type=Path, nargs="+", help="first channels CASE_0000.nii.gz, the others beside them, or folders"
    )
    parser.add_argument("-o", dest="out", type=Path, default=Path(), metavar="FOLDER", help="default: this folder")
    parser.add_argument(
        "--png", action="store_true", help="also draw CASE_overlay.png: image, enhanced image, prediction"
    )
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    parser.add_argument("--no-mirroring", action="store_true", help="faster, a little less accurate")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict, draw, and name what failed."""
    from nnunet_din.nnunet.models import trained_folds
    from nnunet_din.nnunet.prediction import find_cases, predict_cases

    trained_folds(args.model, f"checkpoint_{args.checkpoint}.pth", args.folds)
    plans, dataset_json = read_plans(args.model / "plans.json"), read_dataset_json(args.model / "dataset.json")
    cases = find_cases(args.images, dataset_json)
    configuration = args.model.resolve().name.rpartition("__")[2]
    failed = {}
    results = predict_cases(
        args.model, cases, args.out, args.folds, args.checkpoint, args.device, not args.no_mirroring
    )
    for case in results:
        if case.error is not None:
            failed[case.name] = case.error
            continue
        print(f"Wrote {case.label_map}", flush=True)
        if args.png:
            print(f"Wrote {_draw(case, plans, configuration, dataset_json)}", flush=True)
    for name, error in failed.items():
        print(f"{name} was not predicted: {error}", file=sys.stderr)
    if failed:
        print(f"nnunet-din predict: {len(failed)} of {len(cases)} cases were not predicted.", file=sys.stderr)
    return 1 if failed else 0


def _draw(case, plans: dict, configuration: str, dataset_json: dict) -> Path:
    from nnunet_din.evaluation.comparison import rows_of_prediction
    from nnunet_din.nnunet.labels import label_names
    from nnunet_din.plotting.panel import panel
    from nnunet_din.plotting.style import save_figure

    rows = rows_of_prediction(case.images, case.label_map, plans, configuration, dataset_json)
    picture = case.label_map.with_name(f"{case.name}_overlay.png")
    return save_figure(panel(rows, label_names(dataset_json)), picture, dpi=150)
