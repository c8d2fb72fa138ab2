"""Whether a raw data set and its plans are what nnU-Net expects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nnunet_din.diagnosis.check import Check
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.nnunet.labels import read_dataset_json

#: Folds of nnU-Net's cross-validation.
FOLDS = 5
#: JSON files beside the plans that are none.
_NOT_PLANS = {"dataset", "dataset_fingerprint", "splits_final"}


def dataset_checks(dataset: str, plans: str | None = None) -> Iterator[Check]:
    """Number of cases, channels of every case, and names of the plans of a data set.

    Parameters
    ----------
    dataset
        Number or name.
    plans
        Name of the plans that are to be there, as it is given to ``nnUNetv2_train -p``.

    Yields
    ------
    Check
        Of the raw data set, where it is there, and of its plans.
    """
    try:
        name = dataset_name(dataset)
        raw, preprocessed = (nnunet_folder(variable) / name for variable in ("nnUNet_raw", "nnUNet_preprocessed"))
        if raw.is_dir():
            description = read_dataset_json(raw / "dataset.json")
            cases = training_cases(raw, description)
            yield _cases(cases, [raw, preprocessed], f"nnUNetv2_train {dataset} 2d all")
            yield _channels(cases, len(description.get("channel_names", description.get("modality", ()))))
    except (ValueError, FileNotFoundError) as error:
        yield Check("data set", False, str(error), "name a data set of nnU-Net's folders by its number with -d.")
        return
    yield _plans(preprocessed, plans, dataset)


def training_cases(raw: Path, dataset_json: Mapping) -> dict[str, list[Path]]:
    """Files of every training case, as nnU-Net finds them: named in ``dataset.json``, or by the names in `imagesTr`."""
    if "dataset" in dataset_json:
        return {case: [raw / image for image in files["images"]] for case, files in dataset_json["dataset"].items()}
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(dataset_json['file_ending'])}")
    cases: dict[str, list[Path]] = {}
    for path in sorted((raw / "imagesTr").glob("*")):
        if match := pattern.fullmatch(path.name):
            cases.setdefault(match[1], []).append(path)
    return cases


def _cases(cases: Mapping, folders: Sequence[Path], train: str) -> Check:
    """Enough of them for nnU-Net's folds, or folds of the user's own."""
    number = len(cases)
    if any((folder / "splits_final.json").is_file() for folder in folders):
        return Check("cases", number > 0, f"{number} for training, folds from splits_final.json", "fill imagesTr.")
    do = (
        f"train on all of them without validation cases, `{train}`, or write {folders[-1] / 'splits_final.json'} with "
        "folds of your own."
    )
    return Check("cases", number >= FOLDS, f"{number} for training; nnU-Net makes {FOLDS} folds of them", do)


def _channels(cases: Mapping[str, Sequence[Path]], expected: int) -> Check:
    """All cases with the channels that ``dataset.json`` names; only headers are read."""
    with ThreadPoolExecutor() as pool:
        counts = dict(zip(cases, pool.map(_count_channels, cases.values()), strict=True))
    wrong = {case: count for case, count in counts.items() if count != expected}
    if not wrong:
        return Check("channels", True, f"{expected} in every case")
    case, count = next(iter(wrong.items()))
    return Check(
        "channels",
        False,
        f"{len(wrong)} of {len(cases)} cases do not have the {expected} of dataset.json; the first is {case} with "
        f"{count} ({', '.join(path.name for path in cases[case])})",
        "complete the files CASE_0000, CASE_0001, ... of every case, make all images grey or all RGB and none 4-D, or "
        "correct `channel_names` in dataset.json.",
    )


def _count_channels(files: Sequence[Path]) -> int:
    """Channels in the files of a case: colours and time points of one file count as well."""
    import SimpleITK as sitk

    channels = 0
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:  # a format that only another reader of nnU-Net's knows, or a broken file: not this check's
            channels += 1
            continue
        size = reader.GetSize()
        channels += reader.GetNumberOfComponents() * (size[3] if len(size) > 3 else 1)
    return channels


def _plans(preprocessed: Path, plans: str | None, dataset: str) -> Check:
    """Plans of this name, or which there are."""
    there = sorted(path.stem for path in preprocessed.glob("*.json") if path.stem not in _NOT_PLANS)
    listed = f"there are {', '.join(there)}" if there else "there are none"
    if plans is None:
        return Check("plans", True, f"{listed}; name them with -p")
    do = f"nnUNetv2_plan_and_preprocess -d {dataset} -pl nnUNetPlannerDIN -c 2d"
    if there:
        do = f"name one of these with -p: {', '.join(there)}; or make them: {do}"
    return Check("plans", plans in there, plans if plans in there else f"no {plans} in {preprocessed}; {listed}", do)
