from __future__ import annotations

import pytest

from paramorph_rt.errors import EvaluationError
from paramorph_rt.label_names import load_label_names

ITK_SNAP = """################################################
# ITK-SnAP Label Description File
    0     0    0    0        0  0  0    "Clear Label"
    4   255    0    0        1  1  1    "3rd Ventricle"
   11     0  255    0        1  1  1    "Brain-Stem"
"""
FREESURFER = """#No. Label Name:          R   G   B   A

4   3rd-Ventricle   120 18 134 0
11  Brain-Stem      205 62 78  0
"""


@pytest.mark.parametrize(
    ("name", "text", "third"),
    [
        ("a.csv", "label,name\n4,3rd Ventricle\n11,Brain-Stem\n", "3rd Ventricle"),
        ("a.csv", "Label Number,Label Name,Class\n4,3rd Ventricle,CSF\n11,Brain-Stem,\n", None),
        ("a.tsv", "index\tname\tabbreviation\n4\t3rd Ventricle\tV3\n11\tBrain-Stem\tBS\n", None),
        ("a.txt", ITK_SNAP, None),
        ("LUT.txt", FREESURFER, "3rd-Ventricle"),
        ("a.txt", "4 3rd_Ventricle 2001\n11 Brain-Stem 2002\n", "3rd_Ventricle"),
    ],
)
def test_names_are_read(tmp_path, name, text, third):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = load_label_names(tmp_path / name)
    assert found[4] == (third or "3rd Ventricle")
    assert found[11] == "Brain-Stem"
    assert set(found) - {0} == {4, 11}


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "a,b\n1,2\n"), ("a.csv", "label,name\nx,y\n"), ("a.csv", ""), ("a.txt", "none\n")],
)
def test_a_file_without_names_is_one_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    match = r"a\.\w+: expected a table with columns label and name, .*convert it first\.$"
    with pytest.raises(EvaluationError, match=match):
        load_label_names(tmp_path / name)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(EvaluationError, match="found no file; check the path"):
        load_label_names(tmp_path / "a.csv")
