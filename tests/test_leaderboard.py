"""``nnunet-din leaderboard``: finds models, scores them, says what is missing, and continues."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_din.commands.main import main
from nnunet_din.evaluation.collection import ScoredCase, collect_cross_validation, collect_predictions
from nnunet_din.evaluation.scoring import score_case, score_cases
from nnunet_din.nnunet.labels import Labels, read_labels
from nnunet_din.nnunet.models import find_models

DATASET = "Dataset995_TestLeaderboard"
STOCK, DIN = "nnUNetTrainer__nnUNetPlans__2d", "nnUNetTrainerDIN__nnUNetDINAttoPlans__2d"
SPACING = (1.5, 1.5, 10.0)  # x, y, z
CASES = ("patient1_a", "patient1_b", "patient2_a", "patient2_b")
FOLDS = {"0": CASES[:2], "1": CASES[2:]}


def write_label(path, array):
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(SPACING)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def move(path):
    """Let a label map lie elsewhere."""
    image = sitk.ReadImage(str(path))
    image.SetOrigin([o + 5 for o in image.GetOrigin()])
    sitk.WriteImage(image, str(path))


def truth_of(case):
    """A box of structure 1, and of structure 2 but for one case."""
    label = np.zeros((4, 24, 20), dtype=np.uint8)
    label[1:3, 4:14, 4:14] = 1
    if case != "patient2_b":
        label[1:3, 4:14, 15:19] = 2
    return label


@pytest.fixture
def results(nnunet_folders, dataset, plans):
    """Two models with two folds: nnU-Net's is shifted by two pixels, DIN's is right and misses structure 2 once."""
    raw, preprocessed, trained = (
        getattr(nnunet_folders, name) / DATASET for name in ("raw", "preprocessed", "results")
    )
    dataset_json = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    for folder in (raw, preprocessed, *(trained / name for name in (STOCK, DIN))):
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    splits = [{"train": list(FOLDS[str(1 - f)]), "val": list(FOLDS[str(f)])} for f in (0, 1)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    (trained / DIN / "plans.json").write_text(json.dumps(plans))
    (trained / STOCK / "plans.json").write_text("{}")  # of a network that cannot be built
    for case in CASES:
        write_label(preprocessed / "gt_segmentations" / f"{case}.nii.gz", truth_of(case))
    for fold, cases in FOLDS.items():
        for case in cases:
            truth = truth_of(case)
            right = np.where(truth == 2, 0, truth) if case == "patient1_a" else truth
            for model, label in ((STOCK, np.roll(truth, 2, axis=1)), (DIN, right)):
                write_label(trained / model / f"fold_{fold}" / "validation" / f"{case}.nii.gz", label)
        log = trained / DIN / f"fold_{fold}" / "training_log_2026_1_1_00_00_00.txt"
        log.write_text("2026: Epoch time: 12.5 s\nEpoch time: 11.5 s\nPeak GPU memory: 3.25 GB\n")
    yield SimpleNamespace(raw=raw, preprocessed=preprocessed, trained=trained)
    for folder in (raw, preprocessed, trained):
        shutil.rmtree(folder)


def leaderboard(*arguments):
    return main(["leaderboard", "-np", "1", "--resamples", "200", *map(str, arguments)])


@pytest.mark.slow
def test_the_whole_command(results, tmp_path, capsys):
    assert leaderboard("-d", 995, "-o", tmp_path, "--protocol", "merit", "--published", "acdc") == 0
    out = capsys.readouterr().out
    ranking = out[out.index("first alone in bootstraps") :]
    assert ranking.index(DIN) < ranking.index(STOCK)
    cases = pd.read_csv(tmp_path / "cases.csv")
    assert list(cases.columns)[:7] == ["model", "fold", "case", "structure", "Dice", "HD95", "NSD"]
    assert len(cases) == 2 * 4 * 2
    cases = cases.set_index(["model", "case", "structure"])
    # Shifted by 2 of 10 pixels of 1.5 mm; missed; and in neither, which counts in the protocol of the papers alone.
    assert cases.loc[(STOCK, "patient2_a", "one"), ["Dice", "HD95", "HD95_merit"]].tolist() == pytest.approx(
        [0.8, 3, 2]
    )
    assert cases.loc[(DIN, "patient1_a", "two"), ["Dice", "NSD", "HD95_merit"]].tolist() == [0, 0, 0]
    neither = cases.loc[(DIN, "patient2_b", "two")]
    assert np.isnan(neither["Dice"]) and neither["Dice_merit"] == 0

    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("model")
    assert table.loc[DIN, "Dice_one_mean"] == 1 and table.loc[DIN, "Dice_two_mean"] == pytest.approx(2 / 3)
    assert table.loc[DIN, "Dice_mean_mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert table.loc[DIN, "Dice_mean_fold_mean"] == pytest.approx((0.75 + 1) / 2)
    assert table.loc[DIN, ["seconds_per_epoch", "peak_memory_gb"]].tolist() == [12, 3.25]
    assert table.loc[DIN, "parameters"] > 1e7 and table.loc[DIN, "multiply_adds"] > 1e9
    assert np.isnan(table.loc[STOCK, "parameters"]) and "cannot be counted" in out

    text = (tmp_path / "leaderboard.md").read_text()
    for expected in ("80.00 ± 0.00", "Dice 0, NSD 0", "NOT measured here", "93.25", "HD95 (voxels), merit", "| two |"):
        assert expected in text, expected
    assert (tmp_path / "leaderboard.html").read_text().count("data:image/png;base64") == text.count("](")
    for name in ("Dice", "HD95", "NSD", "rank_stability", "Dice_against_multiply_adds"):
        assert (tmp_path / f"{name}.pdf").exists() and (tmp_path / f"{name}.png").exists()


PROBE = """<script>
const heading = document.querySelectorAll("th")[2];
const column = () => [...document.querySelector("tbody").rows].map((row) => parseFloat(row.cells[2].textContent));
const sorted = [0, 1].map(() => (heading.click(), column()));
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.title = "RESULT " + JSON.stringify([...sorted, wide]);
</script></body>"""


@pytest.mark.slow
def test_report_in_a_browser(results, tmp_path):
    """Fails if a table does not sort by a click, something is wider than the window, or the console has an error."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    assert leaderboard("-d", 995, "-o", tmp_path, "--protocol", "merit") == 0
    page = tmp_path / "probe.html"
    page.write_text((tmp_path / "leaderboard.html").read_text().replace("</body>", PROBE))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,900", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rising, falling, wide = json.loads(unescape(re.search(r"<title>RESULT (.*?)</title>", run.stdout)[1]))
    assert rising == sorted(rising) and falling == rising[::-1] and len(set(rising)) > 1
    assert not wide and "CONSOLE" not in run.stderr


