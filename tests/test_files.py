"""What is written is there whole or not at all, whoever writes, reads or is killed beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nnunet_din.data.files import folder_written_whole, read_json, write_text, written_whole
from nnunet_din.data.weight_files import check_finite, write_checkpoint, write_tensors


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    """Threads of one process, and processes of two machines with the same number, too."""
    path = tmp_path / "a.json"
    with written_whole(path) as first:
        first.write_text("first, long", encoding="utf-8")
        with written_whole(path) as second:
            second.write_text("second", encoding="utf-8")
        assert first.suffix == second.suffix == ".json" and path.read_text(encoding="utf-8") == "second"
    assert path.read_text(encoding="utf-8") == "first, long"
    assert os.listdir(tmp_path) == ["a.json"]


def test_of_two_folders_of_one_name_the_first_stays(tmp_path):
    path = tmp_path / "results" / "a__b__c"
    with pytest.raises(ValueError, match="a__b__c is already there, and nothing is overwritten"):
        with folder_written_whole(path) as slow:
            write_text(slow / "name", "slow")
            with folder_written_whole(path) as quick:
                write_text(quick / "name", "quick")
    assert (path / "name").read_text(encoding="utf-8") == "quick"
    assert os.listdir(path.parent) == ["a__b__c"]
    (tmp_path / "empty").mkdir()
    with folder_written_whole(tmp_path / "empty") as partial:
        write_text(partial / "name", "new")
    assert os.listdir(tmp_path / "empty") == ["name"]


def test_what_killed_writers_left_is_removed_after_a_day(tmp_path):
    left, fresh = tmp_path / ".1.partial.a.txt", tmp_path / ".2.partial.a.txt"
    left.touch()
    fresh.touch()
    os.utime(left, (0, 0))
    write_text(tmp_path / "a.txt", "new")
    assert sorted(os.listdir(tmp_path)) == [fresh.name, "a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_can_be_read_by_whom_the_umask_lets(umask, tmp_path):
    """Safetensors makes files that only their owner can read."""
    before = os.umask(umask)
    try:
        write_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
        write_checkpoint({"a": torch.ones(3)}, tmp_path / "a.pth")
        write_text(tmp_path / "a.txt", "text")
        with folder_written_whole(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_the_same_weights_are_the_same_file(tmp_path):
    """Plans name weights by their SHA-256; torch writes the name of a path into the file."""
    for name in ("a.pth", "b.pth"):
        write_checkpoint({"a": torch.ones(3)}, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_weights_that_are_not_finite():
    check_finite({"a": torch.ones(2), "b": torch.arange(3), "c": torch.ones(0)}, "w.pth")
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="w.pth: b is not finite: the training has diverged"):
            check_finite({"a": torch.ones(2), "b": torch.tensor([1.0, value]).half()}, Path("w.pth"))


def test_json_that_is_nested_too_deeply(tmp_path):
    for text in ("[" * 100_000, '{"a":' * 100_000):
        path = write_text(tmp_path / "deep.json", text)
        with pytest.raises(ValueError, match="deep.json is not valid JSON"):
            read_json(path)
