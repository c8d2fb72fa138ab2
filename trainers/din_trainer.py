"""The nnU-Net trainer of DIN."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_din.enhancement import get_enhancement
from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.network import input_strides, learning_rate
from nnunet_din.network.din import AUXILIARY_PREFIX, DualInteractionNetwork
from nnunet_din.nnunet.devices import autocast_dtype
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.nnunet.plans import enhancements_of
from nnunet_din.nnunet.tracking import TensorBoardLogger
from nnunet_din.nnunet.training_settings import check_training_settings

from .checkpoints import KeepsCheckpoints, weight_names
from .enhance_augmented import EnhanceAugmented
from .loss_parts import LogsLossParts


class nnUNetTrainerDIN(KeepsCheckpoints, LogsLossParts, nnUNetTrainer):
    """Trains a DIN configuration from random weights, with what was measured to work (docs/results.md).

    CE + Dice + L_bnd of the segmentation and of the fused levels, AdamW after a warm-up, 300 epochs, nnU-Net's
    augmentation with rotation within 20 degrees.
    :class:`nnunet_din.trainers.paper.nnUNetTrainerDIN_paper` is the paper's text to the letter.

    Hyper-parameters are class attributes; a variant is a subclass that changes them. A configuration of the plans may
    set them, too, under ``training`` (:mod:`nnunet_din.nnunet.training_settings`), and has the last word. An epoch is
    nnU-Net's: 250 iterations.

    Attributes
    ----------
    initial_lr : float or None
        Learning rate of AdamW after the warm-up. None: the one that suits the encoder
        (:attr:`nnunet_din.network.encoders.base.Encoder.learning_rate`).
    weight_decay : float
        Weight decay of AdamW; normalizations, biases and other vectors are not decayed.
    warmup : float
        Share of the training over which the learning rate grows linearly from 0.
    num_epochs, num_iterations_per_epoch, num_val_iterations_per_epoch, save_every : int
        As in nnU-Net. Besides, a checkpoint is written every ``save_minutes``, see
        :class:`nnunet_din.trainers.checkpoints.KeepsCheckpoints`.
    enable_deep_supervision : bool
        Whether the fused levels are supervised, too, each by a classifier of its own that only training has, see
        :meth:`nnunet_din.network.DualInteractionNetwork.add_auxiliary_heads`.
    auxiliary_weight : float
        Weight of each of their losses; that of the segmentation is 1.
    weight_ce, weight_dice, weight_boundary : float
        alpha and beta of eq. 10, and the weight of L_bnd (1 in the paper).
    boundary_ramp : float
        Share of the training over which the weight of L_bnd grows linearly from 0. From then on the loss is eq. 10. A
        network that segments nothing yet has the smallest L_bnd when it predicts no edges at all: from the start, the
        term holds it there.
    normalized_sobel : bool
        See :class:`nnunet_din.losses.MultiScaleBoundaryLoss`.
    spatial_only : bool
        Whether images are only rotated and flipped, as in the paper, and neither scaled nor changed in their
        intensities, as nnU-Net does besides.
    enhance_augmented : bool
        Whether the enhanced channels are those of the original as its intensities were augmented, see
        :class:`nnunet_din.trainers.enhance_augmented.EnhanceAugmented`; without ``spatial_only``.
    p_rotation : float
        Probability of a random rotation.
    max_rotation : float or None
        Its largest angle in degrees, to either side. None: nnU-Net's range, the full circle for patches that are not
        more than 1.5 times as long as wide, else 15 degrees.
    mirroring : bool
        Whether images are flipped at random in training and, as nnU-Net then does, in prediction.
    seed : int or None
        Start of the random numbers of the weights and of every epoch: on a CPU, two trainings with
        ``nnUNet_n_proc_DA=0`` then give the same weights. None: other ones each time, as in nnU-Net.
    tensorboard : bool
        Whether the curves are written for TensorBoard, too, to the folder ``tensorboard`` of the fold.
    """

    initial_lr: float | None = None
    weight_decay = 5e-2
    warmup = 0.05
    num_epochs = 300
    num_iterations_per_epoch = 250
    num_val_iterations_per_epoch = 50
    save_every = 10
    enable_deep_supervision = True
    auxiliary_weight = 0.5
    weight_ce = 0.3
    weight_dice = 0.7
    weight_boundary = 1.0
    boundary_ramp = 0.2
    normalized_sobel = True
    spatial_only = False
    enhance_augmented = True
    p_rotation = 0.2
    max_rotation: float | None = 20.0
    mirroring = True
    seed: int | None = None
    tensorboard = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ):
        enhancements = check_plans(plans, configuration)
        settings = training_settings(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        # nnU-Net's __init__ sets its own defaults on the instance, which would hide the class attributes.
        for name in [name for name in vars(self) if hasattr(type(self), name)]:
            delattr(self, name)
        for name, value in settings.items():
            setattr(self, name, value)
        if self.initial_lr is None:
            self.initial_lr = learning_rate(**self.configuration_manager.network_arch_init_kwargs)
        # A class method in nnU-Net, which cannot know the plans.
        self.get_training_transforms = partial(  # type: ignore[method-assign]
            type(self).get_training_transforms,
            versions=1 + len(enhancements),
            enhancements=enhancements if self.enhance_augmented else (),
            spatial_only=self.spatial_only,
            p_rotation=self.p_rotation,
        )
        self._iteration = 0  # within the epoch
        if self.tensorboard and self.rank == 0:
            logger = TensorBoardLogger(Path(self.output_folder) / "tensorboard")
            logger.update_config({"plans": plans["plans_name"], "configuration": configuration, "fold": fold})
            self.logger.loggers.append(logger)
        self.amp_dtype = autocast_dtype(self.device)
        if self.amp_dtype == torch.bfloat16:
            self.grad_scaler = None  # bf16 has the range of fp32: nothing to scale

    @property
    def rank(self) -> int:
        """Number of this process among all, which on several machines is not that on its own."""
        return getattr(self, "global_rank", self.local_rank)  # type: ignore[return-value]

    def initialize(self) -> None:
        """Initialize as nnU-Net does, with weights that the seed sets, if there is one."""
        self._set_seed()
        if self.is_ddp:  # old torch cannot split a compiled network that computes activations again
            torch._dynamo.config.optimize_ddp = False
        super().initialize()

    def _set_seed(self) -> None:
        """Begin the random numbers of this epoch, which then do not depend on whether the training was interrupted."""
        if self.seed is None:
            return
        number = int(np.random.SeedSequence([self.seed, self.rank, self.current_epoch]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - the generator that the augmentation draws from
        torch.manual_seed(number)

    def configure_optimizers(self):
        """AdamW with warm-up and nnU-Net's polynomial decay, stepped every iteration: short trainings must reach 0,
        too.
        """
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.initial_lr, fused=self.device.type in ("cuda", "cpu"))
        return optimizer, WarmupPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, self.warmup)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager | str | None = None,
        *args,
        architecture_class_name: str | None = None,
        **kwargs,
    ) -> nn.Module:
        """Build the network as nnU-Net does; deep supervision is that of the fused levels.

        Arguments are those of nnU-Net >= 2.7 (plans manager, configuration manager, channels, classes,
        ``enable_deep_supervision``), or of older ones, as other programs still pass them: ``architecture_class_name``,
        ``arch_init_kwargs``, ``arch_init_kwargs_req_import``, ``num_input_channels``, ``num_output_channels``,
        ``enable_deep_supervision``.
        """
        name = plans_manager if isinstance(plans_manager, str) else architecture_class_name
        return _build_from_plans(*args, **kwargs) if name is None else _build(name, *args, **kwargs)

    def _build_loss(self) -> nn.Module:
        self._loss_of_output = DINLoss(
            weight_ce=self.weight_ce,
            weight_dice=self.weight_dice,
            weight_boundary=self.weight_boundary,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            normalized_sobel=self.normalized_sobel,
            pooled_axes=first_pooled_axes(self.configuration_manager.network_arch_init_kwargs.get("strides")),
        )
        loss = AuxiliaryLoss(self._loss_of_output, self.auxiliary_weight)
        return (loss if self.enable_deep_supervision else self._loss_of_output).to(self.device)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """All outputs have the resolution of the target."""
        return [[1.0] * len(self.configuration_manager.patch_size)] if self.enable_deep_supervision else None

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        """Choose angles, patch and flips as nnU-Net does, within ``max_rotation``; no flips if ``mirroring`` is off."""
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.max_rotation is not None:
            angle = math.radians(self.max_rotation)
            rotation = (-angle, angle)
            patch = list(self.configuration_manager.patch_size)
            if len(patch) == 2:
                initial_patch_size = rotated_extent(patch, angle)
            elif dummy_2d:  # turned in the plane of the slices
                initial_patch_size = [patch[0], *rotated_extent(patch[1:], angle)]
            else:
                initial_patch_size = get_patch_size(patch, rotation, rotation, rotation, (1, 1))
        if not self.mirroring:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    @classmethod
    def get_training_transforms(
        cls,
        *args,
        use_mask_for_norm: list[bool] | None = None,
        versions: int = 2,
        enhancements: Sequence[dict] = (),
        spatial_only: bool | None = None,
        p_rotation: float | None = None,
        **kwargs,
    ) -> BasicTransform:
        """nnU-Net's pipeline, or less its intensity transforms and its scaling (the paper's section 4.2). The enhanced
        channels are augmented like any other channel; where intensities are augmented, they are then computed anew by
        ``enhancements``, if there are any.
        """
        spatial_only = cls.spatial_only if spatial_only is None else spatial_only
        compose = nnUNetTrainer.get_training_transforms(
            *args, use_mask_for_norm=for_all_versions(use_mask_for_norm, versions), **kwargs
        )
        # nnU-Net wraps every intensity transform, and no other, in RandomTransform.
        if spatial_only:
            compose.transforms = [t for t in compose.transforms if not isinstance(t, RandomTransform)]
        elif enhancements:
            first = next(i for i, t in enumerate(compose.transforms) if isinstance(t, RandomTransform))
            intensities = [t for t in compose.transforms if isinstance(t, RandomTransform)]
            others = [t for t in compose.transforms if not isinstance(t, RandomTransform)]
            compose.transforms = [*others[:first], EnhanceAugmented(intensities, enhancements), *others[first:]]
        for transform in compose.transforms:
            if isinstance(transform, SpatialTransform):
                transform.p_rotation = cls.p_rotation if p_rotation is None else p_rotation
                if spatial_only:
                    transform.p_scaling = 0
        return compose

    def on_train_start(self) -> None:
        """Begin the training; the log says what the plans set of it, and what the weights were started from."""
        super().on_train_start()
        if settings := self.configuration_manager.configuration.get("training"):
            self.print_to_log_file(
                f"Set by the plans: {', '.join(f'{key} {value}' for key, value in settings.items())}"
            )
        if origin := bare(self.network).origin:
            self.print_to_log_file(origin)
        if self.seed is not None and (workers := get_allowed_n_proc_DA()):
            self.print_to_log_file(
                f"WARNING: batches come from {workers} workers, which draw random numbers of their own: another "
                f"training with seed {self.seed} gives other weights. With nnUNet_n_proc_DA=0, a CPU gives the same."
            )

    def on_train_epoch_start(self) -> None:
        """Begin an epoch; nnU-Net's log rounds the learning rate to five decimals, which are too few for 5e-4."""
        self._set_seed()
        super().on_train_epoch_start()
        self.print_to_log_file(f"Exact learning rate: {self.optimizer.param_groups[0]['lr']:.9g}")
        self._iteration = 0

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Whether the network gives the auxiliary outputs, if it has any."""
        network = bare(self.network)
        network.deep_supervision = enabled and network.auxiliary_heads is not None

    @contextmanager
    def _autocast_dtype(self) -> Iterator[None]:
        """nnU-Net's autocast in bf16 where the device has it."""
        if self.amp_dtype is None:
            yield
            return
        before = torch.get_autocast_dtype(self.device.type)
        torch.set_autocast_dtype(self.device.type, self.amp_dtype)
        try:
            yield
        finally:
            torch.set_autocast_dtype(self.device.type, before)

    def train_step(self, batch: dict) -> dict:
        """Train for one iteration, in bf16 where the device has it, with its learning rate and weight of L_bnd."""
        epochs = self.current_epoch + self._iteration / self.num_iterations_per_epoch
        done = epochs / self.num_epochs
        self.lr_scheduler.step(epochs)
        self._loss_of_output.weight_boundary = ramped(self.weight_boundary, self.boundary_ramp, done)
        self._iteration += 1
        with self._autocast_dtype():
            return super().train_step(batch)

    def _weight_of_boundary(self) -> float:
        return self._loss_of_output.weight_boundary

    def validation_step(self, batch: dict) -> dict:
        """Validate one batch, in bf16 where the device has it."""
        with self._autocast_dtype():
            return super().validation_step(batch)

    def on_epoch_end(self) -> None:
        """End an epoch; on a GPU, the log says how much memory training takes."""
        super().on_epoch_end()
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            self.print_to_log_file(f"Peak GPU memory: {peak / 1e9:.2f} GB")

    def load_checkpoint(
        self, filename_or_checkpoint: dict | str | None = None, checkpoint: dict | str | None = None
    ) -> None:
        """Load a checkpoint as nnU-Net does, by either of the names that its releases have for the argument.

        A checkpoint of another network is named in the error. One of a training without auxiliary outputs goes on
        without them. With ``--c``, one that cannot be read is replaced by the newest beside it that can be.
        """
        source = filename_or_checkpoint if checkpoint is None else checkpoint
        if isinstance(source, str):
            source = self.readable_checkpoint(source)
        if not self.was_initialized and self.enable_deep_supervision and isinstance(source, str):
            # nnU-Net loads it again, with what it holds of the optimizer; this reads the names only.
            if names := weight_names(Path(source)):
                self.enable_deep_supervision = any(AUXILIARY_PREFIX in name for name in names)
        try:
            super().load_checkpoint(source)
        except RuntimeError as error:
            if isinstance(source, str):
                raise RuntimeError(f"{source}: {error}") from error
            raise


