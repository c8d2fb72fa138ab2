"""The report on bad images: tables, statistics and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from nnunet_din.data.images import read_image, read_label_map
from nnunet_din.evaluation.comparison import Case, Comparison, read_row
from nnunet_din.evaluation.metrics import POLICY
from nnunet_din.evaluation.report import Section
from nnunet_din.evaluation.robustness import CleanCase, Network, Study, key_of
from nnunet_din.evaluation.robustness_metrics import by_case, by_corruption, dice_by_case
from nnunet_din.evaluation.scoring import ScoreCache
from nnunet_din.evaluation.statistics import MEAN, compare_with_reference, interval
from nnunet_din.evaluation.tables import difference_table, percent, write_report
from nnunet_din.nnunet.labels import label_names
from nnunet_din.plotting.panel import panel
from nnunet_din.plotting.robustness import dice_by_severity
from nnunet_din.plotting.selection import largest_slice
from nnunet_din.plotting.style import save_both, save_figure

#: Measure -> heading of its paired differences.
_COMPARED = {"weighted_mean_dice": "weighted mean Dice (points)", "retained_dice": "retained Dice (points)"}
#: Column of ``summary.csv`` -> heading in the report.
_SUMMARY = {
    "clean": "clean Dice (%)",
    "weighted_mean_dice": "weighted mean Dice (%)",
    "degradation": "degradation (points)",
    "retained_dice": "retained Dice (%) [95 %]",
    "mCE": "mCE (%)",
}
#: Column of ``robustness.csv`` -> heading in the report, after those of the severities.
_MEASURES = {
    "weighted_mean_dice": "weighted mean",
    "degradation": "degradation",
    "retained_dice": "retained",
    "corruption_error": "CE",
}
#: Most models that the picture of a case shows.
_MOST_COLUMNS = 4


@dataclass
class RobustnessReport:
    """Everything that is said about models on bad images.

    Attributes
    ----------
    title : str
        Name of the data set.
    scores : pandas.DataFrame
        See :func:`nnunet_din.evaluation.robustness.score_study`.
    baseline : str
        Model whose corruption error is 100 %, and with which the others are compared.
    missing : sequence of str
        A sentence for each fold that is not there, or corruption that was left out.
    group_by : str or None
        See :func:`nnunet_din.evaluation.statistics.paired_values`.
    seed : int
        Seed of the corruptions.
    command, day : str
        How and when it was made.
    """

    title: str
    scores: pd.DataFrame
    baseline: str
    missing: Sequence[str] = ()
    group_by: str | None = None
    seed: int = 0
    command: str = "nnunet-din robustness"
    day: str = ""

    def __post_init__(self):
        self.dice = dice_by_case(self.scores)
        self.mean_dice = self.dice.groupby("model", sort=False).mean()
        self.measures = by_case(self.dice)
        self.table = by_corruption(self.measures, self.baseline)
        self.differences = {measure: self._compare(measure) for measure in _COMPARED}

    def _compare(self, measure: str) -> pd.DataFrame:
        """Paired differences from the baseline by the leaderboard's code, a row for each model and corruption."""
        values = self.measures.rename(columns={"corruption": "structure", measure: "Dice"})
        return compare_with_reference(values, "Dice", self.baseline, self.group_by).rename(
            columns={"structure": "corruption"}
        )

    def summary(self) -> pd.DataFrame:
        """One row a model: means over the corruptions, fractions in full; what ``summary.csv`` holds."""
        means = self.table.groupby("model", sort=False).mean().drop(columns="error")
        return means.rename(columns={"corruption_error": "mCE"}).reset_index()

    def full(self) -> pd.DataFrame:
        """One row for each corruption and model: Dice by severity and the measures; ``robustness.csv``."""
        corruptions = self.table.index.unique("corruption")
        bad = pd.concat({name: self.mean_dice[name] for name in corruptions}, names=["corruption"]).add_prefix("Dice_")
        return bad.join(self.table).rename(columns={"clean": "Dice_0"}).reset_index()

    def write(self, folder: Path, case: Path | None = None) -> list[Path]:
        """Write ``robustness.md``, ``.html`` and ``.csv``, ``summary.csv``, ``cases.csv``, ``differences.csv`` and the
        plot.

        Parameters
        ----------
        folder
            Made if needed.
        case
            Picture of a case, a PNG file in this folder.

        Returns
        -------
        list of pathlib.Path
            The files, without the plots.
        """
        sections = [self._summary_section(), self._corruption_section()]
        sections[1].pictures = [save_both(dice_by_severity(self.mean_dice), folder / "Dice_by_severity")[1]]
        if len(self.mean_dice) > 1:
            sections.append(self._difference_section())
        if case:
            sections.append(Section("One case at the highest severity", pictures=[case]))
        tables = {
            "robustness": self.full(),
            "summary": self.summary(),
            "cases": self.scores,
            "differences": pd.concat([table.assign(measure=name) for name, table in self.differences.items()]),
        }
        title = f"Bad images of {self.title}"
        return write_report(folder, "robustness", title, [*sections, self._notes_section()], tables)

    def overview(self) -> str:
        """Write the summary as lines for the terminal."""
        return self._summary_table().to_string(index=False)

    def _summary_table(self) -> pd.DataFrame:
        table = self.summary().set_index("model")[list(_SUMMARY)].map(percent)
        for model, measures in self.measures.groupby("model"):
            low, high = interval(measures.groupby("case")["retained_dice"].mean())
            table.loc[model, "retained_dice"] += f" [{percent(low)}, {percent(high)}]"
        return table.rename(columns=_SUMMARY).reset_index()

    def _summary_section(self) -> Section:
        note = f"Means over {len(self.table.index.unique('corruption'))} corruptions and {self._units()}."
        warnings = [f"Missing: {sentence}." for sentence in self.missing]
        return Section("Result", self._summary_table(), [note], warnings=warnings)

    def _corruption_section(self) -> Section:
        table = self.full().set_index(["corruption", "model"])
        by_severity = {name: name.removeprefix("Dice_") for name in sorted(table.filter(like="Dice_"))}
        table = table[[*by_severity, *_MEASURES]].map(percent).rename(columns=by_severity | _MEASURES)
        return Section("Dice (%) by corruption and severity", table.reset_index())

    def _difference_section(self) -> Section:
        means = {name: table.replace({"corruption": {MEAN: "mean of all"}}) for name, table in self.differences.items()}
        table = difference_table(means, _COMPARED, dict.fromkeys(_COMPARED, 100), "measure")
        note = (
            f"Paired differences, model less baseline, over {self._units()}. 95 % intervals by bootstrap; two-sided "
            "Wilcoxon signed-rank test, corrected by Holm over all rows of a measure."
        )
        return Section(f"Differences from {self.baseline}", table, [note])

    def _units(self) -> str:
        cases = len(self.dice.index.unique("case"))
        return f"{cases} cases" + (f" in groups ({self.group_by})" if self.group_by else "")

    def _notes_section(self) -> Section:
        notes = [
            f"`{self.command}`, {self.day}; seed {self.seed} of the corruptions.",
            "Images are corrupted as they are stored, then preprocessed and predicted as always; the truth is as it "
            "was. With D_s the mean Dice at severity s, D_0 that of the clean images and a = 2/3 (ROOD-MRI): weighted "
            "mean Dice (D_0 + sum a^s D_s) / (1 + sum a^s), degradation sum a^s (D_0 - D_s) / sum a^s. Retained Dice: "
            "mean of D_s over the severities, divided by D_0. CE: sum of 1 - D_s, divided by that of the baseline "
            f"{self.baseline}; mCE is its mean over the corruptions. " + POLICY,
            "cases.csv has a row per model, case, corruption, severity and structure, with HD95 and NSD.",
        ]
        return Section("How to read this", notes=notes)


