"""``nnunet-din profile``."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from nnunet_din.cli import main
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.accounting import training_memory
from nnunet_din.profiling import peak_memory, training_step


def test_counts_of_the_papers_network(capsys):
    assert main(["profile", "--count-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    total = report["parts"]["total"]
    assert total["parameters"] == pytest.approx(323.31e6, rel=0.002)
    assert total["literal_multiply_adds"] == pytest.approx(1860.09e9, rel=0.002)
    assert total["multiply_adds"] < 0.5 * total["literal_multiply_adds"]
    assert sum(row["parameters"] for part, row in report["parts"].items() if part != "total") == total["parameters"]
    assert "measured" not in report


def test_measures_on_this_device(capsys):
    assert main(["profile", "--preset", "atto", "--size", "32", "40", "--repeats", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name in ("encoders", "DIFMs", "decoder", "prediction", "training", "training, checkpointing"):
        assert f"\n{name} " in out


def test_plans_give_network_patch_and_batch(dataset, plans, tmp_path, capsys):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    assert main(["profile", str(path), "2d", "--count-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    config = plans["configurations"]["2d"]
    assert report["input_shape"] == [config["batch_size"], 2, *config["patch_size"]]
    assert report["network"] == config["architecture"]["arch_kwargs"]


def test_what_cannot_be_profiled(dataset, plans, tmp_path, capsys):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    assert main(["profile", str(path), "2d_other"]) == 1
    assert "has no configuration '2d_other'. It has: 2d" in capsys.readouterr().err
    assert main(["profile", str(path), "3d_fullres"]) == 1
    assert "holds a dynamic_network_architectures" in capsys.readouterr().err
    assert main(["profile", str(path), "--preset", "atto"]) == 1
    assert "not both" in capsys.readouterr().err


def test_peak_memory_of_a_step_that_can_be_counted_by_hand():
    network = nn.Identity()
    tensor = torch.randn(1000, 1000)

    def step():
        a = tensor + 1
        b = a + 1
        del a
        _ = b + 1

    assert peak_memory(step, network, torch.device("cpu")) == pytest.approx(8e6, rel=0.01)


def test_peak_memory_of_a_training_step_that_can_be_counted_by_hand():
    """Weights, gradients and two moments; fails if the gradients of the step before count as well."""
    network = nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        network(torch.ones(1, 1000)).sum().backward()
        optimizer.step()

    step()
    assert peak_memory(step, network, torch.device("cpu")) == pytest.approx(16e6, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("size", "batch"), [((224, 224), 1), ((64, 96), 4)])
def test_counted_memory_is_the_measured_one(size, batch, checkpointing):
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, 4, **PRESETS["atto"], checkpointing=checkpointing)
    x, target = torch.randn(batch, 2, *size), torch.randint(0, 4, (batch, 1, *size))
    step = training_step(network, x, target)
    step()
    measured = peak_memory(step, network, torch.device("cpu"))
    assert training_memory(network, x.shape) == pytest.approx(measured, rel=0.15)
