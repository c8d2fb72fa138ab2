"""A variant of the DIN trainer that reports where the time of an epoch goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from nnunet_din.data.files import write_text

from .din_trainer import nnUNetTrainerDIN


class nnUNetTrainerDIN_benchmark(nnUNetTrainerDIN):
    """Three epochs of 50 iterations that leave no checkpoint: seconds, images a second, and the share of the time in
    which the network waits for data, in the log and in ``benchmark.json`` in the output folder.

    The last epoch counts: the first holds compilation and the warming up of everything.
    """

    num_epochs = 3
    num_iterations_per_epoch = 50
    num_val_iterations_per_epoch = 2
    disable_checkpointing = True

    def on_train_epoch_start(self) -> None:
        """Start the clocks of the epoch."""
        super().on_train_epoch_start()
        self._begin, self._working = time.perf_counter(), 0.0

    def train_step(self, batch: dict) -> dict:
        """As in the other trainers, with its time; between two steps, the network waits for data."""
        begin = time.perf_counter()
        result = super().train_step(batch)
        self._working += time.perf_counter() - begin
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Stop the clocks and take the times of the epoch."""
        seconds = time.perf_counter() - self._begin
        waiting = 1 - self._working / seconds
        super().on_train_epoch_end(train_outputs)
        self.timing = {
            "seconds_per_iteration": seconds / self.num_iterations_per_epoch,
            "images_per_second": self.num_iterations_per_epoch * self.configuration_manager.batch_size / seconds,
            "share_waiting_for_data": waiting,
            "batch_size": self.configuration_manager.batch_size,
            "patch_size": list(self.configuration_manager.patch_size),
            "device": str(self.device),
        }
        self.print_to_log_file(
            f"{self.timing['images_per_second']:.2f} images a second; {100 * waiting:.1f} % of the time "
            "spent waiting for data"
        )

    def on_train_end(self) -> None:
        """Write the times of the last epoch into ``benchmark.json``."""
        super().on_train_end()
        if self.rank == 0:
            write_text(Path(self.output_folder, "benchmark.json"), json.dumps(self.timing, indent=2) + "\n")

    def save_checkpoint(self, filename: str) -> None:
        """Write no checkpoint."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate nothing."""
