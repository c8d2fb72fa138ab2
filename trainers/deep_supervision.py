"""Variants of the DIN trainer that differ in deep supervision."""

from __future__ import annotations

from .din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_noDeepSupervision(nnUNetTrainerDIN):
    """The loss of the segmentation alone, without that of the fused levels."""

    enable_deep_supervision = False
