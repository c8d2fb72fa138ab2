"""Weights of other networks as a start: pretrained encoders, and trained networks with other classes or channels."""

from __future__ import annotations

import hashlib
import importlib

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from nnunet_din import plugin
from nnunet_din.network.alternatives.pyramid import describe
from nnunet_din.weights import adapt_channels, load_pretrained_encoders, transfer_weights
from tiny import tiny

LARGE_KERNEL = "stages.0.blocks.0.conv_dw.weight"


def atto(**options):
    """Make a network with two stages of ConvNeXt, which have every kind of layer."""
    return tiny(**{"encoder": "convnext_atto", "fused_stages": 2, **options})


@pytest.fixture(scope="module")
def atto_weights():
    torch.manual_seed(1)
    return timm.create_model("convnext_atto").state_dict()


# ---- pretrained encoders ----


@pytest.fixture(scope="module")
def sources(tmp_path_factory, atto_weights):
    """A folder of weights: files, a download from the hub, and a folder with a single file of any name."""
    root = tmp_path_factory.mktemp("sources")
    for folder in ("hub", "single"):
        (root / folder).mkdir()
    (root / "hub" / "config.json").write_text("{}")
    (root / "hub" / "pytorch_model.bin").write_text("the other form of the same weights, which nobody reads")
    for name in ("file.pth", "single/convnext_atto_d2.pth"):
        torch.save(atto_weights, root / name)
    for name in ("file.safetensors", "hub/model.safetensors"):
        save_file(atto_weights, root / name)
    return root


@pytest.mark.parametrize("source", ["file.pth", "file.safetensors", "hub", "local-dir:hub", "single"])
def test_pretrained_weights_come_from_files_and_folders(sources, atto_weights, source):
    prefix = "local-dir:" if source.startswith("local-dir:") else ""
    name = source.removeprefix(prefix)
    network = atto()
    report = load_pretrained_encoders(network, f"{prefix}{sources / name}")
    for encoder in network.encoders:
        for key, value in encoder.stages.state_dict().items():
            assert torch.equal(value, atto_weights[f"stages.{key}"])
    text = str(report)
    assert "fitted to this encoder: stem.0.weight: (40, 3, 4, 4), (40, 1, 3, 3)" in text
    assert "head.fc.weight" in text and "edge_pooling.0.1.weight" in text
    file = {"hub": "hub/model.safetensors", "single": "single/convnext_atto_d2.pth"}.get(name, name)
    assert report.source.startswith(str(sources / file))
    assert hashlib.sha256((sources / file).read_bytes()).hexdigest() in text


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_the_pretrained_stem_answers_an_enlarged_patch_as_before(sources, atto_weights, channels):
    network = atto(channels=channels)
    load_pretrained_encoders(network, sources / "file.pth")
    small_patch = torch.randn(1, 1, 3, 3)
    patch = F.interpolate(small_patch, size=(4, 4), mode="bilinear")
    expected = F.conv2d(patch.repeat(1, 3, 1, 1), atto_weights["stem.0.weight"], atto_weights["stem.0.bias"])
    for encoder in network.encoders:
        stem = encoder.stem[0]
        got = F.conv2d(small_patch.repeat(1, channels, 1, 1), stem.weight, stem.bias)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_pretrained_weights_are_inflated(sources):
    of_slices = atto(layer_scale=1.0)
    of_volumes = atto(layer_scale=1.0, strides=[[1, 1, 1]] + [[1, 2, 2]] * 3)
    for network in (of_slices, of_volumes):
        report = load_pretrained_encoders(network, sources / "file.pth")
        assert all(key.startswith(("edge_pooling", "stem.1")) for key in report.not_in_file) and not report.mismatched
    assert f"{LARGE_KERNEL}: (40, 1, 7, 7), (40, 1, 7, 7, 7)" in str(report)
    x = torch.randn(1, 1, 2, 16, 16)
    with torch.no_grad():
        pairs = zip(of_volumes.encoders[1](x), of_slices.encoders[1](x[0].transpose(0, 1)), strict=True)
        for (_, volume), (_, flat) in pairs:
            torch.testing.assert_close(volume[0].transpose(0, 1), flat, rtol=1e-4, atol=1e-4)


def test_convnext_v2_takes_timms_weights(tmp_path):
    """It has no layer scale, and global response normalization."""
    network = tiny(encoder="convnextv2_atto", layer_scale=None)
    keys = network.encoders[0].state_dict().keys()
    assert any(key.endswith("mlp.grn.weight") for key in keys) and not any("gamma" in key for key in keys)
    torch.save(timm.create_model("convnextv2_atto").state_dict(), tmp_path / "weights.pth")
    report = load_pretrained_encoders(network, tmp_path / "weights.pth")
    assert not report.mismatched and all(key.startswith("edge_pooling") for key in report.not_in_file)


