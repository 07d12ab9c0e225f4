"""The bundle that is tracked and installed: that of its own weights and of today's exporter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import onnx
import pytest

import paramorph_rt
from paramorph.checkpoint import load_weights
from paramorph_export import bundle as bundle_module
from paramorph_export.bundle import Graphs, write_bundle
from paramorph_export.engine import add_engines
from paramorph_export.grid_sample import STANDARD_OPSET
from paramorph_export.storage import WEIGHTS
from paramorph_export.verify import verify
from paramorph_rt.bundle import DEFAULT_NAME, load_bundle
from paramorph_rt.system.files import sha256_of
from schedule import schedule_of

ROOT = Path(__file__).parents[2]
BUNDLE = Path(paramorph_rt.__file__).parent / "bundles" / DEFAULT_NAME
#: Of the files in the repository, the bundle of 14 MB among them.
MOST_TRACKED = 40_000_000


@pytest.mark.slow
def test_shipped_network_computes_what_its_weights_say():
    bundle = load_bundle(BUNDLE)
    network, info = load_weights(BUNDLE / WEIGHTS)
    entry = bundle.network()
    assert bundle.manifest["provenance"]["weights_sha256"] == sha256_of(BUNDLE / WEIGHTS)
    assert bundle.manifest["network"] == info.network.as_dict()
    assert bundle.manifest["opset"] == STANDARD_OPSET
    assert bundle.inputs.grid.shape == info.shape
    # Raises beyond 1e-3 voxel.
    assert verify(bundle.verified_network(entry), network, entry.shape)["max_displacement_vox"] > 1


@pytest.mark.slow
def test_engine_of_the_shipped_network_takes_few_launches(tmp_path, monkeypatch):
    """494 and 3.42 GB with TensorRT for RTX 1.7."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx")
    for name in ("verify", "verify_half"):
        monkeypatch.setattr(bundle_module, name, lambda *_: {})
    folder = tmp_path / "bundle"
    write_bundle(folder, BUNDLE / WEIGHTS, Graphs(halves=["fp16"]))
    (entry,) = add_engines(folder, ["sm86"], "tensorrt-rtx", "fp16")
    costs = schedule_of(load_bundle(folder).verified_bytes(entry["file"])).summary()
    assert costs["launches"] <= 500
    assert costs["gigabytes"] < 3.5
    assert entry["device_memory_bytes"] < 220e6


def test_shipped_graph_names_no_folder_of_whoever_exported_it():
    assert "stack_trace" not in str(onnx.load(BUNDLE / "registration.onnx").graph.node)


def test_tracked_files_stay_small():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    if listed.returncode:
        pytest.skip("needs a git clone")
    sizes = [(ROOT / f).stat().st_size for f in listed.stdout.split("\0") if (ROOT / f).is_file()]
    assert sum(sizes) < MOST_TRACKED
