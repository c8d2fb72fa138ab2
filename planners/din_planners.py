"""nnU-Net planners for DIN: every configuration is DIN's, with nnU-Net's spacing, resampling and normalization."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_din.cost.accounting import MEMORY_MARGIN, training_memory
from nnunet_din.enhancement import VOLUMETRIC
from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride
from nnunet_din.nnunet.labels import (
    check_label_numbers,
    is_color,
    number_of_channels,
    number_of_classes,
    read_dataset_json,
)
from nnunet_din.presets import preset_for_volumes

#: Preset -> its planner, the largest network first.
PLANNER_OF_PRESET = {
    "base": "nnUNetPlannerDIN",
    "tiny": "nnUNetPlannerDINTiny",
    "atto": "nnUNetPlannerDINAtto",
    "fast": "nnUNetPlannerDINFast",
}


def step_memory(arguments: dict, input_channels: int, num_classes: int, shape: tuple[int, ...]) -> int:
    """Bytes at the peak of a training step in half precision, counted without computing anything.

    Parameters
    ----------
    arguments
        Of the network, as they stand in the plans.
    input_channels, num_classes
        Channels of the original image, and of the logits.
    shape
        Images of the batch, and edges of the patch.
    """
    with torch.device("meta"):
        network = DualInteractionNetwork(input_channels, num_classes, **arguments)
    batch, *patch = shape
    return training_memory(network, (batch, 2 * input_channels, *patch), half_precision=True)


@dataclass(frozen=True)
class MemoryModel:
    """Bytes at the peak of a training step in half precision.

    Attributes
    ----------
    preset : str
        A key of :data:`nnunet_din.network.PRESETS`.
    input_channels, num_classes, checkpointing
        Arguments of the network.
    """

    preset: str
    input_channels: int
    num_classes: int
    checkpointing: bool

    @lru_cache  # noqa: B019  (few, and small)
    def bytes(self, batch: int, *patch: int) -> int:
        """See :func:`step_memory`."""
        arguments = {**PRESETS[self.preset], "checkpointing": self.checkpointing}
        return step_memory(arguments, self.input_channels, self.num_classes, (batch, *patch))

    def pixels(self, budget: float) -> float:
        """Pixels of a batch whose peak is about ``budget`` bytes.

        The peak is the largest of several quantities that grow in proportion to the pixels (weights and moments at the
        end of the backward pass, activations at its beginning), so that lines between counted points lie above it.
        """
        shapes = [(2, 64, 64), (2, 128, 128), (2, 224, 224), (8, 224, 224)]
        pixels, counts = [math.prod(shape) for shape in shapes], [self.bytes(*shape) for shape in shapes]
        i = min(max(bisect_left(counts, budget), 1), len(shapes) - 1)
        slope = (pixels[i] - pixels[i - 1]) / (counts[i] - counts[i - 1])
        return pixels[i] + slope * (budget - counts[i])


@dataclass(frozen=True)
class Volumes:
    """A training step on volumes.

    Attributes
    ----------
    preset : str
        A key of :data:`nnunet_din.network.PRESETS`.
    input_channels, num_classes
        Arguments of the network.
    strides, kernel_sizes : tuple of tuple of int
        nnU-Net's, of its stages along each axis.
    fusion_kernel : tuple of int or None
        See :class:`nnunet_din.network.DualInteractionNetwork`.
    """

    preset: str
    input_channels: int
    num_classes: int
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    fusion_kernel: tuple[int, ...] | None = None

    def arguments(self) -> dict:
        """Arguments of the network."""
        return preset_for_volumes(self.preset, self.strides, self.kernel_sizes, fusion_kernel=self.fusion_kernel)

    @lru_cache  # noqa: B019  (few, and small)
    def bytes(self, batch: int, patch: tuple[int, ...], checkpointing: bool) -> int:
        """See :func:`step_memory`."""
        arguments = {**self.arguments(), "checkpointing": checkpointing}
        return step_memory(arguments, self.input_channels, self.num_classes, (batch, *patch))

    def largest_batch(self, patch: tuple[int, ...], most: int, budget: float) -> int:
        """The largest batch up to ``most`` that fits into ``budget`` bytes, into which 2 fit."""
        batch = most
        while batch > 2 and (used := self.bytes(batch, patch, False)) > budget:
            slope = (used - self.bytes(2, patch, False)) / (batch - 2)
            batch = max(2, batch - max(1, math.ceil((used - budget) / slope)))
        return batch


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
        if len(spacing) == 2:
            patch, batch, checkpointing = self._patch_and_batch_size(median_shape, approximate_n_voxels_dataset)
            arguments = dict(PRESETS[self.preset])
        else:
            arguments, patch, batch, checkpointing = self._plan_volumes(plan, spacing, median_shape)
            # Near-isotropic voxels: slices by themselves would flicker from one to the next.
            if enhancement["method"] in VOLUMETRIC and max(spacing) / min(spacing) < ANISO_THRESHOLD:
                enhancement |= {"volumetric": True, "p": 2}
        plan.update(
            preprocessor_name="DINPreprocessor",
            batch_size=batch,
            patch_size=patch,
            enhancement=enhancement,
            architecture={
                "network_class_name": "nnunet_din.network.DualInteractionNetwork",
                "arch_kwargs": {**arguments, **({"checkpointing": True} if checkpointing else {})},
                "_kw_requires_import": [],
            },
        )
        return plan

    def _plan_volumes(self, plan: dict, spacing, median_shape) -> tuple[dict, list[int], int, bool]:
        """Arguments of the network, patch, batch and whether to checkpoint activations.

        nnU-Net's patch and batch if they fit, else a smaller batch, then checkpointing, then a smaller patch, by the
        axis that is longest beside the data's, as in nnU-Net.
        """
        budget = self.gpu_memory_gb * 1e9 / self.memory_overhead
        least, smallest = self.UNet_min_batch_size, 32
        patch = [int(edge) for edge in plan["patch_size"]]
        while True:
            volumes, multiples = self._volumes(spacing, patch)
            for checkpointing in (False, True):
                used = volumes.bytes(least, tuple(patch), checkpointing)
                if used <= budget:
                    batch = least if checkpointing else volumes.largest_batch(tuple(patch), plan["batch_size"], budget)
                    return volumes.arguments(), patch, batch, checkpointing
            # Memory grows at most in proportion to the voxels: no patch that is larger than this by a tenth fits.
            voxels = 1.1 * math.prod(patch) * budget / used
            while True:
                room = [edge - step >= smallest for edge, step in zip(patch, multiples, strict=True)]
                if not any(room):
                    used = volumes.bytes(least, tuple(patch), False)
                    print(self._too_large(patch, self.memory_overhead * used / 1e9))
                    return volumes.arguments(), patch, least, False
                axis = int(np.argmax(np.where(room, np.array(patch) / np.asarray(median_shape, dtype=float), 0)))
                patch[axis] -= multiples[axis]
                patch = [int(edge) for edge in get_pool_and_conv_props(spacing, patch, *self._topology)[3]]
                if math.prod(patch) <= voxels:
                    break
                volumes, multiples = self._volumes(spacing, patch)

    @property
    def _topology(self) -> tuple[int, int]:
        """What nnU-Net's planner tells its topology: smallest edge of a map, and no limit to the number of poolings."""
        return self.UNet_featuremap_min_edge_length, 999999

    def _volumes(self, spacing, patch: list[int]) -> tuple[Volumes, list[int]]:
        """Training steps on patches of this size, and the multiples that its edges must be."""
        _, strides, kernels, _, multiples = get_pool_and_conv_props(spacing, patch, *self._topology)
        strides, kernels = (tuple(tuple(int(i) for i in stage) for stage in stages) for stages in (strides, kernels))
        # Slices that nnU-Net calls far apart are fused one by one, as in the paper: convolutions across them would make
        # the fusions the larger part of the network's arithmetic.
        far = [edge / min(spacing) >= ANISO_THRESHOLD for edge in spacing]
        fusion_kernel = tuple(1 if is_far else 3 for is_far in far) if any(far) else None
        channels, classes = number_of_channels(self.dataset_json), number_of_classes(self.dataset_json)
        volumes = Volumes(self.preset, channels, classes, strides, kernels, fusion_kernel)
        return volumes, [int(multiple) for multiple in multiples]

    @staticmethod
    def static_estimate_VRAM_usage(*args, **kwargs):
        """As in nnU-Net, with ``nnUNet_n_proc_DA=0``, too, which it takes for a number of threads."""
        workers = os.environ.get("nnUNet_n_proc_DA")
        if workers != "0":
            return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)
        os.environ["nnUNet_n_proc_DA"] = "1"
        try:
            return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)
        finally:
            os.environ["nnUNet_n_proc_DA"] = workers

    def _patch_and_batch_size(self, median_shape, n_pixels_dataset: float) -> tuple[list[int], int, bool]:
        """The median slice padded to multiples of the stride, in as many patches as fit, at least 2, at most 5 % of the
        data.

        Where not even two fit, activation checkpointing is switched on (the third value), and then the patch shrinks.
        """
        median = np.asarray(median_shape, dtype=float)
        budget = aim = self.gpu_memory_gb * 1e9 / self.memory_overhead
        while True:
            patch, fitting, checkpointing = self._choose(median, aim)
            five_percent = round(n_pixels_dataset * self.max_dataset_covered / np.prod(patch, dtype=np.float64))
            batch = max(min(fitting, five_percent), self.UNet_min_batch_size)
            used = self._memory_model(checkpointing).bytes(batch, *patch)
            if used <= budget or fitting < self.UNet_min_batch_size:
                break
            aim -= used - budget  # beyond the counted points, the choice is made by a line that is a little low
        if used > budget:
            # Computing everything twice would not make it fit either.
            checkpointing = False
            used = self._memory_model(checkpointing).bytes(batch, *patch)
        if used > budget:
            print(self._too_large(patch, self.memory_overhead * used / 1e9))
        return patch, batch, checkpointing

    def _too_large(self, patch: list[int], needed_gb: float) -> str:
        """The warning that the memory does not suffice: what is needed, and which planners need less."""
        presets = list(PLANNER_OF_PRESET)
        # A preset of somebody else's planner is not among them.
        place = presets.index(self.preset) + 1 if self.preset in presets else len(presets)
        smaller = [PLANNER_OF_PRESET[preset] for preset in presets[place:]]
        do = "Raise -gpu_memory_target"
        if smaller:
            do += f", or plan a smaller network with -pl {' or '.join(smaller)}"
        return (
            f"WARNING: {self.gpu_memory_gb:g} GB hold fewer than {self.UNet_min_batch_size} patches of {patch} with "
            f"DIN {self.preset}, which need {math.ceil(100 * needed_gb) / 100:.2f} GB by our count. {do}."
        )

    def _choose(self, median: np.ndarray, budget: float) -> tuple[list[int], int, bool]:
        """Choose the patch, how many of them fit into ``budget`` bytes, and whether to checkpoint activations."""
        stride, smallest = input_stride(**PRESETS[self.preset]), 64
        patch = np.array([stride * math.ceil(s / stride) for s in median])
        floor = np.minimum(patch, smallest)
        checkpointing = self._memory_model(False).pixels(budget) < self.UNet_min_batch_size * np.prod(patch)
        fitting_pixels = self._memory_model(checkpointing).pixels(budget)
        while self.UNet_min_batch_size * np.prod(patch) > fitting_pixels and (patch > floor).any():
            relative = np.where(patch > floor, patch / median, 0)
            patch[int(np.argmax(relative))] -= stride
        return patch.tolist(), int(max(fitting_pixels, 0) // np.prod(patch, dtype=np.float64)), bool(checkpointing)

    def _memory_model(self, checkpointing: bool) -> MemoryModel:
        """Make the memory model of the preset on this data set's channels and classes."""
        channels, classes = number_of_channels(self.dataset_json), number_of_classes(self.dataset_json)
        return MemoryModel(self.preset, channels, classes, checkpointing)

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
    the speed of nnU-Net's ResEnc-M.
    """

    preset = "fast"
    default_plans_name = "nnUNetDINFastPlans"
    default_gpu_memory_gb = 8.0
