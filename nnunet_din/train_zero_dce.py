"""``nnunet-din train-zero-dce``: weights of the enhancement Zero-DCE, fitted to the images of a raw data set."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnunet_din.enhancement import to_unit_interval
from nnunet_din.evaluation.discovery import dataset_name, nnunet_folder

__all__ = ["INTENSITIES", "add_parser", "run", "training_slices", "weights_file"]

#: The planners' mapping of intensities to (-1, 1).
INTENSITIES = {"percentiles": [0.5, 99.5], "limit": 0.99}

_MOST_SLICES = 2500  # about as many images as the paper fits to
_WINDOW = 2  # sizes of a crop: of larger slices only a part is kept


def add_parser(subparsers) -> None:
    """Add the sub-command."""
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
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {args.epochs}.")

    slices, color = training_slices(nnunet_folder("nnUNet_raw") / name, size=args.size, seed=args.seed)

    import torch

    from nnunet_din.enhancement.zero_dce import fit_zero_dce, zero_dce_parameters

    iterations = math.ceil(args.epochs * len(slices) / args.batch) if args.epochs else args.iterations
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    fit = fit_zero_dce(slices, iterations, size=args.size, batch=args.batch, device=device, seed=args.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    with partial.open("wb") as file:  # torch.save would write the name of a path into the file, and change its hash
        torch.save(fit.network.state_dict(), file)
    partial.replace(output)

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


def weights_file(dataset: str | int) -> Path:
    """Where the weights of a data set, named by number or name, are looked for."""
    return nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset) / "zero_dce.pth"


def training_slices(raw: Path, size: int = 128, seed: int = 0) -> tuple[list[np.ndarray], bool]:
    """Slices of a raw data set's training images, as the enhancement sees them but for normalization and resampling.

    At most 2500 slices, as many of each case where possible; of slices larger than twice the size of a crop, a random
    part.

    Parameters
    ----------
    raw
        Folder of the data set.
    size
        Size of the crops to be fitted to, in pixels.
    seed
        Of the choice.

    Returns
    -------
    slices : list of numpy.ndarray
        In (-1, 1), float32, shape ``(3, H, W)`` in colour and else ``(1, H, W)``.
    color : bool
        Whether the channels of the data set are the colours of natural images.

    Raises
    ------
    FileNotFoundError
        If there are no training images.
    ValueError
        If an image cannot be read or has values that are not finite.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
    from tqdm import tqdm

    if not (raw / "dataset.json").is_file():
        raise FileNotFoundError(f"{raw / 'dataset.json'} does not exist: the raw data set is needed.")
    try:
        description = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{raw / 'dataset.json'} is not valid JSON: {error}.") from error
    cases = []
    if (raw / "imagesTr").is_dir() or "dataset" in description:
        cases = [case["images"] for case in get_filenames_of_train_images_and_targets(str(raw), description).values()]
    if not cases:
        raise FileNotFoundError(f"{raw / 'imagesTr'} holds no training images.")
    reader = determine_reader_writer_from_dataset_json(description, cases[0][0], verbose=False)
    # As the planners decide.
    channels = description.get("channel_names", description.get("modality", ()))
    color = len(channels) == 3 and reader.__name__ == "NaturalImage2DIO"

    rng = np.random.default_rng(seed)
    share = math.ceil(_MOST_SLICES / len(cases))
    slices: list[np.ndarray] = []
    for files in tqdm([cases[i] for i in rng.permutation(len(cases))], desc="reading", unit="case", disable=None):
        try:
            data, properties = reader().read_images(files)
        except Exception as error:  # readers raise what they please
            raise ValueError(f"{files[0]} cannot be read as an image: {error}") from error
        try:
            of_case = list(_slices(data, int(np.argmax(properties["spacing"])), color))
        except ValueError as error:
            raise ValueError(f"{files[0]}: {error}") from error
        chosen = rng.permutation(len(of_case))[: min(share, _MOST_SLICES - len(slices))]
        slices += [_window(of_case[i], _WINDOW * size, rng) for i in chosen]
        if len(slices) == _MOST_SLICES:
            break
    return slices, color


def _slices(data: np.ndarray, axis: int, color: bool) -> Iterator[np.ndarray]:
    """Volume ``(C, Z, Y, X)`` -> slices along an axis, ``(C, H, W)``; without colours, each channel on its own."""
    data = np.moveaxis(data, axis + 1, 1)
    for channels in [slice(None)] if color else [slice(c, c + 1) for c in range(len(data))]:
        f = to_unit_interval(data[channels], **INTENSITIES).astype(np.float32, copy=False)
        # A slice without contrast teaches nothing.
        yield from (f[:, z] for z in range(f.shape[1]) if np.ptp(f[:, z]) > 0)


def _window(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image ``(C, H, W)`` that is not larger than a square, copied."""
    top, left = (rng.integers(max(s - side, 0) + 1) for s in image.shape[1:])
    return image[:, top : top + side, left : left + side].copy()
