"""The phantom: the same patient every time, a heart in every patient, and files that nnU-Net can read."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_din.data import LABELS, make_case, write_dataset

RV, MYO, LV = (LABELS[name] for name in ("RV", "MYO", "LV"))


@pytest.fixture(scope="module")
def cases():
    """Eight patients of seed 0."""
    return [make_case(index) for index in range(8)]


def test_import_is_light():
    """Fails if the module loads a heavy library: the command line, which imports it, would start slowly."""
    code = (
        "import sys, nnunet_din.data, nnunet_din.commands.demo, nnunet_din.plotting.panel; "
        "print([name for name in ('torch', 'nnunetv2', 'matplotlib', 'SimpleITK') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_index_and_seed_alone_decide(cases):
    """Fails if a case depends on cases drawn before, or if test cases are copies of training cases."""
    again = make_case(5, seed=0)
    np.testing.assert_array_equal(again.image, cases[5].image)
    np.testing.assert_array_equal(again.label, cases[5].label)
    assert again.spacing == cases[5].spacing
    labels = [cases[0].label, cases[1].label, make_case(0, seed=1).label]
    assert all((first != second).mean() > 0.01 for first in labels for second in labels if first is not second)


def test_the_phantom_is_the_one_of_earlier_versions(cases):
    """Fails if published results on the phantom are those of other images."""
    assert [int((cases[0].label == value).sum()) for value in LABELS.values()] == [24218, 1424, 1783, 1247]
    assert cases[0].image.mean() == pytest.approx(158.8406, rel=1e-5)


def test_every_patient_has_a_heart(cases):
    """Fails if a structure is tiny or in another place than in a heart: Dice would be noise."""
    for case in cases:
        assert case.image.shape == case.label.shape == (7, 64, 64)
        assert case.image.dtype == np.float32 and case.label.dtype == np.uint8
        assert np.isfinite(case.image).all() and 0 <= case.image.min() < case.image.max() < np.iinfo(np.int16).max
        assert all((case.label == value).sum() >= 200 for value in LABELS.values())
        # Both ventricles get smaller towards the apex, and the right one ends first.
        right, left = ((case.label == value).sum(axis=(1, 2)) for value in (RV, LV))
        assert right[0] > right[3] > right[5] and right[-1] == 0 and left[0] > left[-2] > 0
        for plane in case.label:
            cavity = plane == LV
            assert (plane[ndimage.binary_dilation(cavity) & ~cavity] == MYO).all(), "the muscle has a hole"
        base = case.label[0]
        assert (ndimage.binary_dilation(base == RV) & (base == MYO)).sum() > 10, "the RV floats beside the heart"
        assert np.argwhere(base == RV)[:, 1].mean() < np.argwhere(base == LV)[:, 1].mean()


def test_no_threshold_finds_the_blood(cases):
    """Fails if the contrast is inverted, or the task so easy that a threshold on the intensity solves it."""
    for case in cases:
        inside = case.label == LV
        assert np.median(case.image[inside]) > 1.2 * np.median(case.image[case.label == MYO])
        found = [case.image > threshold for threshold in np.percentile(case.image, np.arange(50, 100, 2.5))]
        assert max(2 * (each & inside).sum() / (each.sum() + inside.sum()) for each in found) < 0.6


def test_slices_are_thick_and_patients_differ(cases):
    """Fails if nnU-Net would not treat the data as anisotropic, or a network could learn positions by heart."""
    assert all(case.spacing[1] == case.spacing[2] < case.spacing[0] / 3 for case in cases)
    assert len({case.spacing for case in cases}) == len(cases)
    places = np.array([np.argwhere(case.label == LV).mean(axis=0) for case in cases])
    assert places[:, 1:].std(axis=0).min() > 1
    assert np.std([(case.label == LV).sum() for case in cases]) > 50


def test_size_changes_the_sampling_and_not_the_patient():
    """Fails if a larger image shows another heart: areas in mm2 have to agree between resolutions."""
    small, large = make_case(2, size=48, slices=5), make_case(2, size=96, slices=5)
    for value in (RV, MYO, LV):
        areas = [(case.label[1] == value).sum() * case.spacing[1] * case.spacing[2] for case in (small, large)]
        assert areas[0] == pytest.approx(areas[1], rel=0.08)
    with pytest.raises(ValueError, match="must be at least"):
        make_case(0, size=16)


def test_dataset_can_be_read_by_nnunet(tmp_path):
    """Fails if names, geometry, data types or dataset.json are not what nnU-Net asks of a raw data set."""
    raw = write_dataset(tmp_path / "Dataset990_Phantom", train=3, test=2, size=32, slices=3)
    for part, numbers in (("Tr", range(3)), ("Ts", range(3, 5))):
        names = [f"case_00{i}" for i in numbers]
        assert sorted(path.name for path in (raw / f"images{part}").iterdir()) == [f"{n}_0000.nii.gz" for n in names]
        assert sorted(path.name for path in (raw / f"labels{part}").iterdir()) == [f"{n}.nii.gz" for n in names]
    description = json.loads((raw / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "cineMRI"} and description["labels"] == LABELS
    assert description["numTraining"] == 3 and description["file_ending"] == ".nii.gz"
    case = make_case(4, size=32, slices=3)
    image, label = (
        sitk.ReadImage(str(raw / name)) for name in ("imagesTs/case_004_0000.nii.gz", "labelsTs/case_004.nii.gz")
    )
    assert image.GetPixelIDTypeAsString() == "16-bit signed integer"
    for volume in (image, label):
        assert volume.GetSpacing() == pytest.approx(case.spacing[::-1], rel=1e-5)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), case.image, atol=0.51)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), case.label)


def test_writing_again_is_fine_but_cases_are_not_mixed(tmp_path):
    """Fails if a second run breaks on its own files, more cases change the earlier ones, or cases of an earlier, larger
    data set are counted in.
    """
    raw = write_dataset(tmp_path / "data", train=1, test=0, size=32, slices=3)
    before = (raw / "labelsTr" / "case_000.nii.gz").read_bytes()
    write_dataset(raw, train=2, test=0, size=32, slices=3)
    assert (raw / "labelsTr" / "case_000.nii.gz").read_bytes() == before
    with pytest.raises(ValueError, match="other files, the first is case_001"):
        write_dataset(raw, train=1, test=0, size=32, slices=3)
