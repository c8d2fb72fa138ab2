"""Every figure that needs a GPU, in stages of under ten minutes, each in a process of its own.

    python benchmarks/gpu.py                  half an hour of what is not done yet, in order
    python benchmarks/gpu.py --list           the stages, and which are done
    python benchmarks/gpu.py planning-tiny-12 these stages

A stage that is done has written ``benchmarks/gpu/STAGE.json`` and is left out from then on. One that is interrupted, or
takes longer than ten minutes, has written nothing and starts again; a training of the ACDC study goes on from its last
epoch. What compares with ResEnc-M needs the fingerprint of the data set (``nnUNetv2_extract_fingerprint -d 27``), and
the study needs ACDC as ``nnunet-din convert acdc`` writes it: without them, these stages are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import memory  # noqa: E402 - the scripts beside this one
import network  # noqa: E402
from common import head  # noqa: E402

from nnunet_din.cost.training_step import plan_trial, try_training  # noqa: E402
from nnunet_din.data.files import read_json, write_text  # noqa: E402
from nnunet_din.diagnosis.training import training_checks  # noqa: E402
from nnunet_din.evaluation.report import markdown_table  # noqa: E402
from nnunet_din.network import PRESETS  # noqa: E402
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder  # noqa: E402
from nnunet_din.nnunet.training_device import compiles  # noqa: E402

#: Seconds that a stage may take, and without which none is begun.
LIMIT, LEAST = 600, 60
SETTINGS = HERE / "acdc" / "gpu.json"


def doctor(preset: str, device: torch.device, size: tuple[int, int] | None, batch: int | None) -> dict:
    """What ``nnunet-din doctor --step`` says."""
    checks = list(training_checks(preset, str(device), size, batch))
    wrong = [f"{check.name}: {check.found}" for check in checks if not check.ok]
    speed = [check.found for check in checks if check.name == "time of a step"]
    return {"summary": "; ".join(wrong or ["all is well", *speed]), "checks": [asdict(check) for check in checks]}


def literal(preset: str, device: torch.device, compiled: bool, size: int, repeats: int) -> dict:
    """Time and memory of the network's literal twin against ours."""
    what = network.build(preset, size, 1, device, compiled)
    result = network.measure_speed(*what, repeats)
    del what
    peaks = {
        name: network.measure_memory(name, *network.build(preset, size, 1, device, compiled))["allocator"]
        for name in ("literal", "ours")
    }
    shares = [result[kind]["literal / ours"]["median"] for kind in ("forward", "training step")]
    share = peaks["ours"] / peaks["literal"]
    summary = f"literal / ours: forward {shares[0]:.2f}, step {shares[1]:.2f}; memory ours / literal {share:.2f}"
    return {"summary": summary, **result, "peak memory of a training step": peaks}


def resenc(dataset: str, device: torch.device, compiled: bool, repeats: int) -> dict:
    """DIN ``fast`` against ResEnc-M on its patch."""
    import fast

    result = fast.compare(dataset, "fast", 2 if device.type == "cpu" else 12, repeats, device, compiled)
    ratio = result["DIN fast / ResEnc-M"]
    return {"summary": f"{ratio['median']:.2f} times ResEnc-M's images a second", **result}


def counted(preset: str, device: torch.device, limit: float, most: int | None) -> dict:
    """The planners' count against the measured peak."""
    cases = [row for case in list(memory.cases([preset]))[:most] if (row := memory.measure(case, limit, device))]
    ratios = [row["ratio"] for row in cases]
    return {"summary": f"measured / counted {min(ratios)} to {max(ratios)} in {len(ratios)} cases", "cases": cases}


def planned(row: dict, device: torch.device, steps: int) -> dict:
    """Images a second of what the planners plan for a memory target."""
    trial = plan_trial(row["preset"], device, row["patch"], row["batch"], checkpointing=row["checkpointing"])
    outcome = try_training(trial, compiles(device), steps)
    rate = trial.batch / statistics.median(outcome.seconds)
    peak = outcome.peak_memory_bytes
    summary = f"{rate:.3g} images a second, peak {peak / 1e9:.2f} GB, {peak / trial.counted_bytes:.2f} of the count"
    return {"summary": summary, "plan": row, "images_per_second": rate, **asdict(outcome)}


def plan_acdc(dataset: str) -> dict:
    """Plan and preprocess for the study."""
    import study

    settings = json.loads(SETTINGS.read_text())
    study.plan(settings, study.Study.of(settings, dataset))
    return {"summary": "planned and preprocessed"}


def train_acdc(run: dict, dataset: str) -> dict:
    """One training of the study, or what is left of it; its own result lies beside the settings."""
    import study

    results = SETTINGS.with_suffix("")
    results.mkdir(exist_ok=True)
    path = results / f"{run['name']}.json"
    of_settings = study.Study.of(json.loads(SETTINGS.read_text()), dataset)
    study.check_split(of_settings)
    study.carry_out(run, of_settings, path)
    dice = read_json(path)["scores"]["Dice"]["mean"]
    return {"summary": f"Dice {100 * dice:.2f} %", "result": str(path.relative_to(HERE))}


