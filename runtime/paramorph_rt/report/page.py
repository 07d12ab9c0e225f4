"""The report page: one HTML file with its pictures, style and script in it; no network."""

from __future__ import annotations

import base64
import datetime
import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import PURPOSE
from ..metrics.definitions import STAGES
from . import drawing
from .slices import STAGE_TITLES, Pair, Plane, Window, cut
from .tables import label_table, summary, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Integer

    from ..geometry.spaces import Grid
    from .solid import Solid

VIEWS = (
    ("images", "Images"),
    ("checkerboard", "Checkerboard"),
    ("difference", "Difference"),
    ("jacobian", "Jacobian"),
)
EDGE_WORDS = {
    "R": "right",
    "L": "left",
    "A": "anterior",
    "P": "posterior",
    "S": "superior",
    "I": "inferior",
}
# What is said of the affine alignment in metrics.json, in words.
ALIGNMENT = {
    "kind": "kind of transform",
    "mutual_information": "mutual information (nats)",
    "uncertainty_coefficient": "uncertainty coefficient",
    "foreground_overlap": "overlap of foregrounds, of 1",
}
PACKAGES = ("paramorph-rt", "numpy", "nibabel", "SimpleITK", "onnxruntime", "openvino", "tensorrt")


def render(
    pair: Pair,
    *,
    count: int,
    label_names: Mapping[int, str],
    parameters: Mapping[str, object],
    solid: Solid | None,
) -> str:
    """Write the page of one registration.

    Args:
        pair: What is shown.
        count: Slices per plane.
        label_names: Names of labels, as far as they are known.
        parameters: Of the registration, shown as they are.
        solid: The 3-D view, if it was requested.

    Returns:
        HTML. Every text in it that comes from outside is escaped; its own policy forbids all
        network and any script but its own.
    """
    metrics = pair.result.metrics
    scripts = {
        "script": _template("report.js"),
        "script_3d": _template("solid.js") if solid else "",
    }
    context = {
        "version": _version("paramorph-rt") or "unknown",
        "purpose": PURPOSE,
        "written": datetime.datetime.now(datetime.UTC),
        "style": Markup(_template("report.css")),
        "policy": _policy([*scripts.values(), solid.script if solid else ""], solid is not None),
        "moving": pair.moving.name,
        "fixed": pair.fixed.name,
        "metrics": metrics,
        "verdict": verdict(metrics),
        "summary": summary(metrics),
        "solid": solid,
        "images": _images(pair),
        "fact_groups": _fact_groups(metrics, parameters),
    }
    context |= {name: Markup(text) for name, text in scripts.items()}
    context |= _table(metrics, label_names) | _viewer(pair, count) | _times(metrics)
    return _environment().get_template("report.html").render(context)


