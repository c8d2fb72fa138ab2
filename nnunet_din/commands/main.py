"""The command ``nnunet-din``: what nnU-Net's own commands do not do."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from nnunet_din import __version__
from nnunet_din.runs.commandline import CommandError

#: Modules of this folder. Each adds its sub-command with ``add_parser(subparsers)`` and sets ``run``, a function of the
#: parsed arguments that returns the exit code.
COMMANDS = (
    *("doctor", "enhance", "train_zero_dce", "profile", "demo", "convert", "configure", "crossval", "status"),
    *("leaderboard", "robustness", "corrupt", "figure", "curves", "predict", "export", "import_model"),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="nnunet-din",
        description="Companion of the Dual Interaction Network plug-in for nnU-Net v2. Planning, training and "
        "prediction are nnU-Net's own commands: nnUNetv2_plan_and_preprocess -pl nnUNetPlannerDIN, "
        "nnUNetv2_train -tr nnUNetTrainerDIN -p nnUNetDINPlans, nnUNetv2_predict.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet-din {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"nnunet_din.commands.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _prepare_streams()
    try:
        args = build_parser().parse_args(argv)
        return _run(args)
    finally:
        _flush()


def _run(args: argparse.Namespace) -> int:
    """Run a command, and say in one line what files, streams and memory do to it."""
    try:
        code = args.run(args)
        sys.stdout.flush()  # the last lines may find that the disk is full, too
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        return 1
    except KeyboardInterrupt:
        return _end(args, "stopped.", code=130)
    except (ValueError, OSError, MemoryError, CommandError) as error:
        return _end(args, _words(error))
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded for its name
            return _end(args, f"the device has not enough memory: {str(error).partition('. ')[0]}.")
        traceback.print_exc()
        fault = (
            f"this is a fault of nnunet-din {__version__}. Please report it to its developers, with the lines above."
        )
        return _end(args, fault, code=70)


def _end(args: argparse.Namespace, message: str, code: int = 1) -> int:
    """Say in one line why a command ends; returns the exit code."""
    print(f"nnunet-din {args.command}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _words(error: Exception) -> str:
    """What an error says: ours and those of libraries are sentences, those of the operating system become one."""
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return str(error) or "there is not enough memory."


def _prepare_streams() -> None:
    """Let any name be printed, and nothing where a stream is closed.

    The first file that a process opens would get the number of a closed stream, and with it what libraries print.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write what is left, or leave it: Python would print a traceback at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
