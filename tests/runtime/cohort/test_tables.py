from __future__ import annotations

import pytest

from paramorph_rt.cohort.pairs import Pair, pairs_of_table
from paramorph_rt.errors import CohortError
from paramorph_rt.request import Inputs

from .cohorts import A_TO_B, cohort, write_table


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_table_with_all_columns(subjects, separator, mark):
    header = ["name", "moving", "fixed", "moving_labels", "fixed_labels", "moving_mask", "also"]
    row = ["Ü 1", "a_t1.nii.gz", str(subjects / "b_t1.nii.gz"), "a_labels.nii.gz"]
    row += ["b_labels.nii.gz", "c_labels.nii.gz", "a_t1.nii.gz | c_t1.nii.gz"]
    lines = [separator.join([*header, "age"]), separator.join([*row, "61"]), "", separator * 7]
    table = write_table(subjects, mark + "\r\n".join(lines).encode())
    (pair,) = pairs_of_table(table)
    assert pair == Pair(
        "Ü 1",
        Inputs(
            subjects / "a_t1.nii.gz",
            subjects / "b_t1.nii.gz",
            moving_labels=subjects / "a_labels.nii.gz",
            fixed_labels=subjects / "b_labels.nii.gz",
            moving_mask=subjects / "c_labels.nii.gz",
            also=(subjects / "a_t1.nii.gz", subjects / "c_t1.nii.gz"),
        ),
        notes=(("age", "61"),),
    )


BAD_TABLES = {
    "empty": ("", "line 1: expected the columns moving and fixed, got none"),
    "header alone": ("moving,fixed\n", "expected a pair on each line, got none"),
    "no header": (f"{A_TO_B}\n", "line 1: expected the columns moving and fixed, got a_t1"),
    "column missing": ("moving,age\nx,1\n", "line 1: expected the columns moving and fixed, got"),
    "column twice": ("moving,fixed,moving\n", "line 1: expected each column once, got moving 2"),
    "almost a column": (
        f"moving,fixed,Moving label\n{A_TO_B},x\n",
        '"Moving label", which is nearly "moving_labels"',
    ),
    "short line": (f"moving,fixed\n{A_TO_B}\na_t1.nii.gz\n", "line 3: expected 2 cells"),
    "long line": (f"moving,fixed\n{A_TO_B},x\n", "line 2: expected 2 cells .* got 3"),
    "empty cell": ("moving,fixed\na_t1.nii.gz,\n", "line 2: expected a file as fixed, got none"),
    "no pair whose files are there": (
        "moving,fixed\nnone.nii,b_t1.nii.gz\nnone.nii,a_t1.nii.gz\n",
        r"line 2: expected a file as moving, found none at .*/none\.nii \(and 1 more\)",
    ),
    "same pair twice": (
        f"moving,fixed\n{A_TO_B}\n{A_TO_B}\n",
        "line 3: expected a name of its own for each pair, got a_t1_to_b_t1 as for .* line 2",
    ),
    "names that one folder cannot tell": (
        f"name,moving,fixed\nx,{A_TO_B}\nX,{A_TO_B}\n",
        "line 3: expected a name of its own for each pair, got X",
    ),
    "slash": (f"name,moving,fixed\na/b,{A_TO_B}\n", "line 2: expected a name that can be"),
    "parent": (f"name,moving,fixed\n..,{A_TO_B}\n", "line 2: expected a name that can be"),
    "line break in a name": (
        f'name,moving,fixed\n"a\nb",{A_TO_B}\n',
        r"line 3: expected a name that can be a folder's, got 'a\\nb'",
    ),
    "long name": (f"name,moving,fixed\n{'x' * 201},{A_TO_B}\n", "line 2: .* at most 200 bytes"),
    "fixed labels alone": (
        f"moving,fixed,fixed_labels\n{A_TO_B},b_labels.nii.gz\n",
        "line 2: expected moving_labels to compare fixed_labels with",
    ),
    "Latin-1": (
        f"moving,fixed\n{A_TO_B}\né,b\n".encode("latin-1"),
        "line 3: expected UTF-8 .*0xe9",
    ),
    "UTF-16": ("moving,fixed\n".encode("utf-16"), "line 1: expected UTF-8 text, got the byte 0xff"),
    "null byte": (f"moving,fixed\n{A_TO_B}\n\0,b\n", "line 3: expected text, got a null byte"),
    "open quote": (f'moving,fixed\n"{A_TO_B}\n', "line 2: expected 2 cells"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table_is_one_sentence_before_anything_runs(
    subjects, zero_bundle_path, tmp_path, capsys, case
):
    text, match = BAD_TABLES[case]
    with pytest.raises(CohortError, match=match):
        pairs_of_table(write_table(subjects, text))
    assert cohort(zero_bundle_path, tmp_path / "out", subjects / "pairs.csv") == 1
    error = capsys.readouterr().err
    assert error.startswith("paramorph-rt: ")
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_table_that_is_not_there(zero_bundle_path, tmp_path, capsys):
    assert cohort(zero_bundle_path, tmp_path / "out", tmp_path / "none.csv") == 1
    assert "none.csv: expected a CSV table, found none" in capsys.readouterr().err
