"""The DIN trainer as the paper states it."""

from __future__ import annotations

from .din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_paper(nnUNetTrainerDIN):
    """The training of the paper's section 4.2: AdamW at 1e-4 without warm-up, 300 epochs, rotation and flips, a loss of
    the segmentation alone.

    Where the paper is silent (weight decay, schedule, angle of the rotation), torch's and nnU-Net's defaults hold. The
    paper's batch of 3 and its network are the plans'.
    """

    initial_lr = 1e-4
    weight_decay = 1e-2
    warmup = 0.0
    enable_deep_supervision = False
    spatial_only = True
    p_rotation = 0.5


class nnUNetTrainerDIN_5en4(nnUNetTrainerDIN_paper):
    """The name under which the learning rate of :class:`nnUNetTrainerDIN` was first a trainer of its own: for
    checkpoints of that time.
    """

    initial_lr = 5e-4
    weight_decay = 5e-2
    warmup = 0.05
