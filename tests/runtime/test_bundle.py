from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paramorph_rt.bundle import default_bundle_path, load_bundle, shipped
from paramorph_rt.errors import BundleError

from .phantoms import (
    NETWORK_SHAPE,
    NETWORK_SPACING_MM,
    read_manifest,
    replace_file,
    write_manifest,
)


@pytest.fixture
def folder(bundle_path, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(bundle_path, tmp_path / "bundle")


def test_bundle_says_what_the_network_expects(bundle_path):
    bundle = load_bundle(bundle_path)
    assert bundle.name == "known-displacement"
    assert bundle.inputs.grid.shape == NETWORK_SHAPE
    assert bundle.inputs.grid.spacing_mm == NETWORK_SPACING_MM
    assert bundle.inputs.grid.orientation == "RAS"
    assert bundle.inputs.intensity.upper_percentile == 100.0
    assert bundle.sampling == "exact"
    assert bundle.network().shape == NETWORK_SHAPE
    assert bundle.verified_path(bundle.network().file).is_file()


def test_no_bundle_there(tmp_path):
    with pytest.raises(BundleError, match=r"expected a bundle .*, found none; check the path\.$"):
        load_bundle(tmp_path)


def test_manifest_is_no_json(folder):
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="expected JSON, got something else"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["format"], "other", 'expected the format "paramorph-bundle"'),
        (["format_version"], 1, "expected format version 2, got 1"),
        (["grid", "shape"], [20, 24], "three (numbers of voxels|spacings in mm)"),
        (["grid", "spacing_mm"], [1, 1, 0], "three (numbers of voxels|spacings in mm)"),
        (["grid", "orientation"], "RLS", "an orientation such as"),
        (["sampling", "convention"], "roughly", "'roughly' where one of exact, reference"),
        (["displacement", "unit"], "mm", "'mm' where one of voxel"),
        (["displacement", "direction"], "moving-to-fixed", "one of fixed-to-moving"),
        (["intensity", "lower_percentile"], "low", "could not convert"),
        (["features"], {"smoothing": 0}, "0 where a positive number belongs"),
        (["networks", 0, "precision"], "fp8", "'fp8' where one of fp32, fp16, bf16"),
        (["networks", 0, "file"], "other.onnx", r"without \['other.onnx'\]"),
        (["networks"], [], "without a network"),
        (["engines"], [{"file": "engine"}], "got no entry 'flavour'"),
        (["files", "registration.onnx", "bytes"], 7, "expected 7 bytes"),
        (
            ["files", "other.bin"],
            {"sha256": "0" * 64, "bytes": 1},
            "expected this file of the bundle",
        ),
        (["files", "../../secret"], {"sha256": "0" * 64, "bytes": 1}, "a path inside the bundle"),
        (["files", "/etc/passwd"], {"sha256": "0" * 64, "bytes": 1}, "a path inside the bundle"),
    ],
)
def test_wrong_entry(folder, path, value, match):
    manifest = read_manifest(folder)
    entry = manifest
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=match):
        load_bundle(folder)


@pytest.mark.parametrize(
    "key", ["name", "grid", "intensity", "sampling", "displacement", "networks", "engines", "files"]
)
def test_missing_entry(folder, key):
    manifest = read_manifest(folder)
    del manifest[key]
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=f"got no entry '{key}'"):
        load_bundle(folder)


def test_network_that_is_not_listed(folder):
    manifest = read_manifest(folder)
    manifest["files"] = {}
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"without \['registration.onnx'\]"):
        load_bundle(folder)


def test_altered_network(folder):
    network = folder / "registration.onnx"
    content = bytearray(network.read_bytes())
    content[100] ^= 1
    network.write_bytes(content)
    with pytest.raises(BundleError, match=r"expected SHA-256 \w{12}…, .* the file was altered"):
        load_bundle(folder).verified_path("registration.onnx")


def test_link_out_of_the_bundle(folder, tmp_path):
    network = folder / "registration.onnx"
    network.rename(tmp_path / "elsewhere.onnx")
    network.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="a path inside the bundle"):
        load_bundle(folder)


def test_default_bundle_is_the_one_in_the_environment(monkeypatch, bundle_path):
    monkeypatch.setenv("PARAMORPH_MODEL", str(bundle_path))
    assert default_bundle_path() == bundle_path


def test_missing_default_bundle_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("PARAMORPH_MODEL", raising=False)
    monkeypatch.setattr(shipped, "DEFAULT_NAME", "not-installed")
    with pytest.raises(BundleError, match=r"pip install .* paramorph-rt`, or name") as info:
        default_bundle_path()
    assert "/" not in str(info.value)  # no folder of the installation is a place to export into


def test_network_is_verified_with_the_weights_that_it_reads(folder):
    replace_file(folder, "weights.safetensors", b"numbers")
    manifest = read_manifest(folder)
    manifest["networks"][0]["weights"] = "weights.safetensors"
    write_manifest(folder, manifest)
    bundle = load_bundle(folder)
    entry = bundle.network()
    first = bundle.network_sha256(entry)
    assert bundle.verified_network(entry) == folder / "registration.onnx"
    (folder / "weights.safetensors").write_bytes(b"NUMBERS")
    with pytest.raises(BundleError, match=r"weights.safetensors: expected SHA-256 .* was altered"):
        bundle.verified_network(entry)
    replace_file(folder, "weights.safetensors", b"NUMBERS")
    retrained = load_bundle(folder)
    assert retrained.network_sha256(retrained.network()) != first


def test_weights_that_the_manifest_does_not_list(folder):
    manifest = read_manifest(folder)
    manifest["networks"][0]["weights"] = "weights.safetensors"
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"without \['weights.safetensors'\]"):
        load_bundle(folder)
