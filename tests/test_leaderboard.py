"""``nnunet-din leaderboard``: finds models, scores them, says what is missing, and continues."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_din.commands.main import main
from nnunet_din.evaluation.collection import ScoredCase, collect_predictions
from nnunet_din.evaluation.scoring import score_case
from nnunet_din.nnunet.labels import Labels
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


def test_models_of_a_data_set(results):
    (results.trained / DIN / "fold_all").mkdir()
    (results.trained / "crossval").mkdir()
    models = find_models(995)
    assert [model.name for model in models] == [DIN, STOCK]
    assert list(models[0].folds) == ["0", "1"]


@pytest.mark.slow
def test_the_whole_command(results, tmp_path, capsys):
    assert leaderboard("-d", 995, "-o", tmp_path, "--protocol", "merit", "--published", "acdc") == 0
    out = capsys.readouterr().out
    ranking = out[out.index("first alone in bootstraps") :]
    assert ranking.index(DIN) < ranking.index(STOCK)
    cases = pd.read_csv(tmp_path / "cases.csv")
    assert list(cases.columns)[:7] == ["model", "fold", "case", "structure", "Dice", "HD95", "NSD"]
    assert len(cases) == 2 * 4 * 2

    def value(model, case, structure, column):
        rows = cases[(cases["model"] == model) & (cases["case"] == case) & (cases["structure"] == structure)]
        return rows[column].item()

    # Shifted by 2 of 10 pixels of 1.5 mm.
    assert value(STOCK, "patient2_a", "one", "Dice") == pytest.approx(0.8)
    assert value(STOCK, "patient2_a", "one", "HD95") == pytest.approx(3)
    assert value(STOCK, "patient2_a", "one", "HD95_merit") == pytest.approx(2)
    assert value(STOCK, "patient2_a", "one", "truth_ml") == pytest.approx(200 * 22.5 / 1000)
    # Missed: counts as 0 and as the diagonal, in the protocol of the papers as 0 mm.
    assert value(DIN, "patient1_a", "two", "Dice") == 0
    assert value(DIN, "patient1_a", "two", "HD95") == pytest.approx(np.hypot(np.hypot(30, 34.5), 28.5))
    assert value(DIN, "patient1_a", "two", "HD95_merit") == 0
    # In neither: not counted, but a 0 in the protocol of the papers.
    assert np.isnan(value(DIN, "patient2_b", "two", "Dice")) and value(DIN, "patient2_b", "two", "Dice_merit") == 0

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


PROBE = """
const results = {};
const table = document.querySelector("table"), heading = table.querySelectorAll("th")[2];
const column = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[2].textContent));
heading.click(); results.rising = column();
heading.click(); results.falling = column();
results.too_wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
results.backticks = document.body.innerText.includes("`");
document.title = "RESULT " + JSON.stringify(results);
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_report_in_a_browser(results, tmp_path, width):
    """Fails if a table does not sort by a click, something is wider than the window, or the console has an error."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    assert leaderboard("-d", 995, "-o", tmp_path, "--protocol", "merit") == 0
    page = tmp_path / "probe.html"
    html = (tmp_path / "leaderboard.html").read_text()
    page.write_text(html.replace("</body>", f"<script>{PROBE}</script></body>"))
    run = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(unescape(re.search(r"<title>RESULT (.*?)</title>", run.stdout)[1]))
    assert found["rising"] == sorted(found["rising"]) and found["falling"] == found["rising"][::-1]
    assert len(set(found["rising"])) > 1
    assert found["too_wide"] <= 0 and not found["backticks"]
    assert "CONSOLE" not in run.stderr, run.stderr


@pytest.mark.slow
def test_a_single_model_is_not_ranked(results, tmp_path):
    assert leaderboard("-d", 995, "-o", tmp_path, "--models", DIN) == 0
    text = (tmp_path / "leaderboard.md").read_text()
    assert "## Result" in text and "rank" not in text.lower() and "Folds of a" not in text


def test_prediction_in_another_place_is_refused(results, tmp_path, capsys):
    """Fails if a prediction that does not lie where its truth lies is scored in silence."""
    path = results.trained / DIN / "fold_0" / "validation" / "patient1_a.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetOrigin([o + 5 for o in image.GetOrigin()])
    sitk.WriteImage(image, str(path))
    assert leaderboard("-d", 995, "-o", tmp_path) == 1
    assert "patient1_a.nii.gz has the origin (5, 5, 5) and its truth" in capsys.readouterr().err


@pytest.mark.slow
def test_training_on_all_cases_has_no_validation_and_is_not_called_untrained(results, tmp_path, capsys):
    (results.trained / DIN / "fold_all").mkdir()
    assert leaderboard("-d", 995, "-o", tmp_path, "-f", "0", "all") == 0
    assert "fold all has no validation predictions yet" in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.slow
def test_scores_of_another_version_of_the_metrics_are_computed_again(results, tmp_path, capsys, monkeypatch):
    leaderboard("-d", 995, "-o", tmp_path)
    capsys.readouterr()
    monkeypatch.setattr("nnunet_din.evaluation.scoring.METRICS_VERSION", 1000)
    leaderboard("-d", 995, "-o", tmp_path)
    assert "were scored before" not in capsys.readouterr().err


def test_a_missing_folder_of_truths_is_named(results, tmp_path, capsys):
    folder = results.trained / DIN / "fold_0" / "validation"
    assert leaderboard("--pred", f"A={folder}", "--gt", tmp_path / "nowhere", "-o", tmp_path) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err


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


@pytest.mark.slow
def test_models_under_names(results, tmp_path, capsys):
    """Fails if a name is lost in a table, or the costs are looked up under another one."""
    chosen = ("--models", f"DIN={DIN}", STOCK)
    assert leaderboard("-d", 995, "-o", tmp_path, *chosen, "--reference", "DIN") == 0
    table = pd.read_csv(tmp_path / "leaderboard.csv").set_index("model")
    assert set(table.index) == {"DIN", STOCK} and table.loc["DIN", "parameters"] > 1e7
    assert leaderboard("-d", 995, "-o", tmp_path, "--models", f"DIN={DIN}", f"DIN={STOCK}") == 1
    assert "Two models have the same name" in capsys.readouterr().err


@pytest.mark.slow
def test_continues_and_sees_new_predictions(results, tmp_path, capsys):
    """Fails if finished cases are computed again, or a prediction that was made anew is not."""
    assert leaderboard("-d", 995, "-o", tmp_path) == 0
    cache = tmp_path / "scored_cases.jsonl"
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([*lines[:5], lines[5][:40]]) + "\n")  # interrupted while it wrote the sixth
    before = (tmp_path / "cases.csv").read_text()
    capsys.readouterr()
    assert leaderboard("-d", 995, "-o", tmp_path) == 0
    assert "5 of 8 cases were scored before" in capsys.readouterr().err
    assert (tmp_path / "cases.csv").read_text() == before
    write_label(results.trained / DIN / "fold_0" / "validation" / "patient1_a.nii.gz", truth_of("patient1_a"))
    assert leaderboard("-d", 995, "-o", tmp_path) == 0
    assert "7 of 8 cases were scored before" in capsys.readouterr().err
    assert pd.read_csv(tmp_path / "leaderboard.csv").set_index("model").loc[DIN, "Dice_mean_mean"] == 1


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
    ],
)
def test_what_cannot_be_scored(results, tmp_path, capsys, arguments, message):
    assert leaderboard(*arguments, "-o", tmp_path) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_overlapping_folds_are_not_one_cross_validation(results, tmp_path, capsys):
    write_label(results.trained / DIN / "fold_2" / "validation" / "patient1_a.nii.gz", truth_of("patient1_a"))
    assert leaderboard("-d", 995, "-o", tmp_path) == 1
    assert f"Folds 0 and 2 of {DIN} both predict patient1_a" in capsys.readouterr().err
    assert leaderboard("-d", 995, "-o", tmp_path, "-f", "0", "1") == 0


def test_prediction_of_another_shape_is_named_and_the_others_are_kept(results, tmp_path, capsys):
    """The first case is the wrong one; fails if the others are not scored and kept all the same."""
    write_label(results.trained / DIN / "fold_0" / "validation" / "patient1_a.nii.gz", np.zeros((4, 24, 21)))
    assert leaderboard("-d", 995, "-o", tmp_path) == 1
    message = capsys.readouterr().err
    assert "patient1_a.nii.gz has shape (4, 24, 21) and its truth" in message
    assert len((tmp_path / "scored_cases.jsonl").read_text().splitlines()) == 7


def test_cases_that_cannot_be_scored_are_left_out_if_asked(results, tmp_path, capsys):
    validation = results.trained / DIN / "fold_0" / "validation"
    write_label(validation / "patient1_a.nii.gz", 9 * truth_of("patient1_a"))
    whole = (validation / "patient1_b.nii.gz").read_bytes()
    (validation / "patient1_b.nii.gz").write_bytes(whole[:-9])
    assert leaderboard("-d", 995, "-o", tmp_path) == 1
    assert "(and 1 more cases cannot be scored)" in capsys.readouterr().err
    assert leaderboard("-d", 995, "-o", tmp_path, "--leave-out-invalid") == 0
    message = capsys.readouterr().err
    assert re.search(r"LEFT OUT: .*patient1_a.nii.gz: the value 9 at .* is none of the labels", message)
    assert re.search(r"LEFT OUT: .*patient1_b.nii.gz is damaged or cut off", message)
    cases = pd.read_csv(tmp_path / "cases.csv")
    assert len(cases[cases["model"] == STOCK]) == 8 and len(cases[cases["model"] == DIN]) == 4
    assert "Missing: left out: " in (tmp_path / "leaderboard.md").read_text()


def processes_of(session: int) -> list[int]:
    """Those that were started in a session, but for its first, and run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, number = status.read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z" and int(status.parent.name) != session:
                found.append(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_leaderboard_leaves_no_process_behind(results, tmp_path):
    """Its workers, and the server that they are forked from, end within seconds, in the midst of their work as well."""
    for case in range(400):
        for folder in (results.preprocessed / "gt_segmentations", results.trained / DIN / "fold_0" / "validation"):
            write_label(folder / f"more{case}.nii.gz", truth_of("patient1_a"))
    command = [sys.executable, "-m", "nnunet_din.commands.main", "leaderboard", "-d", "995", "-np", "2", "-o", tmp_path]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cache, end = tmp_path / "scored_cases.jsonl", time.monotonic() + 300
    while not (cache.is_file() and cache.stat().st_size):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    assert processes_of(process.pid)
    process.kill()
    process.wait()
    end = time.monotonic() + 15
    while left := processes_of(process.pid):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def spacing_file(path, spacing):
    path.with_suffix(".json").write_text(json.dumps({"spacing": spacing}))


@pytest.mark.parametrize("known", ["truth", "prediction", "both"])
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
    image = sitk.ReadImage(str(path))
    image.SetOrigin([o + 5 for o in image.GetOrigin()])
    sitk.WriteImage(image, str(path))
    with pytest.raises(ValueError, match="has the affine"):
        score_case(case, labels, {"one": 2, "two": 2})


def test_regions_and_ignored_voxels(results, tmp_path):
    """A region is the union of its labels, and what the truth marks as ignored does not count."""
    content = json.loads((results.preprocessed / "dataset.json").read_text())
    content["labels"] = {"background": 0, "both": [1, 2], "two": 2, "ignore": 3}
    (results.preprocessed / "dataset.json").write_text(json.dumps(content))
    truth = truth_of("patient1_b")
    truth[:, 14:] = 3
    write_label(results.preprocessed / "gt_segmentations" / "patient1_b.nii.gz", truth)
    assert leaderboard("-d", 995, "-o", tmp_path, "--models", STOCK) == 0
    cases = pd.read_csv(tmp_path / "cases.csv").set_index(["case", "structure"])
    # Two rows of pixels too low on ten: those below are ignored, those above are missed.
    assert cases.loc[("patient1_b", "both"), "Dice"] == pytest.approx(2 * 8 / (8 + 10))
    assert cases.loc[("patient2_a", "both"), "Dice"] == pytest.approx(0.8)
