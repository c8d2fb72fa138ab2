"""``benchmarks/gpu.py``: it runs from beginning to end without nnU-Net, and loses no figure."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
#: What a bare machine does not have.
MISSING = ["nnunetv2", "batchgenerators", "batchgeneratorsv2", "SimpleITK", "nibabel", "monai", "blosc2", "matplotlib"]


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield importlib.import_module("gpu")
    for name in ("gpu", "common"):
        del sys.modules[name]


@pytest.mark.slow
def test_all_questions_on_a_cpu_without_nnunet(tmp_path):
    """Every figure is measured, those of the other processes too, although nnU-Net cannot be imported."""
    # A module that is None in sys.modules cannot be imported; every process of Python begins with this file.
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({MISSING}))\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-W", "ignore", SCRIPT, "--tiny", "--device", "cpu", "--json", tmp_path / "gpu.json"]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=900).stdout
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [figure for figure in report["figures"] if "error" in figure] == []
    figures = {(figure["question"], figure["figure"]): figure["result"] for figure in report["figures"]}
    assert any(question.startswith("How long does torch.compile take") for question, _ in figures)
    assert all(r["fp32 against the CPU"] < 1e-5 for r in figures.values() if "fp32 against the CPU" in r)
    assert all(r["against eager"] < 1e-4 for r in figures.values() if "against eager" in r)
    assert "not measured" not in output


def test_a_figure_that_fails_or_comes_too_late_does_not_end_the_rest(gpu, tmp_path, capsys):
    run = gpu.Run(gpu.torch.device("cpu"), gpu.Scale())

    def figures(run):
        yield "good", lambda: {"images/s": 12.3456789}
        yield "bad", lambda: [][0]
        yield "overflowing", lambda: {"norm": float("inf"), "kernel": "none"}

    report = {"figures": [], "commit": "abc"}
    gpu.ask([("first?", 60, figures), ("late?", -1, figures)], run, 9, report, tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    texts = [gpu.text_of(figure) for figure in report["figures"]]
    late = "not measured: no time was left"
    assert texts == [
        "images/s 12.35",
        "IndexError: list index out of range",
        "norm not finite, kernel none",
        *[late] * 3,
    ]
    assert "good: images/s 12.35" in capsys.readouterr().out


def test_the_documentation_holds_the_table_of_the_figures(gpu, capsys):
    gpu.main(["table"])
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    shown = text.split("<!-- table -->\n")[1].split("<!-- end of table -->")[0].strip()
    assert shown == capsys.readouterr().out.strip(), "docs/gpu.md: paste what `python benchmarks/gpu.py table` prints"


def test_another_run_asks_only_what_the_file_does_not_answer(gpu, tmp_path):
    """Of the same device and torch; what failed before is asked again."""
    path, asked = tmp_path / "gpu.json", []

    def figures(run):
        yield "answered", lambda: asked.append("answered")
        yield "failed before", lambda: asked.append("failed before") or {"s": 1.0}

    question = {"question": "first?", "commit": "abc"}
    before = [
        {**question, "figure": "answered", "result": {"s": 2.0}},
        {**question, "figure": "failed before", "error": ""},
    ]
    path.write_text(json.dumps({"device": "a GPU", "torch": "2.11", "figures": before}))
    new = {"device": "a GPU", "torch": "2.11", "commit": "def", "figures": []}
    report = gpu.begun(path, dict(new))
    gpu.ask([("first?", 60, figures)], gpu.Run(gpu.torch.device("cpu"), gpu.Scale()), 9, report, path)
    assert asked == ["failed before"]
    assert [(f["commit"], f["result"]) for f in report["figures"]] == [("abc", {"s": 2.0}), ("def", {"s": 1.0})]
    assert gpu.begun(path, {**new, "device": "another GPU"})["figures"] == []


@pytest.mark.parametrize("patch", [(512, 512), (128, 128, 128)])
@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_nnunets_networks_are_those_of_its_planners(gpu, dataset, monkeypatch, name, patch):
    from dynamic_network_architectures.architectures import unet
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        nnUNetPlannerResEncM,
    )

    planner = (ExperimentPlanner if name == "PlainConvUNet" else nnUNetPlannerResEncM)(dataset.name)
    plan = planner.get_plans_for_configuration(np.ones(len(patch)), np.array(patch), "none", 1e12, {})
    given = {}
    monkeypatch.setattr(unet, name, lambda **kwargs: given.update(kwargs))
    gpu.stock(name, patch)
    assert list(plan["patch_size"]) == list(patch) and plan["batch_size"] == gpu.Scale().compared[len(patch) - 2][0]
    for key, value in plan["architecture"]["arch_kwargs"].items():
        if key in given and not isinstance(value, str):  # classes stand there by name
            assert json.dumps(given[key]) == json.dumps(value, default=int), key


@pytest.mark.parametrize("size", [(8, 9), (4, 6, 5)])
def test_the_loss_that_networks_are_timed_with_is_nnunets(gpu, size):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    expected = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    logits, labels = sys.modules["common"].batch_of((2, *size), 4, 4)
    labels[0] = 0
    ours = sys.modules["common"].dice_and_cross_entropy(logits, labels)
    gpu.torch.testing.assert_close(ours, expected(logits, labels))
