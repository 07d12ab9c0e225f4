"""What a training is judged by: overlap, surface distance, folds and similarity, on its grid."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from paramorph.checkpoint import WeightsInfo
from paramorph.losses import LossConfig, similarity
from paramorph.pictures import save_picture
from paramorph.warp import warp
from paramorph_rt.geometry.field import field_from_network
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.metrics.deformation import nonpositive_jacobian_percent
from paramorph_rt.metrics.overlap import dice, mean_over, present_labels
from paramorph_rt.metrics.surface import surface_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Integer
    from torch import Tensor

    from paramorph.data import Subject
    from paramorph.networks import RegistrationNetwork


@dataclass(frozen=True)
class Validation:
    """One pair, or the means over pairs; None where there are no labels in common."""

    dice: float | None  # over all labels present in both maps
    dice_before: float | None  # the same with a zero field: what affine alignment gives
    assd_mm: float | None  # average symmetric surface distance over the same labels
    assd_before_mm: float | None
    nonpositive_jacobian_percent: float
    similarity: float  # the training's similarity loss

    @classmethod
    def mean(cls, pairs: Sequence[Validation]) -> Validation:
        means = {}
        for name in (f.name for f in fields(cls)):
            values = [getattr(p, name) for p in pairs if getattr(p, name) is not None]
            means[name] = float(np.mean(values)) if values else None
        return cls(**means)


@torch.inference_mode()
def validate_pair(  # a network, a pair, and how it is measured
    network: RegistrationNetwork,
    info: WeightsInfo,
    loss: LossConfig,
    moving: Subject,
    fixed: Subject,
    autocast: AbstractContextManager[None],
    picture: Path | None = None,
) -> Validation:
    """Register `moving` to `fixed` on the network grid and measure.

    Args:
        network: Set to evaluation for this, and to training afterwards.
        info: The grid, its spacing, the sampling.
        loss: Names the similarity.
        moving: On the network grid, like `fixed`.
        fixed: On the network grid.
        autocast: Precision of the network.
        picture: A PNG to draw; None draws none.
    """
    device = next(network.parameters()).device
    source, target = (torch.from_numpy(s.image)[None, None].to(device) for s in (moving, fixed))
    network.eval()
    with autocast:
        displacement = network(source, target).float()
    network.train()
    sampling = info.network.sampling
    warped = warp(source, displacement, sampling)
    grid = Grid(info.shape, np.diag([*info.spacing_mm, 1.0]))
    field = field_from_network(displacement[0].cpu().numpy(), grid, sampling)
    if picture is not None:
        arrays = (volume[0, 0].cpu().numpy() for volume in (source, target, warped))
        save_picture(picture, *arrays, displacement[0].cpu().numpy())
    return Validation(
        **_label_metrics(moving, fixed, displacement, info),
        nonpositive_jacobian_percent=nonpositive_jacobian_percent(field),
        similarity=similarity(loss, warped, target).item(),
    )


def _label_metrics(
    moving: Subject, fixed: Subject, displacement: Tensor, info: WeightsInfo
) -> dict[str, float | None]:
    """Overlap and surface distance (mm) of the labels in common, before and after the warp."""
    if moving.labels is None or fixed.labels is None:
        return dict.fromkeys(("dice", "dice_before", "assd_mm", "assd_before_mm"))
    common = present_labels(moving.labels) & present_labels(fixed.labels)
    labels = torch.from_numpy(moving.labels.astype(np.float32))[None, None].to(displacement.device)
    warped = warp(labels, displacement, info.network.sampling, "nearest")
    spacing = np.array(info.spacing_mm)

    def measure(maps: Integer[np.ndarray, "d h w"]) -> tuple[float | None, float | None]:
        surfaces = surface_distances(fixed.labels, maps, spacing, common)
        distances = {label: each and each.assd_mm for label, each in surfaces.items()}
        return mean_over(dice(fixed.labels, maps), common), mean_over(distances, common)

    dice_before, assd_before_mm = measure(moving.labels)
    dice_after, assd_mm = measure(warped[0, 0].cpu().numpy().astype(moving.labels.dtype))
    return {
        "dice": dice_after,
        "dice_before": dice_before,
        "assd_mm": assd_mm,
        "assd_before_mm": assd_before_mm,
    }
