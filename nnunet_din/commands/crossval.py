"""``nnunet-din crossval``: plan, train, validate, choose, predict and compare, whole cross-validations in one call."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_din.nnunet.folders import dataset_name


def add_parser(subparsers) -> None:
    """Add the sub-command ``crossval`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "crossval",
        help="train and compare models on all folds, here or on a cluster",
        description="Plan and preprocess what is missing, train and validate every fold of every model, let nnU-Net "
        "choose the best configuration, predict test images if there are any, and write the leaderboard. Every step "
        "is a command of nnU-Net's, run by Snakemake. Started again, it does what is left and goes on with what was "
        "interrupted.",
    )
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID", help="number or name of the data set")
    models = parser.add_argument_group("models")
    models.add_argument("-tr", dest="trainer", metavar="TRAINER", help="default: nnUNetTrainerDIN")
    models.add_argument("-p", dest="plans", metavar="PLANS", help="default: nnUNetDINPlans")
    models.add_argument("-c", dest="configurations", nargs="+", metavar="CONFIGURATION", help="default: 2d")
    models.add_argument("--models", type=Path, metavar="FILE", help="YAML file with models, in place of these three")
    folds = list(range(5))
    models.add_argument("--folds", nargs="+", type=int, default=folds, metavar="FOLD", help="default: 0 1 2 3 4")
    where = parser.add_argument_group("where")
    where.add_argument("--executor", choices=("local", "slurm"), default="local", help="default: %(default)s")
    where.add_argument(
        "--gpus",
        nargs="+",
        default=[],
        metavar="GPU",
        help="GPUs of this machine, as CUDA_VISIBLE_DEVICES names them: as many trainings run at once (default: one at "
        "a time)",
    )
    where.add_argument("-num_gpus", type=int, default=1, metavar="N", help="GPUs of one training, as nnU-Net's")
    devices = ("cuda", "cpu", "mps")
    where.add_argument("-device", choices=devices, help="default: cuda on a cluster, and here if there is one")
    where.add_argument("--profile", metavar="PROFILE", help="profile of Snakemake's: partition, account, limits, ...")
    where.add_argument("--retries", type=int, default=0, metavar="N", help="try a failed training again (default: 0)")
    pair = ("IMAGES", "LABELS")
    parser.add_argument("--test", nargs=2, type=Path, metavar=pair, help="test images to predict, and their label maps")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that are left, for a shell")
    parser.add_argument("--export-workflow", type=Path, metavar="DIR", help="write Snakemake's workflow, to be changed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run, print or write the cross-validation that the arguments ask for."""
    if os.name == "nt" and not args.dry_run:
        raise ValueError(
            "On Windows crossval cannot run its steps: paste the commands that --dry-run prints, one after the other."
        )
    from nnunet_din.runs.crossval import engine
    from nnunet_din.runs.crossval.models import check_models, read_models_file
    from nnunet_din.runs.crossval.steps import CrossValidation

    if args.retries < 0 or args.num_gpus < 1:
        raise ValueError("--retries must be 0 or more, and -num_gpus 1 or more.")
    if args.models and (args.trainer or args.plans or args.configurations or args.num_gpus > 1):
        raise ValueError(
            "--models names trainers, plans, configurations and GPUs: leave -tr, -p, -c and -num_gpus out."
        )
    if args.gpus and (args.executor == "slurm" or args.device in ("cpu", "mps")):
        raise ValueError("--gpus are those of this machine: leave it out with --executor slurm and -device cpu or mps.")
    for folder in args.test or ():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder.")
    dataset = dataset_name(args.dataset)
    content = read_models_file(args.models, args.folds) if args.models else _named(args)
    check_models(dataset, content.models, content.planning)
    device = args.device or ("cuda" if args.gpus or args.executor == "slurm" else _device_here())
    num_gpus, gpus = max(model.num_gpus for model in content.models), list(dict.fromkeys(args.gpus))
    if num_gpus > 1 and device != "cuda":
        raise ValueError(f"nnU-Net trains on several GPUs by CUDA only, and the device is {device}.")
    if gpus and num_gpus > len(gpus):
        raise ValueError(f"A training takes {num_gpus} GPUs, and --gpus names {len(gpus)}.")
    test = (args.test[0].absolute(), args.test[1].absolute()) if args.test else None
    crossval = CrossValidation(dataset, content.models, content.planning, device, test)
    execution = engine.Execution(args.executor, gpus, content.cluster, args.retries, args.profile)
    if args.dry_run:
        print("\n".join(engine.dry_run(crossval, execution)))
        return 0
    if args.export_workflow:
        print("Wrote " + ", ".join(map(str, engine.export_workflow(crossval, execution, args.export_workflow))))
        return 0
    return engine.run(crossval, execution)


def _device_here() -> str:
    from nnunet_din.nnunet.devices import usable_device  # loads torch

    return usable_device().type


def _named(args: argparse.Namespace):
    """The models that are named on the command line, as a models file has them."""
    from nnunet_din.runs.crossval.models import ModelsFile, ModelSpec

    trainer, plans = args.trainer or "nnUNetTrainerDIN", args.plans or "nnUNetDINPlans"
    names = [(f"{trainer}__{plans}__{name}", name) for name in args.configurations or ["2d"]]
    folds = tuple(dict.fromkeys(args.folds))
    return ModelsFile(tuple(ModelSpec(n, trainer, plans, c, folds, num_gpus=args.num_gpus) for n, c in names))
