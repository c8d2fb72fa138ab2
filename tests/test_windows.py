"""Windows' rules, as far as they can be followed here: it refuses what other systems allow with files, and lacks much
of POSIX. Nothing replaces a run on Windows, where the same tests meet the rules themselves.
"""

from __future__ import annotations

import copy
import errno
import os
import pkgutil
import shutil
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from matplotlib.figure import Figure

import nnunet_din
from nnunet_dataset import SMALL_NETWORK
from nnunet_din.data import files
from nnunet_din.data.files import HeldFileError, folder_written_whole, write_text
from nnunet_din.data.images import save
from nnunet_din.data.weight_files import read_checkpoint, read_tensors, write_checkpoint, write_tensors
from nnunet_din.deployment import sharing
from nnunet_din.nnunet.shared import files_in
from nnunet_din.plotting.style import save_figure
from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN

#: What Python has on POSIX only.
MISSING = {
    os: ("fork", "getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "mkfifo", "sched_getaffinity", "uname"),
    signal: ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGSTOP", "SIGCONT"),
}
MISSING_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")


def in_use(path) -> bool:
    """Whether this process has a file open or mapped, where the system tells."""
    own = Path("/proc/self")
    if not own.exists():
        return False
    name = os.path.realpath(path)
    opened = (os.path.realpath(link) for link in (own / "fd").iterdir())
    return name in opened or any(line.endswith(f" {name}") for line in (own / "maps").read_text().splitlines())


@pytest.fixture
def windows(monkeypatch):
    """A descriptor that was opened for reading cannot be synchronized; an open or mapped file cannot be moved, removed
    or replaced.
    """
    if os.name == "nt":
        return
    import fcntl

    def fsync(descriptor, real=os.fsync):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor)

    def unless_in_use(real):
        def call(*paths, **options):
            if any(in_use(path) for path in paths):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(paths[-1]))
            return real(*paths, **options)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, unless_in_use(getattr(os, name)))
    monkeypatch.setattr(Path, "replace", lambda path, target: os.replace(path, target))  # Python 3.10 has its own


held = pytest.mark.skipif(os.name != "nt" and not Path("/proc/self/maps").exists(), reason="needs /proc")


def test_everything_is_written_and_written_again(windows, tmp_path):
    image = SimpleITK.GetImageFromArray(np.zeros((2, 8, 9), np.float32))
    writers = {
        "a.json": lambda path: write_text(path, "{}"),
        "a.safetensors": lambda path: write_tensors({"a": torch.ones(3)}, path),
        "a.pth": lambda path: write_checkpoint({"a": torch.ones(3)}, path),
        "a.nii.gz": lambda path: save(image, path),
        "a.png": lambda path: save_figure(Figure(), path),
    }
    for name, write in writers.items():
        write(tmp_path / "out" / name)
        write(tmp_path / "out" / name)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(writers)
    assert torch.equal(read_tensors(tmp_path / "out" / "a.safetensors")["a"], torch.ones(3))
    with folder_written_whole(tmp_path / "folder") as partial:
        write_text(partial / "fold_0" / "a.json", "{}")
    assert os.listdir(tmp_path / "folder" / "fold_0") == ["a.json"]


@held
def test_a_scanner_that_gives_way(windows, tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    scanner = path.open()
    threading.Timer(0.3, scanner.close).start()
    begin = time.monotonic()
    write_text(path, "new")
    assert path.read_text() == "new" and 0.2 < time.monotonic() - begin < 1.5


@held
def test_a_file_that_somebody_keeps(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 0.2)
    path = write_text(tmp_path / "a.txt", "old")
    with path.open() as kept:
        with pytest.raises(HeldFileError, match="a.txt could not be replaced .* another program holds it"):
            write_text(path, "new")
        assert kept.read() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@held
def test_a_training_goes_on_beside_a_checkpoint_that_is_held(windows, dataset, plans, monkeypatch, capsys):
    """Mapped by somebody who looks at it. The last checkpoint is needed, and its absence ends the training."""
    monkeypatch.setattr(files, "_PATIENCE", 0.2)
    plans = copy.deepcopy(plans)
    configuration = plans["configurations"]["2d"]
    configuration["architecture"]["arch_kwargs"] = {**SMALL_NETWORK, "fused_stages": 2}
    configuration["patch_size"] = [32, 32]
    trainer = nnUNetTrainerDIN(plans, "2d", 4, dataset.dataset_json, torch.device("cpu"))
    trainer.initialize()
    best, final = (Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("best", "final"))
    for path in (best, final):
        trainer.current_epoch = 6
        trainer.save_checkpoint(str(path))
        mapped = read_checkpoint(path)
        assert in_use(path) or os.name == "nt"
        trainer.current_epoch = 7
        capsys.readouterr()
        if path is final:
            with pytest.raises(RuntimeError, match=r"checkpoint_final.pth could not be written \(.*another program"):
                trainer.save_checkpoint(str(path))
        else:
            trainer.save_checkpoint(str(path))
            printed = capsys.readouterr().out
            assert f"WARNING: {path} could not be replaced" in printed and "The training goes on" in printed
        assert mapped["current_epoch"] == 7
        del mapped
        assert read_checkpoint(path, mmap=False)["current_epoch"] == 7, "the one from before"
        trainer.save_checkpoint(str(path))
        assert read_checkpoint(path, mmap=False)["current_epoch"] == 8
    assert not [name for name in os.listdir(trainer.output_folder) if "partial" in name]
    shutil.rmtree(trainer.output_folder)


def test_every_module_is_imported_without_what_posix_has(monkeypatch):
    """In new modules, beside those that other tests use."""
    for module, names in MISSING.items():
        for name in names:
            monkeypatch.delattr(module, name, raising=False)
    for name in MISSING_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "nnunet_din"}
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    found = [module.name for module in pkgutil.walk_packages(nnunet_din.__path__, "nnunet_din.")]
    assert len(found) > 80
    try:
        for name in own:
            del sys.modules[name]
        for name in found:
            import_module(name)
    finally:
        for name in {*found, *own}:
            sys.modules.pop(name, None)
        sys.modules.update(own)


def test_names_of_both_systems_in_what_is_shared(tmp_path):
    """A model that is exported on Windows is imported elsewhere."""
    write_text(tmp_path / "fold_0" / "validation" / "summary.json", "{}")
    assert list(files_in(tmp_path)) == ["fold_0/validation/summary.json"]
    names = [{"prediction_file": "C:\\results\\a.nii.gz"}, {"prediction_file": "/home/b.nii.gz"}]
    assert [sharing._without_folders(name)["prediction_file"] for name in names] == ["a.nii.gz", "b.nii.gz"]
