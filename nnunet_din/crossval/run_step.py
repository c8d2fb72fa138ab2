"""Runs one step of a workflow: ``python -m nnunet_din.crossval.run_step crossval.json STEP``.

It holds the step's lock, so that no step runs twice at the same time; takes GPUs that are free; goes on with what was
interrupted; and keeps the output in a log and a record that says how far it is. Its commands end with all their
processes when it is told to end, when it is killed, or when the run that it belongs to has ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nnunet_din.crossval.locks import gpus, held, is_held
from nnunet_din.crossval.state import BEAT, Record
from nnunet_din.crossval.steps import Step, shell_line
from nnunet_din.data.files import read_json, write_text
from nnunet_din.nnunet.commandline import last_lines, running

_POLL = 0.5  # s


class Stopped(BaseException):
    """The step was told to end."""


def main(arguments: Sequence[str]) -> int:
    """Run a step; returns the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    path, name = arguments
    configuration = read_json(Path(path))
    if name not in configuration["steps"]:
        print(f"{path} has no step {name}.", file=sys.stderr)
        return 2
    step = Step.from_json({"name": name, **configuration["steps"][name]})
    record = Record(Path(configuration["folder"]), name)
    notes: dict[str, Any] = {}
    code: int | None = None
    try:
        waiting = f"{name} is still running from before: waiting for its end"
        with held(record.lock, waiting), _held_log(record.log, waiting) as log:
            notes = {
                "step": configuration["steps"][name],
                "host": socket.gethostname(),
                "process": os.getpid(),
                "started": time.time(),
                "commands": [],
            }
            _write(record, notes)
            try:
                code = _run(step, configuration, record, log, notes)
            finally:
                _write(record, {**notes, "ended": time.time(), "code": code})
    except (Stopped, KeyboardInterrupt):
        print(f"{name}: stopped.", file=sys.stderr)
        return 130
    return code


def _stop(*_: object) -> None:
    raise Stopped


@contextmanager
def _held_log(path: Path, waiting: str) -> Iterator[IO]:
    """Open the log of a step, once no other process holds it.

    The kernel takes the lock of an open file away when the last process that has inherited it has ended. So the
    processes of a command hold the log after its runner was killed.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        except OSError:  # of a file system without locks, about which `held` has printed a note
            pass
        yield log


def _write(record: Record, notes: Mapping[str, Any]) -> None:
    write_text(record.path, json.dumps(notes, indent=1))


def _run(step: Step, configuration: Mapping[str, Any], record: Record, log: IO, notes: dict[str, Any]) -> int:
    """Run what is left of a step, and return its exit code."""
    run_lock = configuration["run_lock"]

    def check() -> None:
        if run_lock and not is_held(Path(run_lock)):
            raise Stopped

    check()
    commands = step.left()
    if not commands:
        print(f"{step.name}: finished before", flush=True)
        return 0
    with ExitStack() as stack:
        environment = dict(step.environment or {})
        if step.gpus and configuration["gpus"]:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(stack.enter_context(gpus(configuration["gpus"], step.gpus)))
        splits = Path(configuration["splits"])
        if step.kind == "train" and not splits.is_file():
            # The first training writes them. The others wait until they are there.
            first = stack.enter_context(ExitStack())
            first.enter_context(held(splits.with_name(".splits.lock"), waiting="waiting for the splits"))
        else:
            first = ExitStack()
        for command in commands:
            line = shell_line(command, environment)
            notes["commands"] = [*notes["commands"], line]
            _write(record, notes)
            print(f"$ {line}", flush=True)

            def poll() -> None:
                check()
                if splits.is_file():
                    first.close()

            log.write(f"$ {line}\n")
            log.flush()
            code = _call(command, {**os.environ, **environment}, record, log, poll)
            if code:
                print(f"{step.name} failed with exit code {code}. The last lines of {record.log}:", file=sys.stderr)
                print("\n".join(last_lines(record.log)), file=sys.stderr)
                return code
    if step.kind == "train" and not step.files().complete():
        print(f"{step.name} has ended without an error, and without a final checkpoint and scores.", file=sys.stderr)
        return 1
    return 0


def _call(
    command: Sequence[str], environment: Mapping[str, str], record: Record, log: IO, poll: Callable[[], None]
) -> int:
    """Run a command with its output in the step's log, and return its exit code."""
    if shutil.which(command[0]) is None:
        log.write(f"The command {command[0]} is not on the PATH.\n")
        log.flush()
        return 127
    beat = time.monotonic()
    with running(command, log, environment) as process:
        while True:
            try:
                return process.wait(timeout=_POLL)
            except subprocess.TimeoutExpired:
                poll()
            if time.monotonic() - beat > BEAT:
                beat = time.monotonic()
                with suppress(OSError):  # a sign of life is not worth a training
                    os.utime(record.path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
