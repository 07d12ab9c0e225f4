"""The peers on a phantom pair of unlike orientations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import peers
from accuracy import measure
from jobs import FIELD, JOBS, Task
from pairs import LabelledPair, evaluate, labelled_pairs
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.transforms.itk import read_displacement
from sets import Case


@pytest.fixture(scope="module")
def case(phantoms) -> Case:
    return labelled_pairs(phantoms)[0]


@pytest.fixture(scope="module")
def pair(case) -> LabelledPair:
    return case.load()


def in_a_child(method: str, case: Case, pair: LabelledPair, affine: str = "affine") -> dict:
    row = measure(JOBS[method], case, pair, threads=1, timeout_s=900, affine=affine)
    assert "error" not in row, row["error"]
    return row


@pytest.fixture(scope="module")
def affine(case, pair) -> dict:
    ballast = np.ones(10**8)  # 800 MB in this process
    row = in_a_child("affine", case, pair)
    assert ballast.all()
    return row


def test_memory_is_that_of_the_child_alone(affine):
    assert 50 < affine["peak_mb"] < 600


def test_affine_undoes_a_part(case, pair, affine):
    nothing = in_a_child("nothing", case, pair)
    assert 0 < nothing["seconds"] < nothing["job_seconds"]
    assert nothing["dice"] + 0.05 < affine["dice"]


def test_demons_undo_more_than_the_affine(case, pair, affine):
    found = in_a_child("demons", case, pair)
    assert found["dice"] > affine["dice"] + 0.02
    assert found["nonpositive_jacobian_percent"] == 0


@pytest.mark.parametrize(
    ("method", "module", "package"),
    [("syn", "ants", "antspyx"), ("greedy", "picsl_greedy", "picsl-greedy")],
)
@pytest.mark.parametrize("kind", ["affine", "rigid"])
def test_peers_undo_more_and_warp_labels_as_we_do_through_their_fields(
    method, module, package, kind, case, pair, affine
):
    pytest.importorskip(module, reason=f"needs {package}, of the extra benchmarks")
    found = in_a_child(method, case, pair, kind)
    assert found["dice"] > affine["dice"] + 0.02
    assert found["dice_own_warp"] == pytest.approx(found["dice"], abs=0.002)
    assert set(found["stages"]) >= {"start-up", "register", "warp", "metrics"}


def test_velocity_of_greedy_is_another_field(case, pair, affine):
    pytest.importorskip("picsl_greedy", reason="needs picsl-greedy, of the extra benchmarks")
    found = in_a_child("greedy-sv", case, pair)
    assert found["dice"] > affine["dice"] + 0.02
    assert found["sd_log_jacobian"] != in_a_child("greedy", case, pair)["sd_log_jacobian"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "module"), [("convexadam", "convexAdam"), ("fireants", "fireants")]
)
def test_peers_of_pytorch_undo_more_than_the_affine(method, module, case, pair, affine):
    pytest.importorskip(module, reason="is installed as benchmarks/README.md says")
    assert in_a_child(method, case, pair)["dice"] > affine["dice"] + 0.02


@pytest.mark.slow
def test_elastix_undoes_a_part(case, pair, tmp_path, monkeypatch):
    """In this process and with a tenth of its iterations, as its defaults take half a minute."""
    pytest.importorskip("itk", reason="needs itk-elastix, of the extra benchmarks")
    parameters = peers.elastix_parameters("affine")
    parameters.SetParameter("MaximumNumberOfIterations", "25")
    monkeypatch.setattr(peers, "elastix_parameters", lambda _kind: parameters)
    peers.elastix(Task.of(case, tmp_path), peers.Stopwatch({}))
    field = read_displacement(Path(tmp_path) / FIELD)
    untouched = DisplacementField(field.grid, np.zeros_like(field.vectors_mm))
    assert evaluate(field, pair)["dice"] > evaluate(untouched, pair)["dice"] + 0.05
    assert peers.mean_dice(Task.of(case, tmp_path)) == pytest.approx(
        evaluate(field, pair)["dice"], abs=0.01
    )


def test_a_label_that_is_lost_counts_as_0(case, pair, tmp_path):
    from paramorph_rt.images.volume import Volume, save_labels

    kept = np.where(pair.fixed_labels.data == 7, 0, pair.fixed_labels.data)
    save_labels(tmp_path / "warped_labels.nii.gz", Volume(kept, pair.fixed.grid, "warped"))
    found = peers.mean_dice(Task.of(case, tmp_path))
    assert found == pytest.approx(2 / 3)
