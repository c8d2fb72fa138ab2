"""``nnunet-din leaderboard``: score, rank and compare the models of a data set."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from nnunet_din.commands.arguments import add_trained_models, named_folders
from nnunet_din.evaluation.collection import collect_cross_validation, collect_predictions
from nnunet_din.evaluation.metrics import TOLERANCE
from nnunet_din.evaluation.published import PUBLISHED
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.labels import read_labels
from nnunet_din.nnunet.models import find_models, named_models


def add_parser(subparsers) -> None:
    """Add the sub-command ``leaderboard`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "leaderboard",
        help="score, rank and compare the models of a data set",
        description="Score the cross-validation predictions of every trained model of a data set (any trainer, plans "
        "and configuration, nnU-Net's own included), or folders of predictions, and write tables, statistics and "
        "plots. Started again, it scores only what is new.",
    )
    source = parser.add_argument_group("what to score")
    add_trained_models(source)
    source.add_argument(
        "--pred",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FOLDER",
        help="folders of predictions to score against --gt, in place of cross-validation",
    )
    source.add_argument("--gt", type=Path, metavar="FOLDER", help="true label maps for --pred")
    source.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="names the structures (default: that of a model, of the predictions, or beside --gt)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="[STRUCTURE=]MM",
        help=f"tolerance of NSD in mm, for all structures or for one (default: {TOLERANCE:g})",
    )
    how.add_argument("--reference", metavar="MODEL", help="model that the others are compared with (default: the best)")
    how.add_argument(
        "--group-by",
        metavar="REGEX",
        help="cases in whose names this matches the same text are one unit in tests, intervals and ranks, for example "
        r"'patient\d+' for ACDC's two phases",
    )
    how.add_argument(
        "--protocol",
        choices=("merit",),
        help="add Dice and HD95 as the published 2-D comparisons on ACDC and Synapse compute them",
    )
    how.add_argument("--published", choices=PUBLISHED, help="show the published rows of the paper, marked as such")
    how.add_argument(
        "--leave-out-invalid",
        action="store_true",
        help="name cases that cannot be scored (damaged, in another place, unknown labels) and go on without them; "
        "default: an error",
    )
    how.add_argument("--resamples", type=int, default=2000, help="bootstrap samples (default: 2000)")
    how.add_argument("-np", dest="processes", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="FOLDER", help="default: leaderboard/ in the data set's results folder"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the leaderboard that the arguments ask for."""
    from nnunet_din.evaluation.leaderboard import Leaderboard
    from nnunet_din.evaluation.scoring import score_cases
    from nnunet_din.evaluation.statistics import check_choices

    if bool(args.pred) != bool(args.gt):
        raise ValueError("--pred and --gt belong together: predictions are scored against true label maps.")
    if not args.pred and args.dataset is None:
        raise ValueError("Say what to score: -d ID, or --pred NAME=FOLDER --gt FOLDER.")
    if args.pred and (args.models or args.folds):
        raise ValueError("--models and -f choose cross-validation predictions: leave them out with --pred.")
    if args.resamples < 100:
        raise ValueError(f"--resamples must be at least 100, got {args.resamples}.")
    models = {} if args.pred else named_models(args.dataset, args.models, short=False)
    labels = read_labels(args.dataset_json or _dataset_json(args))
    tolerances = _tolerances(args.tolerance, labels.structures)
    if args.pred:
        collection = collect_predictions(named_folders(args.pred, "--pred"), args.gt, labels.file_ending)
    else:
        collection = collect_cross_validation(args.dataset, labels, models, args.folds)
    if not collection.cases:
        raise ValueError(
            f"There is nothing to score for {args.dataset}: {'; '.join(collection.missing) or 'no fold was begun'}. "
            "nnUNetv2_train writes the predictions when it ends; `nnUNetv2_train ... --val` repeats that."
        )
    check_choices(
        [case.case for case in collection.cases],
        [case.model for case in collection.cases],
        args.reference,
        args.group_by,
    )
    for sentence in collection.missing:
        print(f"MISSING: {sentence}", file=sys.stderr)
    results = nnunet_folder("nnUNet_results") / dataset_name(args.dataset) if args.dataset else Path()
    output = args.output or results / "leaderboard"
    cases, errors = score_cases(
        collection.cases,
        labels,
        tolerances,
        output / "scored_cases.jsonl",
        merit=args.protocol == "merit",
        processes=args.processes,
    )
    if errors and (not args.leave_out_invalid or cases.empty):
        more = f" (and {len(errors) - 1} more cases cannot be scored)" if len(errors) > 1 else ""
        raise ValueError(f"{errors[0]}{more}") from errors[0]
    for error in errors:
        print(f"LEFT OUT: {error}", file=sys.stderr)
    board = Leaderboard(
        title=dataset_name(args.dataset) if args.dataset else " / ".join(args.gt.resolve().parts[-2:]),
        cases=cases,
        tolerances=tolerances,
        missing=[*collection.missing, *(f"left out: {str(error).removesuffix('.')}" for error in errors)],
        models=collection.models,
        reference=args.reference,
        group_by=args.group_by,
        published=args.published,
        resamples=args.resamples,
        command="nnunet-din " + shlex.join(sys.argv[1:]),
        day=date.today().isoformat(),
    )
    written = board.write(output)
    print(board.overview())
    print("\nWrote " + ", ".join(str(path) for path in written))
    return 0


def _tolerances(arguments: Sequence[str], structures: Iterable[str]) -> dict[str, float]:
    tolerances = dict.fromkeys(structures, TOLERANCE)
    for argument in sorted(arguments, key=lambda a: "=" in a):  # the one for all first
        name, _, value = argument.rpartition("=")
        chosen = {name} if name else set(tolerances)
        try:
            tolerance = float(value)
        except ValueError:
            tolerance = 0.0
        if not tolerance > 0 or not chosen <= set(tolerances):
            raise ValueError(
                f"--tolerance takes MM or STRUCTURE=MM, with more than 0 mm and one of {', '.join(tolerances)}; got "
                f"'{argument}'."
            )
        tolerances |= dict.fromkeys(chosen, tolerance)
    return tolerances


def _dataset_json(args: argparse.Namespace) -> Path:
    """Find the file that names the structures."""
    folders = [model.folder for model in find_models(args.dataset)] if args.dataset else []
    if args.pred:
        folders += [*named_folders(args.pred, "--pred").values(), args.gt, args.gt.parent]
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    raise FileNotFoundError(
        f"No dataset.json in {', '.join(map(str, folders))} names the structures: give one with --dataset-json."
    )
