"""``nnunet-din convert``: from the data as they were downloaded to a raw nnU-Net data set with the published split."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_din.data.converters import DATASETS
from nnunet_din.data.raw_dataset import convert, plan_conversion
from nnunet_din.nnunet.folders import nnunet_folder


def add_parser(subparsers) -> None:
    """Add the sub-command ``convert`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "convert",
        help="make a raw nnU-Net data set of a downloaded public one",
        description="Make the raw nnU-Net data set DatasetXXX_Name of an archive as it was downloaded and unpacked, "
        "with the split of the paper in splits_final.json. A run that was interrupted goes on where it stopped.",
    )
    parser.add_argument("dataset", choices=tuple(DATASETS), help="which data set it is")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the unpacked archive; it is only read")
    parser.add_argument(
        "-o", type=Path, dest="folder", metavar="FOLDER", help="where to make DatasetXXX_Name (default: $nnUNet_raw)"
    )
    parser.add_argument(
        "-d",
        type=int,
        dest="number",
        metavar="ID",
        help="number of the data set (default: "
        + ", ".join(f"{name} {dataset.number}" for name, dataset in DATASETS.items())
        + ")",
    )
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="convert what is there where a part of the archive is missing"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert the data set that the arguments name."""
    parent = args.folder or nnunet_folder("nnUNet_raw")
    conversion = plan_conversion(DATASETS[args.dataset], args.source, parent, args.number, args.allow_incomplete)
    notes = conversion.notes
    if args.folder:
        notes = [*notes, f"nnU-Net finds the data set when nnUNet_raw is set to {args.folder.resolve()}"]
    for note in notes:
        print(f"NOTE: {note}.")
    convert(conversion)
    cases = f"{conversion.training} training and {conversion.test} test cases"
    if conversion.missing or conversion.json_files:
        print(f"Wrote {conversion.folder}: {cases}, {len(conversion.missing)} of them in this run.")
        for path in conversion.json_files:
            print(f"Wrote {path}")
    else:
        print(f"{conversion.folder} is complete: {cases}. Nothing was changed.")
    print(
        f"Next: nnUNetv2_plan_and_preprocess -d {int(conversion.folder.name[7:10])} -pl nnUNetPlannerDIN -c 2d "
        "--verify_dataset_integrity"
    )
    return 0
