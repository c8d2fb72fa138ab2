"""`nnunet-din robustness`: what the measures are, what is computed once, and what is not lost."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_dataset import SMALL_NETWORK
from nnunet_din.commands.main import main
from nnunet_din.evaluation.robustness import find_study, score_study
from nnunet_din.evaluation.robustness_metrics import by_case, by_corruption, dice_by_case
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.nnunet.models import named_models
from nnunet_din.nnunet.planned import PlannedModel

DATASET = "Dataset993_TestRobustness"
ONE, TWO = "nnUNetTrainerDIN__nnUNetDINAttoPlans__2d", "nnUNetTrainerDIN_1epoch__nnUNetDINAttoPlans__2d"


# ---- measures ----


def scores_of(table):
    """Scores of one structure from model -> case -> Dice of the clean image and of severities 1 and 3 of blur."""
    columns = (("clean", 0), ("blur", 1), ("blur", 3))
    rows = [
        {"model": model, "case": case, "corruption": corruption, "severity": severity, "structure": "one", "Dice": dice}
        for model, cases in table.items()
        for case, values in cases.items()
        for (corruption, severity), dice in zip(columns, values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_measures_are_those_of_the_papers():
    """By hand, with severities 1 and 3: weights 2/3 and 8/27, together 26/27."""
    a, b = {"x": (0.9, 0.6, 0.3), "y": (0.7, 0.7, 0.1)}, {"x": (0.8, 0.8, 0.4), "y": (0.8, 0.4, 0.4)}
    measures = by_case(dice_by_case(scores_of({"A": a, "B": b})))
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


def test_only_cases_with_a_structure_that_all_models_have_are_compared():
    known, unknown = (1.0, 0.5, 0.5), (np.nan, 0.0, 0.0)
    scores = scores_of({"A": {"x": known, "y": known, "n": unknown}, "B": {"y": known, "z": known, "n": unknown}})
    assert list(dice_by_case(scores).index) == [("A", "y"), ("B", "y")]
    with pytest.raises(ValueError, match="no case in common"):
        dice_by_case(scores_of({"A": {"x": known}, "B": {"y": known}}))


# ---- what is computed ----


def write_model(folder, dataset):
    """A model with one fold, whose network was not trained."""
    plans = json.loads((dataset.preprocessed / "nnUNetDINAttoPlans.json").read_text())
    plans["configurations"]["2d"].update(patch_size=[32, 48], spacing=[1.5, 1.2])
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = SMALL_NETWORK
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset.dataset_json))
    torch.manual_seed(0)
    checkpoint = {
        "network_weights": DualInteractionNetwork(1, 4, **SMALL_NETWORK).state_dict(),
        "trainer_name": "nnUNetTrainerDIN",
        "init_args": {"configuration": "2d", "plans": plans, "fold": 0, "dataset_json": dataset.dataset_json},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


@pytest.fixture(scope="module")
def files(nnunet_folders, dataset):
    """A data set of two validation cases and a test case, and two DIN models of the same preprocessing."""
    folders = [getattr(nnunet_folders, name) / DATASET for name in ("raw", "preprocessed", "results")]
    raw, preprocessed, results = folders
    shutil.copytree(dataset.raw, raw)
    cases = sorted(path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesTr").iterdir())
    preprocessed.mkdir()
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": cases[2:], "val": cases[:2]}]))
    for name in (ONE, TWO):
        write_model(results / name, dataset)
    yield SimpleNamespace(raw=raw, preprocessed=preprocessed, results=results, cases=cases[:2])
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def world(files, tmp_path):
    """The files of the module, which are restored after a test that has changed some."""
    kept = [files.raw / "dataset.json", *(files.raw / "labelsTr").iterdir(), *files.results.glob("*/plans.json")]
    contents = {path: path.read_bytes() for path in kept}
    yield files
    for path, content in contents.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


@pytest.fixture
def predicted(monkeypatch):
    """Notes what is predicted, by a network that calls bright voxels 1 at once; its weights are not needed."""
    calls = []

    def logits(self, data):
        calls.append(data)
        logits = torch.zeros(4, *data.shape[1:])
        logits[1] = data[0] - 1
        return logits

    monkeypatch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", logits)
    return calls


@pytest.fixture
def preprocessed(monkeypatch):
    """Counts the cases that are preprocessed."""
    calls = []
    original = PlannedModel.preprocess
    monkeypatch.setattr(PlannedModel, "preprocess", lambda self, files: calls.append(files) or original(self, files))
    return calls


def study_of(models=(ONE,), folds=("0",), **settings):
    settings = {"corruptions": ["rician_noise", "blur"], "severities": [4], "device": "cpu", **settings}
    return find_study(DATASET, named_models(DATASET, models), folds, **settings)


def test_a_bad_image_is_preprocessed_once_for_all_models(world, predicted, preprocessed, tmp_path):
    """Fails if every model makes its own bad images, or if a second start computes anything."""
    scores = score_study(study_of((ONE, TWO)), tmp_path / "cache.jsonl")
    assert len(preprocessed) == 2 * (1 + 2) and len(predicted) == 12
    assert len(scores) == 2 * 2 * 3 * 3 and scores["Dice"].notna().all()
    pd.testing.assert_frame_equal(score_study(study_of((ONE, TWO)), tmp_path / "cache.jsonl"), scores)
    assert len(predicted) == 12
    assert scores.groupby("corruption")["Dice"].mean().nunique() == 3, "the bad images reach the network"

    path = world.results / TWO / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    path.write_text(json.dumps(plans))
    preprocessed.clear()
    score_study(study_of((ONE, TWO), corruptions=["blur"]), tmp_path / "other.jsonl")
    assert len(preprocessed) == 2 * 2 * 2, "other plans, other data"


@pytest.mark.slow
def test_neither_order_nor_company_changes_a_score(world, predicted, tmp_path):
    keys = ["case", "corruption", "severity", "structure"]
    whole = score_study(study_of(), tmp_path / "a.jsonl").set_index(keys)["Dice"]
    turned = study_of(corruptions=["blur"])
    turned.cases.reverse()
    part = score_study(turned, tmp_path / "b.jsonl").set_index(keys)["Dice"]
    pd.testing.assert_series_equal(part, whole.loc[part.index])
    seeded = score_study(study_of(seed=1), tmp_path / "a.jsonl").set_index(keys)["Dice"]
    noise = whole.index.get_level_values("corruption") == "rician_noise"
    assert (seeded[noise] != whole[noise]).any(), "another seed is not looked up"
    pd.testing.assert_series_equal(seeded[~noise], whole[~noise])


def test_a_stopped_run_goes_on(world, predicted, monkeypatch, tmp_path):
    """Fails if what was scored before a kill is lost, or computed again."""
    quick = nnUNetPredictor.predict_logits_from_preprocessed_data

    def stops(self, data):
        if len(predicted) == 4:
            raise KeyboardInterrupt
        return quick(self, data)

    cache = tmp_path / "cache.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(nnUNetPredictor, "predict_logits_from_preprocessed_data", stops)
        with pytest.raises(KeyboardInterrupt):
            score_study(study_of(), cache)
    assert len(cache.read_text().splitlines()) == 4
    with cache.open("a") as file:
        file.write('["cut of')  # in the middle of a line
    assert len(score_study(study_of(), cache)) == 2 * 3 * 3
    assert len(predicted) == 6


def test_test_images_are_predicted_by_all_folds(world, predicted, tmp_path):
    study = study_of(folds=None, test=True)
    (case,) = study.cases
    assert case.truth.parent.name == "labelsTs" and [n.folds for n in study.networks[case.fold]] == [["0"]]
    assert len(score_study(study, tmp_path / "cache.jsonl")) == 3 * 3


# ---- what is refused ----


def robustness(*arguments):
    return main(["robustness", "-d", DATASET, "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "3"], "Fold 3 has no validation cases: splits_final.json has 0."),
        (["-f", "0", "--baseline", "none"], "The reference none is none of the models:"),
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
    (world.raw / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "CT"}}))
    assert robustness("-f", 0, "--corruptions", "rician_noise") == 1
    assert "rician_noise makes no sense for CT" in capsys.readouterr().err
    study = study_of(corruptions=[])
    assert study.corruptions == ["gaussian_noise", "blur", "low_resolution"]
    assert any("left out" in sentence for sentence in study.missing)


def test_what_fails_is_named_and_the_rest_is_kept(world, predicted, tmp_path):
    second = world.raw / "labelsTr" / f"{world.cases[1]}.nii.gz"
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{world.cases[1]}, clean 0: .*{second.name}"):
        score_study(study_of(), tmp_path / "cache.jsonl")
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == 3


# ---- the whole ----


@pytest.mark.slow
def test_the_picture_of_a_case_is_drawn_once(world, predicted, tmp_path):
    arguments = ["-f", 0, "--corruptions", "blur", "--severities", 5, "-o", tmp_path, "--models"]
    assert robustness(*arguments, ONE) == 0
    picture, count = (tmp_path / "case.png").read_bytes(), len(predicted)
    assert robustness(*arguments, ONE) == 0
    assert len(predicted) == count and (tmp_path / "case.png").read_bytes() == picture
    assert robustness(*arguments, ONE, TWO) == 0
    assert (tmp_path / "case.png").read_bytes() != picture, "another model, another picture"


@pytest.mark.slow
def test_the_whole_command(world, tmp_path, capsys):
    arguments = ["-f", 0, "--models", f"A={ONE}", f"B={TWO}", "--severities", 2, 5, "-o", tmp_path / "out"]
    arguments += ["--corruptions", "gamma_up", "--baseline", "B"]
    assert robustness(*arguments) == 0
    assert "mCE (%)" in capsys.readouterr().out
    out = tmp_path / "out"
    text = (out / "robustness.md").read_text()
    for expected in ("Differences from B", "| gamma_up | A |", "mean of all", "](case.png)"):
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
    for metric in ("Dice", "HD95", "NSD"):
        left, right = (t.set_index(["case", "structure"])[metric].sort_index() for t in (clean, scored))
        pd.testing.assert_series_equal(left, right)
