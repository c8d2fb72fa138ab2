"""The parts of the loss in what nnU-Net's trainers hand to Weights & Biases and other loggers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch


class LogsLossParts:
    """For a trainer of nnU-Net whose ``loss.parts`` holds the parts of its last value, by name.

    nnU-Net's own log takes a fixed set of curves; the parts go to the loggers beside it.
    """

    loss: torch.nn.Module
    current_epoch: int
    _sums: Mapping[str, torch.Tensor] = MappingProxyType({})
    _steps = 0

    def on_train_epoch_start(self) -> None:
        """Begin an epoch, and the sums of its parts."""
        super().on_train_epoch_start()  # type: ignore[misc]
        self._sums, self._steps = {}, 0

    def train_step(self, batch: dict) -> dict:
        """Train for one iteration, and add up the parts of its loss."""
        result = super().train_step(batch)  # type: ignore[misc]
        # Added up where they are: no waiting for the device.
        parts: dict[str, torch.Tensor] = self.loss.parts  # type: ignore[assignment]
        self._sums = {name: self._sums.get(name, 0) + value for name, value in parts.items()}
        self._steps += 1
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End an epoch, and log the mean parts of its losses; of several processes, those of the first."""
        super().on_train_epoch_end(train_outputs)  # type: ignore[misc]
        values = {f"train_losses/{name}": value.item() / self._steps for name, value in self._sums.items()}
        values["loss_weights/boundary"] = self._weight_of_boundary()
        for logger in self.logger.loggers:  # type: ignore[attr-defined]
            for key, value in values.items():
                logger.log(key, value, self.current_epoch)

    def _weight_of_boundary(self) -> float:
        raise NotImplementedError
