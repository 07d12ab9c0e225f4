"""What training minimises: similarity of warped and fixed, smoothness of the displacement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def local_ncc(
    warped: Float[Tensor, "b 1 d h w"], fixed: Float[Tensor, "b 1 d h w"], window: int = 9
) -> Float[Tensor, ""]:
    """1 - mean squared local correlation, in cubes of `window` voxels; 0 is a perfect match.

    Local means come from one pass of a moving sum per axis over all five products at once, which
    costs the same for every window. Flat regions count as uncorrelated.

    Source:
        Avants et al., Symmetric diffeomorphic image registration with cross-correlation (2008).
    """
    w, f = warped.float(), fixed.float()
    products = torch.cat([w, f, w * w, f * f, w * f], dim=1)
    mean_w, mean_f, mean_ww, mean_ff, mean_wf = _box_mean(products, window).split(1, dim=1)
    covariance = mean_wf - mean_w * mean_f
    variance_w = (mean_ww - mean_w * mean_w).clamp_min(0)
    variance_f = (mean_ff - mean_f * mean_f).clamp_min(0)
    # 1e-8 is a standard deviation of 0.01 in both: weaker contrast is noise in a [0, 1] image.
    return 1 - (covariance * covariance / (variance_w * variance_f + 1e-8)).mean()


def mean_squared_error(
    warped: Float[Tensor, "b 1 d h w"], fixed: Float[Tensor, "b 1 d h w"]
) -> Float[Tensor, ""]:
    """Mean squared difference of intensities, for images of one scanner and contrast."""
    return F.mse_loss(warped.float(), fixed.float())


def gradient_smoothness(displacement: Float[Tensor, "b 3 d h w"]) -> Float[Tensor, ""]:
    """Mean squared forward difference of the displacement, voxel per voxel, over the axes."""
    u = displacement.float()
    return sum(u.diff(dim=axis).square().mean() for axis in (2, 3, 4)) / 3


SIMILARITIES = {"ncc": local_ncc, "mse": mean_squared_error}


def _box_mean(x: Float[Tensor, "b c d h w"], window: int) -> Float[Tensor, "b c d h w"]:
    for axis in range(3):
        kernel = [window if axis == other else 1 for other in range(3)]
        padding = [window // 2 if axis == other else 0 for other in range(3)]
        x = F.avg_pool3d(x, kernel, stride=1, padding=padding)
    return x