def _build_from_plans(
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
) -> nn.Module:
    return _build(
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision,
    )


def _build(
    architecture_class_name: str,
    arch_init_kwargs: dict,
    arch_init_kwargs_req_import: Sequence[str],
    num_input_channels: int,
    num_output_channels: int,
    enable_deep_supervision: bool = True,
) -> nn.Module:
    network = get_network_from_plans(
        architecture_class_name,
        arch_init_kwargs,
        arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        deep_supervision=False,
    )
    if enable_deep_supervision:
        network.add_auxiliary_heads()
    return network


def bare(network: nn.Module) -> DualInteractionNetwork:
    """The network itself, without the wrappers of distributed training and compilation."""
    network = network.module if isinstance(network, DistributedDataParallel) else network
    network = network._orig_mod if isinstance(network, OptimizedModule) else network
    return cast(DualInteractionNetwork, network)


def check_plans(plans: dict, configuration: str) -> list[dict]:
    """Check that DIN can be trained with a configuration; returns its enhancements.

    Raises
    ------
    ValueError
        If the configuration is a cascade's, has no enhanced channels or not as many as the network takes, or has a
        patch that the network cannot take.
    """
    manager = PlannedModel(plans, {}, configuration).configuration_manager
    plans_name = plans["plans_name"]
    if manager.previous_stage_name is not None:
        raise ValueError(
            f"'{configuration}' of {plans_name} is a cascade: it takes the segmentation of "
            f"'{manager.previous_stage_name}' as input, which DIN does not. Train `3d_fullres` or `3d_lowres`."
        )
    enhancements = enhancements_of(manager.configuration)
    if not enhancements:
        raise ValueError(
            f"Configuration '{configuration}' of {plans_name} has no enhanced channels. Make plans and data for DIN "
            f"with `nnUNetv2_plan_and_preprocess -d {plans['dataset_name']} -pl nnUNetPlannerDINFast -c 2d` (or "
            "another planner of DIN) and train with `-p nnUNetDINFastPlans`."
        )
    for enhancement in enhancements:
        get_enhancement(enhancement["method"])
    versions = manager.network_arch_init_kwargs.get("versions", 2)
    if versions != 1 + len(enhancements):
        raise ValueError(
            f"Configuration '{configuration}' of {plans_name} has {len(enhancements)} enhancements, so that there are "
            f"{1 + len(enhancements)} versions of each image, and its network takes {versions}: set `versions` among "
            f"the network's arguments to {1 + len(enhancements)}."
        )
    strides, patch = input_strides(**manager.network_arch_init_kwargs), list(manager.patch_size)
    if len(strides) != len(patch):
        raise ValueError(
            f"The patch size {patch} of configuration '{configuration}' in {plans_name} has {len(patch)} axes, and its "
            f"network {len(strides)}: plan again with a planner of DIN."
        )
    if any(edge % stride for edge, stride in zip(patch, strides, strict=True)):
        rounded = [-(-edge // stride) * stride for edge, stride in zip(patch, strides, strict=True)]
        multiples = " and ".join(map(str, sorted(set(strides))))
        raise ValueError(
            f"The patch size {patch} of configuration '{configuration}' in {plans_name} is not a multiple of "
            f"{multiples} along every axis. Set it to {rounded} in the plans file; the data need not be preprocessed "
            "again."
        )
    return enhancements


def training_settings(plans: dict, configuration: str) -> dict:
    """What the plans set of a configuration's training.

    Raises
    ------
    ValueError
        If a setting is unknown or its value not allowed; the message names the configuration.
    """
    try:
        manager = PlannedModel(plans, {}, configuration).configuration_manager
        return check_training_settings(manager.configuration.get("training", {}))
    except ValueError as error:
        raise ValueError(f"Configuration '{configuration}' of {plans['plans_name']}: {error}") from error


class WarmupPolyLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay, times a linear growth from 0 over the first share ``warmup`` of the steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, max_steps: int, warmup: float = 0.0):
        self.warmup = warmup  # the base class takes the first step in its __init__
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: float | None = None) -> None:
        """Set the learning rate of a step, which need not be a whole number; without one, of the next."""
        super().step(current_step)
        if current_step is None or current_step == -1:
            current_step = self.ctr - 1
        for group in self.optimizer.param_groups:
            group["lr"] = ramped(group["lr"], self.warmup, current_step / self.max_steps)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def ramped(weight: float, ramp: float, done: float) -> float:
    """A weight that grows linearly from 0 over the first share ``ramp`` of the training, of which ``done`` is done."""
    return weight * (min(1.0, done / ramp) if ramp else 1.0)


def rotated_extent(size: Sequence[int], angle: float) -> list[int]:
    """Edges in pixels of what a patch can cover when it is rotated by up to ``angle`` radians to either side."""
    # h cos(a) + w sin(a) is largest at a = atan(w / h).
    angles = [min(angle, math.atan2(across, along)) for along, across in (size, size[::-1])]
    return [
        math.ceil(along * math.cos(a) + across * math.sin(a) - 1e-9)
        for a, along, across in zip(angles, size, size[::-1], strict=True)
    ]


def first_pooled_axes(strides: Sequence[Sequence[int]] | None) -> list[int] | None:
    """Axes along which a network with these strides of its stages pools first; None, all, where nothing is said."""
    for stride in strides or ():
        if max(stride) > 1:
            return [axis for axis, s in enumerate(stride) if s > 1]
    return None


def for_all_versions(per_channel: list[bool] | None, versions: int) -> list[bool] | None:
    """nnU-Net's per-channel setting, for the original channels and again for each of their enhanced versions."""
    return None if per_channel is None else per_channel * versions
