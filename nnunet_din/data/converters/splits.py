"""Seeded splits that keep groups whole: all images of a patient, or of a video sequence, lie on one side."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from nnunet_din.data.raw_dataset import Case, Split

__all__ = ["FOLDS", "SEED", "cross_validation", "draw", "split_80_10_10"]

FOLDS = 5
#: nnU-Net's own seed: where every case is a group of its own, the folds are those that nnU-Net would make.
SEED = 12345


def cross_validation(groups: Mapping[str, str], seed: int = SEED) -> list[dict[str, list[str]]]:
    """Make folds 0 to 4 of a cross-validation by group.

    Parameters
    ----------
    groups : mapping of str to str
        Group of each case.
    seed : int
        Seed of the shuffle.

    Returns
    -------
    list of dict
        Five folds with the names of their cases, sorted, by "train" and "val".

    Raises
    ------
    ValueError
        If there are fewer groups than folds.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    names = sorted(set(groups.values()))
    if len(names) < FOLDS:
        raise ValueError(
            f"Only {len(names)} patients, sequences or images are there for training; {FOLDS} folds need at least "
            f"{FOLDS}."
        )
    members = defaultdict(list)
    for case, group in groups.items():
        members[group].append(case)
    return [
        {part: sorted(case for group in fold[part] for case in members[group]) for part in ("train", "val")}
        for fold in generate_crossval_split(names, seed=seed, n_splits=FOLDS)
    ]


def draw(groups: Mapping[str, str], count: int, seed: int = SEED) -> frozenset[str]:
    """Draw whole groups at random, as many as fit into a number of cases.

    scikit-learn's GroupShuffleSplit draws a share of the groups instead, however many cases they have.

    Parameters
    ----------
    groups : mapping of str to str
        Group of each case to draw from.
    count : int
        Number of cases to draw, 1 or more.
    seed : int
        Seed of the order in which groups are tried.

    Returns
    -------
    frozenset of str
        The cases that were drawn, at most `count`; if every group has more cases than that, those of a smallest group.
    """
    sizes = Counter(groups.values())
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    drawn = set()
    for group in order:
        if sizes[group] <= count:
            count -= sizes[group]
            drawn.add(group)
    drawn = drawn or {min(order, key=sizes.__getitem__)}
    return frozenset(case for case, group in groups.items() if group in drawn)


def split_80_10_10(cases: Sequence[Case]) -> Split:
    """10 % for testing; folds 0 to 4 over the other 90 %, and as fold 5 the random 80 % : 10 % of the paper.

    Parameters
    ----------
    cases : sequence of Case
        All cases.

    Returns
    -------
    Split
        The percentages hold as nearly as whole groups allow.

    Raises
    ------
    ValueError
        If fewer than five groups are left for the folds.
    """
    groups = {case.name: case.group for case in cases}
    tenth = max(1, round(0.1 * len(groups)))
    test = draw(groups, tenth)
    rest = {name: group for name, group in groups.items() if name not in test}
    folds = cross_validation(rest)
    validation = draw(rest, tenth)
    folds.append({"train": sorted(rest.keys() - validation), "val": sorted(validation)})
    return Split(test, folds, ["fold 5 is the 80:10:10 split; folds 0 to 4 are a cross-validation over the 90 %"])
