"""Has Snakemake run a cross-validation, and shows how far it is."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunet_din.crossval.locks import held
from nnunet_din.crossval.models import Cluster
from nnunet_din.crossval.state import FoldState, Record, aligned, fold_state, table
from nnunet_din.crossval.steps import CrossValidation, Step, shell_line
from nnunet_din.data.files import read_json, write_text
from nnunet_din.nnunet.commandline import last_lines
from nnunet_din.nnunet.folders import nnunet_folder

WORKFLOW = Path(__file__).parent / "workflow" / "Snakefile"
_POLL = 1.0  # s
#: Seconds between two lines about a fold where there is no terminal.
_INTERVAL = 30.0
#: Lines of a failed step's log in the table at the end.
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
    if sys.version_info < (3, 11):
        raise ValueError(
            "The steps are run by Snakemake, which needs Python 3.11 or newer, and this is "
            f"{'.'.join(map(str, sys.version_info[:2]))}. Install it into an environment of its own, `pip install "
            "snakemake snakemake-executor-plugin-slurm`, and put its `snakemake` on the PATH; or let --dry-run print "
            "the commands."
        )
    raise ValueError(
        'The steps are run by Snakemake, which is not installed: `pip install "nnunet-din[crossval]"`, or put the '
        "`snakemake` of another environment on the PATH; or let --dry-run print the commands."
    )


def configuration(crossval: CrossValidation, execution: Execution, run_lock: Path | None) -> dict[str, Any]:
    """What the workflow reads: steps, resources, and how a step is run."""
    steps = {step.name: {k: v for k, v in asdict(step).items() if k != "name"} for step in crossval.steps()}
    resources = execution.cluster if execution.executor == "slurm" else Cluster()
    return {
        "dataset": crossval.dataset,
        "models": {model.name: {"folder": model.folder, "folds": list(model.folds)} for model in crossval.models},
        "folder": str(crossval.folder),
        "splits": str(nnunet_folder("nnUNet_preprocessed") / crossval.dataset / "splits_final.json"),
        "run_lock": run_lock and str(run_lock),
        "gpus": list(execution.gpus),
        "retries": execution.retries,
        "setup": list(resources.setup),
        "resources": {"gpu": dict(resources.gpu), "cpu": dict(resources.cpu)},
        "steps": steps,
    }


def export_workflow(crossval: CrossValidation, execution: Execution, folder: Path) -> list[Path]:
    """Write the workflow and its configuration, to be changed and run by hand; returns the files."""
    content = _with_runner(configuration(crossval, execution, None), folder / "crossval.json")
    write_text(folder / "Snakefile", WORKFLOW.read_text(encoding="utf-8"))
    write_text(folder / "crossval.json", json.dumps(content, indent=1))
    return [folder / "Snakefile", folder / "crossval.json"]


def _with_runner(content: dict[str, Any], path: Path) -> dict[str, Any]:
    run = [sys.executable, "-m", "nnunet_din.crossval.run_step", str(path.absolute())]
    return {**content, "run": shlex.join(run)}


def dry_run(crossval: CrossValidation, execution: Execution) -> Iterator[str]:
    """Lines of shell that do what is left, one after the other."""
    yield from execution.cluster.setup if execution.executor == "slurm" else ()
    for step in crossval.steps():
        if step.chosen and not Path(step.chosen["information"]).is_file():
            yield f"# {step.name}: what nnU-Net chooses, by nnUNetv2_ensemble and nnUNetv2_apply_postprocessing"
            continue
        environment = dict(step.environment or {})
        if step.gpus and execution.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(execution.gpus[: step.gpus])
        commands = step.left()
        yield f"# {step.name}" + ("" if commands else ": done")
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
    folder = crossval.folder
    lock = folder / "locks" / "run.lock"
    try:
        with held(lock, timeout=3):
            note = {"host": socket.gethostname(), "process": os.getpid(), "since": _now()}
            write_text(folder / "run.json", json.dumps(note))
            content = configuration(crossval, execution, lock if execution.executor == "local" else None)
            content = _with_runner(content, folder / "crossval.json")
            mark(crossval.steps(), content, folder)
            write_text(folder / "crossval.json", json.dumps(content, indent=1))
            _call([*snakemake, *snakemake_arguments(execution, folder)], crossval, folder)
            return report(crossval, folder)
    except TimeoutError:
        other = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
        raise ValueError(
            f"A cross-validation of {crossval.dataset} is running already, process {other.get('process', '?')} on "
            f"{other.get('host', '?')} since {other.get('since', '?')}: `nnunet-din status -d {crossval.number}` shows "
            "how far it is."
        ) from None


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def snakemake_arguments(execution: Execution, folder: Path) -> list[str]:
    """Arguments of Snakemake."""
    # nnU-Net's files say what is finished, not Snakemake's metadata; and the lock is ours, because Snakemake's outlives
    # a process that is killed.
    arguments = [
        "--snakefile", str(WORKFLOW), "--configfile", str(folder / "crossval.json"), "--directory", str(folder),
        "--keep-going", "--rerun-triggers", "mtime", "--nolock", "--drop-metadata", "--rerun-incomplete",
        "--scheduler", "greedy", "--latency-wait", "60", "--executor", execution.executor,
    ]  # fmt: skip
    if execution.executor == "slurm":
        # As a profile, because what is said in the user's profile, which comes later, goes before it.
        profiles = [str(_write_cluster_profile(execution, folder)), *([execution.profile] if execution.profile else [])]
        arguments += [word for profile in profiles for word in ("--profile", profile)]
        return [*arguments, "--resources", "choosing=1"]
    if execution.profile:
        arguments += ["--profile", execution.profile]
    # A core more than trainings, for what needs no GPU; on the CPU one after the other.
    cores = len(execution.gpus) + 1 if execution.gpus else 1
    return [*arguments, "--cores", str(cores), "--resources", "choosing=1", f"gpu={len(execution.gpus) or 1}"]


def _write_cluster_profile(execution: Execution, folder: Path) -> Path:
    """What Snakemake takes for Slurm where nothing else is said."""
    # Without default resources of ours Snakemake asks for 1 GB of memory.
    content: dict[str, Any] = {
        "jobs": "unlimited", "default-resources": ["tmpdir=system_tmpdir"], "slurm-requeue": True,
    }  # fmt: skip
    accounts = ("slurm_account" in resources for resources in (execution.cluster.gpu, execution.cluster.cpu))
    if not execution.profile and not any(accounts):
        content["slurm-no-account"] = True
    write_text(folder / "profile" / "config.yaml", json.dumps(content, indent=1))
    return folder / "profile"


def mark(steps: Sequence[Step], content: Mapping[str, Any], folder: Path) -> None:
    """Bring Snakemake's marks of finished steps to what is on the disk.

    Trainings and preparations are finished where nnU-Net's files say so; other steps where they have succeeded with the
    same commands. No mark is dated in the future, as files are where a clock was set back or that of a file server is
    ahead: Snakemake would take all that follows for out of date until then.
    """
    now = time.time()
    for step in steps:
        path = folder / "done" / step.name
        if step.kind == "train":
            files = step.files()
            finished, since = files.complete(), files.summary.stat().st_mtime if files.complete() else 0.0
        elif step.kind == "prepare":
            # Nothing is done again because plans are newer than a training.
            finished, since = not step.commands, 1.0
        else:
            record = Record(folder, step.name)
            same = json.loads(json.dumps(content["steps"][step.name])) == record.read().get("step")
            finished, since = path.exists() and record.status() == "succeeded" and same, 0.0
        if not finished:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.stat().st_mtime < since <= now:
            # Of a training by hand: what depends on it is out of date.
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (min(since, now),) * 2)
        elif path.stat().st_mtime > now:
            os.utime(path, (now, now))


def _die_with_parent() -> None:
    """Have the kernel end this process when the one that has started it ends, however it does; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _call(command: Sequence[str], crossval: CrossValidation, folder: Path) -> None:
    """Run Snakemake, and show what it does."""
    log = folder / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Commands are found as a shell would find them, and without an activated environment beside this Python.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    with log.open("a", encoding="utf-8") as output:
        output.write(f"{_now()} $ {shlex.join(command)}\n")
        output.flush()
        begin = output.tell()
        # Of a group of its own, because Ctrl-C is ours: it ends the steps by ending this run.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            with _display() as show:
                display = _Display(crossval.steps(), folder, show)
                while process.poll() is None:
                    display.update()
                    time.sleep(_POLL)
                display.update()
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)  # Snakemake cancels its jobs, those of a cluster, too
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    records = [Record(folder, step.name) for step in crossval.steps()]
    if process.returncode and not any(record.status() == "failed" for record in records):
        with log.open(encoding="utf-8", errors="replace") as lines:
            lines.seek(begin)
            print("Snakemake has ended with an error:", file=sys.stderr)
            print("".join(lines.readlines()[-25:]), file=sys.stderr)


