"""`nnunet-din curves`: nnU-Net's logs are read as nnU-Net writes them, and joined where a training was resumed."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunet_din.commands import curves
from nnunet_din.commands.main import main
from nnunet_din.nnunet.training_log import read_line, read_training


def epoch_lines(number, loss=1.0, dice="[np.float32(0.5), 0.7]", rate=0.0001, seconds=36.0):
    """The lines of one epoch in a log."""
    lines = ["", f"Epoch {number}", f"Current learning rate: {rate}", "Yayy! New best EMA pseudo Dice: 0.9"]
    lines += [f"train_loss {loss}", f"val_loss {loss + 1}", f"Pseudo dice {dice}", f"Epoch time: {seconds} s"]
    return [f"2026-11-24 10:00:00.123456: {line} " for line in lines]


def write_log(folder, epochs, day=24, **values):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["2026-11-24 09:59:00.1: Using splits", *(line for n in epochs for line in epoch_lines(n, **values))]
    (folder / f"training_log_2026_11_{day}_10_00_00.txt").write_text("\n".join(lines) + "\n")


def test_epochs_of_a_log(tmp_path):
    """Fails if a quantity is read from the wrong line, or the Dice is not the mean over the structures."""
    write_log(tmp_path, range(3), loss=-0.25)
    training = read_training(tmp_path)
    assert training["epoch"].tolist() == [0, 1, 2]
    assert training["train_loss"].tolist() == [-0.25] * 3 and training["val_loss"].tolist() == [0.75] * 3
    np.testing.assert_allclose(training["dice"], 0.6)
    np.testing.assert_allclose(training["learning_rate"], 1e-4)
    np.testing.assert_allclose(training["hours"], [0.01, 0.02, 0.03])


def test_moving_average_is_nnunets(tmp_path):
    """Fails if the curve is smoothed otherwise than nnU-Net's, or one epoch without a structure ends it."""
    dice = ("[0.5, nan]", "[np.float64(nan)]", "[1.0]")
    lines = [line for number, values in enumerate(dice) for line in epoch_lines(number, dice=values)]
    (tmp_path / "training_log_2026_11_24_10_00_00.txt").write_text("\n".join(lines))
    training = read_training(tmp_path)
    np.testing.assert_allclose(training["dice"], [0.5, 0.5, 0.55])
    np.testing.assert_allclose(training["mean_dice"], [0.5, np.nan, 1.0])


@pytest.mark.parametrize("text", ["nan", "inf", "1e-05", "-0.5", "12"])
def test_numbers_as_python_prints_them(text):
    """Fails if a loss that is not a plain decimal is left out or cut short."""
    np.testing.assert_equal(read_line(f"2026-11-24 10:00:00.1: train_loss {text} "), ("train_loss", float(text)))


@pytest.mark.parametrize("again", [range(4, 8), range(2)])
def test_resumed_training_is_joined(again, tmp_path):
    """Fails if repeated epochs appear twice, the earlier ones win, a day 9 is read after a day 10, or the end of an
    abandoned run is shown as the future of the present one.
    """
    write_log(tmp_path, range(6), day=9, loss=1.0)
    write_log(tmp_path, again, day=10, loss=2.0, seconds=72.0)
    training = read_training(tmp_path)
    assert training["epoch"].tolist() == list(range(again.stop))
    assert training["train_loss"].tolist() == [1.0] * again.start + [2.0] * len(again)
    assert training["hours"][-1] == pytest.approx(again.start * 0.01 + len(again) * 0.02)


def test_epoch_that_is_not_finished_is_left_out(tmp_path):
    """Fails if a running training cannot be looked at, or a crashed restart deletes what was there."""
    write_log(tmp_path, range(2), day=9)
    (tmp_path / "training_log_2026_11_10_10_00_00.txt").write_text("\n".join(epoch_lines(0)[:4]))
    assert read_training(tmp_path)["epoch"].tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_log_and_checkpoint_of_the_installed_nnunet(dataset, plans, monkeypatch):
    """Fails if this release of nnU-Net writes its logs or checkpoints in another way than we read them."""
    import torch

    from nnunet_din.data.weight_files import read_checkpoint
    from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN

    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["decoder_channels"] = 16
    folder = None
    for begin, end in ((0, 3), (2, 4)):
        trainer = nnUNetTrainerDIN(copy.deepcopy(plans), "2d", 3, dataset.dataset_json, torch.device("cpu"))
        trainer.log_file = str(Path(trainer.output_folder) / f"training_log_2026_11_24_10_00_{begin}.txt")
        trainer.num_epochs = 4
        trainer.initialize()
        monkeypatch.setattr(trainer.logger, "plot_progress_png", lambda folder: None)
        if folder:
            trainer.load_checkpoint(str(folder / "kept.pth"))
        folder = Path(trainer.output_folder)
        for number in range(begin, end):
            # The third structure is in none of the patches.
            counts = {"tp_hard": [4 + number, 3, 0], "fp_hard": [2, 1, 0], "fn_hard": [1, 1, 0]}
            counts = {key: np.array(value) for key, value in counts.items()}
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            trainer.on_train_epoch_end([{"loss": np.float32(0.5 - number)}])
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end([{"loss": np.float32(0.25 + begin), **counts}])
            trainer.on_epoch_end()
            if number == 1:
                # nnU-Net notes the number of the epoch after the one that is running.
                trainer.current_epoch -= 1
                trainer.save_checkpoint(str(folder / "kept.pth"))
                trainer.current_epoch += 1
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
    whole = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert repr(read_checkpoint(folder / "checkpoint_final.pth")) == repr(whole), "nothing but weights, numbers, texts"
    expected = {
        "train_loss": trainer.logger.get_value("train_losses", step=None),
        "val_loss": trainer.logger.get_value("val_losses", step=None),
        "mean_dice": trainer.logger.get_value("mean_fg_dice", step=None),
        "dice": trainer.logger.get_value("ema_fg_dice", step=None),
        "learning_rate": trainer.logger.get_value("lrs", step=None),
    }
    training = read_training(folder)
    assert len(set(training["learning_rate"])) == 4
    for log in folder.glob("training_log_*.txt"):
        log.unlink()
    from_checkpoint = read_training(folder)
    for key, values in expected.items():
        np.testing.assert_allclose(training[key], values, atol=2e-4 if key != "learning_rate" else 1e-12)
        np.testing.assert_allclose(from_checkpoint[key], values)
    shutil.rmtree(folder)


