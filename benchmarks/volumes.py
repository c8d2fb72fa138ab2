"""DIN ``fast`` in 3-D against nnU-Net's ``3d_fullres`` (PlainConvUNet) and ResEnc-M: training steps, predictions of a
patch, and memory at the peak of a step, all on nnU-Net's patch for the data set and with the same batch.

Each with its own loss and optimizer as its trainer has them, in turn, in what DIN's trainers compute in. nnU-Net's
three folders must be set and the fingerprint extracted (``nnUNetv2_extract_fingerprint -d ID``). Writes
to ``volumes.json`` beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from common import StockStep, append, batch_of, head, plan, ratios
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_din.diagnosis.measurement import Prediction, TrainingStep, peak_memory, seconds_in_turn
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.cost import count_multiply_adds, count_parameters, training_memory
from nnunet_din.nnunet.devices import autocast_dtype
from nnunet_din.planners.din_planners import nnUNetPlannerDINFast

CLASSES = 4
STOCK = {"nnU-Net 3d_fullres": ExperimentPlanner, "nnU-Net ResEnc-M": nnUNetPlannerResEncM}

KINDS = ("training", "prediction")


def make_stock(architecture: dict) -> torch.nn.Module:
    """nnU-Net's network of an ``architecture`` of plans, with the outputs of training."""
    names = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    return get_network_from_plans(*(architecture[name] for name in names), 1, CLASSES, deep_supervision=True)


def make_din(architecture: dict, attention: str) -> torch.nn.Module:
    """DIN of an ``architecture`` of plans, with the outputs of training."""
    network = DualInteractionNetwork(1, CLASSES, **architecture["arch_kwargs"], attention=attention)
    network.add_auxiliary_heads()
    return network


def compare(
    dataset: str, batch: int, repeats: int, device: torch.device, spacing: Sequence[float] | None = None
) -> dict:
    """Every network's speed and memory, and DIN's ratios to the two of nnU-Net."""
    plans = {
        name: plan(planner, dataset, overwrite_target_spacing=spacing)[0]["configurations"]["3d_fullres"]
        for name, planner in {**STOCK, "DIN": nnUNetPlannerDINFast}.items()
    }
    patch = plans["nnU-Net 3d_fullres"]["patch_size"]
    torch.manual_seed(0)
    networks = {name: make_stock(plans[name]["architecture"]) for name in STOCK}
    for attention in ("window", "axial"):
        networks[f"DIN fast, {attention} attention"] = make_din(plans["DIN"]["architecture"], attention)
    dtype, steps, rows = autocast_dtype(device), {}, {}
    for name, network in networks.items():
        network.to(device)
        stock = name in STOCK
        rows[name] = {
            "parameters": count_parameters(network),
            "multiply-adds": count_multiply_adds(network, (1, 1 if stock else 2, *patch)),
        }
        x, target = batch_of((batch, *patch), 1 if stock else 2, CLASSES, device)
        training = (StockStep if stock else TrainingStep)(network, x, target, dtype)
        training()
        rows[name]["peak memory of a training step (GB)"] = round(peak_memory(training) / 1e9, 3)
        if not stock:
            network.deep_supervision = False  # as when planning
            counted = training_memory(network, x.shape, half_precision=dtype is not None)
            network.deep_supervision = True
            rows[name]["as the planner counts it (GB)"] = round(counted / 1e9, 3)
        steps |= {(name, "training"): training, (name, "prediction"): Prediction(network, x, dtype)}
    seconds = seconds_in_turn(steps, repeats, device)
    for (name, kind), values in seconds.items():
        rows[name][f"{kind}, patches a second"] = [round(batch / s, 3) for s in values]
    din = "DIN fast, window attention"
    speedups = {
        f"{din} / {name}": {kind: ratios(seconds[name, kind], seconds[din, kind]) for kind in KINDS}
        for name in networks
        if name != din
    }
    return {"patch": patch, "batch": batch, "networks": rows, "speed": speedups}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, help="ID of the data set")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("-overwrite_target_spacing", type=float, nargs=3, help="as in nnUNetv2_plan_experiment")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    result = head(device) | compare(args.d, args.batch, args.repeats, device, args.overwrite_target_spacing)
    append(result)
    print(f"patch {result['patch']}, batch {args.batch}")
    for name, row in result["networks"].items():
        print(name, row)
    for name, speed in result["speed"].items():
        print(name, {kind: ratio["median"] for kind, ratio in speed.items()})


if __name__ == "__main__":
    main()
