"""nnU-Net planners for DIN: the 2-D configuration is DIN's, everything else is nnU-Net's own."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_din.cost.accounting import MEMORY_MARGIN, training_memory
from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride

#: Preset -> its planner, the largest network first.
PLANNER_OF_PRESET = {
    "base": "nnUNetPlannerDIN",
    "tiny": "nnUNetPlannerDINTiny",
    "atto": "nnUNetPlannerDINAtto",
    "fast": "nnUNetPlannerDINFast",
}


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
        """What the network's own accounting says, see :func:`nnunet_din.cost.accounting.training_memory`."""
        with torch.device("meta"):
            network = DualInteractionNetwork(
                self.input_channels, self.num_classes, **PRESETS[self.preset], checkpointing=self.checkpointing
            )
        return training_memory(network, (batch, 2 * self.input_channels, *patch), half_precision=True)

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


class nnUNetPlannerDIN(ExperimentPlanner):
    """Plans DIN at base size, the paper's network.

    The 2-D configuration gets DIN's network, preprocessor, enhancement, patch and batch size. The 3-D configurations
    are those of nnU-Net's default planner, with its preprocessor and its own data.

    Attributes
    ----------
    preset : str
        A key of :data:`nnunet_din.network.PRESETS`.
    default_plans_name : str
        Name of the plans where ``-overwrite_plans_name`` gives no other.
    default_gpu_memory_gb : float
        GPU memory that the 2-D configuration is planned for where ``-gpu_memory_target`` gives no other.
    enhancement : dict
        Keyword arguments of :func:`nnunet_din.enhancement.enhance_slices`, copied into the plans.
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
        # nnU-Net's 3-D configurations keep nnU-Net's own default unless the user asks for a target.
        kwargs = {} if gpu_memory_target_in_gb is None else {"gpu_memory_target_in_gb": gpu_memory_target_in_gb}
        super().__init__(
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name or self.default_plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
            **kwargs,
        )
        self.gpu_memory_gb = gpu_memory_target_in_gb or self.default_gpu_memory_gb

    def get_plans_for_configuration(self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache):
        """Plan a configuration as nnU-Net does; where there are two axes, it is DIN's."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) != 2:
            return plan
        patch_size, batch_size, checkpointing = self._patch_and_batch_size(median_shape, approximate_n_voxels_dataset)
        plan.update(
            preprocessor_name="DINPreprocessor",
            batch_size=batch_size,
            patch_size=patch_size,
            enhancement={**self.enhancement, "color": self._is_color()},
            architecture={
                "network_class_name": "nnunet_din.network.DualInteractionNetwork",
                "arch_kwargs": {**PRESETS[self.preset], **({"checkpointing": True} if checkpointing else {})},
                "_kw_requires_import": [],
            },
        )
        return plan

    @staticmethod
    def static_estimate_VRAM_usage(*args, **kwargs):
        """As in nnU-Net, with ``nnUNet_n_proc_DA=0``, too, which it takes for a number of threads."""
        workers = {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA") == "0" else {}
        with patch.dict(os.environ, workers):
            return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)

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
        return MemoryModel(self.preset, self._n_channels(), len(self.dataset_json["labels"]), checkpointing)

    def _n_channels(self) -> int:
        return len(self.dataset_json.get("channel_names", self.dataset_json.get("modality")))

    def _is_color(self) -> bool:
        """Whether the channels are the red, green and blue of natural 2-D images."""
        return self._n_channels() == 3 and self.determine_reader_writer().__name__ == "NaturalImage2DIO"


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
