"""nnU-Net planners for DIN: the 2-D configuration is DIN's, everything else is nnU-Net's own."""

from __future__ import annotations

import math
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_din.network import PRESETS, ConvNeXtEncoder, DualInteractionNetwork
from nnunet_din.network.accounting import count_parameters


@lru_cache
def network_cost(preset: str, input_channels: int, num_classes: int, size: int = 128) -> tuple[int, float]:
    """Parameters of a preset, and elements kept for the backward pass per pixel of a ``size`` x ``size`` patch."""
    with torch.device("meta"):
        network = DualInteractionNetwork(input_channels, num_classes, **PRESETS[preset])
    return count_parameters(network), network.compute_conv_feature_map_size((size, size)) / size**2


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
    bytes_per_parameter : float
        Weight, gradient and both moments of AdamW in fp32, and the half-precision copy that autocast makes.
    bytes_per_element : float
        Memory per element that autograd keeps: half precision for most, fp32 for normalizations, and what the backward
        pass needs on top. An estimate: it has not been fitted to measurements on a GPU.
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
    bytes_per_parameter = 18.0
    bytes_per_element = 3.0

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
        patch_size, batch_size = self._patch_and_batch_size(median_shape, approximate_n_voxels_dataset)
        plan.update(
            preprocessor_name="DINPreprocessor",
            batch_size=batch_size,
            patch_size=patch_size,
            enhancement={**self.enhancement, "color": self._is_color()},
            architecture={
                "network_class_name": "nnunet_din.network.DualInteractionNetwork",
                "arch_kwargs": dict(PRESETS[self.preset]),
                "_kw_requires_import": [],
            },
        )
        return plan

    def _patch_and_batch_size(self, median_shape, n_pixels_dataset: float) -> tuple[list[int], int]:
        """The median slice padded to multiples of the stride, shrunk until two such patches fit; then as many as fit,
        at most 5 %.
        """
        stride, smallest = ConvNeXtEncoder.stride, 64
        fixed, per_pixel = self._memory_model()
        budget = self.gpu_memory_gb * 1e9 - fixed
        median = np.asarray(median_shape, dtype=float)
        patch = np.array([stride * math.ceil(s / stride) for s in median])
        floor = np.minimum(patch, smallest)
        while 2 * per_pixel * np.prod(patch) > budget and (patch > floor).any():
            relative = np.where(patch > floor, patch / median, 0)
            patch[int(np.argmax(relative))] -= stride
        fitting = int(budget // (per_pixel * np.prod(patch)))
        if fitting < self.UNet_min_batch_size:
            print(
                f"WARNING: {self.gpu_memory_gb:g} GB hold fewer than {self.UNet_min_batch_size} patches of "
                f"{patch.tolist()} with DIN {self.preset} "
                f"(about {(fixed + 2 * per_pixel * np.prod(patch)) / 1e9:.1f} GB needed). Raise -gpu_memory_target, "
                "or plan a smaller network with "
                "-pl nnUNetPlannerDINTiny or -pl nnUNetPlannerDINAtto."
            )
        five_percent = round(n_pixels_dataset * self.max_dataset_covered / np.prod(patch, dtype=np.float64))
        return patch.tolist(), max(min(fitting, five_percent), self.UNet_min_batch_size)

    def _memory_model(self) -> tuple[float, float]:
        """Bytes of a training step: a fixed part, and per pixel of the batch."""
        parameters, elements = network_cost(self.preset, self._n_channels(), len(self.dataset_json["labels"]))
        return self.bytes_per_parameter * parameters, self.bytes_per_element * elements

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
