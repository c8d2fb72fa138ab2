"""Variants of the DIN trainer that differ in length."""

from __future__ import annotations

from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_smoke(nnUNetTrainerDIN):
    """20 iterations: whether a data set, a machine or a job script gets through training at all. The result means
    nothing.
    """

    num_epochs = 2
    num_iterations_per_epoch = 10
    num_val_iterations_per_epoch = 2
    save_every = 1


class nnUNetTrainerDIN_5epochs(nnUNetTrainerDIN):
    """1250 iterations, with what a network needs to get from random weights to a segmentation in so few.

    Images keep their orientation: no rotation, no flips. Invariance to them takes far more iterations than these to
    learn, and it hides on which side a structure lies.
    """

    initial_lr = 3e-4
    boundary_ramp = 0.5
    p_rotation = 0.0
    mirroring = False
    num_epochs = 5
    num_val_iterations_per_epoch = 10
    save_every = 1


class nnUNetTrainerDIN_1epoch(nnUNetTrainerDIN_5epochs):
    """250 iterations, to look at the way from training to the leaderboard."""

    num_epochs = 1


class nnUNetTrainerDIN_demo(nnUNetTrainerDIN_5epochs):
    """The trainer of ``nnunet-din demo``: 80 iterations, and no validation afterwards."""

    num_iterations_per_epoch = 16
    num_val_iterations_per_epoch = 4

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Leave it out: the demo trains on all cases and is scored on others."""


class nnUNetTrainerDIN_50epochs(nnUNetTrainerDIN):
    """12 500 iterations."""

    num_epochs = 50


class nnUNetTrainerDIN_100epochs(nnUNetTrainerDIN):
    """25 000 iterations."""

    num_epochs = 100
