"""Curves for Weights & Biases and TensorBoard: everything that nnU-Net logs, and the parts of the loss."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from nnunet_din.losses import AuxiliaryLoss, DINLoss
from nnunet_din.nnunet import tracking
from nnunet_din.nnunet.tracking import TensorBoardLogger
from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN

CPU = torch.device("cpu")
PARTS = {"train_losses/ce", "train_losses/dice", "train_losses/boundary", "train_losses/auxiliary"}
#: What nnU-Net's own trainer logs of an epoch.
CURVES = {"lrs", "train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region/class_1"}


@pytest.fixture
def run(dataset, plans, tmp_path, monkeypatch):
    """Trains for epochs of two iterations on random images, from an epoch on, by nnU-Net's own hooks."""

    def train(epochs=2, tensorboard=False):
        own = copy.deepcopy(plans)
        configuration = own["configurations"]["2d"]
        configuration["architecture"]["arch_kwargs"] |= {"encoder": "plain_atto", "decoder_channels": 16}
        configuration["architecture"]["arch_kwargs"] |= {"layer_scale": None, "stem_stride": 2}
        configuration["patch_size"] = [32, 32]
        if tensorboard:
            configuration["training"] = {"tensorboard": True}
        trainer = nnUNetTrainerDIN(own, "2d", 0, dataset.dataset_json, CPU)
        trainer.num_iterations_per_epoch, trainer.num_epochs, trainer.save_every = 2, 4, 100
        trainer.save_checkpoint = lambda path: None
        trainer.initialize()
        seen = []
        for _ in range(epochs):
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            outputs = []
            for _ in range(trainer.num_iterations_per_epoch):
                outputs.append(trainer.train_step(batch()))
                seen.append(dict(trainer.loss.parts))
            trainer.on_train_epoch_end(outputs)
            with torch.no_grad():
                trainer.on_validation_epoch_start()
                trainer.on_validation_epoch_end([trainer.validation_step(batch())])
            trainer.on_epoch_end()
        trainer.logger.log_summary("final_val/foreground_dice", 0.5)
        return trainer, seen

    return train


def batch():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (2, 1, 32, 32), generator=generator).float()
    data = torch.randn(2, 2, 32, 32, generator=generator)
    return {"data": data, "target": [target]}


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_parts_add_up_to_the_loss():
    torch.manual_seed(0)
    loss = DINLoss()
    logits, target = torch.randn(2, 4, 16, 16, requires_grad=True), torch.randint(0, 4, (2, 1, 16, 16))
    auxiliary = [torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(2, 4, 4, 4)]
    total = AuxiliaryLoss(loss, weight=0.5)
    value = total([logits, *auxiliary], target)
    value.backward()  # computes auxiliary losses again
    parts = total.parts
    assert parts.keys() == {"ce", "dice", "boundary", "auxiliary"}
    assert not any(part.requires_grad for part in parts.values())
    segmentation = 0.3 * parts["ce"] + 0.7 * parts["dice"] + parts["boundary"]
    torch.testing.assert_close(segmentation, loss(logits, target).detach())
    torch.testing.assert_close((segmentation + 0.5 * 2 * parts["auxiliary"]) / 2, value.detach())
    assert DINLoss(weight_boundary=0.0).boundary is None


@pytest.mark.slow
def test_tensorboard_has_every_curve_and_the_parts_of_the_loss(run):
    pytest.importorskip("tensorboard")
    trainer, seen = run(epochs=2, tensorboard=True)
    curves = events(Path(trainer.output_folder) / "tensorboard")
    expected = CURVES | PARTS | {"loss_weights/boundary", "epoch_seconds", "final_val/foreground_dice"}
    assert expected <= curves.keys()
    assert not any("timestamp" in tag for tag in curves)
    assert [step for step, _ in curves["train_losses"]] == [0, 1]
    for name in ("ce", "boundary", "auxiliary"):
        mean = torch.stack([parts[name] for parts in seen[2:]]).mean().item()
        assert curves[f"train_losses/{name}"][1][1] == pytest.approx(mean, rel=1e-5)
    weights = [value for _, value in curves["loss_weights/boundary"]]
    # Grows over the first fifth of four epochs: 0 and 1/2 epochs are done before the steps of the first.
    assert weights == pytest.approx([0.5 / 0.8, 1.0])
    assert 0 < curves["epoch_seconds"][0][1] < 600


def test_a_training_that_goes_on_continues_the_curves(tmp_path):
    """Fails if epochs are there twice, or what is noted before the first value of a validation makes a file."""
    pytest.importorskip("tensorboard")
    TensorBoardLogger(tmp_path / "none").update_config({"fold": 0})
    assert not (tmp_path / "none").exists()
    for first, last in ((0, 3), (2, 5)):  # interrupted in epoch 2, resumed from a checkpoint of epoch 1
        logger = TensorBoardLogger(tmp_path)
        for epoch in range(first, last):
            logger.log("epoch_start_timestamps", 100.0 * epoch, epoch)
            logger.log("train_losses", first + 0.1 * epoch, epoch)
            logger.log("epoch_end_timestamps", 100.0 * epoch + 7, epoch)
    curves = events(tmp_path)
    assert [step for step, _ in curves["train_losses"]] == [0, 1, 2, 3, 4]
    assert [value for _, value in curves["train_losses"]] == pytest.approx([0, 0.1, 2.2, 2.3, 2.4])
    assert [value for _, value in curves["epoch_seconds"]] == [7] * 5


def test_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "nnunet-din\[tracking\]"'):
        TensorBoardLogger(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs wandb")
def test_weights_and_biases_get_everything(run, monkeypatch):
    """nnU-Net's own logger, offline: what it wrote of the run."""
    import wandb

    for name, value in {"nnUNet_wandb_enabled": "1", "nnUNet_wandb_mode": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    trainer, _ = run(epochs=2)
    (logger,) = trainer.logger.loggers
    logged = set(dict(logger.run.summary))
    config = json.loads(json.dumps(dict(logger.run.config), default=str))
    wandb.finish()
    assert CURVES | PARTS | {"loss_weights/boundary", "final_val/foreground_dice"} <= logged
    assert config["hparas"]["num_epochs"] == 4 and config["hparas"]["initial_lr"] == 1e-3
    assert any((Path(trainer.output_folder) / "wandb").glob("offline-run-*/*.wandb"))
