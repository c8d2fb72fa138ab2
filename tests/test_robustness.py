"""`nnunet-din robustness`: what the measures are, what is computed once, and what is not lost."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from nnunet_din.commands.main import main
from nnunet_din.data.corruption import corrupt_file
from nnunet_din.evaluation.robustness import score_study, test_study, validation_study
from nnunet_din.evaluation.robustness_metrics import by_case, by_corruption, dice_by_case
from nnunet_din.nnunet.models import named_models
from nnunet_din.nnunet.planned import PlannedModel
from nnunet_din.plotting.robustness import dice_by_severity

test_study.__test__ = False  # a function, and no test

DATASET = "Dataset993_TestRobustness"
ONE, TWO = "nnUNetTrainerDIN__nnUNetDINAttoPlans__2d", "nnUNetTrainerDIN_1epoch__nnUNetDINAttoPlans__2d"


# ---- measures ----


def scores_of(table):
    """Scores of one structure from model -> case -> corruption -> Dice by severity."""
    rows = [
        {"model": model, "case": case, "corruption": corruption, "severity": severity, "structure": "one", "Dice": dice}
        for model, cases in table.items()
        for case, corruptions in cases.items()
        for corruption, values in corruptions.items()
        for severity, dice in values.items()
    ]
    return pd.DataFrame(rows)


def test_measures_are_those_of_the_papers():
    """By hand, with severities 1 and 3: weights 2/3 and 8/27, together 26/27."""
    scores = scores_of(
        {
            "A": {
                "x": {"clean": {0: 0.9}, "blur": {1: 0.6, 3: 0.3}},
                "y": {"clean": {0: 0.7}, "blur": {1: 0.7, 3: 0.1}},
            },
            "B": {
                "x": {"clean": {0: 0.8}, "blur": {1: 0.8, 3: 0.4}},
                "y": {"clean": {0: 0.8}, "blur": {1: 0.4, 3: 0.4}},
            },
        }
    )
    measures = by_case(dice_by_case(scores))
    x = measures[(measures["model"] == "A") & (measures["case"] == "x")].iloc[0]
    bad = 2 / 3 * 0.6 + 8 / 27 * 0.3
    assert x["weighted_mean_dice"] == pytest.approx((0.9 + bad) / (1 + 26 / 27))
    assert x["degradation"] == pytest.approx((2 / 3 * 0.3 + 8 / 27 * 0.6) / (26 / 27))
    assert x["retained_dice"] == pytest.approx(0.45 / 0.8)
    table = by_corruption(measures, "B")
    assert table.loc[("blur", "A"), "retained_dice"] == pytest.approx((0.45 + 0.4) / 2 / 0.8)
    # Errors of A: 0.4 + 0.7 and 0.3 + 0.9; of B: 0.2 + 0.6 and 0.6 + 0.6.
    assert table.loc[("blur", "A"), "corruption_error"] == pytest.approx((1.1 + 1.2) / (0.8 + 1.2))
    assert table.loc[("blur", "B"), "corruption_error"] == 1
    with pytest.raises(ValueError, match="baseline C is none of the models: A, B"):
        by_corruption(measures, "C")


def test_only_cases_that_all_models_have_are_compared():
    both = {"clean": {0: 1.0}, "blur": {1: 0.5}}
    scores = scores_of({"A": {"x": both, "y": both}, "B": {"y": both, "z": both}})
    assert list(dice_by_case(scores).index) == [("A", "y"), ("B", "y")]
    with pytest.raises(ValueError, match="no case in common"):
        dice_by_case(scores_of({"A": {"x": both}, "B": {"y": both}}))


def test_a_case_without_any_structure_does_not_count():
    nothing = {"clean": {0: np.nan}, "blur": {1: 0.0}}
    scores = scores_of({"A": {"x": nothing, "y": {"clean": {0: 1.0}, "blur": {1: 0.5}}}})
    assert list(dice_by_case(scores).index) == [("A", "y")]


def test_the_plot_has_a_panel_for_each_corruption_and_a_line_for_each_model():
    columns = pd.MultiIndex.from_tuples(
        [("clean", 0), *((name, s) for name in ("blur", "spikes") for s in (2, 4))], names=["corruption", "severity"]
    )
    dice = pd.DataFrame([[0.9, 0.8, 0.7, 0.6, 0.5], [0.8] * 5], pd.Index(["A", "B"], name="model"), columns)
    figure = dice_by_severity(dice)
    assert [ax.get_title() for ax in figure.axes] == ["blur", "spikes"]
    first = figure.axes[1].lines[0]
    np.testing.assert_allclose(first.get_xdata(), [0, 2, 4])
    np.testing.assert_allclose(first.get_ydata(), [90, 60, 50])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]


# ---- what is computed ----


@pytest.fixture
def world(nnunet_folders, dataset, model):
    """A data set of two validation cases and a test case, and two DIN models of the same preprocessing."""
    folders = [getattr(nnunet_folders, name) / DATASET for name in ("raw", "preprocessed", "results")]
    raw, preprocessed, results = folders
    shutil.copytree(dataset.raw, raw)
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesTr").iterdir())
    preprocessed.mkdir()
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases[2:], "val": cases[:2]}]))
    trained = model(mirroring=None)
    for name in (ONE, TWO):
        shutil.copytree(trained, results / name)
    shutil.rmtree(trained)
    yield SimpleNamespace(raw=raw, preprocessed=preprocessed, results=results, cases=cases[:2])
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def quick_network(monkeypatch):
    """nnU-Net's predictor with a network that calls bright voxels 1, at once."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    def logits(self, data):
        logits = torch.zeros(4, *data.shape[1:])
        logits[1] = data[0] - 1
        return logits

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", logits)
    return logits


