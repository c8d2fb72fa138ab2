"""Zero-DCE: curves, losses by hand, fitting, the file of weights, and `nnunet-din train-zero-dce`."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_din.commands.main import main
from nnunet_din.data import write_dataset
from nnunet_din.enhancement import enhance_slices, to_unit_interval
from nnunet_din.enhancement.intensity import INTENSITIES
from nnunet_din.enhancement.zero_dce import zero_dce_enhance, zero_dce_parameters
from nnunet_din.network.alternatives.zero_dce import (
    DCENet,
    apply_curves,
    color_constancy_loss,
    exposure_loss,
    fit_zero_dce,
    smoothness_loss,
    spatial_consistency_loss,
    zero_dce_loss,
)
from nnunet_din.planners import slices as slices_module
from nnunet_din.planners.slices import training_slices


def save(path, channels=1, std=0.1, seed=0):
    """A file of weights that change an image visibly, and what the plans say about it."""
    torch.manual_seed(seed)
    network = DCENet(channels)
    for convolution in network.convolutions:
        torch.nn.init.normal_(convolution.weight, std=std)
    torch.save(network.state_dict(), path)
    return network, zero_dce_parameters(path)


def slices(n=6, shape=(1, 40, 48), level=0.1, seed=0):
    """Dark images in (-1, 1)."""
    x = np.random.default_rng(seed).uniform(0, 2 * level, size=(n, *shape))
    return list((2 * x - 1).astype(np.float32))


# ---- network and curves ----


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_gives_eight_maps_a_channel(channels):
    """Fails if maps have another size than the image, leave the interval of monotone curves, or the network of
    colours has other parameters than the paper's.
    """
    assert sum(parameter.numel() for parameter in DCENet(3).parameters()) == 79_416
    network, x = DCENet(channels), torch.rand(2, channels, 17, 21)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    a = network(x)
    assert a.shape == (2, 8, channels, 17, 21) and a.abs().max() <= 1 and a.std() > 0.1


def test_skip_connections_are_symmetric():
    """Fails if the last layers see other features than those of their mirror images: 3 and 4, 2 and 5, 1 and 6."""
    seen, made = {}, {}
    network = DCENet(1)
    for number, convolution in enumerate(network.convolutions, start=1):
        convolution.register_forward_pre_hook(lambda _, inputs, number=number: seen.update({number: inputs[0]}))
        convolution.register_forward_hook(lambda _, inputs, output, number=number: made.update({number: output}))
    network(torch.rand(1, 1, 16, 16))
    for layer, (early, late) in {5: (3, 4), 6: (2, 5), 7: (1, 6)}.items():
        assert torch.equal(seen[layer], torch.cat((made[early].relu(), made[late].relu()), dim=1))


def test_curves_keep_the_range_and_the_order():
    """Fails if a curve leaves [0, 1] or makes a brighter pixel darker than another."""
    x = torch.linspace(0, 1, 201, dtype=torch.float64).reshape(1, 1, 1, -1)
    for value in (-1.0, -0.3, 0.4, 1.0):
        y = apply_curves(x, torch.full((1, 8, 1, 1, 201), value, dtype=torch.float64))
        assert y.min() == 0 and y.max() == 1 and (y.diff(dim=-1) >= 0).all()
        assert (y[..., 1:-1].mean() > 0.5) == (value > 0)


def test_curves_are_applied_one_after_the_other():
    """Fails if maps are summed, a curve starts from the image again, or A = 0 is not the identity."""
    a = torch.tensor([1.0, -0.5]).reshape(1, 2, 1, 1, 1)
    # 0.5 + 0.5 * 0.5 = 0.75; 0.75 - 0.5 * 0.75 * 0.25 = 0.65625
    assert apply_curves(torch.full((1, 1, 1, 1), 0.5), a).item() == 0.65625
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(apply_curves(x, torch.zeros(2, 8, 3, 5, 5)), x)


# ---- losses ----


def regions(values, size):
    """An image ``(1, 1, H, W)`` of constant square regions."""
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(size, 0).repeat_interleave(size, 1)[None, None]


def test_spatial_consistency_by_hand():
    """Fails if regions are not 4 x 4 pixels, a neighbour is missing, or signs count."""
    x = regions([[0.1, 0.3], [0.2, 0.6]], 4)
    y = regions([[0.7, 0.3], [0.2, 0.6]], 4)
    # Differences 0.2, 0.1, 0.4 and 0.3 became 0.4, 0.5, 0.4 and 0.3; each pair counts from both sides, 4 regions.
    expected = 2 * (0.2**2 + 0.4**2) / 4
    assert spatial_consistency_loss(y, x).item() == pytest.approx(expected)
    assert spatial_consistency_loss(1 - x, x).item() == pytest.approx(0, abs=1e-12)
    assert spatial_consistency_loss(torch.cat([y, x]), torch.cat([x, x])).item() == pytest.approx(expected / 2)


def test_exposure_by_hand():
    """Fails if regions are not 16 x 16 pixels, or the level is not 0.6."""
    assert exposure_loss(regions([[0.6, 0.5], [0.6, 0.8]], 16)).item() == pytest.approx((0.1**2 + 0.2**2) / 4)
    checkerboard = regions([[0.4, 0.8], [0.8, 0.4]], 8)
    assert exposure_loss(checkerboard).item() == pytest.approx(0, abs=1e-12)


def test_color_constancy_by_hand():
    """Fails if a pair of channels is missing or pixels are compared; one channel has no colours."""
    means = torch.tensor([0.2, 0.3, 0.6]).reshape(1, 3, 1, 1)
    noise = torch.tensor([-0.1, 0.1]).reshape(1, 1, 1, 2)
    assert color_constancy_loss(means + noise).item() == pytest.approx(0.1**2 + 0.4**2 + 0.3**2)
    assert color_constancy_loss(torch.rand(2, 1, 4, 4)).item() == 0


def test_smoothness_by_hand():
    """Fails if a direction, an iteration or a channel is missing, or the sum is not the mean over pixels."""
    slope = torch.arange(4.0).expand(4, 4) * 0.1  # along x only
    a = torch.zeros(1, 8, 3, 4, 4)
    assert smoothness_loss(a + 0.7).item() == 0
    a[0, 2, 1], a[0, 5, 0] = slope, 2 * slope.T
    assert smoothness_loss(a).item() == pytest.approx(2 * (0.1**2 + 0.2**2), rel=1e-5)


def test_total_loss_has_the_weights_of_the_authors():
    """Fails if one of the losses is left out or weighted otherwise."""
    torch.manual_seed(0)
    network, x = DCENet(3), torch.rand(2, 3, 32, 32)
    torch.nn.init.normal_(network.convolutions[-1].bias, std=0.5)
    torch.nn.init.normal_(network.convolutions[-1].weight, std=1.0)
    a = network(x)
    y = apply_curves(x, a)
    parts = [spatial_consistency_loss(y, x), exposure_loss(y), color_constancy_loss(y), smoothness_loss(a)]
    assert all(part > 1e-6 for part in parts)
    expected = parts[0] + 10 * parts[1] + 5 * parts[2] + 200 * parts[3]
    torch.testing.assert_close(zero_dce_loss(network, x), expected)


# ---- fitting ----


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "direction"), [(0, 1), (0.9, -1)])
def test_fitting_brightens_dark_images_and_darkens_bright_ones(offset, direction):
    """Fails if the curves are fitted in the wrong direction, or the network that is given back was not fitted."""
    images = [offset + (0.05 if offset else 1) * image for image in slices(level=0.5 if offset else 0.1)]
    fit = fit_zero_dce(images, iterations=150, size=16, batch=4)
    assert fit.loss_after < fit.loss_before
    x = torch.from_numpy(np.stack(images) + 1) / 2
    with torch.no_grad():
        assert direction * (apply_curves(x, fit.network(x)) - x).mean() > 0.05


def test_the_seed_decides():
    """Fails if two fits differ although nothing was changed, the seed has no effect, or the caller's seed changes."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, same, other = (fit_zero_dce(slices(), iterations=2, size=16, batch=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    weights = [fit.network.convolutions[3].weight for fit in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert first.loss_after == same.loss_after


