from __future__ import annotations

from pathlib import Path

import pytest

from paramorph_rt.cli import main
from paramorph_rt.errors import EvaluationError
from paramorph_rt.images.label_names import load_label_names, names_of_labels

ITK_SNAP = """################################################
# ITK-SnAP Label Description File
    0     0    0    0        0  0  0    "Clear Label"
   17   255    0    0        1  1  1    "Left hippocampus, body"
   53     0  255    0      0.5  1  1    "Right hippocampus"
"""
FREESURFER = """#$Id: FreeSurferColorLUT.txt
#No. Label Name:                            R   G   B   A

0   Unknown                                 0   0   0   0
17  Left-Hippocampus                        220 216 20  0
53  Right-Hippocampus                       220 216 20  0
"""
LEFT, RIGHT = "Left hippocampus", "Right hippocampus"
TABLES = {
    "CSV": (f"label,name\n17,{LEFT}\n53,{RIGHT}\n", LEFT),
    "CSV in quotes": (f'label,name\n"17","{LEFT}, body"\n53,{RIGHT}\n', f"{LEFT}, body"),
    "CSV of a spreadsheet": (f"\ufeffLabel;Name\r\n17;{LEFT}\r\n53;{RIGHT}\r\n", LEFT),
    "CSV without headings": (f"17,{LEFT}\n53,{RIGHT}\n", LEFT),
    "CSV that an error message recommends": (f"17,{LEFT}\n", LEFT),
    "CSV with other headings": (f"Hemi,Code,Meaning\nL,17,x\nR,53,{RIGHT}\n", "L"),
    "Neuromorphometrics": (f"Label Number,Label Name,Class\n17,{LEFT},GM\n53,{RIGHT},\n", LEFT),
    "names headed label": (f"id,label\n17,{LEFT}\n53,{RIGHT}\n", LEFT),
    "numbers as a data frame saves them": (f"index,name\n17.0,{LEFT}\n53.0,{RIGHT}\n", LEFT),
    "BIDS": (f"index\tname\tabbreviation\n17\t{LEFT}\tHIP\n53\t{RIGHT}\tn/a\n", LEFT),
    "BIDS, other order": (f"name\tcolor\tindex\n{LEFT}\t#fff\t17\n{RIGHT}\t#000\t53\n", LEFT),
    "ITK-SNAP": (ITK_SNAP, "Left hippocampus, body"),
    "FreeSurfer": (FREESURFER, "Left-Hippocampus"),
    "MRIcron": ("17 Hippocampus_L 4101\n53 Hippocampus_R 4102\n", "Hippocampus_L"),
    "text": (f"17 {LEFT}\n53 {RIGHT}\n", LEFT),
    "text with commas": ("17 Left hippocampus, 2\n53 Right, 4\n", "Left hippocampus, 2"),
    "text with numbers at the end": ("17 Area 4\n53 Area 6\n", "Area 4"),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("name", ["names.csv", "names.tsv", "LUT.txt"])
def test_names_are_read_whatever_the_file_is_called(tmp_path, case, name):
    text, left = TABLES[case]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    found = load_label_names(tmp_path / name)
    assert found[17] == left
    assert set(found) - {0, 53} == {17}


def test_real_tables_are_read_whole(brains):
    colin = load_label_names(Path(__file__).parents[2] / "examples/colin27/aal.nii.txt")
    assert len(colin) == 116
    assert (colin[1], colin[116]) == ("Precentral_L", "Vermis_10")
    names = load_label_names(brains.parent / "label_names.csv")
    assert names[4] == "3rd Ventricle"
    assert len(names) > 130


BAD = {
    "empty": ("", "expected a table with a number and a name in each line, got an empty one"),
    "no names": ("a,b\n1,2\n", 'line 2: expected the number and the name of a label, got "1,2"'),
    "no numbers": ("label,name\nx,y\n", 'line 2: .*got "x,y"; complete the line, or remove it'),
    "prose": ("hippocampus\n", "expected a table with a number and a name .* got none"),
    "short row": ("label,name\n17,a\n18\n", 'line 3: .*got "18"'),
    "short row of text": ("17 a\n18\n", 'line 2: .*got "18"'),
    "empty name": ("label,name\n\n17,\n", 'line 3: .*got "17,"'),
    "long field": (f'label,name\n17,"{"x" * 200_000}"\n', r"cannot be read \(field larger"),
    "long line": (f"label,name\n{'x' * 200_000}\n", r"cannot be read|line 2: .*x…"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_sentence(tmp_path, case, capsys):
    text, match = BAD[case]
    file = tmp_path / "names.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError, match=match) as raised:
        load_label_names(file)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)
    image = str(tmp_path / "none.nii")
    words = ["--fixed", image, "--moving", image, "--out-dir", str(tmp_path / "out")]
    assert main(["infer", *words, "--label-names", str(file)]) == 1
    assert "names.csv" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "names.csv").write_bytes("17,Hippocampe gauché\n".encode("latin-1"))
    with pytest.raises(EvaluationError, match="other bytes; check"):
        load_label_names(tmp_path / "names.csv")
    with pytest.raises(EvaluationError, match="found none; check the path"):
        load_label_names(tmp_path / "none.csv")
    with pytest.raises(EvaluationError, match="got a folder"):
        load_label_names(tmp_path)


def test_only_labels_that_are_there_are_named():
    assert names_of_labels(["17", "99"], {17: LEFT, 53: RIGHT}) == {"17": LEFT}
