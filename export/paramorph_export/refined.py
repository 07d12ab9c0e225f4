"""Features and refinement as one network: two volumes → the refined displacement, for GPUs.

It has a registration network's inputs and outputs, so all that runs one runs it: TensorRT, the C
library's `paramorph_register`, Triton. Nothing leaves the device between the first convolution and
the last step. Its volumes lie on the grid of the finest level.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch

from paramorph.checkpoint import load_feature_weights
from paramorph_export.assembly import Assembly
from paramorph_export.errors import ExportError
from paramorph_export.features import WEIGHTS, FeatureGraph
from paramorph_export.precision import with_precision
from paramorph_export.refinement import level_graph
from paramorph_export.storage import stored_small
from paramorph_export.trace import traced
from paramorph_export.verify import GraphSession, differences, random_pair, verify_half
from paramorph_rt.bundle import GridSpec, NetworkEntry
from paramorph_rt.bundle.manifest import network_entry
from paramorph_rt.bundle.names import FEATURES, INPUTS, OUTPUTS
from paramorph_rt.refinement.settings import levels_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float

    from paramorph.feature_network import FeatureNetwork
    from paramorph_export.pairs import Pair
    from paramorph_rt.geometry.spaces import Grid
    from paramorph_rt.refinement.settings import Level

    Volume = Float[np.ndarray, "i j k"]

log = logging.getLogger(__name__)

#: Of the usual levels, those that a network has: finer ones would take far more memory.
FINEST_MM = 1.0
#: Mean and 99.9th percentile of the difference to the runtime's own refinement, in voxels.
TOLERANCES_VOX = 2e-3, 2e-2


@dataclass(frozen=True)
class Refinement:
    """What is refined by, beside a feature network.

    Attributes:
        grid: Of the feature network.
        channels: Of its features.
        smoothing: That these ask for, factor on `Level.feature_sigma`.
        levels: Coarse to fine.
    """

    grid: GridSpec
    channels: int
    smoothing: float
    levels: tuple[Level, ...]

    @property
    def view(self) -> Grid:
        """The feature network's grid, wherever it lies."""
        # Imported here: it needs what reads images, and nothing else of an export does.
        from paramorph_rt.geometry.spaces import Grid

        spacing = self.grid.spacing_mm
        return Grid.from_spacing(self.grid.shape, spacing, np.eye(3), origin=np.zeros(3))

    def plan(self) -> list[tuple[Level, Grid, bool]]:
        """Each level as it is done, its grid, and whether it compares features."""
        from paramorph_rt.refinement.plan import compares_features, levels_on_grids

        plan = []
        for level, grid in levels_on_grids(self.view, None, self.levels):
            compares = compares_features(level, self.view)
            if compares:
                level = replace(level, field_sigma=self.smoothing * level.feature_sigma)
            plan.append((level, grid, compares))
        return plan

    def finest(self) -> GridSpec:
        """The grid of the volumes."""
        grid = self.plan()[-1][1]
        spacing = tuple(round(float(mm), 6) for mm in grid.spacing)
        return replace(self.grid, shape=grid.shape, spacing_mm=spacing)

    def as_manifest(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "smoothing": self.smoothing,
            "levels": [asdict(level) for level in self.levels],
        }


def refinement_by(weights: Path, iterations: int) -> Refinement:
    """The usual levels with so many iterations at 1.5 mm, by the features of these weights.

    Raises:
        ExportError: No iteration.
    """
    if iterations < 1:
        raise ExportError(
            f"--refined: expected at least 1 iteration, got {iterations}; leave it out for a model "
            "that the runtime refines."
        )
    _, info = load_feature_weights(weights)
    grid = GridSpec(info.shape, info.spacing_mm, info.orientation)
    config = info.network
    levels = [level for level in levels_of(iterations) if level.spacing_mm >= FINEST_MM]
    return Refinement(grid, config.channels, config.smoothing, tuple(levels))


def write_refined(
    folder: Path,
    weights: Path,
    refinement: Refinement,
    halves: Sequence[str] = (),
    pairs: Sequence[Pair] = (),
) -> list[dict[str, Any]]:
    """Write the network in float32 and with features in halves; the manifest's entries of both.

    Args:
        folder: Of the bundle that is being written.
        weights: Of the feature network.
        refinement: By its features.
        halves: Precisions of further graphs, for GPUs; all but the features stays float32.
        pairs: Real pairs on the grid `refinement.finest()`, on which the halves are measured.

    Raises:
        ExportError: A graph computes something else than the runtime's own refinement.
    """
    network, _ = load_feature_weights(weights)
    shape = refinement.finest().shape
    shutil.copyfile(weights, folder / WEIGHTS)
    examples = torch.rand(1, 1, *refinement.grid.shape), torch.rand(1, 1, *refinement.grid.shape)
    features = traced(FeatureGraph(network), examples, (FEATURES,))
    reference = folder / "registration.onnx"
    log.info("%s: putting features and refinement together …", reference.name)
    model = stored_small(refined_graph(features, refinement), folder / WEIGHTS)
    onnx.save(model, reference)
    log.info("%s: comparing with PyTorch and the runtime's refinement …", reference.name)
    entry = NetworkEntry(reference.name, "fp32", shape, weights=WEIGHTS)
    measured = verify_refined(reference, network, refinement)
    entries = [network_entry(entry, nodes=len(model.graph.node), verification=measured)]
    for precision in halves:
        path = folder / f"registration.{precision}.onnx"
        log.info("%s: features in %s …", path.name, precision)
        model = refined_graph(with_precision(features, precision), refinement)
        onnx.save(model, path)
        measured = verify_half(path, reference, shape, precision, pairs)
        entry = NetworkEntry(path.name, precision, shape, "gpu")
        entries.append(network_entry(entry, nodes=len(model.graph.node), verification=measured))
    return entries


