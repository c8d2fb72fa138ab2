"""Variants of the DIN trainer that differ in the learning rate."""

from __future__ import annotations

from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_5en4(nnUNetTrainerDIN):
    """Five times the paper's learning rate, with the warm-up and the weight decay that timm's recipes give ConvNeXt:
    for trainings of random weights that are much shorter than the paper's.
    """

    initial_lr = 5e-4
    warmup = 0.05
    weight_decay = 0.05
