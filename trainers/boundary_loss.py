"""Variants of the DIN trainer that differ in the boundary loss."""

from __future__ import annotations

from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_noBoundaryLoss(nnUNetTrainerDIN):
    """Cross-entropy and Dice only (the paper's Tables 3 and 8)."""

    weight_boundary = 0.0


class nnUNetTrainerDIN_printedBoundaryLoss(nnUNetTrainerDIN):
    """L_bnd with the Sobel kernels as printed in eq. 15, eight times the default."""

    normalized_sobel = False
