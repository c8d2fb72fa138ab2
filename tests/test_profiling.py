"""``nnunet-din profile``, and time and memory of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunet_dataset import SMALL_NETWORK
from nnunet_din.commands.main import main
from nnunet_din.diagnosis.measurement import Prediction, Step, TrainingStep, peak_memory, seconds_in_turn
from nnunet_din.diagnosis.profiling import Profile
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.cost import largest_batch, training_memory
from nnunet_din.planners.configurations import PAPER_TABLES, derive

CPU = torch.device("cpu")
TINY = {**SMALL_NETWORK, "fused_stages": 1}
VOLUMES = {
    "isotropic": {"encoder": "plain_atto", "strides": [[2, 2, 2]] * 4, "upsampling": "pixel_shuffle"},
    "in-plane first": {
        "encoder": "convnext_atto",
        "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[1, 5, 5], [3, 5, 5], [3, 5, 5], [3, 5, 5]],
    },
}


# ---- the command ----


def test_counts_of_the_papers_network():
    parts = Profile(PRESETS["base"]).parts()
    total = parts.pop("total")
    assert total["parameters"] == pytest.approx(323.31e6, rel=0.002)
    assert total["literal_multiply_adds"] == pytest.approx(1860.09e9, rel=0.002)
    assert total["multiply_adds"] < 0.5 * total["literal_multiply_adds"]
    assert sum(row["parameters"] for row in parts.values()) == total["parameters"]


@pytest.fixture
def small_preset(monkeypatch):
    """A small network in place of the preset ``atto``."""
    monkeypatch.setitem(PRESETS, "atto", TINY)


def test_measures_on_this_device(small_preset, capsys):
    assert main("profile --preset atto --size 32 32 --repeats 1 --device cpu".split()) == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    for name in ("encoders", "DIFMs", "decoder", "total", "prediction", "training", "training, checkpointing"):
        assert name in lines


@pytest.fixture
def plans_file(tmp_path):
    """Plans with configurations of three versions and of another network, without a ``dataset.json`` beside them."""
    plans = json.loads((Path(__file__).parent / "fixtures" / "plans_44a6472.json").read_text())
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = TINY
    plans["configurations"]["2d_fuzzy_clahe"] = derive(plans, "2d", "new", *PAPER_TABLES["2d_fuzzy_clahe"])
    plans["configurations"]["stock"] = {**plans["configurations"]["2d"], "inherits_from": "2d"}
    plans["configurations"]["stock"]["architecture"] = {"network_class_name": "x.y.UNet", "arch_kwargs": {}}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(plans))
    return path


@pytest.mark.parametrize(("name", "versions"), [("2d", 2), ("2d_fuzzy_clahe", 3)])
def test_plans_give_network_patch_and_batch(name, versions, plans_file, capsys):
    """What a configuration inherits counts as its own."""
    assert main(["profile", str(plans_file), name, "--count-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    inherited = json.loads(plans_file.read_text())["configurations"]["2d"]
    assert report["input_shape"] == [inherited["batch_size"], versions, *inherited["patch_size"]]
    assert report["network"]["fused_stages"] == 1 and "measured" not in report


def test_all_configurations_in_one_table(small_preset, plans_file, capsys, monkeypatch):
    assert main(["profile", str(plans_file), "--all"]) == 0
    table = capsys.readouterr().out
    assert main(["profile", str(plans_file), "--all", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == ["2d", "2d_fuzzy_clahe"], "others than DIN's are left out"
    assert f"| `2d` | {rows['2d']['parameters'] / 1e6:.2f} |" in table
    monkeypatch.setattr("nnunet_din.diagnosis.profiling.PAPER_TABLES", {"2d_concat": PAPER_TABLES["2d_concat"]})
    assert main("profile --all --preset atto --size 32 32".split()) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == ["`2d`", "`2d_concat`"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("PLANS 2d_other", "have no configuration '2d_other'. They have: 2d"),
        ("PLANS stock", "There is no DualInteractionNetwork in configuration 'stock' of"),
        ("PLANS --size 8 8 8 --count-only", "shape (1, 2, 8, 8, 8)"),
        ("PLANS --preset atto", "--preset: not allowed with argument PLANS.json"),
        ("--preset huge", "Unknown preset 'huge'. Known: base, tiny, atto, fast."),
        ("--batch 0", "--batch: '0' is no whole number from 1 on"),
        ("nope.json", "nope.json does not exist. Plan with -pl nnUNetPlannerDIN first."),
    ],
)
def test_what_cannot_be_profiled(arguments, message, plans_file, capsys):
    try:
        code = main(["profile", *arguments.replace("PLANS", str(plans_file)).split()])
    except SystemExit as error:  # by argparse
        code = error.code
    assert code and message in capsys.readouterr().err


def test_counts_of_volumes_by_part():
    """The decoder as printed is counted from the sizes of its levels, which need not halve along every axis."""
    parts = Profile({**VOLUMES["in-plane first"], "decoder_channels": 64}, (4, 32, 32)).parts()
    pixels, levels = 4 * 16 * 16, [4 * 16 * 16, 4 * 8 * 8, 2 * 4 * 4, 1 * 2 * 2]
    linear = sum(64 * d * n for d, n in zip((40, 80, 160, 320), levels, strict=True))
    assert parts["decoder"]["literal_multiply_adds"] == linear + pixels * 64 * (9 * 4 * 64 + 4)
    assert 0 < parts["decoder"]["multiply_adds"] < parts["decoder"]["literal_multiply_adds"]


# ---- a step ----


class ByHand(Step):
    """Two tensors of 4 MB at a time."""

    def __call__(self):
        a = self.x + 1
        b = a + 1
        del a
        return b + 1


class Linear(TrainingStep):
    """Weights of 4 MB, with the sum of the outputs as the loss."""

    def loss(self, output):
        return output.sum()


def test_peak_memory_of_steps_that_can_be_counted_by_hand():
    """Weights, gradients and two moments of a training; fails if the gradients of the step before count as well."""
    assert peak_memory(ByHand(nn.Identity(), torch.randn(1000, 1000))) == pytest.approx(8e6, rel=0.01)
    step = Linear(nn.Linear(1000, 1000, bias=False), torch.ones(1, 1000), torch.zeros(1))
    step()
    assert peak_memory(step) == pytest.approx(16e6, rel=0.01)


def test_steps_are_timed_in_turn_after_a_warm_up():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    clock = iter(range(100)).__next__  # each look takes a second
    assert seconds_in_turn(steps, 2, CPU, warm_up=3, clock=clock) == {"a": [1, 1], "b": [1, 1]}
    assert "".join(calls) == "ab" * 5


def test_a_prediction_leaves_out_the_auxiliary_outputs():
    network = DualInteractionNetwork(1, 3, **PRESETS["atto"])
    network.add_auxiliary_heads()
    x = torch.randn(1, 2, 32, 32)
    logits = Prediction(network, x)()
    assert logits.shape == (1, 3, 32, 32) and not logits.requires_grad
    assert network.deep_supervision and len(network.train()(x)) > 1


# ---- the planners' count ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shape", "classes"),
    [
        ({**PRESETS["atto"], "checkpointing": False}, (1, 2, 224, 224), 4),
        ({**PRESETS["atto"], "checkpointing": True}, (4, 2, 64, 96), 4),
        # Loss and auxiliary heads hold most of it.
        ({**PRESETS["fast"], "decoder_channels": 64}, (2, 2, 96, 128), 118),
        # Two stages, whose maps take much more than the weights.
        ({**VOLUMES["isotropic"], "decoder_channels": 64, "fused_stages": 2}, (2, 2, 32, 48, 32), 16),
        (
            {**VOLUMES["in-plane first"], "decoder_channels": 64, "fused_stages": 2, "checkpointing": True},
            (2, 2, 8, 64, 64),
            4,
        ),
    ],
    ids=["atto", "atto, checkpointing", "many classes", "volumes, 16 classes", "volumes, checkpointing"],
)
def test_counted_memory_is_the_measured_one(options, shape, classes):
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, classes, **options)
    network.add_auxiliary_heads()
    step = TrainingStep(network, torch.randn(*shape), torch.randint(0, classes, (shape[0], 1, *shape[2:])))
    step()
    assert training_memory(network, shape) == pytest.approx(peak_memory(step), rel=0.15)


def test_the_batch_for_a_memory_is_the_largest():
    network = nn.Conv2d(1, 8, 3)

    def count(n):
        return training_memory(network, (n, 1, 32, 32))

    budget = count(100)
    assert count(99) < budget < count(101), "activations take more than weights here"
    assert largest_batch(count, budget) == 100 and largest_batch(count, budget, most=50) == 50
    assert largest_batch(count, 1e3) == 2
