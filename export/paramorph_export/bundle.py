"""Writing a bundle: the ONNX file and the manifest that the runtime reads, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from paramorph.checkpoint import sha256_of
from paramorph.warp import SAMPLING
from paramorph_export.errors import ExportError
from paramorph_export.grid_sample import STANDARD_OPSET
from paramorph_export.trace import INPUTS, OUTPUTS, onnx_from_network
from paramorph_export.verify import verify
from paramorph_rt.bundle import FORMAT, FORMAT_VERSION, MANIFEST

if TYPE_CHECKING:
    from paramorph.checkpoint import WeightsInfo
    from paramorph.network import ParaMorph

NETWORK = "registration.onnx"


def write_bundle(
    out_dir: str | Path,
    network: ParaMorph,
    info: WeightsInfo,
    weights: Path,
    shape: tuple[int, int, int],
    force: bool = False,
) -> dict[str, Any]:
    """Trace, verify and write `registration.onnx` and `manifest.json`; returns the manifest.

    Everything happens in a folder beside `out_dir` that takes its place at the end, so a failure
    leaves an existing bundle as it was.

    Args:
        out_dir: The bundle's folder.
        network: In float32.
        info: What is recorded about its weights.
        weights: The file they came from.
        shape: Volume size (D, H, W) of the graph.
        force: Replace an existing bundle.

    Raises:
        ExportError: The folder exists and `force` is not given, or it is no bundle, or the ONNX
            file does not compute what the network does.
    """
    out_dir = Path(out_dir)
    check_replaceable(out_dir, force)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        started = time.perf_counter()
        model = onnx_from_network(network, shape)
        path = staging / NETWORK
        onnx.save(model, path)
        traced = time.perf_counter() - started
        measured = verify(path, network, shape)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": info.name,
            "network": info.network.as_dict(),
            "grid": {
                "shape": list(shape),
                "spacing_mm": list(info.spacing_mm),
                "orientation": info.orientation,
            },
            "intensity": {
                "range": [0.0, 1.0],
                "lower_percentile": info.lower_percentile,
                "upper_percentile": info.upper_percentile,
            },
            "inputs": list(INPUTS),
            "outputs": list(OUTPUTS),
            "axis_order": "D, H, W of the tensors = axes i, j, k of the grid",
            "displacement": {
                "unit": "voxel",
                "channel_order": "axis",
                "direction": "fixed-to-moving",
            },
            "sampling": {"convention": info.network.sampling, **SAMPLING[info.network.sampling]},
            "opset": STANDARD_OPSET,
            "networks": [
                {
                    "file": NETWORK,
                    "precision": "fp32",
                    "shape": list(shape),
                    "nodes": len(model.graph.node),
                    "verification": measured,
                }
            ],
            "engines": [],
            "files": {NETWORK: {"sha256": sha256_of(path), "bytes": path.stat().st_size}},
            "provenance": {
                "weights": weights.name,
                "weights_sha256": sha256_of(weights),
                "export_seconds": round(traced, 1),
                **info.provenance,
            },
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        staging.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        _put_in_place(staging, out_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def check_replaceable(out_dir: Path, force: bool) -> None:
    """Refuse to overwrite: without `force` anything, with it anything but a bundle."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return
    if not (out_dir / MANIFEST).is_file():
        raise ExportError(
            f"{out_dir}: expected a new folder or a bundle, got something else; choose another "
            "--out-dir."
        )
    if not force:
        raise ExportError(
            f"{out_dir}: expected a new folder, got an existing bundle; pass --force to replace it."
        )


def _put_in_place(staging: Path, out_dir: Path) -> None:
    """Two renames; between them the folder is missing, never half-written."""
    old = staging.with_name(staging.name + "-old")
    if out_dir.exists():
        os.replace(out_dir, old)
    os.replace(staging, out_dir)
    shutil.rmtree(old, ignore_errors=True)
