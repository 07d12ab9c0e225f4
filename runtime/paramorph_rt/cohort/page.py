"""The summary as one HTML page: distributions, pairs and labels, worst first; no network needed."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from .. import PURPOSE, __version__
from ..metrics.definitions import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .row import Row

SCORE = "quality.score"
# Title, and the metric of each line.
PLOTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Quality score", {"after": SCORE}),
    ("Dice, mean over labels", {stage: f"dice.{stage}.mean" for stage in STAGES}),
    ("HD95 in mm, mean over labels", {stage: f"hd95_mm.{stage}.mean" for stage in STAGES}),
    ("ASSD in mm, mean over labels", {stage: f"assd_mm.{stage}.mean" for stage in STAGES}),
    ("NCC of the images", {stage: f"ncc.{stage}" for stage in STAGES}),
    ("Folded voxels, %", {"after": "nonpositive_jacobian_percent"}),
)
# Heading, metric, digits, and which end is the worst: of the columns of the table of pairs.
Column = tuple[str, str, int, Literal["low", "high"]]
COLUMNS: tuple[Column, ...] = (
    ("score", SCORE, 2, "low"),
    ("Dice after", "dice.after.mean", 3, "low"),
    ("Dice affine", "dice.affine.mean", 3, "low"),
    ("Dice before", "dice.before.mean", 3, "low"),
    ("HD95 (mm)", "hd95_mm.after.mean", 2, "high"),
    ("ASSD (mm)", "assd_mm.after.mean", 2, "high"),
    ("NCC after", "ncc.after", 3, "low"),
    ("NCC before", "ncc.before", 3, "low"),
    ("folded (%)", "nonpositive_jacobian_percent", 4, "high"),
)
# The same of the table of labels: means over pairs.
LABEL_COLUMNS: tuple[Column, ...] = (
    ("Dice after", "dice.after", 3, "low"),
    ("Dice before", "dice.before", 3, "low"),
    ("HD95 (mm)", "hd95_mm.after", 2, "high"),
    ("ASSD (mm)", "assd_mm.after", 2, "high"),
)
MOST_DOTS = 2000  # more hide each other and make the page slow
LEFT, RIGHT, LINE, TOP = 92, 690, 46, 8

_ORDER = (
    "Those that failed come first, then those that a warning makes doubtful, then the others; of "
    "each kind the lowest quality score first. A click on a heading sorts "
    "by it, the worst first; another turns it round."
)
_WORDS = (
    "Score: how probable it is, by all that needs no labels, that a rater would accept the result; "
    "1 is best, and the redder the more doubtful. Dice: overlap of the labels, 1 is whole. HD95 "
    "and ASSD: nearly the largest, and the average, distance of their borders. NCC: likeness of "
    "the images, 1 is alike. Folded: voxels where the deformation turns space inside out, 0 is "
    "best. Before: as the files lie; affine: after the affine alignment; after: after all."
)
_LEGEND = (
    "A dot is a pair. Boxes reach from the 25th to the 75th percentile, with the median; whiskers "
    "from the 5th to the 95th."
)


def page(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """The page's HTML.

    Args:
        rows: In the order of the table.
        summary: What summary.json holds.
    """
    names = {name for row in rows for name in row.metrics}
    figures = [
        _figure(title, {line: name for line, name in lines.items() if name in names}, rows, summary)
        for title, lines in PLOTS
        if names & set(lines.values())
    ]
    columns = [column for column in COLUMNS if column[1] in names]
    body = [_table_row(row, columns) for row in rows]
    plots = (
        f'<h2>Distributions</h2>\n<p>{_LEGEND}</p>\n<div class="plots">{"".join(figures)}</div>\n'
    )
    style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src 'sha256-{policy}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cohort of {len(rows)} pairs</title>
<style>{style}</style>
</head>
<body>
<h1>Cohort of {len(rows)} pairs</h1>
<p>{_counts(summary)}</p>
<p>{_WORDS}</p>
{plots if figures else ""}<h2>Pairs, worst first</h2>
<p>{_ORDER}</p>
{_table("pairs", [_head("pair"), *map(_head_of, columns)], body)}
{_labels(summary.get("labels", {}))}<footer>paramorph-rt {escape(str(__version__))} · \
{escape(PURPOSE)}</footer>
<script>{script}</script>
</body>
</html>
"""


