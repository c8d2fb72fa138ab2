"""``nnunet-din configure``: add configurations to the plans of a data set, by nnU-Net's own ``inherits_from``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from filelock import FileLock

from nnunet_din.data.files import write_text
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.plans import read_plans
from nnunet_din.planners.configurations import derive, derive_paper_tables, may_be_added


def add_parser(subparsers) -> None:
    """Add the sub-command ``configure`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "configure",
        help="add configurations with another network, training or enhancement to the plans",
        description="Add a configuration that inherits from another one and differs in arguments of the network, in "
        "settings of the training, in its batch or in the enhancement. Another enhancement gets data of its own "
        "(nnUNetv2_preprocess); otherwise the preprocessed data are shared.",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-p", dest="plans", default="nnUNetDINPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("--from", dest="base", default="2d", help="configuration to inherit from (default: 2d)")
    parser.add_argument("--name", help="name of the new configuration")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the network, for example fusion=concat inputs=[0]; values are JSON or words",
    )
    parser.add_argument(
        "--set-training",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the training that DIN's trainers obey, for example num_epochs=150 initial_lr=0.001",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="patches in a batch, in place of the planner's")
    parser.add_argument(
        "--enhancement",
        nargs="+",
        metavar="METHOD",
        help="enhancements in place of the inherited ones; several give the network as many more streams",
    )
    parser.add_argument(
        "--set-enhancement",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="parameters of the enhancements, for example smoothing=1",
    )
    parser.add_argument(
        "--paper-tables",
        action="store_true",
        help="add the configurations of the paper's tables; --from 3d_fullres, those that volumes can have",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the configurations, write nothing")
    parser.add_argument("--force", action="store_true", help="replace configurations of the same name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Add the configurations that the arguments ask for to the plans."""
    if args.paper_tables == bool(args.name):
        raise ValueError("Give either --name with what is different, or --paper-tables.")
    changes = (args.set, args.set_training, args.enhancement, args.set_enhancement, args.batch_size is not None)
    if args.paper_tables and any(changes):
        raise ValueError(
            "--set, --set-training, --batch-size, --enhancement and --set-enhancement go with --name, not with "
            "--paper-tables."
        )
    if args.name == args.base:
        raise ValueError(f"A configuration cannot inherit from itself: choose another --name than {args.name}.")
    path = nnunet_folder("nnUNet_preprocessed") / dataset_name(args.dataset) / f"{args.plans}.json"
    added, notes = _new_configurations(args, read_plans(path))
    print(json.dumps(added, indent=2), *notes, sep="\n")
    if args.dry_run or not added:
        return 0
    with FileLock(path.with_name(f".{path.name}.lock")):  # another `configure` may have been quicker
        plans = read_plans(path)
        plans["configurations"] |= {n: c for n, c in added.items() if may_be_added(plans, n, c, args.force)}
        write_text(path, json.dumps(plans, indent=4) + "\n")
    print(f"Wrote {path}")
    for name, configuration in added.items():
        if "data_identifier" in configuration:
            print(f"Next: nnUNetv2_preprocess -d {args.dataset} -plans_name {args.plans} -c {name}")
        print(f"Train: nnUNetv2_train {args.dataset} {name} 0 -tr nnUNetTrainerDIN -p {args.plans}")
    return 0


def _new_configurations(args: argparse.Namespace, plans: Mapping) -> tuple[dict[str, dict], list[str]]:
    """Configurations to add to the plans, by name, and what to say about the others."""
    if args.paper_tables:
        new, notes = derive_paper_tables(plans, args.base)
    else:
        network, training, enhancement = (
            _values(texts, option)
            for texts, option in (
                (args.set, "--set"),
                (args.set_training, "--set-training"),
                (args.set_enhancement, "--set-enhancement"),
            )
        )
        changes = (network, args.enhancement, training, args.batch_size, enhancement)
        new, notes = {args.name: derive(plans, args.base, args.name, *changes)}, []
    added = {name: entry for name, entry in new.items() if may_be_added(plans, name, entry, args.force)}
    return added, [*notes, *(f"{name} is there already." for name in new if name not in added)]


def _values(texts: Sequence[str], option: str) -> dict:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"{option} takes KEY=VALUE, got '{text}'.")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values