@pytest.mark.parametrize(("shape", "size"), [((1, 40, 70), 32), ((1, 9, 13), 16)])
def test_crops_fit_into_the_slices(shape, size):
    """Fails if slices smaller than a crop stop the fit, or regions of 16 pixels are cut."""
    assert fit_zero_dce([*slices(2, shape), *slices(1, (1, 20, 100))], iterations=1, size=64, batch=8).size == size


@pytest.mark.parametrize(
    ("images", "kwargs", "message"),
    [
        ([], {}, "no slices"),
        ([*slices(1), *slices(1, (3, 40, 40))], {}, "number of channels: [1, 3]"),
        (slices(1), {"size": 8}, "size must be at least 16"),
        (slices(1), {"batch": 0}, "batch 0"),
    ],
)
def test_fits_that_cannot_be_made(images, kwargs, message):
    """Fails if wrong input ends in an error of torch."""
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        fit_zero_dce(images, **kwargs)


# ---- enhancement from a file ----


def test_the_file_gives_the_network_that_was_saved(tmp_path):
    """Fails if the range is mapped otherwise, slices of a batch mix, or weights are not read from the file."""
    network, parameters = save(tmp_path / "w.pth")
    f = np.random.default_rng(0).uniform(-0.99, 0.99, (2, 3, 15, 18))
    with torch.no_grad():
        x = torch.from_numpy(f[1, 2][None, None].astype(np.float32) / 2 + 0.5)
        expected = 2 * apply_curves(x, network(x))[0, 0].numpy() - 1
    e = zero_dce_enhance(f, **parameters)
    assert e.dtype == np.float64 and e.shape == f.shape and np.abs(e).max() < 1
    np.testing.assert_allclose(e[1, 2], expected, atol=1e-5)
    assert np.abs(e - f).mean() > 0.01, "these weights change the image"


