"""Shared models: model folders with safetensors in place of checkpoints, and a manifest of hashes.

Nothing in them is unpickled. :mod:`nnunet_din.deployment.sharing` writes them,
:func:`nnunet_din.nnunet.predictor.read_model_folder` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_din.data.files import read_json, sha256_of
from nnunet_din.nnunet.plans import ancestors

#: Changes when a program that reads older folders would go wrong.
FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
#: Keys of the manifest beside ``format``.
_KEYS = ("trainer", "configuration", "mirroring_axes", "folds", "files")


def is_shared(folder: Path) -> bool:
    """Whether a folder has a manifest, as no model folder of nnU-Net has."""
    return (folder / MANIFEST).exists()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a shared model and compare every file with it.

    Returns
    -------
    dict
        Names of trainer and configuration, mirroring axes, folds, and the SHA-256 of every other file.

    Raises
    ------
    ValueError
        If a file is missing, too many or not the manifest's, or if a newer version has written the folder. A link
        counts as missing: it may lead out of the folder.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise ValueError(f"{path} is no manifest of a shared model: it has no `format`.")
    if manifest["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {manifest['format']}, and this version of nnunet_din reads {FORMAT}: install a newer "
            "one."
        )
    if missing := [key for key in _KEYS if key not in manifest]:
        raise ValueError(f"{path} is no manifest of a shared model: it has no `{missing[0]}`.")
    present = files_in(folder)
    for name in sorted(present.keys() ^ manifest["files"].keys()):
        what = "lacks" if name in manifest["files"] else "holds in addition"
        raise ValueError(f"{folder} {what} {name}, against its manifest: get the model again from where it comes from.")
    for name, file in present.items():
        if sha256_of(file) != manifest["files"][name]["sha256"]:
            raise ValueError(
                f"{file} is not the file of the manifest: it is damaged, or was changed. Get it again from where it "
                "comes from."
            )
    return manifest


def files_in(folder: Path) -> dict[str, Path]:
    """Files by their names in the manifest, with slashes on every system; without the manifest itself and links."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path for path in paths if path != folder / MANIFEST}


def enhancement_weights(plans: dict, configuration: str) -> Iterator[dict]:
    """Enhancements of a configuration that are networks of their own: the entries of the plans, to be changed in place.

    Each has the file of its weights as ``weights``, and the file's SHA-256 as ``sha256``.
    """
    for name in ancestors(plans, configuration):
        entries = plans["configurations"][name].get("enhancement") or []
        yield from (e for e in ([entries] if isinstance(entries, dict) else entries) if "weights" in e)