def test_pretrained_weights_in_the_original_authors_names(tmp_path, atto_weights):
    names = {"stem.": "downsample_layers.0.", "conv_dw": "dwconv", "mlp.fc": "pwconv", ".blocks.": "."}

    def original(key):
        for timms, authors in names.items():
            key = key.replace(timms, authors)
        if ".downsample." in key:
            key = key.replace("stages.", "downsample_layers.").replace(".downsample", "")
        return key.replace("head.norm", "norm").replace("head.fc", "head")

    torch.save({"model": {original(k): v for k, v in atto_weights.items()}}, tmp_path / "fb.pth")
    report = load_pretrained_encoders(atto(fused_stages=4), tmp_path / "fb.pth")
    assert sum(".blocks." in key for key in report.loaded) == sum(".blocks." in k for k in atto_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_pretrained_weights_of_a_pyramid(tmp_path, name):
    """As timm loads them; fails if a layer but the edge features keeps its random weights."""
    torch.manual_seed(1)
    torch.save(timm.create_model(name).state_dict(), tmp_path / "weights.pth")
    network = tiny(encoder=name)
    report = load_pretrained_encoders(network, tmp_path / "weights.pth")
    assert all(key.startswith("edge_") for key in report.not_in_file) and not report.mismatched
    overlay = {"file": str(tmp_path / "weights.pth")}
    expected = timm.create_model(
        name, pretrained=True, features_only=True, in_chans=1, out_indices=describe(name).levels,
        pretrained_cfg_overlay=overlay, **({"strict_img_size": False} if "swin" in name else {}),
    ).state_dict()  # fmt: skip
    for encoder in network.encoders:
        for key, value in expected.items():
            assert torch.equal(encoder.body.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("encoder", "source", "message"),
    [
        ("convnext_atto", "folder/nowhere.pth", "no such file or folder, and timm knows no model of that name"),
        ("convnext_atto", "local-dir:folder/nowhere", "there is no such folder"),
        ("convnext_atto", "empty", "holds no file with weights"),
        ("convnext_atto", "folder", r"holds more than one file with weights \(a.pth, b.pth\). Name the file"),
        ("convnext_atto", "folder/a.pth", "do not fit the encoder convnext_atto.*convnext_atto.d2_in1k"),
        ("pvt_v2_b0", "folder/a.pth", "do not fit the encoder pvt_v2_b0.*pvt_v2_b0.in1k"),
        ("pvt_v2_b0", "resnet18", "do not fit the encoder pvt_v2_b0: they are another model's"),
        ("fct", "folder/a.pth", "no pretrained weights for encoder 'fct': use -tr nnUNetTrainerDIN"),
    ],
)
def test_pretrained_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch, encoder, source, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("a.pth", "b.pth"):
        torch.save(nn.Conv2d(3, 40, 3).state_dict(), tmp_path / "folder" / name)
    with pytest.raises(ValueError, match=message):
        load_pretrained_encoders(tiny(encoder=encoder, fused_stages=2), source)


# ---- trained networks ----


def checkpoint(tmp_path, network, **content):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainerDIN", **content}, path)
    return path


def load(network, path):
    """As `nnUNetv2_train -pretrained_weights` does."""
    function = getattr(importlib.import_module(plugin.WEIGHTS_MODULE), plugin.WEIGHTS_FUNCTION)
    function(network, str(path), verbose=True)


def copied(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


class Wrapper(nn.Module):
    """What compilation and distributed training put around a network."""

    def __init__(self, name, module):
        super().__init__()
        self.add_module(name, module)


@pytest.mark.parametrize("wrappers", [(), ("_orig_mod",), ("module",), ("_orig_mod", "module")])
def test_everything_but_the_heads_comes_over(tmp_path, capsys, wrappers):
    trained, fresh = tiny(classes=4), tiny(classes=3, seed=1)
    trained.add_auxiliary_heads()
    fresh.add_auxiliary_heads()
    before, old, network = copied(fresh), trained.state_dict(), fresh
    for name in wrappers:
        network = Wrapper(name, network)
    load(network, checkpoint(tmp_path, trained))
    for key, value in fresh.state_dict().items():
        head = "classifier" in key or "seg_layers" in key
        assert torch.equal(value, before[key] if head else old[key]), key
    assert "Pretrained weights from" in fresh.origin and fresh.origin in capsys.readouterr().out


@pytest.mark.parametrize(
    "encoder",
    ["plain_tiniest", *(pytest.param(e, marks=pytest.mark.slow) for e in ("convnext_atto", "fct", "resnet18"))],
)
@pytest.mark.parametrize(("before", "now"), [(1, 3), (3, 1), (2, 4)])
def test_other_channels_with_equal_values_give_the_same_features(encoder, before, now):
    """An image repeated in every channel is to the adapted layer what it was to the trained one."""
    trained, fresh = (tiny(c, 4, seed, encoder=encoder).eval() for seed, c in enumerate((before, now)))
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


def test_channels_are_adapted_as_by_timm_and_images_side_by_side_one_by_one():
    weight = torch.rand(4, 3, 3, 3)
    for channels in (1, 2, 5, 7):
        expected = timm.models.adapt_input_conv(channels, weight.clone())
        torch.testing.assert_close(adapt_channels(weight, channels), expected)
    weight = torch.arange(4.0).view(1, 4, 1, 1)  # two versions of two channels
    assert adapt_channels(weight, 1, versions=2).flatten().tolist() == [1, 5]
    assert adapt_channels(weight, 4, versions=2).flatten().tolist() == [0, 0.5, 0, 0.5, 1, 1.5, 1, 1.5]


@pytest.mark.parametrize("options", [{"encoder": "fct"}, {"decoder_channels": 6}, {"fusion": "concat"}], ids=str)
def test_another_preset_is_refused_in_one_sentence(options, tmp_path):
    fresh = tiny()
    before = copied(fresh)
    plans = {"init_args": {"plans": {"plans_name": "nnUNetDINPlans"}}}
    with pytest.raises(ValueError, match="not the preset") as error:
        load(fresh, checkpoint(tmp_path, tiny(**options), **plans))
    message = str(error.value)
    assert "checkpoint_final.pth" in message and "nnUNetDINPlans" in message
    assert "\n" not in message and len(message) < 700
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_what_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load(tiny(), path)
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        load(tiny(), path)


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