@pytest.mark.slow
def test_a_single_model_under_a_name_is_not_ranked(results, tmp_path):
    """A training on all cases has no validation, and is not called untrained."""
    (results.trained / DIN / "fold_all").mkdir()
    assert leaderboard("-d", 995, "-o", tmp_path, "--models", f"DIN={DIN}", "-f", "0", "all") == 0
    text = (tmp_path / "leaderboard.md").read_text()
    assert "## Result" in text and "rank" not in text.partition("## How to read")[0].lower()
    assert "fold all has no validation predictions yet" in text
    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("model")
    assert table.loc["DIN", "parameters"] > 1e7, "costs are looked up by the folder"


@pytest.mark.slow
def test_what_is_missing_is_named(results, tmp_path, capsys):
    """Fails if a fold or case that is not there is silently left out of a mean."""
    (results.trained / STOCK / "fold_1" / "validation" / "patient2_a.nii.gz").unlink()
    shutil.rmtree(results.trained / DIN / "fold_0" / "validation")
    assert leaderboard("-d", DATASET, "-o", tmp_path) == 0
    errors = capsys.readouterr().err
    text = (tmp_path / "leaderboard.md").read_text()
    for sentence in (
        f"{STOCK}: fold 1 has no prediction of patient2_a",
        f"{DIN}: fold 0 has no validation predictions yet",
    ):
        assert f"MISSING: {sentence}\n" in errors and f"**Missing: {sentence}.**" in text
    assert "3 cases that not every model has predicted are left out" in text
    shutil.rmtree(results.trained / DIN / "fold_1" / "validation")
    assert leaderboard("-d", DATASET, "-o", tmp_path, "--models", DIN) == 1
    assert "There is nothing to score for Dataset995" in capsys.readouterr().err


def score(results, cache, **settings):
    """What the command scores, without its tables and pictures."""
    labels = read_labels(results.preprocessed / "dataset.json")
    models = {model.name: model for model in find_models(995)}
    cases = collect_cross_validation(995, labels, models).cases
    return score_cases(cases, labels, {"one": 2, "two": 2}, cache, **settings)


def test_continues_and_sees_new_predictions(results, tmp_path, capsys, monkeypatch):
    """Fails if finished cases are computed again, or a prediction that was made anew, or another metric, is not."""
    cache = tmp_path / "scored_cases.jsonl"
    before, _ = score(results, cache)
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([*lines[:5], lines[5][:40]]) + "\n")  # interrupted while it wrote the sixth
    capsys.readouterr()
    pd.testing.assert_frame_equal(score(results, cache)[0], before)
    assert "5 of 8 cases were scored before" in capsys.readouterr().err
    write_label(results.trained / DIN / "fold_0" / "validation" / "patient1_a.nii.gz", truth_of("patient1_a"))
    after, _ = score(results, cache)
    assert "7 of 8 cases were scored before" in capsys.readouterr().err
    assert (after["Dice"].sum() - before["Dice"].sum()) == pytest.approx(1)
    monkeypatch.setattr("nnunet_din.evaluation.scoring.METRICS_VERSION", 1000)
    score(results, cache)
    assert "were scored before" not in capsys.readouterr().err


