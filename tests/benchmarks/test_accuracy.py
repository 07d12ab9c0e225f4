from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import accuracy
import jobs
from accuracy import BENCHMARK, measure, summarise
from bundles import named_bundles
from charts import accuracy_plot
from jobs import FIELD, JOBS, WARPED_LABELS, Job, jobs_named, of_network, of_registration
from pairs import labelled_pairs
from paramorph_rt.errors import BundleError, MissingDependencyError
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.images.volume import load_volume
from paramorph_rt.transforms.itk import write_displacement
from record import BenchmarkError
from sets import Case
from tables import markdown_table

FIGURES = {
    **{"hd95_mm": 4.0, "assd_mm": 1.0, "ncc": 0.9, "nondiffeomorphic_volume_percent": 0.25},
    **{"nonpositive_jacobian_percent": 0.125, "sd_log_jacobian": 0.5},
}
ROWS = [
    {"pair": "p → q", "method": "ANTs SyN", "dice": 0.5, "seconds": 80, "peak_mb": 900, **FIGURES},
    {"pair": "q → p", "method": "ANTs SyN", "dice": 0.7, "seconds": 120, "peak_mb": 700, **FIGURES},
    {
        "pair": "p → q",
        "method": "ours",
        "dice": 0.75,
        "seconds": 4,
        "network_seconds": 1,
        **FIGURES,
    },
    {"pair": "q → p", "method": "ours", "error": "killed by SIGKILL"},
]


def test_summary_takes_means_and_medians_of_what_was_done():
    summary = summarise(ROWS)
    assert summary["ANTs SyN"]["dice"] == pytest.approx(0.6)
    assert summary["ANTs SyN"]["seconds"] == 100
    assert summary["ANTs SyN"]["network_seconds"] is None
    assert summary["ours"]["dice"] == 0.75
    assert (summary["ours"]["pairs"], summary["ours"]["failed"]) == (1, 1)
    assert summary["ours"]["seconds_over_syn"] == 0.04
    assert summary["ours"]["seconds_over_greedy"] is None


def test_without_syn_there_is_no_ratio_to_it():
    assert summarise(ROWS[2:])["ours"]["seconds_over_syn"] is None


def test_markdown_table_has_a_dash_for_nothing():
    columns = (("method", "name", ""), ("Dice", "dice", ".2f"))
    rows = [{"name": "ours", "dice": 0.756}, {"name": "theirs", "dice": None}, {"name": "lost"}]
    assert markdown_table(rows, columns) == (
        "| method | Dice |\n| --- | ---: |\n| ours | 0.76 |\n| theirs | – |\n| lost | – |\n"
    )


def result_of(rows) -> dict:
    return {
        **{"summary": summarise(rows), "rows": rows, "pairs": 2, "threads": 1, "cores": 2},
        **{"processor": "a processor", "commit": "abc", "versions": {"numpy": "2", "torch": None}},
    }


def test_page_names_figures_and_failures():
    page = BENCHMARK.page(result_of(ROWS), "accuracy-x")
    assert "| ours | 0.750 | 4.00 | 1.00 | 0.500 | 0.1250 | 0.2500 | 4.0 | 1.0 | 0.04 | – |" in page
    assert "- ours, q → p: killed by SIGKILL" in page
    assert "numpy 2." in page
    assert "torch" not in page
    assert "error" not in page.split("|", 1)[1].split("\n", 1)[0]  # no truth, no column


def test_page_of_a_known_field_shows_errors():
    error = {"error_mean_mm": 0.625, "error_p95_mm": 1.5, "error_max_mm": 3.25}
    page = BENCHMARK.page(result_of([ROWS[2] | error]), "accuracy-x")
    assert "| ours | 0.750 | 4.00 | 1.00 | 0.62 | 1.50 | 3.25 | 0.500 |" in page
    assert "deformed by smooth noise" in page


