"""DIN and nnU-Net on ACDC under an equal budget: fold 5, the published 70/10 split.

    python benchmarks/acdc/study.py plan            --settings benchmarks/acdc/cpu.json
    python benchmarks/acdc/study.py run   [RUN ...] --settings benchmarks/acdc/cpu.json
    python benchmarks/acdc/study.py table [RUN ...] --settings benchmarks/acdc/cpu.json
    python benchmarks/acdc/study.py batchnorm RUN ... --settings benchmarks/acdc/cpu.json

A run is a trainer, plans and a configuration of nnU-Net, with a budget in minutes or in iterations. Minutes become
iterations by the time that an iteration takes before the training (let nothing else run meanwhile), so that the
schedules of nnU-Net's trainers end with the budget. An interrupted run goes on from its last epoch when it is started
again; a finished one is not repeated. Each writes one JSON file into the folder of the settings' name.

`batchnorm` asks of finished runs whether small batches hurt BatchNorm: it replaces the running statistics, an average
of about the last ten batches, by those of 200 training batches, predicts again, and adds the Dice to the run's file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shlex
import statistics
import subprocess
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import update_bn

from nnunet_din.evaluation.report import markdown_table
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.training_log import read_training

FOLD = 5
#: Steps that are not timed, and steps that are, when minutes are turned into iterations.
WARM_UP, TIMED = 3, 12
#: Training batches that `batchnorm` averages.
BATCHES = 200


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "run", "table", "batchnorm"))
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs in the settings (default: all, in order)")
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE")
    parser.add_argument("-d", dest="dataset", default="27", metavar="ID", help="ACDC as an nnU-Net data set")
    args = parser.parse_args()
    settings = json.loads(args.settings.read_text())
    runs = {run["name"]: {**settings["defaults"], **run} for run in settings["runs"]}
    unknown = sorted(set(args.runs) - set(runs))
    if unknown:
        parser.error(f"no run is called {', '.join(unknown)}; there are {', '.join(runs)}")
    chosen = {name: runs[name] for name in args.runs or runs}
    results = args.settings.with_suffix("")
    if args.what == "plan":
        plan(settings, args.dataset)
    elif args.what == "table":
        print(table([r for name in chosen if (r := read(results / f"{name}.json")).get("scores")]))
    elif args.what == "batchnorm":
        for run in chosen.values():
            recompute_batchnorm(run, args.dataset, results / f"{run['name']}.json")
    else:
        check_split(args.dataset)
        results.mkdir(exist_ok=True)
        for run in chosen.values():
            carry_out(run, args.dataset, results / f"{run['name']}.json")


def plan(settings: dict, dataset: str) -> None:
    """Plan and preprocess, with nnU-Net's command, what is not there."""
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)
    for name, arguments in settings["plans"].items():
        if not (folder / f"{name}.json").is_file():
            command = f"nnUNetv2_plan_and_preprocess -d {dataset} -c 2d -overwrite_plans_name {name} {arguments}"
            print(command, flush=True)
            subprocess.run(shlex.split(command), check=True)
    for command in settings.get("configure", []):
        subprocess.run(["nnunet-din", "configure", "-d", dataset, *shlex.split(command)], check=True)
    check_split(dataset)


def check_split(dataset: str) -> None:
    """Fold 5 must be the published split; it is copied from the raw folder where nnU-Net has none yet."""
    name = dataset_name(dataset)
    path = nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"
    if not path.is_file():
        path.write_text((nnunet_folder("nnUNet_raw") / name / "splits_final.json").read_text())
    splits = json.loads(path.read_text())
    if len(splits) <= FOLD or len(splits[FOLD]["val"]) != 20 or len(splits[FOLD]["train"]) != 140:
        raise SystemExit(
            f"{path} has no fold {FOLD} of 140 training and 20 validation volumes: `nnunet-din convert acdc` writes it."
        )


