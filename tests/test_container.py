"""The container's versions are ones that the package allows, and its build gets every file that it needs.

There is no container engine where the tests run: the image itself is not built here.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins():
    lines = (ROOT / "container" / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier) for r in requirements}


def test_every_version_is_pinned():
    assert all(re.fullmatch(r"==[\w.+]+", specifier) for specifier in pins().values())


def test_versions_are_what_the_package_allows():
    pinned = pins()
    needed = [Requirement(r) for r in metadata.requires("nnunet-din")]
    extras = ({"extra": extra} for extra in ("", "onnx", "tracking"))
    wanted = {r for extra in extras for r in needed if r.marker is None or r.marker.evaluate(extra)}
    assert {"torch", "onnxruntime", "tensorboard"} <= {r.name for r in wanted}
    for requirement in wanted:
        version = Version(pinned[canonicalize_name(requirement.name)].removeprefix("=="))
        assert version in requirement.specifier, requirement


def test_the_build_gets_its_files():
    """.dockerignore lets through what it names and nothing else."""
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let_through)
    assert {"pyproject.toml", "setup.cfg", "setup.py", "nnunet_din.pth", "README.md", "LICENSE"} <= let_through
    assert {"nnunet_din", "planners", "trainers", "container"} <= let_through


def test_the_image_is_pinned_and_its_user_has_no_privileges():
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", base)
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE) == ["nnunet"]
    cuda = pins()["cuda-toolkit"].removeprefix("==").split(".")[:2]
    assert base.removeprefix("nvidia/cuda:").split(".")[:2] == cuda, "as torch's wheels"
