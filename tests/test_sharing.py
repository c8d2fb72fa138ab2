"""Models of strangers: nothing in their files is run, plans name known classes only, and a shared model is what its
manifest says and predicts as the original.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_dataset import SMALL_NETWORK, save_image
from nnunet_din.commands.main import main
from nnunet_din.cost.trained import count
from nnunet_din.data.files import sha256_of
from nnunet_din.data.weight_files import UnsafeFileError, read_checkpoint, read_tensors, write_tensors
from nnunet_din.deployment import sharing
from nnunet_din.deployment.export import export_model
from nnunet_din.enhancement.zero_dce import zero_dce_enhance, zero_dce_parameters
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.alternatives.zero_dce import DCENet
from nnunet_din.nnunet.fine_tuning import load_pretrained_weights
from nnunet_din.nnunet.known_classes import check_network
from nnunet_din.nnunet.predictor import read_model_folder
from nnunet_din.nnunet.training_log import read_training
from nnunet_din.trainers.checkpoints import KeepsCheckpoints
from nnunet_din.weights import load_pretrained_encoders, pretrained

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


def timm_encoder(name):
    options = {"stem_stride": 1, "upsampling": "bilinear"}
    return lambda path: load_pretrained_encoders(network(encoder=name, **options), path)


READERS = {
    "curves": lambda path: read_training(path.parent),
    "fine-tuning": lambda path: load_pretrained_weights(network(), path),
    "ConvNeXt": timm_encoder("convnext_atto"),
    "pyramid": timm_encoder("resnet18"),
    "Zero-DCE": lambda path: zero_dce_enhance(np.zeros((1, 8, 8), np.float32), **zero_dce_parameters(path)),
    "prediction": lambda path: read_model_folder(model_folder(path)),
    "export": lambda path: export_model(model_folder(path), path.parent / "out", "torchscript"),
    "sharing": lambda path: sharing.share_model(model_folder(path), path.parent / "out"),
    "trainer": read_by_trainer,
}


@pytest.mark.parametrize("reader", [pytest.param(r, marks=pytest.mark.slow if r == "pyramid" else ()) for r in READERS])
def test_nothing_in_a_checkpoint_is_run(reader, tmp_path):
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


@pytest.mark.parametrize("reader", ["fine-tuning", "ConvNeXt", "prediction"])
def test_no_variable_makes_reading_unsafe(reader, tmp_path, monkeypatch):
    """Torch reads everything as a pickle while it is set, unless its caller says otherwise."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    torch.save({"network_weights": {}, "state_dict": {}, "evil": Evil(tmp_path / "marker")}, path)
    with pytest.raises(ValueError, match="and only weights, numbers and texts are read"):
        READERS[reader](path)
    assert not (tmp_path / "marker").exists()


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


@pytest.fixture
def forbidden(monkeypatch):
    """No pickle may be read."""

    def fail(*args, **kwargs):
        raise AssertionError("unpickled")

    def forbid():
        for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
            monkeypatch.setattr(module, name, fail)

    return forbid


