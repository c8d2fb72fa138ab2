"""``nnunet-din robustness``: trained models on bad images."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import date
from pathlib import Path

from nnunet_din.commands.arguments import add_trained_models
from nnunet_din.data.corruption import CORRUPTIONS
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.models import named_models


def add_parser(subparsers) -> None:
    """Add the sub-command ``robustness`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "robustness",
        help="score and compare trained models on noisy, blurred and otherwise bad images",
        description="Corrupt the validation images of a data set as they are stored, predict them with trained models "
        "(any trainer, plans and configuration, nnU-Net's own included), and write tables, statistics and plots. "
        "Started again, it computes only what is new.",
    )
    add_trained_models(parser)
    parser.add_argument(
        "--test", action="store_true", help="imagesTs and labelsTs, predicted by a model's folds together"
    )
    parser.add_argument(
        "--corruptions",
        nargs="+",
        choices=CORRUPTIONS,
        metavar="NAME",
        default=[],
        help=f"of {', '.join(CORRUPTIONS)} (default: those that make sense for the data set, without TorchIO's)",
    )
    parser.add_argument("--severities", nargs="+", type=int, choices=range(1, 6), default=[1, 2, 3, 4, 5])
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions (default: 0)")
    parser.add_argument("--baseline", metavar="MODEL", help="model that the others are compared with (default: first)")
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="cases in whose names this matches the same text are one unit in tests and intervals",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: cuda if there is one, or cpu)")
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FOLDER", help="default: robustness/ in the data set's results folder"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report that the arguments ask for."""
    from nnunet_din.evaluation.robustness import find_study, score_study
    from nnunet_din.evaluation.robustness_report import RobustnessReport, draw_typical_case
    from nnunet_din.evaluation.statistics import check_choices

    if args.dataset is None:
        raise ValueError("Say which data set the models were trained on: -d ID.")
    study = find_study(
        args.dataset,
        named_models(args.dataset, args.models),
        args.folds,
        args.test,
        args.device,
        corruptions=args.corruptions,
        severities=sorted(set(args.severities)),
        seed=args.seed,
    )
    check_choices([case.name for case in study.cases], study.models, args.baseline, args.group_by)
    for sentence in study.missing:
        print(f"MISSING: {sentence}", file=sys.stderr)
    output = args.output or nnunet_folder("nnUNet_results") / dataset_name(args.dataset) / "robustness"
    cache = output / "scored_cases.jsonl"
    report = RobustnessReport(
        title=dataset_name(args.dataset),
        scores=score_study(study, cache),
        baseline=args.baseline or study.models[0],
        missing=study.missing,
        group_by=args.group_by,
        seed=args.seed,
        command="nnunet-din " + shlex.join(sys.argv[1:]),
        day=date.today().isoformat(),
    )
    written = report.write(output, draw_typical_case(report, study, cache, output / "case.png"))
    print(report.overview())
    print("\nWrote " + ", ".join(str(path) for path in written))
    return 0
