"""Models for programs without nnU-Net: graphs for images of any size, and a program that predicts as nnU-Net does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_dataset import SMALL_NETWORK as SMALL
from nnunet_dataset import save_image
from nnunet_din.commands.main import main
from nnunet_din.deployment import export
from nnunet_din.deployment.description import describe
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.fusion import attention
from nnunet_din.network.fusion.attention import CrossAttention, GraphWindows, Windows
from nnunet_din.nnunet.predictor import build_network, read_model_folder

ROOT = Path(__file__).parents[1]
#: Networks in which every encoder, fusion and decoder stands once.
NETWORKS = {
    "fast": SMALL,
    "atto": {"encoder": "convnext_atto", "decoder_channels": 16},
    "fct": {**SMALL, "encoder": "fct", "fusion": "concat"},
    "pyramid": {"encoder": "resnet18", "fusion": "input", "decoder_channels": 16},
    "emcad": {**SMALL, "decoder": "emcad", "num_heads": 2, "queries": [0]},
    "parts": {**SMALL, "fused_stages": 3, "feature_merging": False, "spatial_attention": False},
}


@pytest.fixture(scope="module")
def program():
    """The example as a module."""
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("onnx_predict", ROOT / "examples" / "onnx_predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(seed=0, **kwargs):
    torch.manual_seed(seed)
    net = DualInteractionNetwork(1, 4, **kwargs).eval()
    for module in net.modules():  # statistics that are not those of a network without training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


def images(net, sizes=((1, 2, 3), (3, 7, 2), (1, 8, 9))):
    stride = net.encoders[0].stride
    return [torch.rand(n, net.versions, h * stride, w * stride) for n, h, w in sizes]


# ---- windows of attention in a graph ----


@pytest.mark.parametrize("window_size", [1, 2, 4, 7])
def test_windows_of_a_graph_hold_the_same_pixels(window_size):
    for height in (1, 2, 6, 7, 8, 13, 27):
        for width in (1, 7, 20, 23):
            usual, graph = (cls((height, width), (window_size, window_size)) for cls in (Windows, GraphWindows))
            x = torch.arange(2 * height * width, dtype=torch.float32).reshape(2, 1, height, width)
            assert torch.equal(graph.join(graph.cut(x), 2), x)
            mask = graph.key_mask(x.device).flatten(1)
            expected_mask = usual.key_mask(x.device)
            windows = [w[m].tolist() for w, m in zip(graph.cut(x)[..., 0], mask.repeat(2, 1), strict=True)]
            expected = usual.cut(x)[..., 0]
            inside = torch.ones_like(expected) > 0 if expected_mask is None else expected_mask.flatten(1).repeat(2, 1)
            assert windows == [w[m].tolist() for w, m in zip(expected, inside, strict=True)]


@pytest.mark.parametrize("size", [(1, 1), (5, 16), (14, 7), (15, 22)])
def test_attention_in_a_graph_is_the_same(size, monkeypatch):
    torch.manual_seed(0)
    layer, streams = CrossAttention(8, num_heads=2), [torch.randn(2, 8, *size) for _ in range(2)]
    with torch.no_grad():
        expected = layer(streams)
        monkeypatch.setattr(attention, "exporting", lambda: True)
        for f, f_expected in zip(layer(streams), expected, strict=True):
            torch.testing.assert_close(f, f_expected, atol=1e-6, rtol=1e-5)


# ---- graphs of whole networks ----


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_holds_for_other_batches_and_sizes(name):
    """Fails if a network cannot be exported by torch, and with it no ONNX be written."""
    net = network(**NETWORKS[name])
    graph = export.export_program(net).module(check_guards=False)
    with torch.no_grad():
        for x in images(net):
            torch.testing.assert_close(graph(x), net(x), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast", "fct", "pyramid", "emcad"])
def test_torch_compile_takes_the_whole_network(name):
    """In one graph, with gradients and without; the graph is run as it is, without kernels of its own."""
    net = network(**NETWORKS[name])
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=False)
    x = images(net, [(2, 2, 3)])[0]
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x), atol=1e-5, rtol=1e-4)
    net.zero_grad()
    compiled(x).square().mean().backward()
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad()
    net(x).square().mean().backward()
    for gradient, parameter in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-3)


# ---- a model folder ----


class Session:
    """In place of onnxruntime's: the network itself."""

    def __init__(self, net):
        self.net = net

    def run(self, names, feed):
        (x,) = feed.values()
        with torch.no_grad():
            return [self.net(torch.from_numpy(x)).numpy()]


def predict_by_nnunet(folder, image, out, folds):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    predictor.predict_from_files_sequential([[str(image)]], [str(out)])


CASES = {
    "z-score": {},
    "two folds": {"folds": (0, 1), "mirroring": (0,)},
    "no mirroring": {"mirroring": None},
    "mask": {"border": 7, "use_mask_for_norm": [True]},
    "CT": {"border": 7, "normalization_schemes": ["CTNormalization"]},
    "RGB": {"normalization_schemes": ["RGBTo01Normalization"]},
    "0 to 1": {"normalization_schemes": ["RescaleTo01Normalization"]},
    "as it is": {"normalization_schemes": ["NoNormalization"]},
    "regions": {"regions": True},
    "fine slices": {"spacing_of_image": (1.3, 1.1, 1.0)},
    "turned": {"reader": "NibabelIOWithReorient", "direction": (0, 0, 1, -1, 0, 0, 0, 1, 0)},
    "two enhancements": {"enhancement": [{"method": "fuzzy", "m": 3}, {"method": "he"}], "arguments": {"versions": 3}},
}


