"""Networks of a trained model as ONNX, for programs without nnU-Net."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.version import Version

from nnunet_din.data.files import write_text, written_whole
from nnunet_din.deployment.description import describe
from nnunet_din.network.din import DualInteractionNetwork
from nnunet_din.nnunet.predictor import build_network, read_model_folder

#: Older versions of torch do not make graphs for images of any size of this network.
OLDEST_TORCH = "2.9"
#: Largest batch, and largest height and width in strides, that a graph is made for.
MOST = 1 << 16


def export_model(folder: Path, out: Path, folds: Sequence[str] | None = None, checkpoint: str = "final") -> list[Path]:
    """Write the network of each fold of a trained model, and ``model.json`` with everything else.

    Parameters
    ----------
    folder
        Model folder of nnU-Net, ``TRAINER__PLANS__CONFIGURATION``, or a shared model.
    out
        Folder for the files; made if it is not there.
    folds, checkpoint
        See :func:`nnunet_din.nnunet.predictor.read_model_folder`.

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
    if Version(torch.__version__) < Version(OLDEST_TORCH):
        raise ValueError(f"ONNX files need torch {OLDEST_TORCH} or newer, and this is {torch.__version__}.")
    if not find_spec("onnxscript"):
        raise ValueError('ONNX files need onnx and onnxscript: pip install "nnunet-din[onnx]"')
    model = read_model_folder(folder, folds, checkpoint)
    network = build_network(model)
    if not isinstance(network, DualInteractionNetwork):
        raise ValueError(f"{folder} holds a {type(network).__name__}, and only DIN's networks can be exported.")
    if network.dimensions != 2:
        raise ValueError(f"{folder} is a model for volumes: export it as safetensors, or a 2-D model as ONNX.")
    files = [out / f"fold_{fold}.onnx" for fold in model.weights]
    description = describe(model, [path.name for path in files], network.encoders[0].stride)
    for path, weights in zip(files, model.weights.values(), strict=True):
        network.load_state_dict(weights)
        with written_whole(path) as temporary:
            write_onnx(network.eval(), temporary)
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
    # No two dimensions of the example are equal, and no attention window is full.
    example = torch.zeros(2, network.versions * network.input_channels, 9 * stride, 10 * stride)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=(shape,))


def write_onnx(network: DualInteractionNetwork, path: Path) -> None:
    """Write an ONNX file: ``image`` -> ``logits``, see :meth:`DualInteractionNetwork.forward`."""
    with _quiet():
        program = torch.onnx.export(
            export_program(network), input_names=["image"], output_names=["logits"], dynamo=True, verbose=False
        )
    assert program is not None  # None is for those who let torch write the file
    program.save(str(path), external_data=False)


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
