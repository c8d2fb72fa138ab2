"""Runs one step of a workflow: ``python -m nnunet_din.runs.crossval.run_step crossval.json STEP``.

It holds the log of the step, so that no step runs twice at the same time; takes GPUs that are free; and goes on with a
training that was interrupted. Its commands end with all their processes when it is told to end, and when it is killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from nnunet_din.data.files import read_json
from nnunet_din.runs.commandline import running
from nnunet_din.runs.crossval.locks import gpus, lock, wait_for
from nnunet_din.runs.crossval.state import FAILED, step_log
from nnunet_din.runs.crossval.steps import Step, shell_line, write_splits


def main(arguments: Sequence[str]) -> int:
    """Run a step; returns the exit code."""
    for signal_to_end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_to_end, lambda number, _: sys.exit(128 + number))
    path, name = arguments
    configuration = read_json(Path(path))
    step = Step(name, **configuration["steps"][name])
    log = step_log(Path(configuration["folder"]), name)
    with wait_for(lambda: lock(log), f"the end of {name}, which is still running from before") as output:
        commands = step.left()
        with gpus(configuration["gpus"], min(step.gpus if commands else 0, len(configuration["gpus"]))) as own:
            if step.kind == "train":
                write_splits(Path(configuration["preprocessed"]))
            for command in commands:
                if code := _call(name, command, step.environment(own), output):
                    return code
    if step.kind in ("prepare", "best"):
        Path(step.output).touch()
    return 0


def _call(step: str, command: Sequence[str], environment: Mapping[str, str], log: IO) -> int:
    """Run a command with its output in the step's log, and return its exit code."""
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{step}] {text}", flush=True)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=log, flush=True)

    say(f"$ {shell_line(command, environment)}")
    # Commands are found as a shell would find them, and without an activated environment beside this Python.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    with running(command, log, {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **environment}) as process:
        code = process.wait()
    how = f"{FAILED} with exit code {code}" if code else "done"
    say(f"{how} after {(time.monotonic() - begin) / 60:.1f} min")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
