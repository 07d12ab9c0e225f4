"""The methods on a phantom pair of unlike orientations."""

from __future__ import annotations

import numpy as np
import pytest

import methods
from accuracy import Contender, measure
from evaluation import LabelledPair, evaluate, load_pair
from methods import Report, Task
from pairs import labelled_pairs
from paramorph.data import SubjectFiles
from paramorph_rt.field import DisplacementField


@pytest.fixture(scope="module")
def files(phantoms) -> tuple[SubjectFiles, SubjectFiles]:
    return labelled_pairs(phantoms)[0]


@pytest.fixture(scope="module")
def pair(files) -> LabelledPair:
    return load_pair(*files)


def in_a_child(method: str, files, pair) -> dict:
    row = measure(Contender(method, method), *files, pair, threads=1, timeout_s=300)
    assert "error" not in row, row["error"]
    return row


@pytest.fixture(scope="module")
def affine(files, pair) -> dict:
    ballast = np.ones(10**8)  # 800 MB in this process
    row = in_a_child("affine", files, pair)
    assert ballast.all()
    return row


def test_memory_is_that_of_the_child_alone(affine):
    assert 50 < affine["peak_mb"] < 600


def test_affine_undoes_a_part(files, pair, affine):
    nothing = in_a_child("nothing", files, pair)
    assert nothing["seconds"] == 0 < affine["seconds"]
    assert nothing["dice"] + 0.05 < affine["dice"]


def test_demons_undo_more_than_the_affine(files, pair, affine):
    found = in_a_child("demons", files, pair)
    assert found["dice"] > affine["dice"] + 0.02
    assert found["nonpositive_jacobian_percent"] == 0


def test_syn_undoes_more_and_warps_labels_itself_as_we_do_through_its_field(files, pair, affine):
    pytest.importorskip("ants", reason="needs antspyx, of the extra benchmarks")
    found = in_a_child("syn", files, pair)
    assert found["dice"] > affine["dice"] + 0.02
    assert found["dice_own_warp"] == pytest.approx(found["dice"], abs=0.002)


@pytest.mark.slow
def test_elastix_undoes_a_part(files, pair, tmp_path, monkeypatch):
    """In this process and with a tenth of its iterations, as its defaults take half a minute."""
    pytest.importorskip("itk", reason="needs itk-elastix, of the extra benchmarks")
    parameters = methods.elastix_parameters()
    parameters.SetParameter("MaximumNumberOfIterations", "25")
    monkeypatch.setattr(methods, "elastix_parameters", lambda: parameters)
    moving, fixed = files
    paths = (str(path) for path in (moving.image, fixed.image, moving.labels))
    report = Report()
    field = methods.elastix(Task("elastix", *paths, str(tmp_path), threads=1), report)
    assert report["seconds"] > 0
    untouched = DisplacementField(field.grid, np.zeros_like(field.vectors_mm))
    assert evaluate(field, pair)["dice"] > evaluate(untouched, pair)["dice"] + 0.05
