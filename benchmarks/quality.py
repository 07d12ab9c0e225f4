"""How well a result's own score and the checks before tell good registrations from failed ones.

Ordinary pairs and pairs with planted failures (`planted.py`) are registered. Dice says which result
a rater would accept; the score is fitted to that on some sets (`CALIBRATION`), and judged on others
(`JUDGED`). `--fit` writes its coefficients to `quality/score.json`. Pairs that the model was not
made for are registered with the model forced, too. Most brains are at 2 mm and without the network,
which takes a quarter of the time; the four of the last set are as users have them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from paramorph_rt import Registration
from paramorph_rt.bundle import NO_MODEL, default_bundle_path, load_bundle
from paramorph_rt.errors import ParamorphError, exit_code
from paramorph_rt.images.volume import Volume, load_labels, load_volume
from paramorph_rt.model import Model
from paramorph_rt.quality.choice import MENDED, choose
from paramorph_rt.quality.domain import domain_of
from paramorph_rt.quality.looks import asymmetry, likeness, look_of
from paramorph_rt.quality.score import DOUBTS, LEAST_SCORE, score_of
from paramorph_rt.steps.foreground import masked
from planted import PLANTED, Task
from record import weights_sha256, write_page
from rows import Rows
from tables import markdown_table, origin
from troubles import coarser

AS_IT_IS = "as it is"
SCORE_FILE = Path(__file__).parents[1] / "runtime/paramorph_rt/quality/score.json"


@dataclass(frozen=True)
class Set:
    """Pairs of one kind.

    Attributes:
        folder: Below that of all sets.
        moving: Pattern of images, * being the subject.
        fixed: The same.
        labels: The same of the label maps, on the voxels of both.
        limit: Mean Dice from which a rater would accept a result: about midway between what the
            affine and what a good registration reach.
        coarse: Resampled to 2 mm, and registered without the network.
    """

    folder: str
    moving: str
    fixed: str
    labels: str
    limit: float
    coarse: bool = False


T1, LABELS = "*_t1", "*_labels"
NEWBORN = {kind: f"*_{kind}w_brain" for kind in ("T1", "T2")}
SETS = {
    "brains, training": Set("brain_t1/train", T1, T1, LABELS, 0.5, True),
    "brains": Set("brain_t1/validation", T1, T1, LABELS, 0.5, True),
    "brains, 1 mm": Set("brain_t1/validation", T1, T1, LABELS, 0.5),
    **{
        f"newborns, {a} → {b}": Set("neonate", NEWBORN[a], NEWBORN[b], "*_Segmentation", 0.7)
        for a, b in (("T1", "T1"), ("T1", "T2"), ("T2", "T1"))
    },
    "prostates, training": Set("prostate_t2/train", "*_t2", "*_t2", LABELS, 0.7),
    "prostates": Set("prostate_t2/validation", "*_t2", "*_t2", LABELS, 0.7),
    "hippocampi, training": Set("hippocampus/train", T1, T1, LABELS, 0.6),
    "hippocampi": Set("hippocampus/validation", T1, T1, LABELS, 0.6),
    "heads with skull": Set("heads_2mm", T1, T1, LABELS, 0.5),
}
COARSE_MM = 2.0
# Set, number of pairs, what is planted in each in turn.
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
    "judged": (("prostates", "brains"), ("brains", "newborns, T1 → T1"), ("hippocampi", "brains")),
}
FORCED: tuple[Plan, ...] = (
    *((f"newborns, {pair}", 2, (AS_IT_IS,)) for pair in ("T1 → T1", "T1 → T2", "T2 → T1")),
    ("prostates", 3, (AS_IT_IS,)),
    ("heads with skull", 1, (AS_IT_IS,)),
    ("brains, 1 mm", 1, ("inverted contrast",)),
)
# What the score is fitted to, and the sign that each part's weight must have.
PARTS = {
    **{"told": 1, "overlap": 1, "ncc": 1},
    **{"roughness": -1, "folds": -1, "reach": -1, "doubts": -1},
}
# Beyond it, more is no worse.
MOST = {"roughness": 1.0, "folds": 1.0}
# Of what no part can know anything.
UNSEEN = ("mirrored",)
RIDGE = 0.05

Row = dict[str, Any]


def tasks(data: Path, name: str, count: int) -> Iterator[tuple[str, Task]]:
    """The first pairs of a set, each subject to the next."""
    kind = SETS[name]
    folder, suffix = data / kind.folder, kind.labels[1:]
    names = sorted(
        path.name.removesuffix(f"{suffix}.nii.gz") for path in folder.glob(f"{kind.labels}.nii.gz")
    )

    def file(pattern: str, subject: str) -> Path:
        return folder / f"{pattern.replace('*', subject)}.nii.gz"

    def side(pattern: str, subject: str) -> tuple[Volume, Volume]:
        image, labels = file(pattern, subject), file(kind.labels, subject)
        loaded = load_volume(image), load_labels(labels)
        return coarser(*loaded, COARSE_MM) if kind.coarse else loaded

    names = [n for n in names if file(kind.moving, n).exists()]
    for one, other in list(pairwise([*names, names[0]]))[:count]:
        (moving, moving_labels), (fixed, fixed_labels) = (
            side(kind.moving, one),
            side(kind.fixed, other),
        )
        yield f"{one} → {other}", Task(moving, fixed, moving_labels, fixed_labels)


def measure(register: Registration, task: Task, limit: float, models: Sequence[Model]) -> Row:
    """Register a pair; what a rater would say, and what is known without labels.

    Args:
        register: As by default, or without a network.
        task: The pair.
        limit: Mean Dice that is accepted.
        models: Those that the default would choose from.
    """
    labels = (task.moving_labels, task.fixed_labels)
    if task.network is not None:
        register = _with_network(task)
    try:
        result = register(task.moving, task.fixed, *labels, surfaces=False, **task.options)
    except ParamorphError as err:
        return {"refused": str(err), "accepted": False}
    metrics = result.metrics
    row: Row = {f"dice_{stage}": entry["mean"] for stage, entry in metrics.get("dice", {}).items()}
    evidence = metrics["quality"]["evidence"]
    flags = [f"{flag['name']} ({flag['of']})" for flag in metrics["quality"]["flags"]]
    if not register.models:
        seen = masked(task.moving, task.options.get("moving_mask"))
        choice = choose(models, look_of(seen), look_of(task.fixed), is_free=True)
        flags += [f"{flag.name} ({flag.of})" for flag in choice.flags]
        evidence |= {"doubts": len(DOUBTS & {flag.partition(" ")[0] for flag in flags})}
    return row | {
        "ncc_affine": metrics["ncc"]["affine"],
        "accepted": not task.doomed and row.get("dice_after", 0.0) >= limit,
        "model": metrics["model"],
        "flags": flags,
        "told_affine": (metrics["affine"] or {}).get("told_share"),
        "evidence": evidence,
    }


def _with_network(task: Task) -> Registration:
    bundle = load_bundle(default_bundle_path())
    assert task.network is not None
    found = task.network(bundle.inputs.grid.shape)

    class Rubbish:
        name, precision, shapes = "rubbish", "fp32", bundle.shapes

        def run(self, _moving: np.ndarray, _fixed: np.ndarray) -> np.ndarray:
            return found

    return Registration.with_models([Model(bundle, Rubbish())], 1)  # type: ignore[arg-type]


def run(args: argparse.Namespace) -> None:
    """Measure what the result lacks; fit if asked; write JSON and page."""
    auto, none = Registration(None, args.threads), Registration(NO_MODEL, args.threads)
    assert auto.bundle is not None
    forced = Registration.with_models(auto.models, args.threads)
    content = {"model": auto.bundle.name, "weights_sha256": weights_sha256(auto.bundle)}
    rows = Rows("quality", content, resume=args.resume)

    def note(group: str, name: str, case: str, pair: str, task: Task) -> None:
        keys = {"group": group, "set": name, "case": case, "pair": pair}
        if not rows.without(**keys):
            return
        register = forced if group == "forced" else none if SETS[name].coarse else auto
        if case in PLANTED:
            task = PLANTED[case](task)
        rows.note(keys | measure(register, task, SETS[name].limit, auto.models))

    for group, plans in (("calibration", CALIBRATION), ("judged", JUDGED), ("forced", FORCED)):
        for name, count, planted in plans:
            for pair, task in tasks(args.data, name, count):
                for case in planted:
                    note(group, name, case, pair, task)
        for moving, fixed in OTHER_ORGANS.get(group, ()):
            (_, one), (_, other) = (next(tasks(args.data, name, 1)) for name in (moving, fixed))
            task = Task(one.moving, other.fixed, doomed=True)
            note(group, fixed, "other organ", moving, task)
    looks = list(_looks(args.data))
    if args.fit:
        SCORE_FILE.write_text(json.dumps(fitted(rows), indent=1) + "\n", encoding="utf-8")
    result = rows.write(looks=looks)
    write_page(rows.path, page(result, rows.path.stem))


def _looks(data: Path) -> Iterator[Row]:
    """What each kind of image looks like to the checks."""
    domain = domain_of(load_bundle(default_bundle_path()))
    assert domain is not None
    assert domain.ranks is not None
    hands = asymmetry(domain.ranks)
    for kind, images in _images(data):
        found = [look_of(image) for image in images]
        of = {
            "volume_ml": [look.volume_ml for look in found],
            "at_border": [look.at_border for look in found],
            "coarsest_mm": [look.spacing_mm[1] for look in found],
            "likeness": [likeness(look.ranks, domain.ranks) for look in found],
            "handedness": [likeness(asymmetry(look.ranks), hands) for look in found],
            "flat": [look.flat for look in found],
            "commonest": [look.commonest for look in found],
            "smooth": [look.smooth for look in found],
        }
        yield {"kind": kind, "images": len(found)} | {
            key: [round(float(min(values)), 3), round(float(max(values)), 3)]
            for key, values in of.items()
        }


def _images(data: Path) -> Iterator[tuple[str, list[Volume]]]:
    for kind, pattern in (
        ("brains, training", "brain_t1/train/*_t1.nii.gz"),
        ("brains", "brain_t1/validation/*_t1.nii.gz"),
        ("Colin27", "templates/ch2bet.nii.gz"),
        ("newborns, T1", "neonate/*_T1w_brain.nii.gz"),
        ("newborns, T2", "neonate/*_T2w_brain.nii.gz"),
        ("heads, 2 mm", "heads_2mm/*_t1.nii.gz"),
        ("head at its own resolution", "head_native/*.nii.gz"),
        ("prostates", "prostate_t2/validation/*_t2.nii.gz"),
        ("prostates, whole field of view", "prostate_native/*/*_t2.nii.gz"),
        ("hippocampi", "hippocampus/validation/*_t1.nii.gz"),
    ):
        yield kind, [load_volume(path) for path in sorted(data.glob(pattern))[:15]]
    heads = sorted(data.glob("heads_2mm/*_t1.nii.gz"))
    masks = [load_labels(str(path).replace("_t1.nii", "_labels.nii")) for path in heads]
    brains = [masked(load_volume(p), mask) for p, mask in zip(heads, masks, strict=True)]
    yield "the same heads, their brains", brains
    for contrast in ("t1", "t2", "flair"):
        paths = sorted(data.glob(f"contrasts/*/{contrast}.nii.gz"))
        yield (
            f"two patients, {contrast.upper()}, background not darkest",
            [*map(load_volume, paths)],
        )


def fitted(rows: Iterable[Row]) -> Row:
    """A logistic model of `accepted`, with signs that are known beforehand, from calibration rows.

    Both kinds count the same in sum. Ridge and bounds keep it tame; SciPy finds the minimum.
    """
    from scipy.optimize import minimize

    known = [
        row
        for row in rows
        if row["group"] == "calibration" and "evidence" in row and row["case"] not in UNSEEN
    ]
    values = np.array([[_number(r["evidence"][p], PARTS[p]) for p in PARTS] for r in known])
    low, high = np.percentile(values, 2, axis=0), np.percentile(values, 98, axis=0)
    high = np.minimum(high, [MOST.get(part, np.inf) for part in PARTS])
    scale = np.maximum(high - low, 1e-6)
    inputs = (values.clip(low, high) - low) / scale
    accepted = np.array([r["accepted"] for r in known], float)
    weights = np.where(accepted == 1, 0.5 / accepted.sum(), 0.5 / (1 - accepted).sum())

    def loss(x: np.ndarray) -> float:
        logits = x[0] + inputs @ x[1:]
        return float(
            weights @ (np.logaddexp(0, logits) - accepted * logits) + RIDGE / 100 * (x[1:] @ x[1:])
        )

    bounds = [(None, None), *((0, None) if sign > 0 else (None, 0) for sign in PARTS.values())]
    found = minimize(loss, np.zeros(1 + len(PARTS)), method="L-BFGS-B", bounds=bounds).x
    parts = {
        name: {
            "weight": round(float(found[n + 1] / scale[n]), 4),
            "range": [round(float(low[n]), 4), round(float(high[n]), 4)],
        }
        for n, name in enumerate(PARTS)
    }
    intercept = found[0] - float((found[1:] * low / scale).sum())
    return {
        "from": "benchmarks/quality.py --fit, which wrote benchmarks/results/quality.json",
        "pairs": len(known),
        "accepted": int(accepted.sum()),
        "intercept": round(intercept, 4),
        "parts": {name: part for name, part in parts.items() if part["weight"]},
    }


def _number(value: float | None, sign: int) -> float:
    return (-1.0 if sign > 0 else 1e3) if value is None else value


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    rows = [
        row | {"score": score_of(row["evidence"])} if "evidence" in row else row
        for row in result["rows"]
    ]
    judged = {
        group: [r for r in rows if r["group"] == group] for group in ("calibration", "judged")
    }
    text = (
        f"# {name}\n\nWritten by `benchmarks/quality.py` from `{name}.json`: {result['model']} or "
        f"none, as by default; {origin(result)}.\n\n"
        "A rater *would accept* a result whose mean Dice reaches a limit that is about midway "
        "between what the affine and what a good registration reach in that set "
        f"({', '.join(f'{n} {s.limit:g}' for n, s in SETS.items() if 'training' not in n)}); "
        "failures by construction (half of the image gone, noise, another organ, …) never. A "
        f"result is *told* to be bad if its score is below {LEAST_SCORE:g}, if a warning makes it "
        "doubtful, or if the pair was refused. The score was fitted to the calibration's rows "
        f"alone. Brains are at {COARSE_MM:g} mm and without the network, but for those at 1 mm.\n\n"
        "## How often it is right\n\n"
    )
    text += markdown_table(
        [
            _rates(group, by, of)
            for group, of in judged.items()
            for by in ("score", "score or warning")
        ],
        (
            ("pairs", "group", ""),
            ("told by", "by", ""),
            ("accepted", "good", "d"),
            ("of these told to be good (specificity)", "specificity", ".3f"),
            ("not accepted", "bad", "d"),
            ("of these told to be bad (sensitivity)", "sensitivity", ".3f"),
            ("area under the ROC curve of the score", "auc", ".3f"),
        ),
    )
    text += "\n## By kind, of what did not set the coefficients\n\n"
    text += markdown_table(list(_kinds(judged["judged"])), KIND_COLUMNS)
    text += "\n## By kind, of what did\n\n"
    text += markdown_table(list(_kinds(judged["calibration"])), KIND_COLUMNS)
    if choices := list(_choices(rows)):
        text += (
            "\n## Model chosen or forced\n\nMean Dice of pairs that the model was not made for: as "
            "`--model auto` starts them, and with the model forced.\n\n"
        ) + markdown_table(choices, CHOICE_COLUMNS)
    if looks := [_shown(look) for look in result.get("looks", ())]:
        text += (
            "\n## What the checks before see\n\nLeast and most over the images of a kind; the "
            "limits are in `quality/checks.py`, `quality/domain.py` and the model's manifest.\n\n"
        ) + markdown_table(looks, LOOK_COLUMNS)
    return text


def _shown(look: Row) -> Row:
    return {
        key: f"{value[0]:.4g} … {value[1]:.4g}" if isinstance(value, list) else value
        for key, value in look.items()
    }


KIND_COLUMNS = (
    ("set", "set", ""),
    ("case", "case", ""),
    ("pairs", "pairs", "d"),
    ("accepted", "accepted", "d"),
    ("Dice affine", "dice_affine", ".3f"),
    ("Dice after", "dice_after", ".3f"),
    ("score, least", "least", ".2f"),
    ("most", "most", ".2f"),
    ("told to be bad", "told", "d"),
    ("flags", "flags", ""),
)
CHOICE_COLUMNS = (
    ("set", "set", ""),
    ("case", "case", ""),
    ("pairs", "pairs", "d"),
    ("affine", "dice_affine", ".3f"),
    ("auto", "dice_auto", ".3f"),
    ("forced", "dice_forced", ".3f"),
    ("auto took", "took", ""),
)
LOOK_COLUMNS = (
    ("images", "kind", ""),
    ("number", "images", "d"),
    ("foreground, ml", "volume_ml", ""),
    ("of the border", "at_border", ""),
    ("voxels, mm", "coarsest_mm", ""),
    ("likeness", "likeness", ""),
    ("handedness", "handedness", ""),
    ("flat", "flat", ""),
    ("commonest", "commonest", ""),
    ("smooth", "smooth", ""),
)


def _told_bad(row: Row, by: str) -> bool:
    if "refused" in row:
        return True
    warned = by != "score" and bool(_doubts(row))
    return warned or row["score"] < LEAST_SCORE


def _doubts(row: Row) -> list[str]:
    """Flags that stay warnings: see `quality.choice`; Dice is left out, as it is the truth here."""
    left_out = ("dice_fell", "labels_lost", "score", *(MENDED if row["model"] == NO_MODEL else ()))
    return [flag for flag in row.get("flags", ()) if flag.partition(" ")[0] not in left_out]


def _rates(group: str, by: str, rows: Sequence[Row]) -> Row:
    good = [row for row in rows if row["accepted"]]
    bad = [row for row in rows if not row["accepted"]]
    scored = [[r["score"] for r in of if "score" in r] for of in (good, bad)]
    wins = [(g > b) + 0.5 * (g == b) for g in scored[0] for b in scored[1]]
    return {
        "group": group,
        "by": by,
        "good": len(good),
        "bad": len(bad),
        "specificity": _share(good, lambda row: not _told_bad(row, by)),
        "sensitivity": _share(bad, partial(_told_bad, by=by)),
        "auc": float(np.mean(wins)) if by == "score" and wins else None,
    }


def _share(rows: Sequence[Row], holds: Any) -> float | None:
    return sum(map(bool, map(holds, rows))) / len(rows) if rows else None


def _kinds(rows: Sequence[Row]) -> Iterator[Row]:
    for key in dict.fromkeys((row["set"], row["case"]) for row in rows):
        of = [row for row in rows if (row["set"], row["case"]) == key]
        scores = [row["score"] for row in of if "score" in row]
        flags = dict.fromkeys(flag for row in of for flag in row.get("flags", ()))
        yield {
            "set": key[0],
            "case": key[1],
            "pairs": len(of),
            "accepted": sum(row["accepted"] for row in of),
            **{k: _mean(row.get(k) for row in of) for k in ("dice_affine", "dice_after")},
            "least": min(scores, default=None),
            "most": max(scores, default=None),
            "told": sum(_told_bad(row, "score or warning") for row in of),
            "flags": ", ".join(flags),
        }


def _choices(rows: Sequence[Row]) -> Iterator[Row]:
    forced = [row for row in rows if row["group"] == "forced"]
    for key in dict.fromkeys((row["set"], row["case"]) for row in forced):
        pairs = {row["pair"] for row in forced if (row["set"], row["case"]) == key}
        of = [
            row
            for row in rows
            if row["group"] == "judged"
            and (row["set"], row["case"]) == key
            and row["pair"] in pairs
        ]
        yield {
            "set": key[0],
            "case": key[1],
            "pairs": len(of),
            "dice_affine": _mean(row.get("dice_affine") for row in of),
            "dice_auto": _mean(row.get("dice_after") for row in of),
            "dice_forced": _mean(
                row.get("dice_after") for row in forced if (row["set"], row["case"]) == key
            ),
            "took": ", ".join(sorted({row["model"] for row in of if "model" in row})),
        }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of all sets, as for accuracy.py")
    add("--fit", action="store_true", help="fit the score to the calibration's rows")
    add("--resume", action="store_true", help="measure only what the result file lacks")
    add("--threads", type=int, help="default: all cores")
    args = parser.parse_args()
    return exit_code("quality.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
