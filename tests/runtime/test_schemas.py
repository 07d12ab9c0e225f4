"""metrics.json and record.json follow their published schemas and say how they came about."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from paramorph_rt import Registration, __version__
from paramorph_rt.cli import main
from paramorph_rt.images.volume import save_labels, save_volume
from paramorph_rt.results.schemas import METRICS, RECORD, metrics_schema, record_schema

from .phantoms import centred_grid, head, head_labels, volume_of

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema of the extra dev")

DOCS = Path(__file__).parents[2] / "docs"
GRIDS = {
    "moving": centred_grid("LPS", (46, 52, 40), centre=(2, 0, 1)),
    "fixed": centred_grid("oblique", (44, 50, 24), (1.0, 1.0, 2.0)),
}


def check(content: dict, schema: dict) -> None:
    """Valid, and nothing in it that the schema does not describe."""
    jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(content)
    assert set(content) <= set(schema["properties"])


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Images, labels and a mask; the moving image as Analyze."""
    found = {}
    for role, grid in GRIDS.items():
        found[role] = tmp_path / f"{role}.nii.gz"
        save_volume(found[role], volume_of(head, grid))
        found[f"{role}_labels"] = tmp_path / f"{role}_labels.nii.gz"
        save_labels(found[f"{role}_labels"], volume_of(head_labels, grid))
    (tmp_path / "names.csv").write_text("1,right\n2,left\n7,core\n", encoding="utf-8")
    return found | {"label_names": tmp_path / "names.csv"}


def options_of(files: dict[str, Path]) -> list[str]:
    return [word for role, path in files.items() for word in (f"--{role}".replace("_", "-"), path)]


def infer(bundle: Path, out: Path, *words: object) -> dict:
    command = ["infer", "--model", bundle, "--backend", "onnxruntime", "--out-dir", out, *words]
    assert main([*map(str, command)]) == 0
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_the_schemas_are_schemas_and_those_of_the_documents(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from json_schemas import FOLDER, texts

    for schema in (metrics_schema(), record_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)
    published = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert published == texts(), "run make docs"


def test_all_that_infer_can_write(bundle_path, files, tmp_path):
    everything = ["--inverse", "--report", "--threads", 1, *options_of(files)]
    metrics = infer(bundle_path, tmp_path / "all", *everything)
    check(metrics, metrics_schema())
    assert metrics["label_names"] == {"1": "right", "2": "left", "7": "core"}
    images = {role: files[role] for role in GRIDS}
    lean = infer(bundle_path, tmp_path / "lean", "--no-affine", *options_of(images))
    check(lean, metrics_schema())
    assert "dice" not in lean
    surfaceless = ["--no-surface-distances", *options_of(files)]
    check(infer(bundle_path, tmp_path / "no surfaces", *surfaceless), metrics_schema())


def test_python_writes_the_same_without_provenance(bundle_path, files, tmp_path):
    Registration(bundle_path)(files["moving"], files["fixed"], refine=0).save(tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    check(metrics, metrics_schema())
    assert "provenance" not in metrics


def test_provenance_says_what_went_in(bundle_path, files, tmp_path):
    options = ["--affine", "rigid", "--interpolation", "bspline", "--threads", 2]
    block = infer(bundle_path, tmp_path / "out", *options, *options_of(files))["provenance"]
    for role, path in files.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert block["inputs"][role] == {"path": str(path), "sha256": digest}
    network = hashlib.sha256((bundle_path / "registration.onnx").read_bytes()).hexdigest()
    assert block["model"] == {
        "name": "known-displacement",
        "sha256": {"registration.onnx": network},
        "backend": "onnxruntime-cpu",
        "precision": "fp32",
    }
    assert block["options"] == {
        "affine": "rigid",
        "inverse": False,
        "output_grid": "fixed",
        "interpolation": "bspline",
        "refine": 7,
    }
    assert block["software"]["paramorph-rt"] == __version__
    assert block["software"]["numpy"] == np.__version__
    assert None not in block["software"].values()
    assert block["threads"] == 2
    assert block["platform"]["machine"] == platform.machine()
    assert block["platform"]["python"] == platform.python_version()
    assert block["date"].endswith("+00:00")


def test_a_cohort_writes_the_same_block_twice(bundle_path, files, tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("name,moving,fixed\nx,moving.nii.gz,fixed.nii.gz\n", encoding="utf-8")
    out = tmp_path / "out"
    words = ["cohort", table, "--model", bundle_path, "--out-dir", out, "--backend", "onnxruntime"]
    assert main([*map(str, words)]) == 0
    metrics, record = (
        json.loads((out / f"pairs/x/{name}.json").read_text(encoding="utf-8"))
        for name in ("metrics", "record")
    )
    check(metrics, metrics_schema())
    check(record, record_schema())
    assert (metrics["schema"], record["schema"]) == (METRICS, RECORD)
    assert metrics["provenance"] == record["provenance"]
    assert record["process"] == os.getpid()
    alone = infer(bundle_path, tmp_path / "one", *options_of({r: files[r] for r in GRIDS}))
    same = ("software", "options", "inputs", "model", "threads", "platform")
    assert {k: alone["provenance"][k] for k in same} == {k: record["provenance"][k] for k in same}


def test_a_wrong_file_is_found(bundle_path, files, tmp_path):
    metrics = infer(bundle_path, tmp_path / "out", "--no-affine", *options_of(files))
    for path, value in (
        (("dice", "after", "mean"), "0.9"),
        (("dice", "after", "labels", "left"), 0.9),
        (("provenance", "inputs", "moving", "sha256"), "0"),
        (("provenance", "date"), 2026),
        (("schema",), "urn:paramorph-rt:schema:metrics:0"),
        (("warnings",), "none"),
    ):
        broken = json.loads(json.dumps(metrics))
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            check(broken, metrics_schema())


def test_both_files_of_analyze_are_hashed(bundle_path, files, tmp_path):
    image = nib.load(files["moving"])
    analyze = nib.AnalyzeImage(image.get_fdata(dtype=np.float32), None)
    analyze.to_filename(tmp_path / "moving.hdr")
    words = ["--moving", tmp_path / "moving.hdr", "--fixed", files["fixed"]]
    words += ["--analyze-orientation", "LPS"]
    first = infer(bundle_path, tmp_path / "one", *words)["provenance"]
    assert first["options"]["analyze_orientation"] == "LPS"
    voxels = bytearray((tmp_path / "moving.img").read_bytes())
    voxels[len(voxels) // 2] ^= 1
    (tmp_path / "moving.img").write_bytes(voxels)
    second = infer(bundle_path, tmp_path / "two", *words)["provenance"]
    assert first["inputs"]["moving"]["path"] == second["inputs"]["moving"]["path"]
    assert first["inputs"]["moving"]["sha256"] != second["inputs"]["moving"]["sha256"]