@pytest.mark.parametrize("color", [False, True])
def test_volumes_are_enhanced_by_the_registry(color, tmp_path):
    """Fails if the plans' method and parameters do not reach Zero-DCE, or its result is not in (-1, 1)."""
    _, parameters = save(tmp_path / "w.pth", channels=3 if color else 1, std=1.0)
    data = np.random.default_rng(0).gamma(2, 100, size=(3, 2, 15, 18)).astype(np.float32)
    mask = np.ones((2, 15, 18), bool)
    mask[1] = False
    e = enhance_slices(data, color=color, mask=mask, method="zero_dce", **parameters)
    f = to_unit_interval(data if color else data[1:2], mask=mask)
    np.testing.assert_allclose(
        e[:, 0] if color else e[1:2, 0], zero_dce_enhance(f[:, 0], color=color, **parameters), atol=1e-5
    )
    assert e.dtype == np.float32 and np.abs(e).max() < 1 and not e[:, 1].any()


def test_constant_slices_are_zero(tmp_path):
    """Fails if a slice without content becomes bright, or its neighbour in the batch is lost with it."""
    _, parameters = save(tmp_path / "w.pth", channels=3)
    f = np.zeros((2, 3, 16, 16), np.float32) + np.array([-0.9, 0.2, 0.4], np.float32)[:, None, None]
    f[1, 0, 3, 3] = 0.5
    e = zero_dce_enhance(f, color=True, **parameters)
    assert not e[0].any() and e[1].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "w.pth does not exist.* copied .* train-zero-dce"),
        (lambda path: save(path, seed=1), r"w.pth is not the file of the plans.*copy.*train-zero-dce"),
    ],
)
def test_weights_are_those_of_the_plans(change, message, tmp_path):
    """Fails if images are enhanced by weights on which the segmentation network was not trained."""
    _, parameters = save(tmp_path / "w.pth")
    change(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        zero_dce_enhance(np.zeros((8, 8)), **parameters)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not hold weights"):
        zero_dce_enhance(np.zeros((8, 8)), **zero_dce_parameters(tmp_path / "other.pth"))


def test_weights_for_other_channels_are_refused(tmp_path):
    """Fails if weights of grey images are used for colours."""
    _, parameters = save(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="1 channels and these have 3"):
        zero_dce_enhance(np.zeros((3, 8, 8)), color=True, **parameters)


def test_enhance_command(tmp_path, capsys):
    """Fails if weights do not reach the method, are not asked for, or are taken for another method."""
    _, parameters = save(tmp_path / "w.pth")
    data = np.random.default_rng(0).gamma(4, 50, size=(3, 20, 24)).astype(np.float32)
    volume = sitk.GetImageFromArray(data)
    volume.SetSpacing((1, 1, 5))
    sitk.WriteImage(volume, str(tmp_path / "in.nii.gz"))
    files = [str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz")]
    weights = ["--weights", str(tmp_path / "w.pth")]
    assert main(["enhance", *files, "--method", "zero_dce", *weights]) == 0
    result = sitk.GetArrayFromImage(sitk.ReadImage(files[1]))
    np.testing.assert_allclose(result, enhance_slices(data[None], method="zero_dce", **parameters)[0], atol=1e-5)
    for wrong in (["--method", "zero_dce"], weights):
        assert main(["enhance", *files, *wrong]) == 1
        assert "zero_dce needs --weights" in capsys.readouterr().err


# ---- nnunet-din train-zero-dce ----

NAME = "Dataset997_ZeroDCE"
QUICK = ["train-zero-dce", "-d", "997", "--iterations", "3", "--size", "16", "--batch", "2", "--device", "cpu"]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A raw data set in nnU-Net's folders, which are this test's own."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    write_dataset(tmp_path / "raw" / NAME, train=2, test=0, size=32, slices=3)
    return tmp_path


def test_command_writes_weights_and_says_how_to_use_them(folders, capsys):
    """Fails if the file is not where the message says, or the printed entry of the plans does not work as it is."""
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    path = folders / "preprocessed" / NAME / "zero_dce.pth"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"Wrote {path}\n" in out and f"sha256 {sha256}\n" in out and "6 slices of one channel" in out
    assert "nnunet-din configure -d 997 -p nnUNetDINPlans --from 2d --name 2d_zero_dce --enhancement zero_dce" in out
    line = next(line for line in out.splitlines() if line.startswith("In the plans: "))
    entry = json.loads(line.removeprefix("In the plans: "))["enhancement"]
    assert (entry["method"], entry["sha256"], entry["limit"], entry["color"]) == ("zero_dce", sha256, 0.99, False)
    assert enhance_slices(np.random.default_rng(0).normal(size=(1, 2, 16, 16)), **entry).any()
    assert [file.name for file in path.parent.iterdir()] == ["zero_dce.pth"], "no part of a file is left"


def test_command_never_overwrites_unasked(folders, capsys):
    """Fails if weights or images are overwritten unasked, or the same call makes another file."""
    path = folders / "preprocessed" / NAME / "zero_dce.pth"
    assert main(QUICK) == 0
    before = path.read_bytes()
    assert main([*QUICK, "--seed", "1"]) == 1
    assert "--force" in capsys.readouterr().err and path.read_bytes() == before
    assert main([*QUICK, "-o", str(folders / "other.pth")]) == 0 and (folders / "other.pth").read_bytes() == before
    image = next((folders / "raw" / NAME / "imagesTr").iterdir())
    assert main([*QUICK, "-o", str(image), "--force"]) == 1
    assert "would be overwritten" in capsys.readouterr().err


def test_epochs_go_through_all_slices(folders, capsys):
    """Fails if an epoch has more or fewer steps than the slices need: 6 slices in batches of 4."""
    assert (
        main(["train-zero-dce", "-d", "997", "--epochs", "3", "--size", "16", "--batch", "4", "--device", "cpu"]) == 0
    )
    assert "5 steps of 4 crops of 16 x 16 on cpu" in capsys.readouterr().out


def test_slices_along_the_largest_spacing(folders):
    """Fails if slices are cut along another axis than that of the 2-D configuration, or intensities are mapped
    otherwise than before enhancement.
    """
    raw = folders / "raw" / NAME
    (file,) = [p for p in (raw / "imagesTr").iterdir() if p.name.startswith("case_000")]
    data = np.random.default_rng(0).gamma(4, 50, size=(20, 24, 5)).astype(np.float32)
    volume = sitk.GetImageFromArray(data)
    volume.SetSpacing((9.0, 1.0, 1.0))  # x, y, z
    sitk.WriteImage(volume, str(file))
    found, color = training_slices(raw, size=16)
    of_case = [image for image in found if image.shape == (1, 20, 24)]
    assert not color and len(of_case) == 5 and len(found) == 8
    expected = to_unit_interval(data)
    for x in range(5):
        assert any(np.allclose(image[0], expected[..., x], atol=1e-6) for image in of_case)


@pytest.mark.slow
def test_large_slices_are_cut_and_many_are_sampled(folders, monkeypatch):
    """Fails if a large data set does not fit into memory, or the seed does not decide what is taken."""
    monkeypatch.setattr(slices_module, "_MOST_SLICES", 4)
    first, same, other = (training_slices(folders / "raw" / NAME, size=8, seed=seed)[0] for seed in (0, 0, 1))
    assert [image.shape for image in first] == [(1, 16, 16)] * 4
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_colours_stay_together(folders):
    """Fails if the three channels of photographs are taken for three images."""
    raw = folders / "raw" / "Dataset996_Photos"
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, size=(20, 24, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(raw / "imagesTr" / "a_0000.png"))
    sitk.WriteImage(sitk.GetImageFromArray(picture[..., 0] % 2), str(raw / "labelsTr" / "a.png"))
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "spot": 1}}
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": 1, "file_ending": ".png"}))
    (image,), color = training_slices(raw, size=16)
    assert color and image.shape == (3, 20, 24)
    np.testing.assert_allclose(image, to_unit_interval(np.moveaxis(picture, -1, 0).astype(np.float32)), atol=1e-6)


def test_intensities_are_those_of_the_planners():
    """Fails if Zero-DCE is fitted to other intensities than those that it enhances."""
    from nnunet_din.planners.din_planners import nnUNetPlannerDIN

    planned = nnUNetPlannerDIN.enhancement
    assert {key: planned[key] for key in ("percentiles", "limit")} == INTENSITIES


@pytest.mark.parametrize(
    ("wrong", "arguments", "message"),
    [
        (None, ["-d", "123"], "No data set Dataset123_"),
        (None, ["--size", "8"], "size must be at least 16"),
        ("*.json", [], "dataset.json does not exist"),
        ("imagesTr/*", [], "holds no training images"),
        ("imagesTr/case_001*", [], "case_001_0000.nii.gz is no NIfTI file"),
    ],
)
def test_command_errors_are_one_sentence(wrong, arguments, message, folders, capsys):
    """Fails if a mistake ends in a traceback, or leaves a file behind."""
    for path in (folders / "raw" / NAME).glob(wrong) if wrong else ():
        path.write_bytes(b"hello") if "001" in wrong else path.unlink()
    assert main([*QUICK, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list((folders / "preprocessed").rglob("*.pth*"))