Show = Callable[[Sequence[FoldState]], None]


@contextmanager
def _display() -> Iterator[Show]:
    """Shows one live line a fold in a terminal, or a line now and then."""
    if not sys.stdout.isatty():
        last: dict[tuple[str, str], tuple[float, str]] = {}

        def lines(states: Sequence[FoldState]) -> None:
            for state in states:
                when, text = last.get((state.model, state.fold), (0.0, ""))
                if time.monotonic() - when >= _INTERVAL and state.line() != text:
                    last[state.model, state.fold] = time.monotonic(), state.line()
                    print(f"  {state.line()}", flush=True)

        yield lines
        return
    from tqdm import tqdm

    bars: list[tqdm] = []

    def live(states: Sequence[FoldState]) -> None:
        while len(bars) < len(states):
            bars.append(tqdm(bar_format="{desc}", position=len(bars), leave=False, file=sys.stdout))
        while len(bars) > len(states):
            bars.pop().close()
        for bar, state in zip(bars, states, strict=True):
            bar.set_description_str(f"  {state.line()}")

    try:
        yield live
    finally:
        live(())


class _Display:
    """Prints each command when it begins, and each step that has ended; shows the trainings that are running."""

    def __init__(self, steps: Sequence[Step], folder: Path, show: Show):
        self.steps = [(step, Record(folder, step.name)) for step in steps]
        self.show = show
        self.begin = time.time()
        self.printed: dict[str, tuple[float, int, bool]] = {}

    def update(self) -> None:
        """Look at the records of all steps."""
        running = []
        for step, record in self.steps:
            notes = record.read()
            started = notes.get("started", 0.0)
            if started < self.begin - 1:
                continue
            since, lines, ended = self.printed.get(step.name, (0.0, 0, False))
            if since != started:
                lines, ended = 0, False
            for line in notes["commands"][lines:]:
                self._print(f"[{step.name}] $ {line}")
            if "ended" in notes and not ended:
                how = {"succeeded": "done", "failed": f"FAILED, see {record.log}"}.get(record.status(), "stopped")
                if notes["commands"]:
                    self._print(f"[{step.name}] {how} after {(notes['ended'] - started) / 60:.1f} min")
            self.printed[step.name] = started, len(notes["commands"]), "ended" in notes
            if step.kind == "train" and "ended" not in notes:
                running.append(_state(step, record))
        self.show(running)

    @staticmethod
    def _print(line: str) -> None:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def _state(step: Step, record: Record) -> FoldState:
    _, model, fold = step.name.split("/")
    return fold_state(model, fold.removeprefix("fold_"), step.files(), record)


