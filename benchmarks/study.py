"""DIN and nnU-Net under an equal budget: on ACDC (fold 5, the published 70/10 split), or as other settings say.

    python benchmarks/study.py plan            --settings benchmarks/acdc/cpu.json
    python benchmarks/study.py run   [RUN ...] --settings benchmarks/acdc/cpu.json
    python benchmarks/study.py table [RUN ...] --settings benchmarks/acdc/cpu.json
    python benchmarks/study.py batchnorm RUN ... --settings benchmarks/acdc/cpu.json

A run is a trainer, plans and a configuration of nnU-Net, with a budget in minutes or in iterations. Minutes become
iterations by the time that an iteration takes before the training (let nothing else run meanwhile), so that the
schedules of nnU-Net's trainers end with the budget. An interrupted run goes on from its last epoch when it is started
again; a finished one is not repeated. Each writes one JSON file into the folder of the settings' name.

The settings say for which data set, fold and protocol; where they say `"test": true`, the scores are those of imagesTs
in place of the fold's validation cases, and `ensembles` names members whose probabilities are averaged.

`batchnorm` asks of finished runs whether small batches hurt BatchNorm: it replaces the running statistics, an average
of about the last ten batches, by those of 200 training batches, predicts again, and adds the Dice to the run's file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import update_bn

from nnunet_din.data.files import write_text
from nnunet_din.diagnosis.measurement import seconds_in_turn
from nnunet_din.evaluation.report import markdown_table
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.training_log import read_training

#: ACDC's published split, which `nnunet-din convert acdc` writes behind nnU-Net's five.
PUBLISHED_FOLD = 5
#: Steps that are not timed, and steps that are, when minutes are turned into iterations.
WARM_UP, TIMED = 3, 12
#: Training batches that `batchnorm` averages.
BATCHES = 200


@dataclass(frozen=True)
class Study:
    """What the runs of a settings file have in common.

    Attributes
    ----------
    dataset : str
        Number or name of the data set.
    fold : int or str
        Fold that is trained, or "all".
    test : bool
        Whether the cases of imagesTs are scored, and not the fold's validation cases.
    merit : bool
        Whether Dice and HD95 are also those of the published comparisons on ACDC.
    """

    dataset: str
    fold: int | str
    test: bool
    merit: bool

    @classmethod
    def of(cls, settings: dict, dataset: str | None = None) -> Study:
        """The study of a settings file, on ``dataset`` if another number is given."""
        merit = settings.get("protocol") == "merit"
        return cls(dataset or settings["dataset"], settings["fold"], settings.get("test", False), merit)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "run", "table", "batchnorm"))
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs in the settings (default: all, in order)")
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "-d", dest="dataset", metavar="ID", help="the data set, if it has another number than the settings say"
    )
    args = parser.parse_args()
    settings = json.loads(args.settings.read_text())
    study = Study.of(settings, args.dataset)
    runs = {run["name"]: {**settings["defaults"], **run} for run in settings["runs"]}
    runs |= {ensemble["name"]: ensemble for ensemble in settings.get("ensembles", [])}
    unknown = sorted(set(args.runs) - set(runs))
    if unknown:
        parser.error(f"no run is called {', '.join(unknown)}; there are {', '.join(runs)}")
    chosen = {name: runs[name] for name in args.runs or runs}
    results = args.settings.with_suffix("")
    if args.what == "plan":
        plan(settings, study)
    elif args.what == "table":
        print(table([r for name in chosen if (r := read(results / f"{name}.json")).get("scores")]))
    elif args.what == "batchnorm":
        for run in chosen.values():
            recompute_batchnorm(run, study, results / f"{run['name']}.json")
    else:
        check_split(study)
        results.mkdir(exist_ok=True)
        for run in chosen.values():
            (average if "members" in run else carry_out)(run, study, results / f"{run['name']}.json")


def plan(settings: dict, study: Study) -> None:
    """Plan and preprocess, with nnU-Net's command, what is not there."""
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(study.dataset)
    for name, arguments in settings["plans"].items():
        if not (folder / f"{name}.json").is_file():
            command = f"nnUNetv2_plan_and_preprocess -d {study.dataset} -overwrite_plans_name {name} {arguments}"
            command += "" if "-c " in command else " -c 2d"
            print(command, flush=True)
            subprocess.run(shlex.split(command), check=True)
    for command in settings.get("configure", []):
        subprocess.run(["nnunet-din", "configure", "-d", study.dataset, *shlex.split(command)], check=True)
    for arguments in settings.get("preprocess", []):
        subprocess.run(["nnUNetv2_preprocess", "-d", study.dataset, *shlex.split(arguments)], check=True)
    check_split(study)


