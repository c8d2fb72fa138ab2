"""The planners: what the plans say, and how patch and batch size follow from data and memory."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from nnunet_dataset import write_fingerprint
from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride
from nnunet_din.nnunet.labels import check_label_numbers, number_of_classes
from nnunet_din.planners.din_planners import (
    StepMemory,
    nnUNetPlannerDIN,
    nnUNetPlannerDINAtto,
    nnUNetPlannerDINFast,
    nnUNetPlannerDINTiny,
)
from nnunet_din.planners.slices import training_slices

PLANNERS = [nnUNetPlannerDIN, nnUNetPlannerDINTiny, nnUNetPlannerDINAtto, nnUNetPlannerDINFast]


def planner(dataset, cls=nnUNetPlannerDINAtto, **kwargs):
    return cls(dataset.name, **kwargs)


def plan_slices(planner, median, pixels):
    """Patch, batch and checkpointing for slices of this size and data of so many pixels."""
    multiple = input_stride(**PRESETS[planner.preset])
    patch = tuple(multiple * math.ceil(edge / multiple) for edge in median)
    return planner._fit([1.0, 1.0], median, patch, round(0.05 * pixels / math.prod(patch)))[1:]


@pytest.fixture
def pictures(nnunet_folders):
    """Makes a data set of pictures, and returns its name."""
    from skimage import io

    name = "Dataset994_Pictures"
    folders = raw, _ = nnunet_folders.raw / name, nnunet_folders.preprocessed / name

    def make(shape=(32, 32), files=1, **description):
        for folder in ("imagesTr", "labelsTr"):
            (raw / folder).mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        for channel in range(files):
            io.imsave(raw / "imagesTr" / f"case_{channel:04d}.png", image, check_contrast=False)
        label = np.pad(np.ones((8, 8), np.uint8), 12)
        io.imsave(raw / "labelsTr" / "case.png", label, check_contrast=False)
        channels = files * (shape[2] if len(shape) == 3 else 1)
        content = {
            "channel_names": {str(channel): "T1" for channel in range(channels)},
            "labels": {"background": 0, "a": 1},
            "numTraining": 1,
            "file_ending": ".png",
            # Without names, nnU-Net starts processes that look for the files.
            "dataset": {
                "case": {"images": [f"imagesTr/case_{c:04d}.png" for c in range(files)], "label": "labelsTr/case.png"}
            },
        }
        (raw / "dataset.json").write_text(json.dumps({**content, **description}))
        write_fingerprint(raw, nnunet_folders.preprocessed / name)
        return name

    yield make
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def test_names():
    assert [(p.preset, p.default_plans_name) for p in PLANNERS] == [
        ("base", "nnUNetDINPlans"),
        ("tiny", "nnUNetDINTinyPlans"),
        ("atto", "nnUNetDINAttoPlans"),
        ("fast", "nnUNetDINFastPlans"),
    ]
    assert {p.preset for p in PLANNERS} <= set(PRESETS)


def test_the_plans_say_it_all(dataset, plans):
    config = plans["configurations"]["2d"]
    assert plans["plans_name"] == "nnUNetDINAttoPlans"
    assert plans["experiment_planner_used"] == "nnUNetPlannerDINAtto"
    assert config["preprocessor_name"] == "DINPreprocessor"
    assert config["data_identifier"] == "nnUNetDINAttoPlans_2d", (
        "never shared with stock plans: the data has more channels"
    )
    assert config["enhancement"]["method"] == "fuzzy" and config["enhancement"]["color"] is False
    architecture = config["architecture"]
    assert architecture["network_class_name"] == "nnunet_din.network.DualInteractionNetwork"
    assert architecture["arch_kwargs"] == PRESETS["atto"]
    json.dumps(plans)


def test_volumes_are_dins_with_nnunets_patch_and_pooling(dataset, plans):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    ExperimentPlanner(dataset.name, plans_name="stockTestPlans").plan_experiment()
    stock = json.loads((dataset.preprocessed / "stockTestPlans.json").read_text())["configurations"]["3d_fullres"]
    config = plans["configurations"]["3d_fullres"]
    assert config["data_identifier"] == "nnUNetDINAttoPlans_3d_fullres"
    assert config["preprocessor_name"] == "DINPreprocessor"
    same = ("patch_size", "batch_size", "spacing", "normalization_schemes", "resampling_fn_data")
    assert {key: config[key] for key in same} == {key: stock[key] for key in same}
    arguments = config["architecture"]["arch_kwargs"]
    pooled = stock["architecture"]["arch_kwargs"]["strides"][:4]
    assert arguments["strides"] == pooled + [[1, 1, 1]] * (4 - len(pooled))
    assert "volumetric" not in config["enhancement"], "the slices are 10 mm apart"
    with torch.device("meta"):
        network = DualInteractionNetwork(1, 4, **arguments)
        assert network(torch.empty(1, 2, *config["patch_size"])).shape == (1, 4, *config["patch_size"])


def test_near_isotropic_volumes_are_enhanced_as_a_whole(dataset, monkeypatch):
    """Planned without workers, with which nnU-Net's own planner fails."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    planner = nnUNetPlannerDINFast(dataset.name, plans_name="dinTestPlans", overwrite_target_spacing=[2.0, 1.5, 1.5])
    enhancement = planner.plan_experiment()["configurations"]["3d_fullres"]["enhancement"]
    assert enhancement["volumetric"] is True and enhancement["p"] == 2
    assert enhancement["smoothing"] == 1.0, "fast sees less noise in the enhanced image"


