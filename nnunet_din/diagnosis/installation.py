"""Packages, and whether nnU-Net finds the plug-in."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata

from nnunet_din.diagnosis.check import Check
from nnunet_din.plugin import CLASSES, LOOKUP_FUNCTION, LOOKUP_MODULE, WEIGHTS_FUNCTION, WEIGHTS_MODULE

#: In the order in which one fault causes the next: timm imports torchvision, which loads what it was built against.
PACKAGES = ("torch", "torchvision", "nnunetv2", "timm")
_REINSTALL_TORCH = (
    "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu (or /cu130, or "
    "another of CUDA's): both of one build, from one index."
)
_REINSTALL = "pip install --force-reinstall --no-deps nnunet-din, in the environment that runs nnU-Net."


def versions() -> Iterator[Check]:
    """Look at Python and at the packages that the rest stands on.

    Yields
    ------
    Check
        Whether each is there, of a version that is known to work, and can be imported.
    """
    yield Check("python", sys.version_info >= (3, 10), platform.python_version(), "use Python 3.10 or newer.")
    yield from map(_package, PACKAGES)


def _package(name: str) -> Check:
    """Whether a package is there, as this one asks for it, and can be imported."""
    from packaging.requirements import Requirement

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install {name}")
    for wanted in map(Requirement, metadata.requires("nnunet-din") or ()):
        if wanted.name == name and not wanted.specifier.contains(version, prereleases=True):
            bounds = ",".join(sorted(map(str, wanted.specifier), reverse=True))
            return Check(name, False, version, f'pip install "{name}{bounds}"')
    try:
        with warnings.catch_warnings():  # what is deprecated inside other packages is not this report's
            warnings.simplefilter("ignore", FutureWarning)
            import_module(name)
    except Exception as error:  # a broken binary dependency raises anything
        found = f"{version}, but the import fails: {str(error).strip().splitlines()[0]}"
        return Check(name, False, found, _REINSTALL_TORCH)
    return Check(name, True, version)


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
