"""Classes that nnU-Net finds by their names, as its own commands find them."""

from __future__ import annotations

from typing import Any


def find_trainer(name: str) -> Any:
    """The class of a trainer, also where ``nnUNet_extTrainer`` names a folder, which nnunetv2 2.7 does not know.

    Raises
    ------
    ValueError
        If nnU-Net finds none.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    except ImportError:
        found = _find_in("training.nnUNetTrainer", name)
    else:
        try:
            found = recursive_find_trainer_class_by_name(name)
        except (RuntimeError, AssertionError, TypeError):  # its words are about folders inside nnU-Net
            found = None
    return _checked("trainer", name, found, nnUNetTrainer)


def find_planner(name: str) -> Any:
    """The class of a planner.

    Raises
    ------
    ValueError
        If nnU-Net finds none.
    """
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    return _checked("planner", name, _find_in("experiment_planning", name), ExperimentPlanner)


def _find_in(package: str, name: str) -> Any:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = "/".join([nnunetv2.__path__[0], *package.split(".")])
    return recursive_find_python_class(folder, name, f"nnunetv2.{package}")


def _checked(what: str, name: str, found: Any, base: type) -> Any:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"nnU-Net finds no {what} {name}: install the package that it comes from.")
    return found
