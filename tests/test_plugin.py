"""nnU-Net finds our classes by name, in this process and in others, and keeps finding its own."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_din import plugin


def run(code: str, *flags: str) -> str:
    result = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("name", plugin.CLASSES)
def test_every_name_of_the_table_exists(name):
    found = getattr(importlib.import_module(plugin.CLASSES[name]), name)
    assert found.__name__ == name and found.__module__ == plugin.CLASSES[name]


def test_every_trainer_and_planner_is_in_the_table():
    import nnunet_din.planners
    import nnunet_din.trainers

    for package in (nnunet_din.planners, nnunet_din.trainers):
        text = "".join(p.read_text() for folder in package.__path__ for p in Path(folder).glob("*.py"))
        assert not set(re.findall(r"^class (nnUNet\w+|\w+Preprocessor)\(", text, re.M)) - set(plugin.CLASSES)


def test_contract_with_nnunet():
    """The one function that the plug-in wraps is still there, with these arguments first. If not: see plugin.py."""
    module = importlib.import_module(plugin.LOOKUP_MODULE)
    function = getattr(module, plugin.LOOKUP_FUNCTION)
    original = inspect.unwrap(function)
    assert function is not original, "the look-up of the running process must be wrapped"
    assert list(inspect.signature(original).parameters)[:3] == ["folder", "class_name", "current_module"]
    # 2.8 gave the trainer look-up a module of its own; both go through the function.
    callers = (
        "nnunetv2.experiment_planning.plan_and_preprocess_api",
        "nnunetv2.utilities.plans_handling.plans_handler",
    )
    for name in callers:
        assert getattr(importlib.import_module(name), plugin.LOOKUP_FUNCTION) is function


def test_contract_of_pretrained_weights_with_nnunet():
    """So is the one behind `-pretrained_weights`, and `nnUNetv2_train` calls the wrapped one."""
    function = getattr(importlib.import_module(plugin.WEIGHTS_MODULE), plugin.WEIGHTS_FUNCTION)
    assert list(inspect.signature(inspect.unwrap(function)).parameters)[:2] == ["network", "fname"]
    assert inspect.unwrap(function) is not function
    assert getattr(importlib.import_module("nnunetv2.run.run_training"), plugin.WEIGHTS_FUNCTION) is function


def test_a_bare_interpreter_has_the_plugin_but_not_its_weight():
    out = run(
        "import sys; print('nnunet_din' in sys.modules, [m for m in ('torch', 'numpy', 'nnunetv2') "
        "if m in sys.modules])"
    )
    assert out == "True []"


LOOK_UP = """
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
import nnunetv2
from os.path import join
ours = find(join(nnunetv2.__path__[0], "preprocessing"), "DINPreprocessor", "nnunetv2.preprocessing")
stock = find(join(nnunetv2.__path__[0], "preprocessing"), "DefaultPreprocessor", "nnunetv2.preprocessing")
none = find(join(nnunetv2.__path__[0], "preprocessing"), "NoSuchPreprocessor", "nnunetv2.preprocessing")
print(ours.__module__, stock.__module__, none)
"""
FOUND = "nnunet_din.planners.din_preprocessor nnunetv2.preprocessing.preprocessors.default_preprocessor None"


def test_look_up_in_a_fresh_process():
    assert run(LOOK_UP).splitlines()[-1] == FOUND


def test_without_site_an_import_registers_also_after_nnunet():
    path = repr([p for p in sys.path if p])
    code = f"""
import sys; sys.path[:0] = {path}
from nnunetv2.utilities import find_class_by_name
import nnunetv2.preprocessing.normalization
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as early
import types; module = types.ModuleType("nnunetv2.made_up"); module.recursive_find_python_class = early
sys.modules[module.__name__] = module
import nnunet_din
print(module.recursive_find_python_class is find_class_by_name.recursive_find_python_class is not early)
"""
    # An editable install needs its own start-up file to be importable, which -S leaves out.
    if "site-packages" not in str(Path(plugin.__file__)):
        code = code.replace(
            "import nnunet_din\n", f"sys.path.insert(0, {str(Path(plugin.__file__).parents[1])!r})\nimport nnunet_din\n"
        )
    assert run(code, "-S").splitlines()[-1] == "True"


def test_register_twice_wraps_once():
    plugin.register()
    plugin.register()
    module = importlib.import_module(plugin.LOOKUP_MODULE)
    assert not hasattr(inspect.unwrap(getattr(module, plugin.LOOKUP_FUNCTION)), "__nnunet_din__")
    assert sum(isinstance(f, plugin._Finder) for f in sys.meta_path) <= 1


@pytest.mark.slow
def test_ours_are_found_although_a_module_of_nnunet_is_broken(tmp_path):
    """A module in the searched folder that cannot be imported hides every class behind it, but not ours."""
    (tmp_path / "a_broken.py").write_text("import does_not_exist_anywhere")
    code = f"""
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
print(find({str(tmp_path)!r}, "nnUNetTrainerDIN", None).__name__)
"""
    assert run(code).splitlines()[-1] == "nnUNetTrainerDIN"


def test_the_start_up_file_never_raises(tmp_path):
    """Whatever state the package is in, Python starts and says nothing."""
    line = (Path(__file__).parents[1] / "nnunet_din.pth").read_text()
    (tmp_path / "nnunet_din").mkdir()
    (tmp_path / "nnunet_din" / "__init__.py").write_text("raise RuntimeError('broken')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); exec({line!r}); print('started')"
    assert run(code, "-S") == "started"
    assert line.startswith("import ") and line.strip().count("\n") == 0, (
        "site executes single lines that start with import"
    )