def test_picture_names_every_method_and_says_what_does_not_deform(tmp_path):
    still = {"pair": "p → q", "method": "affine", "dice": 0.2, "seconds": 1.0}
    rows = [still | {"sd_log_jacobian": 1e-7}, *ROWS]
    accuracy_plot(result_of(rows), tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert text.count("ANTs SyN") == text.count(">ours<") == 1  # in the legend of both plots
    assert text.count("affine: 0.200") == 1
    assert all(label in text for label in ("SDlogJ", "seconds per pair", "mean Dice"))


def test_seconds_of_the_registration_leave_out_what_is_around_it():
    stages = {"start-up": 50, "load": 40, "load network": 30, "metrics": 20, "save": 10}
    stages |= {"affine": 1, "features": 2, "network": 4, "refine": 8, "warp": 16}
    assert of_registration(stages) == 31
    assert of_network(stages) == 6
    assert of_network({"register": 1}) is None


def test_ours_is_asked_for_once_per_model_if_it_has_one(bundle):
    found = jobs_named("nothing,default,no-network", named_bundles([f"{bundle}:a", f"{bundle}:b"]))
    titles = ["no registration", "ParaMorph, a", "ParaMorph, b", "ParaMorph, no network"]
    assert [job.title for job in found] == titles
    assert [job.model for job in found[1:]] == [str(bundle), str(bundle), "none"]
    (alone,) = jobs_named("default", named_bundles([str(bundle)]))
    assert alone.title == "ParaMorph"


def test_titles_are_of_one_job_each():
    titles = [job.title for job in JOBS.values()]
    assert len(set(titles)) == len(titles)


def test_what_cannot_be_run_is_said_before_anything_is(bundle):
    with pytest.raises(BenchmarkError, match=r"--methods: expected some of nothing, .*, got magic"):
        jobs_named("nothing,magic", named_bundles([str(bundle)]))


def test_a_model_that_is_none_is_said(tmp_path):
    with pytest.raises(BundleError, match="expected a bundle"):
        named_bundles([f"{tmp_path / 'absent'}:label"])


def test_a_missing_peer_is_said(monkeypatch):
    monkeypatch.setitem(jobs.JOBS, "absent", Job("absent", "absent", "no-such-package-anywhere"))
    with pytest.raises(MissingDependencyError, match="found none; install it as benchmarks/README"):
        jobs_named("absent", {})


def test_a_method_that_fails_is_a_row(phantoms):
    case = labelled_pairs(phantoms)[0]
    pair = case.load()
    row = measure(Job("ours", model="/nowhere"), case, pair, threads=1, timeout_s=60)
    assert (row["pair"], row["method"]) == ("a → b", "ours")
    assert "expected a bundle" in row["error"]
    assert "dice" not in row


def test_a_field_that_cannot_be_judged_is_a_row(phantoms):
    case = labelled_pairs(phantoms)[0]
    pair = Case(case.fixed, case.moving).load()  # judged on the grid of the other image
    row = measure(JOBS["nothing"], case, pair, threads=1, timeout_s=60)
    assert "expected it on the grid of a_t1.nii.gz" in row["error"]


class Boaster(Job):
    """Writes no displacement at all, and the fixed labels as what it warped."""

    def run(self, task, threads, timeout_s):
        grid = load_volume(task.fixed).grid
        nothing = DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
        write_displacement(Path(task.out) / FIELD, nothing)
        shutil.copy(task.fixed_labels, Path(task.out) / WARPED_LABELS)
        return {"seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 1.0, "stages": {}}


def test_a_field_that_does_not_warp_labels_as_its_method_did_is_an_error(phantoms):
    case = labelled_pairs(phantoms)[0]
    pair = case.load()
    row = measure(Boaster("boaster"), case, pair, threads=1, timeout_s=60)
    assert row["dice_own_warp"] == 1
    assert row["error"] == "its own warp of the labels differs: its field was misread"


def test_a_whole_run_goes_on_where_it_was(phantoms, bundle, results):
    command = [str(phantoms), "--first", "1", "--name", "made-up"]
    command += ["--model", f"{bundle}:zero", "--threads", "1", "--methods"]
    assert accuracy.BENCHMARK.main([*command, "nothing,unrefined"]) == 0
    assert accuracy.BENCHMARK.main([*command, "nothing,unrefined,no-network", "--resume"]) == 0
    result = json.loads((results / "accuracy-made-up.json").read_text(encoding="utf-8"))
    nothing, unrefined, refined = result["rows"]
    assert unrefined["method"] == "ParaMorph, not refined"
    # The network does nothing, but the affine before it helps, and the refinement after it more.
    assert refined["dice"] - 0.02 > unrefined["dice"] > nothing["dice"] + 0.05
    assert 0 <= unrefined["network_seconds"] < unrefined["seconds"] < unrefined["job_seconds"]
    assert refined["network_seconds"] is None
    assert unrefined["peak_mb"] > 50
    page = (results / "accuracy-made-up.md").read_text(encoding="utf-8")
    assert f"| ParaMorph, not refined | {unrefined['dice']:.3f} |" in page
    assert (results / "accuracy-made-up.svg").exists()
    lines = (results / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["result"] for line in lines] == 2 * ["accuracy-made-up"]
    numbers = json.loads(lines[1])["numbers"]
    assert numbers["mean Dice, ParaMorph, not refined"] == unrefined["dice"]


def test_an_unknown_set_is_one_line(tmp_path, capsys):
    assert accuracy.BENCHMARK.main([str(tmp_path), "--set", "moon-rocks"]) == 1
    assert "--set: expected some of brain-t1-validation" in capsys.readouterr().err


def test_a_wrong_folder_is_one_line(tmp_path, capsys, bundle):
    assert (
        accuracy.BENCHMARK.main([str(tmp_path), "--methods", "nothing", "--model", str(bundle)])
        == 1
    )
    assert capsys.readouterr().err.startswith("accuracy.py: ")
