"""What each metric is, by its key in metrics.json: its title, unit, meaning and shape.

Tables, reports, summaries and the JSON Schema of metrics.json all say what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What metrics.json has under a key: one number; a number for each stage; for each stage a number
# for each label and their mean; a few values by name.
Kind = Literal["number", "stages", "labels", "table"]
# Of the moving image: where it lay, after the affine, and after all.
STAGES = ("before", "affine", "after")


@dataclass(frozen=True)
class Metric:
    """One measure, and how to write it down.

    Attributes:
        title: Of a column or row.
        meaning: A sentence for those who compute with it.
        unit: Empty where there is none.
        digits: After the point.
        kind: What metrics.json has under its key.
        plainly: What it means, and which values are good.
    """

    title: str
    meaning: str = ""
    unit: str = ""
    digits: int = 3
    kind: Kind = "number"
    plainly: str = ""

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: object) -> str:
        """A value as people read it; – where there is none."""
        if value is None:
            return "–"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return str(value)
        return f"{value:.{self.digits}f}".replace("-", "−")


METRICS: Mapping[str, Metric] = {
    "dice": Metric(
        "Dice",
        "2 |A and B| / (|A| + |B|), no smoothing; 0 if one map lacks the label",
        kind="labels",
        plainly="how much the labels of both images overlap: 0 not at all, 1 wholly",
    ),
    "assd_mm": Metric(
        "ASSD",
        "average symmetric surface distance: mean over the border voxels of both maps together; "
        "null if a map lacks the label",
        unit="mm",
        digits=2,
        kind="labels",
        plainly="average distance between the borders of a label in both images; 0 is perfect",
    ),
    "hd95_mm": Metric(
        "HD95",
        "larger of the two directed 95th percentiles of the distance between border voxels; null "
        "if a map lacks the label",
        unit="mm",
        digits=2,
        kind="labels",
        plainly="nearly the largest distance between the borders of a label (95th percentile of "
        "the Hausdorff distance); 0 is perfect",
    ),
    "nsd": Metric(
        "NSD",
        "normalised surface distance: share of the border voxels of both maps together that are "
        "within nsd_tolerance_mm; 0 if one map lacks the label",
        kind="labels",
        plainly="share of a label's border that lies within the tolerance of the other's: 0 none, "
        "1 all",
    ),
    "volume_mm3": Metric(
        "Volume",
        "voxels times voxel volume; moving on its own grid, the others on the fixed one",
        unit="mm³",
        digits=0,
        kind="labels",
        plainly="volume of a label",
    ),
    "volume_change_percent": Metric(
        "Volume change",
        "100 (after / moving - 1) of volume_mm3; null if the moving map lacks the label",
        unit="%",
        digits=1,
        kind="labels",
        plainly="how much a label of the moving image grew or shrank when it was warped",
    ),
    "ncc": Metric(
        "NCC",
        "Pearson's correlation of the intensities within the fixed foreground",
        kind="stages",
        plainly="likeness of the two images (normalised cross-correlation): 1 alike, 0 unlike; "
        "near −1 for inverted contrasts, and no measure between different ones",
    ),
    "ssim": Metric(
        "SSIM",
        "mean structural similarity within the fixed foreground, uniform 7-voxel cubes, "
        "intensities scaled to 0 to 1",
        kind="stages",
        plainly="structural similarity of the two images: 1 alike",
    ),
    "mse": Metric(
        "MSE",
        "mean squared difference within the fixed foreground, intensities scaled to 0 to 1",
        digits=4,
        kind="stages",
        plainly="mean squared difference of the two images: 0 alike",
    ),
    "nonpositive_jacobian_percent": Metric(
        "Folded voxels",
        "voxels with Jacobian determinant <= 0 by central differences",
        unit="%",
        digits=4,
        plainly="where the deformation turns space inside out, which no tissue does; less is "
        "better, 0 is none",
    ),
    "nondiffeomorphic_volume_percent": Metric(
        "Non-diffeomorphic volume",
        "volume of the tetrahedra between voxels that are turned inside out (NDV, Liu et al. 2024)",
        unit="%",
        digits=4,
        plainly="the same, measured between voxels too (non-diffeomorphic volume)",
    ),
    "nondiffeomorphic_voxels_percent": Metric(
        "Non-diffeomorphic voxels",
        "voxels at which any of the ten determinants of the digital diffeomorphism is <= 0 (Liu et "
        "al. 2024)",
        unit="%",
        digits=4,
        plainly="voxels beside which something folds",
    ),
    "sd_log_jacobian": Metric(
        "SD log J",
        "standard deviation of log max(J, 1e-9), central differences, all voxels",
        plainly="how unevenly the deformation stretches: 0 evenly",
    ),
    "sd_log_jacobian_l2r": Metric(
        "SD log J, Learn2Reg",
        "standard deviation of log(J + 3), central differences, 2 voxels cropped at each side, as "
        "Learn2Reg computes SDlogJ",
        plainly="the same as the Learn2Reg challenge computes it",
    ),
    "inverse_consistency_mm": Metric(
        "Inverse consistency",
        "distance between a point and where it lands there and back, through the field and its "
        "inverse; null if none of the image lies inside both",
        unit="mm",
        kind="table",
        plainly="how far there and back leads away; 0 is perfect",
    ),
    "tre_mm": Metric(
        "TRE",
        "target registration error: distance from the transformed fixed landmark to the moving "
        "one, in the moving world; null outside the displacement field",
        unit="mm",
        digits=2,
        kind="table",
        plainly="distance between landmarks of both images (target registration error); 0 is "
        "perfect",
    ),
}


def metric_of(key: str) -> Metric:
    """What is known of a metric, or only its name."""
    return METRICS.get(key) or Metric(key.replace("_", " "))


def definitions_of(keys: Iterable[str]) -> dict[str, Any]:
    """The sentences of those metrics that are there, in their order here."""
    present = set(keys)
    return {key: metric.meaning for key, metric in METRICS.items() if key in present}
