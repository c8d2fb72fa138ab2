"""``nnunet-din doctor``: what hinders nnU-Net and the plug-in here, and what to do about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from nnunet_din.commands.arguments import positive
from nnunet_din.diagnosis.check import Check


def add_parser(subparsers) -> None:
    """Add the sub-command ``doctor`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this environment, a data set, or how this device trains",
        description="Check versions, whether nnU-Net finds the plug-in's classes here and in a spawned worker, the "
        "three nnU-Net folders, workers and memory; with -d a data set, too, and with --step a few steps of training. "
        "Exit code 1 if anything is wrong.",
    )
    parser.add_argument("-d", dest="dataset", metavar="ID", help="check this data set's cases and plans, too")
    parser.add_argument("-p", dest="plans", metavar="PLANS", help="plans of that data set that must be there")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    step = parser.add_argument_group("a training step", "Train on random data as nnU-Net would with nnUNetTrainerDIN.")
    step.add_argument("--step", action="store_true", help="train a few steps, and judge time, memory and numbers")
    step.add_argument("--preset", help="the network: base, tiny, atto or fast (default: fast)")
    step.add_argument("--device", help="default: cuda if there is one, or cpu")
    step.add_argument(
        "--size", type=positive, nargs=2, metavar=("H", "W"), help="of the images (default: 256 256, on a CPU 128 128)"
    )
    step.add_argument("--batch", type=positive, help="images a step (default: as many as --memory holds)")
    step.add_argument("--memory", type=float, metavar="GB", help="planned memory (default: 8, on a CPU 0.4)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report, and return 1 if a check failed, else 0."""
    if args.plans and not args.dataset:
        raise ValueError("-p names plans of a data set: give the data set, too, with -d.")
    of_step = [name for name in ("preset", "device", "size", "batch", "memory") if getattr(args, name) is not None]
    if of_step and not args.step:
        raise ValueError(f"--{of_step[0]} is about the training step: add --step.")
    report: list[Check] = []
    for check in _examine(args):
        report.append(check)
        if not args.json:
            print(f"{'ok   ' if check.ok else 'WRONG'}  {check.name:<24}  {check.found}", flush=True)
            if not check.ok:
                print(f"       -> do this: {check.do}", flush=True)
    healthy = all(check.ok for check in report)
    if args.json:
        print(json.dumps({"healthy": healthy, "checks": [asdict(check) for check in report]}, indent=2))
    else:
        print("Everything is in place." if healthy else "Something is wrong: see the lines marked WRONG.")
    return 0 if healthy else 1


def _examine(args: argparse.Namespace) -> Iterator[Check]:
    """All checks, in the order in which one fault causes the next.

    Yields
    ------
    Check
        What was looked at, and what was found.
    """
    from nnunet_din.diagnosis import installation, machine

    versions = list(installation.versions())
    works = all(check.ok for check in versions)
    yield from versions
    if works:
        yield machine.device()
        yield from installation.classes()
        yield installation.fine_tuning()
        yield machine.workers()
    yield from machine.folders()
    yield machine.memory()
    yield machine.shared_memory()
    if args.dataset:
        from nnunet_din.diagnosis.dataset import dataset_checks

        yield from dataset_checks(args.dataset, args.plans)
    if args.step and works:
        from nnunet_din.diagnosis.training import training_checks

        yield from training_checks(args.preset or "fast", args.device, args.size, args.batch, args.memory)
