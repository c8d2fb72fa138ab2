"""Packages, and whether nnU-Net finds the plug-in."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from typing import TYPE_CHECKING

from nnunet_din.diagnosis.check import Check
from nnunet_din.plugin import CLASSES, LOOKUP_FUNCTION, LOOKUP_MODULE, WEIGHTS_FUNCTION, WEIGHTS_MODULE

if TYPE_CHECKING:
    import torch

#: In the order in which one fault causes the next: timm imports torchvision, which loads what it was built against.
PACKAGES = ("torch", "torchvision", "nnunetv2", "timm")
#: Where torch's own index has its builds, by their local version (``cpu``, ``cu130``).
TORCH_INDEX = "https://download.pytorch.org/whl/"


def _requirement(name: str):
    """What this package asks of another one, in packaging's form; None where it is not installed as a package."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("nnunet-din") or ()]
    except metadata.PackageNotFoundError:
        return None
    return next((requirement for requirement in wanted if requirement.name == name), None)


def versions() -> Iterator[Check]:
    """Look at Python and at the packages that the rest stands on.

    Yields
    ------
    Check
        Whether each is there, of a version that is known to work, and can be imported.
    """
    yield Check("python", sys.version_info >= (3, 10), platform.python_version(), "use Python 3.10 or newer.")
    for name in PACKAGES:
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
                    module = __import__(name)
            except Exception as error:  # a broken binary dependency raises anything
                ok, version = False, f"{version}, but the import fails: {str(error).strip().splitlines()[0]}"
                do = _reinstall_torch()
            else:
                if name == "torchvision" and (other := _another_build(module.__version__)):
                    ok, do = False, _reinstall_torch()
                    version = f"{module.__version__} was built for another torch than {other}"
        yield Check(name, ok, version, do)


def _another_build(torchvision_version: str) -> str | None:
    """The version of torch, where torchvision was built for another device than it: one for the CPU, one for CUDA."""
    import torch

    builds = [version.partition("+")[2] for version in (torchvision_version, torch.__version__)]
    return torch.__version__ if all(builds) and builds[0] != builds[1] else None


def _reinstall_torch() -> str:
    """The command that brings torch and torchvision from one place."""
    try:
        build = metadata.version("torch").partition("+")[2]
    except metadata.PackageNotFoundError:
        build = ""
    index = f" --index-url {TORCH_INDEX}{build}" if build else ""
    return f"pip install --force-reinstall torch torchvision{index}: both of one build, from one index."


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
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", errors="replace")
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(result.stdout.strip().splitlines()[-1])


_REINSTALL = "pip install --force-reinstall --no-deps nnunet-din, in the environment that runs nnU-Net."


def classes() -> Iterator[Check]:
    """Let nnU-Net look up every class of the plug-in.

    Yields
    ------
    Check
        Whether it finds them in this process, and in a spawned worker.
    """
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


def fine_tuning() -> Check:
    """Whether ``-pretrained_weights`` reaches this package."""
    try:
        function = getattr(import_module(WEIGHTS_MODULE), WEIGHTS_FUNCTION)
    except (ImportError, AttributeError) as error:
        return Check("-pretrained_weights", False, f"{type(error).__name__}: {error}", _REINSTALL)
    ok = hasattr(function, "__nnunet_din__")
    found = "takes DIN's networks with other classes and channels" if ok else "is nnU-Net's own alone"
    return Check("-pretrained_weights", ok, found, _REINSTALL)


def compilation(device: torch.device) -> Check:
    """Whether ``torch.compile`` has what it needs, where nnU-Net uses it: a C compiler, Python's headers, triton, and a
    GPU that triton knows.
    """
    from nnunet_din.nnunet.training_device import compiles

    name, switch_off = "torch.compile", "set nnUNet_compile to f, which trains without it."
    if not compiles(device):
        why = (
            "nnUNet_compile switches it off" if device.type == "cuda" else f"nnU-Net compiles nothing on {device.type}"
        )
        return Check(name, True, f"not used: {why}")
    missing = []
    if not shutil.which(os.environ.get("CC", "cc")) and not any(map(shutil.which, ("gcc", "clang"))):
        missing.append("a C compiler (gcc)")
    if not Path(get_path("include"), "Python.h").is_file():
        missing.append(f"Python's headers ({platform.system()} package python3-dev)")
    if not find_spec("triton"):
        missing.append("triton (pip install triton)")
    if missing:
        return Check(name, False, f"missing: {', '.join(missing)}", f"install what is missing, or {switch_off}")
    if device.type == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability(device)
        if major < 7:
            return Check(name, False, f"triton needs compute capability 7.0, this GPU has {major}.{minor}", switch_off)
    return Check(name, True, "used; a C compiler, Python's headers and triton are there")
