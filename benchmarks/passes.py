"""What weights gain from more passes of the network and from other grids, as they are.

Each labelled subject of a folder is registered to the next by PyTorch, on the network grid; Dice
and folds are measured after every pass on the fixed image's own grid.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from evaluation import LabelledPair, load_pair, mean_dice
from pairs import add_pair_options, labelled_pairs
from paramorph import ParaMorph
from paramorph.checkpoint import WeightsInfo, load_weights
from paramorph.config import check_shape
from paramorph.warp import compose, warp
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import exit_code
from paramorph_rt.geometry.field import DisplacementField, field_from_network
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.metrics.deformation import nonpositive_jacobian_percent
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.preparation import prepare_pair
from paramorph_rt.system.files import sha256_of
from record import write_result


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("weights", type=Path)
    add_pair_options(p)
    p.add_argument("--passes", type=int, default=3)
    p.add_argument("--shape", type=int, nargs=3, help="other grid than the weights', voxels")
    p.add_argument("--spacing", type=float, nargs=3, help="of that grid, mm")
    p.add_argument(
        "--first-shape", type=int, nargs=3, help="the first pass on the same space in fewer voxels"
    )
    p.add_argument("--name", default="passes", help="of the result file")
    return p


def fields_after_passes(
    network: ParaMorph,
    info: WeightsInfo,
    pair: LabelledPair,
    spec: InputSpec,
    shapes: list[tuple[int, int, int]],
) -> list[DisplacementField]:
    """The complete field after each pass; pass k runs in `shapes[k]` voxels."""
    affine = align_affine(pair.moving, pair.fixed).affine
    prepared = prepare_pair(pair.moving, pair.fixed, affine, spec)
    moving, fixed = (torch.from_numpy(a)[None, None] for a in (prepared.moving, prepared.fixed))
    scale = torch.tensor(
        [a / b for a, b in zip(info.spacing_mm, spec.grid.spacing_mm, strict=True)]
    )
    displacement = torch.zeros(1, 3, *spec.grid.shape)
    fields = []
    for shape in shapes:
        with torch.inference_mode():
            further = _displacement(network, warp(moving, displacement), fixed, shape)
            displacement = compose(displacement, further * scale[:, None, None, None])
        field = field_from_network(displacement[0].numpy(), prepared.grid, "exact")
        fields.append(field.resampled_to(pair.fixed.grid).composed_with_affine(affine))
    return fields


def _displacement(
    network: ParaMorph, moving: torch.Tensor, fixed: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """In voxels of the two volumes, found on a grid of `shape` over the same space."""
    whole = tuple(moving.shape[2:])
    volumes = [
        v if shape == whole else F.interpolate(v, shape, mode="area") for v in (moving, fixed)
    ]
    found = network(*volumes)
    if shape == whole:
        return found
    factors = torch.tensor([a / b for a, b in zip(whole, shape, strict=True)])
    return F.interpolate(found, whole, mode="trilinear") * factors[:, None, None, None]


def run(args: argparse.Namespace) -> None:
    network, info = load_weights(args.weights)
    network.config = info.network.with_options(passes=1)
    shape = check_shape(tuple(args.shape or info.shape))
    spacing = tuple(args.spacing or info.spacing_mm)
    spec = InputSpec(
        GridSpec(shape, spacing, info.orientation),
        IntensitySpec(info.lower_percentile, info.upper_percentile),
    )
    first = check_shape(tuple(args.first_shape or shape))
    shapes = [first] + [shape] * (args.passes - 1)
    rows = []
    for moving, fixed in labelled_pairs(args.folder, args.pairs):
        pair = load_pair(moving, fixed)
        fields = fields_after_passes(network, info, pair, spec, shapes)
        rows.append(
            {
                "pair": f"{moving.name} → {fixed.name}",
                "dice": [
                    mean_dice(warp_volume(pair.moving_labels, f, "nearest"), pair) for f in fields
                ],
                "nonpositive_jacobian_percent": [nonpositive_jacobian_percent(f) for f in fields],
            }
        )
        print(rows[-1], flush=True)
    means = {
        key: [statistics.mean(values) for values in zip(*(row[key] for row in rows), strict=True)]
        for key in ("dice", "nonpositive_jacobian_percent")
    }
    content = {
        "weights": args.weights.name,
        "weights_sha256": sha256_of(args.weights),
        "trained_passes": info.network.passes,
        "shape": shape,
        "spacing_mm": spacing,
        "first_shape": first,
        "mean_after_each_pass": means,
        "pairs": rows,
    }
    print(means)
    print(write_result(args.name, content))


def main() -> int:
    args = parser().parse_args()
    return exit_code("passes", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