def refined_graph(features: onnx.ModelProto, refinement: Refinement) -> onnx.ModelProto:
    """Compute features, then refine by them from no displacement, level by level.

    Args:
        features: Graph of `FeatureGraph` at the refinement's grid, in any precision.
        refinement: What is done.

    Returns:
        Inputs `moving`, `fixed` (1, 1, d, h, w) in [0, 1] on the grid `refinement.finest()`;
        outputs `displacement` (1, 3, d, h, w) in voxels and `warped` (1, 1, d, h, w).
    """
    view, plan, channels = refinement.view, refinement.plan(), refinement.channels
    graph = Assembly(plan[-1][1].shape)
    pyramid = [graph.volumes]
    for _, grid, _ in reversed(plan[:-1]):
        pyramid.insert(0, [graph.rescaled(volume, 1, grid) for volume in pyramid[0]])
    seen = [graph.rescaled(volume, 1, view) for volume in graph.volumes]
    (both,) = graph.add(features, FEATURES, dict(zip(INPUTS, seen, strict=True)))
    compared = graph.halves(both, channels, view)
    displacement, last = graph.zeros(plan[0][1]), plan[0][1]
    for number, ((level, grid, compares), images) in enumerate(zip(plan, pyramid, strict=True)):
        inputs = dict(zip(INPUTS, images, strict=True))
        inputs["displacement"] = graph.in_voxels_of(displacement, last, grid)
        if compares:
            on_grid = (graph.rescaled(image, channels, grid) for image in compared)
            inputs |= zip((f"{name}_features" for name in INPUTS), on_grid, strict=True)
        spacing_mm = tuple(map(float, grid.spacing))
        steps = level_graph(
            level, spacing_mm, grid.shape, channels if compares else None, counts=False
        )
        (displacement,) = graph.add(steps, f"level{number}", inputs)
        last = grid
    return graph.model(displacement)


def verify_refined(path: Path, network: FeatureNetwork, refinement: Refinement) -> dict[str, Any]:
    """Run the file in ONNX Runtime, and PyTorch and the runtime's refinement, on a random pair.

    Raises:
        ExportError: Differences beyond `TOLERANCES_VOX`.
    """
    moving, fixed = random_pair(refinement.finest().shape, seed=0)
    expected = refined(network, refinement, moving, fixed)
    (displacement,) = GraphSession(path).run(moving, fixed, OUTPUTS[:1])
    result = differences(expected, displacement[0])
    mean, p999 = TOLERANCES_VOX
    if not (result["mean_difference_vox"] <= mean and result["p999_difference_vox"] <= p999):
        raise ExportError(
            f"{path.name}: expected a displacement within {mean} voxel of the runtime's refinement "
            f"on average and {p999} at the 99.9th percentile, got "
            f"{result['mean_difference_vox']:.2g} and {result['p999_difference_vox']:.2g}; report "
            "this with your versions of torch, onnx and onnxruntime."
        )
    return {
        "reference": f"features by PyTorch {torch.__version__}, refinement by paramorph-rt",
        "runtime": f"ONNX Runtime {onnxruntime.__version__}, CPU",
        "max_displacement_vox": float(np.abs(expected).max()),
        **result,
    }


def refined(
    network: FeatureNetwork, refinement: Refinement, moving: Volume, fixed: Volume
) -> Float[np.ndarray, "3 i j k"]:
    """What the graph is to compute, by PyTorch and the runtime's own passes."""
    from paramorph_rt.refinement import compiled, graph, slabs
    from paramorph_rt.refinement.coarse_to_fine import in_voxels_of
    from paramorph_rt.refinement.images import Features, LevelImages
    from paramorph_rt.refinement.rescaling import rescaled

    iterate = compiled.iterate if slabs.is_available() else graph.iterate
    view, plan = refinement.view, refinement.plan()
    pyramid = [LevelImages(moving, fixed, plan[-1][1])]
    for _, grid, _ in reversed(plan[:-1]):
        pyramid.insert(0, pyramid[0].on(grid))
    seen = (rescaled(volume, plan[-1][1], view) for volume in (moving, fixed))
    with torch.inference_mode():
        both = FeatureGraph(network)(*(torch.from_numpy(v)[None, None] for v in seen)).numpy()
    displacement, last = np.zeros((3, *plan[0][1].shape), np.float32), plan[0][1]
    for (level, grid, compares), images in zip(plan, pyramid, strict=True):
        if compares:
            images = replace(images, features=Features(*both).on(view, grid))
        displacement = iterate(images, level, in_voxels_of(displacement, last, grid))
        last = grid
    return displacement
