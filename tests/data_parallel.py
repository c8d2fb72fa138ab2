"""What the processes of test_distributed.py run: a module of its own, since they import it by name."""

from __future__ import annotations

import torch
from torch import distributed, nn

from nnunet_din.losses import AuxiliaryLoss, DINLoss


def network_and_batch(whole: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Make the network, or a single layer in its place, and a batch of four images."""
    torch.manual_seed(0)
    network: nn.Module = nn.Conv2d(2, 3, 3, padding=1)
    if whole:
        from tiny import tiny

        network = tiny(encoder="convnext_atto", layer_scale=0.5)
        network.add_auxiliary_heads()
    return network, torch.randn(4, 2, 16, 24), torch.randint(0, 3, (4, 1, 16, 24))


def train_one_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    # nnU-Net turns BatchNorm into SyncBatchNorm for several GPUs, which CPUs do not have: statistics stay fixed here.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    outputs = network(x)
    loss = DINLoss() if isinstance(outputs, torch.Tensor) else AuxiliaryLoss(DINLoss())
    loss(outputs, y).backward()
    optimizer.step()


def worker(rank: int, folder: str, whole: bool, compiler: str | None) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network, x, y = network_and_batch(whole)
    half = slice(2 * rank, 2 * rank + 2)
    forward = network
    if compiler:  # as in the trainer
        torch._dynamo.config.optimize_ddp = False
        forward = torch.compile(network, backend=compiler)
    train_one_step(nn.parallel.DistributedDataParallel(forward), x[half], y[half])
    torch.save(network.state_dict(), f"{folder}/{rank}.pth")
    distributed.destroy_process_group()
