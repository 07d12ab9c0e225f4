from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt import Registration
from paramorph_rt.cli import main
from paramorph_rt.images.volume import Volume, load_labels, save_labels, save_volume
from paramorph_rt.transforms import itk

from .phantoms import centred_grid, head, head_labels, volume_of

SHIFT_MM = (2.0, -1.0, 1.5)


@pytest.fixture(scope="module")
def registered(tmp_path_factory, bundle_path):
    """A pair with labels, and what a registration made of it in `out`."""
    folder = tmp_path_factory.mktemp("pair")
    grids = {
        "moving": centred_grid("LAS", (46, 52, 40)),
        "fixed": centred_grid("oblique", (44, 40, 30), (1, 1.2, 1.5)),
    }
    for name, grid in grids.items():
        save_volume(folder / f"{name}.nii.gz", volume_of(head, grid, name))
        save_labels(folder / f"{name}_labels.nii.gz", volume_of(head_labels, grid))
    start = np.eye(4)
    start[:3, 3] = SHIFT_MM
    itk.write_affine(folder / "start.tfm", start)
    paths = [folder / f"{name}.nii.gz" for name in (*grids, *(f"{name}_labels" for name in grids))]
    result = Registration(bundle_path)(*paths, affine=False, initial=start, refine=0)
    result.save(folder / "out")
    return folder


@pytest.fixture
def evaluate(registered, tmp_path, monkeypatch):
    """Runs `paramorph-rt evaluate` in a folder of its own that sees the registered pair."""
    monkeypatch.chdir(tmp_path)
    for path in registered.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return lambda line: main(["evaluate", *line.split()])


IMAGES = "--fixed fixed.nii.gz --moving moving.nii.gz "
LABELS = "--fixed-labels fixed_labels.nii.gz --moving-labels moving_labels.nii.gz "
WARPED = "--warped out/warped.nii.gz --warped-labels out/warped_labels.nii.gz "
FIELD = "--displacement out/displacement.nii.gz "


def test_files_of_infer_give_its_own_metrics_again(evaluate, tmp_path, capsys):
    assert evaluate(IMAGES + LABELS + WARPED + FIELD + "--json -") == 0
    found = json.loads(capsys.readouterr().out)
    told = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    for key in set(told) & set(found) - {"definitions"}:
        if isinstance(told[key], dict):
            told[key].pop("affine", None)
            for stage, values in told[key].items():
                mine = found[key][stage]
                if isinstance(values, dict):
                    values, mine = values["labels"], mine["labels"]
                assert mine == pytest.approx(values, rel=1e-5), (key, stage)
        else:
            assert found[key] == pytest.approx(told[key], rel=1e-4), key
    assert set(found) - set(told) == {"ssim"}
    assert set(told["definitions"]) <= set(found["definitions"]) <= set(found)


def test_threads_are_limited_while_it_measures(evaluate, monkeypatch, capsys):
    told = []

    def measure(*_, **__):
        told.append(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())
        return {"definitions": {}}

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    monkeypatch.setattr("paramorph_rt.evaluation.evaluate", measure)
    assert evaluate(IMAGES + "--threads 1") == 0
    assert told == [1]
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before


def test_the_transform_warps_what_was_not_warped(evaluate, capsys):
    assert evaluate(IMAGES + LABELS + FIELD + WARPED + "--json -") == 0
    given = json.loads(capsys.readouterr().out)
    assert evaluate(IMAGES + LABELS + FIELD + "--json -") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["ncc"]["after"] == pytest.approx(given["ncc"]["after"], abs=1e-4)
    assert made["dice"]["after"]["mean"] == pytest.approx(given["dice"]["after"]["mean"], abs=1e-3)


def test_several_transforms_are_their_composition(evaluate, capsys):
    several = "out/displacement.nii.gz [start.tfm,1] "
    assert main(["transform", "compose", *several.split(), "--out", "whole.nii.gz"]) == 0
    capsys.readouterr()
    found = []
    for transforms in (several, "whole.nii.gz "):
        assert evaluate(IMAGES + LABELS + "--json - --transform " + transforms) == 0
        found.append(json.loads(capsys.readouterr().out))
    first, second = found
    assert first["ncc"]["after"] == pytest.approx(second["ncc"]["after"], abs=1e-5)
    assert first["dice"]["after"]["mean"] == pytest.approx(
        second["dice"]["after"]["mean"], abs=1e-3
    )
    for key in ("sd_log_jacobian", "sd_log_jacobian_l2r", "nondiffeomorphic_volume_percent"):
        assert first[key] == pytest.approx(second[key], rel=1e-3)


