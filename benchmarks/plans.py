"""What the planners plan for a data set under several memory targets, as a table in Markdown.

nnU-Net's three folders must be set and the fingerprint extracted (``nnUNetv2_extract_fingerprint -d ID``). Counts, it
measures nothing; no plans are written. Writes ``plans.json`` beside this file.
"""

from __future__ import annotations

import argparse

from common import head, plan, write

from nnunet_din.cost.accounting import training_memory
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.planners.din_planners import (
    nnUNetPlannerDIN,
    nnUNetPlannerDINAtto,
    nnUNetPlannerDINFast,
    nnUNetPlannerDINTiny,
)

PLANNERS = [nnUNetPlannerDIN, nnUNetPlannerDINTiny, nnUNetPlannerDINAtto, nnUNetPlannerDINFast]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, help="ID of the data set")
    parser.add_argument("--targets", type=float, nargs="+", default=[6, 8, 12, 24, 48, 80], metavar="GB")
    args = parser.parse_args()
    print("| preset | memory target | patch | batch | checkpointing | expected peak |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for planner in PLANNERS:
        for target in args.targets:
            plans, printed = plan(planner, args.d, gpu_memory_target_in_gb=target)
            configuration = plans["configurations"]["2d"]
            kwargs, patch, batch = (
                configuration["architecture"]["arch_kwargs"],
                list(configuration["patch_size"]),
                configuration["batch_size"],
            )
            network = DualInteractionNetwork(1, 4, **kwargs).to("meta")
            peak = planner.memory_overhead * training_memory(network, (batch, 2, *patch), half_precision=True) / 1e9
            row = {"preset": planner.preset, "target_gb": target, "patch": patch, "batch": batch}
            row |= {"checkpointing": bool(kwargs.get("checkpointing")), "expected_gb": round(peak, 2)}
            rows.append(row | {"fits": "WARNING" not in printed})
            warning = " (does not fit: the planner warns)" if "WARNING" in printed else ""
            checkpointing = "on" if kwargs.get("checkpointing") else "off"
            print(
                f"| {planner.preset} | {target:g} GB | {patch[0]} x {patch[1]} | {batch} | {checkpointing} "
                f"| {peak:.1f} GB{warning} |",
                flush=True,
            )
    write(head("counted") | {"plans": rows})


if __name__ == "__main__":
    main()
