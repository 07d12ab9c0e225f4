"""The iteration as a graph in ONNX Runtime, for installations without compiled passes."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError
from ..system.optional import import_optional
from .forces import gaussian_taps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Shaped

    from .images import LevelImages
    from .settings import Level

    Field = Float[np.ndarray, "3 d h w"]

#: Written by `export/paramorph_export/refinement.py`; without and with features.
FILES = {False: "refine.onnx", True: "refine-features.onnx"}


def iterate(
    images: LevelImages, level: Level, displacement_vox: Field, threads: int | None = None
) -> Field:
    """As `compiled.iterate`, which is much faster.

    Raises:
        BackendError: ONNX Runtime failed.
    """
    features = images.features if level.features else None
    feeds = inputs_of(images, level, displacement_vox)
    try:
        (refined,) = _session(features is not None, threads).run(["refined"], feeds)
    except Exception as err:  # ONNX Runtime derives its errors from Exception directly
        raise BackendError(f"refinement: expected ONNX Runtime to run it, got {err}.") from err
    return refined[0]


def inputs_of(images: LevelImages, level: Level, displacement_vox: Field) -> dict[str, Any]:
    """What the graph reads, by name."""
    features = images.features if level.features else None
    counts = np.ones_like(images.fixed) if images.counts is None else images.counts
    feeds: dict[str, Any] = {
        "moving": images.moving[None, None],
        "fixed": images.fixed[None, None],
        "counts": counts[None, None],
        "displacement": np.asarray(displacement_vox, np.float32)[None],
        **numbers_of(level, images.grid.spacing, features is not None),
    }
    if features is not None:
        feeds |= {
            "moving_features": features.moving[None],
            "fixed_features": features.fixed[None],
        }
    return feeds


def numbers_of(
    level: Level, spacing_mm: Sequence[float] | Float[np.ndarray, " 3"], features: bool
) -> dict[str, Shaped[np.ndarray, ...]]:
    """What the graph reads that is no image, on a grid of this spacing."""
    relative = (np.asarray(spacing_mm) / level.spacing_mm).astype(np.float32)
    numbers: dict[str, np.ndarray] = {
        "iterations": np.array(level.iterations, np.int64),
        "step": np.array(level.step, np.float32),
        "relative": relative,
    }
    for kind, sigma in (("force", level.force_sigma), ("field", level.field_sigma)):
        for axis, size in zip("dhw", relative, strict=True):
            numbers[f"{kind}_taps_{axis}"] = gaussian_taps(sigma / float(size))
    if features:
        numbers["feature_weight"] = np.array(level.features, np.float32)
    return numbers


@cache
def _session(features: bool, threads: int | None) -> Any:
    ort = import_optional("onnxruntime", None, "refinement")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    graph = files(__package__).joinpath(FILES[features]).read_bytes()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