def check_split(study: Study) -> None:
    """Fold 5 must be the published split; it is copied from the raw folder where nnU-Net has none yet."""
    if study.fold != PUBLISHED_FOLD:
        return
    name = dataset_name(study.dataset)
    path = nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"
    if not path.is_file():
        path.write_text((nnunet_folder("nnUNet_raw") / name / "splits_final.json").read_text())
    splits = json.loads(path.read_text())
    fold = splits[PUBLISHED_FOLD] if len(splits) > PUBLISHED_FOLD else {"val": (), "train": ()}
    if len(fold["val"]) != 20 or len(fold["train"]) != 140:
        raise SystemExit(
            f"{path} has no fold {PUBLISHED_FOLD} of 140 training and 20 validation volumes: `nnunet-din convert acdc` "
            "writes it."
        )


def carry_out(run: dict, study: Study, path: Path) -> None:
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
        training, validation = seconds_per_step(make_trainer(run, study, epochs=1000))
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
    trainer = make_trainer(run, study, result["epochs"])
    folder = Path(trainer.output_folder)
    final = folder / "checkpoint_final.pth"
    checkpoint = final if final.is_file() else folder / "checkpoint_latest.pth"
    if checkpoint.is_file():
        trainer.load_checkpoint(str(checkpoint))
    if checkpoint != final:
        trainer.run_training()
        with suppress(ImportError):
            result["peak_memory_gb"] = round(peak_memory(run) / 1e9, 2)
        write(path, result)
    started = time.monotonic()
    if study.test:
        predict_test_cases(trainer, study, predictions_of(study, result["model"]))
    else:
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
    result["scores"] = score(study, result["model"])
    write(path, result)
    print(f"{run['name']}: {result['scores']['Dice']['mean']}")


def average(run: dict, study: Study, path: Path) -> None:
    """Average the probabilities of finished runs, with nnU-Net's command, and score the result."""
    members = [read(path.with_name(f"{name}.json")) for name in run["members"]]
    if missing := [name for name, member in zip(run["members"], members, strict=True) if not member.get("scores")]:
        raise SystemExit(f"{run['name']}: {', '.join(missing)} must be finished first.")
    folders = [str(predictions_of(study, member["model"])) for member in members]
    output = predictions_of(study, run["name"])
    subprocess.run(["nnUNetv2_ensemble", "-i", *folders, "-o", str(output), "-np", "1"], check=True)
    result = {"run": run, "date": date.today().isoformat(), "machine": members[0]["machine"], "commit": commit()}
    result["scores"] = score(study, run["name"])
    write(path, result)
    print(f"{run['name']}: {result['scores']['Dice']['mean']}")


def predictions_of(study: Study, model: str) -> Path:
    """Folder of a model's predictions of the test cases."""
    return nnunet_folder("nnUNet_results") / dataset_name(study.dataset) / "test cases" / model


def predict_test_cases(trainer, study: Study, output: Path) -> None:
    """Predict imagesTs as nnUNetv2_predict does, with the network at hand."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=trainer.device, perform_everything_on_device=trainer.device.type == "cuda")
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        trainer.__class__.__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    trainer.set_deep_supervision_enabled(False)
    images = nnunet_folder("nnUNet_raw") / dataset_name(study.dataset) / "imagesTs"
    predictor.predict_from_files(
        str(images),
        str(output),
        save_probabilities=True,
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )


def recompute_batchnorm(run: dict, study: Study, path: Path) -> None:
    """Dice with the running statistics and with those of many batches, side by side in the run's file."""
    result = read(path)
    if not result.get("scores"):
        raise SystemExit(f"{run['name']} is not finished.")
    os.environ["nnUNet_n_proc_DA"] = str(run["workers"])
    torch.set_num_threads(run["threads"])
    trainer = make_trainer(run, study, result["epochs"])
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
    return f"{run['trainer']}_study_{run['name'].replace('-', '_')}"


