"""``nnunet-din predict``: label maps of images, and pictures of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_din.commands.arguments import add_model_folder
from nnunet_din.data.files import refuse_overwriting

if TYPE_CHECKING:
    from nnunet_din.nnunet.prediction import Outcome, Prediction
    from nnunet_din.nnunet.predictor import TrainedModel


def add_parser(subparsers) -> None:
    """Add the sub-command ``predict`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "predict",
        help="predict images with a trained model, and draw what was predicted",
        description="Predict as nnUNetv2_predict does, in one process and case by case: what fails for one is said at "
        "the end and leaves the others alone. For many images on a GPU nnUNetv2_predict is faster. Weights are read "
        "without unpickling, from checkpoints, too.",
    )
    model = add_model_folder(parser)
    model.help = (
        "nnU-Net's model folder TRAINER__PLANS__CONFIGURATION, or what `nnunet-din export --format safetensors` wrote, "
        "which is compared with its manifest first"
    )
    parser.add_argument(
        "images", type=Path, nargs="+", help="first channels CASE_0000.nii.gz, the others beside them, or folders"
    )
    parser.add_argument("-o", dest="out", type=Path, default=Path(), metavar="FOLDER", help="default: this folder")
    parser.add_argument(
        "--png", action="store_true", help="also draw CASE_overlay.png: image, enhanced image, prediction"
    )
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda if there is one, or cpu")
    parser.add_argument("--no-mirroring", action="store_true", help="faster, a little less accurate")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict, draw, and name what failed."""
    from nnunet_din.nnunet.prediction import find_cases, predict_cases
    from nnunet_din.nnunet.predictor import read_model_folder

    model = read_model_folder(args.model, args.folds, args.checkpoint)
    cases = find_cases(args.images, model.dataset_json)
    names = ("plans.json", "dataset.json")
    refuse_overwriting([args.out / name for name in names], [args.model / name for name in names])
    if args.png:
        images = [file for files in cases.values() if isinstance(files, list) for file in files]
        refuse_overwriting([_picture_in(args.out, name) for name in cases], images)
    failed = {}
    for case in predict_cases(model, cases, args.out, args.device, not args.no_mirroring):
        if isinstance(case.result, Exception):
            failed[case.name] = f"was not predicted: {case.result}"
            continue
        print(f"Wrote {case.label_map}", flush=True)
        if args.png:
            try:
                print(f"Wrote {_draw(model, case, case.result)}", flush=True)
            except Exception as error:  # a picture is not worth the label maps that are left
                failed[case.name] = f"has no picture: {error}"
    for name, what in failed.items():
        print(f"{name} {what}", file=sys.stderr)
    if failed:
        print(f"nnunet-din predict: {len(failed)} of {len(cases)} cases failed.", file=sys.stderr)
    return 1 if failed else 0


def _picture_in(folder: Path, case: str) -> Path:
    return folder / f"{case}_overlay.png"


def _draw(model: TrainedModel, case: Outcome, predicted: Prediction) -> Path:
    from nnunet_din.data.images import read_case
    from nnunet_din.evaluation.comparison import rows_of_prediction
    from nnunet_din.nnunet.labels import label_names
    from nnunet_din.plotting.panel import panel
    from nnunet_din.plotting.style import save_figure

    enhanced = None
    if model.enhancements:
        enhanced = model.enhanced_on_image_grid(predicted.data, predicted.properties)[0]
    rows = rows_of_prediction(read_case(case.images, model.reader), predicted.labels, enhanced)
    picture = _picture_in(case.label_map.parent, case.name)
    return save_figure(panel(rows, label_names(model.dataset_json)), picture, dpi=150)
