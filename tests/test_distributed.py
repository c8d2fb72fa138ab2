"""Two processes train the network as one process does with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from nnunet_din.network import PRESETS, DualInteractionNetwork


def network_and_batch():
    torch.manual_seed(0)
    options = {**PRESETS["atto"], "decoder_channels": 16, "layer_scale": 0.5}
    return DualInteractionNetwork(1, 3, **options), torch.randn(4, 2, 16, 24), torch.randn(4, 3, 16, 24)


def train_one_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    # nnU-Net turns BatchNorm into SyncBatchNorm for several GPUs, which CPUs do not have: statistics stay fixed here.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    (network(x) - y).square().mean().backward()
    optimizer.step()


def worker(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network, x, y = network_and_batch()
    half = slice(2 * rank, 2 * rank + 2)
    train_one_step(nn.parallel.DistributedDataParallel(network), x[half], y[half])
    torch.save(network.state_dict(), f"{folder}/{rank}.pth")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available() or sys.platform == "win32", reason="torch without gloo")
def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path):
    multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    network, x, y = network_and_batch()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    train_one_step(network, x, y)
    for key, expected in network.state_dict().items():
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
        torch.testing.assert_close(first[key], expected, rtol=1e-5, atol=1e-6)
    assert any((first[key] - value).abs().max() > 1e-3 for key, value in start.items())
