"""Variants of the DIN trainer that differ in augmentation."""

from __future__ import annotations

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_din.trainers.din_trainer import for_all_versions, nnUNetTrainerDIN


class nnUNetTrainerDIN_nnUNetDA(nnUNetTrainerDIN):
    """nnU-Net's full augmentation in place of rotation and flips."""

    max_rotation = None

    @classmethod
    def get_training_transforms(
        cls, *args, use_mask_for_norm: list[bool] | None = None, versions: int = 2, **kwargs
    ) -> BasicTransform:
        """nnU-Net's pipeline; the enhanced channels are augmented like any other channel."""
        return nnUNetTrainer.get_training_transforms(
            *args, use_mask_for_norm=for_all_versions(use_mask_for_norm, versions), **kwargs
        )


class nnUNetTrainerDIN_noMirroring(nnUNetTrainerDIN):
    """No flips, in training or in prediction: for structures that their side tells apart, and for short trainings."""

    mirroring = False
