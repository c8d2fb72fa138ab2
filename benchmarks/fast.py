"""Training steps of DIN ``fast`` against nnU-Net's ResEnc-M, on the patch of ResEnc-M's 2-D plans.

Each with its own loss and optimizer as its trainer has them (DIN: L_seg + L_bnd, AdamW; nnU-Net: Dice + CE with deep
supervision, SGD), in turn, in bf16 autocast on a GPU and in fp32 on a CPU; in nnU-Net's memory format and compiled
where asked. nnU-Net's three folders must be set and the fingerprint extracted (``nnUNetv2_extract_fingerprint -d ID``).
Writes ``fast.json`` beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from common import head, plan, ratios, write
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from tqdm import trange

from nnunet_din.cost.accounting import count_multiply_adds, count_parameters
from nnunet_din.cost.measurement import seconds_of, training_step
from nnunet_din.network import PRESETS, DualInteractionNetwork


def nnunet_step(network: torch.nn.Module, x: torch.Tensor, target: torch.Tensor, half: bool) -> Callable[[], None]:
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
        torch.nn.functional.interpolate(target.float(), size=o.shape[-2:], mode="nearest").to(target.dtype)
        for o in outputs
    ]

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            value = loss(network(x), targets)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()

    return step


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
    half = device.type == "cuda"
    configuration = plan(nnUNetPlannerResEncM, args.d)[0]["configurations"]["2d"]
    architecture, patch = configuration["architecture"], configuration["patch_size"]
    classes = 4
    torch.manual_seed(0)
    networks = {
        "ResEnc-M": get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            classes,
            deep_supervision=True,
        ),
        f"DIN {args.preset}": DualInteractionNetwork(1, classes, **PRESETS[args.preset]),
    }
    stock, din = networks
    result = head(device) | {
        "patch": list(patch),
        "batch": args.batch,
        "parameters": {name: count_parameters(n) for name, n in networks.items()},
        "multiply-adds": {name: count_multiply_adds(n, (1, 1 + (name == din), *patch)) for name, n in networks.items()},
    }
    steps = {}
    for name, network in networks.items():
        network.to(device)
        if args.compile:
            network.compile()
        x = torch.randn(args.batch, 1 + (name == din), *patch, device=device)
        target = torch.randint(0, classes, (args.batch, 1, *patch), device=device)
        steps[name] = (training_step if name == din else nnunet_step)(network, x, target, half)
    seconds = {name: [] for name in networks}
    for i in trange(args.repeats + 1, desc="pairs"):  # the first is a warm-up
        for name, step in steps.items():
            elapsed = seconds_of(step, device)
            if i:
                seconds[name].append(elapsed)
    speed = {name: [round(args.batch / s, 3) for s in values] for name, values in seconds.items()}
    ratio = ratios(seconds[stock], seconds[din])
    write(result | {"images per second": speed, f"{din} / {stock}": ratio})
    print(f"patch {list(patch)}, batch {args.batch}, images a second: {speed}")
    print(f"{din} / {stock}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")


if __name__ == "__main__":
    main()
