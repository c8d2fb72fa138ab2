"""Plans and checkpoints of earlier versions: what commit 44a6472 (2026-11-25) wrote still builds, loads and predicts.

`fixtures/` holds plans of that commit, and for several networks the names and shapes of their weights (as a hash) and
some of the logits that they gave with the weights of :func:`weights_by_name`.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_din.network import DualInteractionNetwork

FIXTURES = Path(__file__).parent / "fixtures"
NETWORKS = json.loads((FIXTURES / "networks_44a6472.json").read_text())


def weights_by_name(state_dict):
    """Weights that depend on nothing but their names and shapes."""
    weights = {}
    for key, value in state_dict.items():
        if not value.is_floating_point():
            weights[key] = torch.ones_like(value)
            continue
        x, seed = torch.arange(value.numel(), dtype=torch.float64), sum(map(ord, key))
        y = 0.5 * torch.sin(12.9898 * x + seed) + 0.5 * torch.sin(78.233 * x + 2 * seed)
        y = y / math.sqrt(max(1, value.numel() // max(1, value.shape[0]))) if value.ndim > 1 else 0.1 * y
        if "running_var" in key or key.endswith("norm.weight"):
            y = 1 + 0.1 * y
        weights[key] = y.reshape(value.shape).to(value.dtype)
    return weights


def image():
    return torch.sin(torch.arange(2 * 64 * 64, dtype=torch.float32) * 0.37).reshape(1, 2, 64, 64)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("fast", "fct"))) for name in NETWORKS]
)
def test_networks_of_before_give_the_same_logits(name):
    expected = NETWORKS[name]
    network = DualInteractionNetwork(1, 4, **expected["arguments"])
    entries = sorted((key, list(value.shape)) for key, value in network.state_dict().items())
    assert len(entries) == expected["entries"]
    assert hashlib.sha256(json.dumps(entries).encode()).hexdigest() == expected["sha256"]
    network.load_state_dict(weights_by_name(network.state_dict()))
    network.eval()
    with torch.no_grad():
        logits = network(image())[0, :, ::31, ::31].flatten()
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trainer_name", ["nnUNetTrainerDIN", "nnUNetTrainerDIN_5en4", "nnUNetTrainerDIN_5epochs"])
def test_model_folder_of_before_predicts_the_same(tmp_path, dataset, trainer_name):
    """nnU-Net's predictor on a model folder as that commit wrote it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans = json.loads((FIXTURES / "plans_44a6472.json").read_text())
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    (tmp_path / "dataset.json").write_text(json.dumps(dataset.dataset_json))
    (tmp_path / "fold_0").mkdir()
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert arguments == NETWORKS["fast"]["arguments"], "the plans that the logits belong to"
    weights = weights_by_name(DualInteractionNetwork(1, 4, **arguments).state_dict())
    torch.save(
        {
            "network_weights": weights,
            "trainer_name": trainer_name,
            "init_args": {"configuration": "2d", "plans": plans, "fold": 0, "dataset_json": dataset.dataset_json},
            "inference_allowed_mirroring_axes": (0, 1),
        },
        tmp_path / "fold_0" / "checkpoint_final.pth",
    )
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(tmp_path), (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.eval()
    with torch.no_grad():
        logits = predictor.network(image())[0, :, ::31, ::31].flatten()
    np.testing.assert_allclose(logits, NETWORKS["fast"]["logits"], atol=2e-5)
