"""``nnunet-din doctor``: whether nnU-Net finds the plug-in here, and what to do where it does not."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path

from nnunet_din.plugin import CLASSES, LOOKUP_FUNCTION, LOOKUP_MODULE, WEIGHTS_FUNCTION, WEIGHTS_MODULE

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass
class Check:
    """One line of the report: what was looked at, what was found, and what to do if it is wrong."""

    name: str
    ok: bool
    found: str
    do: str = ""

    def __post_init__(self):
        if self.ok:
            self.do = ""


def add_parser(subparsers) -> None:
    """Add the sub-command ``doctor`` to the parser of ``nnunet-din``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this environment",
        description="Check versions, whether nnU-Net finds the plug-in's classes here and in a spawned worker, the "
        "three nnU-Net folders, and memory. Exit code 1 if anything is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report, and return 1 if a check failed, else 0."""
    checks = examine()
    healthy = all(check.ok for check in checks)
    if args.json:
        print(json.dumps({"healthy": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok   ' if check.ok else 'WRONG'}  {check.name:<{width}}  {check.found}")
            if not check.ok:
                print(f"       -> do this: {check.do}")
        print("Everything is in place." if healthy else "Something is wrong: see the lines marked WRONG.")
    return 0 if healthy else 1


def examine() -> list[Check]:
    """Make all checks, in the order in which one fault causes the next."""
    checks = list(_versions())
    if all(check.ok for check in checks):
        checks += [_device(), *_classes(), _fine_tuning()]
    return [*checks, *_folders(), _memory()]


def _requirement(name: str):
    """What this package asks of another one, in packaging's form; None where it is not installed as a package."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("nnunet-din") or ()]
    except metadata.PackageNotFoundError:
        return None
    return next((requirement for requirement in wanted if requirement.name == name), None)


def _versions() -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 10), platform.python_version(), "use Python 3.10 or newer.")
    for name in ("torch", "nnunetv2", "timm"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, False, "not installed", f"pip install {name}")
            continue
        ok, do = True, ""
        if (wanted := _requirement(name)) and not wanted.specifier.contains(version, prereleases=True):
            bounds = sorted(map(str, wanted.specifier), reverse=True)
            ok, do = False, f'pip install "{name}{",".join(bounds)}"'
        else:
            try:
                with warnings.catch_warnings():  # what is deprecated inside other packages is not this report's
                    warnings.simplefilter("ignore", FutureWarning)
                    __import__(name)
            except Exception as error:  # a broken binary dependency raises anything
                ok, version = False, f"{version}, but the import fails: {error}"
                do = "reinstall torch and torchvision together, from one index: mismatched builds break timm."
        yield Check(name, ok, version, do)


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return Check(
            "device", True, f"cuda: {properties.name}, {properties.total_memory / 1e9:.0f} GB, trains in {precision}"
        )
    if torch.backends.mps.is_available():
        return Check("device", True, "mps; add `-device mps` to nnUNetv2_train and nnUNetv2_predict")
    return Check(
        "device", True, f"cpu, {os.cpu_count()} cores; add `-device cpu` to nnUNetv2_train and nnUNetv2_predict"
    )


#: Evaluated where the look-up is to be tried: class name -> name of the module that nnU-Net's look-up finds it in. The
#: folder does not exist, so that only the plug-in can give an answer.
_LOOK_UP = (
    f"{{name: getattr(getattr(__import__({LOOKUP_MODULE!r}, fromlist=['_']), {LOOKUP_FUNCTION!r})"
    f"('no_such_folder', name, 'nnunetv2'), '__module__', None) for name in {list(CLASSES)}}}"
)


def modules_found_here() -> dict[str, str | None]:
    """What nnU-Net's look-up finds in this process: class name -> module, None where nothing is found."""
    return eval(_LOOK_UP)


def modules_found_by_a_worker() -> dict[str, str | None]:
    """What the look-up finds in a worker spawned by a process that never imported this package, as nnU-Net's commands
    are.

    Raises
    ------
    RuntimeError
        If a look-up raises there; the message is the error's last line.
    """
    code = f"""
import json
from multiprocessing import get_context
with get_context("spawn").Pool(1) as pool:
    print(json.dumps(pool.apply(eval, ({_LOOK_UP!r},))))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(result.stdout.strip().splitlines()[-1])


_REINSTALL = "pip install --force-reinstall --no-deps nnunet-din, in the environment that runs nnU-Net."


def _classes() -> Iterator[Check]:
    for where, look_up in (("this process", modules_found_here), ("a spawned worker", modules_found_by_a_worker)):
        try:
            found = look_up()
        except Exception as error:  # whatever hinders the import of a class is the finding
            yield Check(f"names in {where}", False, f"{type(error).__name__}: {error}", _REINSTALL)
            continue
        missing = [name for name, module in CLASSES.items() if found[name] != module]
        text = f"{len(found) - len(missing)} of {len(found)} classes found"
        yield Check(
            f"names in {where}", not missing, text + (f"; missing: {', '.join(missing)}" if missing else ""), _REINSTALL
        )


def _fine_tuning() -> Check:
    """Whether ``-pretrained_weights`` reaches this package."""
    try:
        function = getattr(import_module(WEIGHTS_MODULE), WEIGHTS_FUNCTION)
    except (ImportError, AttributeError) as error:
        return Check("-pretrained_weights", False, f"{type(error).__name__}: {error}", _REINSTALL)
    ok = hasattr(function, "__nnunet_din__")
    found = "takes DIN's networks with other classes and channels" if ok else "is nnU-Net's own alone"
    return Check("-pretrained_weights", ok, found, _REINSTALL)


def _folders() -> Iterator[Check]:
    for name in FOLDERS:
        value = os.environ.get(name)
        if not value:
            yield Check(name, False, "not set", f"export {name}=/path/to/{name}")
            continue
        path = Path(value)
        if not path.is_dir():
            yield Check(name, False, f"{value} does not exist", f"mkdir -p {value}")
        elif name != "nnUNet_raw" and not os.access(path, os.W_OK):
            yield Check(
                name, False, f"{value} is not writable", f"make {value} writable, or set {name} to a folder that is"
            )
        else:
            yield Check(name, True, f"{value}, {shutil.disk_usage(path).free / 1e9:.0f} GB free")


def _memory() -> Check:
    """Main memory that programs can still get, where the operating system tells."""
    try:
        # Not sysconf's free pages: those leave out the file cache, which gives way.
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024 / 1e9
    except (OSError, StopIteration):
        return Check("memory", True, "free memory unknown on this system")
    enough = 4.0
    do = "close other programs, or give nnU-Net fewer worker processes (-np 1, nnUNet_n_proc_DA=1)."
    return Check("memory", free >= enough, f"{free:.1f} GB free", do)
