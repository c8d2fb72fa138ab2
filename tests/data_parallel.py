"""What the processes of test_distributed.py run: a module of its own, since spawned workers import it by name."""

from __future__ import annotations

import torch
from torch import distributed, nn

from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import PRESETS, DualInteractionNetwork


def network_and_batch() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    options = {**PRESETS["atto"], "decoder_channels": 16, "layer_scale": 0.5}
    network = DualInteractionNetwork(1, 3, **options)
    network.add_auxiliary_heads()
    return network, torch.randn(4, 2, 16, 24), torch.randint(0, 3, (4, 1, 16, 24))


def train_one_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    # nnU-Net turns BatchNorm into SyncBatchNorm for several GPUs, which CPUs do not have: statistics stay fixed here.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    AuxiliaryLoss(DINLoss())(network(x), y).backward()
    optimizer.step()


def worker(rank: int, folder: str, compiler: str | None) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network, x, y = network_and_batch()
    half = slice(2 * rank, 2 * rank + 2)
    forward = network
    if compiler:  # as in the trainer
        torch._dynamo.config.optimize_ddp = False
        forward = torch.compile(network, backend=compiler)
    train_one_step(nn.parallel.DistributedDataParallel(forward), x[half], y[half])
    torch.save(network.state_dict(), f"{folder}/{rank}.pth")
    distributed.destroy_process_group()
