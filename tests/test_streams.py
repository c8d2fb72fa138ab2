"""What can happen to standard output and to names ends in one line, or in none, and never in a traceback."""

from __future__ import annotations

import errno
import os
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from nnunet_din.commands import doctor
from nnunet_din.commands.main import main


@pytest.fixture
def prints(monkeypatch):
    """A command that prints more than a buffer holds, or what it is told to."""

    def command(text="x" * 100_000):
        monkeypatch.setattr(doctor, "run", lambda args: print(text) or 0)

    return command


def stream(monkeypatch, name, descriptor, **options):
    monkeypatch.setattr(sys, name, os.fdopen(descriptor, "w", **options))


@pytest.mark.parametrize("text", ["few", "x" * 100_000])
def test_a_reader_that_has_seen_enough(text, prints, monkeypatch, capsys):
    """`nnunet-din ... | head`: what is left in the buffer must not fail when Python ends."""
    prints(text)
    for arguments, code in ((["doctor"], 1), (["--help"], None)):
        reading, writing = os.pipe()
        os.close(reading)
        stream(monkeypatch, "stdout", writing)
        if code is None:
            with pytest.raises(SystemExit):
                main(arguments)
        else:
            assert main(arguments) == code
        sys.stdout.close()  # as at the end of Python
    assert not capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_standard_output(prints, monkeypatch, capsys):
    for text in ("few", "x" * 100_000):
        prints(text)
        stream(monkeypatch, "stdout", os.open("/dev/full", os.O_WRONLY))
        assert main(["doctor"]) == 1
        sys.stdout.close()
        assert capsys.readouterr().err == f"nnunet-din doctor: {os.strerror(errno.ENOSPC)}.\n"


def test_streams_that_are_closed(prints, monkeypatch):
    """Python has None for them. A command must not write its files under the numbers that are free then."""
    prints()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["doctor"]) == 0
    sys.stdout.close()
    sys.stderr.close()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_names_that_no_stream_can_print(encoding, prints, monkeypatch):
    """File names that are not UTF-8, and letters that Windows' code page lacks."""
    prints("\udcff.nii.gz \u03b1")
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), encoding=encoding))
    monkeypatch.setattr(sys, "stderr", TextIOWrapper(BytesIO(), encoding=encoding))
    assert main(["doctor"]) == 0
    assert sys.stdout.buffer.getvalue().startswith(rb"\udcff.nii.gz")
    assert main(["enhance", "\udcff/\u03b1.nii.gz", "out.nii.gz"]) == 1
    sys.stderr.flush()
    assert rb"\udcff" in sys.stderr.buffer.getvalue()