def carry_out(run: dict, dataset: str, path: Path) -> None:
    """Train a run, or what is left of it, and score it."""
    result = read(path)
    if result.get("scores"):
        print(f"{run['name']}: finished")
        return
    if result and result["run"] != run:
        raise SystemExit(f"{path} was begun with other settings: give the run another name, or delete its results.")
    os.environ["nnUNet_n_proc_DA"] = str(run["workers"])
    torch.set_num_threads(run["threads"])
    if not result:
        training, validation = seconds_per_step(make_trainer(run, dataset, epochs=1000))
        per_epoch = run["iterations_per_epoch"]
        if "minutes" in run:
            epoch = per_epoch * training + run["validation_iterations_per_epoch"] * validation
            epochs = max(1, round(60 * run["minutes"] / epoch))
        else:
            epochs = max(1, round(run["iterations"] / per_epoch))
        result = {
            "run": run,
            "model": f"{class_name(run)}__{run['plans']}__{run['configuration']}",
            "epochs": epochs,
            "iterations": epochs * per_epoch,
            "seconds_per_training_step": round(training, 4),
            "seconds_per_validation_step": round(validation, 4),
            "date": date.today().isoformat(),
            "machine": f"{platform.system()} {platform.machine()}, {device_name(run)}, {run['threads']} threads",
            "torch": torch.__version__,
            "commit": commit(),
        }
        write(path, result)
    trainer = make_trainer(run, dataset, result["epochs"])
    folder = Path(trainer.output_folder)
    final = folder / "checkpoint_final.pth"
    checkpoint = final if final.is_file() else folder / "checkpoint_latest.pth"
    if checkpoint.is_file():
        trainer.load_checkpoint(str(checkpoint))
    if checkpoint != final:
        trainer.run_training()
        result["peak_memory_gb"] = round(peak_memory(run) / 1e9, 2)
        write(path, result)
    started = time.monotonic()
    trainer.perform_actual_validation(False)
    training = read_training(folder)
    result |= {
        "training_minutes": round(60 * float(training["hours"][-1]), 1),
        "seconds_per_epoch": round(statistics.median(np.diff(training["hours"], prepend=0.0)) * 3600, 1),
        "prediction_minutes": round((time.monotonic() - started) / 60, 1),
        "train_loss": [round(float(value), 4) for value in training["train_loss"]],
        "val_loss": [round(float(value), 4) for value in training["val_loss"]],
        "pseudo_dice": [round(float(value), 4) for value in training["mean_dice"]],
    }
    result["scores"] = score(dataset, folder.parent)
    write(path, result)
    print(f"{run['name']}: {result['scores']['Dice']['mean']}")


