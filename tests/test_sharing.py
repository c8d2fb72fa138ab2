"""Models of strangers: nothing in their files is run, plans name known classes only, and a shared model is what its
manifest says and predicts as the original.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_dataset import SMALL_NETWORK, save_image
from nnunet_din.commands.main import main
from nnunet_din.data.files import sha256_of
from nnunet_din.data.weight_files import UnsafeFileError, read_checkpoint, read_tensors, write_tensors
from nnunet_din.deployment import sharing
from nnunet_din.enhancement.zero_dce import zero_dce_enhance, zero_dce_parameters
from nnunet_din.evaluation.costs import count
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.alternatives.zero_dce import DCENet
from nnunet_din.nnunet.known_classes import check_network
from nnunet_din.nnunet.predictor import read_model_folder
from nnunet_din.nnunet.shared import MANIFEST
from nnunet_din.nnunet.training_log import read_training
from nnunet_din.trainers.checkpoints import KeepsCheckpoints
from nnunet_din.weights import load_pretrained_encoders, pretrained
from nnunet_din.weights.fine_tuning import load_pretrained_weights

# ---- files that would run something ----


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def network(**kwargs):
    return DualInteractionNetwork(1, 4, **{**SMALL_NETWORK, **kwargs})


def read_by_trainer(path):
    """The trainer leaves it to nnU-Net, which unpickles every checkpoint, and says so."""
    said = []
    trainer = KeepsCheckpoints()
    trainer.print_to_log_file = lambda text, **_: said.append(text)
    assert trainer.readable_checkpoint(str(path)) == str(path)
    raise ValueError(*said)


def model_folder(path):
    plans = {"plans_name": "nnUNetPlans", "dataset_name": "Dataset001_Test", "configurations": {}}
    for name, content in (("plans.json", plans), ("dataset.json", {"labels": {"background": 0}})):
        (path.parent.parent / name).write_text(json.dumps(content))
    return path.parent.parent


READERS = {
    "curves": lambda path: read_training(path.parent),
    "fine-tuning": lambda path: load_pretrained_weights(network(), path),
    "ConvNeXt": lambda path: load_pretrained_encoders(
        network(encoder="convnext_atto", stem_stride=1, upsampling="bilinear"), path
    ),
    "Zero-DCE": lambda path: zero_dce_enhance(np.zeros((1, 8, 8), np.float32), **zero_dce_parameters(path)),
    "prediction": lambda path: read_model_folder(model_folder(path)),
    "trainer": read_by_trainer,
}


@pytest.mark.parametrize("reader", READERS)
def test_nothing_in_a_checkpoint_is_run(reader, tmp_path, monkeypatch):
    """Also where a variable is set with which torch reads everything as a pickle, unless its caller says otherwise."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    path = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    torch.save({"network_weights": {}, "logging": {}, "state_dict": {}, "current_epoch": 1, "evil": Evil(marker)}, path)
    with pytest.raises(ValueError, match="checkpoint_final.pth") as error:
        READERS[reader](path)
    message = str(error.value)
    assert f"holds {open.__module__}.open" in message and "\n" not in message and len(message) < 450
    assert not marker.exists()
    torch.load(path, weights_only=False)["evil"].close()
    assert marker.exists(), "the file is what this test takes it for"


def test_weights_are_fetched_without_unpickling(monkeypatch):
    """Timm unpickles the file that a repository's description names, and others while the variable is set."""
    asked = {}
    monkeypatch.setattr(pretrained.timm, "create_model", lambda name, **options: asked.update(options) or network())
    pretrained._create("hf-hub:someone/model")
    assert asked["pretrained_cfg_overlay"] == {"hf_hub_filename": None}
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match="because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: unset it"):
        pretrained._create("hf-hub:someone/model")


def test_threads_do_not_switch_off_each_others_safety(tmp_path):
    evil, good = tmp_path / "evil.pth", tmp_path / "good.pth"
    torch.save({"evil": Evil(tmp_path / "marker")}, evil)
    torch.save({"loss": np.float32(0.25)}, good)
    before = dict(os.environ)

    def read(number):
        try:
            return read_checkpoint((evil, good)[number % 2])
        except UnsafeFileError:
            return None

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(100)))
    assert found == [None, {"loss": np.float32(0.25)}] * 50
    assert not (tmp_path / "marker").exists() and dict(os.environ) == before


