"""Judging a registration by its files, whichever program made them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EvaluationError
from .geometry.compose import apply_transforms, compose
from .geometry.field import DisplacementField
from .geometry.resample import resample_to_grid
from .geometry.transform import as_transform
from .images.label_names import names_of_labels
from .images.landmarks import paired
from .metrics.definitions import definitions_of
from .metrics.deformation import regularity
from .metrics.landmarks import target_registration_error
from .metrics.summary import compare_images, compare_labels
from .metrics.surface import NSD_TOLERANCE_MM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .geometry.resample import Interpolation
    from .geometry.spaces import Grid
    from .geometry.transform import Transform
    from .images.landmarks import Landmarks
    from .images.volume import Volume

# Of a label's row, in this order; each has a column per stage.
PER_LABEL = (
    "dice",
    "assd_mm",
    "hd95_mm",
    "nsd",
    "volume_mm3",
    "volume_change_percent",
)


@dataclass(frozen=True, eq=False)
class Kind:
    """The images of a registration, or its label maps.

    Attributes:
        fixed: On the grid on which all is compared.
        moving: On its own grid; shows what was there before.
        warped: The moving one on the fixed grid, as a program resampled it.
    """

    fixed: Volume | None = None
    moving: Volume | None = None
    warped: Volume | None = None


def evaluate(
    images: Kind,
    labels: Kind,
    transforms: Sequence[Transform] = (),
    landmarks: tuple[Landmarks, Landmarks] | None = None,
    *,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
    label_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Take all metrics that the given files allow.

    "before" needs the moving image (or labels), "after" the warped one or the transforms, through
    which the moving one is then warped: images linearly, labels by the nearest voxel. Regularity
    is measured on the grid of the transforms' first field, or else on the fixed grid.

    Args:
        images: Any of them.
        labels: Any of them.
        transforms: Fixed → moving, in the order in which a fixed point passes them.
        landmarks: Of the fixed and of the moving image.
        nsd_tolerance_mm: Of the normalised surface distance.
        label_names: By label, to go into the result.

    Returns:
        What metrics.json has under the same keys, and more; "definitions" says what each is.

    Raises:
        EvaluationError: The files allow no metric, or do not belong together.
    """
    metrics: dict[str, Any] = {}
    fixed_grid = next((kind.fixed.grid for kind in (images, labels) if kind.fixed), None)
    if stages := _stages(images, transforms, "linear"):
        assert images.fixed
        metrics |= compare_images(images.fixed, stages)
    if stages := _stages(labels, transforms, "nearest"):
        assert labels.fixed
        metrics |= compare_labels(labels.fixed, labels.moving, stages, nsd_tolerance_mm)
        metrics["nsd_tolerance_mm"] = nsd_tolerance_mm
        if label_names:
            present = metrics["dice"][next(iter(stages))]["labels"]
            metrics["label_names"] = names_of_labels(present, label_names)
    if transforms:
        metrics |= regularity(_as_field(transforms, fixed_grid))
    if landmarks:
        fixed, moving = paired(*landmarks)
        points = fixed.points_mm, moving.points_mm, fixed.names
        metrics["tre_mm"] = {"before": target_registration_error(*points)}
        if transforms:
            metrics["tre_mm"]["after"] = target_registration_error(*points, transforms)
    if not metrics:
        raise EvaluationError(
            "evaluation: expected files to compare, such as a fixed image and a warped one, got "
            "none that go together; see paramorph-rt evaluate --help."
        )
    metrics["definitions"] = definitions_of(metrics)
    return metrics


def label_table(metrics: Mapping[str, Any]) -> str:
    """The metrics of labels as CSV: a row per label, a column per metric and stage.

    Values that do not exist are empty.

    Raises:
        EvaluationError: There are no label maps in the metrics.
    """
    if "dice" not in metrics:
        raise EvaluationError(
            "CSV: expected label maps, of which it has a row per label, got none; pass "
            "--fixed-labels and --warped-labels, or take --json."
        )
    names = metrics.get("label_names", {})
    columns = [
        (f"{key}_{stage}", table["labels"])
        for key in PER_LABEL
        for stage, table in metrics.get(key, {}).items()
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["label", "name", *(title for title, _ in columns)])
    for label in next(iter(metrics["dice"].values()))["labels"]:
        values = (table.get(label) for _, table in columns)
        writer.writerow([label, names.get(label, ""), *values])
    return stream.getvalue()


def _stages(
    kind: Kind, transforms: Sequence[Transform], interpolation: Interpolation
) -> dict[str, np.ndarray]:
    """The moving data on the fixed grid, before and after."""
    if kind.fixed is None:
        if kind.warped is not None:
            raise EvaluationError(
                f"{kind.warped.name}: expected a fixed image or label map to compare it with, got "
                "none; pass --fixed or --fixed-labels."
            )
        return {}
    stages = {}
    if kind.moving is not None:
        # Not smoothed, because a warp does not smooth either.
        stages["before"] = resample_to_grid(
            kind.moving, kind.fixed.grid, None, interpolation, smooth=False
        )
    if kind.warped is not None:
        if not kind.warped.grid.matches(kind.fixed.grid):
            raise EvaluationError(
                f"{kind.warped.name}: expected it on the grid of {kind.fixed.name}, shape "
                f"{kind.fixed.grid.shape}, got another grid of shape {kind.warped.grid.shape}; "
                "warp it onto that grid, or leave it out and pass --moving and --transform."
            )
        stages["after"] = kind.warped.data
    elif kind.moving is not None and transforms:
        warped = apply_transforms(kind.moving, transforms, kind.fixed.grid, interpolation)
        stages["after"] = warped.data
    return stages


def _as_field(transforms: Sequence[Transform], fixed: Grid | None) -> DisplacementField:
    """All transforms as one field; on the grid of the first, if it has one."""
    first = as_transform(transforms[0])
    whole = compose(transforms, fixed if first.grid is None else None)
    if whole.grid is not None:
        return whole
    if fixed is None:
        raise EvaluationError(
            "transform: expected an image on whose grid to measure it, as it is an affine, got "
            "none; pass --fixed."
        )
    return whole.on(fixed)
