"""Trainings that are killed, full disks and spoilt files: the last good checkpoint stays, and the training goes on."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dataset import SMALL_NETWORK
from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN

CPU = torch.device("cpu")


@pytest.fixture
def make(dataset, plans):
    """A trainer of a small network, as `nnUNetv2_train` makes it, in an empty folder."""

    def build(continuing=False, clear=True):
        own = copy.deepcopy(plans)
        own["continue_training"] = continuing
        configuration = own["configurations"]["2d"]
        configuration["architecture"]["arch_kwargs"] = {**SMALL_NETWORK, "fused_stages": 2}
        configuration["patch_size"] = [32, 32]
        trainer = nnUNetTrainerDIN(own, "2d", 3, dataset.dataset_json, CPU)
        if clear:
            shutil.rmtree(trainer.output_folder)
            Path(trainer.output_folder).mkdir()
        trainer.initialize()
        return trainer

    return build


def save(trainer, name, epoch):
    trainer.current_epoch = epoch - 1  # nnU-Net stores the next
    path = Path(trainer.output_folder) / name
    trainer.save_checkpoint(str(path))
    return path


def epoch_of(path):
    return torch.load(path, map_location="cpu", weights_only=False)["current_epoch"]


def files(trainer):
    return sorted(path.name for path in Path(trainer.output_folder).glob("*checkpoint*"))


# ---- time limits ----


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_time_limit_ends_a_training_with_a_checkpoint_from_which_it_goes_on(make, monkeypatch, name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("this system has no such signal")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(nnUNetTrainerDIN, "num_epochs", 2)
    monkeypatch.setattr(nnUNetTrainerDIN, "num_iterations_per_epoch", 2)
    monkeypatch.setattr(nnUNetTrainerDIN, "num_val_iterations_per_epoch", 1)
    done = []
    step = nnUNetTrainer.train_step

    def train_step(self, batch):
        done.append(self.current_epoch)
        if len(done) == 3:
            os.kill(os.getpid(), number)
        return step(self, batch)

    monkeypatch.setattr(nnUNetTrainer, "train_step", train_step)
    before = signal.getsignal(number)
    trainer = make()
    with pytest.raises(SystemExit) as ended:
        trainer.run_training()
    assert ended.value.code == 128 + number and done == [0, 0, 1], "the running iteration is the last"
    assert signal.getsignal(number) is before
    assert epoch_of(Path(trainer.output_folder, "checkpoint_latest.pth")) == 1
    trainer = make(continuing=True, clear=False)
    maybe_load_checkpoint(trainer, True, False)
    trainer.run_training()
    assert done == [0, 0, 1, 1, 1] and files(trainer) == ["checkpoint_best.pth", "checkpoint_final.pth"]


# ---- writing ----


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_kill_spoils_a_checkpoint(make):
    """200 kills at random moments of a save."""
    trainer = make()
    path = save(trainer, "checkpoint_latest.pth", 1)
    begin = time.perf_counter()
    save(trainer, "checkpoint_latest.pth", 2)
    seconds = time.perf_counter() - begin
    rng, interrupted = random.Random(0), 0
    for epoch in range(3, 203):
        child = os.fork()
        if not child:
            try:
                save(trainer, "checkpoint_latest.pth", epoch)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 1.2 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        interrupted += epoch_of(path) != epoch
        assert epoch_of(path) <= epoch
    assert interrupted > 20, "kills came too late to mean anything"
    for left in Path(trainer.output_folder).glob(".*.partial.*"):
        os.utime(left, (0, 0))  # of long ago
    save(trainer, "checkpoint_latest.pth", 300)
    assert files(trainer) == ["checkpoint_latest.pth"] and epoch_of(path) == 300


def test_a_full_disk_leaves_the_checkpoint_from_before(make, monkeypatch):
    trainer = make()
    path = save(trainer, "checkpoint_best.pth", 7)

    def full(self, filename):
        Path(filename).write_bytes(b"half of a check")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nmore lines")

    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", full)
    with pytest.raises(RuntimeError, match=r"checkpoint_best.pth could not be written \(.*file write failed\)\. Check"):
        save(trainer, "checkpoint_best.pth", 8)
    assert files(trainer) == ["checkpoint_best.pth"] and epoch_of(path) == 7


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_a_folder_that_cannot_be_written_to_is_named(make, monkeypatch, error):
    trainer = make()

    def refused(self, filename):
        raise error

    monkeypatch.setattr(nnUNetTrainer, "save_checkpoint", refused)
    with pytest.raises(RuntimeError, match=rf"best.pth could not be written \(.*{error.strerror}\)"):
        save(trainer, "checkpoint_best.pth", 1)
    assert files(trainer) == []


def test_at_most_a_quarter_of_an_hour_is_lost(make, monkeypatch):
    """Epochs of four minutes: saved before the fourth would make it more than fifteen."""
    trainer, saved, now = make(), [], [1000.0]
    monkeypatch.setattr("nnunet_din.trainers.checkpoints.time.time", lambda: now[0])
    trainer.num_epochs, trainer.save_every = 100, 7
    trainer._saved_at = now[0]

    def on_epoch_end(self):
        if (self.current_epoch + 1) % self.save_every == 0:
            saved.append(self.current_epoch)
            self._saved_at = now[0]
        self.current_epoch += 1

    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", on_epoch_end)
    for _ in range(10):
        trainer.logger.local_logger.my_fantastic_logging["epoch_start_timestamps"].append(now[0])
        now[0] += 240
        trainer.on_epoch_end()
    assert saved == [2, 5, 6, 9], "every third, and nnU-Net's seventh"
    assert trainer.save_every == 7


# ---- reading ----


def spoil(path, how):
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        path.write_bytes(b"something else")


@pytest.mark.parametrize("how", ["empty", "cut", "other"])
@pytest.mark.parametrize("name", ["checkpoint_final.pth", "checkpoint_latest.pth"])
def test_continuing_takes_the_newest_that_can_be_read(make, name, how, capsys):
    trainer = make()
    save(trainer, "checkpoint_best.pth", 12)
    if name == "checkpoint_final.pth":
        save(trainer, "checkpoint_latest.pth", 20)
    spoil(save(trainer, name, 30), how)
    log = Path(trainer.output_folder) / "training_log_2026_1_1_00_00_00.txt"
    log.write_text("2026-01-01 00:00:00.000000: Epoch 27\n")
    again = make(continuing=True, clear=False)
    maybe_load_checkpoint(again, continue_training=True, validation_only=False)
    expected = {
        "checkpoint_final.pth": ("checkpoint_latest.pth", 20),
        "checkpoint_latest.pth": ("checkpoint_best.pth", 12),
    }
    other, epoch = expected[name]
    assert again.current_epoch == epoch
    out = capsys.readouterr().out
    reason = {"empty": "it is empty"}.get(how, "it is cut off, or no checkpoint")
    assert (
        f"{name} cannot be read ({reason})" in out
        and f"goes on from {other}, after {epoch} epochs: {27 - epoch} of" in out
    )


def test_nothing_that_can_be_read_is_an_error(make):
    trainer = make()
    spoil(save(trainer, "checkpoint_latest.pth", 30), "cut")
    again = make(continuing=True, clear=False)
    with pytest.raises(RuntimeError, match=r"checkpoint_latest.pth cannot be read \(.*start the training anew"):
        maybe_load_checkpoint(again, continue_training=True, validation_only=False)


def test_validation_does_not_take_another_checkpoint(make):
    """Its numbers would be those of another network."""
    trainer = make()
    save(trainer, "checkpoint_best.pth", 12)
    spoil(save(trainer, "checkpoint_final.pth", 30), "empty")
    again = make(clear=False)
    with pytest.raises(RuntimeError, match=r"final.pth cannot be read.*checkpoint_best.pth beside it can be, of 12 ep"):
        maybe_load_checkpoint(again, continue_training=False, validation_only=True)