def draw_typical_case(report: RobustnessReport, study: Study, cache: Path, path: Path) -> Path:
    """Draw the case whose mean Dice over models and bad images is the median one: the slice in which its truth is
    largest, clean and at the highest severity of every corruption, with what the models make of it.

    Parameters
    ----------
    report, study
        The study, and what is reported of it. The first models are shown, and the enhanced image of the first DIN
        model.
    cache
        File of the scores, beside the picture, which also says what the picture shows.
    path
        File to write. It is left as it is if it shows the same already.
    """
    mean = report.dice.mean(axis=1).groupby("case", sort=False).mean().sort_values(kind="stable")
    case = next(case for case in study.cases if case.name == mean.index[len(mean) // 2])
    networks = study.networks[case.fold][:_MOST_COLUMNS]
    shown = [bad for bad in study.bad if bad[1] in (0, max(study.severities))]
    drawn = [
        {"model": network.name, "key": key_of(study, network, case, *bad)} for network in networks for bad in shown
    ]
    done = ScoreCache(cache)
    if path.is_file() and done.get(path.name) == drawn:
        return path
    planned = next((network.model for network in networks if network.model.enhancements), None)
    names, reader = label_names(study.description), networks[0].model.reader
    comparison = Comparison([], reader, study.labels.structures, study.labels.ignore, names, planned)
    truth = read_label_map(case.truth, reader)
    index = largest_slice(np.moveaxis(truth, read_image(case.images[0]).slice_axis, 0))
    rows = [_case_row(study, networks, comparison, case, bad, index) for bad in shown]
    save_figure(panel(rows, names, style="contour"), path)
    done.add(path.name, drawn)
    return path


def _case_row(
    study: Study, networks: Sequence[Network], comparison: Comparison, case: CleanCase, bad: tuple[str, int], index: int
) -> dict:
    """Predict one bad image, and make the row of one of its slices."""
    from nnunet_din.nnunet.prediction import predict_case

    with study.corrupted(case, *bad) as images, TemporaryDirectory() as folder:
        maps = {}
        for number, network in enumerate(networks):
            maps[network.name] = Path(folder, str(number), f"{case.name}{study.labels.file_ending}")
            with redirect_stdout(StringIO()):
                predict_case(network.model, network.predictor, images, maps[network.name])
        name = bad[0].replace("_", " ") + (f" {bad[1]}" if bad[1] else "")
        shown = Case(name, images, 0, case.truth, maps)
        row = read_row(shown, comparison, index=index, boxes=0, crop=False)
    if comparison.planned is None:
        del row["enhanced"]
    return row