@pytest.mark.slow
def test_processes_score_the_same(results, tmp_path):
    pd.testing.assert_frame_equal(*(score(results, tmp_path / str(n), processes=n)[0] for n in (1, 2)))


@pytest.mark.slow
def test_folders_of_predictions(results, tmp_path, capsys):
    """A test set: predictions of any origin against true label maps; the default tolerance can be changed."""
    truth = results.preprocessed / "gt_segmentations"
    moved = tmp_path / "moved"
    for case in CASES[:3]:
        write_label(moved / f"{case}.nii.gz", np.roll(truth_of(case), 2, axis=1))
    json_file = results.raw / "dataset.json"
    arguments = ["--pred", f"truth={truth}", f"moved={moved}", "--gt", truth, "--dataset-json", json_file]
    arguments += ["-o", tmp_path / "out", "--reference", "moved", "--group-by", r"patient\d"]
    assert leaderboard(*arguments, "--tolerance", "4", "one=2.9") == 0
    assert "MISSING: moved: no prediction of patient2_b" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "out" / "leaderboard.csv").set_index("model")
    assert table.loc["moved", "NSD_two_mean"] == 1 and table.loc["moved", "NSD_one_mean"] < 1
    differences = pd.read_csv(tmp_path / "out" / "differences.csv")
    assert set(differences["model"]) == {"truth"} and (differences["n"] == 2).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to score"),
        (["-d", "994"], "No data set Dataset994_*"),
        (["-d", "995", "--models", "other"], f"No trained model is called other. There are: {DIN}, {STOCK}"),
        (["-d", "995", "--reference", "other"], "The reference other is none of the models"),
        (["-d", "995", "--group-by", r"subject\d"], "does not match the case"),
        (["-d", "995", "--tolerance", "three=1"], "one of one, two; got 'three=1'"),
        (["-d", "995", "--tolerance", "-1"], "more than 0 mm"),
        (["--pred", "a=b"], "--pred and --gt belong together"),
        (["--pred", "a", "--gt", "b"], "--pred takes NAME=FOLDER"),
        (["--pred", "a=b", "--gt", "nowhere", "-d", "995"], "nowhere holds no label maps called *.nii.gz"),
        (["-d", "995", "--models", f"m={DIN}", f"m={STOCK}"], "Two models have the same name"),
    ],
)
def test_what_cannot_be_scored(results, tmp_path, capsys, arguments, message):
    assert leaderboard(*arguments, "-o", tmp_path) == 1
    assert message in capsys.readouterr().err


def test_overlapping_folds_are_not_one_cross_validation(results, tmp_path, capsys):
    write_label(results.trained / DIN / "fold_2" / "validation" / "patient1_a.nii.gz", truth_of("patient1_a"))
    assert leaderboard("-d", 995, "-o", tmp_path) == 1
    assert f"Folds 0 and 2 of {DIN} both predict patient1_a" in capsys.readouterr().err


def test_what_cannot_be_scored_is_named_and_the_others_are_kept(results, tmp_path, capsys):
    """A prediction in another place, one that is cut off, and one of another shape."""
    first, second = (results.trained / DIN / "fold_0" / "validation" / f"{case}.nii.gz" for case in CASES[:2])
    move(first)
    second.write_bytes(second.read_bytes()[:-9])
    write_label(results.trained / DIN / "fold_1" / "validation" / "patient2_a.nii.gz", np.zeros((4, 24, 21)))
    assert leaderboard("-d", 995, "-o", tmp_path) == 1
    message = capsys.readouterr().err
    assert "patient1_a.nii.gz has the origin (5, 5, 5) and its truth" in message
    assert "(and 2 more cases cannot be scored)" in message
    assert len((tmp_path / "scored_cases.jsonl").read_text().splitlines()) == 5
    _, errors = score(results, tmp_path / "scored_cases.jsonl")
    assert "patient1_b.nii.gz is damaged or cut off" in str(errors[1])
    assert "patient2_a.nii.gz has shape (4, 24, 21) and its truth" in str(errors[2])


