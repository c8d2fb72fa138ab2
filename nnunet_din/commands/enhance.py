"""``nnunet-din enhance``: the enhanced version of an image, for looking at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.data.images import read_case, read_image, write_image
from nnunet_din.enhancement import ENHANCEMENTS, VOLUMETRIC, enhance
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.images import channel_files
from nnunet_din.nnunet.known_classes import check_plans
from nnunet_din.nnunet.labels import read_dataset_json
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.nnunet.plans import read_plans, resolve


def add_parser(subparsers) -> None:
    """Add the sub-command ``enhance`` to the parser of ``nnunet-din``."""
    command = subparsers.add_parser(
        "enhance",
        help="write the enhanced version of an image",
        description="Enhance an image slice by slice. With a data set or plans (-d, -p), it is the enhanced image that "
        "the network gets: after nnU-Net's cropping, normalization and resampling, with the plans' parameters, brought "
        "back to the grid of the image, and of whole volumes where the plans say so. Without, the image is enhanced as "
        "it is stored, with the planners' default parameters. The result is in (-1, 1).",
    )
    command.add_argument(
        "input", type=Path, metavar="IN", help="image or volume that SimpleITK reads, for example case_0000.nii.gz"
    )
    command.add_argument("output", type=Path, metavar="OUT", help="file to write, for example enhanced.nii.gz")
    plans = command.add_argument_group("as the network of these plans sees it")
    plans.add_argument("-d", dest="dataset", metavar="ID", help="number or name of the data set")
    plans.add_argument("-p", dest="plans", metavar="PLANS", help="name of its plans (default: nnUNetDINPlans)")
    plans.add_argument("-c", dest="configuration", metavar="NAME", help="configuration of the plans (default: 2d)")
    stored = command.add_argument_group("as it is stored")
    stored.add_argument("--method", choices=sorted(ENHANCEMENTS), help="default: fuzzy")
    stored.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of zero_dce, as `nnunet-din train-zero-dce` writes them"
    )
    stored.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        help="slice axis in the order z, y, x (default: the one of largest spacing)",
    )
    stored.add_argument(
        "--volumetric",
        action="store_true",
        help=f"enhance the volume as a whole ({', '.join(VOLUMETRIC)}), as 3d_fullres does where voxels are near cubes",
    )
    command.add_argument(
        "--png", action="store_true", help="also write a picture of original and enhanced image beside OUT"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Enhance the file that the arguments name."""
    if args.dataset is None:
        if args.plans is not None or args.configuration is not None:
            raise ValueError("-p and -c go with -d, the data set.")
        method = args.method or "fuzzy"
        picture = enhance_file(
            args.input, args.output, method, args.axis, args.png, weights=args.weights, volumetric=args.volumetric
        )
        pictures = [picture] if picture else []
        written = [args.output]
    else:
        if args.method or args.weights or args.axis is not None or args.volumetric:
            raise ValueError(
                "--method, --weights, --axis and --volumetric are the plans' to say: leave them out with -d."
            )
        written, pictures = enhance_as_planned(
            args.input, args.output, args.dataset, args.plans, args.configuration, args.png
        )
    print("Wrote " + ", ".join(map(str, [*written, *pictures])))
    return 0


def enhance_as_planned(
    source: Path,
    target: Path,
    dataset: str,
    plans_name: str | None = None,
    configuration: str | None = None,
    png: bool = False,
) -> tuple[list[Path], list[Path]]:
    """Write what the network gets of a case, on the grid of its image.

    Parameters
    ----------
    source
        First channel of the case, ``CASE_0000.nii.gz``; the others lie beside it.
    target
        File to write. With several channels or enhancements each has a file of its own, their numbers in its name.
    dataset, plans_name, configuration
        Data set, and a configuration of its plans; None: nnUNetDINPlans and 2d.
    png
        Also write pictures of the middle slices.

    Returns
    -------
    list of Path, list of Path
        The images and the pictures.

    Raises
    ------
    ValueError, FileNotFoundError
        If data set, plans or files are missing or do not fit each other, or the plans name a class of strangers.
    """
    plans_name = "nnUNetDINPlans" if plans_name is None else plans_name
    configuration = "2d" if configuration is None else configuration
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)
    plans, description = read_plans(folder / f"{plans_name}.json"), read_dataset_json(folder / "dataset.json")
    resolve(plans, configuration)
    check_plans(plans, configuration, description)
    model = PlannedModel(plans, description, configuration)
    files = channel_files(source, model.channels, description["file_ending"])
    image = read_case(files, model.reader)
    enhanced = model.enhanced_on_image_grid(*model.preprocess(files))
    axis = image.slice_axis + 1
    stem, ending = _split(target)
    several = enhanced.shape[0] * (1 if image.color else enhanced.shape[1]) > 1
    outputs: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
    for e, version in enumerate(enhanced):
        # Colours stay in one file.
        pairs = [(image.array, version)] if image.color else zip(image.array[:, None], version[:, None], strict=True)
        for c, pair in enumerate(pairs):
            outputs[target.with_name(f"{stem}_{e}_{c:04d}{ending}") if several else target] = pair
    refuse_overwriting([*outputs, *(map(_picture_of, outputs) if png else ())], files)
    pictures = []
    for path, (original, channels) in outputs.items():
        write_image(path, model.as_stored(channels, source), source)
        if png:
            pictures.append(_picture(path, *(np.moveaxis(a, axis, 1) for a in (original, channels))))
    return list(outputs), pictures


