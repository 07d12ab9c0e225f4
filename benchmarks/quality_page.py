"""How often score and checks were right, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paramorph_rt.bundle import default_bundle_path
from paramorph_rt.quality.choice import MENDED
from paramorph_rt.quality.score import LEAST_SCORE, score_of
from quality_pairs import COARSE_MM, SETS
from record import Result, Row
from tables import average, grouped, markdown_table

KIND_COLUMNS = (
    ("set", "set", ""),
    ("case", "case", ""),
    ("pairs", "pairs", "d"),
    ("accepted", "accepted", "d"),
    ("Dice affine", "dice_affine", ".3f"),
    ("Dice after", "dice_after", ".3f"),
    ("score, least", "least", ".2f"),
    ("most", "most", ".2f"),
    ("rejected", "rejected", "d"),
    ("flags", "flags", ""),
)
RATE_COLUMNS = (
    ("pairs", "group", ""),
    ("rejected by", "by", ""),
    ("acceptable", "good", "d"),
    ("of these not rejected (specificity)", "specificity", ".3f"),
    ("not acceptable", "bad", "d"),
    ("of these rejected (sensitivity)", "sensitivity", ".3f"),
    ("area under the ROC curve of the score", "auc", ".3f"),
)


def body(result: Result) -> str:
    """The text of a result's page."""
    rows = [
        row | {"score": score_of(row["evidence"])} if "evidence" in row else row
        for row in result["rows"]
    ]
    groups = {group: rows for (group,), rows in grouped(rows, "group").items()}
    rates = [
        rates_of(group, by, groups[group])
        for group in ("calibration", "judged")
        for by in ("score", "score or warning")
    ]
    limits = ", ".join(f"{n} {s.limit:g}" for n, s in SETS.items() if "training" not in n)
    return (
        "By the models of the package or none, as `--model auto` chooses.\n\n"
        "A rater *would accept* a result whose mean Dice reaches a limit that is about midway "
        f"between what the affine and what a good registration reach in that set ({limits}); "
        "failures by construction (half of the image gone, noise, another organ, …) never. A "
        f"result is *rejected* if its score is below {LEAST_SCORE:g}, if a warning makes it "
        "doubtful, or if the pair was refused. The score was fitted to the calibration's rows "
        f"alone. Brains are at {COARSE_MM:g} mm and without the network, but for those at 1 mm.\n\n"
        "## How often it is right\n\n"
        + markdown_table(rates, RATE_COLUMNS)
        + "\n## By kind, of what did not set the coefficients\n\n"
        + markdown_table(list(_kinds(groups["judged"])), KIND_COLUMNS)
        + "\n## By kind, of what did\n\n"
        + markdown_table(list(_kinds(groups["calibration"])), KIND_COLUMNS)
    )


def rates_of(group: str, by: str, rows: Sequence[Row]) -> Row:
    """Sensitivity and specificity of the score alone, or of score and warnings."""
    good = [row for row in rows if row["accepted"]]
    bad = [row for row in rows if not row["accepted"]]
    scored = [[r["score"] for r in of if "score" in r] for of in (good, bad)]
    wins = [(g > b) + 0.5 * (g == b) for g in scored[0] for b in scored[1]]
    return {
        "group": group,
        "by": by,
        "good": len(good),
        "bad": len(bad),
        "specificity": 1 - np.mean([_rejected(row, by) for row in good]) if good else None,
        "sensitivity": np.mean([_rejected(row, by) for row in bad]) if bad else None,
        "auc": float(np.mean(wins)) if by == "score" and wins else None,
    }


def _rejected(row: Row, by: str) -> bool:
    if "refused" in row:
        return True
    warned = by != "score" and bool(_doubts(row))
    return warned or row["score"] < LEAST_SCORE


def _doubts(row: Row) -> list[str]:
    """Flags that stay warnings: see `quality.choice`; Dice is left out, as it is the truth here."""
    is_mended = row["model"] != default_bundle_path().name
    left_out = ("dice_fell", "labels_lost", "score", *(MENDED if is_mended else ()))
    return [flag for flag in row.get("flags", ()) if flag.partition(" ")[0] not in left_out]


def _kinds(rows: Sequence[Row]) -> Iterator[Row]:
    for (name, case), each in grouped(rows, "set", "case").items():
        scores = [row["score"] for row in each if "score" in row]
        yield {
            "set": name,
            "case": case,
            "pairs": len(each),
            "accepted": sum(row["accepted"] for row in each),
            **{key: average(each, key) for key in ("dice_affine", "dice_after")},
            "least": min(scores, default=None),
            "most": max(scores, default=None),
            "rejected": sum(_rejected(row, "score or warning") for row in each),
            "flags": ", ".join(dict.fromkeys(f for row in each for f in _other_flags(row))),
        }


def _other_flags(row: Row) -> list[str]:
    """Without that of the score, which the columns beside show."""
    return [flag for flag in row.get("flags", ()) if not flag.startswith("score ")]