def _table(what: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    body = "\n".join(rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Table of {what}">\n'
        f'<table class="{what}">\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _head(title: str, worst: str = "low") -> str:
    button = f'<button type="button">{escape(title)}</button>'
    return f'<th scope="col" data-worst="{worst}">{button}</th>'


def _head_of(column: Column) -> str:
    return _head(column[0], column[3])


def _labels(labels: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of labels: means over the pairs, and the pair that is worst at each."""
    if not labels:
        return ""
    columns = [c for c in LABEL_COLUMNS if any(c[1] in entry for entry in labels.values())]
    rows = []
    for label, entry in labels.items():
        title = escape(" ".join(filter(None, (label, entry["name"]))))
        cells = [f'<td data-value="{label}">{title}</td>']
        cells += [_cell(entry.get(key, {}).get("mean"), digits) for _, key, digits, _ in columns]
        number = entry["dice.after"]["n"]
        cells.append(f'<td data-value="{number}">{number}</td>')
        cells.append(f'<td class="text">{escape(entry["worst_pair"])}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = [_head("label"), *map(_head_of, columns), _head("pairs"), _head("worst pair")]
    table = _table("labels", heads, rows)
    return f"<h2>Labels, worst first</h2>\n<p>Means over the pairs.</p>\n{table}\n"


def _cell(value: float | None, digits: int) -> str:
    return f'<td data-value="{"" if value is None else value}">{_number(value, digits)}</td>'


def _counts(summary: Mapping[str, Any]) -> str:
    parts = [f"{summary['done']} registered", f"{summary['kept']} kept from an earlier run"]
    parts += [f'<span class="failed">{summary["failed"]} failed</span>'] * bool(summary["failed"])
    parts += [f"{summary['not_run']} not run"] * bool(summary["not_run"])
    if rate := summary["pairs_per_minute"]:
        parts.append(f"{rate:.1f} pairs a minute")
    return " · ".join(parts)


def _table_row(row: Row, columns: Sequence[Column]) -> str:
    name = escape(row.pair.name)
    cell = f'<a href="{_link(row)}">{name}</a>' if row.report else name
    cell += "".join(f'<div class="warning">{escape(text)}</div>' for text in row.warnings)
    if not row.metrics:
        text = escape(f"{row.status}: {row.note}" if row.note else row.status)
        note = f'<div class="note"><b>{cell}</b> <span class="{row.status}">{text}</span></div>'
        return f'<tr><td colspan="{len(columns) + 1}">{note}</td></tr>'
    values = (_measured(row, metric, digits) for _, metric, digits, _ in columns)
    return f"<tr><td>{cell}</td>{''.join(values)}</tr>"


def _measured(row: Row, metric: str, digits: int) -> str:
    """A cell; that of the score is coloured by it."""
    value = row.metrics.get(metric)
    cell = _cell(value, digits)
    if metric != SCORE or value is None:
        return cell
    return cell.replace("<td", f'<td class="score" style="--doubt:{100 * (1 - value):.0f}%"', 1)


def _figure(
    title: str, lines: Mapping[str, str], rows: Sequence[Row], summary: Mapping[str, Any]
) -> str:
    """A line for each metric: a dot for each pair, a box from the 25th to the 75th percentile."""
    entries = {line: summary["statistics"].get(name) for line, name in lines.items()}
    known = {line: entry for line, entry in entries.items() if entry}
    low = min((entry["min"] for entry in known.values()), default=0.0)
    high = max((entry["max"] for entry in known.values()), default=1.0)
    if high == low:
        low, high = low - 0.5, high + 0.5

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    parts = []
    for number, (line, entry) in enumerate(known.items()):
        y = TOP + LINE * (number + 0.5)
        parts.append(f'<text x="0" y="{y + 6:g}">{escape(line)}</text>')
        parts.append(_dots(rows, lines[line], x, y))
        parts.append(_box(entry, x, y))
    bottom = TOP + LINE * len(known)
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{RIGHT}"/>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        value = low + share * (high - low)
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 20}" text-anchor="{anchor}">{value:.3g}</text>'
        )
    medians = "; ".join(f"{line}: median {e['median']:.3g}" for line, e in known.items())
    said = escape(f"{title}. {medians}")
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 700 {bottom + 26}" role="img" aria-label="{said}">'
        f"{''.join(parts)}</svg></figure>\n"
    )


def _dots(rows: Sequence[Row], metric: str, x: Any, y: float) -> str:
    shown = [row for row in rows if row.metrics.get(metric) is not None]
    dots = []
    for number, row in enumerate(shown[:MOST_DOTS]):  # the worst, where there are more
        value = row.metrics[metric]
        # Steps of the golden ratio spread any number of dots evenly, the same way each time.
        height = y + ((number * 0.618034) % 1 - 0.5) * LINE * 0.6
        text = escape(f"{row.pair.name}: {_number(value, 4)}")
        place = f'cx="{x(value):.1f}" cy="{height:.1f}" r="5"'
        kind = "dot doubtful" if row.warnings else "dot"
        dot = f'<circle class="{kind}" {place}><title>{text}</title></circle>'
        # Left out by the Tab key: the table has the same links, each once.
        dots.append(f'<a href="{_link(row)}" tabindex="-1">{dot}</a>' if row.report else dot)
    return "".join(dots)


def _box(entry: Mapping[str, float], x: Any, y: float) -> str:
    low, left, middle, right, high = (x(entry[q]) for q in ("p5", "p25", "median", "p75", "p95"))
    half = LINE * 0.3
    return (
        f'<path class="box" d="M{low:.1f} {y:g}H{left:.1f}M{right:.1f} {y:g}H{high:.1f}'
        f'M{left:.1f} {y - half:g}H{right:.1f}V{y + half:g}H{left:.1f}Z"/>'
        f'<path class="median" d="M{middle:.1f} {y - half:g}V{y + half:g}"/>'
    )


def _link(row: Row) -> str:
    return escape(quote(row.report or ""))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
