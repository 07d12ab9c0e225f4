from __future__ import annotations

import pytest

from pairs import labelled_pairs
from paramorph.data import DataError
from record import BenchmarkError


def names(pairs) -> list[tuple[str, str]]:
    return [(moving.name, fixed.name) for moving, fixed in pairs]


@pytest.fixture
def folder(tmp_path):
    for name in ("p", "q", "r"):
        (tmp_path / f"{name}_t1.nii.gz").touch()
        (tmp_path / f"{name}_labels.nii.gz").touch()
    (tmp_path / "unlabelled.nii.gz").touch()
    return tmp_path


def test_each_is_paired_with_the_next_and_the_last_with_the_first(folder):
    assert names(labelled_pairs(folder)) == [("p", "q"), ("q", "r"), ("r", "p")]


def test_a_table_says_which(folder, tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("fixed,moving\nr,p\np,q\n", encoding="utf-8")
    assert names(labelled_pairs(folder, table)) == [("p", "r"), ("q", "p")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moving,fixed\np,unlabelled\n", "got unlabelled; choose from p, q, r"),
        ("p,q\nq,r\n", "expected a CSV with the columns moving and fixed"),
        ("", "expected a CSV with the columns moving and fixed"),
        ("moving,fixed\np\n", "got None; choose from"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(folder, tmp_path, text, message):
    table = tmp_path / "pairs.csv"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError, match=message):
        labelled_pairs(folder, table)


def test_one_subject_is_no_pair(folder):
    for name in ("q", "r"):
        (folder / f"{name}_labels.nii.gz").unlink()
    with pytest.raises(DataError, match=r"expected at least two volumes with NAME_labels.*got 1"):
        labelled_pairs(folder)
