"""Which pairs quality.py registers, and what is planted in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import sets
from sets import PairSet
from troubles import PLANTED, Planted, coarser

AS_IT_IS = "as it is"
OTHER_ORGAN = "other organ"
COARSE_MM = 2.0


@dataclass(frozen=True)
class JudgedSet:
    """Pairs of one kind, and which of their results are good.

    Attributes:
        pairs: The set.
        limit: Mean Dice from which a rater would accept a result: about midway between what the
            affine and what a good registration reach.
        coarse: Resampled to 2 mm, and registered without the network.
    """

    pairs: PairSet
    limit: float
    coarse: bool = False


def training(pairs: PairSet) -> PairSet:
    """The subjects that a set's model was trained on."""
    return replace(pairs, folder=pairs.folder.replace("validation", "train"))


BRAINS, NEWBORNS = sets.SETS["brain-t1-validation"], sets.SETS["newborns-t1"]
PROSTATES, HIPPOCAMPI = sets.SETS["promise12-glands"], sets.SETS["hippocampus"]
SETS = {
    "brains, training": JudgedSet(training(BRAINS), 0.5, coarse=True),
    "brains": JudgedSet(BRAINS, 0.5, coarse=True),
    "brains, 1 mm": JudgedSet(BRAINS, 0.5),
    "newborns, T1 → T1": JudgedSet(NEWBORNS, 0.7),
    "newborns, T1 → T2": JudgedSet(sets.SETS["newborns-t1-t2"], 0.7),
    "newborns, T2 → T1": JudgedSet(replace(NEWBORNS, find=sets.newborns("T2", "T1")), 0.7),
    "prostates, training": JudgedSet(training(PROSTATES), 0.7),
    "prostates": JudgedSet(PROSTATES, 0.7),
    "hippocampi, training": JudgedSet(training(HIPPOCAMPI), 0.6),
    "hippocampi": JudgedSet(HIPPOCAMPI, 0.6),
    "heads with skull": JudgedSet(sets.SETS["heads-2mm"], 0.5),
}
# JudgedSet, number of pairs, what is planted in each in turn.
Plan = tuple[str, int, tuple[str, ...]]
CALIBRATION: tuple[Plan, ...] = (
    ("brains, training", 12, (AS_IT_IS,)),
    ("brains, training", 2, ("rotated 15° about a random axis", "10 % smaller")),
    ("brains, training", 2, ("bias field of ±30 %", "noise of 5 %")),
    ("brains, training", 2, ("upside down", "back to front", "mirrored")),
    ("brains, training", 1, tuple(name for name in PLANTED if name.startswith("half cut"))),
    ("brains, training", 2, ("inverted contrast", "wrong mask")),
    ("brains, training", 2, ("collapsed field", "smooth wrong field")),
    ("brains, training", 1, ("label map for an image", "noise for an image", "ball for an image")),
    ("prostates, training", 5, (AS_IT_IS,)),
    ("prostates, training", 1, ("upside down", "half cut, second axis", "wrong mask")),
    ("prostates, training", 2, ("collapsed field", "noise for an image")),
    ("hippocampi, training", 6, (AS_IT_IS,)),
    ("hippocampi, training", 2, ("upside down", "mirrored", "collapsed field")),
)
JUDGED: tuple[Plan, ...] = (
    ("brains, 1 mm", 2, (AS_IT_IS,)),
    ("brains, 1 mm", 1, ("inverted contrast",)),
    ("brains", 4, (AS_IT_IS,)),
    ("brains", 1, ("rotated 15° about a random axis", "bias field of ±30 %", "noise of 5 %")),
    ("brains", 1, ("upside down", "back to front", "inverted contrast")),
    ("brains", 3, ("mirrored",)),
    ("brains", 1, ("half cut, first axis", "half cut, third axis", "wrong mask")),
    ("brains", 1, ("collapsed field", "smooth wrong field")),
    ("brains", 1, ("label map for an image", "noise for an image", "ball for an image")),
    ("newborns, T1 → T1", 3, (AS_IT_IS,)),
    ("newborns, T1 → T2", 3, (AS_IT_IS,)),
    ("newborns, T2 → T1", 3, (AS_IT_IS,)),
    ("newborns, T1 → T1", 1, ("upside down", "half cut, second axis", "collapsed field")),
    ("prostates", 6, (AS_IT_IS,)),
    ("prostates", 1, ("upside down", "wrong mask", "collapsed field")),
    ("hippocampi", 6, (AS_IT_IS,)),
    ("hippocampi", 2, ("upside down", "noise for an image")),
    ("heads with skull", 2, (AS_IT_IS,)),
)
# Moving and fixed set of another organ.
OTHER_ORGANS = {
    "calibration": (
        ("prostates, training", "brains, training"),
        ("hippocampi, training", "brains, training"),
        ("brains, training", "prostates, training"),
        ("prostates, training", "hippocampi, training"),
    ),
    "judged": (
        ("prostates", "brains"),
        ("prostates", "newborns, T1 → T1"),
        ("hippocampi", "brains"),
    ),
}


def pairs(data: Path, name: str, count: int) -> Iterator[tuple[str, Planted]]:
    """The first pairs of a set, each subject to the next."""
    kind = SETS[name]
    for case in kind.pairs.cases(data, data)[:count]:
        pair = case.load()
        sides = [(pair.moving, pair.moving_labels), (pair.fixed, pair.fixed_labels)]
        if kind.coarse:
            sides = [coarser(*side, COARSE_MM) for side in sides]
        images, labels = zip(*sides, strict=True)
        yield case.name, Planted(*images, *labels)


def tasks(data: Path) -> Iterator[tuple[dict[str, str], Planted]]:
    """All pairs with what is planted in each: `group`, `set`, `case` and `pair`, and the task."""
    for group, plans in (("calibration", CALIBRATION), ("judged", JUDGED)):
        for name, count, planted in plans:
            for pair, task in pairs(data, name, count):
                for case in planted:
                    keys = {"group": group, "set": name, "case": case, "pair": pair}
                    yield keys, PLANTED[case](task) if case in PLANTED else task
        for moving, fixed in OTHER_ORGANS[group]:
            (_, one), (_, other) = (next(pairs(data, name, 1)) for name in (moving, fixed))
            keys = {"group": group, "set": fixed, "case": OTHER_ORGAN, "pair": moving}
            yield keys, Planted(one.moving, other.fixed, None, None, doomed=True)
