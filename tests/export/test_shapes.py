"""A network exported at two shapes, run by the runtime at the one that fits the image."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from paramorph_rt import Registration
from paramorph_rt.bundle import load_bundle
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume

SMALL, LARGE = (32, 32, 32), (32, 64, 32)


@pytest.fixture(scope="module")
def bundles(weights, tmp_path_factory) -> dict[str, Path]:
    """One of each shape, and one of both."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "export"))
    try:
        import to_onnx
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("shapes")
    options = ["--weights", str(weights), "--out-dir", str(folder / "both")]
    for shape in (SMALL, LARGE):
        options += ["--shape", *map(str, shape)]
    assert to_onnx.main(options) == 0
    for name, shape in (("small", SMALL), ("large", LARGE)):
        path = shutil.copytree(folder / "both", folder / name) / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["grid"]["shape"] = list(shape)
        manifest["networks"] = [e for e in manifest["networks"] if e["shape"] == list(shape)]
        path.write_text(json.dumps(manifest), encoding="utf-8")
    return {name: folder / name for name in ("small", "large", "both")}


def head_of(radii_mm: tuple[float, ...], seed: int) -> Volume:
    """An ellipsoid with texture on a grid of 2 mm."""
    shape = (40, 80, 40)
    grid = Grid(shape, np.diag([2.0, 2.0, 2.0, 1.0]))
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    radius = np.linalg.norm((index - np.array(shape) / 2) * 2 / radii_mm, axis=-1)
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    data = np.where(radius < 1, 100 + 300 * noise, 0)
    return Volume(data.astype(np.float32), grid, f"head-{seed}")


@pytest.mark.parametrize(
    ("name", "radii_mm", "shape"), [("small", (25, 28, 25), SMALL), ("large", (25, 55, 25), LARGE)]
)
def test_each_head_takes_its_shape_with_the_result_of_a_bundle_of_that_alone(
    bundles, name, radii_mm, shape
):
    assert load_bundle(bundles["both"]).shapes == (SMALL, LARGE)
    moving, fixed = (head_of(radii_mm, seed) for seed in (1, 2))
    found, expected = (
        Registration(bundles[which], 1, "onnxruntime")(moving, fixed, affine=False, refine=0)
        for which in ("both", name)
    )
    assert tuple(found.metrics["network_grid"]["shape"]) == shape
    assert np.abs(expected.displacement.vectors_mm).max() > 0.1
    np.testing.assert_allclose(
        found.displacement.vectors_mm, expected.displacement.vectors_mm, atol=1e-4
    )
