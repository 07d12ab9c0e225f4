"""What a report says of each figure in metrics.json: its title, unit and digits.

Nothing is measured here. A figure without an entry is shown under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .slices import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

# Said elsewhere on the page, or no measure of the result.
_NOT_MEASURES = frozenset(
    (
        "moving",
        "fixed",
        "model",
        "backend",
        "precision",
        "network_grid",
        "affine",
        "seconds",
        "warnings",
        "definitions",
        "nsd_tolerance_mm",
        "volume_mm3",
    )
)


@dataclass(frozen=True)
class Measure:
    """How to write one measure down.

    Attributes:
        title: Column or row heading.
        unit: Empty where there is none.
        digits: After the point.
    """

    title: str
    unit: str = ""
    digits: int = 3

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: object) -> str:
        """A value as the report writes it; – where there is none."""
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}".replace("-", "−") if _is_number(value) else str(value)


MEASURES = {
    "dice": Measure("Dice"),
    "assd_mm": Measure("ASSD", "mm", 2),
    "hd95_mm": Measure("HD95", "mm", 2),
    "nsd": Measure("NSD"),
    "volume_mm3": Measure("Volume", "mm³", 0),
    "volume_change_percent": Measure("Volume change", "%", 1),
    "ncc": Measure("NCC"),
    "ssim": Measure("SSIM"),
    "mse": Measure("MSE", "", 4),
    "nonpositive_jacobian_percent": Measure("Folded voxels", "%", 4),
    "nondiffeomorphic_volume_percent": Measure("Non-diffeomorphic volume", "%", 4),
    "nondiffeomorphic_voxels_percent": Measure("Non-diffeomorphic voxels", "%", 4),
    "sd_log_jacobian": Measure("SD log J"),
    "sd_log_jacobian_l2r": Measure("SD log J, Learn2Reg"),
    "inverse_consistency_mm": Measure("Inverse consistency", "mm"),
    "tre_mm": Measure("TRE", "mm", 2),
}


@dataclass(frozen=True)
class Column:
    """One measure of labels at one stage."""

    key: str
    stage: str
    measure: Measure
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
        groups: Per measure: itself, the stages that it has, and what it means.
        rows: One per label.
        means: Last line: the mean over the labels that both images have.
    """

    groups: list[tuple[Measure, list[str], str]]
    rows: list[Row]
    means: list[str]


def measure_of(key: str) -> Measure:
    """What is known of a measure, or only its name."""
    return MEASURES.get(key) or Measure(key.replace("_", " "))


def meaning_of(key: str, metrics: Mapping[str, Any]) -> str:
    """The sentence of metrics.json about one of its measures, if it has one."""
    return str(metrics.get("definitions", {}).get(key, ""))


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
            groups.append((measure_of(key), stages, meaning_of(key, metrics)))
        columns += [Column(key, name, measure_of(key), table[name]["labels"]) for name in stages]
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
    return LabelTable(groups, rows, means)


def summary(metrics: Mapping[str, Any]) -> list[tuple[Measure, list[tuple[str, str]], str]]:
    """Measures of the whole pair: each with its values, (stage or name, text), and its meaning."""
    result = []
    for key in _ordered(metrics):
        value = metrics[key]
        if key in _NOT_MEASURES or value is None:
            continue
        measure = measure_of(key)
        table = value if isinstance(value, dict) else {"": value}
        found = {name: _mean(entry) for name, entry in table.items()}
        shown = [(name, measure.text(v)) for name, v in found.items() if v is not None]
        if shown:
            result.append((measure, shown, meaning_of(key, metrics)))
    return result


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the result, as far as metrics.json tells."""
    found = [str(warning) for warning in metrics.get("warnings", ())]
    if (growth := metrics.get("network_grid", {}).get("spacing_growth", 1.0)) > 1:
        found.append(
            f"The network ran {growth:.2f} times coarser than it was trained, to fit the image."
        )
    for key in ("ncc", "dice"):
        table = metrics.get(key) or {}
        before, after = (_mean(table.get(stage)) for stage in ("affine", "after"))
        if before is not None and after is not None and after < before:
            found.append(
                f"{MEASURES[key].title} fell from {before:.3f} after the affine to {after:.3f} "
                "after the network."
            )
    lost = _lost_labels(metrics)
    if lost:
        which = ", ".join(map(str, lost[:12])) + " …" * (len(lost) > 12)
        found.append(f"After the registration, nothing overlaps any more of label {which}.")
    return found


def _ordered(metrics: Mapping[str, Any]) -> list[str]:
    """Known measures in their order here, then all others in theirs."""
    return [key for key in MEASURES if key in metrics] + [k for k in metrics if k not in MEASURES]


def _lost_labels(metrics: Mapping[str, Any]) -> list[int]:
    """Labels that overlapped once and no longer do."""
    dice = metrics.get("dice") or {}
    stages = [dice.get(stage, {}).get("labels", {}) for stage in STAGES]
    after = stages[-1]
    had = {label for stage in stages[:-1] for label, value in stage.items() if value}
    return sorted(int(label) for label in had if after.get(label) == 0)


def _entries(table: object) -> list[tuple[str, dict[str, Any]]]:
    """Stages of a measure of labels, with what they hold."""
    if not isinstance(table, dict):
        return []
    return [(name, entry) for name, entry in table.items() if isinstance(entry, dict)]


def _mean(entry: object) -> float | None:
    value: Any = entry.get("mean") if isinstance(entry, dict) else entry
    return value if _is_number(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
