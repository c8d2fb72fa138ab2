"""Joins this package to nnU-Net: nnU-Net's class look-up finds our classes by name, in every process.

nnU-Net finds planners, preprocessors and trainers with one function, ``recursive_find_python_class``, which walks its
own folders. When ``nnunetv2.utilities.find_class_by_name`` is imported, :class:`_LookupFinder` lets that module load as
usual and then wraps the function: names listed in :data:`CLASSES` are answered from here, everything else goes through
untouched.

This module runs at every start of Python in the environment (``nnunet_din.pth``), so it imports nothing but ``sys``.
"""

import sys

#: Class name -> module that defines it. A new planner, preprocessor or trainer is one line here.
CLASSES = {
    "nnUNetPlannerDIN": "nnunet_din.planners.din_planners",
    "nnUNetPlannerDINTiny": "nnunet_din.planners.din_planners",
    "nnUNetPlannerDINAtto": "nnunet_din.planners.din_planners",
    "nnUNetPlannerDINFast": "nnunet_din.planners.din_planners",
    "DINPreprocessor": "nnunet_din.planners.din_preprocessor",
    "nnUNetTrainerDIN": "nnunet_din.trainers.din_trainer",
    "nnUNetTrainerDIN_paper": "nnunet_din.trainers.paper",
    "nnUNetTrainerDIN_5en4": "nnunet_din.trainers.paper",
    "nnUNetTrainerDIN_noDeepSupervision": "nnunet_din.trainers.deep_supervision",
    "nnUNetTrainerDIN_demo": "nnunet_din.trainers.training_length",
    "nnUNetTrainerDIN_smoke": "nnunet_din.trainers.training_length",
    "nnUNetTrainerDIN_1epoch": "nnunet_din.trainers.training_length",
    "nnUNetTrainerDIN_5epochs": "nnunet_din.trainers.training_length",
    "nnUNetTrainerDIN_50epochs": "nnunet_din.trainers.training_length",
    "nnUNetTrainerDIN_100epochs": "nnunet_din.trainers.training_length",
    "nnUNetTrainerDIN_benchmark": "nnunet_din.trainers.benchmark",
    "nnUNetTrainerDIN_noBoundaryLoss": "nnunet_din.trainers.boundary_loss",
    "nnUNetTrainerDIN_printedBoundaryLoss": "nnunet_din.trainers.boundary_loss",
    "nnUNetTrainerBoundaryLoss": "nnunet_din.trainers.boundary_loss",
    "nnUNetTrainerDIN_nnUNetDA": "nnunet_din.trainers.data_augmentation",
    "nnUNetTrainerDIN_noMirroring": "nnunet_din.trainers.data_augmentation",
    "nnUNetTrainerDIN_noMirroring_5epochs": "nnunet_din.trainers.data_augmentation",
    "nnUNetTrainerDIN_pretrained": "nnunet_din.trainers.pretrained",
}

#: The nnU-Net module and the function in it that looks classes up by name.
LOOKUP_MODULE = "nnunetv2.utilities.find_class_by_name"
LOOKUP_FUNCTION = "recursive_find_python_class"


def register() -> None:
    """Make nnU-Net find :data:`CLASSES` in this process. Cheap, idempotent, and safe without nnU-Net."""
    module = sys.modules.get(LOOKUP_MODULE)
    if module is not None:
        _wrap_everywhere(module)
    elif not any(isinstance(finder, _LookupFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LookupFinder())


def _load(class_name: str) -> type:
    from importlib import import_module

    return getattr(import_module(CLASSES[class_name]), class_name)


def _wrap(module):
    """Replace the look-up function in ``module`` by one that knows our names; returns (original, replacement)."""
    from functools import wraps

    original = getattr(module, LOOKUP_FUNCTION)
    if hasattr(original, "__nnunet_din__"):
        return original.__wrapped__, original

    @wraps(original)
    def find(folder, class_name, *args, **kwargs):
        if class_name in CLASSES:
            return _load(class_name)
        return original(folder, class_name, *args, **kwargs)

    find.__nnunet_din__ = True
    setattr(module, LOOKUP_FUNCTION, find)
    return original, find


def _wrap_everywhere(module) -> None:
    """Wrap after the fact: modules that did ``from ... import recursive_find_python_class`` hold the original too."""
    original, replacement = _wrap(module)
    for name, other in list(sys.modules.items()):
        if name.partition(".")[0] == "nnunetv2" and getattr(other, LOOKUP_FUNCTION, None) is original:
            setattr(other, LOOKUP_FUNCTION, replacement)


class _LookupFinder:
    """A ``sys.meta_path`` finder that acts for :data:`LOOKUP_MODULE` only, whatever way nnU-Net is installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != LOOKUP_MODULE:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _WrappingLoader(spec.loader)
                return spec
        return None


class _WrappingLoader:
    """The module's own loader, followed by :func:`_wrap`."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        # A future nnU-Net without the function must keep working; `nnunet-din doctor` reports it.
        if hasattr(module, LOOKUP_FUNCTION):
            _wrap(module)

    def __getattr__(self, name):
        return getattr(self._loader, name)
