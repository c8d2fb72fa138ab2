"""The paper's alternatives as arguments of the network: each builds, trains every parameter, and comes back from its
state.
"""

from __future__ import annotations

import json

import pytest
import torch

from nnunet_din.losses import DINLoss
from nnunet_din.network import FUSIONS, DualInteractionNetwork, DualInteractiveFusionModule, InputFusion, build_fusion
from nnunet_din.nnunet.configurations import PAPER_TABLES, network_arguments


def alternatives():
    """Arguments beyond those of a small network: the paper's tables, and one direction among three versions.

    Rows that differ in the enhancement alone have one network. Of Swin, 28 million parameters, the table's last row
    is enough; the others take a smaller pyramid of timm, which the same class wraps.
    """
    arguments = {name: network_arguments({}, *what) for name, what in PAPER_TABLES.items()}
    for name, kwargs in arguments.items():
        if name.startswith("2d_swin_"):
            kwargs["encoder"] = "pvt_v2_b0"
    arguments["three versions, one direction"] = {"versions": 3, "queries": [0]}
    different = {json.dumps(kwargs): (name, kwargs) for name, kwargs in arguments.items()}.values()
    quick = ("2d_concat", "2d_only_I", "2d_fct")
    return [pytest.param(kwargs, id=name, marks=[pytest.mark.slow] * (name not in quick)) for name, kwargs in different]


def build(**kwargs):
    torch.manual_seed(0)
    options = {"encoder": "convnext_atto", "decoder_channels": 16, **kwargs}
    return DualInteractionNetwork(1, 3, **options), torch.randn(2, options.get("versions", 2), 32, 64)


@pytest.mark.parametrize("kwargs", alternatives())
def test_every_alternative_trains_every_parameter_and_comes_back_from_its_state(kwargs, tmp_path):
    network, x = build(**kwargs)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    logits = network(x)
    assert logits.shape == (2, 3, 32, 64)
    DINLoss()(logits, torch.randint(0, 3, (2, 1, 32, 64))).backward()
    without = [
        name
        for name, p in network.named_parameters()
        if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())
    ]
    assert not without, "under DDP every parameter needs a gradient in every step"
    optimizer.step()
    other, _ = build(**kwargs)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    with torch.no_grad():
        assert torch.equal(other.eval()(x), network.eval()(x))


def test_inputs_that_are_not_used_do_not_matter():
    """Fails if "only I" sees the enhanced image, or "only E" the original."""
    for used in (0, 1):
        network, x = build(inputs=[used])
        network.eval()
        changed = x.clone()
        changed[:, 1 - used] += 1
        with torch.no_grad():
            assert torch.equal(network(x), network(changed))
            changed[:, used] += 1
            assert not torch.equal(network(x), network(changed))


def test_each_stage_that_is_left_out_takes_its_level_from_encoder_and_decoder():
    network, _ = build(fused_stages=2)
    assert len(network.difms) == len(network.decoder.linear) == 2
    assert all(len(encoder.stages) == 2 for encoder in network.encoders)


def test_fusions_are_what_their_names_say():
    assert set(FUSIONS) == {"difm", "concat", "input"}
    network, _ = build(fusion="input")
    assert len(network.encoders) == 1 and isinstance(network.difms[0], InputFusion)
    assert network.encoders[0].stem[0].in_channels == 2
    f_low, f_high = torch.randn(2, 1, 8, 7, 7)
    concat = build_fusion("concat", 8, 2)
    assert torch.equal(concat((f_low, f_high), (f_high, f_low)), concat.conv(torch.cat((f_high, f_low), 1)))
    without = DualInteractiveFusionModule(8, feature_merging=False)
    assert torch.equal(without((f_low, f_high), (f_low, f_high)), without((f_high, f_high), (f_high, f_high)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fusion": "sum"}, "Unknown fusion 'sum'. Known: difm, concat, input"),
        ({"window": 7}, "option of the network 'window': did you mean 'window_size'.*feature_merging"),
        ({"inputs": [2]}, "inputs must name some of the 2 versions"),
        ({"fused_stages": 5}, "fused_stages must be 1 to 4, got 5"),
    ],
)
def test_what_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