def enhance_file(
    source: Path,
    target: Path,
    method: str = "fuzzy",
    axis: int | None = None,
    png: bool = False,
    weights: Path | None = None,
    volumetric: bool = False,
) -> Path | None:
    """Enhance an image file.

    Parameters
    ----------
    source, target
        Files that SimpleITK reads and writes; 2-D, 3-D, or colour (three components) 2-D. Geometry is kept, pixels
        become float32 in (-1, 1).
    method
        A name of :data:`nnunet_din.enhancement.ENHANCEMENTS`.
    axis
        Slice axis of a volume in the order z, y, x; None: that of the largest spacing, as nnU-Net's 2-D configuration
        slices it.
    png
        Also write a side-by-side picture of the middle slice, named like ``target`` with suffix ``.png``.
    weights
        Weights of the method zero_dce, which needs them; no other method takes any.
    volumetric
        Enhance a volume as a whole; of the methods of :data:`nnunet_din.enhancement.VOLUMETRIC`.

    Returns
    -------
    Path or None
        The picture, if one was written.

    Raises
    ------
    FileNotFoundError
        If ``source`` does not exist.
    ValueError
        If it cannot be read as an image, is not 2-D or 3-D, or has values that are not finite; or the method does not
        fit the weights or the number of axes.
    """
    refuse_overwriting([target, *([_picture_of(target)] if png else ())], [source, *([weights] if weights else ())])
    parameters = _weights_of(method, weights)
    image = read_image(source)
    if volumetric and image.flat:
        raise ValueError(f"{source} is a 2-D image: leave --volumetric out.")
    axis = image.slice_axis if image.flat or axis is None else axis
    slices = np.moveaxis(image.array.astype(np.float32), axis + 1, 1)  # (C, Z, H, W)
    try:
        enhanced = enhance(slices, color=image.color, method=method, volumetric=volumetric, **parameters)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    write_image(target, np.moveaxis(enhanced, 1, axis + 1), source)
    return _picture(target, slices, enhanced) if png else None


def _picture(target: Path, slices: np.ndarray, enhanced: np.ndarray) -> Path:
    """Draw the middle one of slices ``(C, Z, H, W)`` beside its enhanced version, in a PNG named like ``target``."""
    from nnunet_din.plotting.panel import side_by_side
    from nnunet_din.plotting.style import save_figure

    middle = slices.shape[1] // 2
    pair = side_by_side(_displayed(slices[:, middle]), _displayed(enhanced[:, middle]))
    return save_figure(pair, _picture_of(target))


def _picture_of(target: Path) -> Path:
    """The picture beside an enhanced image."""
    return target.with_name(f"{_split(target)[0]}.png")


def _split(path: Path) -> tuple[str, str]:
    """Name and ending of an image; .nii.gz is one ending, and a name may have points in it."""
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    return path.name.removesuffix(ending), ending


def _weights_of(method: str, weights: Path | None) -> dict[str, Any]:
    """Parameters of the enhancement that come from a file."""
    if method != "zero_dce":
        if weights is not None:
            raise ValueError(f"--weights is for the method zero_dce, not for {method}.")
        return {}
    if weights is None:
        raise ValueError("The method zero_dce needs --weights FILE, which `nnunet-din train-zero-dce` writes.")
    from nnunet_din.enhancement.zero_dce import zero_dce_parameters

    return zero_dce_parameters(weights)


def _displayed(channels: np.ndarray) -> np.ndarray:
    """Make a grey image ``(H, W)`` of an image ``(C, H, W)``; colours are averaged."""
    return channels.mean(axis=0)
