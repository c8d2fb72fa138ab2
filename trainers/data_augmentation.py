"""Variants of the DIN trainer that differ in augmentation."""

from __future__ import annotations

from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_nnUNetDA(nnUNetTrainerDIN):
    """nnU-Net's full augmentation, rotation by any angle included."""

    max_rotation = None


class nnUNetTrainerDIN_spatialDA(nnUNetTrainerDIN):
    """The paper's augmentation, rotation and flips only."""

    spatial_only = True
    p_rotation = 0.5


class nnUNetTrainerDIN_noMirroring(nnUNetTrainerDIN):
    """No flips, in training or in prediction: for structures that their side tells apart, and for short trainings."""

    mirroring = False
