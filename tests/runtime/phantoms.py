"""Small volumes with known truth, and bundles whose network has a known answer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume

NETWORK_SHAPE = (20, 24, 16)
NETWORK_SPACING_MM = (2.0, 2.5, 3.0)


def affine_of(orientation: str, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    """A voxel → world affine; "oblique" is RAS turned by 20 degrees about two axes."""
    if orientation == "oblique":
        c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
        about_k = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        about_i = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        directions = about_k @ about_i
    else:
        directions = np.zeros((3, 3))
        for axis, letter in enumerate(orientation):
            row = next(r for r, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
            directions[row, axis] = 1 if letter in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = origin
    return affine


def centred_grid(orientation: str, shape, spacing=(1.0, 1.0, 1.0), centre=(0.0, 0.0, 0.0)) -> Grid:
    """A grid whose middle lies at `centre` in the world."""
    affine = affine_of(orientation, spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(tuple(shape), affine)


def world_points(grid: Grid) -> np.ndarray:
    """World position of every voxel, (i, j, k, 3), by nibabel's arithmetic."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(grid.affine, index)


def head(points: np.ndarray) -> np.ndarray:
    """A smooth, lopsided object of about 40 × 48 × 36 mm around the world's origin."""
    x, y, z = np.moveaxis(points, -1, 0)
    inside = 1 / (1 + np.exp(8 * (np.sqrt((x / 18) ** 2 + (y / 22) ** 2 + (z / 16) ** 2) - 1)))
    texture = 1 + 0.4 * np.sin(x / 4 + 0.5) * np.cos(y / 5) + 0.3 * np.sin(z / 3 + y / 9)
    return (100 * inside * texture).astype(np.float32)


def head_labels(points: np.ndarray) -> np.ndarray:
    """Three labels within `head`: two halves and a core."""
    x, y, z = np.moveaxis(points, -1, 0)
    radius = np.sqrt((x / 18) ** 2 + (y / 22) ** 2 + (z / 16) ** 2)
    labels = np.where(radius < 1, np.where(x > 2, 1, 2), 0)
    return np.where(radius < 0.5, 7, labels).astype(np.int16)


def volume_of(function, grid: Grid, name: str = "volume", through=lambda points: points) -> Volume:
    """Sample a function of the world on a grid."""
    return Volume(function(through(world_points(grid))), grid, name)


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write any array, valid for us or not, as NIfTI."""
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def write_bundle(
    folder: Path,
    displacement_vox: np.ndarray,
    spacing_mm=NETWORK_SPACING_MM,
    orientation: str = "RAS",
    upper_percentile: float = 100.0,
) -> Path:
    """A bundle whose network answers every pair with one known displacement (3, i, j, k)."""
    folder.mkdir(parents=True)
    shape = displacement_vox.shape[1:]
    image = [1, 1, *shape]
    constant = numpy_helper.from_array(displacement_vox[np.newaxis].astype(np.float32), "constant")
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["fixed", "zero"], ["nothing"]),
            helper.make_node("Add", ["constant", "nothing"], ["displacement"]),
            helper.make_node("Add", ["moving", "nothing"], ["warped"]),
        ],
        "known_displacement",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, image) for n in ("moving", "fixed")],
        [
            helper.make_tensor_value_info("displacement", TensorProto.FLOAT, [1, 3, *shape]),
            helper.make_tensor_value_info("warped", TensorProto.FLOAT, image),
        ],
        [constant, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "registration.onnx")
    manifest = {
        "format": "paramorph-bundle",
        "format_version": 2,
        "name": "known-displacement",
        "network": {},
        "grid": {
            "shape": list(shape),
            "spacing_mm": list(spacing_mm),
            "orientation": orientation,
        },
        "intensity": {
            "range": [0.0, 1.0],
            "lower_percentile": 0.0,
            "upper_percentile": upper_percentile,
        },
        "inputs": ["moving", "fixed"],
        "outputs": ["displacement", "warped"],
        "axis_order": "DHW = array axes i,j,k of grid",
        "displacement": {
            "unit": "voxel",
            "channel_order": "axis",
            "direction": "fixed-to-moving",
        },
        "sampling": {"convention": "exact", "align_corners": True, "padding": "border"},
        "opset": 20,
        "networks": [{"file": "registration.onnx", "precision": "fp32", "shape": list(shape)}],
        "engines": [],
        "files": {},
    }
    write_manifest(folder, manifest)
    replace_file(folder, "registration.onnx", (folder / "registration.onnx").read_bytes())
    return folder


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """A file of a bundle, and what its manifest says of it."""
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["files"][name] = entry
    write_manifest(folder, manifest)


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def write_manifest(folder: Path, manifest: dict) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def smooth_displacement_vox(shape=NETWORK_SHAPE) -> np.ndarray:
    """A displacement that differs on each axis, smooth and free of folds (3, i, j, k)."""
    i, j, k = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return np.stack(
        [
            1.5 * np.sin(j / 7) * np.cos(k / 6),
            0.8 + np.cos(i / 6),
            -0.6 + 0.9 * np.sin(i / 8 + j / 9),
        ]
    ).astype(np.float32)