@pytest.mark.parametrize(
    ("gigabytes", "batch", "checkpointing", "whole"),
    [(1.3, 4, False, True), (1.0, 2, False, True), (0.8, 3, True, True), (0.6, 2, True, False), (0.1, 2, False, False)],
)
def test_volumes_fit_the_memory(gigabytes, batch, checkpointing, whole, dataset, monkeypatch, capsys):
    """A smaller batch first, then checkpointing, then a smaller patch; and what does not fit is said."""

    def bytes_of(volumes, batch, patch, checkpointing):
        return 4e8 + (400 if checkpointing else 800) * batch * math.prod(patch)

    monkeypatch.setattr(StepMemory, "bytes", bytes_of)
    planner = nnUNetPlannerDINFast(dataset.name)
    planner.gpu_memory_gb = gigabytes * planner.memory_overhead
    arguments, patch, found, checkpoints = planner._fit(np.ones(3), (70, 80, 90), (64, 64, 64), 4)
    assert (found, checkpoints, patch == (64, 64, 64)) == (batch, checkpointing, whole)
    assert planner._step(np.ones(3), patch)[0].arguments == arguments
    fits = bytes_of(None, found, patch, checkpoints) <= gigabytes * 1e9
    assert fits == ("WARNING" not in capsys.readouterr().out)


def test_weights_that_are_too_large_by_themselves_end_in_the_smallest_patch(dataset, monkeypatch, capsys):
    """What does not depend on the patch is the same for all of them."""
    monkeypatch.setattr(StepMemory, "bytes", lambda *_, **__: 10**10)
    planner = nnUNetPlannerDINFast(dataset.name, gpu_memory_target_in_gb=1)
    _, patch, batch, checkpoints = planner._fit([1.0, 1.0], (512, 512), (512, 512), 9)
    assert (patch, batch, checkpoints) == ((64, 64), 2, False)
    assert "WARNING" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("cls", [nnUNetPlannerDINTiny, nnUNetPlannerDINFast])
def test_the_classes_of_totalsegmentator_fit_the_memory(cls, dataset):
    """118 classes at 1.5 mm and 24 GB: the maps of the loss, each of all classes, are counted."""
    planner = cls(dataset.name, gpu_memory_target_in_gb=24)
    planner.dataset_json = {**planner.dataset_json, "labels": {f"label {i}": i for i in range(118)}}
    arguments, patch, batch, checkpointing = planner._fit(np.full(3, 1.5), (231, 231, 231), (128, 128, 128), 2)
    used = StepMemory(arguments, 1, 118).bytes(batch, patch, checkpointing)
    map_of_all_classes = 4 * 118 * batch * math.prod(patch)
    assert 6 * map_of_all_classes < used <= 24e9 / planner.memory_overhead
    assert cls is not nnUNetPlannerDINFast or (patch, batch) == ((128, 128, 128), 2)


