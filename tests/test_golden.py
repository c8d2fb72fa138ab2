"""Golden curves: a change that must not change results gives the same loss in each of 20 training steps.

After a change that is meant to change them, ``python tests/test_golden.py fast atto`` writes the curves of the named
presets again, without names those of all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_din.enhancement import enhance
from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.network.presets import preset_for_volumes

FILE = Path(__file__).parent / "fixtures" / "golden_losses.json"
VOLUMES = "fast for volumes"
SETTINGS = {
    **{preset: (arguments, (1, 32, 32) if preset == "fast" else (1, 16, 16)) for preset, arguments in PRESETS.items()},
    VOLUMES: (preset_for_volumes("fast", [[1, 1, 1], *[[2, 2, 2]] * 4], [[3, 3, 3]] * 5), (16, 32, 32)),
}
QUICK = ("fast", "atto")


def batch(depth: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two images of a bright ellipse in a darker one, in noise, with their enhanced versions; and the labels."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else [0.0] for n in (depth, height, width)), indexing="ij")
    images, labels = [], []
    for shift in (-0.2, 0.3):
        distance = np.sqrt(z**2 + (y - shift) ** 2 + 2 * (x + shift) ** 2)
        label = (distance < 0.8).astype(int) + (distance < 0.4)
        image = (100 + 50 * label + 10 * rng.normal(size=label.shape))[None]
        images.append(np.concatenate([(image - image.mean()) / image.std(), enhance(image)]))
        labels.append(label[None])
    arrays = np.stack(images).astype(np.float32), np.stack(labels)
    return tuple(torch.from_numpy(array if depth > 1 else array[:, :, 0]) for array in arrays)


def losses_of(name: str, steps: int = 20) -> list[float]:
    """Train by SGD, whose steps, unlike AdamW's, are as small as a difference in rounding."""
    arguments, size = SETTINGS[name]
    x, target = batch(*size)
    torch.manual_seed(0)
    network = DualInteractionNetwork(1, 3, **arguments)
    network.add_auxiliary_heads()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loss, losses = AuxiliaryLoss(DINLoss()), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(network(x), target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        losses.append(round(value.item(), 6))
    return losses


def curves() -> dict[str, list[float]]:
    """Read the stored curves."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in curves()]
)
def test_losses_are_those_of_before(name):
    golden = curves()[name]
    assert golden[-1] < 0.8 * golden[0], "it learns"
    np.testing.assert_allclose(losses_of(name), golden, rtol=2e-3)


if __name__ == "__main__":
    for setting in sys.argv[1:] or SETTINGS:
        losses = losses_of(setting)
        FILE.write_text(json.dumps({**curves(), setting: losses}, indent=1) + "\n")