def test_numbers_of_both_numpys_are_read(tmp_path):
    """Fails for checkpoints that were written with the other one of numpy 1 and 2, or in torch's old format."""
    content = {
        "loss": np.float32(0.25),
        "dice": [np.float64(0.5), np.nan],
        "count": np.int64(3),
        "done": np.bool_(True),
    }
    content["device"] = torch.device("cpu")
    torch.save(content, tmp_path / "new.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    names = (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert any(name in old for name in names)
    for name, other in (names, names[::-1]):
        (tmp_path / "old.pth").write_bytes(old.replace(name, other))
        assert repr(read_checkpoint(tmp_path / "old.pth")) == repr(content)
    assert repr(read_checkpoint(tmp_path / "new.pth")) == repr(content)


# ---- plans ----

UNET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm2d",
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


def test_networks_of_nnunet_may_be_named():
    check_network(UNET)
    check_network({**UNET, "network_class_name": "dynamic_network_architectures.moved.ResidualEncoderUNet"})


@pytest.mark.parametrize(
    "name",
    ["os.system", "nnunet_din.data.files.os.system", "nnunet_din.network.din.nn.Conv2d", "nnunetv2.nothing", "", None],
)
def test_other_classes_are_not_instantiated(name):
    """Also not those that a known module has only imported."""
    with pytest.raises(ValueError, match=f"as network {name!r}, which is no class of nnunetv2, dynamic"):
        check_network({**UNET, "network_class_name": name})
    if name:
        with pytest.raises(ValueError, match="as argument nonlin of the network"):
            arguments = {**UNET["arch_kwargs"], "nonlin": name.replace("network.din.nn.Conv2d", "data.files.Path")}
            check_network({**UNET, "arch_kwargs": arguments})


def test_the_leaderboard_leaves_out_the_cost_of_a_strange_network(model, capsys):
    folder = model()
    assert np.isfinite(count(folder)).all()
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "strange.Network"
    (folder / "plans.json").write_text(json.dumps(plans))
    assert np.isnan(count(folder)).all()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("NOTE")]
    assert folder.name in line and "'strange.Network'" in line


# ---- shared models ----