@pytest.fixture
def preprocessed(monkeypatch):
    """Counts the cases that are preprocessed."""
    calls = []
    original = PlannedModel.preprocess

    def counted(self, files):
        calls.append([file.name for file in files])
        return original(self, files)

    monkeypatch.setattr(PlannedModel, "preprocess", counted)
    return calls


def study_of(models=None, kind=validation_study, folds=("0",), **settings):
    settings = {"corruptions": ["rician_noise", "blur"], "severities": [4], "device": "cpu", **settings}
    return kind(DATASET, named_models(DATASET, models), folds, **settings)


def test_a_bad_image_is_preprocessed_once_for_all_models(world, quick_network, preprocessed, tmp_path):
    """Fails if every model makes its own bad images, or if a second start computes anything."""
    scores = score_study(study_of(), tmp_path / "cache.jsonl")
    assert len(preprocessed) == 2 * (1 + 2)
    assert len(scores) == 2 * 2 * 3 * 3 and scores["Dice"].notna().all()
    again = score_study(study_of(), tmp_path / "cache.jsonl")
    assert len(preprocessed) == 6
    pd.testing.assert_frame_equal(again, scores)
    first, second = (scores[scores["model"] == name]["Dice"].to_numpy() for name in scores["model"].unique())
    np.testing.assert_array_equal(first, second)
    assert scores.groupby("corruption")["Dice"].mean().nunique() == 3, "the bad images reach the network"

    for folder in world.results.iterdir():
        plans = json.loads((folder / "plans.json").read_text())
        if folder.name == TWO:
            plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
            (folder / "plans.json").write_text(json.dumps(plans))
    preprocessed.clear()
    score_study(study_of(corruptions=["blur"]), tmp_path / "other.jsonl")
    assert len(preprocessed) == 2 * 2 * 2, "other plans, other data"


