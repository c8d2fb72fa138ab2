"""``nnunet-din leaderboard``: score, rank and compare the models of a data set."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from nnunet_din.commands.arguments import add_trained_models, named_folders
from nnunet_din.evaluation.collection import Collection, collect_cross_validation, collect_predictions
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
        help="names the structures (default: that of the data set, of the predictions, or beside --gt)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="[STRUCTURE=]MM",
        help="tolerance of NSD in mm, for all structures or for one (default: 2)",
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
    from nnunet_din.evaluation.statistics import group_of

    _check(args)
    labels = read_labels(_dataset_json(args))
    tolerances = _tolerances(args.tolerance, labels.structures)
    if args.pred:
        collection = collect_predictions(named_folders(args.pred, "--pred"), args.gt, labels.file_ending)
    else:
        models = named_models(args.dataset, args.models, short=False)
        collection = collect_cross_validation(args.dataset, labels, models, args.folds)
    if not collection.cases:
        raise ValueError(
            f"There is nothing to score for {args.dataset}: {'; '.join(collection.missing) or 'no fold was begun'}. "
            "nnUNetv2_train writes the predictions when it ends; `nnUNetv2_train ... --val` repeats that."
        )
    _check_overlap(collection)
    names = {case.model for case in collection.cases}
    if args.reference and args.reference not in names:
        raise ValueError(f"The reference {args.reference} is none of the models: {', '.join(sorted(names))}.")
    for case in {case.case for case in collection.cases}:
        group_of(case, args.group_by)
    output = args.output or _default_output(args)
    for sentence in collection.missing:
        print(f"MISSING: {sentence}", file=sys.stderr)
    left_out: list[str] | None = [] if args.leave_out_invalid else None
    cases = score_cases(
        collection.cases,
        labels,
        tolerances,
        merit=args.protocol == "merit",
        cache=output / "scored_cases.jsonl",
        processes=args.processes,
        left_out=left_out,
    )
    for sentence in left_out or ():
        print(f"LEFT OUT: {sentence}", file=sys.stderr)
    collection.missing += [f"left out: {sentence.removesuffix('.')}" for sentence in left_out or ()]
    board = Leaderboard(
        title=dataset_name(args.dataset) if args.dataset else " / ".join(args.gt.resolve().parts[-2:]),
        cases=cases,
        tolerances=tolerances,
        missing=collection.missing,
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


def _check(args: argparse.Namespace) -> None:
    if bool(args.pred) != bool(args.gt):
        raise ValueError("--pred and --gt belong together: predictions are scored against true label maps.")
    if not args.pred and args.dataset is None:
        raise ValueError("Say what to score: -d ID, or --pred NAME=FOLDER --gt FOLDER.")
    if args.pred and (args.models or args.folds):
        raise ValueError("--models and -f choose cross-validation predictions: leave them out with --pred.")
    for folder in (args.gt, *named_folders(args.pred, "--pred").values()) if args.pred else ():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder.")
    if args.resamples < 100:
        raise ValueError(f"--resamples must be at least 100, got {args.resamples}.")


def _tolerances(arguments: Sequence[str], structures: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    tolerances = dict.fromkeys(structures, 2.0)
    for argument in sorted(arguments, key=lambda a: "=" in a):  # the one for all first
        name, found, value = argument.rpartition("=")
        try:
            tolerance = float(value)
        except ValueError:
            tolerance = 0.0
        if tolerance <= 0 or (found and name not in tolerances):
            raise ValueError(
                f"--tolerance takes MM or STRUCTURE=MM, with more than 0 mm and one of {', '.join(structures)}; got "
                f"'{argument}'."
            )
        tolerances.update({name: tolerance} if found else dict.fromkeys(tolerances, tolerance))
    return tolerances


def _dataset_json(args: argparse.Namespace) -> Path:
    """Find the file that names the structures."""
    if args.dataset_json:
        return args.dataset_json
    folders: list[Path] = []
    if args.dataset is not None:
        name = dataset_name(args.dataset)
        variables = ("nnUNet_preprocessed", "nnUNet_raw")
        folders += [Path(os.environ[variable], name) for variable in variables if os.environ.get(variable)]
        folders += [model.folder for model in find_models(args.dataset)]
    if args.gt:
        folders += [*named_folders(args.pred, "--pred").values(), args.gt, args.gt.parent]
    for folder in folders:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    raise FileNotFoundError("No dataset.json names the structures: give one with --dataset-json.")


def _check_overlap(collection: Collection) -> None:
    """Refuse folds that share cases: together they are not one cross-validation."""
    fold_of: dict[tuple[str, str], str] = {}
    for case in collection.cases:
        other = fold_of.setdefault((case.model, case.case), case.fold)
        if other != case.fold:
            raise ValueError(
                f"Folds {other} and {case.fold} of {case.model} both predict {case.case}, so they are not one "
                "cross-validation. Choose folds with -f."
            )


def _default_output(args: argparse.Namespace) -> Path:
    if args.dataset is None:
        return Path("leaderboard")
    return nnunet_folder("nnUNet_results") / dataset_name(args.dataset) / "leaderboard"
