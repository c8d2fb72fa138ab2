"""``nnunet-din profile``."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from nnunet_din.commands.main import main
from nnunet_din.cost.accounting import training_memory
from nnunet_din.cost.measurement import TrainingStep, count, peak_memory
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.nnunet.configurations import PAPER_TABLES, derive


@pytest.mark.slow
def test_counts_of_the_papers_network(capsys):
    assert main(["profile", "--count-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    total = report["parts"]["total"]
    assert total["parameters"] == pytest.approx(323.31e6, rel=0.002)
    assert total["literal_multiply_adds"] == pytest.approx(1860.09e9, rel=0.002)
    assert total["multiply_adds"] < 0.5 * total["literal_multiply_adds"]
    assert sum(row["parameters"] for part, row in report["parts"].items() if part != "total") == total["parameters"]
    assert "measured" not in report


@pytest.mark.slow
def test_measures_on_this_device(capsys):
    assert main(["profile", "--preset", "atto", "--size", "32", "40", "--repeats", "1", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name in ("encoders", "DIFMs", "decoder", "prediction", "training", "training, checkpointing"):
        assert f"\n{name} " in out


@pytest.mark.slow
def test_plans_give_network_patch_and_batch(dataset, plans, tmp_path, capsys):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    assert main(["profile", str(path), "2d", "--count-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    config = plans["configurations"]["2d"]
    assert report["input_shape"] == [config["batch_size"], 2, *config["patch_size"]]
    assert report["network"] == config["architecture"]["arch_kwargs"]


@pytest.mark.slow
def test_configurations_of_other_encoders_and_versions(dataset, plans, tmp_path, capsys):
    """What a configuration inherits counts as its own; fails if patch, versions or the decoder's size are not its."""
    derived = {name: derive(plans, "2d", name, *PAPER_TABLES[name]) for name in ("2d_swin", "2d_fuzzy_clahe")}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps({**plans, "configurations": {**plans["configurations"], **derived}}))
    batch = plans["configurations"]["2d"]["batch_size"]
    rows = {}
    for name in derived:
        assert main(["profile", str(path), name, "--count-only", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        rows[name] = report["parts"]
        versions = 3 if name == "2d_fuzzy_clahe" else 2
        patch = [64, 64] if name == "2d_swin" else plans["configurations"]["2d"]["patch_size"]
        assert report["input_shape"] == [batch, versions, *patch]
    # The Swin's decoder works at a quarter of the patch: its 3 x 3 convolution alone has this many multiply-adds.
    channels = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["decoder_channels"]
    assert rows["2d_swin"]["decoder"]["literal_multiply_adds"] < 2 * 9 * 4 * channels**2 * 16 * 16
    assert main(["profile", str(path), "--all"]) == 0
    table = capsys.readouterr().out
    for name, parts in rows.items():
        assert f"| `{name}` | {parts['total']['parameters'] / 1e6:.2f} |" in table
    assert "| `2d` |" in table and "| `3d_fullres` |" in table


@pytest.mark.slow
def test_table_of_the_papers_configurations(capsys, monkeypatch):
    monkeypatch.setattr("nnunet_din.commands.profile.PAPER_TABLES", {"2d_concat": PAPER_TABLES["2d_concat"]})
    assert main(["profile", "--all", "--preset", "base", "--size", "224", "224"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| `2d` | 323.16 |") and rows[3].startswith("| `2d_concat` |") and len(rows) == 4


def test_what_cannot_be_profiled(dataset, plans, tmp_path, capsys):
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    assert main(["profile", str(path), "2d_other"]) == 1
    assert "have no configuration '2d_other'. They have: 2d" in capsys.readouterr().err
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "dynamic_network_architectures.x.Y"
    path.write_text(json.dumps(plans))
    assert main(["profile", str(path), "3d_fullres"]) == 1
    assert "holds a dynamic_network_architectures" in capsys.readouterr().err
    assert main(["profile", str(path), "--size", "8", "8", "8", "--count-only"]) == 1
    assert "--size takes 2 edges for this network, got 8 x 8 x 8" in capsys.readouterr().err
    assert main(["profile", str(path), "--preset", "atto"]) == 1
    assert "not both" in capsys.readouterr().err
    assert main(["profile", "--all", "--json"]) == 1
    assert "leave out --json" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # by argparse, before anything large is loaded
        main(["profile", "--preset", "huge"])
    assert "choose from" in capsys.readouterr().err
    assert main(["profile", "nope.json"]) == 1
    assert "nope.json does not exist. Plan with -pl nnUNetPlannerDIN first." in capsys.readouterr().err
    assert main(["profile", "--size", "0", "0"]) == 1
    assert "--size takes two or three edges from 1 on, got 0 x 0" in capsys.readouterr().err
    plans["configurations"].pop("2d")
    path.write_text(json.dumps(plans))
    assert main(["profile", str(path), "--all"]) == 1
    assert "has no DIN configuration" in capsys.readouterr().err


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


VOLUMES = {
    "isotropic": {"encoder": "plain_atto", "strides": [[2, 2, 2]] * 4, "upsampling": "pixel_shuffle"},
    "in-plane first": {
        "encoder": "convnext_atto",
        "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[1, 5, 5], [3, 5, 5], [3, 5, 5], [3, 5, 5]],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "size", "checkpointing"), [("isotropic", (32, 48, 32), False), ("in-plane first", (8, 64, 64), True)]
)
def test_counted_memory_of_volumes_is_the_measured_one(preset, size, checkpointing):
    """Two stages, whose maps take much more than the weights."""
    options = {**VOLUMES[preset], "decoder_channels": 64, "fused_stages": 2, "checkpointing": checkpointing}
    assert_counted_memory_is_measured(options, (2, 2, *size))


def test_counts_of_volumes_by_part():
    """The decoder as printed is counted from the sizes of its levels, which need not halve along every axis."""
    kwargs = {**VOLUMES["in-plane first"], "decoder_channels": 64}
    parts = count(kwargs, 1, 4, (4, 32, 32))
    pixels, levels = 4 * 16 * 16, [4 * 16 * 16, 4 * 8 * 8, 2 * 4 * 4, 1 * 2 * 2]
    linear = sum(64 * d * n for d, n in zip((40, 80, 160, 320), levels, strict=True))
    assert parts["decoder"]["literal_multiply_adds"] == linear + pixels * 64 * (9 * 4 * 64 + 4)
    assert 0 < parts["decoder"]["multiply_adds"] < parts["decoder"]["literal_multiply_adds"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("size", "batch"), [((224, 224), 1), ((64, 96), 4)])
def test_counted_memory_is_the_measured_one(size, batch, checkpointing):
    assert_counted_memory_is_measured({**PRESETS["atto"], "checkpointing": checkpointing}, (batch, 2, *size))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 16, 118])
@pytest.mark.parametrize("size", [(96, 128), (32, 48, 32)])
def test_counted_memory_of_many_classes_is_the_measured_one(size, classes):
    """Loss and auxiliary heads hold most of it; fails if the count leaves them out."""
    options = PRESETS["fast"] if len(size) == 2 else {**VOLUMES["isotropic"], "fused_stages": 2}
    assert_counted_memory_is_measured({**options, "decoder_channels": 64}, (2, 2, *size), classes)


def assert_counted_memory_is_measured(options, shape, classes=4):
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, classes, **options)
    network.add_auxiliary_heads()
    x, target = torch.randn(*shape), torch.randint(0, classes, (shape[0], 1, *shape[2:]))
    step = TrainingStep(network, x, target)
    step()
    measured = peak_memory(step, network, torch.device("cpu"))
    assert training_memory(network, shape) == pytest.approx(measured, rel=0.15)
