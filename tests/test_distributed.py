"""Two processes train the network as one process does with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from data_parallel import network_and_batch, train_one_step, worker


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available() or sys.platform == "win32", reason="torch without gloo")
@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_two_processes_equal_one_with_the_whole_batch(compiler: str | None, tmp_path: Path):
    multiprocessing.spawn(worker, args=(str(tmp_path), compiler), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    network, x, y = network_and_batch()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    train_one_step(network, x, y)
    for key, expected in network.state_dict().items():
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
        torch.testing.assert_close(first[key], expected, rtol=1e-5, atol=1e-6)
    assert any((first[key] - value).abs().max() > 1e-3 for key, value in start.items())
