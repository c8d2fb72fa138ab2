"""nnU-Net planners for DIN: every configuration is DIN's, with nnU-Net's spacing, resampling and normalization."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_din.enhancement import VOLUMETRIC
from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride, input_strides
from nnunet_din.network.cost import MEMORY_MARGIN, largest_batch, training_memory
from nnunet_din.network.presets import preset_for_volumes
from nnunet_din.nnunet.labels import (
    check_label_numbers,
    is_color,
    number_of_channels,
    number_of_classes,
    read_dataset_json,
)

#: Preset -> its planner, the largest network first.
PLANNER_OF_PRESET = {
    "base": "nnUNetPlannerDIN",
    "tiny": "nnUNetPlannerDINTiny",
    "atto": "nnUNetPlannerDINAtto",
    "fast": "nnUNetPlannerDINFast",
}


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a training step in half precision, counted without computing anything.

    Attributes
    ----------
    arguments : dict
        Arguments of the network, as they stand in the plans.
    input_channels, num_classes : int
        Channels of the original image, and of the logits.
    """

    arguments: dict
    input_channels: int
    num_classes: int

    def bytes(self, batch: int, patch: tuple[int, ...], checkpointing: bool) -> int:
        """Count the peak for a batch of patches, with or without activation checkpointing."""
        arguments = json.dumps({**self.arguments, "checkpointing": checkpointing})
        return _counted(arguments, self.input_channels, self.num_classes, (batch, *patch))


@lru_cache  # nnU-Net plans the same step for many spacings of `3d_lowres`
def _counted(arguments: str, input_channels: int, num_classes: int, shape: tuple[int, ...]) -> int:
    with torch.device("meta"):
        network = DualInteractionNetwork(input_channels, num_classes, **json.loads(arguments))
    batch, *patch = shape
    return training_memory(network, (batch, 2 * input_channels, *patch), half_precision=True)


