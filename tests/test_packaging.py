"""Wheel, installation and removal: the plug-in is where it must be, in regular and editable installs, and leaves no
trace.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nnunet_din.plugin import CLASSES

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command, cwd=None) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of what git tracks, or of the folder where there is no git: building leaves files behind."""
    target = tmp_path_factory.mktemp("sources")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0, "the tests run in a git checkout"
    for name in filter(None, listed.stdout.splitlines()):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    return target


def test_wheel_holds_the_packages_and_the_start_up_file(sources, tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", sources, "-w", tmp_path)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert (
        "nnunet_din.pth" in names and "nnunet_din/planners/din_planners.py" in names and "nnunet_din/py.typed" in names
    )
    tops = {name.split("/")[0] for name in names}
    assert tops == {"nnunet_din", "nnunet_din.pth", next(t for t in tops if t.endswith(".dist-info"))}, (
        "no generic name in site-packages"
    )
    tracked = {p.name for folder in ("planners", "trainers") for p in (sources / folder).glob("*.py")}
    assert tracked <= {Path(n).name for n in names}
    modules = {p.relative_to(sources).as_posix() for p in (sources / "nnunet_din").rglob("*.py")}
    assert modules <= set(names), "every package is named in setup.cfg"
    workflow = "runs/crossval/workflow"
    files = {
        f"{workflow}/Snakefile",
        f"{workflow}/slurm/config.yaml",
        "evaluation/published.csv",
        "evaluation/report.html",
    }
    assert {f"nnunet_din/{file}" for file in files} <= set(names)


@pytest.mark.parametrize("flags", [(), ("-e",)], ids=["regular", "editable"])
def test_install_and_uninstall_without_a_trace(sources, tmp_path, flags):
    run(sys.executable, "-m", "venv", tmp_path / "env")
    scripts = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / "python"
    purelib = Path(run(python, "-c", "from sysconfig import get_path; print(get_path('purelib'))"))
    before = set(purelib.iterdir())
    # Our package only: nnU-Net itself is not needed to see whether the plug-in becomes active.
    run(python, "-m", "pip", "install", "--no-deps", "-q", *flags, sources)
    assert (purelib / "nnunet_din.pth").exists()
    probe = "import sys; print('nnunet_din' in sys.modules, type(sys.meta_path[0]).__module__)"
    assert run(python, "-c", probe, cwd=tmp_path) == "True nnunet_din.plugin"
    assert run(python, "-c", "from nnunet_din.plugin import CLASSES; print(len(CLASSES))", cwd=tmp_path) == str(
        len(CLASSES)
    )
    run(python, "-m", "pip", "uninstall", "-y", "-q", "nnunet-din")
    left = {p for p in set(purelib.iterdir()) - before if p.name != "__pycache__"}
    assert not left
    assert run(python, "-c", probe.replace(", type(sys.meta_path[0]).__module__", ""), cwd=tmp_path) == "False"


def test_works_where_nnunet_is_an_editable_install(tmp_path):
    """A stand-in for nnunetv2 that is found by a finder of its own, as editable installs are."""
    package = tmp_path / "elsewhere" / "nnunetv2" / "utilities"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "find_class_by_name.py").write_text(
        "def recursive_find_python_class(folder, class_name, current_module):\n    return 'stock'\n"
    )
    code = f"""
import sys
from importlib.machinery import PathFinder
class Editable:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return PathFinder.find_spec(name, [{str(tmp_path / "elsewhere")!r}]) if name == "nnunetv2" else None
sys.meta_path = [f for f in sys.meta_path if getattr(f, "__name__", "") != "PathFinder"] + [Editable, PathFinder]
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
print(find("", "SomeClass", ""), hasattr(find, "__nnunet_din__"))
"""
    assert run(sys.executable, "-c", code, cwd=tmp_path).splitlines()[-1] == "stock True"
