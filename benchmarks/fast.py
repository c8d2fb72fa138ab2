"""Training steps of DIN ``fast`` against nnU-Net's ResEnc-M, on the patch of ResEnc-M's 2-D plans.

Each with its own loss and optimizer as its trainer has them (DIN: L_seg + L_bnd, AdamW; nnU-Net: Dice + CE with deep
supervision, SGD), in turn, in what DIN's trainers compute in; compiled where asked. nnU-Net's three folders must be set
and the fingerprint extracted (``nnUNetv2_extract_fingerprint -d ID``). Writes ``fast.json`` beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from common import head, plan, ratios, rounds, write
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_din.cost.accounting import count_multiply_adds, count_parameters
from nnunet_din.cost.measurement import TrainingStep, autocast
from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride
from nnunet_din.nnunet.training_device import autocast_dtype

CLASSES = 4


def nnunet_step(
    network: torch.nn.Module, x: torch.Tensor, target: torch.Tensor, dtype: torch.dtype | None
) -> Callable[[], None]:
    """Forward pass, loss, backward pass, SGD, as nnUNetTrainer has them."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    outputs = network(x[:1])
    weights = np.array([1 / 2**i for i in range(len(outputs))])
    weights[-1] = 0
    loss = DeepSupervisionWrapper(
        DC_and_CE_loss(
            {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            dice_class=MemoryEfficientSoftDiceLoss,
        ),
        weights / weights.sum(),
    )
    targets = [
        torch.nn.functional.interpolate(target.float(), size=o.shape[2:], mode="nearest").to(target.dtype)
        for o in outputs
    ]

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(x.device, dtype):
            value = loss(network(x), targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    return step


def compare(dataset: str, preset: str, batch: int, repeats: int, device: torch.device, compiled: bool = False) -> dict:
    """Images a second of both on the patch of ResEnc-M's 2-D plans for a data set, and their ratio."""
    configuration = plan(nnUNetPlannerResEncM, dataset)[0]["configurations"]["2d"]
    architecture = configuration["architecture"]
    # On most data sets the patch is as it is: both take it.
    strides = np.maximum(np.prod(architecture["arch_kwargs"]["strides"], axis=0), input_stride(**PRESETS[preset]))
    patch = (np.ceil(configuration["patch_size"] / strides) * strides).astype(int).tolist()
    torch.manual_seed(0)
    networks = {
        "ResEnc-M": get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            CLASSES,
            deep_supervision=True,
        ),
        f"DIN {preset}": DualInteractionNetwork(1, CLASSES, **PRESETS[preset]),
    }
    stock, din = networks
    result = {
        "patch": patch,
        "batch": batch,
        "parameters": {name: count_parameters(n) for name, n in networks.items()},
        "multiply-adds": {name: count_multiply_adds(n, (1, 1 + (name == din), *patch)) for name, n in networks.items()},
    }
    steps = {}
    for name, network in networks.items():
        network.to(device)
        if compiled:
            network.compile()
        x = torch.randn(batch, 1 + (name == din), *patch, device=device)
        target = torch.randint(0, CLASSES, (batch, 1, *patch), device=device)
        steps[name] = (TrainingStep if name == din else nnunet_step)(network, x, target, autocast_dtype(device))
    seconds = rounds(steps, repeats, device)
    speed = {name: [round(batch / s, 3) for s in values] for name, values in seconds.items()}
    return result | {"images per second": speed, f"{din} / {stock}": ratios(seconds[stock], seconds[din])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, help="ID of the data set")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="pairs (default: 3)")
    parser.add_argument("--preset", choices=list(PRESETS), default="fast")
    parser.add_argument("--compile", action="store_true", help="compile both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    result = head(device) | compare(args.d, args.preset, args.batch, args.repeats, device, args.compile)
    write(result)
    print(f"patch {result['patch']}, batch {args.batch}, images a second: {result['images per second']}")
    name = f"DIN {args.preset} / ResEnc-M"
    print(f"{name}: {result[name]['median']:.2f} ({result[name]['min']:.2f} to {result[name]['max']:.2f})")


if __name__ == "__main__":
    main()
