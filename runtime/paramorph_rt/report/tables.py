"""What a report says of metrics.json: the verdict first, the figures, and the table of labels.

Nothing is measured here. A figure that `metrics.definitions` lacks is shown under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..metrics.definitions import METRICS, Metric, metric_of
from ..metrics.doubts import mean_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Said elsewhere on the page, or no measure of the result.
_NOT_MEASURES = frozenset(
    (
        "moving",
        "fixed",
        "model",
        "backend",
        "precision",
        "network_grid",
        "refinement",
        "affine",
        "seconds",
        "warnings",
        "definitions",
        "nsd_tolerance_mm",
        "volume_mm3",
        "label_names",
        "provenance",
        "schema",
        "quality",
    )
)


@dataclass(frozen=True)
class Column:
    """One measure of labels at one stage."""

    key: str
    stage: str
    measure: Metric
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """One label: its name, per column a text and the number behind it, Dice before and after."""

    label: int
    name: str
    cells: list[tuple[str, float | None]]
    dice: list[float | None]


@dataclass(frozen=True)
class LabelTable:
    """Measures per label, sorted by label.

    Attributes:
        groups: Per measure: itself, and the stages that it has.
        stages: Of each column.
        rows: One per label.
        means: Last line: the mean over the labels that both images have.
    """

    groups: list[tuple[Metric, list[str]]]
    stages: list[str]
    rows: list[Row]
    means: list[str]


@dataclass(frozen=True)
class Verdict:
    """What the metrics say as a whole.

    Attributes:
        good: Nothing that was measured looks wrong.
        title: The same in words.
        doubts: What looks wrong, a sentence each.
        facts: The few figures that matter most, a sentence each.
        score: 0 to 1: how probable it is that a rater would accept the result.
    """

    good: bool
    title: str
    doubts: list[str]
    facts: list[str]
    score: float | None = None


def verdict(metrics: Mapping[str, Any]) -> Verdict:
    """Whether a result looks right, from the warnings of metrics.json, which the terminal has too.

    Numbers cannot show that a registration is right, only that it may be wrong.
    """
    doubts = [str(warning) for warning in metrics.get("warnings", ())]
    title = {0: "No measure looks wrong", 1: "Doubtful: one measure looks wrong"}.get(
        len(doubts), f"Doubtful: {len(doubts)} measures look wrong"
    )
    score = metrics.get("quality", {}).get("score")
    return Verdict(not doubts, title, doubts, list(_facts(metrics)), score)


def _facts(metrics: Mapping[str, Any]) -> Iterator[str]:
    if reason := metrics.get("quality", {}).get("choice", {}).get("reason"):
        yield f"{reason[0].upper()}{reason[1:]}"
    for key, what in (
        ("ncc", "The likeness of the images (NCC, 1 is alike)"),
        ("dice", "The overlap of the labels (mean Dice, 1 is whole)"),
        ("hd95_mm", "The largest distance of their borders (mean HD95, mm)"),
    ):
        table = metrics.get(key) or {}
        before, after = (mean_of(table.get(stage)) for stage in ("before", "after"))
        if before is not None and after is not None:
            text = METRICS[key].text
            how = "rose" if after > before else "fell" if after < before else "stayed"
            yield f"{what} {how} from {text(before)} to {text(after)}."
    folded = metrics.get("nonpositive_jacobian_percent")
    if folded is not None:
        share = METRICS["nonpositive_jacobian_percent"].text(folded)
        yield f"{share} % of the voxels are folded." if folded else "No voxel is folded."


def label_table(metrics: Mapping[str, Any], names: Mapping[int, str]) -> LabelTable:
    """All measures that metrics.json has per label.

    Args:
        metrics: Content of metrics.json.
        names: Of labels, as far as they are known.
    """
    columns, groups = [], []
    for key in _ordered(metrics):
        table = metrics[key]
        stages = [name for name, entry in _entries(table) if "labels" in entry]
        if stages:
            groups.append((metric_of(key), stages))
        columns += [Column(key, name, metric_of(key), table[name]["labels"]) for name in stages]
    labels = sorted({int(label) for column in columns for label in column.values})
    dice = {c.stage: c.values for c in columns if c.key == "dice"}
    rows = [
        Row(
            label,
            names.get(label, ""),
            [(c.measure.text(v), v) for c in columns for v in [c.values.get(str(label))]],
            [dice.get(stage, {}).get(str(label)) for stage in ("before", "after")],
        )
        for label in labels
    ]
    means = [c.measure.text(metrics[c.key][c.stage].get("mean")) for c in columns]
    return LabelTable(groups, [column.stage for column in columns], rows, means)


def summary(metrics: Mapping[str, Any]) -> list[tuple[Metric, list[tuple[str, str]]]]:
    """Measures of the whole pair, each with its values: (stage or name, text)."""
    result = []
    for key in _ordered(metrics):
        value = metrics[key]
        if key in _NOT_MEASURES or value is None:
            continue
        measure = metric_of(key)
        table = value if isinstance(value, dict) else {"": value}
        found = {name: mean_of(entry) for name, entry in table.items()}
        shown = [(name, measure.text(v)) for name, v in found.items() if v is not None]
        if shown:
            result.append((measure, shown))
    return result


def _ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Known measures in their order here, then all others in theirs."""
    return [key for key in METRICS if key in metrics] + [k for k in metrics if k not in METRICS]


def _entries(table: object) -> list[tuple[str, dict[str, Any]]]:
    """Stages of a measure of labels, with what they hold."""
    if not isinstance(table, dict):
        return []
    return [(name, entry) for name, entry in table.items() if isinstance(entry, dict)]
