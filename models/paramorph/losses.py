"""What training minimises: dissimilarity of warped and fixed, roughness of the displacement."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from paramorph.options import OptionError, check_range, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
    from torch import Tensor

    Loss = Float[Tensor, ""]
    Volumes = Float[Tensor, "b 1 d h w"]
    Displacement = Float[Tensor, "b 3 d h w"]


def local_ncc(warped: Volumes, fixed: Volumes, window: int = 9) -> Loss:
    """1 - mean squared local correlation, in cubes of `window` (odd) voxels; 0 is a perfect match.

    Flat regions count as uncorrelated.

    Source:
        Avants et al., Symmetric diffeomorphic image registration with cross-correlation (2008).
    """
    w, f = warped.float(), fixed.float()
    mean_w, mean_f, mean_ww, mean_ff, mean_wf = (
        _box_mean(x, window) for x in (w, f, w * w, f * f, w * f)
    )
    covariance = mean_wf - mean_w * mean_f
    variance_w = (mean_ww - mean_w * mean_w).clamp_min(0)
    variance_f = (mean_ff - mean_f * mean_f).clamp_min(0)
    # 1e-8 is a standard deviation of 0.01 in both: weaker contrast is noise in a [0, 1] image.
    return 1 - (covariance * covariance / (variance_w * variance_f + 1e-8)).mean()


def mean_squared_error(warped: Volumes, fixed: Volumes) -> Loss:
    """Mean squared difference of intensities, for images of one scanner and contrast."""
    return F.mse_loss(warped.float(), fixed.float())


def mind(warped: Volumes, fixed: Volumes) -> Loss:
    """Mean squared difference of the MIND descriptors, in [0, 1], for two different contrasts."""
    return F.mse_loss(mind_descriptor(warped), mind_descriptor(fixed))


def mind_descriptor(
    image: Volumes, radius: int = 2, dilation: int = 2
) -> Float[Tensor, "b 12 d h w"]:
    """Self-similarity context: how alike the neighbourhoods around each voxel are, in (0, 1].

    For each of the 12 pairs among the six neighbours at `dilation` voxels that are not opposite
    each other, the mean squared difference D of the patches of `radius` voxels around the two:
    ``exp(-(D - least D of the 12) / mean D of the 12)``. That mean, the local noise, counts as at
    least a thousandth of its average over the volume. Beyond the border lies the border.

    Source:
        Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using
        self-similarities (2013).
    """
    size = image.shape[2:]
    padded = F.pad(image.float(), [dilation] * 6, mode="replicate")
    neighbours = []
    for axis in range(3):
        for offset in (0, 2 * dilation):
            starts = [offset if axis == other else dilation for other in range(3)]
            inside = (slice(start, start + n) for start, n in zip(starts, size, strict=True))
            neighbours.append(padded[:, :, *inside])
    distances = torch.cat(
        [
            _box_mean((neighbours[i] - neighbours[j]).square(), 2 * radius + 1)
            for i, j in combinations(range(6), 2)
            if i // 2 != j // 2  # not opposite: not on one axis
        ],
        dim=1,
    )
    noise = distances.mean(dim=1, keepdim=True)
    least_noise = 1e-3 * noise.detach().mean(dim=(2, 3, 4), keepdim=True) + 1e-12  # of a flat image
    excess = distances - distances.amin(dim=1, keepdim=True)
    return torch.exp(excess * (-1 / torch.maximum(noise, least_noise)))


def mutual_information(warped: Volumes, fixed: Volumes, bins: int = 32) -> Loss:
    """2 - normalised mutual information, in [0, 1], for two different contrasts.

    The normalised mutual information (H(warped) + H(fixed)) / H(warped, fixed) is 1 for
    independent intensities and 2 where each determines the other. Intensities are those of
    [0, 1]; between the centres of two bins a voxel counts for both (linear Parzen windows), so
    only images that lie on bin centres reach 0.

    Source:
        Studholme et al., An overlap invariant entropy measure of 3D medical image alignment
        (1999).
    """
    losses = []
    for w, f in zip(warped, fixed, strict=True):
        joint = _joint_histogram(w.flatten(), f.flatten(), bins)
        separate = _entropy(joint.sum(dim=0)) + _entropy(joint.sum(dim=1))
        # Two flat images count as independent.
        losses.append(2 - (separate + 1e-6) / (_entropy(joint) + 1e-6))
    return torch.stack(losses).mean().float()


#: Each takes (warped, fixed), batches of volumes in [0, 1], and is smaller for a better match.
SIMILARITIES = {
    "ncc": local_ncc,
    "mse": mean_squared_error,
    "mind": mind,
    "nmi": mutual_information,
}


def gradient_smoothness(displacement: Displacement) -> Loss:
    """Mean squared forward difference of the displacement, voxel per voxel, over the axes."""
    u = displacement.float()
    return sum(u.diff(dim=axis).square().mean() for axis in (2, 3, 4)) / 3


def bending_energy(displacement: Displacement) -> Loss:
    """Sum over pairs of axes of the mean squared second difference; 0 for any affine.

    Source:
        Rueckert et al., Nonrigid registration using free-form deformations (1999).
    """
    u = displacement.float()
    return sum(
        (1 if a == b else 2) * u.diff(dim=a).diff(dim=b).square().mean()
        for a, b in combinations_with_replacement((2, 3, 4), 2)
    )


def folding_penalty(displacement: Displacement, margin: float = 0.1) -> Loss:
    """Mean shortfall of the Jacobian determinants below `margin`; 0 where nothing folds.

    Determinants of forward and of backward differences, because central ones miss folds of single
    voxels. The margin keeps a distance from folding that volumes not trained on can use up.
    """
    u = displacement.float()
    identity = torch.eye(3, device=u.device).reshape(3, 1, 3, 1, 1, 1)
    shortfalls = []
    for ends in (slice(None, -1), slice(1, None)):  # where forward, where backward ones exist
        columns = []
        for axis in range(3):
            others = (slice(None) if axis == other else ends for other in range(3))
            slope = u.diff(dim=2 + axis)[:, :, *others] + identity[axis]
            columns.append(slope.unbind(dim=1))
        shortfalls.append(F.relu(margin - _determinant(columns)).mean())
    return sum(shortfalls) / 2


def log_jacobian(displacement: Displacement) -> Loss:
    """Mean squared logarithm of the Jacobian determinants by central differences, inside the edges.

    Its root is the SDlogJ of a field whose logarithms average to 0. Determinants below 0.05 count
    as 0.05; see `folding_penalty` for those.
    """
    u = displacement.float()
    identity = torch.eye(3, device=u.device).reshape(3, 1, 3, 1, 1, 1)
    inside = slice(1, -1)
    columns = []
    for axis in range(3):
        others = u[:, :, *(slice(None) if axis == other else inside for other in range(3))]
        n = others.shape[2 + axis] - 2
        slope = others.narrow(2 + axis, 2, n) - others.narrow(2 + axis, 0, n)
        columns.append((slope / 2 + identity[axis]).unbind(dim=1))
    return _determinant(columns).clamp_min(0.05).log().square().mean()


def label_dice_loss(warped: Float[Tensor, "b l d h w"], fixed: Float[Tensor, "b l d h w"]) -> Loss:
    """1 - mean soft Dice of the labels, in [0, 1]; 0 is a perfect match, or no labels at all.

    Args:
        warped: One channel per label: the moving mask, warped with linear interpolation.
        fixed: The same labels' fixed masks, of zeros and ones.
    """
    if not warped.shape[1]:
        return warped.new_zeros(()).float()
    w, f = warped.float(), fixed.float()
    shared, both = (x.sum(dim=(2, 3, 4)) for x in (w * f, w + f))
    return 1 - ((2 * shared + 1e-5) / (both + 1e-5)).mean()


def common_label_masks(
    moving: Int[Tensor, "b 1 d h w"],
    fixed: Int[Tensor, "b 1 d h w"],
    count: int,
    rng: torch.Generator,
) -> tuple[Float[Tensor, "b l d h w"], Float[Tensor, "b l d h w"]]:
    """Masks of up to `count` labels that both maps contain, drawn by `rng` (on the CPU).

    Channel k of both belongs to the same label; 0 is background and never drawn.
    """
    present = moving.unique()
    common = present[torch.isin(present, fixed.unique()) & (present != 0)]
    order = torch.randperm(len(common), generator=rng)[:count]
    drawn = common[order.to(common.device)].reshape(1, -1, 1, 1, 1)
    return (moving == drawn).float(), (fixed == drawn).float()


@dataclass(frozen=True)
class LossConfig:
    """Which terms a training minimises, and their weights; the similarity's is 1.

    Raises:
        OptionError: A negative weight, an even window, no labels to draw.
    """

    similarity: str = option(
        "ncc",
        "local correlation, squared difference, or for different contrasts self-similarity "
        "context (mind), normalised mutual information (nmi)",
        choices=SIMILARITIES,
    )
    ncc_window: int = option(9, "edge of the cubes of local correlation, voxels, odd")
    smoothness: float = option(
        1.0, "weight of the displacement's squared gradient; the reference: 1 with ncc, 0.02 mse"
    )
    bending: float = option(0.0, "weight of the displacement's bending energy")
    folding: float = option(0.0, "weight of the penalty on Jacobian determinants below 0.1")
    labels: float = option(0.0, "weight of 1 - Dice of labels, where both volumes have any")
    label_count: int = option(8, "labels drawn for each step")
    log_jacobian: float = option(
        0.0, "weight of the squared logarithm of the Jacobian determinants, whose root is SDlogJ"
    )
    codes: float = option(
        0.0, "pyramids: weight of the squared difference of all labels' codes, warped and fixed"
    )
    anatomy: float = option(
        0.0, "pyramids: weight of the squared error of the codes that the features tell"
    )

    @property
    def uses_labels(self) -> bool:
        """Whether every subject needs some."""
        return max(self.labels, self.codes, self.anatomy) > 0

    def __post_init__(self) -> None:
        weights = ("smoothness", "bending", "folding", "labels", "log_jacobian", "codes", "anatomy")
        check_range(self, weights)
        check_range(self, ("label_count",), least=1)
        if self.ncc_window < 3 or self.ncc_window % 2 == 0:
            raise OptionError(f"ncc_window: expected an odd number ≥ 3, got {self.ncc_window}.")


def similarity(config: LossConfig, warped: Volumes, fixed: Volumes) -> Loss:
    """The similarity that `config` names, with its window."""
    term = SIMILARITIES[config.similarity]
    return term(warped, fixed, **({"window": config.ncc_window} if term is local_ncc else {}))


def loss_terms(
    config: LossConfig, warped: Volumes, fixed: Volumes, displacement: Displacement
) -> dict[str, Loss]:
    """The terms of `config` by name, not weighted: the similarity, and those of weight above 0.

    Those of labels are not among them: add `label_dice_loss` under the name `labels`.
    """
    terms = {"similarity": similarity(config, warped, fixed)}
    regularity = {
        "smoothness": gradient_smoothness,
        "bending": bending_energy,
        "folding": folding_penalty,
        "log_jacobian": log_jacobian,
    }
    for name, term in regularity.items():
        if getattr(config, name) > 0:
            terms[name] = term(displacement)
    return terms


def total(config: LossConfig, terms: Mapping[str, Loss]) -> Loss:
    """The weighted sum of named terms."""
    return sum(
        term if name == "similarity" else getattr(config, name) * term
        for name, term in terms.items()
    )


def _determinant(columns: list[tuple[Tensor, ...]]) -> Tensor:
    """Of matrices whose entries are volumes."""
    (a, b, c), (d, e, f), (g, h, i) = columns
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _box_mean(x: Float[Tensor, "b c d h w"], window: int) -> Float[Tensor, "b c d h w"]:
    """Means over cubes of `window` (odd) voxels; beyond the border lie zeros."""
    return _BoxSum.apply(x, window) / window**3


class _BoxSum(torch.autograd.Function):
    """A sum over a symmetric window is its own transpose, so its gradient is the same sum."""

    @staticmethod
    def forward(ctx, x, window):
        ctx.window = window
        x = F.pad(x, [window // 2] * 6)
        for axis in (2, 3, 4):
            x = _moving_sum(x, window, axis)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _BoxSum.apply(grad, ctx.window), None


def _moving_sum(x: Tensor, window: int, axis: int) -> Tensor:
    """Sums of `window` neighbours, in about log2(window) additions of whole arrays."""
    if window == 1:
        return x
    half, length = window // 2, x.shape[axis] - window + 1
    sums = _moving_sum(x, half, axis)
    both = sums.narrow(axis, 0, length) + sums.narrow(axis, half, length)
    return both + x.narrow(axis, window - 1, length) if window % 2 else both


def _joint_histogram(
    first: Float[Tensor, " n"], second: Float[Tensor, " n"], bins: int
) -> Float[Tensor, "bins bins"]:
    """Shares of the voxels; float64, since many small values are added."""
    (low_a, above_a), (low_b, above_b) = (_between_bins(x, bins) for x in (first, second))
    histogram = above_a.new_zeros(bins * bins)
    for step_a, share_a in ((0, 1 - above_a), (1, above_a)):
        for step_b, share_b in ((0, 1 - above_b), (1, above_b)):
            index = (low_a + step_a) * bins + low_b + step_b
            histogram = histogram.index_add(0, index, share_a * share_b)
    return histogram.reshape(bins, bins) / len(first)


def _between_bins(
    x: Float[Tensor, " n"], bins: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The bin centre below each intensity of [0, 1], and how far towards the next it lies."""
    position = x.double().clamp(0, 1) * (bins - 1)
    low = position.detach().long().clamp_max(bins - 2)
    return low, position - low


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp_min(1e-12).log()).sum()