def recompute_batchnorm(run: dict, dataset: str, path: Path) -> None:
    """Dice with the running statistics and with those of many batches, side by side in the run's file."""
    result = read(path)
    if not result.get("scores"):
        raise SystemExit(f"{run['name']} is not finished.")
    os.environ["nnUNet_n_proc_DA"] = str(run["workers"])
    torch.set_num_threads(run["threads"])
    trainer = make_trainer(run, dataset, result["epochs"])
    model = Path(trainer.output_folder)
    trainer.load_checkpoint(str(model / "checkpoint_final.pth"))
    loader, other = trainer.get_dataloaders()
    update_bn((next(loader)["data"] for _ in range(BATCHES)), trainer.network, trainer.device)
    for each in (loader, other):
        finish(each)
    trainer.output_folder = str(model / "batchnorm")
    trainer.perform_actual_validation(False)
    result["batchnorm"] = {
        name: round(json.loads((folder / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"], 4)
        for name, folder in (("running", model), ("recomputed", model / "batchnorm"))
    }
    write(path, result)
    print(f"{run['name']}: {result['batchnorm']}")


def class_name(run: dict) -> str:
    """Name of the run's trainer class: with it, the results of every run have a folder of their own."""
    return f"{run['trainer']}_acdc_{run['name'].replace('-', '_')}"


def make_trainer(run: dict, dataset: str, epochs: int):
    """The trainer as nnU-Net makes it, with the run's length, seed and settings."""
    from nnunetv2.run.run_training import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    random.seed(run["seed"])
    np.random.seed(run["seed"])  # noqa: NPY002 - the generator that the augmentation draws from
    torch.manual_seed(run["seed"])
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)
    values = {
        "num_epochs": epochs,
        "num_iterations_per_epoch": run["iterations_per_epoch"],
        "num_val_iterations_per_epoch": run["validation_iterations_per_epoch"],
        "save_every": 1,
        **run["set"],
    }
    base = recursive_find_trainer_class_by_name(run["trainer"])
    # Class attributes for DIN's trainers, whose class methods read them; set again for nnU-Net's, whose __init__
    # sets its own.
    trainer_class = type(class_name(run), (base,), values)
    plans = PlansManager(str(folder / f"{run['plans']}.json")).plans
    trainer = trainer_class(
        plans={**plans, "continue_training": False},
        configuration=run["configuration"],
        fold=FOLD,
        dataset_json=json.loads((folder / "dataset.json").read_text()),
        device=torch.device(run["device"]),
    )
    for name, value in values.items():
        setattr(trainer, name, value)
    return trainer


def seconds_per_step(trainer) -> tuple[float, float]:
    """Median duration of a training and of a validation step, data loading included."""
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.network.train()
    training = durations(lambda: trainer.train_step(next(trainer.dataloader_train)))
    trainer.network.eval()
    with torch.no_grad():
        validation = durations(lambda: trainer.validation_step(next(trainer.dataloader_val)))
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        finish(loader)
    return training, validation


def finish(loader) -> None:
    """End a loader's processes, if it has any."""
    if hasattr(loader, "_finish"):
        loader._finish()


def durations(step) -> float:
    """Median duration of a step in seconds; nnU-Net's steps wait for the device."""
    seconds = []
    for i in range(WARM_UP + TIMED):
        start = time.perf_counter()
        step()
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def score(dataset: str, model: Path) -> dict:
    """Metrics of the leaderboard command: of every structure, and of their mean over the volumes."""
    output = model / "leaderboard"
    command = f"nnunet-din leaderboard -d {dataset} --models {model.name} -f {FOLD} --protocol merit -np 1"
    subprocess.run([*command.split(), "--group-by", r"patient\d+", "-o", str(output)], check=True)
    cases = pd.read_csv(output / "cases.csv")
    scores = {}
    for metric, digits in (("Dice", 4), ("Dice_merit", 4), ("HD95_merit", 2)):
        values = cases.pivot(index="case", columns="structure", values=metric)
        scores[metric] = {name: round(float(values[name].mean()), digits) for name in cases["structure"].unique()}
        scores[metric]["mean"] = round(float(values.mean(axis=1).mean()), digits)
        scores[metric]["sd over volumes"] = round(float(values.mean(axis=1).std()), digits)
    return scores


def table(results: list[dict]) -> str:
    """Markdown, one row a model: runs that differ in the seed only are one, with the range of their means."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["run"]["label"], []).append(result)
    rows = []
    for label, members in groups.items():
        dice = [100 * r["scores"]["Dice"]["mean"] for r in members]
        row = {"model": label, "seeds": len(members), "Dice (%)": f"{statistics.mean(dice):.2f}"}
        if len(members) > 1:
            row["Dice (%)"] += f" ({min(dice):.2f} to {max(dice):.2f})"
        for structure in ("RV", "MYO", "LV"):
            row[structure] = f"{statistics.mean(100 * r['scores']['Dice'][structure] for r in members):.2f}"
        row["iterations"] = f"{statistics.mean(r['iterations'] for r in members):.0f}"
        row["training (min)"] = f"{statistics.mean(r['training_minutes'] for r in members):.0f}"
        row["s / epoch"] = f"{statistics.mean(r['seconds_per_epoch'] for r in members):.1f}"
        memory = [r["peak_memory_gb"] for r in members if "peak_memory_gb" in r]
        row["memory (GB)"] = f"{max(memory):.1f}" if memory else "-"
        rows.append(row)
    return "\n".join(markdown_table(pd.DataFrame(rows)))


def peak_memory(run: dict) -> int:
    """Largest memory in bytes so far: tensors on the GPU, or the whole process."""
    if run["device"] == "cuda":
        return torch.cuda.max_memory_allocated()
    # KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def device_name(run: dict) -> str:
    """The GPU's name, or the processor's."""
    if run["device"] == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows the name
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this checkout."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return run.stdout.strip()


def read(path: Path) -> dict:
    """A result, or an empty one."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, result: dict) -> None:
    """Write a result; an interruption leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
