"""Two processes train a network as one process does with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from data_parallel import network_and_batch, train_one_step, worker


@pytest.mark.skipif(not distributed.is_available() or sys.platform == "win32", reason="torch without gloo")
@pytest.mark.parametrize(
    ("whole", "compiler"),
    [
        (False, None),
        pytest.param(True, None, marks=pytest.mark.slow),
        pytest.param(True, "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_with_the_whole_batch(whole: bool, compiler: str | None, tmp_path: Path):
    """Fails if the loss of each process is that of its own images: Dice sums over all of them."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["data_parallel"])  # imports torch once
    multiprocessing.start_processes(worker, (str(tmp_path), whole, compiler), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    network, x, y = network_and_batch(whole)
    start = {key: value.clone() for key, value in network.state_dict().items()}
    train_one_step(network, x, y)
    for key, expected in network.state_dict().items():
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
        torch.testing.assert_close(first[key], expected, rtol=1e-5, atol=1e-6)
    assert any((first[key] - value).abs().max() > 1e-3 for key, value in start.items())
