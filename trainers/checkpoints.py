"""Checkpoints that an interruption cannot spoil, and the way back from spoilt ones."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from nnunet_din.data.files import HeldFileError, written_whole
from nnunet_din.data.weight_files import UnreadableFileError, UnsafeFileError, read_checkpoint
from nnunet_din.nnunet.training_log import CHECKPOINTS, epochs_begun

_REMEDY = "Checkpoints from before are as they were: make room, or the folder writable, and go on with --c."


class KeepsCheckpoints:
    """For a trainer of nnU-Net.

    A checkpoint is written beside its place and renamed when it is on the disk, so that whatever stops the training
    leaves the one from before. ``checkpoint_latest.pth`` is written at the end of an epoch if it would be older than
    ``save_minutes`` at the end of the next, beside nnU-Net's ``save_every``. The signals of a cluster's time limit,
    SIGTERM and SIGUSR1, end the training after the running iteration, with a checkpoint.

    Attributes
    ----------
    save_minutes : float
        Minutes of training that an interruption may cost, if an epoch takes no longer.
    """

    save_minutes = 15.0
    current_epoch: int
    _saved_at: float | None = None
    _signal: int | None = None

    def run_training(self) -> None:
        """Train as nnU-Net does; on SIGTERM or SIGUSR1, write a checkpoint and end the process with 128 + the signal.

        The epoch that was running is done again from its first iteration, by the weights of its last.
        """
        process = os.getpid()

        def note(number: int, _) -> None:
            if os.getpid() != process:  # a forked worker of the data loader
                os._exit(128 + number)
            self._signal = number

        signals = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
        before = {number: signal.signal(number, note) for number in signals}
        try:
            super().run_training()  # type: ignore[misc]
        except BaseException:  # the signal may have ended workers, too, for which nnU-Net raises
            if self._signal is None:
                raise
            self.current_epoch -= 1  # nnU-Net stores the next
            self.save_checkpoint(str(Path(self.output_folder, "checkpoint_latest.pth")))  # type: ignore[attr-defined]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            self.print_to_log_file(f"{name} ended the training. It goes on with --c.")  # type: ignore[attr-defined]
            raise SystemExit(128 + self._signal)

    def train_step(self, batch: dict) -> dict:
        """Train for one iteration."""
        return self._unless_stopped(super().train_step(batch))  # type: ignore[misc]

    def validation_step(self, batch: dict) -> dict:
        """Validate one batch."""
        return self._unless_stopped(super().validation_step(batch))  # type: ignore[misc]

    def _unless_stopped(self, result: dict) -> dict:
        if self._signal is not None:
            raise KeyboardInterrupt
        return result

    def on_train_start(self) -> None:
        """Begin the training, and the time without a checkpoint."""
        super().on_train_start()  # type: ignore[misc]
        self._saved_at = time.time()

    def on_epoch_end(self) -> None:
        """End an epoch; save now if the checkpoint would come too late at the end of the next."""
        now, every = time.time(), self.save_every  # type: ignore[has-type]
        if self._saved_at is not None:
            begun = self.logger.get_value("epoch_start_timestamps", step=-1)  # type: ignore[attr-defined]
            if now - self._saved_at + (now - begun) > 60 * self.save_minutes:
                self.save_every = 1
        try:
            super().on_epoch_end()  # type: ignore[misc]
        except OSError as error:  # of the picture of the curves
            raise RuntimeError(f"{self.output_folder} could not be written to ({error}). {_REMEDY}") from error  # type: ignore[attr-defined]
        finally:
            self.save_every = every

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint whole or not at all.

        Where another program keeps the one from before from being replaced, the training goes on with a warning.

        Raises
        ------
        RuntimeError
            If it cannot be written; the one from before is as it was.
        """
        # Of several machines, each has a process with local_rank 0.
        rank = getattr(self, "global_rank", self.local_rank)  # type: ignore[attr-defined]
        if rank or self.disable_checkpointing:  # type: ignore[attr-defined]
            super().save_checkpoint(filename)  # type: ignore[misc]
            return
        path = Path(filename)
        try:
            with written_whole(path) as partial:
                super().save_checkpoint(str(partial))  # type: ignore[misc]
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError where a disk is full
            # Without the last one, nnU-Net would take the training for done and remove the latest.
            if isinstance(error, HeldFileError) and path.name != "checkpoint_final.pth":
                self.print_to_log_file(  # type: ignore[attr-defined]
                    f"WARNING: {error} The training goes on, and the checkpoint is the one from before.",
                    also_print_to_console=True,
                )
                return
            reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
            raise RuntimeError(f"{path} could not be written ({reason}). {_REMEDY}") from error
        if path.name == "checkpoint_latest.pth":
            self._saved_at = time.time()

    def readable_checkpoint(self, path: str) -> str:
        """The checkpoint itself if it can be read, else, for ``--c``, the newest beside it that can be.

        Raises
        ------
        RuntimeError
            If there is none; the message names those that were tried.
        """
        _, error = _read(Path(path))
        if error is None:
            return path
        if isinstance(error, UnsafeFileError):
            # Not ours to refuse: nnU-Net unpickles every checkpoint that it goes on from, whatever was read here, and a
            # trainer of the user's own may keep more in it than numbers.
            self.print_to_log_file(  # type: ignore[attr-defined]
                f"NOTE: {path} holds {error.found}, which this package does not load. nnU-Net does.",
                also_print_to_console=True,
            )
            return path
        folder = Path(path).parent
        others = {name: _read(folder / name) for name in CHECKPOINTS if (folder / name).is_file()}
        epochs = {name: content["current_epoch"] for name, (content, wrong) in others.items() if wrong is None}
        damaged = f"{path} cannot be read ({error.reason})"
        if not epochs:
            raise RuntimeError(f"{damaged}, and no other checkpoint is there: start the training anew, without --c.")
        newest = max(epochs, key=lambda name: epochs[name])
        if not self.logger.resume:  # type: ignore[attr-defined]  # without --c
            raise RuntimeError(
                f"{damaged}. {newest} beside it can be, of {epochs[newest]} epochs: go on from it with --c."
            )
        lost = epochs_begun(folder) - epochs[newest]
        self.print_to_log_file(  # type: ignore[attr-defined]
            f"WARNING: {damaged}. The training goes on from {newest}, after {epochs[newest]} epochs"
            + (f": {lost} of those that the log names are done again." if lost > 0 else "."),
            also_print_to_console=True,
        )
        return str(folder / newest)


def weight_names(path: Path) -> list[str]:
    """Names of the network's weights in a checkpoint; none where it cannot be read without unpickling."""
    content, _ = _read(path)
    return list(content.get("network_weights", ()))


def _read(path: Path) -> tuple[dict[str, Any], UnreadableFileError | None]:
    """Content of a checkpoint without its tensors in memory, and what is wrong with it."""
    try:
        content = read_checkpoint(path)
        return {"current_epoch": content["current_epoch"], "network_weights": content["network_weights"]}, None
    except FileNotFoundError:
        raise
    except UnreadableFileError as error:
        return {}, error
    except (KeyError, TypeError, IndexError) as error:
        return {}, UnreadableFileError(path, f"it is no checkpoint of nnU-Net, {type(error).__name__}: {error}")