def make_trainer(run: dict, study: Study, epochs: int):
    """The trainer as nnU-Net makes it, with the run's length, seed and settings."""
    from nnunetv2.run.run_training import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    random.seed(run["seed"])
    np.random.seed(run["seed"])  # noqa: NPY002 - the generator that the augmentation draws from
    torch.manual_seed(run["seed"])
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(study.dataset)
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
        fold=study.fold,
        dataset_json=json.loads((folder / "dataset.json").read_text()),
        device=torch.device(run["device"]),
    )
    for name, value in values.items():
        setattr(trainer, name, value)
    # In checkpoints, so that every command can read them; the folder has its name already.
    trainer_class.__name__ = base.__name__
    return trainer


def seconds_per_step(trainer) -> tuple[float, float]:
    """Median duration of a training and of a validation step, data loading included."""
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.network.train()
    training = {"training": lambda: trainer.train_step(next(trainer.dataloader_train))}
    seconds = seconds_in_turn(training, TIMED, trainer.device, WARM_UP)
    trainer.network.eval()
    with torch.no_grad():
        validation = {"validation": lambda: trainer.validation_step(next(trainer.dataloader_val))}
        seconds |= seconds_in_turn(validation, TIMED, trainer.device, WARM_UP)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        finish(loader)
    return tuple(statistics.median(values) for values in seconds.values())


def finish(loader) -> None:
    """End a loader's processes, if it has any."""
    if hasattr(loader, "_finish"):
        loader._finish()


def score(study: Study, model: str) -> dict:
    """Metrics of the leaderboard command: of every structure, and of their mean over the volumes."""
    results, raw = (nnunet_folder(name) / dataset_name(study.dataset) for name in ("nnUNet_results", "nnUNet_raw"))
    if study.test:
        output = predictions_of(study, model)
        what = ["--pred", f"{model}={output}", "--gt", str(raw / "labelsTs")]
        what += ["--dataset-json", str(raw / "dataset.json")]
        output = output / "leaderboard"
    else:
        what = ["--models", model, "-f", str(study.fold)]
        output = results / model / "leaderboard"
    metrics = (("Dice", 4), ("HD95", 2))
    if study.merit:
        metrics = (("Dice", 4), ("Dice_merit", 4), ("HD95_merit", 2))
        what += ["--protocol", "merit", "--group-by", r"patient\d+"]
    subprocess.run(["nnunet-din", "leaderboard", "-d", study.dataset, *what, "-np", "1", "-o", str(output)], check=True)
    cases = pd.read_csv(output / "cases.csv")
    scores = {}
    for metric, digits in metrics:
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
        for structure in members[0]["scores"]["Dice"]:
            if structure not in ("mean", "sd over volumes"):
                row[structure] = f"{statistics.mean(100 * r['scores']['Dice'][structure] for r in members):.2f}"
        for key, heading, digits in (
            ("iterations", "iterations", 0),
            ("training_minutes", "training (min)", 0),
            ("seconds_per_epoch", "s / epoch", 1),
        ):  # which ensembles do not have
            values = [r[key] for r in members if key in r]
            row[heading] = f"{statistics.mean(values):.{digits}f}" if values else "-"
        memory = [r["peak_memory_gb"] for r in members if "peak_memory_gb" in r]
        row["memory (GB)"] = f"{max(memory):.1f}" if memory else "-"
        rows.append(row)
    return "\n".join(markdown_table(pd.DataFrame(rows)))


def peak_memory(run: dict) -> int:
    """Largest memory in bytes so far: tensors on the GPU, or the whole process."""
    if run["device"] == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # which Windows does not have

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
    write_text(path, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