class nnUNetPlannerDIN(ExperimentPlanner):
    """Plans DIN at base size, the paper's network.

    Every configuration gets DIN's network, preprocessor and enhancement, and a patch and batch that fit the memory by
    our count. In 3-D the patch is nnU-Net's for the data, or a smaller one, and the network pools as nnU-Net's does.
    There is no cascade, whose second stage takes a segmentation as input, which DIN does not.

    Attributes
    ----------
    preset : str
        A key of :data:`nnunet_din.network.PRESETS`.
    default_plans_name : str
        Name of the plans where ``-overwrite_plans_name`` gives no other.
    default_gpu_memory_gb : float
        GPU memory that is planned for where ``-gpu_memory_target`` gives no other.
    enhancement : dict
        Keyword arguments of :func:`nnunet_din.enhancement.enhance`, copied into the plans.
    memory_overhead : float
        Room for what the accounting does not see.
    """

    preset = "base"
    default_plans_name = "nnUNetDINPlans"
    default_gpu_memory_gb = 24.0
    enhancement = {
        "method": "fuzzy",
        "m": 2,
        "n": 2,
        "gamma": 1.0,
        "sigma_u": sqrt(1 / 3),
        "s_min": 1e-2,
        "percentiles": [0.5, 99.5],
        "limit": 0.99,
    }
    memory_overhead = MEMORY_MARGIN

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ):
        # nnU-Net's patches for volumes are those of its own default unless the user asks for a target.
        kwargs = {} if gpu_memory_target_in_gb is None else {"gpu_memory_target_in_gb": gpu_memory_target_in_gb}
        super().__init__(
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name or self.default_plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
            **kwargs,
        )
        check_label_numbers(read_dataset_json(Path(self.raw_dataset_folder, "dataset.json")))
        self.gpu_memory_gb = gpu_memory_target_in_gb or self.default_gpu_memory_gb

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """Plan a configuration as nnU-Net does, for DIN."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        enhancement = {**self.enhancement, "color": self._is_color}
        # Near-isotropic voxels: slices by themselves would flicker from one to the next.
        near = len(spacing) == 3 and max(spacing) / min(spacing) < ANISO_THRESHOLD
        if near and enhancement["method"] in VOLUMETRIC:
            enhancement |= {"volumetric": True, "p": 2}
        if len(spacing) == 2:
            multiple = input_stride(**PRESETS[self.preset])
            patch = tuple(multiple * math.ceil(edge / multiple) for edge in median_shape)
            most = round(approximate_n_voxels_dataset * self.max_dataset_covered / math.prod(patch))
        else:
            patch, most = tuple(int(edge) for edge in plan["patch_size"]), plan["batch_size"]
        arguments, patch, batch, checkpointing = self._fit(spacing, median_shape, patch, most)
        plan.update(
            preprocessor_name="DINPreprocessor",
            batch_size=batch,
            patch_size=list(patch),
            enhancement=enhancement,
            architecture={
                "network_class_name": "nnunet_din.network.DualInteractionNetwork",
                "arch_kwargs": {**arguments, **({"checkpointing": True} if checkpointing else {})},
                "_kw_requires_import": [],
            },
        )
        return plan

    def _fit(self, spacing, median_shape, patch: tuple[int, ...], most: int) -> tuple[dict, tuple[int, ...], int, bool]:
        """Arguments of the network, patch, batch and whether to checkpoint activations.

        The patch in a batch of at most ``most`` and at least 2; where 2 do not fit, with activation checkpointing; and
        where that does not suffice, a smaller patch.
        """
        budget, least = self.gpu_memory_gb * 1e9 / self.memory_overhead, self.UNet_min_batch_size
        ways, before = [False, True], None
        while True:
            step, _ = self._step(spacing, patch)
            for checkpointing in ways:
                used = step.bytes(least, patch, checkpointing)
                if used <= budget:
                    count = partial(step.bytes, patch=patch, checkpointing=checkpointing)
                    batch = largest_batch(count, budget, least, max(least, most))
                    return step.arguments, patch, batch, checkpointing
            # Memory grows at most in proportion to the pixels, and a line through two counts lies below it where
            # patches are smaller: no larger patch than this fits.
            pixels = math.prod(patch)
            limit = min(pixels * budget / used, pixels - 1)
            if before is not None:
                slope = (before[1] - used) / (before[0] - pixels)
                limit = min(limit, pixels - (used - budget) / slope) if slope > 0 else 0
            before = pixels, used
            smaller = self._shrink(spacing, median_shape, patch, limit)
            if smaller == patch:
                # Computing everything twice would not make it fit either.
                print(self._too_large(patch, self.memory_overhead * step.bytes(least, patch, False) / 1e9))
                return step.arguments, patch, least, False
            patch, ways = smaller, [True]

    def _shrink(self, spacing, median_shape, patch: tuple[int, ...], pixels: float) -> tuple[int, ...]:
        """Shorten a patch to this many pixels or as far as it goes, by the axis that is longest beside the data's."""
        smallest = 64 if len(patch) == 2 else 32
        while math.prod(patch) > pixels:
            _, multiples = self._step(spacing, patch)
            room = [edge - multiple >= smallest for edge, multiple in zip(patch, multiples, strict=True)]
            if not any(room):
                break
            edges = np.array(patch)
            axis = int(np.argmax(np.where(room, edges / np.asarray(median_shape, dtype=float), 0)))
            edges[axis] -= multiples[axis]
            if len(edges) == 3:
                edges = get_pool_and_conv_props(spacing, edges.tolist(), *self._topology)[3]
            patch = tuple(int(edge) for edge in edges)
        return patch

    @property
    def _topology(self) -> tuple[int, int]:
        """What nnU-Net's planner tells its topology: smallest edge of a map, and no limit to the number of poolings."""
        return self.UNet_featuremap_min_edge_length, 999999

    def _step(self, spacing, patch: tuple[int, ...]) -> tuple[StepMemory, list[int]]:
        """The training step on patches of this size, and the multiples that its edges must be."""
        if len(patch) == 2:
            arguments = dict(PRESETS[self.preset])
            multiples = list(input_strides(**arguments))
        else:
            _, strides, kernels, _, multiples = get_pool_and_conv_props(spacing, patch, *self._topology)
            strides, kernels = ([[int(i) for i in stage] for stage in stages] for stages in (strides, kernels))
            # Slices that nnU-Net calls far apart are fused one by one, as in the paper: convolutions across them would
            # make the fusions the larger part of the network's arithmetic.
            far = [edge / min(spacing) >= ANISO_THRESHOLD for edge in spacing]
            fusion_kernel = [1 if is_far else 3 for is_far in far] if any(far) else None
            arguments = preset_for_volumes(self.preset, strides, kernels, fusion_kernel=fusion_kernel)
        channels, classes = number_of_channels(self.dataset_json), number_of_classes(self.dataset_json)
        return StepMemory(arguments, channels, classes), [int(multiple) for multiple in multiples]

    @staticmethod
    def static_estimate_VRAM_usage(*args, **kwargs):
        """Estimate as nnU-Net does, which takes ``nnUNet_n_proc_DA=0`` for a number of threads and fails."""
        workers = os.environ.get("nnUNet_n_proc_DA")
        if workers != "0":
            return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)
        os.environ["nnUNet_n_proc_DA"] = "1"
        try:
            return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)
        finally:
            os.environ["nnUNet_n_proc_DA"] = workers

    def _too_large(self, patch: tuple[int, ...], needed_gb: float) -> str:
        """The warning that the memory does not suffice: what is needed, and which planners need less."""
        presets = list(PLANNER_OF_PRESET)
        # A preset of somebody else's planner is not among them.
        place = presets.index(self.preset) + 1 if self.preset in presets else len(presets)
        smaller = [PLANNER_OF_PRESET[preset] for preset in presets[place:]]
        do = "Raise -gpu_memory_target"
        if smaller:
            do += f", or plan a smaller network with -pl {' or '.join(smaller)}"
        return (
            f"WARNING: {self.gpu_memory_gb:g} GB hold fewer than {self.UNet_min_batch_size} patches of {list(patch)} "
            f"with DIN {self.preset}, which need {math.ceil(100 * needed_gb) / 100:.2f} GB by our count. {do}."
        )

    @cached_property
    def _is_color(self) -> bool:
        images = next(iter(self.dataset.values()))["images"]
        return is_color(self.dataset_json, images, self.determine_reader_writer().__name__)

    def save_plans(self, plans):
        """Save the plans as nnU-Net does, without the cascade.

        A training of `3d_lowres` would predict for the cascade at its end, and needs the data of `3d_fullres` for that.
        """
        plans["configurations"].pop("3d_cascade_fullres", None)
        plans["configurations"].get("3d_lowres", {}).pop("next_stage", None)
        super().save_plans(plans)


class nnUNetPlannerDINTiny(nnUNetPlannerDIN):
    """Plans DIN with ConvNeXt-Tiny encoders and a decoder of width 256."""

    preset = "tiny"
    default_plans_name = "nnUNetDINTinyPlans"
    default_gpu_memory_gb = 12.0


class nnUNetPlannerDINAtto(nnUNetPlannerDIN):
    """Plans DIN with ConvNeXt-Atto encoders and a decoder of width 128: small data, small GPUs, CPUs."""

    preset = "atto"
    default_plans_name = "nnUNetDINAttoPlans"
    default_gpu_memory_gb = 8.0


class nnUNetPlannerDINFast(nnUNetPlannerDIN):
    """Plans DIN with plain convolutions for encoders, from half resolution on: for trainings from random weights, at
    the speed of nnU-Net's ResEnc-M. The enhanced image has less noise than the original (docs/robustness.md).
    """

    preset = "fast"
    enhancement = {**nnUNetPlannerDIN.enhancement, "smoothing": 1.0}
    default_plans_name = "nnUNetDINFastPlans"
    default_gpu_memory_gb = 8.0
