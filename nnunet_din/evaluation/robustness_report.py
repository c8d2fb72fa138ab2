"""The report on bad images: tables, statistics and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from nnunet_din.data.files import write_text
from nnunet_din.data.images import read_image, read_label_map
from nnunet_din.evaluation.comparison import Case, Comparison, read_row
from nnunet_din.evaluation.leaderboard import p_text
from nnunet_din.evaluation.metrics import POLICY
from nnunet_din.evaluation.report import Section, to_html, to_markdown
from nnunet_din.evaluation.robustness import CLEAN, CleanCase, Network, Study
from nnunet_din.evaluation.robustness_metrics import by_case, by_corruption, dice_by_case
from nnunet_din.evaluation.statistics import MEAN, compare_with_reference, interval
from nnunet_din.nnunet.labels import label_names
from nnunet_din.plotting.panel import panel
from nnunet_din.plotting.robustness import dice_by_severity
from nnunet_din.plotting.selection import largest_slice
from nnunet_din.plotting.style import save_both, save_figure

#: Measure -> heading of its paired differences.
_COMPARED = {"weighted_mean_dice": "weighted mean Dice (points)", "retained_dice": "retained Dice (points)"}
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
        Of the corruptions.
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
        rows = []
        for (corruption, model), measures in self.table.iterrows():
            bad = self.mean_dice.loc[model, corruption]
            by_severity = {f"Dice_{severity}": value for severity, value in bad.items()}
            rows.append({"corruption": corruption, "model": model, **by_severity, **measures})
        return pd.DataFrame(rows).rename(columns={"clean": "Dice_0"})

    def sections(self, pictures: Mapping[str, Path]) -> list[Section]:
        """The parts of the report.

        Parameters
        ----------
        pictures
            PNG files: ``Dice_by_severity``, and ``case`` where there is one.
        """
        sections = [self._summary_section(), self._corruption_section()]
        sections[0].warnings = [f"Missing: {sentence}." for sentence in self.missing]
        sections[1].pictures = [pictures["Dice_by_severity"]]
        if self.mean_dice.shape[0] > 1:
            sections.append(self._difference_section())
        if "case" in pictures:
            sections.append(Section("One case at the highest severity", pictures=[pictures["case"]]))
        return [*sections, self._notes_section()]

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
        plot = save_both(dice_by_severity(self.mean_dice), folder / "Dice_by_severity")[1]
        sections = self.sections({"Dice_by_severity": plot} | ({"case": case} if case else {}))
        title = f"Bad images of {self.title}"
        differences = pd.concat([table.assign(measure=name) for name, table in self.differences.items()])
        contents = {
            "robustness.md": to_markdown(title, sections),
            "robustness.html": to_html(title, sections),
            "robustness.csv": self.full().to_csv(index=False),
            "summary.csv": self.summary().to_csv(index=False),
            "cases.csv": self.scores.to_csv(index=False),
            "differences.csv": differences.to_csv(index=False),
        }
        return [write_text(folder / name, content) for name, content in contents.items()]

    def overview(self) -> str:
        """Write the summary as lines for the terminal."""
        table = self._summary_section().table
        return "" if table is None else table.to_string(index=False)

    def _summary_section(self) -> Section:
        rows = []
        for _, row in self.summary().iterrows():
            values = self.measures[self.measures["model"] == row["model"]].groupby("case")["retained_dice"].mean()
            low, high = interval(values)
            rows.append(
                {
                    "model": row["model"],
                    "clean Dice (%)": _percent(row["clean"]),
                    "weighted mean Dice (%)": _percent(row["weighted_mean_dice"]),
                    "degradation (points)": _percent(row["degradation"]),
                    "retained Dice (%) [95 %]": f"{_percent(row['retained_dice'])} [{_percent(low)}, {_percent(high)}]",
                    "mCE (%)": _percent(row["mCE"]),
                }
            )
        note = (
            f"Means over {self.table.index.get_level_values('corruption').nunique()} corruptions and {self._units()}."
        )
        return Section("Result", pd.DataFrame(rows), [note])

    def _corruption_section(self) -> Section:
        rows = []
        for (corruption, model), measures in self.table.iterrows():
            bad = self.mean_dice.loc[model, corruption]
            rows.append(
                {
                    "corruption": corruption,
                    "model": model,
                    "0": _percent(measures["clean"]),
                    **{str(severity): _percent(value) for severity, value in bad.items()},
                    "weighted mean": _percent(measures["weighted_mean_dice"]),
                    "degradation": _percent(measures["degradation"]),
                    "retained": _percent(measures["retained_dice"]),
                    "CE": _percent(measures["corruption_error"]),
                }
            )
        return Section("Dice (%) by corruption and severity", pd.DataFrame(rows))

    def _difference_section(self) -> Section:
        rows = []
        for measure, table in self.differences.items():
            for _, values in table.iterrows():
                low, mean, high = (f"{100 * values[key]:+.2f}" for key in ("low", "difference", "high"))
                corruption = "mean of all" if values["corruption"] == MEAN else values["corruption"]
                rows.append(
                    {
                        "model": values["model"],
                        "measure": _COMPARED[measure],
                        "corruption": corruption,
                        "difference [95 %]": f"{mean} [{low}, {high}]",
                        "p": p_text(values["p"]),
                        "p, Holm": p_text(values["p_holm"]),
                        "better / equal / worse": f"{values['better']} / {values['equal']} / {values['worse']}",
                    }
                )
        note = (
            f"Paired differences, model less baseline, over {self._units()}. 95 % intervals by bootstrap; two-sided "
            "Wilcoxon signed-rank test, corrected by Holm over all rows of a measure."
        )
        return Section(f"Differences from {self.baseline}", pd.DataFrame(rows), [note])

    def _units(self) -> str:
        cases = len(set(self.dice.index.get_level_values("case")))
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


def _percent(value: float) -> str:
    return "-" if pd.isna(value) else f"{100 * value:.2f}"


def typical_case(report: RobustnessReport, study: Study) -> CleanCase:
    """The case whose mean Dice over models and bad images is the median one."""
    mean = report.dice.mean(axis=1).groupby("case", sort=False).mean().sort_values(kind="stable")
    name = mean.index[len(mean) // 2]
    return next(case for case in study.cases if case.name == name)


def draw_case(study: Study, case: CleanCase, path: Path) -> Path:
    """Draw the slice of a case in which the truth is largest, clean and at the highest severity of every corruption,
    with what the models make of it.

    Parameters
    ----------
    study, case
        The study and one of its cases, which is predicted again; the first models are shown.
    path
        File to write. Shows the enhanced image of the first DIN model.
    """
    networks = study.networks[case.fold][:_MOST_COLUMNS]
    planned = next((network.model for network in networks if network.model.enhancements), None)
    names = label_names(study.description)
    reader = networks[0].model.reader
    comparison = Comparison([], reader, study.labels.structures, study.labels.ignore, names, planned)
    truth = read_label_map(case.truth, reader)
    index = largest_slice(np.moveaxis(truth, read_image(case.images[0]).slice_axis, 0))
    rows: list[dict] = []
    for corruption, severity in study.bad:
        if corruption == CLEAN or severity == max(study.severities):
            row = _case_row(study, networks, comparison, case, (corruption, severity), index)
            if planned is None:
                del row["enhanced"]
            rows.append(row)
    return save_figure(panel(rows, names, style="contour"), path)


def _case_row(
    study: Study,
    networks: Sequence[Network],
    comparison: Comparison,
    case: CleanCase,
    bad: tuple[str, int],
    index: int,
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
        return read_row(shown, comparison, index=index, boxes=0, crop=False)