def test_patch_covers_the_median_slice(dataset, plans):
    config = plans["configurations"]["2d"]
    median = config["median_image_size_in_voxels"]
    assert config["patch_size"] == [8 * math.ceil(m / 8) for m in median]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cls", [*(pytest.param(p, marks=pytest.mark.slow) for p in PLANNERS[:2]), *PLANNERS[2:]], ids=lambda p: p.preset
)
@pytest.mark.parametrize(
    ("median", "gb"), [((49.5, 36.0), 6), ((216, 256), 6), ((216, 256), 24), ((1200, 900), 6), ((1200, 900), 80)]
)
def test_patch_and_batch_fit_the_memory(dataset, cls, median, gb, capsys):
    p = planner(dataset, cls, gpu_memory_target_in_gb=gb)
    n_pixels = 1e10
    patch, batch, checkpointing = plan_slices(p, median, n_pixels)
    stride = input_stride(**PRESETS[cls.preset])
    assert all(edge % stride == 0 for edge in patch)
    assert all(edge <= stride * math.ceil(m / stride) for edge, m in zip(patch, median, strict=True))
    assert batch >= 2
    used, more, without = (
        p.memory_overhead * p._step([1.0, 1.0], patch)[0].bytes(n, patch, option)
        for n, option in ((batch, checkpointing), (batch + 1 + batch // 20, checkpointing), (2, False))
    )
    warned = "WARNING" in capsys.readouterr().out
    assert used <= gb * 1e9 or (warned and max(patch) <= 64), "over the target without saying so"
    if not warned:
        assert more > gb * 1e9, "more patches would have fitted"
    covers = all(edge >= m for edge, m in zip(patch, median, strict=True))
    assert checkpointing or covers or warned, "the patch shrinks only with checkpointing on"
    assert not (checkpointing and warned), "checkpointing that does not make it fit is time lost"
    if covers and checkpointing:
        assert without > gb * 1e9, "two patches would have fitted without checkpointing"


@pytest.mark.slow
@pytest.mark.parametrize("cls", PLANNERS[2:], ids=lambda p: p.preset)
def test_warning_tells_figures_apart_and_names_smaller_networks_only(dataset, cls, capsys):
    """A target that is a little too small: what is needed is more than what is there, in the figures that are shown."""
    p = planner(dataset, cls, gpu_memory_target_in_gb=1.0)
    least = p.memory_overhead * p._step([1.0, 1.0], (48, 48))[0].bytes(2, (48, 48), True) / 1e9
    p = planner(dataset, cls, gpu_memory_target_in_gb=least - 0.001)
    assert plan_slices(p, (48, 48), 1e9) == ((48, 48), 2, False)
    warning = capsys.readouterr().out
    there, need = (float(x) for x in re.findall(r"([\d.]+) GB", warning))
    assert need > there
    named = re.findall(r"nnUNetPlannerDIN\w*", warning)
    assert named == {"atto": ["nnUNetPlannerDINFast"], "fast": []}[cls.preset]


@pytest.mark.slow
def test_warning_of_a_planner_with_a_preset_of_its_own_recommends_none_of_ours(dataset, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "theirs", PRESETS["fast"])
    cls = type("nnUNetPlannerTheirs", (nnUNetPlannerDIN,), {"preset": "theirs"})
    plan_slices(planner(dataset, cls, gpu_memory_target_in_gb=0.01), (64, 64), 1e9)
    warning = capsys.readouterr().out
    assert "DIN theirs" in warning and "nnUNetPlannerDIN" not in warning


@pytest.mark.slow
def test_batch_is_at_most_five_percent_of_the_data(dataset):
    p = planner(dataset)
    assert plan_slices(p, (64, 64), 200 * 64 * 64) == ((64, 64), 10, False)
    assert plan_slices(p, (64, 64), 10 * 64 * 64)[1] == 2


@pytest.mark.slow
def test_less_memory_checkpointing_first_then_smaller_patches_never_a_smaller_batch(dataset):
    results = [plan_slices(planner(dataset, gpu_memory_target_in_gb=gb), (600, 600), 1e9) for gb in (2, 6, 24)]
    (small, _, first), (middle, _, second), (large, batch, third) = results
    assert (first, second, third) == (True, True, False)
    assert np.prod(small) < np.prod(middle) == np.prod(large) == 600**2
    assert all(b >= 2 for _, b, _ in results) and batch >= 2


@pytest.mark.slow
def test_plans_with_checkpointing_build_a_network_that_uses_it(dataset):
    p = planner(
        dataset,
        gpu_memory_target_in_gb=1.0,
        plans_name="smallTestPlans",
        overwrite_target_spacing=[16.0, 0.5, 0.5],  # 320 x 320 pixels
    )
    kwargs = p.plan_experiment()["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert kwargs["checkpointing"] is True
    assert DualInteractionNetwork(1, 4, **kwargs).encoders[0].checkpointing


def test_default_memory_belongs_to_the_preset_and_leaves_3d_alone(dataset):
    p = planner(dataset, nnUNetPlannerDIN)
    assert (p.gpu_memory_gb, p.UNet_vram_target_GB) == (24.0, 8)
    p = planner(dataset, nnUNetPlannerDIN, gpu_memory_target_in_gb=40)
    assert (p.gpu_memory_gb, p.UNet_vram_target_GB) == (40, 40)


# ---- what a data set says of its channels and labels ----


@pytest.mark.parametrize(("shape", "files", "color"), [((32, 32), 3, False), ((32, 32, 3), 1, True)])
def test_colours_are_channels_of_one_file(shape, files, color, pictures, nnunet_folders):
    """Three grey files a case are three sequences, whose luminosity says nothing."""
    name = pictures(shape, files)
    assert nnUNetPlannerDINFast(name)._is_color is color
    slices, of_slices = training_slices(nnunet_folders.raw / name)
    assert of_slices is color and {len(image) for image in slices} == {3 if color else 1}


def test_ignored_voxels_are_no_class(pictures):
    labels = {"background": 0, "a": 1, "b": 2, "ignore": 3}
    assert nnUNetPlannerDINFast(pictures(labels=labels))._step([1.0, 1.0], (32, 32))[0].num_classes == 3


def test_labels_that_cannot_be_trained_on_are_not_planned(pictures):
    with pytest.raises(ValueError, match="must be consecutive, .* they are 0, 1, 3: renumber"):
        nnUNetPlannerDINFast(pictures(labels={"background": 0, "a": 1, "b": 3}))


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"background": 0, "a": 1, "b": 3}, None, "consecutive"),
        ({"background": 0, "a": 1, "b": 1}, None, "each once"),
        ({"a": 1, "b": 2}, None, "`background` .* is None"),
        ({"background": 1, "a": 0}, None, "`background` .* is 1"),
        ({"background": [0], "a": 1}, None, "`background`"),
        ({"background": 0, "ignore": 1, "a": 2}, None, "consecutive"),
        ({"background": 0, "a": 1, "ignore": 255}, None, "`ignore` .* highest label, 2, and it is 255"),
        ({"background": 0, "a": 1, "ignore": [2]}, None, "`ignore`"),
        ({"background": 0, "whole": [1, 2], "core": 2}, None, "`regions_class_order` must give each of the 2"),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1], "`regions_class_order`"),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 4}, [1, 2], "highest label, 3"),
        ({"background": 0, "a": 1, "ignore": 2}, None, None),
        ({"background": 0, "a": [1], "b": 2}, None, None),
        ({"background": 0, "whole": [1, 2, 4], "core": [1, 4], "ignore": 5}, [1, 2], None),
    ],
)
def test_labels_are_judged_as_nnunet_does(labels, order, message):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    description = {"labels": labels, "regions_class_order": order}
    if message is None:
        check_label_numbers(description)
        assert LabelManager(labels, order).num_segmentation_heads == number_of_classes(description)
    else:
        with pytest.raises(ValueError, match=message):
            check_label_numbers(description)


def test_no_cascade_is_planned(dataset):
    """At the end of a training of its first stage, nnU-Net would want data that nobody asked for."""
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    first = {"spacing": [3.0, 3.0, 3.0], "next_stage": "3d_cascade_fullres"}
    plans = {"configurations": {"3d_lowres": first, "3d_fullres": {}, "3d_cascade_fullres": second}}
    planner(dataset, plans_name="cascadeTestPlans").save_plans(plans)
    saved = json.loads((dataset.preprocessed / "cascadeTestPlans.json").read_text())
    assert saved["configurations"] == {"3d_lowres": {"spacing": [3.0, 3.0, 3.0]}, "3d_fullres": {}}
