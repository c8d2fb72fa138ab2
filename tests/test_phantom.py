"""The phantom: the same patient every time, a heart in every patient, and files that nnU-Net can read."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from nnunet_din.data import LABELS, make_case, write_dataset
from nnunet_din.data.phantom import _draw_anatomy


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


def test_same_arguments_give_the_same_case(cases):
    """Fails if a case depends on anything but its number and seed, for example on cases drawn before."""
    again = make_case(5, seed=0)
    np.testing.assert_array_equal(again.image, cases[5].image)
    np.testing.assert_array_equal(again.label, cases[5].label)
    assert again.spacing == cases[5].spacing


def test_seed_and_index_both_change_the_case():
    """Fails if seeds or patients share their random numbers: test cases would be copies of training cases."""
    labels = [make_case(index, seed=seed).label for index, seed in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, first in enumerate(labels):
        for second in labels[i + 1 :]:
            assert (first != second).mean() > 0.01


def test_types_shapes_and_ranges(cases):
    """Fails if arrays have another type or shape than documented, or intensities do not fit into int16."""
    for case in cases:
        assert case.image.shape == case.label.shape == (7, 64, 64)
        assert case.image.dtype == np.float32
        assert case.label.dtype == np.uint8
        assert np.isfinite(case.image).all()
        assert case.image.min() >= 0
        assert case.image.max() < np.iinfo(np.int16).max


def test_every_patient_has_all_structures_in_enough_voxels(cases):
    """Fails if a structure is missing or tiny in some patient: Dice would be undefined or pure noise."""
    for case in cases:
        for name, value in LABELS.items():
            assert (case.label == value).sum() >= 200, name


def test_heart_tapers_to_the_apex(cases):
    """Fails if the anatomy does not change along the axis: both ventricles get smaller and the RV ends first."""
    for case in cases:
        right = (case.label == LABELS["RV"]).sum(axis=(1, 2))
        left = (case.label == LABELS["LV"]).sum(axis=(1, 2))
        assert right[-1] == 0
        assert right[0] > right[3] > right[5]
        assert left[0] > left[-2] > 0


def test_myocardium_encloses_the_left_ventricle(cases):
    """Fails if blood of the LV touches RV or background: the muscle would have a hole."""
    for case in cases:
        cavity = case.label == LABELS["LV"]
        for z in range(len(cavity)):
            ring = ndimage.binary_dilation(cavity[z]) & ~cavity[z]
            assert (case.label[z][ring] == LABELS["MYO"]).all()


def test_right_ventricle_lies_on_the_septum(cases):
    """Fails if the RV floats beside the heart or lies on the other side of it."""
    for case in cases:
        base = case.label[0]
        right, muscle, left = (base == LABELS[name] for name in ("RV", "MYO", "LV"))
        assert (ndimage.binary_dilation(right) & muscle).sum() > 10
        assert np.argwhere(right)[:, 1].mean() < np.argwhere(left)[:, 1].mean()


def test_blood_is_brighter_than_muscle_but_no_threshold_finds_it(cases):
    """Fails if the contrast is inverted, or the task so easy that a threshold on the intensity solves it."""
    for case in cases:
        blood, muscle = case.image[case.label == LABELS["LV"]], case.image[case.label == LABELS["MYO"]]
        assert np.median(blood) > 1.2 * np.median(muscle)
        inside = case.label == LABELS["LV"]
        best = 0.0
        for threshold in np.percentile(case.image, np.arange(50, 100, 2.5)):
            found = case.image > threshold
            best = max(best, 2 * (found & inside).sum() / (found.sum() + inside.sum()))
        assert best < 0.6


def test_patients_differ_in_size_place_and_wall():
    """Fails if all patients are copies: a network could learn positions by heart."""
    anatomies = [_draw_anatomy(np.random.default_rng([0, index])) for index in range(20)]
    for values, spread in (
        ([a.radius for a in anatomies], 1.0),
        ([a.wall for a in anatomies], 0.5),
        ([a.centre[0] for a in anatomies], 2.0),
        ([a.rv_width for a in anatomies], 1.5),
        ([np.rad2deg(a.rotation) for a in anatomies], 5.0),
    ):
        assert np.std(values) > spread


def test_spacing_is_anisotropic_and_differs_between_patients(cases):
    """Fails if slices are not thick: nnU-Net would not treat the data as the anisotropic data it stands for."""
    for case in cases:
        z, y, x = case.spacing
        assert y == x
        assert z > 3 * y
    assert len({case.spacing for case in cases}) == len(cases)


def test_size_changes_the_sampling_and_not_the_patient():
    """Fails if a larger image shows another heart: areas in mm2 have to agree between resolutions."""
    small, large = make_case(2, size=48, slices=5), make_case(2, size=96, slices=5)
    for value in (LABELS["RV"], LABELS["MYO"], LABELS["LV"]):
        areas = [(case.label[1] == value).sum() * case.spacing[1] * case.spacing[2] for case in (small, large)]
        assert areas[0] == pytest.approx(areas[1], rel=0.08)


@pytest.mark.parametrize(
    "arguments", [{"index": -1}, {"index": 0, "seed": -1}, {"index": 0, "size": 16}, {"index": 0, "slices": 2}]
)
def test_bad_numbers_are_refused(arguments):
    """Fails if numbers out of range give a broken case, or an error from deep inside numpy."""
    with pytest.raises(ValueError, match="must be"):
        make_case(**arguments)


def test_dataset_can_be_read_by_nnunet(tmp_path):
    """Fails if names, geometry, data types or dataset.json are not what nnU-Net asks of a raw data set."""
    import SimpleITK

    raw = write_dataset(tmp_path / "Dataset990_Phantom", train=3, test=2, size=32, slices=3)
    assert sorted(path.name for path in (raw / "imagesTr").iterdir()) == [f"case_00{i}_0000.nii.gz" for i in range(3)]
    assert sorted(path.name for path in (raw / "labelsTr").iterdir()) == [f"case_00{i}.nii.gz" for i in range(3)]
    assert sorted(path.name for path in (raw / "imagesTs").iterdir()) == [f"case_00{i}_0000.nii.gz" for i in (3, 4)]
    assert sorted(path.name for path in (raw / "labelsTs").iterdir()) == [f"case_00{i}.nii.gz" for i in (3, 4)]
    description = json.loads((raw / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "cineMRI"}
    assert description["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert description["numTraining"] == 3
    assert description["file_ending"] == ".nii.gz"

    case = make_case(4, size=32, slices=3)
    image = SimpleITK.ReadImage(str(raw / "imagesTs/case_004_0000.nii.gz"))
    label = SimpleITK.ReadImage(str(raw / "labelsTs/case_004.nii.gz"))
    assert image.GetPixelIDTypeAsString() == "16-bit signed integer"
    for volume in (image, label):
        assert volume.GetSpacing() == pytest.approx(case.spacing[::-1], rel=1e-5)
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(image), case.image, atol=0.51)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(label), case.label)


def test_case_files_do_not_depend_on_the_number_of_cases(tmp_path):
    """Fails if asking for more cases changes the earlier ones."""
    few = write_dataset(tmp_path / "few", train=1, test=0, size=32, slices=3)
    many = write_dataset(tmp_path / "many", train=2, test=1, size=32, slices=3)
    name = "labelsTr/case_000.nii.gz"
    assert (few / name).read_bytes() == (many / name).read_bytes()


def test_writing_twice_is_fine_but_other_cases_are_not_mixed_in(tmp_path):
    """Fails if a second run breaks on its own files, or if nnU-Net would count cases of an earlier, larger data set."""
    write_dataset(tmp_path / "data", train=2, test=0, size=32, slices=3)
    write_dataset(tmp_path / "data", train=2, test=0, size=32, slices=3)
    with pytest.raises(FileExistsError, match=r"case_001"):
        write_dataset(tmp_path / "data", train=1, test=0, size=32, slices=3)


@pytest.mark.parametrize("numbers", [{"train": 0}, {"test": -1}])
def test_bad_numbers_of_cases_are_refused(tmp_path, numbers):
    """Fails if a data set without training cases is written, on which nnU-Net stops with an unclear error."""
    with pytest.raises(ValueError, match="must be at least"):
        write_dataset(tmp_path / "data", **numbers)
    assert not (tmp_path / "data").exists()