def labels_in(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_shared_model_is_the_original(model, tmp_path):
    folder, shared = model(folds=(0, 1), mirroring=(0,)), tmp_path / "shared"
    sharing.share_model(folder, shared)
    original, read = read_model_folder(folder), sharing.read_shared(shared)
    assert list(read.weights) == ["0", "1"] and list(sharing.read_shared(shared, ["1"]).weights) == ["1"]
    for fold, weights in original.weights.items():
        assert weights.keys() == read.weights[fold].keys()
        assert all(torch.equal(weights[name], read.weights[fold][name]) for name in weights)
    assert replace(read, weights={}) == replace(original, weights={})
    with pytest.raises(ValueError, match="has no fold 2. It has: 0, 1."):
        sharing.read_shared(shared, ["2"])


@pytest.mark.slow
def test_a_shared_model_predicts_as_the_original_without_unpickling(model, forbidden, tmp_path, capsys):
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
    forbidden()
    arguments = [str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main(["predict", str(shared), *arguments]) == 0
    expected = labels_in(tmp_path / "original.nii.gz")
    assert len(np.unique(expected)) > 1
    assert np.array_equal(labels_in(tmp_path / "out" / "case.nii.gz"), expected)
    assert np.array_equal(labels_in(tmp_path / "imported.nii.gz"), expected)

    assert main(["import", str(shared), str(tmp_path / "results")]) == 1
    assert main(["export", str(folder), str(shared), "--format", "safetensors"]) == 1
    for line in capsys.readouterr().err.splitlines():
        assert "is already there, and nothing is overwritten" in line


def test_scores_travel_without_the_folders_of_this_machine(model, tmp_path):
    folder = model()
    summary = {"mean": {"1": {"Dice": 0.5}}, "metric_per_case": [{"prediction_file": "/home/me/a.nii.gz"}]}
    for place in ("fold_0/validation", "crossval_results_folds_0"):
        (folder / place).mkdir()
        (folder / place / "summary.json").write_text(json.dumps(summary))
        (folder / place / "postprocessing.pkl").write_bytes(b"a pickle")
    sharing.share_model(folder, tmp_path / "shared")
    imported = sharing.import_model(tmp_path / "shared", tmp_path / "results")
    summary["metric_per_case"][0]["prediction_file"] = "a.nii.gz"
    for place in ("fold_0/validation", "crossval_results_folds_0"):
        assert json.loads((imported / place / "summary.json").read_text()) == summary
    assert not [*tmp_path.rglob("shared/**/*.pkl"), *imported.rglob("*.pkl")]


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
    for plans in (sharing.read_shared(tmp_path / "shared").plans, json.loads((imported / "plans.json").read_text())):
        entry = dict(plans["configurations"]["2d"]["enhancement"])
        assert entry.pop("method") == "zero_dce"
        assert np.array_equal(zero_dce_enhance(image, **entry), expected)


def changed(name, change):
    """A change of a JSON file by somebody who corrects the manifest."""

    def apply(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        if name != sharing.MANIFEST:
            manifest = json.loads((folder / sharing.MANIFEST).read_text())
            entry = {"size": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            manifest["files"][name] = entry
            (folder / sharing.MANIFEST).write_text(json.dumps(manifest))

    return apply


def manifest(**values):
    return changed(sharing.MANIFEST, lambda content: content.update(values))


def names_a_file(name):
    return changed(sharing.MANIFEST, lambda content: content["files"].update({name: {"size": 1, "sha256": ""}}))


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


def strange_network(content):
    content["configurations"]["2d"]["architecture"]["network_class_name"] = "os.system"


REFUSED = {
    "damaged": (damage, "weights.safetensors is not the file of the manifest"),
    "cut": (lambda f: os.truncate(f / "fold_0" / "weights.safetensors", 99), "is not the file of the manifest"),
    "missing": (lambda f: (f / "dataset.json").unlink(), "lacks dataset.json"),
    "more": (lambda f: (f / "fold_0" / "a.pth").touch(), "holds in addition fold_0/a.pth"),
    "a link": (link, "weights.safetensors is no file but a link"),
    "a folder above": (names_a_file("../x"), "names '../x', which leads out of the folder"),
    "an absolute path": (names_a_file("/etc/passwd"), "names '/etc/passwd', which leads out of the folder"),
    "a drive": (names_a_file("C:\\x"), "which leads out of the folder"),
    "a pickle": (names_a_file("fold_0/checkpoint_final.pth"), "which is no file of a shared model"),
    "no weights": (manifest(folds=["0", "1"]), "does not name plans, data set and weights of its folds"),
    "newer": (manifest(format=2), "has format 2, and this version of nnunet_din reads 1: install a newer one"),
    "no format": (manifest(format="1"), "it has no `format`"),
    "no list": (manifest(folds={"0": 1}), "`folds` is missing, or not what it should be"),
    "no axes": (manifest(mirroring_axes=[7]), "`mirroring_axes` is missing"),
    "a trainer that is no name": (manifest(trainer="os.system"), "The trainer 'os.system' is no name of a class"),
    "a network": (changed("plans.json", strange_network), "name as network 'os.system'"),
    "a preprocessor": (configuration(preprocessor_name="shutil"), "name as preprocessor 'shutil'"),
    "a resampling": (configuration(resampling_fn_data="map_coordinates"), "name as resampling_fn_data 'map_coord"),
    "a normalization": (configuration(normalization_schemes=["np"]), "name as normalization 'np'"),
    "plans in a circle": (configuration(inherits_from="2d"), "nnU-Net cannot use the plans"),
    "weights elsewhere": (
        configuration(enhancement={"method": "zero_dce", "weights": "/etc/passwd", "sha256": ""}),
        "weights from /etc/passwd, which is no file of it",
    ),
    "a name of plans": (changed("plans.json", lambda c: c.update(plans_name="../x")), "The plans is called '../x'"),
    "an ending": (
        changed("dataset.json", lambda c: c.update(file_ending="/../x")),
        "ending of images is called '/../x'",
    ),
    "no labels": (changed("dataset.json", lambda c: c.pop("labels")), "nnU-Net cannot use the plans"),
}


def test_what_is_not_the_shared_model_is_refused(model, tmp_path, capsys):
    shared = tmp_path / "shared"
    sharing.share_model(model(), shared)
    assert sharing.open_shared(shared).folds == ("0",)
    for case, (change, message) in REFUSED.items():
        folder = tmp_path / "changed"
        shutil.copytree(shared, folder)
        change(folder)
        with pytest.raises(ValueError, match=sharing.re.escape(message)) as error:
            sharing.import_model(folder, tmp_path / "results")
        assert "\n" not in str(error.value) and str(folder) in str(error.value), case
        shutil.rmtree(folder)
    assert not (tmp_path / "results").exists()
    # Once through the command: a sentence, and no label map.
    damage(shared)
    arguments = [str(save_image(tmp_path / "case_0000.nii.gz")), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main(["predict", str(shared), *arguments]) == 1
    assert "is damaged, or was changed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    sharing.share_model(model(), tmp_path / "shared")
    path = tmp_path / "shared" / "fold_0" / "weights.safetensors"
    weights = read_tensors(path)
    name = next(iter(weights))
    write_tensors({**weights, name: torch.full_like(weights[name], torch.nan)}, path)
    content = json.loads((tmp_path / "shared" / sharing.MANIFEST).read_text())
    content["files"]["fold_0/weights.safetensors"] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    (tmp_path / "shared" / sharing.MANIFEST).write_text(json.dumps(content))
    for read in (sharing.read_shared, lambda folder: sharing.import_model(folder, tmp_path / "results")):
        with pytest.raises(ValueError, match=f"weights.safetensors: {name} is not finite"):
            read(tmp_path / "shared")
    assert not list((tmp_path / "results" / "Dataset998_TestPhantom").iterdir())


def test_an_interrupted_export_leaves_nothing(model, tmp_path, monkeypatch):
    write = sharing._write_json

    def interrupted(path, content):
        if path.name == sharing.MANIFEST:
            assert not sharing.is_shared(path.parent), "the manifest is the last file"
            raise KeyboardInterrupt
        write(path, content)

    folder = model()
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(sharing, "_write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sharing.share_model(folder, tmp_path / "shared")
    assert set(tmp_path.iterdir()) == before


def test_a_network_that_others_would_be_refused_is_not_exported(model, tmp_path):
    folder = model()
    plans = json.loads((folder / "plans.json").read_text())
    strange_network(plans)
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="name as network 'os.system'"):
        sharing.share_model(folder, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
