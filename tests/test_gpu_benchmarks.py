"""``benchmarks/gpu.py``: every kind of stage works at a tiny size on a CPU, and stages go on where they stopped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ["--tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def gpu():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("gpu_benchmarks", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.mark.slow
def test_all_stages_at_a_tiny_size(gpu, dataset, tmp_path, monkeypatch, capsys):
    """In this process, which has loaded torch already."""
    narrow = {**gpu.PRESETS["fast"], "decoder_channels": 16}
    monkeypatch.setitem(gpu.PRESETS, "fast", narrow)
    monkeypatch.setattr(gpu.memory, "SHAPES", [(32, 32, 2)])
    arguments = [*TINY, "--output", str(tmp_path), "-d", dataset.name]
    gpu.main(arguments, run=lambda name, args, seconds: gpu.carry_out(name, args))
    out = capsys.readouterr().out
    assert out.strip().endswith("All is done.")
    rows = [line for line in out.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1].split("-")[0] for row in rows] == ["doctor", "literal", "resenc", "memory", "planning"]
    assert (
        "all is well" in rows[0] and "literal / ours" in rows[1] and "2 cases" in rows[3] and "images a sec" in rows[4]
    )
    assert json.loads((tmp_path / "memory-fast.json").read_text())["command"] == "python benchmarks/gpu.py memory-fast"


def test_a_stage_runs_in_a_process_of_its_own(gpu, tmp_path):
    """One that fails or takes too long says so and leaves no result."""
    args = gpu.argparse.Namespace(dataset="27", device="cpu", output=tmp_path, tiny=True)
    assert gpu.start("doctor-fast", args, 0.2) == "stopped after 0 minutes"
    assert not list(tmp_path.glob("*.json"))


def test_stages_go_on_where_they_stopped(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "has_fingerprint", lambda dataset: False)
    begun = []

    def run(name, args, seconds):
        begun.append(name)
        if name.startswith("literal") and begun.count(name) == 1:
            return "stopped after 10 minutes"
        content = {"summary": "good", "date": "2026-01-01", "machine": "none", "torch": "2"}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return None

    arguments = [*TINY, "--output", str(tmp_path)]
    gpu.main([*arguments, "--minutes", "0.5"], run=run)
    assert not begun, "no stage is begun that cannot end"
    gpu.main(arguments, run=run)
    names = ["doctor-fast", "literal-fast-eager", "memory-fast", "planning-fast-1"]
    assert begun == names
    assert "Left: literal-fast-eager." in capsys.readouterr().out
    gpu.main([*arguments, "--list"], run=run)
    assert capsys.readouterr().out.splitlines() == [
        f"{'     ' if name == 'literal-fast-eager' else 'done '} {name}" for name in names
    ]
    gpu.main(arguments, run=run)
    assert begun == [*names, "literal-fast-eager"]
    assert capsys.readouterr().out.strip().endswith("All is done.")


def test_every_row_of_the_planning_table_and_every_run_of_the_study_has_its_stage(gpu, monkeypatch):
    for name in ("has_fingerprint", "has_acdc"):
        monkeypatch.setattr(gpu, name, lambda dataset: True)
    names = list(gpu.stages(gpu.argparse.Namespace(device="cuda", tiny=False, dataset="27")))
    rows = [row for row in json.loads((FOLDER / "plans.json").read_text())["plans"] if row["fits"]]
    cases = {json.dumps([row[key] for key in ("preset", "patch", "batch", "checkpointing")]) for row in rows}
    assert len([name for name in names if name.startswith("planning")]) == len(cases) > 10
    runs = json.loads((FOLDER / "acdc" / "gpu.json").read_text())["runs"]
    assert [name for name in names if name.startswith("acdc")] == [
        "acdc-plan",
        *(f"acdc-{run['name']}" for run in runs),
    ]
    with pytest.raises(SystemExit):  # a CPU gives no figure of a GPU
        gpu.main(["--device", "cpu"])


def test_unknown_stages_are_named(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main([*TINY, "nonsense"])
    assert "no stage is called nonsense; there are doctor-fast" in capsys.readouterr().err