def _table(metrics: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    table = label_table(metrics, names)
    return {
        "table": table,
        "averaged": {measure.title for measure, _ in table.groups},
        "names_known": any(row.name for row in table.rows),
        "has_dice": any(value is not None for row in table.rows for value in row.dice),
    }


def _viewer(pair: Pair, count: int) -> dict[str, Any]:
    """What the slices, interactive and static, are drawn from."""
    planes = [_drawn(plane) for plane in cut(pair, count)]
    oblique = pair.obliqueness_degrees
    return {
        "planes": planes,
        "stages": list(STAGE_TITLES.items()),
        "stage_titles": STAGE_TITLES,
        "views": VIEWS,
        "overlays": _overlays(planes),
        "plates": _plates(planes),
        "colours": {"fixed": drawing.FIXED_COLOUR, "moving": drawing.MOVING_COLOUR},
        "difference_colours": drawing.DIFFERENCE_COLOURS,
        "difference_ticks": _difference_ticks(),
        "jacobian_colours": drawing.JACOBIAN_COLOURS,
        "jacobian_ticks": _jacobian_ticks(),
        "folded_colour": drawing.FOLDED_COLOUR,
        "grid_step": f"{drawing.GRID_STEP_MM:g}",
        "oblique": round(oblique) if oblique >= 0.5 else 0,
        "windows": {"fixed": _range(pair.fixed_window), "moving": _range(pair.moving_window)},
    }


def _times(metrics: Mapping[str, Any]) -> dict[str, Any]:
    seconds = metrics.get("seconds", {})
    total = sum(seconds.values())
    shares = [(name, value, 100 * value / total if total else 0) for name, value in seconds.items()]
    return {"seconds": shares, "total_seconds": total}


def _environment() -> Environment:
    loader = PackageLoader(__package__, "templates")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: list[str], solid: bool) -> str:
    """What the browser may do for this page: show its own pictures and run these scripts."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
        if text
    )
    # NiiVue hands its pictures and volumes to the browser as addresses of memory.
    sources = "img-src data: blob:; connect-src data: blob:" if solid else "img-src data:"
    return f"default-src 'none'; {sources}; style-src 'unsafe-inline'; script-src {hashes}"


def _drawn(plane: Plane) -> dict[str, Any]:
    """A plane as the template draws it: pictures and paths per slice, sizes in mm."""
    slices = range(plane.count)
    pictures = {
        stage: [drawing.data_uri(drawing.grey(image[..., n])) for n in slices]
        for stage, image in plane.images.items()
    }
    fixed = plane.images["fixed"]
    for stage in STAGES:
        image = plane.images[stage]
        pictures[f"difference-{stage}"] = [
            drawing.data_uri(drawing.difference(image[..., n], fixed[..., n])) for n in slices
        ]
    pictures["jacobian"] = [
        drawing.data_uri(drawing.jacobian(plane.jacobian[..., n])) for n in slices
    ]
    width, height = plane.size_mm
    spacing = plane.grid.spacing[:2]
    # Every two millimetres show the bends of a grid of eight, in a fraction of the bytes.
    stride = max(1, round(2 / spacing.min()))
    return {
        "name": plane.name,
        "count": plane.count,
        "middle": plane.count // 2,
        "edges": plane.edges,
        "edge_words": [EDGE_WORDS[letter] for letter in plane.edges],
        "positions": [f"{letter} {mm:.0f} mm" for letter, mm in plane.positions()],
        "width": round(width, 3),
        "height": round(height, 3),
        "half": " ".join(f"{mm / 2:.6g}" for mm in spacing),
        "tenth": " ".join(f"{mm / 10:.6g}" for mm in spacing),
        "pictures": pictures,
        "outlines": _paths(plane.outline, drawing.outline_lines),
        "grids": _paths(plane.lattice, lambda slice_: drawing.lattice_lines(slice_, stride)),
        "labels": {
            source: [_label_paths(labels[..., n]) for n in slices]
            for source, labels in plane.labels.items()
        },
    }


def _paths(stack: np.ndarray, lines_of: Callable[[np.ndarray], drawing.Lines]) -> list[str]:
    """Path of each slice, in tenths of a voxel."""
    return [drawing.path(lines_of(stack[..., n]), 10) for n in range(stack.shape[-1])]


def _label_paths(labels: Integer[np.ndarray, "column row"]) -> dict[int, str]:
    """Path of each label, in half voxels: midway between voxels is a whole number of them."""
    return {label: drawing.path(lines, 2) for label, lines in drawing.label_lines(labels).items()}


def _overlays(planes: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """Key, title, and whether it is shown at first."""
    sources = planes[0]["labels"]
    found = [("outline", "Fixed outline", True)]
    if "fixed" in sources:
        found.append(("labels-fixed", "Fixed labels", False))
    if "after" in sources:
        found.append(("labels-moving", "Moving labels", False))
    return [*found, ("grid", "Deformed grid", False)]


def _plates(planes: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Columns of the static sheet: title, and layers from the bottom up."""
    sources = planes[0]["labels"]
    plates = [(title, [stage, "outline"]) for stage, title in STAGE_TITLES.items()]
    shown = [f"labels-{source}" for source in ("fixed", "after") if source in sources]
    if shown:
        plates.append(("Labels", ["after", *reversed(shown)]))  # blue is seen where they differ
    return [
        *plates,
        ("Checkerboard", ["checkerboard"]),
        ("Difference before", ["difference-before"]),
        ("Difference after", ["difference-after"]),
        ("Grid", ["after", "grid"]),
        ("Jacobian", ["jacobian"]),
    ]


def _difference_ticks() -> list[tuple[float, str]]:
    parts = np.linspace(-1, 1, 5)
    texts = [f"{drawing.DIFFERENCE_RANGE * part:+.1f}".replace("-", "−") for part in parts]
    texts[2] = "0"
    return list(zip(((parts + 1) / 2).tolist(), texts, strict=True))


def _jacobian_ticks() -> list[tuple[float, str]]:
    return list(zip((0.0, 0.25, 0.5, 0.75, 1.0), ("¼", "½", "1", "2", "4"), strict=True))


def _range(window: Window) -> str:
    return f"{window.low:.4g} to {window.high:.4g}"


def _images(pair: Pair) -> list[tuple[str, list[str]]]:
    grids = [pair.moving.grid, pair.fixed.grid, pair.result.warped.grid]
    return [
        ("voxels", [" × ".join(map(str, grid.shape)) for grid in grids]),
        ("spacing (mm)", [_spacing(grid) for grid in grids]),
        ("orientation", [grid.orientation for grid in grids]),
    ]


def _spacing(grid: Grid) -> str:
    return " × ".join(f"{mm:.3g}" for mm in grid.spacing)


def _fact_groups(
    metrics: Mapping[str, Any], parameters: Mapping[str, object]
) -> list[tuple[str, list[tuple[str, str]]]]:
    network = metrics.get("network_grid") or {}
    facts = [(name, str(metrics.get(name) or "–")) for name in ("model", "backend", "precision")]
    if network:
        facts.append(("network grid", " × ".join(map(str, network["shape"]))))
        facts.append(("its spacing (mm)", " × ".join(f"{mm:.3g}" for mm in network["spacing_mm"])))
    versions = [("Python", platform.python_version())]
    versions += [(name, found) for name in PACKAGES if (found := _version(name))]
    given = [(name, str(value)) for name, value in parameters.items()]
    alignment = [
        (ALIGNMENT.get(name, name.replace("_", " ")), _fact(value))
        for name, value in (metrics.get("affine") or {}).items()
    ]
    groups = [
        ("Network", facts),
        ("Parameters", given),
        ("Affine alignment", alignment),
        ("Versions", versions),
    ]
    return [(title, found) for title, found in groups if found]


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(entry)}" for name, entry in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