def test_an_affine_alone_has_no_folds(evaluate, capsys):
    assert evaluate("--fixed fixed.nii.gz --transform start.tfm --json -") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nondiffeomorphic_voxels_percent"] == found["nonpositive_jacobian_percent"] == 0
    assert found["sd_log_jacobian"] == pytest.approx(0, abs=1e-5)
    assert "ncc" not in found


def test_landmarks_are_sent_through_the_transform(evaluate, tmp_path, capsys):
    fixed = np.array([[0.0, 0, 0], [10, 5, -5]])
    np.savetxt(tmp_path / "f.csv", fixed, delimiter=",")
    np.savetxt(tmp_path / "m.csv", fixed + SHIFT_MM, delimiter=",")
    points = "--fixed-landmarks f.csv --moving-landmarks m.csv --landmark-space RAS "
    assert evaluate(points + "--fixed fixed.nii.gz --transform start.tfm --json -") == 0
    tre = json.loads(capsys.readouterr().out)["tre_mm"]
    assert tre["before"]["mean"] == pytest.approx(np.linalg.norm(SHIFT_MM))
    assert tre["after"]["landmarks"] == pytest.approx({"1": 0, "2": 0}, abs=1e-9)
    points = points.replace("RAS", "LPS")  # the same numbers elsewhere
    assert evaluate(points + "--fixed fixed.nii.gz --transform start.tfm") == 0
    assert f"{np.hypot(4, 2):.4f}" in capsys.readouterr().out


def test_voxel_landmarks_count_in_their_own_image(evaluate, tmp_path, capsys):
    (tmp_path / "f.csv").write_text(
        "21.5,19.5,14.5\n", encoding="utf-8"
    )  # both are the middle of their image
    (tmp_path / "m.csv").write_text("22.5,25.5,19.5\n", encoding="utf-8")
    points = "--fixed-landmarks f.csv --moving-landmarks m.csv --landmark-space voxel --json - "
    assert evaluate(points + "--fixed fixed.nii.gz --moving-labels moving_labels.nii.gz") == 0
    found = json.loads(capsys.readouterr().out)["tre_mm"]
    assert found["before"]["max"] == pytest.approx(0, abs=1e-5)
    assert "after" not in found


def test_csv_has_a_row_per_label_and_nothing_for_what_does_not_exist(evaluate, tmp_path, capsys):
    labels = load_labels("moving_labels.nii.gz")
    odd = Volume(np.where(labels.data == 7, 9, labels.data).astype(np.int16), labels.grid)
    save_labels("odd.nii.gz", odd)
    (tmp_path / "names.csv").write_text("label,name\n1,left\n9,odd one\n", encoding="utf-8")
    options = "--fixed-labels fixed_labels.nii.gz --moving-labels odd.nii.gz "
    assert evaluate(options + "--label-names names.csv --csv - --json all.json") == 0
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert list(rows) == ["1", "2", "7", "9"]
    assert (rows["1"]["name"], rows["2"]["name"], rows["9"]["name"]) == ("left", "", "odd one")
    assert float(rows["1"]["dice_before"]) > 0.9
    assert (rows["9"]["dice_before"], rows["9"]["assd_mm_before"]) == ("0.0", "")
    assert float(rows["9"]["volume_mm3_moving"]) > 0 == float(rows["9"]["volume_mm3_fixed"])
    table = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert table["assd_mm"]["before"]["labels"]["9"] is None
    assert table["label_names"] == {"1": "left", "9": "odd one"}


def test_an_empty_warped_map_is_a_result(evaluate, capsys):
    fixed = load_labels("fixed_labels.nii.gz")
    save_labels("empty.nii.gz", Volume(fixed.data * 0, fixed.grid))
    options = "--fixed-labels fixed_labels.nii.gz --warped-labels empty.nii.gz "
    assert evaluate(options + "--json -") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dice"]["after"]["mean"] == 0
    assert found["hd95_mm"]["after"]["mean"] is None


