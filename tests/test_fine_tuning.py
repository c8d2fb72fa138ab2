"""Weights of a trained network as the start of another: other classes, other channels, another preset."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from nnunet_din import plugin
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.weights import adapt_channels, transfer_weights

SMALL = {"encoder": "plain_atto", "decoder_channels": 16, "stem_stride": 2, "upsampling": "pixel_shuffle"}
ENCODERS = ["plain_atto", "convnext_atto", "fct", "resnet18"]


def network(channels=1, classes=4, seed=0, **kwargs):
    torch.manual_seed(seed)
    return DualInteractionNetwork(channels, classes, **{**SMALL, **kwargs})


def checkpoint(tmp_path, net, **content):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": net.state_dict(), "trainer_name": "nnUNetTrainerDIN", **content}, path)
    return path


def load(net, path):
    """As `nnUNetv2_train -pretrained_weights` does."""
    function = getattr(importlib.import_module(plugin.WEIGHTS_MODULE), plugin.WEIGHTS_FUNCTION)
    function(net, str(path), verbose=True)


def test_everything_but_the_heads_comes_over(tmp_path, capsys):
    trained, fresh = network(classes=4), network(classes=3, seed=1)
    trained.add_auxiliary_heads()
    fresh.add_auxiliary_heads()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    load(fresh, checkpoint(tmp_path, trained))
    old = trained.state_dict()
    for key, value in fresh.state_dict().items():
        head = "classifier" in key or "seg_layers" in key
        assert torch.equal(value, before[key] if head else old[key]), key
    assert "Pretrained weights from" in fresh.origin and fresh.origin in capsys.readouterr().out


def test_a_compiled_or_distributed_network_is_recognised(tmp_path):
    trained = network(classes=4)

    class Wrapper(nn.Module):
        def __init__(self, name, module):
            super().__init__()
            self.add_module(name, module)

    path = checkpoint(tmp_path, trained)
    for names in (("_orig_mod",), ("module",), ("_orig_mod", "module")):
        wrapped = fresh = network(classes=3, seed=1)
        for name in names:
            wrapped = Wrapper(name, wrapped)
        load(wrapped, path)
        key = "encoders.0.stages.0.0.0.weight"
        assert torch.equal(fresh.state_dict()[key], trained.state_dict()[key])


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("before", "now"), [(1, 3), (3, 1), (2, 4)])
def test_other_channels_with_equal_values_give_the_same_features(encoder, before, now):
    """An image repeated in every channel is to the adapted layer what it was to the trained one."""
    options = {} if encoder.startswith("plain") else {"stem_stride": 1, "upsampling": "bilinear"}
    trained, fresh = (network(c, 4, seed, encoder=encoder, **options).eval() for seed, c in enumerate((before, now)))
    transfer = transfer_weights(fresh, trained.state_dict())
    assert transfer.adapted and transfer.channels == (before, now)
    assert str(now) in str(transfer) and transfer.adapted[0] in str(transfer)
    image, enhanced = torch.rand(2, 1, 1, 64, 64)
    with torch.no_grad():
        expected, got = (
            [net.encoders[i](x.repeat(1, c, 1, 1))[-1][1] for i, x in enumerate((image, enhanced))]
            for net, c in ((trained, before), (fresh, now))
        )
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_images_side_by_side_are_adapted_one_by_one():
    weight = torch.arange(4.0).view(1, 4, 1, 1)  # two versions of two channels
    assert adapt_channels(weight, 1, versions=2).flatten().tolist() == [1, 5]
    assert adapt_channels(weight, 4, versions=2).flatten().tolist() == [0, 0.5, 0, 0.5, 1, 1.5, 1, 1.5]


def test_channels_are_adapted_as_by_timm():
    from timm.models import adapt_input_conv

    weight = torch.rand(4, 3, 3, 3)
    for channels in (1, 2, 5, 7):
        torch.testing.assert_close(adapt_channels(weight, channels), adapt_input_conv(channels, weight.clone()))


@pytest.mark.parametrize(
    "kwargs",
    [{"encoder": "plain_femto"}, {"decoder_channels": 8}, {"fusion": "concat"}, {"encoder": "convnext_atto"}],
    ids=lambda kwargs: next(iter(kwargs.values())),
)
def test_another_preset_is_refused_in_one_sentence(kwargs, tmp_path):
    fresh = network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    plans = {"init_args": {"plans": {"plans_name": "nnUNetDINPlans"}}}
    with pytest.raises(ValueError, match="not the preset") as error:
        load(fresh, checkpoint(tmp_path, network(**kwargs), **plans))
    message = str(error.value)
    assert "checkpoint_final.pth" in message and "nnUNetDINPlans" in message
    assert "\n" not in message and len(message) < 700
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_what_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no readable checkpoint"):
            load(network(), path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load(network(), path)


def test_networks_of_nnunet_are_left_to_nnunet(tmp_path):
    class Network(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.body = nn.Conv2d(1, 2, 1)
            self.decoder = nn.Module()
            self.decoder.seg_layers = nn.Conv2d(2, classes, 1)

    trained, fresh = Network(4), Network(3)
    load(fresh, checkpoint(tmp_path, trained))
    assert torch.equal(trained.body.weight, fresh.body.weight)