@pytest.mark.slow
def test_neither_order_nor_company_changes_a_score(world, quick_network, tmp_path):
    keys = ["case", "corruption", "severity", "structure"]
    whole = score_study(study_of([ONE]), tmp_path / "a.jsonl").set_index(keys)["Dice"]
    part = score_study(study_of([ONE], corruptions=["blur"]), tmp_path / "b.jsonl").set_index(keys)
    turned = study_of([ONE], corruptions=["blur", "rician_noise"])
    turned.cases.reverse()
    other = score_study(turned, tmp_path / "c.jsonl").set_index(keys)["Dice"]
    pd.testing.assert_series_equal(other.loc[whole.index], whole)
    pd.testing.assert_series_equal(part["Dice"], whole.loc[part.index])
    seeded = score_study(study_of([ONE], seed=1), tmp_path / "a.jsonl").set_index(keys)["Dice"]
    bad = whole.index.get_level_values("corruption")
    assert (seeded[bad == "rician_noise"] != whole[bad == "rician_noise"]).any(), "another seed is not looked up"
    pd.testing.assert_series_equal(seeded[bad != "rician_noise"], whole[bad != "rician_noise"])


def test_a_stopped_run_goes_on(world, quick_network, preprocessed, monkeypatch, tmp_path):
    """Fails if what was scored before a kill is lost, or computed again."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    left = iter(range(4))

    def stops(self, data):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return quick_network(self, data)

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", stops)
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_study(study_of([ONE]), cache)
    assert len(cache.read_text().splitlines()) == 4
    with cache.open("a") as file:
        file.write('["cut of')  # in the middle of a line
    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", quick_network)
    preprocessed.clear()
    scores = score_study(study_of([ONE]), cache)
    assert len(preprocessed) == 2
    pd.testing.assert_frame_equal(scores, score_study(study_of([ONE]), tmp_path / "fresh.jsonl"))


def test_the_images_are_those_of_corrupt(world, tmp_path):
    study = study_of([ONE], seed=4)
    case = study.cases[0]
    corrupt_file(case.images[0], tmp_path / "bad.nii.gz", "rician_noise", 4, seed=4)
    with study.corrupted(case, "rician_noise", 4) as (bad,):
        images = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (bad, tmp_path / "bad.nii.gz")]
    np.testing.assert_array_equal(*images)
    assert not bad.exists()


def test_regions_and_ignored_voxels_count_as_in_the_leaderboard(world, quick_network, tmp_path):
    description = json.loads((world.raw / "dataset.json").read_text())
    description["labels"] = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "spot": 3, "ignore": 4}
    description["regions_class_order"] = [1, 2, 3]
    (world.raw / "dataset.json").write_text(json.dumps(description))
    truth = world.raw / "labelsTr" / f"{world.cases[0]}.nii.gz"
    image = sitk.ReadImage(str(truth))
    before = score_study(study_of([ONE], corruptions=["blur"]), tmp_path / "a.jsonl")
    assert list(before["structure"].unique()) == ["whole", "core", "spot"]
    array = sitk.GetArrayFromImage(image)
    array[:, : array.shape[1] // 2] = 4
    ignored = sitk.GetImageFromArray(array)
    ignored.CopyInformation(image)
    sitk.WriteImage(ignored, str(truth))
    after = score_study(study_of([ONE], corruptions=["blur"]), tmp_path / "a.jsonl")
    rows = [table[table["case"] == world.cases[0]] for table in (before, after)]
    assert (rows[1]["prediction_ml"].to_numpy()[0] < rows[0]["prediction_ml"].to_numpy()[0]).all()


def test_test_images_are_predicted_by_all_folds(world, quick_network, tmp_path):
    study = study_of([ONE], kind=test_study, folds=None)
    (case,) = study.cases
    assert case.truth.parent.name == "labelsTs" and [n.folds for n in study.networks[case.fold]] == [["0"]]
    assert len(score_study(study, tmp_path / "cache.jsonl")) == 3 * 3
    case.truth.unlink()
    with pytest.raises(FileNotFoundError, match="labelsTs.* cannot be scored without it"):
        study_of([ONE], kind=test_study, folds=None)


# ---- what is refused ----


def robustness(*arguments):
    return main(["robustness", "-d", DATASET, "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "3"], "Fold 3 has no validation cases: splits_final.json has 0."),
        (["-f", "0", "--baseline", "none"], "The baseline none is none of the models:"),
        (["-f", "0", "--group-by", "patient"], "The group 'patient' does not match the case"),
        (["-f", "0", "--models", "none"], "No trained model is called none."),
        (["--test", "-f", "all"], "There is nothing to predict with:"),
        (["-f", "0", "--device", "cuda:99"], "There is no device 'cuda:99'"),
    ],
)
def test_bad_calls_end_in_one_sentence(world, arguments, message, capsys, tmp_path):
    assert robustness(*arguments, "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and error[-1].startswith("nnunet-din robustness: ")


def test_corruptions_that_make_no_sense_for_the_data_set(world, capsys):
    description = json.loads((world.raw / "dataset.json").read_text())
    description["channel_names"] = {"0": "CT"}
    (world.raw / "dataset.json").write_text(json.dumps(description))
    assert robustness("-f", 0, "--corruptions", "rician_noise") == 1
    assert "rician_noise makes no sense for CT" in capsys.readouterr().err
    study = study_of([ONE], corruptions=[])
    assert study.corruptions == ["gaussian_noise", "blur", "low_resolution"]
    assert any("left out" in sentence for sentence in study.missing)


def test_what_fails_is_named_and_the_rest_is_kept(world, quick_network, tmp_path):
    second = world.raw / "labelsTr" / f"{world.cases[1]}.nii.gz"
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{world.cases[1]}, clean 0: .*{second.name}"):
        score_study(study_of([ONE]), tmp_path / "cache.jsonl")
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 3


# ---- the whole ----


@pytest.mark.slow
def test_the_whole_command(world, tmp_path, capsys):
    arguments = ["-f", 0, 1, "--models", f"A={ONE}", f"B={TWO}", "--severities", 2, 5, "-o", tmp_path / "out"]
    arguments += ["--corruptions", "gamma_up", "--baseline", "B"]
    splits = json.loads((world.preprocessed / "splits_final.json").read_text())
    (world.preprocessed / "splits_final.json").write_text(json.dumps([*splits, {"train": [], "val": []}]))
    assert robustness(*arguments) == 0
    captured = capsys.readouterr()
    assert "MISSING: A: fold 1 has no checkpoint_final.pth" in captured.err and "mCE (%)" in captured.out
    out = tmp_path / "out"
    text = (out / "robustness.md").read_text()
    for expected in ("Missing: A: fold 1", "Differences from B", "| gamma_up | A |", "mean of all", "](case.png)"):
        assert expected in text, expected
    assert (out / "robustness.html").read_text().count("data:image/png;base64") == 2
    table = pd.read_csv(out / "robustness.csv")
    assert list(table.columns[:4]) == ["corruption", "model", "Dice_2", "Dice_5"] and len(table) == 2
    assert (table["corruption_error"] == 1).all(), "the same network twice"
    cases = pd.read_csv(out / "cases.csv")
    clean = cases[(cases["model"] == "A") & (cases["corruption"] == "clean")]

    # The clean images are predicted and scored as by the commands for that.
    images = [str(world.raw / "imagesTr" / f"{case}_0000.nii.gz") for case in world.cases]
    assert main(["predict", str(world.results / ONE), *images, "-o", str(tmp_path / "pred"), "-device", "cpu"]) == 0
    board = ["--pred", f"A={tmp_path / 'pred'}", "--gt", str(world.raw / "labelsTr"), "-np", "1"]
    assert main(["leaderboard", *board, "-o", str(tmp_path / "board"), "--resamples", "100"]) == 0
    scored = pd.read_csv(tmp_path / "board" / "cases.csv")
    keys = ["case", "structure"]
    for metric in ("Dice", "HD95", "NSD"):
        left, right = (t.set_index(keys)[metric].sort_index() for t in (clean, scored))
        pd.testing.assert_series_equal(left, right)

    before = (out / "cases.csv").read_bytes()
    assert robustness(*arguments) == 0
    assert (out / "cases.csv").read_bytes() == before
