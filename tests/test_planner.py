"""The planners: what the plans say, and how patch and batch size follow from data and memory."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nnunet_din.network import PRESETS
from nnunet_din.planners.din_planners import nnUNetPlannerDIN, nnUNetPlannerDINAtto, nnUNetPlannerDINTiny

PLANNERS = [nnUNetPlannerDIN, nnUNetPlannerDINTiny, nnUNetPlannerDINAtto]


def planner(dataset, cls=nnUNetPlannerDINAtto, **kwargs):
    return cls(dataset.name, **kwargs)


def test_names():
    assert [(p.preset, p.default_plans_name) for p in PLANNERS] == [
        ("base", "nnUNetDINPlans"),
        ("tiny", "nnUNetDINTinyPlans"),
        ("atto", "nnUNetDINAttoPlans"),
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


def test_three_dimensional_configurations_are_nnunets_own(dataset, nnunet_folders):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    stock = ExperimentPlanner(dataset.name, plans_name="stockTestPlans").plan_experiment()["configurations"]
    plans = planner(dataset, plans_name="dinTestPlans").plan_experiment()
    config = plans["configurations"]["3d_fullres"]
    assert config["data_identifier"] == "dinTestPlans_3d_fullres"
    assert {**config, "data_identifier": ""} == {**stock["3d_fullres"], "data_identifier": ""}


def test_patch_covers_the_median_slice(dataset, plans):
    config = plans["configurations"]["2d"]
    median = config["median_image_size_in_voxels"]
    assert config["patch_size"] == [8 * math.ceil(m / 8) for m in median]


@pytest.mark.parametrize("cls", PLANNERS)
@pytest.mark.parametrize("median", [(49.5, 36.0), (216, 256), (1200, 900)])
@pytest.mark.parametrize("gb", [6, 24, 80])
def test_patch_and_batch_fit_the_memory(dataset, cls, median, gb, capsys):
    p = planner(dataset, cls, gpu_memory_target_in_gb=gb)
    n_pixels = 1e9
    patch, batch = p._patch_and_batch_size(median, n_pixels)
    assert all(edge % 8 == 0 and edge <= 8 * math.ceil(m / 8) for edge, m in zip(patch, median, strict=True))
    assert batch >= 2
    fixed, per_pixel = p._memory_model()
    used = fixed + per_pixel * batch * np.prod(patch)
    warned = "WARNING" in capsys.readouterr().out
    assert used <= gb * 1e9 or (warned and max(patch) <= 64), "over the target without saying so"
    if not warned:
        assert used + per_pixel * np.prod(patch) > gb * 1e9, "one more patch would have fitted"


def test_batch_is_at_most_five_percent_of_the_data(dataset):
    p = planner(dataset)
    patch, batch = p._patch_and_batch_size((64, 64), 200 * 64 * 64)
    assert (patch, batch) == ([64, 64], 10)
    assert p._patch_and_batch_size((64, 64), 10 * 64 * 64)[1] == 2


def test_less_memory_smaller_patch_not_smaller_batch(dataset):
    areas = [
        np.prod(planner(dataset, gpu_memory_target_in_gb=gb)._patch_and_batch_size((900, 900), 1e9)[0])
        for gb in (2, 4, 8)
    ]
    assert areas == sorted(areas) and areas[0] < areas[-1]


def test_default_memory_belongs_to_the_preset_and_leaves_3d_alone(dataset):
    p = planner(dataset, nnUNetPlannerDIN)
    assert (p.gpu_memory_gb, p.UNet_vram_target_GB) == (24.0, 8)
    p = planner(dataset, nnUNetPlannerDIN, gpu_memory_target_in_gb=40)
    assert (p.gpu_memory_gb, p.UNet_vram_target_GB) == (40, 40)
