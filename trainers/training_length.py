"""Variants of the DIN trainer that differ in length."""

from __future__ import annotations

from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_5epochs(nnUNetTrainerDIN):
    """1250 iterations."""

    num_epochs = 5
    save_every = 1


class nnUNetTrainerDIN_50epochs(nnUNetTrainerDIN):
    """12 500 iterations."""

    num_epochs = 50


class nnUNetTrainerDIN_100epochs(nnUNetTrainerDIN):
    """25 000 iterations."""

    num_epochs = 100
