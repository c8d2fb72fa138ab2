"""Progress where there is no terminal."""

from __future__ import annotations

import time

from nnunet_din.data import progress


def test_plain_lines_without_a_terminal(capsys, monkeypatch):
    """Fails if a log file is silent for minutes, or filled with a line for every step."""
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    for _ in progress.progress(range(40), desc="scoring", unit="cases"):
        time.sleep(0.01)
    lines = [line for line in capsys.readouterr().err.split("\n") if line.strip()]
    assert 2 <= len(lines) <= 15
    assert lines[-1].strip().startswith("scoring: 40 of 40 cases in ")