def stages(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Every stage in order: its name and what it does."""
    device, tiny = torch.device(args.device), args.tiny
    repeats = 1 if tiny else 10
    found: dict[str, Callable[[], dict]] = {}
    for preset in ["fast"] if tiny else list(PRESETS)[::-1]:
        found[f"doctor-{preset}"] = lambda preset=preset: doctor(
            preset, device, *(((32, 32), 2) if tiny else (None, None))
        )
    for preset in ["fast"] if tiny else ["fast", "base"]:
        for compiled in [False] if tiny else [False, True]:
            name = f"literal-{preset}-{'compiled' if compiled else 'eager'}"
            found[name] = lambda preset=preset, compiled=compiled: literal(
                preset, device, compiled, 32 if tiny else 224, repeats
            )
    if has_fingerprint(args.dataset):
        for compiled in [False] if tiny else [False, True]:
            name = f"resenc-{'compiled' if compiled else 'eager'}"
            found[name] = lambda compiled=compiled: resenc(args.dataset, device, compiled, repeats)
    for preset in ["fast"] if tiny else list(PRESETS)[::-1]:
        found[f"memory-{preset}"] = lambda preset=preset: counted(
            preset, device, 1 if tiny else 60, 2 if tiny else None
        )
    rows = read_json(HERE / "plans.json")["plans"]
    if tiny:
        rows = [{"preset": "fast", "target_gb": 1, "patch": [32, 32], "batch": 2, "checkpointing": True, "fits": True}]
    planned_before = []
    for row in sorted((row for row in rows if row["fits"]), key=lambda row: row["target_gb"]):
        case = [row[key] for key in ("preset", "patch", "batch", "checkpointing")]
        if case in planned_before:  # more memory that the planner has no use for
            continue
        planned_before.append(case)
        found[f"planning-{row['preset']}-{row['target_gb']:g}"] = lambda row=row: planned(row, device, repeats)
    if not tiny and has_acdc(args.dataset):
        settings = json.loads(SETTINGS.read_text())
        found["acdc-plan"] = lambda: plan_acdc(args.dataset)
        for run in settings["runs"]:
            run = {**settings["defaults"], **run}
            found[f"acdc-{run['name']}"] = lambda run=run: train_acdc(run, args.dataset)
    return found


def has_fingerprint(dataset: str) -> bool:
    """Whether nnU-Net has extracted the fingerprint of the data set."""
    try:
        return (nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset) / "dataset_fingerprint.json").is_file()
    except (ValueError, FileNotFoundError):
        return False


def has_acdc(dataset: str) -> bool:
    """Whether the raw data set is there, with its split."""
    try:
        return (nnunet_folder("nnUNet_raw") / dataset_name(dataset) / "splits_final.json").is_file()
    except (ValueError, FileNotFoundError):
        return False


def carry_out(name: str, args: argparse.Namespace) -> None:
    """Do a stage in this process, and write its result."""
    device = torch.device(args.device)
    begin = time.monotonic()
    result = stages(args)[name]()
    label = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    about = head(label) | {"command": f"python benchmarks/gpu.py {name}", "compiled": compiles(device)}
    seconds = round(time.monotonic() - begin)
    write_text(args.output / f"{name}.json", json.dumps({**about, "seconds": seconds, **result}, indent=2) + "\n")


def start(name: str, args: argparse.Namespace, seconds: float) -> str | None:
    """Do a stage in a process of its own; returns what went wrong, if anything did."""
    command = [sys.executable, "-W", "ignore", __file__, name, "--here", "-d", args.dataset, "--device", args.device]
    command += ["--output", str(args.output)] + ["--tiny"] * args.tiny
    log = args.output / f"{name}.log"
    with log.open("w") as output:
        # A group of its own: its workers end with it.
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds / 60:.0f} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
        return f"failed, see {log}: {lines[-1]}"
    log.unlink()
    return None


def table(output: Path, names: list[str]) -> str:
    """Markdown, one row for each stage that is done."""
    results = {name: read_json(output / f"{name}.json") for name in names if (output / f"{name}.json").is_file()}
    rows = [
        {"stage": f"`{name}`", "result": r["summary"], "date": r["date"], "machine": r["machine"], "torch": r["torch"]}
        for name, r in results.items()
    ]
    return "\n".join(markdown_table(pd.DataFrame(rows))) if rows else "Nothing is done yet."


def main(argv: list[str] | None = None, run: Callable[[str, argparse.Namespace, float], str | None] = start) -> None:
    """Command line; ``run`` does a stage within so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all, in order")
    parser.add_argument("--list", action="store_true", help="only say which stages there are, and which are done")
    parser.add_argument("--minutes", type=float, default=30, help="for all together (default: 30)")
    parser.add_argument("-d", dest="dataset", default="27", metavar="ID", help="ACDC as a data set of nnU-Net")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=HERE / "gpu", metavar="FOLDER", help="default: benchmarks/gpu")
    parser.add_argument("--tiny", action="store_true", help="small images, few steps: to try this script")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if torch.device(args.device).type != "cuda" and not args.tiny:
        parser.error("there is no GPU here: --tiny tries this script on a CPU")
    names = list(stages(args))
    unknown = sorted(set(args.stages) - set(names))
    if unknown:
        parser.error(f"no stage is called {', '.join(unknown)}; there are {', '.join(names)}")
    names = args.stages or names
    args.output.mkdir(parents=True, exist_ok=True)
    if args.here:
        for name in names:
            carry_out(name, args)
        return

    def left() -> list[str]:
        return [name for name in names if not (args.output / f"{name}.json").is_file()]

    if args.list:
        print("\n".join(f"{'     ' if name in left() else 'done '} {name}" for name in names))
        return
    end = time.monotonic() + 60 * args.minutes
    for name in left():
        seconds = min(LIMIT, end - time.monotonic())
        if seconds < LEAST:
            break
        print(f"{name} ...", flush=True)
        wrong = run(name, args, seconds)
        print(f"  {wrong or read_json(args.output / f'{name}.json')['summary']}", flush=True)
    print(f"\n{table(args.output, names)}\n")
    print(f"Left: {', '.join(left())}. Start again for them." if left() else "All is done.")


if __name__ == "__main__":
    main()
