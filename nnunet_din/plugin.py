"""Joins this package to nnU-Net: nnU-Net's class look-up finds our classes by name, in every process.

nnU-Net finds planners, preprocessors and trainers with one function, ``recursive_find_python_class``, which walks its
own folders. When the module that defines it is imported, :class:`_Finder` lets it load as usual and then wraps the
function: names listed in :data:`CLASSES` are answered from here, everything else goes through untouched. The function
behind ``-pretrained_weights`` is wrapped in the same way, for DIN's networks.

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

#: nnU-Net's function that looks classes up by name, and the module that defines it.
LOOKUP_MODULE = "nnunetv2.utilities.find_class_by_name"
LOOKUP_FUNCTION = "recursive_find_python_class"
#: nnU-Net's function behind ``nnUNetv2_train -pretrained_weights``, and the module that defines it.
WEIGHTS_MODULE = "nnunetv2.run.load_pretrained_weights"
WEIGHTS_FUNCTION = "load_pretrained_weights"


def register() -> None:
    """Make nnU-Net find :data:`CLASSES` in this process. Cheap, idempotent, and safe without nnU-Net."""
    for name in WRAPPED:
        module = sys.modules.get(name)
        if module is not None:
            _wrap_everywhere(module)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _load(class_name: str) -> type:
    from importlib import import_module

    return getattr(import_module(CLASSES[class_name]), class_name)


def _look_up(original):
    """The look-up that knows our names."""

    def find(folder, class_name, *args, **kwargs):
        if class_name in CLASSES:
            return _load(class_name)
        return original(folder, class_name, *args, **kwargs)

    return find


def _start_from(original):
    """The start from other weights; of DIN's networks, with other channels, too, and with an error of one sentence."""

    def load(network, fname, *args, **kwargs):
        bare = getattr(network, "module", network)  # distributed
        bare = getattr(bare, "_orig_mod", bare)  # compiled
        if type(bare).__module__.partition(".")[0] != "nnunet_din":
            return original(network, fname, *args, **kwargs)
        from nnunet_din.weights.fine_tuning import load_pretrained_weights

        return load_pretrained_weights(bare, fname)

    return load


#: Module of nnU-Net -> the function in it that is wrapped, and what wraps it.
WRAPPED = {LOOKUP_MODULE: (LOOKUP_FUNCTION, _look_up), WEIGHTS_MODULE: (WEIGHTS_FUNCTION, _start_from)}


def _wrap(module):
    """Wrap the function of a module of :data:`WRAPPED`; returns (original, replacement)."""
    from functools import wraps

    name, wrapper = WRAPPED[module.__name__]
    original = getattr(module, name)
    if hasattr(original, "__nnunet_din__"):
        return original.__wrapped__, original
    replacement = wraps(original)(wrapper(original))
    replacement.__nnunet_din__ = True
    setattr(module, name, replacement)
    return original, replacement


def _wrap_everywhere(module) -> None:
    """Wrap after the fact: modules that imported the function by name hold the original, too."""
    function, _ = WRAPPED[module.__name__]
    original, replacement = _wrap(module)
    for name, other in list(sys.modules.items()):
        if name.partition(".")[0] == "nnunetv2" and getattr(other, function, None) is original:
            setattr(other, function, replacement)


class _Finder:
    """A ``sys.meta_path`` finder that acts for :data:`WRAPPED` only, whatever way nnU-Net is installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in WRAPPED:
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
        if hasattr(module, WRAPPED[module.__name__][0]):
            _wrap(module)

    def __getattr__(self, name):
        return getattr(self._loader, name)
