"""The leaderboard: tables, statistics and plots of scored cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nnunet_din.evaluation.collection import NO_FOLD
from nnunet_din.evaluation.costs import COSTS, cost_of
from nnunet_din.evaluation.metrics import MERIT_POLICY, POLICY
from nnunet_din.evaluation.published import published_rows
from nnunet_din.evaluation.report import Section
from nnunet_din.evaluation.statistics import (
    MEAN,
    METRICS,
    bootstrap_ranks,
    compare_with_reference,
    count_empty,
    interval,
    paired_values,
    rank_stability,
    summarize,
)
from nnunet_din.evaluation.tables import difference_table, number, percent, write_report
from nnunet_din.nnunet.models import Model
from nnunet_din.plotting import scores
from nnunet_din.plotting.style import save_both

#: Cost -> (heading, number that its values are divided by for the table).
_COSTS = {
    "parameters": ("parameters (M)", 1e6),
    "multiply_adds": ("multiply-adds (G)", 1e9),
    "seconds_per_epoch": ("seconds per epoch", 1),
    "peak_memory_gb": ("peak memory (GB)", 1),
}
_HEADINGS = {
    "Dice": "Dice (%)",
    "HD95": "HD95 (mm)",
    "NSD": "NSD (%)",
    "Dice_merit": "Dice (%), merit",
    "HD95_merit": "HD95 (voxels), merit",
}
#: Metric -> factor from the stored value to the printed one.
_FACTORS = {metric: 100 if "%" in heading else 1 for metric, heading in _HEADINGS.items()}
#: Metrics that are compared and drawn.
_COMPARED = ("Dice", "HD95", "NSD")


@dataclass
class Leaderboard:
    """Everything that a leaderboard shows.

    Attributes
    ----------
    title : str
        Name of the data set.
    cases : pandas.DataFrame
        Scored cases, see :func:`nnunet_din.evaluation.scoring.score_cases`.
    tolerances : dict of str to float
        Tolerance of NSD in mm by structure.
    missing : list of str
        A sentence for each fold or case that is not there.
    models : dict of str to Model
        Trained models, whose costs are looked up.
    reference : str or None
        Model that the others are compared with; None: the best by mean Dice.
    group_by : str or None
        See :func:`nnunet_din.evaluation.statistics.paired_values`.
    published : str or None
        Name of the published rows to show.
    resamples : int
        Number of bootstrap samples.
    command, day : str
        How and when it was made.
    """

    title: str
    cases: pd.DataFrame
    tolerances: Mapping[str, float]
    missing: Sequence[str] = ()
    models: Mapping[str, Model] = field(default_factory=dict)
    reference: str | None = None
    group_by: str | None = None
    published: str | None = None
    resamples: int = 2000
    command: str = "nnunet-din leaderboard"
    day: str = ""

    def __post_init__(self):
        self.structures = list(self.cases["structure"].unique())
        self.units = paired_values(self.cases, "Dice", group_by=self.group_by)
        if len(self.units) == 0:
            raise ValueError("The models have no case in common: give them the same folds, or choose some (--models).")
        self.summaries = {metric: summarize(self.cases, metric) for metric in METRICS if metric in self.cases}
        self.rank_samples = bootstrap_ranks(self.units, self.resamples)
        self.ranking = rank_stability(self.units, self.rank_samples)
        intervals = [interval(self.units[model], self.resamples) for model in self.ranking.index]
        self.ranking[["Dice_low", "Dice_high"]] = intervals
        self.reference = self.reference or self.ranking.index[0]
        costs = pd.DataFrame([cost_of(m) for m in self.models.values()], list(self.models), columns=list(COSTS))
        self.costs = costs.reindex(self.ranking.index)
        self.differences = {
            metric: compare_with_reference(self.cases, metric, self.reference, self.group_by, self.resamples)
            for metric in _COMPARED
        }

    def table(self) -> pd.DataFrame:
        """One row a model, best first, every number in full: what ``leaderboard.csv`` holds."""
        by_model = self.cases.groupby("model")
        table = self.ranking.rename(columns={"low": "rank_low", "high": "rank_high"})
        table.insert(4, "folds", by_model["fold"].agg(lambda folds: " ".join(folds.unique())))
        table.insert(5, "cases", by_model["case"].nunique())
        parts = [table]
        for metric, summary in self.summaries.items():
            columns = [(key, structure) for structure in [MEAN, *self.structures] for key in summary]
            names = [f"{metric}_{structure}_{key}" for key, structure in columns]
            parts.append(summary.unstack()[columns].set_axis(names, axis=1).loc[table.index])
        return _with_models(pd.concat([*parts, self.costs], axis=1))

    def plot(self, folder: Path) -> dict[str, list[Path]]:
        """Draw the plots as PDF and PNG; returns the PNG files by the title of their section."""
        best_first = list(self.ranking.index)  # in all plots, so that a model has one colour
        figures = {
            (_HEADINGS[metric], metric): scores.metric_by_structure(self.cases, metric, best_first)
            for metric in _COMPARED
        }
        if len(best_first) > 1:
            figures["Ranking", "rank_stability"] = scores.rank_stability(self.rank_samples, best_first)
        table = _with_models(self.ranking.join(self.costs).assign(Dice_mean=self.units.mean()))
        for cost in ("multiply_adds", "seconds_per_epoch"):
            if table[cost].notna().any():
                figures["Cost", f"Dice_against_{cost}"] = scores.dice_against_cost(table, cost)
        pictures: dict[str, list[Path]] = {}
        for (title, name), figure in figures.items():
            pictures.setdefault(title, []).append(save_both(figure, folder / name)[1])
        return pictures

    def sections(self, pictures: Mapping[str, list[Path]]) -> list[Section]:
        """The parts of the report.

        Parameters
        ----------
        pictures
            PNG files by the title of their section, see :meth:`plot`.
        """
        sections = [self._ranking_section(), *(self._metric_section(metric) for metric in self.summaries)]
        sections[0].warnings = [f"Missing: {sentence}." for sentence in self.missing]
        if len(self.ranking) > 1:
            sections.append(self._difference_section())
        sections += [self._empty_section(), self._cost_section()]
        if self.published:
            sections.append(self._published_section(self.published))
        for section in sections:
            section.pictures = pictures.get(section.title, [])
        return [*sections, self._notes_section()]

    def write(self, folder: Path) -> list[Path]:
        """Write ``cases.csv``, ``differences.csv``, ``leaderboard.csv``, ``.md``, ``.html`` and the plots.

        Returns
        -------
        list of pathlib.Path
            The files, without the plots.
        """
        sections = self.sections(self.plot(folder))
        differences = pd.concat([table.assign(metric=metric) for metric, table in self.differences.items()])
        tables = {"leaderboard": self.table(), "cases": self.cases, "differences": differences}
        return write_report(folder, "leaderboard", f"Leaderboard of {self.title}", sections, tables)

    def overview(self) -> str:
        """Write the ranking as lines for the terminal."""
        return self._ranking_table().to_string(index=False)

    def _ranking_table(self) -> pd.DataFrame:
        rows = []
        for model, ranking in self.ranking.iterrows():
            low, high = (percent(ranking[key]) for key in ("Dice_low", "Dice_high"))
            row = {
                "model": model,
                "rank": f"{ranking['rank']:g}",
                "Dice (%) [95 %]": f"{percent(self.units[model].mean())} [{low}, {high}]",
            }
            for metric in ("HD95", "NSD"):
                row[_HEADINGS[metric]] = _printed(metric, paired_values(self.cases, metric)[model].mean())
            row["rank in 95 % of bootstraps"] = f"{ranking['low']:g} to {ranking['high']:g}"
            row["first alone in bootstraps"] = f"{100 * ranking['share_first']:.0f} %"
            rows.append(row)
        table = pd.DataFrame(rows)
        return table if len(table) > 1 else table.filter(regex="model|Dice|HD95|NSD")

    def _ranking_section(self) -> Section:
        several = len(self.ranking) > 1
        unit = f"groups of cases ({self.group_by})" if self.group_by else "cases"
        notes = [
            f"{'Ranked by the mean Dice' if several else 'Means'} over the {len(self.units)} {unit} that every model "
            f"has predicted, each the mean over its structures. Intervals{' and rank stability' if several else ''}: "
            f"{self.resamples} bootstrap samples of these {unit}."
        ]
        models_of_case = self.cases.groupby("case")["model"].nunique()
        if missing := (models_of_case < len(self.ranking)).sum():
            notes.append(f"{missing} cases that not every model has predicted are left out of this table.")
        return Section("Ranking" if several else "Result", self._ranking_table(), notes)

    def _metric_section(self, metric: str) -> Section:
        summary = self.summaries[metric]
        text = _with_sd(metric, summary["mean"], summary["sd"]).unstack()
        table = text.loc[self.ranking.index, [*self.structures, MEAN]]
        table.insert(0, "cases", self.cases.groupby("model")["case"].nunique())
        note = "Mean ± standard deviation over cases."
        if self.cases["fold"].nunique() > 1:
            means = summary.xs(MEAN, level="structure")
            table["mean of folds"] = _with_sd(metric, means["fold_mean"], means["fold_sd"])
            table["folds"] = means["n_folds"]
            note = f"{note[:-1]}, pooled over the folds as nnU-Net does; beside it those of the folds' means."
        tolerances = ", ".join(f"{name} {value:g} mm" for name, value in self.tolerances.items())
        more = {"Dice": POLICY, "NSD": f"Tolerances: {tolerances}.", "HD95_merit": MERIT_POLICY}
        return Section(_HEADINGS[metric], _with_models(table), [note, *([more[metric]] if metric in more else [])])

    def _difference_section(self) -> Section:
        notes = [
            "Paired differences, model less reference, over the units that both have. 95 % intervals by bootstrap; "
            "two-sided Wilcoxon signed-rank test, corrected by Holm over all rows of a metric.",
        ]
        if (self.cases["fold"] != NO_FOLD).any():
            notes.append(
                "Folds of a cross-validation share training cases: these tests say little about other training sets."
            )
        table = difference_table(self.differences, _HEADINGS, _FACTORS, "metric")
        return Section(f"Differences from {self.reference}", table, notes)

    def _empty_section(self) -> Section:
        counts = count_empty(self.cases)
        counts = counts[counts.any(axis=1)].reset_index()
        if counts.empty:
            return Section("Empty masks", notes=["No structure is missing from any truth or prediction.", POLICY])
        headings = {"false_alarms": "false alarms", "not_counted": "in neither"}
        return Section("Empty masks", counts.rename(columns=headings), [POLICY])

    def _cost_section(self) -> Section:
        divisors = {cost: divisor for cost, (_, divisor) in _COSTS.items()}
        headings = {cost: heading for cost, (heading, _) in _COSTS.items()}
        table = (self.costs / pd.Series(divisors)).map(number, form=".3g").rename(columns=headings)
        note = "; ".join(f"{headings[cost]}: {text}" for cost, text in COSTS.items()) + ". A dash: not known."
        return Section("Cost", _with_models(table), [note])

    def _published_section(self, name: str) -> Section:
        table = published_rows(name).map(lambda value: number(value) if isinstance(value, float) else value)
        notes = [
            f"Published, NOT measured here: as printed in Noh et al., Pattern Recognition Letters 2025 "
            f"({name}), Dice in percent. Other test cases, other training: only numbers of the protocol "
            "merit on the same test cases can be set beside them."
        ]
        return Section("Published results (not measured)", table, notes)

    def _notes_section(self) -> Section:
        folds = ", ".join(fold for fold in self.cases["fold"].unique() if fold != NO_FOLD)
        notes = [
            f"`{self.command}`, {self.day}. {len(self.ranking)} models, {self.cases['case'].nunique()} cases"
            + (f", folds {folds}." if folds else "."),
            "Dice, HD95 (the larger of the two directions' 95th percentiles) and NSD (share of the surfaces' area "
            "within the tolerance) by MONAI, in mm with each image's own spacing. " + POLICY,
            "cases.csv has a row per model, case and structure; challengeR reads it: "
            'as.challenge(read.csv("cases.csv"), algorithm = "model", case = "case", by = "structure", '
            'value = "Dice", smallBetter = FALSE).',
        ]
        return Section("How to read this", notes=notes)


def _with_models(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the models, its index, as the first column."""
    return table.rename_axis(index="model", columns=None).reset_index()


def _printed(metric: str, value: float) -> str:
    return number(_FACTORS[metric] * value)


def _with_sd(metric: str, means: pd.Series, deviations: pd.Series) -> pd.Series:
    """Means as text, with the standard deviations that are known."""
    spreads = (_FACTORS[metric] * deviations).map(lambda value: f" ± {value:.2f}", na_action="ignore").fillna("")
    return (_FACTORS[metric] * means).map(number) + spreads
