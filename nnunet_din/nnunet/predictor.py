"""nnU-Net's predictor for a trained model whose weights are read without unpickling."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from nnunet_din.data.weight_files import check_finite, read_checkpoint, read_tensors
from nnunet_din.nnunet.classes import find_trainer
from nnunet_din.nnunet.devices import usable_device
from nnunet_din.nnunet.models import trained_folds
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.nnunet.shared import WEIGHTS, enhancement_weights, is_shared, read_manifest

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

#: Configuration, name of the trainer, and mirroring axes: what the folds of a model have in common.
Training = tuple[str, str, tuple[int, ...] | None]


@dataclass(frozen=True)
class TrainedModel(PlannedModel):
    """A trained model, parsed, whose plans name no class that is not nnU-Net's or ours.

    Attributes
    ----------
    trainer : str
        Name of the trainer's class.
    mirroring_axes : tuple of int or None
        Axes along which the image may be flipped; None: none.
    weights : dict of str to dict of str to torch.Tensor
        Fold -> weights of its network. The logits of the folds are averaged in this order.
    """

    trainer: str
    mirroring_axes: tuple[int, ...] | None
    weights: dict[str, dict[str, Tensor]]


def read_model_folder(folder: Path, folds: Sequence[str] | None = None, checkpoint: str = "final") -> TrainedModel:
    """Read a model folder of nnU-Net, or a shared model after comparing it with its manifest.

    Parameters
    ----------
    folder
        ``TRAINER__PLANS__CONFIGURATION``, or what :func:`nnunet_din.deployment.sharing.share_model` has written.
    folds, checkpoint
        See :func:`nnunet_din.nnunet.models.trained_folds`; the checkpoint without ``checkpoint_`` and ``.pth``.

    Raises
    ------
    FileNotFoundError
        If the folder is not a model's, or a fold has no such checkpoint.
    ValueError
        If a checkpoint is not one of nnU-Net, or would have to be unpickled, or has weights that are not finite; if
        those of the folds are of different trainings, or the plans name a class that is not nnU-Net's or ours, which
        prediction would run; or as :func:`nnunet_din.nnunet.shared.read_manifest`.
    """
    manifest = read_manifest(folder) if is_shared(folder) else None
    if manifest and checkpoint != "final":
        raise ValueError(f"--checkpoint is for model folders of nnU-Net: {folder} has one set of weights for a fold.")
    name = WEIGHTS if manifest else f"checkpoint_{checkpoint}.pth"
    if manifest and not folds:
        folds = manifest["folds"]
    weights: dict[str, dict[str, Tensor]] = {}
    trainings: dict[Training, str] = {}
    for fold in trained_folds(folder, name, folds):
        path = folder / f"fold_{fold}" / name
        training, weights[fold] = _read_fold(path, manifest)
        check_finite(weights[fold], path)
        trainings.setdefault(training, fold)
    if len(trainings) > 1:
        raise ValueError(
            f"The folds {', '.join(trainings.values())} of {folder} are of different trainings: "
            f"{'; '.join(map(str, trainings))}. Take those of one by -f."
        )
    ((configuration, trainer, mirroring_axes),) = trainings
    planned = PlannedModel.read(folder / "plans.json", folder / "dataset.json", configuration)
    if manifest:
        for entry in enhancement_weights(planned.plans, configuration):
            entry["weights"] = str(folder.resolve() / Path(entry["weights"]).name)
    return TrainedModel(planned.plans, planned.dataset_json, configuration, trainer, mirroring_axes, weights)


def _read_fold(path: Path, manifest: Mapping | None) -> tuple[Training, dict[str, Tensor]]:
    """The training that a checkpoint of nnU-Net, or a file of a shared model, is of, and its weights."""
    if manifest:
        trainer, configuration, axes = (manifest[key] for key in ("trainer", "configuration", "mirroring_axes"))
        weights = read_tensors(path)
    else:
        content = read_checkpoint(path, mmap=False)
        try:
            trainer, configuration = content["trainer_name"], content["init_args"]["configuration"]
            axes, weights = content.get("inference_allowed_mirroring_axes"), content["network_weights"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no checkpoint of nnU-Net ({type(error).__name__}: {error}).") from error
    return (configuration, trainer, None if axes is None else tuple(axes)), weights


def build_network(model: TrainedModel) -> nn.Module:
    """The network of a model, as nnU-Net builds it for prediction, with random weights.

    Raises
    ------
    ValueError
        If nnU-Net does not find the trainer.
    """
    manager, configuration = model.manager, model.configuration_manager
    build = find_trainer(model.trainer).build_network_architecture
    if "plans_manager" in inspect.signature(build).parameters:
        return build(manager, configuration, *model.network_channels, enable_deep_supervision=False)
    return build(  # nnunetv2 2.7, and trainers made for it
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        *model.network_channels,
        enable_deep_supervision=False,
    )


def make_predictor(model: TrainedModel, device: str | None = None, mirroring: bool = True) -> nnUNetPredictor:
    """nnU-Net's predictor, as its ``initialize_from_trained_model_folder`` would leave it.

    Parameters
    ----------
    model
        What :func:`read_model_folder` gives.
    device
        See :func:`nnunet_din.nnunet.devices.usable_device`.
    mirroring
        Whether flipped images are averaged, if the model was trained with flips.

    Raises
    ------
    ValueError
        If the device is not there, nnU-Net does not find the trainer, or weights do not fit its network.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    where = usable_device(device)
    network = build_network(model)
    for fold, weights in reversed(model.weights.items()):  # the first stays, as in nnU-Net
        try:
            network.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"The weights of fold {fold} do not fit the plans: {str(error).strip()}") from error
    predictor = nnUNetPredictor(
        use_mirroring=mirroring,
        perform_everything_on_device=where.type == "cuda",
        device=where,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network,
        model.manager,
        model.configuration_manager,
        list(model.weights.values()),
        model.dataset_json,
        model.trainer,
        model.mirroring_axes,
    )
    return predictor