def test_table_is_for_people(evaluate, capsys):
    assert evaluate(IMAGES + LABELS + FIELD + "--nsd-tolerance 2.5 --json m.json") == 0
    printed = capsys.readouterr().out
    for words in (
        *("before", "after", "NCC", "SSIM", "mean Dice", "mean NSD at 2.5 mm", "mean HD95 (mm)"),
        *("Non-diffeomorphic volume (%)", "both label maps have", "wrote m.json"),
    ):
        assert words in printed
    assert "_" not in printed.replace("m.json", "")


def test_json_alone_is_stdout_as_everywhere(evaluate, capsys):
    assert evaluate("-f fixed.nii.gz -m moving.nii.gz --json") == 0
    assert json.loads(capsys.readouterr().out)["ncc"]["before"] > 0
    assert evaluate(LABELS + "--csv --force") == 0
    assert capsys.readouterr().out.startswith("label,")


def test_one_file_for_two_results_is_refused(evaluate, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path)
    assert evaluate(IMAGES + LABELS + "--csv x --json link/x") == 1
    assert "x: expected a file for --csv and another for --json" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_landmarks_of_two_spaces(evaluate, tmp_path, capsys):
    ras = np.array([[1.0, 2, 3], [10, 5, -5]])
    np.savetxt(tmp_path / "m.csv", ras, delimiter=",")
    rows = "".join(f"p{n},{x},{y},{z},0,0,0,1,1,1,0,P-{n},,\n" for n, (x, y, z) in enumerate(-ras))
    (tmp_path / "f.fcsv").write_text(
        "# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        + rows.replace("p0,-1.0,-2.0,-3.0", "p0,-1.0,-2.0,3.0").replace(",5.0,0", ",-5.0,0"),
        encoding="utf-8",
    )
    points = "--fixed-landmarks f.fcsv --moving-landmarks m.csv --json "
    assert evaluate(points + "--moving-landmark-space RAS") == 0
    found = json.loads(capsys.readouterr().out)["tre_mm"]["before"]
    assert found["max"] == pytest.approx(0, abs=1e-9)
    assert evaluate(points + "--landmark-space RAS") == 1
    assert "such as by --moving-landmark-space" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "evaluation: expected files to compare"),
        ("--fixed fixed.nii.gz", "evaluation: expected files to compare"),
        ("--warped out/warped.nii.gz", "expected a fixed image or label map to compare it with"),
        (
            "--fixed fixed.nii.gz --warped moving.nii.gz",
            "moving.nii.gz: expected it on the grid of fixed.nii.gz",
        ),
        ("--transform start.tfm", "on whose grid to measure it, as it is an affine"),
        ("--fixed fixed.nii.gz --moving-landmarks m.csv", "got none of the fixed one"),
        (IMAGES + "--csv labels.csv", "CSV: expected label maps"),
        # what no file could make right is told before any is read
        ("--warped no.nii.gz", "no.nii.gz: expected a fixed image or label map to compare"),
        ("--fixed no.nii.gz --fixed-landmarks no.csv", "got none of the moving one"),
        ("--fixed no.nii.gz --moving no.nii.gz --csv labels.csv", "CSV: expected label maps"),
        (IMAGES + "--csv - --json -", "expected one table on stdout"),
        (IMAGES + "--json start.tfm", "start.tfm: expected no earlier result"),
        (IMAGES + "--json nowhere/m.json", "expected a folder to write into"),
    ],
)
def test_wrong_files_are_one_sentence(evaluate, tmp_path, capsys, line, message):
    before = set(tmp_path.iterdir())
    assert evaluate(line) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("paramorph-rt: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert set(tmp_path.iterdir()) == before


def test_existing_files_need_force(evaluate, tmp_path):
    (tmp_path / "m.json").write_text("old", encoding="utf-8")
    assert evaluate(IMAGES + "--json m.json") == 1
    assert (tmp_path / "m.json").read_text(encoding="utf-8") == "old"
    assert evaluate(IMAGES + "--json m.json --force") == 0
    assert "ncc" in json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))


def test_a_negative_tolerance_is_wrong_usage(evaluate, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate(IMAGES + "--nsd-tolerance -1")
    assert "expected millimetres, got -1" in capsys.readouterr().err
