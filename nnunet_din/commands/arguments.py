"""Arguments that several sub-commands have in common, and what they mean."""

from __future__ import annotations

from argparse import Action, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "PICTURES",
    "add_model_folder",
    "add_picture",
    "add_trained_models",
    "check_output",
    "named_folders",
    "named_path",
    "positive",
]

#: Endings of the names of pictures that can be written.
PICTURES = (".png", ".pdf", ".svg")


def positive(text: str) -> int:
    """A whole number from 1 on, as the ``type`` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def add_trained_models(group) -> None:
    """Add ``-d``, ``--models`` and ``-f``, which choose from what nnU-Net has trained, to a parser or group."""
    group.add_argument("-d", dest="dataset", metavar="ID", help="number or name of the data set")
    group.add_argument(
        "--models",
        nargs="+",
        metavar="[NAME=]TRAINER__PLANS__CONFIGURATION",
        help="models to take, in this order and under these names (default: all)",
    )
    group.add_argument("-f", "--folds", nargs="+", metavar="FOLD", help="folds to take (default: all numbered ones)")


def add_model_folder(parser) -> Action:
    """Add a trained model's folder, ``-f`` and ``--checkpoint`` to a parser; returns the argument of the folder."""
    folder = parser.add_argument("model", type=Path, help="nnU-Net's model folder TRAINER__PLANS__CONFIGURATION")
    parser.add_argument(
        "-f", dest="folds", nargs="+", metavar="FOLD", help="folds, or `all` (default: every trained one)"
    )
    parser.add_argument(
        "--checkpoint", choices=("final", "best", "latest"), default="final", help="default: %(default)s"
    )
    return folder


def add_picture(parser, default: str) -> None:
    """Add ``-o``, the picture to write."""
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help=f"picture to write, {', '.join(PICTURES[:-1])} or {PICTURES[-1]} (default: %(default)s)",
    )


def named_path(text: str, option: str) -> tuple[str, Path]:
    """The name and the path in ``NAME=FOLDER``.

    Raises
    ------
    ValueError
        If one of them is missing; the message names the option that the text was given to.
    """
    name, _, path = text.partition("=")
    if not (name and path):
        raise ValueError(f"{option} takes NAME=FOLDER, got '{text}'.")
    return name, Path(path)


def named_folders(texts: Sequence[str], option: str) -> dict[str, Path]:
    """Folders of several models, each given as ``NAME=FOLDER``.

    Raises
    ------
    ValueError
        If a name or a folder is missing, or a name is there twice; the message names the option.
    """
    folders: dict[str, Path] = {}
    for name, folder in (named_path(text, option) for text in texts):
        if name in folders:
            raise ValueError(f"{option} names two folders {name}.")
        folders[name] = folder
    return folders


def check_output(path: Path) -> None:
    """Refuse a picture's name before anything is computed for it.

    Raises
    ------
    ValueError
        If the suffix is none of :data:`PICTURES`.
    """
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f"{path}: the name of the picture must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}.")