#: Cases that every quick run takes.
QUICK = ("mask",)


@pytest.mark.parametrize("case", [pytest.param(c, marks=[] if c in QUICK else pytest.mark.slow) for c in CASES])
def test_the_program_predicts_as_nnunet_does(case, model, program, tmp_path, capsys):
    """All but the graph: preparation of the image, tiles, mirroring, logits back to the image, labels."""
    options = dict(CASES[case])
    image = save_image(
        tmp_path / "case_0000.nii.gz", options.pop("spacing_of_image", (1.3, 1.1, 6.0)), options.pop("border", 0)
    )
    if direction := options.pop("direction", None):
        turned = sitk.ReadImage(str(image))
        turned.SetDirection(direction)
        sitk.WriteImage(turned, str(image))
    reader = options.pop("reader", "SimpleITKIO")
    folder = model(**options)
    plans = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": reader}))
    predict_by_nnunet(folder, image, tmp_path / "nnunet", options.get("folds", (0,)))
    expected = sitk.ReadImage(str(tmp_path / "nnunet.nii.gz"))
    read, sessions = read_model_folder(folder), []
    for weights in read.weights.values():
        net = build_network(read).eval()
        net.load_state_dict(weights)
        sessions.append(Session(net))
    description = json.loads(json.dumps(describe(read, ["fold_0.onnx"], net.encoders[0].stride)))
    labels = program.label_map(program.read([image], description), description, sessions)
    assert labels.GetDirection() == pytest.approx(expected.GetDirection(), abs=1e-6)
    labels, expected = map(sitk.GetArrayFromImage, (labels, expected))
    assert len(np.unique(expected)) > 1
    assert (labels == expected).mean() > 0.999  # nnU-Net adds logits up in half precision


@pytest.mark.slow
def test_export_and_predict_without_torch(model, tmp_path, capsys):
    """The command, and the example in a process that can load neither torch nor nnU-Net."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    image = save_image(tmp_path / "case_0000.nii.gz", border=7)
    folder = model(use_mask_for_norm=[True])
    assert main(["export", str(folder), str(tmp_path / "exported")]) == 0
    assert "fold_0.onnx" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "exported").iterdir()) == ["fold_0.onnx", "model.json"]
    blocked = tmp_path / "blocked"
    for name in ("torch", "nnunetv2", "timm", "monai"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError('{name} is not for this program')")
    example = [sys.executable, str(ROOT / "examples" / "onnx_predict.py"), str(tmp_path / "exported"), str(image)]
    done = subprocess.run(
        [*example, "-o", str(tmp_path / "onnx.nii.gz")],
        env={"PYTHONPATH": f"{blocked}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    predict_by_nnunet(folder, image, tmp_path / "nnunet", (0,))
    result, expected = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("onnx", "nnunet"))
    assert result.GetSpacing() == expected.GetSpacing() and result.GetOrigin() == expected.GetOrigin()
    result, expected = map(sitk.GetArrayFromImage, (result, expected))
    assert len(np.unique(expected)) > 1
    assert (result == expected).mean() > 0.999


@pytest.fixture
def without_graphs(monkeypatch):
    """Exports in which the networks are empty files."""
    monkeypatch.setattr(export, "write_onnx", lambda net, path: path.write_text(""))


@pytest.mark.parametrize(
    ("folds", "arguments", "exported"),
    [
        (("0", "1"), [], ["fold_0.onnx", "fold_1.onnx"]),
        (("all",), [], ["fold_all.onnx"]),
        (("0", "all"), ["-f", "all"], ["fold_all.onnx"]),
    ],
)
def test_folds(folds, arguments, exported, model, without_graphs, tmp_path):
    folder, out = model(folds=folds), tmp_path / "exported"
    assert main(["export", str(folder), str(out), *arguments]) == 0
    assert json.loads((out / "model.json").read_text())["networks"] == exported
    assert sorted(p.name for p in out.iterdir()) == [*exported, "model.json"]


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["-f", "3"], "has no checkpoint_final.pth of fold 3. It has one of: 0."),
        ({}, ["--checkpoint", "best"], "has no checkpoint_best.pth of any fold"),
        ({"resampling_fn_data": "resample_torch_fornnunet"}, [], "resample_torch_fornnunet"),
    ],
)
def test_what_cannot_be_exported_is_named(changes, arguments, message, model, without_graphs, tmp_path, capsys):
    assert main(["export", str(model(**changes)), str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_tools_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    for version, message in (("2.9.0+cpu", 'pip install "nnunet-din[onnx]"'), ("2.6.0+cpu", "need torch 2.9 or newer")):
        monkeypatch.setattr(torch, "__version__", version)
        assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err


def test_images_that_do_not_fit_are_refused(program, model, without_graphs, tmp_path, monkeypatch):
    out, image = tmp_path / "exported", str(save_image(tmp_path / "case_0000.nii.gz"))
    assert main(["export", str(model()), str(out)]) == 0

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["onnx_predict.py", str(out), *arguments, "-o", str(tmp_path / "x.nii.gz")])
        program.main()

    with pytest.raises(SystemExit, match="The model takes 1 channel"):
        run(image, image)
    (tmp_path / "x.nii.gz").symlink_to(image)
    with pytest.raises(SystemExit, match="x.nii.gz is one of the images"):
        run(image)
    (tmp_path / "x.nii.gz").unlink()
    description = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps({**description, "format": 3}))
    with pytest.raises(SystemExit, match="format 3"):
        run(image)
