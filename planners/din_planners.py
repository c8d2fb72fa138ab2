"""nnU-Net planners for DIN: the 2-D configuration is DIN's, everything else is nnU-Net's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_din.network import PRESETS, DualInteractionNetwork, input_stride
from nnunet_din.network.accounting import count_parameters, training_memory


@dataclass(frozen=True)
class MemoryModel:
    """Bytes at the peak of a training step in half precision, as a function of the pixels of the batch.

    Attributes
    ----------
    parameters : float
        Weights, gradients and AdamW's moments: the peak of small batches, at the end of the backward pass.
    fixed, per_pixel : float
        The line that the peak of larger batches follows.
    """

    parameters: float
    fixed: float
    per_pixel: float

    def bytes(self, pixels: float) -> float:
        """Peak for a batch of so many pixels."""
        return max(self.parameters, self.fixed + self.per_pixel * pixels)

    def pixels(self, budget: float) -> float:
        """Pixels whose peak is ``budget`` bytes; 0 if the network itself does not fit."""
        return max(0.0, (budget - self.fixed) / self.per_pixel) if budget >= self.parameters else 0.0


@lru_cache
def memory_model(preset: str, input_channels: int, num_classes: int, checkpointing: bool) -> MemoryModel:
    """What the network's own accounting says, see :func:`nnunet_din.network.accounting.training_memory`."""
    with torch.device("meta"):
        network = DualInteractionNetwork(input_channels, num_classes, **PRESETS[preset], checkpointing=checkpointing)
    edge = 224
    two, eight = (training_memory(network, (n, 2 * input_channels, edge, edge), half_precision=True) for n in (2, 8))
    per_pixel = (eight - two) / (6 * edge**2)
    return MemoryModel(16 * count_parameters(network), two - per_pixel * 2 * edge**2, per_pixel)


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
        Room for what the accounting does not see: workspaces, fragments, the context of the device. Not measured on a
        GPU.
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
    memory_overhead = 1.15

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
        """As in nnU-Net; DIN where there are two axes."""
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

    def _patch_and_batch_size(self, median_shape, n_pixels_dataset: float) -> tuple[list[int], int, bool]:
        """The median slice padded to multiples of the stride, in as many patches as fit, at least 2, at most 5 % of the
        data.

        Where not even two fit, activation checkpointing is switched on (the third value), and then the patch shrinks.
        """
        stride, smallest = input_stride(**PRESETS[self.preset]), 64
        median = np.asarray(median_shape, dtype=float)
        patch = np.array([stride * math.ceil(s / stride) for s in median])
        budget = self.gpu_memory_gb * 1e9 / self.memory_overhead
        checkpointing = self._memory_model(False).pixels(budget) < self.UNet_min_batch_size * np.prod(patch)
        model = self._memory_model(checkpointing)
        fitting_pixels = model.pixels(budget)
        floor = np.minimum(patch, smallest)
        while self.UNet_min_batch_size * np.prod(patch) > fitting_pixels and (patch > floor).any():
            relative = np.where(patch > floor, patch / median, 0)
            patch[int(np.argmax(relative))] -= stride
        pixels = np.prod(patch, dtype=np.float64)
        fitting = int(fitting_pixels // pixels)
        if fitting < self.UNet_min_batch_size:
            needed = self.memory_overhead * model.bytes(self.UNet_min_batch_size * pixels) / 1e9
            print(
                f"WARNING: {self.gpu_memory_gb:g} GB hold fewer than {self.UNet_min_batch_size} patches of "
                f"{patch.tolist()} with DIN {self.preset} (about {needed:.2g} GB needed). Raise -gpu_memory_target, or "
                "plan a smaller network with -pl nnUNetPlannerDINTiny, nnUNetPlannerDINAtto or nnUNetPlannerDINFast."
            )
        five_percent = round(n_pixels_dataset * self.max_dataset_covered / pixels)
        return patch.tolist(), max(min(fitting, five_percent), self.UNet_min_batch_size), bool(checkpointing)

    def _memory_model(self, checkpointing: bool) -> MemoryModel:
        """The preset's memory on this data set's channels and classes."""
        return memory_model(self.preset, self._n_channels(), len(self.dataset_json["labels"]), checkpointing)

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
    """Plans DIN with ConvNeXt-Atto encoders at half resolution: trains at the speed of nnU-Net's ResEnc-M."""

    preset = "fast"
    default_plans_name = "nnUNetDINFastPlans"
    default_gpu_memory_gb = 8.0
