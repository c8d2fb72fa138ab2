"""Hundreds of training steps stay finite, in every precision and whatever the intensities of the images."""

from __future__ import annotations

import pytest
import torch

from nnunet_dataset import SMALL_NETWORK
from nnunet_din.diagnosis.measurement import TrainingStep, autocast
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.encoders import ENCODERS
from nnunet_din.network.encoders.plain import WIDTHS, PlainEncoder

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
#: Of the intensities of the images of each batch.
SCALES = torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_300_steps_stay_finite(dtype, device, monkeypatch):
    """Losses, weights and outputs; in fp16 with the gradients scaled, of which few steps may be left out."""
    monkeypatch.setitem(WIDTHS, "plain_tiniest", (8, 8, 16, 16))
    monkeypatch.setitem(ENCODERS, "plain_tiniest", PlainEncoder)
    torch.manual_seed(0)
    options = {**SMALL_NETWORK, "encoder": "plain_tiniest", "decoder_channels": 8, "fused_stages": 2}
    network = DualInteractionNetwork(1, 3, **options)
    network.add_auxiliary_heads()
    network.to(device)

    def batch():
        x = torch.randn(3, 2, 16, 16)
        return (x * SCALES).to(device), (x[:, :1] > 0.5).long().to(device)

    step = TrainingStep(network, *batch(), dtype)
    losses, overflows, scale = [], 0, step.scale
    for _ in range(300):
        step.x, step.target = batch()
        losses.append(step())
        overflows += step.scale < scale
        scale = step.scale
    assert torch.stack(losses).isfinite().all() and overflows <= (20 if dtype == torch.float16 else 0)
    assert torch.stack(losses[-20:]).mean() < torch.stack(losses[:20]).mean()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    for training in (True, False):
        network.train(training)
        with torch.no_grad(), autocast(step.x.device, dtype):
            assert all(output.isfinite().all() for output in network(step.x))
