"""``nnunet-din curves``: how several models were trained, read from nnU-Net's own logs."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_din.commands.arguments import (
    add_picture,
    add_trained_models,
    check_output,
    named_path,
)
from nnunet_din.nnunet.models import fold_folders, named_models
from nnunet_din.nnunet.training_log import read_training
from nnunet_din.plotting.curves import training_curves
from nnunet_din.plotting.style import save_figure

__all__ = ["add_parser", "run"]


_DPI = 300


def add_parser(subparsers) -> None:
    """Add the sub-command ``curves`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "curves",
        help="draw the training curves of several models",
        description="Training and validation loss, pseudo Dice (as nnU-Net smooths it) and learning rate of several "
        "models in one picture, from the logs in the folders of their folds. Works while a training runs.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="NAME=FOLD_FOLDER",
        help="folder of a fold; the same name again: another fold of that model",
    )
    add_trained_models(parser.add_argument_group("or models that nnU-Net has trained"))
    parser.add_argument(
        "--against",
        choices=("epoch", "time"),
        default="epoch",
        help="horizontal axis; time is the sum of the epochs' durations, without pauses (default: %(default)s)",
    )
    add_picture(parser, "curves.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the curves of the models that the arguments name."""
    check_output(args.output)
    if (args.dataset is None) == (not args.folders):
        raise ValueError("Give either -d with the number of a data set, or NAME=FOLD_FOLDER.")
    if args.folders and (args.folds or args.models):
        raise ValueError("--models and -f go with -d, not with NAME=FOLD_FOLDER.")
    folders: dict[str, list[Path]] = {}
    for name, folder in (named_path(text, "curves") for text in args.folders):
        folders.setdefault(name, []).append(folder)
    if args.dataset is not None:
        for name, model in named_models(args.dataset, args.models).items():
            folders[name] = list(fold_folders(model, args.folds).values())
            if not folders[name]:
                raise FileNotFoundError(f"{model.folder} has no numbered fold: name one with -f, for example all.")
    models = {name: [read_training(folder) for folder in of_model] for name, of_model in folders.items()}
    for name, folds in models.items():
        print(f"{name}: " + ", ".join(f"{len(fold['epoch'])} epochs in {fold['hours'][-1]:.2f} h" for fold in folds))
    save_figure(training_curves(models, args.against), args.output, dpi=_DPI)
    print(f"Wrote {args.output}")
    return 0
