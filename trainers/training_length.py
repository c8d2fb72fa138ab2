"""Variants of the DIN trainer that differ in length."""

from __future__ import annotations

from .din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_smoke(nnUNetTrainerDIN):
    """20 iterations: whether a data set, a machine or a job script gets through training at all. The result means
    nothing.
    """

    num_epochs = 2
    num_iterations_per_epoch = 10
    num_val_iterations_per_epoch = 2
    save_every = 1


class nnUNetTrainerDIN_demo(nnUNetTrainerDIN):
    """The trainer of ``nnunet-din demo``: 80 iterations on phantoms that all lie the same way, and no validation
    afterwards.
    """

    boundary_ramp = 0.5
    spatial_only = True
    p_rotation = 0.0
    mirroring = False
    num_epochs = 5
    num_iterations_per_epoch = 16
    num_val_iterations_per_epoch = 4
    save_every = 1

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Leave the validation out: the demo trains on all cases and is scored on others."""


class nnUNetTrainerDIN_1epoch(nnUNetTrainerDIN):
    """The recommended training in 250 iterations."""

    num_epochs = 1


class nnUNetTrainerDIN_5epochs(nnUNetTrainerDIN):
    """The recommended training in 1250 iterations."""

    num_epochs = 5


class nnUNetTrainerDIN_50epochs(nnUNetTrainerDIN):
    """The recommended training in 12 500 iterations."""

    num_epochs = 50


class nnUNetTrainerDIN_100epochs(nnUNetTrainerDIN):
    """The recommended training in 25 000 iterations."""

    num_epochs = 100
