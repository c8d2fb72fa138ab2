"""Pretrained weights for the twin encoders, ConvNeXt's or those of any timm model with a feature pyramid."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from timm.models import clean_state_dict
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_din.data.files import sha256_of
from nnunet_din.data.weight_files import UnreadableFileError, read_weights, unreadable
from nnunet_din.network.alternatives.pyramid import PyramidEncoder, describe
from nnunet_din.network.encoders.convnext import ConvNeXtEncoder
from nnunet_din.weights.adaptation import adapt_channels, inflate

if TYPE_CHECKING:
    from nnunet_din.network.din import DualInteractionNetwork


#: What timm and Hugging Face call the file with the weights in a folder, best first, and endings of others.
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
FILE_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
#: Prefixes of timm's names for a folder of this machine, and for a repository of the hub.
LOCAL_PREFIX = "local-dir:"
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
STEM = "stem.0.weight"
#: Variable with which torch reads files as pickles, unless its caller says otherwise.
_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass
class LoadReport:
    """What became of each entry of the weights.

    Attributes
    ----------
    source
        Name the weights came from, or their file and its SHA-256.
    loaded
        Encoder entries that were set.
    adapted
        Entries among them that were fitted to other channels, another kernel or a third axis: ``name: shape in the
        source, shape in the encoder``.
    not_in_file
        Encoder entries that keep their random weights because the source has none (the edge pooling always).
    mismatched
        Entries of both whose shapes differ, as in ``adapted``.
    not_used
        Entries of the source that the encoder does not have (the classifier always).
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    not_in_file: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    not_used: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rest = {
            "fitted to this encoder": self.adapted,
            "shape differs, random weights kept": self.mismatched,
            "not in the source, random weights kept": self.not_in_file,
            "in the source, not used": self.not_used,
        }
        first = f"Pretrained encoder weights from {self.source}: {len(self.loaded)} entries loaded into both encoders."
        return "\n".join([first, *(f"  {title}: {'; '.join(entries)}" for title, entries in rest.items() if entries)])


def load_pretrained_encoders(network: DualInteractionNetwork, source: str | Path) -> LoadReport:
    """Load pretrained weights into both encoders of a :class:`DualInteractionNetwork`.

    Parameters
    ----------
    network
        The network; changed in place.
    source
        A timm model name, with or without tag (``convnext_tiny.fb_in22k``), or ``hf-hub:`` and a repository, fetched
        by timm; or a file with a state dict of such a model (``.pth``, ``.safetensors``; timm's or the original
        authors' key names), classifier included where the encoder is no ConvNeXt; or a folder with such a file, with
        or without timm's ``local-dir:`` before it.

    Returns
    -------
    LoadReport
        What was loaded and what was not; print it.

    Raises
    ------
    ValueError
        If there are no pretrained weights for the encoder, if the source is neither a file, a folder with one, nor a
        model known to timm, if it does not fit the encoder, or if a file holds more than weights: nothing in it is
        run.
    """
    encoder = network.encoders[0]
    if type(encoder) not in READERS:
        raise ValueError(f"There are no pretrained weights for encoder '{encoder.name}': use -tr nnUNetTrainerDIN.")
    source = _resolve(source)
    weights, own = READERS[type(encoder)](source, encoder), encoder.state_dict()
    report = LoadReport(f"{source} (SHA-256 {sha256_of(source)})" if isinstance(source, Path) else source)
    fitting: dict[str, Tensor] = {}
    for key, value in own.items():
        if key not in weights:
            report.not_in_file.append(key)
            continue
        fitted = _fit(key, weights[key], value)
        difference = f"{key}: {tuple(weights[key].shape)}, {tuple(value.shape)}"
        if fitted.shape != value.shape:
            report.mismatched.append(difference)
            continue
        fitting[key] = fitted
        if weights[key].shape != value.shape:
            report.adapted.append(difference)
    report.loaded = list(fitting)
    report.not_used = sorted(weights.keys() - own.keys())
    # The stem's LayerNorm and a bias or two fit many networks by chance: without the blocks, nothing was pretrained.
    if not all(key in fitting for key in own if ".blocks." in key or key.startswith("body.")):
        raise _does_not_fit(source, encoder.name, f"{len(fitting)} of {len(own)} entries agree in name and shape")
    for each in network.encoders:
        each.load_state_dict(fitting, strict=False)
    return report


def _resolve(source: str | Path) -> str | Path:
    """The file with the weights as a path, or a name as a string.

    Looking into folders is our own: timm 1.0.22 takes the last of several files for ``local-dir:``, and reads
    safetensors by torch.load, which cannot.
    """
    path = Path(str(source).removeprefix(LOCAL_PREFIX)).expanduser()
    if path.is_dir():
        named = [path / name for name in FILE_NAMES if (path / name).is_file()]
        files = named[:1] or sorted(file for file in path.iterdir() if file.suffix in FILE_ENDINGS)
        if len(files) != 1:
            raise ValueError(
                f"Pretrained weights '{source}': the folder holds {'more than one' if files else 'no'} file with "
                f"weights ({', '.join(file.name for file in files) or ', '.join(FILE_ENDINGS)}). Name the file itself."
            )
        return files[0]
    if path.is_file():
        return path
    if str(source).startswith(LOCAL_PREFIX):
        raise ValueError(f"Pretrained weights '{source}': there is no such folder.")
    return str(source)


