"""Run the quick tests with the oldest and the newest versions of everything the package depends on.

    python scripts/test_dependencies.py                       # both, with this Python
    python scripts/test_dependencies.py lowest --python 3.10

`lowest` is the oldest allowed version of every direct dependency, `newest` the newest release of all of them. Each gets
an environment of its own in a temporary folder (about 7 GB). Prints a row of a table for each.
Needs Python 3.11 and uv, which finds the versions: `pip install uv`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
#: What the tools need newer, and nothing but reading versions is done with here.
OF_TOOLS = ("packaging",)
#: The versions that a row names.
SHOWN = ("torch", "nnunetv2", "timm", "numpy", "scipy", "pandas", "monai", "matplotlib")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=(*RESOLUTIONS, []), help="default: both")
    parser.add_argument("--python", default=sys.executable, help="version or path of the interpreter")
    parser.add_argument("-n", default="2", metavar="WORKERS", help="tests at a time (default: 2)")
    args = parser.parse_args()
    failed = False
    for which in args.which or RESOLUTIONS:
        with tempfile.TemporaryDirectory() as folder:
            python = environment(Path(folder) / "venv", args.python, RESOLUTIONS[which])
            outcome = run_tests(python, args.n)
            versions = installed(python)
        failed |= "failed" in outcome or "error" in outcome
        shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN)
        print(f"| {which} | {date.today()} | {versions['python']} | {shown} | {outcome} |", flush=True)
    sys.exit(failed)


def environment(folder: Path, python: str, resolution: str) -> Path:
    """Make an environment with the package and what its tests need; returns its interpreter."""
    subprocess.run(["uv", "venv", "-q", "--python", python, folder], check=True)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = ["uv", "pip", "install", "-q", "--python", interpreter]
    subprocess.run([*install, "--resolution", resolution, "-e", ROOT], check=True)
    # The tests' own tools have no floors. What the package depends on stays, whatever the tools ask for.
    chosen = installed(interpreter)
    stays = folder / "stays.txt"
    stays.write_text("".join(f"{name}=={chosen[name]}\n" for name in direct_dependencies() if name not in OF_TOOLS))
    subprocess.run([*install, "--override", stays, "-e", f"{ROOT}[test]"], check=True)
    return interpreter


def direct_dependencies() -> list[str]:
    """Names of what the package depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [canonicalize_name(Requirement(each).name) for each in project["dependencies"]]


def run_tests(python: Path, workers: str) -> str:
    """The last line of the quick tests."""
    command = [python, "-m", "pytest", "-q", "-n", workers, "--dist", "loadfile", "-p", "no:cacheprovider"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", file=sys.stderr, flush=True)
        last = line.strip() or last
    process.wait()
    return re.sub(r"^=+ | =+$", "", last)


def installed(python: Path) -> dict[str, str]:
    """Versions of the interpreter and of the packages in its environment."""
    listing = subprocess.run(
        ["uv", "pip", "list", "-q", "--python", python, "--format", "freeze"],
        check=True,
        capture_output=True,
        text=True,
    )
    pairs = (line.split("==", 1) for line in listing.stdout.split() if "==" in line)
    versions = {canonicalize_name(name): version for name, version in pairs}
    version = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"], check=True, capture_output=True, text=True
    )
    return {**versions, "python": f"{version.stdout.strip()}, {platform.system()}"}


if __name__ == "__main__":
    main()