def test_no_checkpoint_is_opened_where_there_are_logs(tmp_path, monkeypatch):
    """Fails if a checkpoint, which may be damaged or of an earlier training, has a say beside the text logs."""
    monkeypatch.setattr("nnunet_din.data.weight_files.read_checkpoint", lambda path: pytest.fail("opened"))
    (tmp_path / "checkpoint_best.pth").write_text("no checkpoint")
    write_log(tmp_path, range(3), rate=0.001)
    assert read_training(tmp_path)["learning_rate"].tolist() == [0.001] * 3


def test_the_exact_learning_rate_of_our_trainers_is_taken(tmp_path):
    """Fails if the curve of a small learning rate has the steps of nnU-Net's five decimals."""
    write_log(tmp_path, [0], rate=0.0005)
    log = next(tmp_path.glob("training_log_*.txt"))
    lines = log.read_text().splitlines(keepends=True)
    (at,) = (i for i, line in enumerate(lines) if "Current learning rate" in line)
    log.write_text("".join([*lines[: at + 1], "2026: Exact learning rate: 4.98123456e-04\n", *lines[at + 1 :]]))
    assert read_training(tmp_path)["learning_rate"].tolist() == [0.000498123456]


# ---- the command ----


@pytest.fixture
def drawn(monkeypatch):
    """What is handed to the drawing function."""
    calls = []
    real = curves.training_curves

    def training_curves(models, against):
        calls.append((models, against))
        return real(models, against)

    monkeypatch.setattr(curves, "training_curves", training_curves)
    monkeypatch.setattr(curves, "_DPI", 30)
    return calls


def test_folders_of_the_same_name_are_folds(tmp_path, drawn, capsys):
    """Fails if the folds of a model become models, or the file is not written."""
    for name in ("a", "b", "c"):
        write_log(tmp_path / name, range(2))
    folders = [f"DIN={tmp_path / 'a'}", f"DIN={tmp_path / 'b'}", f"nnU-Net={tmp_path / 'c'}"]
    assert main(["curves", *folders, "--against", "time", "-o", str(tmp_path / "new" / "c.pdf")]) == 0
    ((models, against),) = drawn
    assert {name: len(folds) for name, folds in models.items()} == {"DIN": 2, "nnU-Net": 1} and against == "time"
    assert (tmp_path / "new" / "c.pdf").read_bytes().startswith(b"%PDF")
    assert "nnU-Net: 2 epochs in 0.02 h" in capsys.readouterr().out


def test_models_of_a_data_set(tmp_path, drawn, monkeypatch, capsys):
    """Fails if not all folds are taken, the one on the command line is not, or wrong input ends in a traceback."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    data = tmp_path / "Dataset027_Test"
    for fold in ("A__P__2d/fold_0", "A__P__2d/fold_1", "B__P__2d/fold_all"):
        write_log(data / fold, range(2))
        (data / fold).with_name("plans.json").write_text("{}")
    command = ["curves", "-o", str(tmp_path / "c.png")]
    assert main([*command, "-d", "27", "--models", "A__P__2d"]) == 0
    assert main([*command, "-d", "27", "--models", "mine=B__P__2d", "-f", "all"]) == 0
    folds = [{name: len(folds) for name, folds in models.items()} for models, _ in drawn]
    assert folds == [{"A__P__2d": 2}, {"mine": 1}]
    (data / "A__P__2d" / "fold_2").mkdir()
    for arguments, message in (
        (["-d", "27", "-o", "c.jpg"], "must end in .png, .pdf or .svg"),
        ([], "Give either -d"),
        (["-d", "27", f"A={data}"], "Give either -d"),
        ([f"A={data}", "-f", "0"], "--models and -f go with -d"),
        (["folder"], "curves takes NAME=FOLDER, got 'folder'"),
        (["A=nowhere"], "nowhere is not a folder"),
        (["-d", "27"], "B__P__2d has no numbered fold"),
        (["-d", "27", "--models", "A__P__2d"], "A__P__2d/fold_2 holds no finished epoch"),
    ):
        assert main([*command, *arguments]) == 1
        assert message in capsys.readouterr().err
