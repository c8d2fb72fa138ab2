"""``nnunet-din enhance``: the enhanced version of an image, as the network sees it, for looking at."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nnunet_din.data.images import read_image, write_image
from nnunet_din.enhancement import ENHANCEMENTS, enhance_slices


def add_parser(subparsers) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "enhance",
        help="write the enhanced version of an image",
        description="Enhance an image slice by slice with the planners' default parameters. The result is in (-1, 1).",
    )
    parser.add_argument(
        "input", type=Path, metavar="IN", help="image or volume that SimpleITK reads, for example case_0000.nii.gz"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write, for example enhanced.nii.gz")
    parser.add_argument("--method", default="fuzzy", choices=sorted(ENHANCEMENTS))
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of zero_dce, as `nnunet-din train-zero-dce` writes them"
    )
    parser.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        help="slice axis in the order z, y, x (default: the one of largest spacing)",
    )
    parser.add_argument(
        "--png", action="store_true", help="also write a picture of original and enhanced image beside OUT"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Enhance one file."""
    picture = enhance_file(
        args.input, args.output, method=args.method, axis=args.axis, png=args.png, weights=args.weights
    )
    print(f"Wrote {args.output}" + (f" and {picture}" if picture else ""))
    return 0


def enhance_file(
    source: Path,
    target: Path,
    method: str = "fuzzy",
    axis: int | None = None,
    png: bool = False,
    weights: Path | None = None,
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

    Returns
    -------
    Path or None
        The picture.

    Raises
    ------
    FileNotFoundError
        If ``source`` does not exist.
    ValueError
        If it cannot be read as an image, is not 2-D or 3-D, or has values that are not finite, or the method and the
        weights do not fit each other.
    """
    parameters = _weights_of(method, weights)
    image = read_image(source)
    axis = image.slice_axis if image.flat or axis is None else axis
    slices = np.moveaxis(image.channels().astype(np.float32), axis + 1, 1)  # (C, Z, H, W)
    try:
        enhanced = enhance_slices(slices, color=image.color, method=method, **parameters)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    out = np.moveaxis(enhanced, 1, axis + 1)
    write_image(target, np.moveaxis(out, 0, -1) if image.color else out[0], like=image)
    if not png:
        return None
    from nnunet_din.plotting.panel import side_by_side
    from nnunet_din.plotting.style import save_figure

    middle = slices.shape[1] // 2
    picture = target.with_name(f"{target.name.removesuffix(target.suffix).removesuffix('.nii')}.png")
    save_figure(side_by_side(_displayed(slices[:, middle]), _displayed(enhanced[:, middle])), picture)
    return picture


def _weights_of(method: str, weights: Path | None) -> dict[str, str]:
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
    """Shape ``(C, H, W)`` -> a grey image ``(H, W)``; colours by their mean."""
    return channels.mean(axis=0)