def test_weights_with_several_names_are_written_once(tmp_path):
    """Most of nnU-Net's have four."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    weights = get_network_from_plans(*UNET.values(), 1, 2, deep_supervision=False).state_dict()
    weights["transposed"] = next(w for w in weights.values() if w.ndim == 4).permute(1, 0, 2, 3)
    write_tensors(weights, tmp_path / "w.safetensors")
    read = read_tensors(tmp_path / "w.safetensors")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)
    assert (tmp_path / "w.safetensors").stat().st_size < 0.5 * sum(w.nbytes for w in weights.values())


def forbid_pickles(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, fail)


def labels_in(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_shared_model_is_the_original(model, tmp_path, monkeypatch):
    """Shared, imported, and shared again: weights, plans, scores without the folders of this machine, no pickle."""
    folder, shared = model(folds=(0, 1), mirroring=(0,)), tmp_path / "shared"
    summary = {"mean": {"1": {"Dice": 0.5}}, "metric_per_case": [{"prediction_file": "/home/me/a.nii.gz"}]}
    for place in ("fold_0/validation", "crossval_results_folds_0"):
        (folder / place).mkdir()
        (folder / place / "summary.json").write_text(json.dumps(summary))
        (folder / place / "postprocessing.pkl").write_bytes(b"a pickle")
    sharing.share_model(folder, shared)
    original = read_model_folder(folder)
    imported = sharing.import_model(shared, tmp_path / "results")
    copied = read_model_folder(imported)
    forbid_pickles(monkeypatch)
    summary["metric_per_case"][0]["prediction_file"] = "a.nii.gz"
    for read, place in ((read_model_folder(shared), shared), (copied, imported)):
        assert list(read.weights) == ["0", "1"]
        for fold, weights in original.weights.items():
            assert weights.keys() == read.weights[fold].keys()
            assert all(torch.equal(weights[name], read.weights[fold][name]) for name in weights)
        assert replace(read, weights={}) == replace(original, weights={})
        for scores in ("fold_0/validation/summary.json", "crossval_results_folds_0/summary.json"):
            assert json.loads((place / scores).read_text()) == summary
        assert not list(place.rglob("*.pkl"))
    assert list(read_model_folder(shared, ["1"]).weights) == ["1"]
    with pytest.raises(FileNotFoundError, match="of fold 2. It has one of: 0, 1."):
        read_model_folder(shared, ["2"])
    with pytest.raises(ValueError, match="has one set of weights"):
        read_model_folder(shared, checkpoint="best")


@pytest.mark.slow
def test_a_shared_model_predicts_as_the_original_without_unpickling(model, tmp_path, monkeypatch, capsys):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    (tmp_path / "images").mkdir()
    image = save_image(tmp_path / "images" / "case_0000.nii.gz")
    folder, shared = model(folds=(0, 1), mirroring=(0,)), tmp_path / "shared"
    assert main(["export", str(folder), str(shared), "--format", "safetensors"]) == 0
    assert main(["import", str(shared), str(tmp_path / "results")]) == 0
    imported = tmp_path / "results" / "Dataset998_TestPhantom" / folder.name
    assert f"Wrote {imported}" in capsys.readouterr().out
    for source, target in ((folder, "original"), (imported, "imported")):
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(source), (0, 1))
        predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / target)])
    forbid_pickles(monkeypatch)
    arguments = [str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main(["predict", str(shared), *arguments]) == 0
    expected = labels_in(tmp_path / "original.nii.gz")
    assert len(np.unique(expected)) > 1
    assert np.array_equal(labels_in(tmp_path / "out" / "case.nii.gz"), expected)
    assert np.array_equal(labels_in(tmp_path / "imported.nii.gz"), expected)


def test_a_folder_that_is_there_is_never_overwritten(model, tmp_path, capsys):
    folder, shared = model(), tmp_path / "shared"
    sharing.share_model(folder, shared)
    sharing.import_model(shared, tmp_path / "results")
    assert main(["import", str(shared), str(tmp_path / "results")]) == 1
    assert main(["export", str(folder), str(shared), "--format", "safetensors"]) == 1
    assert capsys.readouterr().err.count("is already there, and nothing is overwritten") == 2
    copied = sharing.import_model(folder, tmp_path / "others")  # a stranger's checkpoints, without pickles
    assert list(read_model_folder(copied).weights) == ["0"]


def test_the_weights_of_an_enhancement_travel_with_the_model(model, tmp_path):
    torch.manual_seed(0)
    torch.save(DCENet(1).state_dict(), tmp_path / "zero_dce.pth")
    folder = model(enhancement={"method": "zero_dce", **zero_dce_parameters(tmp_path / "zero_dce.pth")})
    sharing.share_model(folder, tmp_path / "shared")
    assert str(tmp_path) not in (tmp_path / "shared" / "plans.json").read_text()
    image = np.random.default_rng(0).uniform(-1, 1, (1, 40, 48)).astype(np.float32)
    expected = zero_dce_enhance(image, **zero_dce_parameters(tmp_path / "zero_dce.pth"))
    imported = sharing.import_model(tmp_path / "shared", tmp_path / "results")
    (tmp_path / "zero_dce.pth").unlink()
    for folder in (tmp_path / "shared", imported):
        (entry,) = read_model_folder(folder).enhancements
        assert entry.pop("method") == "zero_dce" and str(folder) in entry["weights"]
        assert np.array_equal(zero_dce_enhance(image, **entry), expected)


def changed(name, change):
    """A change of a JSON file by somebody who corrects the manifest."""

    def apply(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        if name != MANIFEST:
            manifest = json.loads((folder / MANIFEST).read_text())
            manifest["files"][name] = {"sha256": sha256_of(folder / name)}
            (folder / MANIFEST).write_text(json.dumps(manifest))

    return apply


def manifest(**values):
    return changed(MANIFEST, lambda content: content.update(values))


def configuration(**values):
    return changed("plans.json", lambda content: content["configurations"]["2d"].update(values))


def damage(folder):
    path = folder / "fold_0" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def link(folder):
    path = folder / "fold_0" / "weights.safetensors"
    shutil.move(path, folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def not_finite(folder):
    path = folder / "fold_0" / "weights.safetensors"
    write_tensors({name: tensor * torch.nan for name, tensor in read_tensors(path).items()}, path)
    changed(MANIFEST, lambda c: c["files"].update({"fold_0/weights.safetensors": {"sha256": sha256_of(path)}}))(folder)


def strange_network(content):
    content["configurations"]["2d"]["architecture"]["network_class_name"] = "os.system"


REFUSED = {
    "damaged": (damage, "weights.safetensors is not the file of the manifest"),
    "missing": (lambda folder: (folder / "dataset.json").unlink(), "lacks dataset.json"),
    "more": (lambda folder: (folder / "fold_0" / "a.pth").touch(), "holds in addition fold_0/a.pth"),
    "a link": (link, "lacks fold_0/weights.safetensors"),
    "a folder above": (changed(MANIFEST, lambda c: c["files"].update({"../x": {"sha256": ""}})), "lacks ../x"),
    "newer": (manifest(format=2), "has format 2, and this version of nnunet_din reads 1: install a newer one"),
    "no manifest": (manifest(format="1"), "it has no `format`"),
    "not finite": (not_finite, "is not finite"),
    "a network": (changed("plans.json", strange_network), "name as network 'os.system'"),
    "a preprocessor": (configuration(preprocessor_name="shutil"), "name as preprocessor 'shutil'"),
    "a resampling": (configuration(resampling_fn_data="map_coordinates"), "name as resampling_fn_data 'map_coord"),
    "a normalization": (configuration(normalization_schemes=["np"]), "name as normalization 'np'"),
    "a name of plans": (changed("plans.json", lambda c: c.update(plans_name="../x")), "which leads out of"),
    "a trainer": (manifest(trainer="../../x"), "which leads out of"),
    "an ending": (changed("dataset.json", lambda c: c.update(file_ending="./../../x")), "`file_ending` must be"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the tests of this file keep one shared model; the first of them makes it."""
    return tmp_path_factory.mktemp("shared") / "shared"


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_shared_model_is_refused(case, shared, model, tmp_path):
    if not shared.exists():
        sharing.share_model(model(), shared)
    change, message = REFUSED[case]
    folder = tmp_path / "changed"
    shutil.copytree(shared, folder)
    change(folder)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        sharing.import_model(folder, tmp_path / "results")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert not (tmp_path / "results").exists()
