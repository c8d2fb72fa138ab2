"""Trainers that differ in the boundary loss, or bring it to other networks."""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_din.losses import DINLoss

from .checkpoints import KeepsCheckpoints
from .din_trainer import first_pooled_axes, nnUNetTrainerDIN, ramped
from .loss_parts import LogsLossParts


class nnUNetTrainerDIN_noBoundaryLoss(nnUNetTrainerDIN):
    """Cross-entropy and Dice only (the paper's Tables 3 and 8)."""

    weight_boundary = 0.0


class nnUNetTrainerDIN_printedBoundaryLoss(nnUNetTrainerDIN):
    """L_bnd with the Sobel kernels as printed in eq. 15, eight times the default."""

    normalized_sobel = False


class nnUNetTrainerBoundaryLoss(KeepsCheckpoints, LogsLossParts, nnUNetTrainer):
    """nnU-Net's own trainer and loss, plus L_bnd of the full-resolution output (the paper's Table 8): for any
    configuration of any plans, nnU-Net's PlainConvUNet and ResEnc among them.

    Attributes
    ----------
    weight_boundary, boundary_ramp, normalized_sobel
        See :class:`nnUNetTrainerDIN`.
    """

    weight_boundary = 1.0
    boundary_ramp = 0.2
    normalized_sobel = True
    loss: LossWithBoundary
    _iteration = 0  # within the epoch

    def _build_loss(self) -> nn.Module:
        boundary = DINLoss(
            weight_ce=0.0,
            weight_dice=0.0,
            weight_boundary=self.weight_boundary,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            normalized_sobel=self.normalized_sobel,
            pooled_axes=first_pooled_axes(self.configuration_manager.network_arch_init_kwargs.get("strides")),
        )
        return LossWithBoundary(super()._build_loss(), boundary.to(self.device))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint; with ``--c``, one that cannot be read is replaced by the newest beside it that can be."""
        if isinstance(filename_or_checkpoint, str):
            filename_or_checkpoint = self.readable_checkpoint(filename_or_checkpoint)
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_epoch_start(self) -> None:
        """Begin an epoch as nnU-Net does."""
        super().on_train_epoch_start()
        self._iteration = 0

    def train_step(self, batch: dict) -> dict:
        """Train for one iteration as nnU-Net does, with this iteration's weight of L_bnd."""
        done = (self.current_epoch + self._iteration / self.num_iterations_per_epoch) / self.num_epochs
        self.loss.boundary.weight_boundary = ramped(self.weight_boundary, self.boundary_ramp, done)
        self._iteration += 1
        return super().train_step(batch)

    def _weight_of_boundary(self) -> float:
        return self.loss.boundary.weight_boundary


class LossWithBoundary(nn.Module):
    """A loss, with or without deep supervision, plus one of the output at full resolution."""

    boundary: DINLoss

    def __init__(self, loss: nn.Module, boundary: DINLoss):
        super().__init__()
        self.loss = loss
        self.boundary = boundary
        self.parts: dict[str, torch.Tensor] = {}

    def forward(self, output, target) -> torch.Tensor:
        """What the trainer hands over: tensors, or lists of them with the full resolution first."""
        first = isinstance(output, (list, tuple))
        boundary = self.boundary(output[0] if first else output, target[0] if first else target)
        loss = self.loss(output, target)
        self.parts = {"nnunet": loss.detach(), "boundary": self.boundary.parts["boundary"]}
        return loss + boundary
