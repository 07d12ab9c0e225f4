"""The summary as one HTML page: distributions, then all pairs, worst first; it needs no network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .. import PURPOSE, __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .summary import Row

STAGES = ("before", "affine", "after")
# Title, and the metric of each line.
PLOTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Dice, mean over labels", {stage: f"dice.{stage}.mean" for stage in STAGES}),
    ("HD95 in mm, mean over labels", {stage: f"hd95_mm.{stage}.mean" for stage in STAGES}),
    ("ASSD in mm, mean over labels", {stage: f"assd_mm.{stage}.mean" for stage in STAGES}),
    ("NCC of the images", {stage: f"ncc.{stage}" for stage in STAGES}),
    ("Folded voxels, %", {"after": "nonpositive_jacobian_percent"}),
)
# Heading, metric and digits of the table's columns.
COLUMNS = (
    ("Dice before", "dice.before.mean", 3),
    ("Dice affine", "dice.affine.mean", 3),
    ("Dice after", "dice.after.mean", 3),
    ("HD95 mm", "hd95_mm.after.mean", 2),
    ("ASSD mm", "assd_mm.after.mean", 2),
    ("NCC before", "ncc.before", 3),
    ("NCC after", "ncc.after", 3),
    ("folds %", "nonpositive_jacobian_percent", 4),
)
MOST_DOTS = 2000  # more hide each other and make the page slow
LEFT, RIGHT, LINE, TOP = 92, 690, 46, 8

_LEGEND = (
    "A dot is a pair. Boxes reach from the 25th to the 75th percentile, with the median; whiskers "
    "from the 5th to the 95th."
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #66727f; --line: #d5dbe1; --paper: #fff;
  --mark: #1668b8; --bad: #b3261e; --warn: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #9aa6b2; --line: #3a444e;
  --paper: #14191e; --mark: #6db3f2; --bad: #ff8a80; --warn: #f0b95b } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0; color: var(--soft) } a { color: var(--mark) }
.plots { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
figure { margin: 0 } figcaption { font-weight: 600 }
svg { width: 100%; height: auto; overflow: visible }
svg text { fill: var(--soft); font-size: 17px }
.axis { stroke: var(--line) } .box { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.median { stroke: var(--ink); stroke-width: 4 } .dot { fill: var(--mark); fill-opacity: .45 }
.dot:hover { fill-opacity: 1 } .wide { overflow-x: auto }
table { border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 9rem }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper) }
.note { position: sticky; left: .6rem; max-width: min(100%, 100vw - 3.2rem) }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom }
.failed { color: var(--bad) } .warning { color: var(--warn); font-size: .9em }
footer { margin-top: 2rem; color: var(--soft); font-size: .9em }
@media (max-width: 40rem) { svg text { font-size: 25px } .dot { r: 8px } }
@media print { body { margin: 0; max-width: none; font-size: 9pt } h2 { break-after: avoid }
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --mark: #0a5aa8; --bad: #b3261e;
    --warn: #6b3a00; color-scheme: light }
  .plots { grid-template-columns: 1fr 1fr } .wide { overflow: visible } svg text { font-size: 20px }
  th, td { padding: .1rem .4rem; position: static !important } tr, figure { break-inside: avoid } }
"""


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
    body = "\n".join(_table_row(row, columns) for row in rows)
    heads = "".join(f'<th scope="col">{escape(heading)}</th>' for heading, _, _ in columns)
    plots = (
        f'<h2>Distributions</h2>\n<p>{_LEGEND}</p>\n<div class="plots">{"".join(figures)}</div>\n'
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cohort of {len(rows)} pairs</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Cohort of {len(rows)} pairs</h1>
<p>{_counts(summary)}</p>
{plots if figures else ""}<h2>Pairs, worst first</h2>
<div class="wide" tabindex="0" role="region" aria-label="Table of pairs"><table>
<thead><tr><th scope="col">pair</th>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<footer>paramorph-rt {escape(str(__version__))} · {escape(PURPOSE)}</footer>
</body>
</html>
"""


def _counts(summary: Mapping[str, Any]) -> str:
    parts = [f"{summary['done']} registered", f"{summary['kept']} kept from an earlier run"]
    parts += [f'<span class="failed">{summary["failed"]} failed</span>'] * bool(summary["failed"])
    parts += [f"{summary['not_run']} not run"] * bool(summary["not_run"])
    if rate := summary["pairs_per_minute"]:
        parts.append(f"{rate:.1f} pairs a minute")
    return " · ".join(parts)


def _table_row(row: Row, columns: Sequence[tuple[str, str, int]]) -> str:
    name = escape(row.pair.name)
    cell = f'<a href="{_link(row)}">{name}</a>' if row.report else name
    cell += "".join(f'<div class="warning">{escape(text)}</div>' for text in row.warnings)
    if not row.metrics:
        text = escape(f"{row.status}: {row.note}" if row.note else row.status)
        note = f'<div class="note"><b>{cell}</b> <span class="{row.status}">{text}</span></div>'
        return f'<tr><td colspan="{len(columns) + 1}">{note}</td></tr>'
    values = (_number(row.metrics.get(metric), digits) for _, metric, digits in columns)
    return f"<tr><td>{cell}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>"


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
        dot = f'<circle class="dot" {place}><title>{text}</title></circle>'
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
