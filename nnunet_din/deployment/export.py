"""Networks of a trained model as files for other programs."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import torch
from packaging.version import Version
from torch import Tensor

from nnunet_din.data.files import write_text, written_whole
from nnunet_din.deployment.description import describe
from nnunet_din.network.din import DualInteractionNetwork
from nnunet_din.nnunet.predictor import build_network, read_model_folder

#: Older versions of torch do not make graphs for images of any size of this network.
OLDEST_TORCH = "2.9"
#: Largest batch, and largest height and width in strides, that a graph is made for.
MOST = 1 << 16


def export_model(
    folder: Path, out: Path, form: str = "onnx", folds: Sequence[str] | None = None, checkpoint: str = "final"
) -> list[Path]:
    """Write the network of each fold of a trained model, and ``model.json`` with everything else.

    Parameters
    ----------
    folder
        Model folder of nnU-Net, ``TRAINER__PLANS__CONFIGURATION``.
    out
        Folder for the files; made if it is not there.
    form
        One of :data:`FORMATS`.
    folds
        See :func:`nnunet_din.nnunet.models.trained_folds`.
    checkpoint
        ``final``, ``best`` or ``latest``.

    Returns
    -------
    list of pathlib.Path
        The files: networks first, then the description.

    Raises
    ------
    FileNotFoundError
        If the folder is not a model's, or a fold has no such checkpoint.
    ValueError
        If the model's network is not DIN, a checkpoint holds more than weights, or torch or onnxscript are too old or
        missing.
    """
    ending, write = FORMATS[form]
    _check_tools(form)
    model = read_model_folder(folder, folds, checkpoint)
    network = build_network(model)
    if not isinstance(network, DualInteractionNetwork):
        raise ValueError(f"{folder} holds a {type(network).__name__}, and only DIN's networks can be exported.")
    if network.dimensions != 2:
        raise ValueError(f"{folder} is a model for volumes: export it as safetensors, or a 2-D model as {form}.")
    files = [out / f"fold_{fold}{ending}" for fold in model.weights]
    description = describe(
        model.plans,
        model.configuration_manager.configuration,
        model.dataset_json,
        [path.name for path in files],
        network.encoders[0].stride,
        model.mirroring_axes,
    )
    out.mkdir(parents=True, exist_ok=True)
    for path, weights in zip(files, model.weights.values(), strict=True):
        network.load_state_dict(weights)
        with written_whole(path) as temporary:
            write(network.eval(), temporary)
    # Last: where it stands, everything that it names is there.
    write_text(out / "model.json", json.dumps(description, indent=2) + "\n")
    return [*files, out / "model.json"]


def export_program(network: DualInteractionNetwork) -> torch.export.ExportedProgram:
    """The network as a graph of torch, for any batch, and height and width that are multiples of its stride.

    torch notes the kernels that it would have chosen for the example as conditions of the graph ("guards"), for example
    more than one image. They have no part in the result: ``program.module(check_guards=False)`` leaves them out.
    """
    stride = network.encoders[0].stride
    rows, columns = (torch.export.Dim(name, min=1, max=MOST) for name in ("rows", "columns"))
    shape = {0: torch.export.Dim("images", min=1, max=MOST), 2: stride * rows, 3: stride * columns}
    with torch.no_grad():
        return torch.export.export(network, (example_input(network),), dynamic_shapes=(shape,))


def example_input(network: DualInteractionNetwork) -> Tensor:
    """A batch to make a graph with. No two of its dimensions are equal, and no attention window is full."""
    stride = network.encoders[0].stride
    return torch.zeros(2, network.versions * network.input_channels, 9 * stride, 10 * stride)


def write_onnx(network: DualInteractionNetwork, path: Path) -> None:
    """Write an ONNX file: ``image`` -> ``logits``, see :meth:`DualInteractionNetwork.forward`."""
    with _quiet():
        program = torch.onnx.export(
            export_program(network), input_names=["image"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert program is not None  # None is for those who let torch write the file
    program.save(str(path), external_data=False)


def write_program(network: DualInteractionNetwork, path: Path) -> None:
    """Write a file for :func:`torch.export.load`, see :func:`export_program`."""
    program = BytesIO()  # of a file on a full disk, torch ends the process
    torch.export.save(export_program(network), program)
    path.write_bytes(program.getvalue())


def write_torchscript(network: DualInteractionNetwork, path: Path) -> None:
    """Write a file for :func:`torch.jit.load` and libtorch."""
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace(network, example_input(network))
    path.write_bytes(traced.save_to_buffer())  # of a file on a full disk, torch ends the process


#: Name -> ending of the files, and what writes one.
FORMATS: dict[str, tuple[str, Callable[[DualInteractionNetwork, Path], None]]] = {
    "onnx": (".onnx", write_onnx),
    "torch-export": (".pt2", write_program),
    "torchscript": (".pt", write_torchscript),
}


def _check_tools(form: str) -> None:
    if form != "torchscript" and Version(torch.__version__) < Version(OLDEST_TORCH):
        raise ValueError(
            f"--format {form} needs torch {OLDEST_TORCH} or newer, and this is {torch.__version__}. "
            "--format torchscript works here, too."
        )
    if form == "onnx" and not find_spec("onnxscript"):
        raise ValueError('--format onnx needs onnx and onnxscript: pip install "nnunet-din[onnx]"')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to those who write exporters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
