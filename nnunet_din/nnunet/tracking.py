"""Training curves in TensorBoard, beside nnU-Net's own log and Weights & Biases."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger:
    """A logger for the list ``MetaLogger.loggers`` of nnU-Net, with the interface of its ``WandbLogger``.

    Nothing is written before the first value. A training that goes on replaces what an interrupted one wrote of the
    same epochs.

    Parameters
    ----------
    folder
        Where the events go; made if it is not there.

    Raises
    ------
    ValueError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path):
        if not find_spec("tensorboard"):
            raise ValueError(
                'The training is set to write TensorBoard events, and TensorBoard is missing: pip install "nnunet-din'
                '[tracking]", or set tensorboard to false.'
            )
        self.folder = Path(folder)
        self._config: dict = {}
        self._writer: SummaryWriter | None = None
        self._step = 0
        self._epoch_start = 0.0

    def update_config(self, config: dict) -> None:
        """Keep what describes the training; it is written as a text."""
        self._config |= config

    def log(self, key: str, value: float, step: int) -> None:
        """Write a value of an epoch. Of its two time stamps, their difference is written."""
        self._step = step
        if key == "epoch_start_timestamps":
            self._epoch_start = value
            return
        if key == "epoch_end_timestamps":
            key, value = "epoch_seconds", value - self._epoch_start
        writer = self._open(purge_step=step)
        writer.add_scalar(key, value, step)
        if key == "epoch_seconds":
            writer.flush()

    def log_summary(self, key: str, value: float) -> None:
        """Write a value that a training has once, such as the final validation's Dice."""
        writer = self._open(purge_step=None)
        writer.add_scalar(key, value, self._step)
        writer.flush()

    def _open(self, purge_step: int | None) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)
            self._writer.add_text("config", f"```json\n{json.dumps(self._config, indent=2, default=str)}\n```")
        return self._writer