def report(crossval: CrossValidation, folder: Path) -> int:
    """Print what is done, failed or missing; returns 0 if everything is done, else 1."""
    steps = crossval.steps()
    states = [_state(step, Record(folder, step.name)) for step in steps if step.kind == "train"]
    print(f"\n{table(states)}")
    rows = []
    for step in steps:
        if step.kind != "train":
            # A step that succeeded is out of date until its mark says so; preparations have no command left.
            finished = not step.commands if step.kind == "prepare" else (folder / "done" / step.name).exists()
            failed = Record(folder, step.name).status() == "failed"
            rows.append((step.name, "done" if finished else "failed" if failed else "missing"))
    print(f"\n{aligned(rows)}")
    for step in steps:
        record = Record(folder, step.name)
        finished = step.files().complete() if step.kind == "train" else (folder / "done" / step.name).exists()
        if record.status() == "failed" and not finished:
            print(f"\n{step.name} failed. The last lines of {record.log}:")
            print("\n".join(f"  | {line}" for line in last_lines(record.log, _TAIL)))
    done = all(state.status == "done" for state in states) and all(status == "done" for _, status in rows)
    if done:
        where = nnunet_folder("nnUNet_results") / crossval.dataset
        print(f"\nLeaderboard: {where / 'leaderboard'}\nnnU-Net's choice: {where / 'inference_instructions.txt'}")
        if crossval.test:
            print(f"Test images: {folder / 'predictions'}, {folder / 'leaderboard_test'}")
    else:
        print("\nThe same command goes on from here.")
    return 0 if done else 1