@pytest.mark.slow
def test_cases_that_cannot_be_scored_are_left_out_if_asked(results, tmp_path, capsys):
    write_label(results.trained / DIN / "fold_0" / "validation" / "patient1_a.nii.gz", 9 * truth_of("patient1_a"))
    assert leaderboard("-d", 995, "-o", tmp_path, "--leave-out-invalid") == 0
    message = capsys.readouterr().err
    assert re.search(r"LEFT OUT: .*patient1_a.nii.gz: the value 9 at .* is none of the labels", message)
    cases = pd.read_csv(tmp_path / "cases.csv")
    assert len(cases[cases["model"] == STOCK]) == 8 and len(cases[cases["model"] == DIN]) == 6
    assert "Missing: left out: " in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep")
def test_a_killed_leaderboard_leaves_no_process_behind(results, tmp_path):
    """Its workers, and the server that they are forked from, end within seconds, in the midst of their work as well."""
    for case in range(400):
        for folder in (results.preprocessed / "gt_segmentations", results.trained / DIN / "fold_0" / "validation"):
            write_label(folder / f"more{case}.nii.gz", truth_of("patient1_a"))
    command = [sys.executable, "-m", "nnunet_din.commands.main", "leaderboard", "-d", "995", "-np", "2", "-o", tmp_path]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_until(condition, seconds):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    cache = tmp_path / "scored_cases.jsonl"
    wait_until(lambda: process.poll() is not None or (cache.is_file() and cache.stat().st_size), 300)
    process.kill()
    assert process.wait() < 0, "it was still at work"
    wait_until(lambda: subprocess.run(["pgrep", "-s", str(process.pid)], stdout=subprocess.DEVNULL).returncode, 15)


def spacing_file(path, spacing):
    path.with_suffix(".json").write_text(json.dumps({"spacing": spacing}))


@pytest.mark.parametrize("known", ["prediction", "both"])
def test_spacing_of_tiff_volumes_is_that_of_the_side_that_has_it(tmp_path, capfd, known):
    """nnU-Net copies the truth without its spacing file; fails if HD95 is in voxels, or the copy is refused.

    The reader for pictures, which nnU-Net tries first, takes the four slices for colours.
    """
    case = ScoredCase("m", "0", "case", tmp_path / "prediction.tif", tmp_path / "truth.tif")
    truth = truth_of("case")
    for path, label in ((case.truth, truth), (case.prediction, np.roll(truth, 1, axis=0))):
        tifffile.imwrite(path, label, photometric="minisblack")
    for side, path in (("truth", case.truth), ("prediction", case.prediction)):
        if known in (side, "both"):
            spacing_file(path, [10, 1.5, 1.5])
    labels = Labels({"one": (1,), "two": (2,)}, file_ending=".tif")
    rows = score_case(case, labels, {"one": 2, "two": 2})
    assert [row["HD95"] for row in rows] == [10, 10] and rows[0]["truth_ml"] == pytest.approx(200 * 22.5 / 1000)
    assert "".join(capfd.readouterr()) == ""
    if known == "both":
        spacing_file(case.truth, [5, 1.5, 1.5])
        with pytest.raises(ValueError, match="has the spacing"):
            score_case(case, labels, {"one": 2, "two": 2})


def test_predictions_are_read_by_the_reader_of_their_plans(tmp_path):
    """nnU-Net writes the plans beside its predictions; what a reader of nibabel says of the place is compared, too."""
    path = tmp_path / "prediction" / "case.nii.gz"
    for folder in ("truth", "prediction"):
        write_label(tmp_path / folder / path.name, truth_of("case"))
    (path.parent / "plans.json").write_text('{"image_reader_writer": "NibabelIOWithReorient"}')
    (case,) = collect_predictions({"m": path.parent}, tmp_path / "truth", ".nii.gz").cases
    labels = Labels({"one": (1,), "two": (2,)})
    assert score_case(case, labels, {"one": 2, "two": 2})[0]["Dice"] == 1
    move(path)
    with pytest.raises(ValueError, match="has the affine"):
        score_case(case, labels, {"one": 2, "two": 2})


def test_regions_and_ignored_voxels(tmp_path):
    """A region is the union of its labels, and what the truth marks as ignored does not count."""
    case = ScoredCase("m", "0", "case", tmp_path / "prediction.nii.gz", tmp_path / "truth.nii.gz")
    labels, tolerances = Labels({"both": (1, 2), "two": (2,)}, ignore=3), {"both": 2, "two": 2}
    truth = truth_of("case")
    write_label(case.prediction, np.roll(truth, 2, axis=1))
    write_label(case.truth, truth)
    assert score_case(case, labels, tolerances)[0]["Dice"] == pytest.approx(0.8)
    truth[:, 14:] = 3
    write_label(case.truth, truth)
    # Two rows of pixels too low on ten: those below are ignored, those above are missed.
    assert score_case(case, labels, tolerances)[0]["Dice"] == pytest.approx(2 * 8 / (8 + 10))
