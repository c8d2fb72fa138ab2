"""``nnunet-din enhance``: the enhanced version of an image, for looking at."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_din.data.files import refuse_overwriting
from nnunet_din.data.images import split_name
from nnunet_din.enhancement import ENHANCEMENTS, VOLUMETRIC
from nnunet_din.planners.enhanced import enhance_as_planned, enhance_file


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
        if args.plans or args.configuration:
            raise ValueError("-p and -c go with -d, the data set.")
        method = args.method or "fuzzy"
        pair = enhance_file(args.input, args.output, method, args.axis, args.weights, args.volumetric)
        written = {args.output: pair}
    else:
        if args.method or args.weights or args.axis is not None or args.volumetric:
            raise ValueError(
                "--method, --weights, --axis and --volumetric are the plans' to say: leave them out with -d."
            )
        plans = "nnUNetDINPlans" if args.plans is None else args.plans
        configuration = "2d" if args.configuration is None else args.configuration
        written = enhance_as_planned(args.input, args.output, args.dataset, plans, configuration)
    print("Wrote " + ", ".join(map(str, written)))
    for path, (slices, enhanced) in written.items() if args.png else ():
        from nnunet_din.plotting.panel import side_by_side
        from nnunet_din.plotting.style import save_figure

        picture = path.with_name(f"{split_name(path)[0]}.png")
        refuse_overwriting([picture], [args.input])
        # The middle slice; of colours, their mean.
        middle = slices.shape[1] // 2
        save_figure(side_by_side(*(channels[:, middle].mean(axis=0) for channels in (slices, enhanced))), picture)
        print(f"Wrote {picture}")
    return 0