def _fit(key: str, theirs: Tensor, ours: Tensor) -> Tensor:
    """Fit the stem of slices to DIN's, and kernels on slices to those on volumes; all else stays as it is."""
    if key == STEM and theirs.ndim == 4 and len(theirs) == len(ours) and theirs.shape != ours.shape:
        theirs = _fit_stem(theirs, ours)
    return inflate(theirs, ours.shape[2]) if theirs.ndim == 4 and ours.ndim == 5 else theirs


def _fit_stem(weight: Tensor, like: Tensor) -> Tensor:
    """Fit the weights of ConvNeXt's stem, 4 x 4 on three channels, to DIN's: the answer to a patch of 3 x 3 pixels is
    what it was to the patch enlarged to 4 x 4. Channels are adapted as timm does it.
    """
    weight = adapt_channels(weight.float(), like.shape[1])
    kernel = like.shape[-2:]
    pixels = torch.eye(kernel.numel()).reshape(-1, 1, *kernel)
    enlarged = F.interpolate(pixels, size=weight.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return torch.einsum("dcyx,pyx->dcp", weight, enlarged).unflatten(2, kernel).to(like.dtype)


def _read_convnext(source: str | Path, encoder: ConvNeXtEncoder) -> dict[str, Tensor]:
    """State dict with timm's key names, on the CPU."""
    if not isinstance(source, Path):
        return _create(_known_to_timm(source, encoder.name)).state_dict()
    # The full classifier's names are needed to recognise the file; nothing of this model is kept.
    with torch.device("cpu"):
        reference = timm.create_model(encoder.name)
    try:
        return checkpoint_filter_fn(_read_file(source), reference)
    except KeyError as error:  # an entry of a foreign file that timm's renaming cannot place
        raise _does_not_fit(source, encoder.name, f"unexpected entry {error}") from error


def _read_pyramid(source: str | Path, encoder: PyramidEncoder) -> dict[str, Tensor]:
    """State dict with the encoder's key names, the first convolution adapted to its channels as timm does it."""
    with torch.device("cpu"):
        if isinstance(source, Path):
            name, given = encoder.name, {"state_dict": _read_file(source)}
            # Strict, as timm is not where it leaves the classifier out. timm changes what it is given.
            try:
                _create(name, {"state_dict": dict(given["state_dict"])})
            except (RuntimeError, KeyError) as error:
                raise _does_not_fit(source, name, str(error).splitlines()[0]) from error
        else:
            name, given = _known_to_timm(source, encoder.name), None
            if not name.startswith(HUB_PREFIXES) and name.partition(".")[0] != encoder.name:
                raise _does_not_fit(source, encoder.name, "they are another model's")
        levels = describe(encoder.name).levels[: len(encoder.channels)]
        body = _create(name, given, features_only=True, out_indices=levels, **encoder.options)
    return {f"body.{key}": value for key, value in body.state_dict().items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    """State dict with the key names of the file, where it holds several the averaged one, as timm chooses it."""
    content = read_weights(path)
    if isinstance(content, dict):
        names = ("state_dict_ema", "model_ema", "state_dict", "model")
        content = next((content[name] for name in names if content.get(name) is not None), content)
    if not isinstance(content, dict):
        raise UnreadableFileError(path, f"it holds a {type(content).__name__} in place of weights by name")
    return clean_state_dict(content)


def _create(name: str, overlay: dict | None = None, **options) -> nn.Module:
    """Let timm build a model with its weights, which it fetches if ``overlay`` has none.

    timm would unpickle a file that a repository's description names, and any file that fails a safe reading with a
    TypeError while :data:`_UNSAFE` is set.
    """
    if overlay is None and os.environ.get(_UNSAFE):
        raise ValueError(f"timm would run code in the files that it fetches, because {_UNSAFE} is set: unset it.")
    overlay = overlay or {"hf_hub_filename": None}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except pickle.UnpicklingError as error:
        raise unreadable(name, error) from error


def _known_to_timm(name: str, encoder_name: str) -> str:
    """The name of weights, if timm has them or asks the hub for them."""
    if not name.startswith(HUB_PREFIXES) and name.partition(".")[0] not in timm.list_models():
        raise ValueError(
            f"Pretrained weights '{name}': no such file or folder, and timm knows no model of that name. timm has "
            f"for {encoder_name}: {_known(encoder_name)}."
        )
    return name


def _does_not_fit(source: str | Path, encoder_name: str, reason: str) -> ValueError:
    return ValueError(
        f"The weights in {source} do not fit the encoder {encoder_name}: {reason}. Use weights of {encoder_name}, by "
        f"timm name (known: {_known(encoder_name)}) or as a file."
    )


def _known(encoder_name: str) -> str:
    return ", ".join(timm.list_pretrained(encoder_name + "*")) or "none"


#: Class of the encoder -> its reader.
READERS: dict[type[nn.Module], Callable[..., dict[str, Tensor]]] = {
    ConvNeXtEncoder: _read_convnext,
    PyramidEncoder: _read_pyramid,
}
