"""Variants of the DIN trainer that differ in augmentation."""

from __future__ import annotations

from .din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_nnUNetDA(nnUNetTrainerDIN):
    """nnU-Net's augmentation with its own range of rotation, which is the full circle for most patches."""

    max_rotation = None


class nnUNetTrainerDIN_noMirroring(nnUNetTrainerDIN):
    """No flips, in training or in prediction: for structures that their side tells apart, and for short trainings."""

    mirroring = False


class nnUNetTrainerDIN_noMirroring_5epochs(nnUNetTrainerDIN_noMirroring):
    """1250 iterations without flips: an evening without a GPU, on small images."""

    num_epochs = 5
