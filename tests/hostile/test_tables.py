"""Landmarks, names of labels, tables of pairs: refused by one sentence."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from .harness import check_bounded, check_refused, check_sentence, snapshot

_DEEP = "[" * 100_000 + "]" * 100_000
_MARKUPS = {
    "markups": [
        {
            "coordinateSystem": "LPS",
            "controlPoints": [
                {"label": "a", "position": [1, 2, 3]},
                {"label": "b", "position": [4, 5, 6]},
            ],
        }
    ]
}


def _markups(change) -> bytes:
    content = json.loads(json.dumps(_MARKUPS))
    change(content["markups"][0])
    return json.dumps(content).encode()


LANDMARKS: dict[str, tuple[str, bytes]] = {
    "empty": ("p.csv", b""),
    "only_comments": ("p.csv", b"# nothing\n"),
    "words": ("p.csv", b"x,y,z\na,b,c\nd,e,f\n"),
    "two_columns": ("p.csv", b"1,2\n3,4\n"),
    "short_row": ("p.csv", b"x,y,z\n1,2\n3,4,5\n"),
    "nan": ("p.csv", b"x,y,z\nnan,2,3\n4,5,6\n"),
    "inf": ("p.csv", b"x,y,z\ninf,2,3\n4,5,6\n"),
    "overflow": ("p.csv", b"x,y,z\n1e999,2,3\n4,5,6\n"),
    "long_cell": ("p.csv", b"x,y,z,label\n1,2,3," + b"x" * 200_000 + b"\n4,5,6,b\n"),
    "open_quote": ("p.csv", b'x,y,z\n"1,2,3\n4,5,6\n'),
    "null_bytes": ("p.csv", b"x,y,z\n1,2,3\0\n4,5,6\n"),
    "not_utf8": ("p.csv", b"x,y,z\n\xff,2,3\n4,5,6\n"),
    "noise": ("p.csv", np.random.default_rng(5).bytes(3000)),
    "another_number": ("p.csv", b"x,y,z\n1,2,3\n"),
    "unknown_system": ("p.fcsv", b"# CoordinateSystem = moon\n1,2,3\n4,5,6\n"),
    "other_columns": ("p.csv", b"a,b,c\n1,2,3\n4,5,6\n"),
    "no_json": ("p.mrk.json", b"{"),
    "deep_json": ("p.mrk.json", _DEEP.encode()),
    "list": ("p.mrk.json", b"[1]"),
    "number": ("p.mrk.json", b"5"),
    "null": ("p.mrk.json", b"null"),
    "two_markups": ("p.mrk.json", json.dumps({"markups": _MARKUPS["markups"] * 2}).encode()),
    "no_points": ("p.mrk.json", _markups(lambda m: m.pop("controlPoints"))),
    "points_as_words": ("p.mrk.json", _markups(lambda m: m.update(controlPoints=["a", "b"]))),
    "position_as_word": (
        "p.mrk.json",
        _markups(lambda m: m["controlPoints"][0].update(position="x")),
    ),
    "two_coordinates": (
        "p.mrk.json",
        _markups(lambda m: m["controlPoints"][0].update(position=[1, 2])),
    ),
    "json_nan": ("p.mrk.json", _markups(lambda m: None).replace(b"1, 2, 3", b"NaN, 2, 3")),
    "unknown_space": ("p.mrk.json", _markups(lambda m: m.update(coordinateSystem="XYZ"))),
    "undefined": (
        "p.mrk.json",
        _markups(lambda m: m["controlPoints"][0].update(positionStatus="undefined")),
    ),
}
LANDMARKS["labels_as_lists"] = (
    "p.mrk.json",
    _markups(lambda m: m["controlPoints"][0].update(label=[1], position=[1, 2])),
)
NAMES: dict[str, bytes] = {
    "empty": b"",
    "words": b"left\nright\n",
    "long_cell": b"label,name\n1," + b"x" * 200_000 + b"\n",
    "short_row": b"label,name\n1,left\n2\n",
    "no_number": b"label,name\nx,left\ny,right\n",
    "not_utf8": b"label,name\n1,caf\xe9\n",
    "noise": np.random.default_rng(6).bytes(3000),
    "half_a_label": b"label,name\n1,a\n1.5,b\n",
    "open_quote": b'label,name\n1,"left\n2,right\n',
}


def evaluate(good, *more):
    labels = ("--fixed-labels", good / "fixed_labels.nii.gz")
    moving = ("--moving-labels", good / "moving_labels.nii.gz")
    return ("evaluate", *labels, *moving, *more, "--quiet")


@pytest.mark.parametrize("name", LANDMARKS)
def test_bad_landmarks(name, program, good, place):
    file, content = LANDMARKS[name]
    (place / file).write_bytes(content)
    points = ("--fixed-landmarks", file, "--moving-landmarks", good / "moving.csv")
    space = ("--moving-landmark-space", "RAS")
    if file.endswith(".csv"):
        space += ("--fixed-landmark-space", "RAS")
    before = snapshot(place)
    outcome = program(*evaluate(good, *points, *space, "--json", "m.json"), cwd=place)
    if name == "open_quote" and outcome.code == 0:
        pytest.skip("read as what it may mean")
    check_refused(outcome)
    assert snapshot(place) == before


@pytest.mark.parametrize("name", NAMES)
def test_bad_names_of_labels(name, program, good, place):
    (place / "names.csv").write_bytes(NAMES[name])
    before = snapshot(place)
    outcome = program(*evaluate(good, "--label-names", "names.csv", "--csv", "t.csv"), cwd=place)
    if name in ("open_quote", "long_cell") and outcome.code == 0:
        return  # a name may have a quotation mark, and be long
    check_refused(outcome)
    assert snapshot(place) == before


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "missing"])
@pytest.mark.parametrize("option", ["--fixed-landmarks", "--label-names", "--transform"])
def test_tables_that_are_no_files(what, option, program, good, place):
    path = place / "table.csv"
    make = {"fifo": os.mkfifo, "folder": lambda p: p.mkdir(), "missing": lambda p: None}
    make.get(what, lambda p: p.symlink_to("/dev/zero"))(path)
    more = ("--moving-landmarks", good / "moving.csv") if "landmarks" in option else ()
    check_refused(program(*evaluate(good, option, path, *more), cwd=place))


def _table(good, *rows: str, header: str = "moving,fixed") -> bytes:
    return "\n".join([header, *rows, ""]).encode()


TABLES = {
    "empty": lambda good: b"",
    "one_line": lambda good: _table(good),
    "no_header": lambda good: f"{good}/moving.nii.gz,{good}/fixed.nii.gz\n".encode(),
    "twice": lambda good: _table(good, "a,b,c", header="moving,fixed,moving"),
    "nearly": lambda good: _table(good, "a,b,c", header="moving,fixed,moving label"),
    "short_row": lambda good: _table(good, "a"),
    "long_row": lambda good: _table(good, "a,b,c"),
    "empty_cell": lambda good: _table(good, "a,"),
    "all_missing": lambda good: _table(good, "a,b", "c,d"),
    "null": lambda good: _table(good, "a\0,b"),
    "not_utf8": lambda good: b"moving,fixed\n\xff,b\n",
    "noise": lambda good: np.random.default_rng(7).bytes(5000),
    "long_cell": lambda good: _table(good, "x" * 200_000 + ",b"),
    "name_with_slash": lambda good: _table(good, "../x,a,b", header="name,moving,fixed"),
    "name_with_dot": lambda good: _table(good, ".x,a,b", header="name,moving,fixed"),
    "name_too_long": lambda good: _table(good, "x" * 250 + ",a,b", header="name,moving,fixed"),
    "name_twice": lambda good: _table(good, "x,a,b", "X,c,d", header="name,moving,fixed"),
    "fixed_labels_alone": lambda good: _table(good, "a,b,c", header="moving,fixed,fixed_labels"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_of_pairs(name, program, good, place):
    (place / "pairs.csv").write_bytes(TABLES[name](good))
    before = snapshot(place)
    words = ("cohort", "pairs.csv", "--out-dir", "OUT", "--model", "none", "--quiet")
    check_refused(program(*words, cwd=place))
    assert snapshot(place) == before


@pytest.mark.parametrize("what", ["fifo", "/dev/zero", "folder", "missing"])
def test_a_table_that_is_no_file(what, program, place):
    path = place / "pairs.csv"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    words = ("cohort", what if what[0] == "/" else path, "--out-dir", "OUT", "--quiet")
    check_refused(program(*words, cwd=place), most_mb=600)


def test_one_bad_pair_leaves_the_others(program, good, place):
    """Each failure is a sentence of its own; what can be registered is."""
    os.mkfifo(place / "fifo.nii")
    (place / "zero.nii").symlink_to("/dev/zero")
    (place / "text.nii").write_text("no image", encoding="utf-8")
    rows = [
        f"{name},{moving},{good}/fixed.nii.gz,{also}"
        for name, moving, also in (
            ("good", good / "moving.nii.gz", ""),
            ("bar", good / "moving.nii.gz", "|"),
            *((bad, place / f"{bad}.nii", "") for bad in ("fifo", "zero", "text", "missing")),
        )
    ]
    (place / "pairs.csv").write_bytes(_table(good, *rows, header="name,moving,fixed,also"))
    words = ("cohort", "pairs.csv", "--out-dir", "OUT", "--model", "none", "--refine", "off")
    outcome = program(*words, "--no-affine", "--quiet", cwd=place)
    assert not outcome.timed_out
    assert outcome.code == 1, outcome.err
    assert {path.name for path in (place / "OUT/pairs").iterdir()} == {"good", "bar"}
    lines = outcome.err.splitlines()
    assert len(lines) == 5, outcome.err
    for bad in ("fifo", "zero", "text", "missing"):
        (line,) = [line for line in lines if line.startswith(f"{bad} failed: ")]
        check_sentence("paramorph-rt: " + line.removeprefix(f"{bad} failed: "))
    check_sentence(lines[-1])


def test_an_image_is_no_label_map(program, place):
    """It would take minutes, and mean nothing."""
    import nibabel as nib

    noise = np.random.default_rng(1).integers(0, 255, (60, 60, 60)).astype(np.uint8)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), place / "t1.nii.gz")
    words = ("evaluate", "--fixed-labels", "t1.nii.gz", "--moving-labels", "t1.nii.gz", "--quiet")
    check_refused(program(*words, cwd=place), "t1.nii.gz: expected a label map")


@pytest.mark.parametrize("label", [2**53 + 1, 2**60 + 1])
def test_labels_that_interpolation_would_change(label, program, place):
    import nibabel as nib

    labels = np.zeros((12, 12, 12), np.int64)
    labels[3:8, 3:8, 3:8] = label
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=np.int64), place / "l.nii.gz")
    words = ("evaluate", "--fixed-labels", "l.nii.gz", "--moving-labels", "l.nii.gz", "--quiet")
    check_refused(program(*words, cwd=place), "l.nii.gz: expected labels up to 2^53")


def test_labels_of_points_that_are_no_words(program, good, place):
    content = _markups(lambda m: m["controlPoints"][0].update(label=[1]))
    (place / "p.mrk.json").write_bytes(content)
    points = ("--fixed-landmarks", "p.mrk.json", "--moving-landmarks", "p.mrk.json")
    assert program(*evaluate(good, *points), cwd=place).code == 0


@pytest.mark.parametrize("command", ["cohort", "bids"])
def test_folders_in_circles(command, program, good, place):
    subject = place / "images/sub-01/anat"
    subject.mkdir(parents=True)
    (subject / "sub-01_T1w.nii.gz").write_bytes((good / "moving.nii.gz").read_bytes())
    (place / "images/sub-02").symlink_to(".")
    (place / "images/sub-03").symlink_to("sub-03")
    for name in ("here", "up", "root"):
        (subject / name).symlink_to({"here": ".", "up": "..", "root": place}[name])
    template = ("--template", good / "fixed.nii.gz", "--model", "none", "--refine", "off")
    words = ("cohort", "--images", "images", "--out-dir", "OUT", *template)
    if command == "bids":
        words = ("bids", "images", "OUT", "participant", *template)
    outcome = program(*words, "--quiet", "--no-affine", cwd=place)
    check_bounded(outcome)
    assert outcome.code == 0, outcome.err
