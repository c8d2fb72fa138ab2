"""Has Snakemake run a cross-validation, and says how far it is."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_din.data.files import write_text
from nnunet_din.runs.commandline import last_lines, running
from nnunet_din.runs.crossval.locks import lock
from nnunet_din.runs.crossval.models import Cluster
from nnunet_din.runs.crossval.state import has_failed, states, step_log, table
from nnunet_din.runs.crossval.steps import CrossValidation, shell_line

_WORKFLOW = Path(__file__).parent / "workflow"
#: Seconds between two tables of the trainings that are running.
_INTERVAL = 60.0
#: Lines of a failed step's log that are shown at the end.
_TAIL = 10


@dataclass(frozen=True)
class Execution:
    """Where and how the steps run.

    Attributes
    ----------
    executor : {"local", "slurm"}
        Snakemake's executor.
    gpus : sequence of str
        Local GPUs, as ``CUDA_VISIBLE_DEVICES`` has them; as many trainings run at once. None named: one, where torch
        puts it.
    cluster : Cluster
        What jobs get from Slurm.
    retries : int
        How often a training that failed is tried again.
    profile : str or None
        A profile of Snakemake's.
    """

    executor: str = "local"
    gpus: Sequence[str] = ()
    cluster: Cluster = field(default_factory=Cluster)
    retries: int = 0
    profile: str | None = None


def snakemake_command() -> list[str]:
    """How Snakemake is called: that of this environment, else the one on the PATH.

    Raises
    ------
    ValueError
        If there is none; the message says how to get it.
    """
    if importlib.util.find_spec("snakemake"):
        return [sys.executable, "-m", "snakemake"]
    if found := shutil.which("snakemake"):
        return [found]
    raise ValueError(
        "The steps are run by Snakemake, which needs Python 3.11 or newer and is not installed: `pip install "
        '"nnunet-din[crossval]"`, or put the `snakemake` of another environment on the PATH (`pip install snakemake '
        "snakemake-executor-plugin-slurm`), or let --dry-run print the commands."
    )


def write_configuration(crossval: CrossValidation, execution: Execution, path: Path) -> dict[str, Any]:
    """Write what the workflow reads, and return it: steps that are left, resources, and how a step is run.

    A fold that is complete has no step, so that nothing can begin it again. Of it the others need its scores only.
    """
    ensembled = crossval.ensembled()
    steps = [step for step in crossval.steps() if step.kind != "train" or step.left()]
    resources = execution.cluster if execution.executor == "slurm" else Cluster()
    content = {
        "trainings": {
            model.folder: {"name": model.name, "folds": model.folds, "probabilities": model.name in ensembled}
            for model in crossval.models
        },
        "folder": str(crossval.folder),
        "preprocessed": str(crossval.preprocessed),
        "gpus": list(execution.gpus),
        "retries": execution.retries,
        "setup": resources.setup,
        "run": shlex.join([sys.executable, "-m", "nnunet_din.runs.crossval.run_step", str(path.absolute())]),
        "resources": {"gpu": resources.gpu, "cpu": resources.cpu},
        "steps": {step.name: {k: v for k, v in asdict(step).items() if k != "name"} for step in steps},
    }
    write_text(path, json.dumps(content, indent=1))
    return content


def export_workflow(crossval: CrossValidation, execution: Execution, folder: Path) -> list[Path]:
    """Write the workflow and its configuration, to be changed and run by hand; returns the files."""
    write_configuration(crossval, execution, folder / "crossval.json")
    workflow = (_WORKFLOW / "Snakefile").read_text(encoding="utf-8")
    return [write_text(folder / "Snakefile", workflow), folder / "crossval.json"]


def dry_run(crossval: CrossValidation, execution: Execution) -> Iterator[str]:
    """Lines of shell that do what is left, one after the other."""
    yield from execution.cluster.setup if execution.executor == "slurm" else ()
    for step in crossval.steps():
        try:
            commands = step.left()
        except FileNotFoundError:
            yield f"# {step.name}: what nnU-Net chooses, by nnUNetv2_ensemble and nnUNetv2_apply_postprocessing"
            continue
        yield f"# {step.name}" + ("" if commands else ": done")
        environment = step.environment(execution.gpus[: step.gpus])
        yield from (shell_line(command, environment) for command in commands)


def run(crossval: CrossValidation, execution: Execution) -> int:
    """Run what is left, and say at the end what is done, failed or missing.

    Returns
    -------
    int
        0 if everything is done, else 1.

    Raises
    ------
    ValueError
        If Snakemake is not installed, or another run of this data set is going on.
    """
    snakemake = snakemake_command()
    held = lock(crossval.folder / "run.lock")
    if held is None:
        raise ValueError(
            f"A cross-validation of {crossval.dataset} is running already: `nnunet-din status -d {crossval.number}` "
            "shows how far it is."
        )
    with held:
        content = write_configuration(crossval, execution, crossval.folder / "crossval.json")
        code = _call([*snakemake, *snakemake_arguments(content, execution)], crossval, content)
    print(f"\n{table(states(crossval.results, content['trainings']))}")
    if code == 0:
        print(f"\nLeaderboard: {crossval.results / 'leaderboard'}")
        print(f"nnU-Net's choice: {crossval.results / 'inference_instructions.txt'}")
        if crossval.test:
            print(f"Test images: {crossval.folder / 'predictions'}, {crossval.folder / 'leaderboard_test'}")
        return 0
    for log in (step_log(crossval.folder, name) for name in content["steps"]):
        if has_failed(log):
            print(f"\n{log} ends with:")
            print("\n".join(f"  | {line}" for line in last_lines(log, _TAIL)))
    print("\nNot everything is done. The same command goes on from here.")
    return 1


def snakemake_arguments(content: dict[str, Any], execution: Execution) -> list[str]:
    """Arguments of Snakemake for a configuration of the workflow."""
    folder, gpus = content["folder"], len(execution.gpus)
    unfinished = [step["output"] for name, step in content["steps"].items() if name.startswith(("prepare/", "train/"))]
    # The lock is ours, because Snakemake's outlives a process that is killed.
    arguments = [
        "--snakefile", str(_WORKFLOW / "Snakefile"), "--configfile", f"{folder}/crossval.json", "--directory", folder,
        "--keep-going", "--keep-incomplete", "--rerun-incomplete", "--nolock", "--rerun-triggers", "mtime", "params",
        *(("--forcerun", *unfinished) if unfinished else ()), "--scheduler", "greedy", "--executor", execution.executor,
        "--resources", "choosing=1",
    ]  # fmt: skip
    profiles = [execution.profile] if execution.profile else []
    if execution.executor == "slurm":
        # What is said in the user's profile, which comes later, goes before ours.
        profiles.insert(0, str(_WORKFLOW / "slurm"))
        accounts = ("slurm_account" in resources for resources in content["resources"].values())
        if not execution.profile and not any(accounts):
            arguments.append("--slurm-no-account")
    else:
        # A core more than trainings, for what needs no GPU; on the CPU one after the other.
        arguments += [f"gpu={gpus or 1}", "--cores", str(gpus + 1 if gpus else 1), "--quiet", "all"]
    return [*arguments, *(word for profile in profiles for word in ("--profile", profile))]


def _call(command: Sequence[str], crossval: CrossValidation, content: dict[str, Any]) -> int:
    """Run Snakemake, and now and then print how far the trainings are; returns the exit code."""
    shown = ""
    with running(command, None) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_INTERVAL)
                now = states(crossval.results, content["trainings"])
                text = table(state for state in now if state.status in ("running", "validating"))
                if text != shown and "\n" in text:
                    print(text, flush=True)
                shown = text
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)  # Snakemake cancels its jobs, those of a cluster, too
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            raise
