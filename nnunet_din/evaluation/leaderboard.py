"""The leaderboard: tables, statistics and plots of scored cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nnunet_din.cost.trained import COSTS, cost_of
from nnunet_din.data.files import write_text
from nnunet_din.evaluation.collection import NO_FOLD
from nnunet_din.evaluation.metrics import MERIT_POLICY, POLICY
from nnunet_din.evaluation.published import published_rows
from nnunet_din.evaluation.report import Section, to_html, to_markdown
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
from nnunet_din.nnunet.models import Model
from nnunet_din.plotting import scores
from nnunet_din.plotting.style import save_both

#: Cost -> heading.
_COST_NAMES = {
    "parameters": "parameters (M)",
    "multiply_adds": "multiply-adds (G)",
    "seconds_per_epoch": "seconds per epoch",
    "peak_memory_gb": "peak memory (GB)",
}
#: Metric -> (heading, factor from the stored value to the printed one, decimals).
_PRINTED = {
    "Dice": ("Dice (%)", 100, 2),
    "HD95": ("HD95 (mm)", 1, 2),
    "NSD": ("NSD (%)", 100, 2),
    "Dice_merit": ("Dice (%), merit", 100, 2),
    "HD95_merit": ("HD95 (voxels), merit", 1, 2),
}


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
        self.names = list(dict.fromkeys(self.cases["model"]))
        self.structures = list(dict.fromkeys(self.cases["structure"]))
        self.metrics = [metric for metric in METRICS if metric in self.cases]
        self.summaries = {metric: summarize(self.cases, metric) for metric in self.metrics}
        self.units = paired_values(self.cases, "Dice", group_by=self.group_by)
        if len(self.units) == 0:
            raise ValueError("The models have no case in common: give them the same folds, or choose some (--models).")
        self.rank_samples = bootstrap_ranks(self.units, METRICS["Dice"], self.resamples)
        self.ranking = rank_stability(self.units, METRICS["Dice"], self.rank_samples).sort_values("rank", kind="stable")
        self.reference = self.reference or self.ranking.index[0]
        self.intervals = {model: interval(self.units[model], self.resamples) for model in self.names}
        self.costs = pd.DataFrame([cost_of(m) for m in self.models.values()], list(self.models), columns=list(COSTS))
        self.differences = {
            metric: compare_with_reference(self.cases, metric, self.reference, self.group_by, self.resamples)
            for metric in ("Dice", "HD95", "NSD")
        }

    def table(self) -> pd.DataFrame:
        """One row a model, best first, every number in full: what ``leaderboard.csv`` holds."""
        rows = []
        for model, ranking in self.ranking.iterrows():
            row = {"model": model, "rank": ranking["rank"], "rank_low": ranking["low"], "rank_high": ranking["high"]}
            row["share_first"] = ranking["share_first"]
            of_model = self.cases[self.cases["model"] == model]
            row |= {"folds": " ".join(dict.fromkeys(of_model["fold"])), "cases": of_model["case"].nunique()}
            low, high = self.intervals[model]
            row |= {"Dice_low": low, "Dice_high": high}
            for metric, summary in self.summaries.items():
                for structure in [MEAN, *self.structures]:
                    for key, value in summary.loc[(model, structure)].items():
                        row[f"{metric}_{structure}_{key}"] = value
            row |= {key: self.costs[key].get(model, math.nan) for key in COSTS}
            rows.append(row)
        return pd.DataFrame(rows)

    def sections(self, pictures: Mapping[str, Path]) -> list[Section]:
        """The parts of the report.

        Parameters
        ----------
        pictures
            PNG files by name, see :meth:`plot`.
        """
        sections = [self._ranking_section(pictures)]
        if self.missing:
            sections[0].warnings = [f"Missing: {sentence}." for sentence in self.missing]
        for metric in self.metrics:
            section = self._metric_section(metric)
            section.pictures = [pictures[metric]] if metric in pictures else []
            sections.append(section)
        if len(self.names) > 1:
            sections.append(self._difference_section())
        sections += [self._empty_section(), self._cost_section(pictures)]
        if self.published:
            sections.append(self._published_section(self.published))
        sections.append(self._notes_section())
        return sections

    def plot(self, folder: Path) -> dict[str, Path]:
        """Draw the plots as PDF and PNG; returns the PNG files by name."""
        best_first = list(self.ranking.index)  # in all plots, so that a model has one colour
        figures = {
            metric: scores.metric_by_structure(self.cases, metric, best_first) for metric in ("Dice", "HD95", "NSD")
        }
        if len(self.names) > 1:
            figures["rank_stability"] = scores.rank_stability(self.rank_samples, best_first)
        table = pd.DataFrame(
            {
                "model": best_first,
                "Dice_mean": [self.units[model].mean() for model in best_first],
                "Dice_low": [self.intervals[model][0] for model in best_first],
                "Dice_high": [self.intervals[model][1] for model in best_first],
                **{key: [self.costs[key].get(model, math.nan) for model in best_first] for key in COSTS},
            }
        )
        for cost in ("multiply_adds", "seconds_per_epoch"):
            if table[cost].notna().any():
                figures[f"Dice_against_{cost}"] = scores.dice_against_cost(table, cost)
        pictures = {}
        for name, figure in figures.items():
            pictures[name] = next(p for p in save_both(figure, folder / name) if p.suffix == ".png")
        return pictures

    def write(self, folder: Path) -> list[Path]:
        """Write ``cases.csv``, ``differences.csv``, ``leaderboard.csv``, ``.md``, ``.html`` and the plots.

        Returns
        -------
        list of pathlib.Path
            The files, without the plots.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pictures = self.plot(folder)
        sections = self.sections(pictures)
        title = f"Leaderboard of {self.title}"
        differences = [t.assign(metric=metric) for metric, t in self.differences.items()]
        contents = {
            "leaderboard.md": to_markdown(title, sections),
            "leaderboard.html": to_html(title, sections),
            "leaderboard.csv": self.table().to_csv(index=False),
            "cases.csv": self.cases.to_csv(index=False),
            "differences.csv": pd.concat(differences).to_csv(index=False) if len(self.names) > 1 else None,
        }
        paths = []
        for name, content in contents.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
                continue
            paths.append(write_text(folder / name, content))
        return paths

    def overview(self) -> str:
        """Write the ranking as lines for the terminal."""
        table = self._ranking_section({}).table
        return "" if table is None else table.to_string(index=False)

    def _ranking_section(self, pictures: Mapping[str, Path]) -> Section:
        rows, several = [], len(self.names) > 1
        for model, ranking in self.ranking.iterrows():
            low, high = self.intervals[model]
            row = {"model": model} | ({"rank": f"{ranking['rank']:g}"} if several else {})
            row["Dice (%) [95 %]"] = f"{100 * self.units[model].mean():.2f} [{100 * low:.2f}, {100 * high:.2f}]"
            for metric in ("HD95", "NSD"):
                row[_PRINTED[metric][0]] = _number(metric, paired_values(self.cases, metric)[model].mean())
            if several:
                row["rank in 95 % of bootstraps"] = f"{ranking['low']:g} to {ranking['high']:g}"
                row["first alone in bootstraps"] = f"{100 * ranking['share_first']:.0f} %"
            rows.append(row)
        unit = f"groups of cases ({self.group_by})" if self.group_by else "cases"
        if several:
            notes = [
                f"Ranked by the mean Dice over the {len(self.units)} {unit} that every model has predicted, each the "
                f"mean over its structures. Intervals and rank stability: {self.resamples} bootstrap samples of these "
                f"{unit}."
            ]
        else:
            notes = [
                f"Means over {len(self.units)} {unit}, each the mean over its structures. Interval: {self.resamples} "
                f"bootstrap samples of these {unit}."
            ]
        missing = len(set(self.cases["case"])) - len(set.intersection(*self._cases_by_model().values()))
        if missing:
            notes.append(f"{missing} cases that not every model has predicted are left out of this table.")
        return Section(
            "Ranking" if several else "Result",
            pd.DataFrame(rows),
            notes,
            [pictures["rank_stability"]] if "rank_stability" in pictures else [],
        )

    def _cases_by_model(self) -> dict[str, set[str]]:
        return {model: set(rows["case"]) for model, rows in self.cases.groupby("model")}

    def _metric_section(self, metric: str) -> Section:
        summary = self.summaries[metric]
        folds = self.cases["fold"].nunique() > 1
        rows = []
        for model in self.ranking.index:
            row = {"model": model, "cases": str(len(self._cases_by_model()[model]))}
            for structure in [*self.structures, MEAN]:
                values = summary.loc[(model, structure)]
                row[structure] = _with_sd(metric, values["mean"], values["sd"])
            if folds:
                values = summary.loc[(model, MEAN)]
                row["mean of folds"] = _with_sd(metric, values["fold_mean"], values["fold_sd"])
                row["folds"] = f"{values['n_folds']:.0f}"
            rows.append(row)
        notes = [
            "Mean ± standard deviation over cases"
            + (", pooled over the folds as nnU-Net does; beside it those of the folds' means." if folds else ".")
        ]
        if metric == "Dice":
            notes.append(POLICY)
        if metric == "NSD":
            tolerances = ", ".join(f"{name} {value:g} mm" for name, value in self.tolerances.items())
            notes.append(f"Tolerances: {tolerances}.")
        if metric == "HD95_merit":
            notes.append(MERIT_POLICY)
        return Section(_PRINTED[metric][0], pd.DataFrame(rows), notes)

    def _difference_section(self) -> Section:
        rows = []
        for metric, table in self.differences.items():
            for _, values in table.iterrows():
                low, mean, high = (_number(metric, values[key], sign=True) for key in ("low", "difference", "high"))
                rows.append(
                    {
                        "model": values["model"],
                        "metric": _PRINTED[metric][0],
                        "structure": values["structure"],
                        "difference [95 %]": f"{mean} [{low}, {high}]",
                        "p": p_text(values["p"]),
                        "p, Holm": p_text(values["p_holm"]),
                        "better / equal / worse": f"{values['better']} / {values['equal']} / {values['worse']}",
                    }
                )
        notes = [
            "Paired differences, model less reference, over the units that both have. 95 % intervals by bootstrap; "
            "two-sided Wilcoxon signed-rank test, corrected by Holm over all rows of a metric.",
        ]
        if any(fold != NO_FOLD for fold in self.cases["fold"]):
            notes.append(
                "Folds of a cross-validation share training cases: these tests say little about other training sets."
            )
        return Section(f"Differences from {self.reference}", pd.DataFrame(rows), notes)

    def _empty_section(self) -> Section:
        counts = count_empty(self.cases)
        rows = [
            {
                "model": model,
                "structure": structure,
                "missed": str(values["missed"]),
                "false alarms": str(values["false_alarms"]),
                "in neither": str(values["not_counted"]),
            }
            for (model, structure), values in counts.iterrows()
            if values.any()
        ]
        if not rows:
            return Section("Empty masks", notes=["No structure is missing from any truth or prediction.", POLICY])
        return Section("Empty masks", pd.DataFrame(rows), [POLICY])

    def _cost_section(self, pictures: Mapping[str, Path]) -> Section:
        rows = []
        for model in self.ranking.index:
            cost = {key: self.costs[key].get(model, math.nan) for key in COSTS}
            rows.append(
                {
                    "model": model,
                    _COST_NAMES["parameters"]: _known(cost["parameters"] / 1e6),
                    _COST_NAMES["multiply_adds"]: _known(cost["multiply_adds"] / 1e9),
                    _COST_NAMES["seconds_per_epoch"]: _known(cost["seconds_per_epoch"]),
                    _COST_NAMES["peak_memory_gb"]: _known(cost["peak_memory_gb"]),
                }
            )
        notes = [
            "; ".join(f"{_COST_NAMES[key]}: {text}" for key, text in COSTS.items()) + ". A dash: not known.",
        ]
        shown = [path for name, path in pictures.items() if name.startswith("Dice_against")]
        return Section("Cost", pd.DataFrame(rows), notes, shown)

    def _published_section(self, name: str) -> Section:
        table = published_rows(name)
        printed = table.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
        notes = [
            f"Published, NOT measured here: as printed in Noh et al., Pattern Recognition Letters 2025 "
            f"({name}), Dice in percent. Other test cases, other training: only numbers of the protocol "
            "merit on the same test cases can be set beside them."
        ]
        return Section("Published results (not measured)", printed.replace("nan", "-"), notes)

    def _notes_section(self) -> Section:
        folds = [f for f in dict.fromkeys(self.cases["fold"]) if f != NO_FOLD]
        notes = [
            f"`{self.command}`, {self.day}. {len(self.names)} models, {self.cases['case'].nunique()} cases"
            + (f", folds {', '.join(folds)}." if folds else "."),
            "Dice, HD95 (the larger of the two directions' 95th percentiles) and NSD (share of the surfaces' area "
            "within the tolerance) by MONAI, in mm with each image's own spacing. " + POLICY,
            "cases.csv has a row per model, case and structure; challengeR reads it: "
            'as.challenge(read.csv("cases.csv"), algorithm = "model", case = "case", by = "structure", '
            'value = "Dice", smallBetter = FALSE).',
        ]
        return Section("How to read this", notes=notes)


def _number(metric: str, value: float, sign: bool = False) -> str:
    _, factor, decimals = _PRINTED[metric]
    return "-" if math.isnan(value) else f"{factor * value:{'+' if sign else ''}.{decimals}f}"


def _with_sd(metric: str, mean: float, sd: float) -> str:
    return _number(metric, mean) + ("" if math.isnan(sd) else f" ± {_number(metric, sd)}")


def p_text(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _known(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
