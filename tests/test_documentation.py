"""The documentation: every module has its place in the API pages, and the notebook runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "python_api.ipynb"
LEFT_OUT = {
    "nnunet_din.network.containers",  # for the type checker
}


def test_every_module_has_its_place_in_the_api_pages():
    """Fails for a new module that docs/api does not name, and for a name that is no module any more."""
    shown = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    folders = {"nnunet_din": "nnunet_din", "planners": "nnunet_din.planners", "trainers": "nnunet_din.trainers"}
    files = {
        ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]): path
        for folder, package in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    packages = {name.removesuffix(".__init__") for name in files if name.endswith(".__init__")}
    modules = {name for name in files if not name.endswith(".__init__")}
    wanted = {name for name in modules - LEFT_OUT if not name.startswith("nnunet_din.commands.")}
    assert len(shown) == len(set(shown)) and wanted <= set(shown) <= wanted | packages


def test_notebook_is_stored_without_outputs():
    """Fails if somebody saves it as run: pictures and paths of a machine would get into the repository."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)


@pytest.mark.slow
def test_notebook_runs_and_its_network_learns(tmp_path):
    """Fails if a cell raises, shows no picture, or the loss does not fall."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import json; print(json.dumps(losses))"))
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    losses = json.loads(outputs[-1]["text"])
    assert losses[-1] < losses[0]
