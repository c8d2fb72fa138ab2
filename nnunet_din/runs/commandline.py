"""nnU-Net's own commands, run from Python: their environment, progress and failures."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nnunet_din.nnunet.training_log import number_of_epochs, read_line

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_LOG_TAIL = 25  # lines
_POLL = 0.5  # s
#: Seconds that a command has to end by itself.
_GRACE = 10.0
#: Shell script that becomes the command. A second process in the same group kills the group when the script's standard
#: input is closed, which also happens when the process at the other end of this pipe is killed.
_GUARD = 'exec 3<&0; (trap "" TERM; read -r _ <&3; kill -KILL 0) & exec "$@" </dev/null 3<&-'


class CommandError(RuntimeError):
    """A command cannot be run, or fails; the message is one sentence for the user."""


class Progress:
    """What a running command has done so far; this one knows nothing and shows the time only."""

    unit = ""
    total: int | None = None

    def read(self, line: str) -> str | None:
        """Take in a line of the command's output; returns a message if the line says something worth telling."""

    def count(self) -> int:
        """Return how many units are done."""
        return 0


class FileProgress(Progress):
    """Counts the files that a command writes for each case."""

    unit = "cases"
    total: int

    def __init__(self, total: int, folder: Path, pattern: str):
        self.total = total
        self.folder = folder
        self.pattern = pattern
        # Files of an earlier run do not count until they are written again.
        self.start = time.time()

    def count(self) -> int:
        written = [path for path in self.folder.glob(self.pattern) if path.stat().st_mtime >= self.start]
        return min(len(written), self.total)


class EpochProgress(Progress):
    """Reads the lines that nnU-Net's trainer prints about each epoch."""

    unit = "epochs"

    def __init__(self, debug_file: Path):
        self.debug_file = debug_file
        self.epoch = 0
        self.done = 0
        self.dice: float | None = None

    def read(self, line: str) -> str | None:
        key, value = read_line(line) or (None, math.nan)
        if key == "epoch":
            self.epoch = int(value)
            if self.total is None:
                self.total = number_of_epochs(self.debug_file)
        elif key == "mean_dice":
            self.dice = value
        elif key == "seconds":
            self.done = self.epoch + 1
            dice = "" if self.dice is None else f", Dice on random patches about {self.dice:.2f}"
            return f"epoch {self.done} of {self.total or '?'}: {value:.0f} s{dice}"
        elif "Training done" in line:
            return "training done, finishing"
        return None

    def count(self) -> int:
        return self.done


def child_environment(folder: Path, device: str) -> dict[str, str]:
    """Make the environment of nnU-Net's commands.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of the demo.
    device : str
        Where the commands compute. On "cpu" few workers are started, because each loads torch anew; values that the
        user has set win.

    Returns
    -------
    dict of str to str
        This process's environment with nnU-Net's settings.
    """
    environment = {**os.environ, **{name: str(folder / name) for name in FOLDERS}, "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        environment.setdefault("nnUNet_def_n_proc", "1")
        environment.setdefault("nnUNet_n_proc_DA", "0")
        # Threads that spin while they wait slow training down several times as soon as anything else wants a core.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment


def find_command(name: str) -> str:
    """Path of one of nnU-Net's commands, beside this Python if it is there, else on the PATH.

    Raises
    ------
    CommandError
        If the command is in neither place.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise CommandError(f"The command {name} is not installed; install nnU-Net with `pip install nnunetv2`.")
    return found


@contextmanager
def running(
    command: Sequence[str], output: IO | None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Run a command that outlives neither the block nor this process.

    At the end of the block a command that still runs is told to end, and killed ten seconds later. The processes that
    it has started are killed with it. If this process is killed, all of them are killed at once; not so on Windows.

    Parameters
    ----------
    command : sequence of str
        Program and its arguments.
    output : file or None
        File for everything that the command prints, in UTF-8. None: where this process prints.
    environment : mapping of str to str, optional
        Environment of the command; by default that of this process.

    Yields
    ------
    subprocess.Popen
        The running command.
    """
    guard = [] if os.name == "nt" else ["/bin/sh", "-c", _GUARD, "sh"]
    process = subprocess.Popen(
        [*guard, *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**(os.environ if environment is None else environment), "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        try:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        finally:
            process.kill()
            process.stdin.close()
            process.wait()


def run_step(command: Sequence[str], log: Path, environment: dict[str, str], progress: Progress | None = None) -> float:
    """Run one command, write its output to a log and show how far it is.

    Parameters
    ----------
    command : sequence of str
        Name of the command and its arguments.
    log : pathlib.Path
        File for everything that the command prints; made anew.
    environment : dict of str to str
        The command's environment.
    progress : Progress, optional
        Tells how far the command is. By default only the time is shown.

    Returns
    -------
    float
        Duration of the command in s.

    Raises
    ------
    CommandError
        If the command is not installed or fails; the end of its log has been printed then.
    """
    from tqdm import tqdm

    progress = progress or Progress()
    print(f"  $ {shlex.join(command)}", flush=True)
    executable = find_command(command[0])
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    live = sys.stdout.isatty()
    counted = "{bar:24} {n_fmt}/{total_fmt} {unit} " if progress.unit else ""
    with log.open("wb") as output, log.open(encoding="utf-8", errors="replace") as lines:
        bar = tqdm(
            total=progress.total,
            unit=progress.unit,
            file=sys.stdout,
            disable=not live,
            leave=False,
            bar_format=f"  {counted}[{{elapsed}}]{{postfix}}",
        )
        with bar, running([executable, *command[1:]], output, environment) as process:
            ended, rest = False, ""
            while not ended:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_POLL)
                    ended = True
                *complete, rest = (rest + lines.read()).split("\n")
                for message in filter(None, map(progress.read, complete)):
                    if live:
                        bar.set_postfix_str(message, refresh=False)
                    else:
                        print(f"  {message}", flush=True)
                bar.total, bar.n = progress.total, progress.count()
                bar.refresh()
    seconds = time.monotonic() - begin
    if process.returncode != 0:
        tail = last_lines(log)
        print(f"  failed after {duration(seconds)}. The last lines of {log}:", flush=True)
        print("\n".join(f"  | {line}" for line in tail), flush=True)
        raise CommandError(f"{command[0]} failed with exit code {process.returncode}; its whole output is in {log}.")
    print(f"  done in {duration(seconds)}, log: {log}", flush=True)
    return seconds


def last_lines(log: Path, number: int = _LOG_TAIL) -> list[str]:
    """The last lines of a log; none where there is no log."""
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-number:]


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
