"""Bundles that lie: refused before anything in them is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from paramorph_rt.bundle import default_bundle_path

from ..runtime.phantoms import NETWORK_SHAPE, read_manifest, write_bundle
from .harness import check_refused, snapshot


@pytest.fixture(scope="module")
def honest(open_folder) -> Path:
    """A bundle whose network gives no displacement."""
    return write_bundle(open_folder / "honest", np.zeros((3, *NETWORK_SHAPE), np.float32))


def _set(*path, value):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


_FILE = ("files", "registration.onnx")
MANIFESTS = {
    "other_format": _set("format", value="other"),
    "other_version": _set("format_version", value=99),
    "version_as_word": _set("format_version", value="2"),
    "no_grid": lambda m: m.pop("grid"),
    "grid_as_list": _set("grid", value=[1]),
    "two_sides": _set("grid", "shape", value=[32, 32]),
    "sides_as_words": _set("grid", "shape", value=["a", "b", "c"]),
    "halves_of_voxels": _set("grid", "shape", value=[20.5, 24, 16]),
    "infinite_sides": _set("grid", "shape", value=[float("inf")] * 3),
    "absurd_sides": _set("grid", "shape", value=[100_000] * 3),
    "negative_sides": _set("grid", "shape", value=[-20, 24, 16]),
    "nan_spacing": _set("grid", "spacing_mm", value=[float("nan"), 1, 1]),
    "infinite_spacing": _set("grid", "spacing_mm", value=[1, 1, float("inf")]),
    "spacing_of_0": _set("grid", "spacing_mm", value=[0, 1, 1]),
    "absurd_spacing": _set("grid", "spacing_mm", value=[1e9, 1, 1]),
    "orientation_xyz": _set("grid", "orientation", value="XYZ"),
    "orientation_rrr": _set("grid", "orientation", value="RRR"),
    "orientation_null": _set("grid", "orientation", value=None),
    "nan_percentile": _set("intensity", "lower_percentile", value=float("nan")),
    "percentile_200": _set("intensity", "upper_percentile", value=200),
    "percentiles_reversed": _set("intensity", "lower_percentile", value=100),
    "no_networks": _set("networks", value=[]),
    "network_as_word": _set("networks", value=["registration.onnx"]),
    "networks_null": _set("networks", value=None),
    "unknown_precision": _set("networks", 0, "precision", value="fp8"),
    "unlisted_file": _set("networks", 0, "file", value="other.onnx"),
    "unknown_unit": _set("displacement", "unit", value="mile"),
    "other_direction": _set("displacement", "direction", value="moving-to-fixed"),
    "unknown_sampling": _set("sampling", "convention", value="magic"),
    "engine_without_fields": _set("engines", value=[{}]),
    "files_as_list": _set("files", value=["registration.onnx"]),
    "no_hash": lambda m: m["files"]["registration.onnx"].pop("sha256"),
    "hash_null": _set(*_FILE, "sha256", value=None),
    "hash_too_short": _set(*_FILE, "sha256", value="abc"),
    "other_hash": _set(*_FILE, "sha256", value="0" * 64),
    "infinite_bytes": _set(*_FILE, "bytes", value=float("inf")),
    "negative_bytes": _set(*_FILE, "bytes", value=-1),
    "other_bytes": _set(*_FILE, "bytes", value=5),
    "bytes_as_word": _set(*_FILE, "bytes", value="many"),
    **{
        f"file_{name}": _set("files", path, value={"bytes": 1, "sha256": "0" * 64})
        for name, path in {
            "above": "../secret",
            "absolute": "/etc/passwd",
            "null": "a\0b",
            "too_long": "x" * 300,
            "missing": "missing.onnx",
            "folder": ".",
        }.items()
    },
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_lies(name, program, good, honest, place):
    bundle = place / "bundle"
    shutil.copytree(honest, bundle)
    manifest = read_manifest(bundle)
    MANIFESTS[name](manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    _check(program, good, bundle, place)


RAW = {
    "empty": b"",
    "no_json": b"{",
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "not_utf8": b'{"format": "\xff"}',
    "large_number": b'{"format": ' + b"9" * 10_000 + b"}",
    "noise": np.random.default_rng(8).bytes(2000),
}


@pytest.mark.parametrize("name", RAW)
def test_a_manifest_that_is_none(name, program, good, honest, place):
    bundle = place / "bundle"
    shutil.copytree(honest, bundle)
    (bundle / "manifest.json").write_bytes(RAW[name])
    _check(program, good, bundle, place)


@pytest.mark.parametrize("what", ["fifo", "device", "missing", "link_outside", "flipped", "cut"])
@pytest.mark.parametrize("file", ["manifest.json", "registration.onnx"])
def test_files_that_are_not_what_was_exported(what, file, program, good, honest, place):
    bundle = place / "bundle"
    shutil.copytree(honest, bundle)
    path = bundle / file
    content = path.read_bytes()
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "link_outside":
        (place / file).write_bytes(content[:-1] + b" ")
        path.symlink_to(place / file)
    elif what == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif what == "cut":
        path.write_bytes(content[:-10])
    if (what, file) == ("link_outside", "manifest.json"):
        return  # a manifest may lie elsewhere; nothing vouches for it
    _check(program, good, bundle, place)


def _check(program, good, bundle, place) -> None:
    before = snapshot(place)
    pair = ("-m", good / "moving.nii.gz", "-f", good / "fixed.nii.gz", "-o", place / "OUT")
    words = ("infer", *pair, "--model", bundle, "--refine", "off", "--no-affine", "--quiet")
    check_refused(program(*words, cwd=place))
    assert snapshot(place) == before
    outcome = program("triton", bundle, "--out-dir", place / "REPO", "--quiet", cwd=place)
    check_refused(outcome)
    assert snapshot(place) == before


def test_the_shipped_bundle_is_none_of_these(program, place):
    assert program("triton", default_bundle_path(), "--out-dir", "REPO", cwd=place).code == 0
