"""Seeded splits that keep groups whole: all images of a patient, or of a video sequence, lie on one side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from nnunet_din.data.raw_dataset import Case, Split

#: nnU-Net's own seed: where every case is a group of its own, the folds are those that nnU-Net would make.
SEED = 12345


def cross_validation(groups: Mapping[str, str]) -> list[dict[str, list[str]]]:
    """Make folds 0 to 4 of a cross-validation by group.

    Parameters
    ----------
    groups : mapping of str to str
        Group of each case.

    Returns
    -------
    list of dict
        Five folds with the names of their cases, sorted, by "train" and "val".

    Raises
    ------
    ValueError
        If there are fewer than five groups.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    folds = generate_crossval_split(sorted(set(groups.values())), seed=SEED, n_splits=5)
    sides = [set(fold["val"]) for fold in folds]
    return [_fold(groups, {case for case, group in groups.items() if group in side}) for side in sides]


def draw(groups: Mapping[str, str], count: int) -> frozenset[str]:
    """Draw whole groups at random, as many as fit into a number of cases.

    scikit-learn's GroupShuffleSplit draws a share of the groups instead, however many cases they have.

    Parameters
    ----------
    groups : mapping of str to str
        Group of each case to draw from.
    count : int
        Number of cases to draw, 1 or more.

    Returns
    -------
    frozenset of str
        The cases that were drawn, at most `count`; if every group has more cases than that, those of a smallest group.
    """
    sizes = Counter(groups.values())
    order = sorted(sizes)
    random.Random(SEED).shuffle(order)
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
    folds = [*cross_validation(rest), _fold(rest, draw(rest, tenth))]
    return Split(test, folds, "fold 5 is the 80:10:10 split; folds 0 to 4 are a cross-validation over the 90 %")


def published_split(cases: Sequence[Case], test: Collection[str], validation: Collection[str] = ()) -> Split:
    """Published groups for testing; folds 0 to 4 over the others, and as fold 5 the published validation.

    Parameters
    ----------
    cases : sequence of Case
        All cases.
    test, validation : collection of str
        Groups for testing, and those that fold 5 validates on. Without the latter there is no fold 5.

    Returns
    -------
    Split
        Fold 5 is left out where one of its sides would be empty.

    Raises
    ------
    ValueError
        If there are fewer than five groups for training.
    """
    groups = {case.name: case.group for case in cases if case.group not in test}
    folds = cross_validation(groups)
    fold = _fold(groups, {name for name, group in groups.items() if group in validation})
    if not validation:
        note = "the published protocol trains on all training cases: that is nnU-Net's fold all"
    elif fold["train"] and fold["val"]:
        folds.append(fold)
        note = "fold 5 is the published split into training and validation"
    else:
        note = "there is no fold 5, because cases for training or validation in the published split are missing"
    return Split(frozenset(case.name for case in cases if case.group in test), folds, note)


def _fold(names: Collection[str], validation: Collection[str]) -> dict[str, list[str]]:
    return {"train": sorted(set(names).difference(validation)), "val": sorted(validation)}
