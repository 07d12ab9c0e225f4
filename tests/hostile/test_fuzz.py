"""Anything at all: bytes turned at random, and sentences that any error must make."""

from __future__ import annotations

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramorph_rt.errors import ParamorphError, VolumeError, explained, one_line
from paramorph_rt.images.landmarks import load_landmarks
from paramorph_rt.images.volume import load_labels, load_volume
from paramorph_rt.results.json_files import json_text
from paramorph_rt.system import files, staging
from paramorph_rt.transforms.formats import read_transform

from .harness import SCALE
from .images import _MHA, _NRRD, DATA, nifti

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = settings(
    max_examples=50 * SCALE,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
_HEADER = 352
#: Places and values of bytes that are turned into others.
TURNED = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)


def turned(content: bytes, changes: list[tuple[int, int]], within: int) -> bytes:
    found = bytearray(content)
    for place, value in changes:
        found[place % min(within, len(found))] = value
    return bytes(found)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def check(load, path) -> None:
    """What is loaded can be used; what is not is refused by one sentence."""
    volume = told = None
    try:
        volume = load(path)
    except ParamorphError as err:
        told = str(err)
    if volume is None:
        assert ": expected " in told
    else:
        assert np.isfinite(volume.data).all()
        assert np.isfinite(volume.grid.affine).all()
        assert abs(np.linalg.det(volume.grid.affine)) > 0


@SETTINGS
@given(changes=TURNED)
@pytest.mark.parametrize("load", [load_volume, load_labels])
def test_headers_of_nifti(changes, load, scratch):
    path = scratch / "v.nii"
    path.write_bytes(turned(nifti(np.rint(DATA / 50)), changes, _HEADER))
    check(load, path)


@SETTINGS
@given(changes=TURNED)
def test_bytes_of_gzip(changes, scratch):
    path = scratch / "v.nii.gz"
    path.write_bytes(turned(gzip.compress(nifti(), 1), changes, 2**20))
    check(load_volume, path)


@SETTINGS
@given(changes=TURNED, kind=st.sampled_from([("v.nrrd", _NRRD + "\n"), ("v.mha", _MHA)]))
def test_headers_in_text(changes, kind, scratch):
    name, text = kind
    path = scratch / name
    path.write_bytes(turned(text.encode(), changes, len(text)) + DATA.tobytes(order="F"))
    check(load_volume, path)


@SETTINGS
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@pytest.mark.parametrize("suffix", ["csv", "fcsv", "mrk.json", "txt", "lta", "mat"])
def test_tables_and_texts(content, suffix, scratch):
    path = scratch / f"x.{suffix}"
    path.write_bytes(content)
    read = read_transform if suffix in ("lta", "mat") else load_landmarks
    with pytest.raises(ParamorphError, match=": expected "):
        read(path)


@SETTINGS
@given(
    error=st.sampled_from(
        [
            OSError(28, "No space left on device", "/x/y"),
            PermissionError(13, "Permission denied", "a\nb"),
            FileNotFoundError(2, "No such file or directory"),
            MemoryError(),
            RecursionError("maximum"),
            UnicodeEncodeError("ascii", "×", 0, 1, "ordinal not in range"),
            RuntimeError("can't start new thread"),
            VolumeError("x: expected y, got z; do."),
        ]
    )
)
def test_what_users_cause_is_a_sentence(error):
    sentence = explained(error)
    assert sentence is not None
    assert one_line(sentence).isprintable()
    assert "expected" in sentence


def test_what_they_do_not_is_none():
    assert explained(ZeroDivisionError("by us")) is None


@SETTINGS
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    )
)
def test_json_is_json_for_everybody(content):
    def refuse(name):
        raise AssertionError(name)

    json.loads(json_text({"x": content}), parse_constant=refuse)


@SETTINGS
@given(size=st.integers(0, 2**40))
def test_what_a_file_may_hold_is_bounded(size):
    assert files.most_bytes(size, False) == size
    most = files.most_bytes(size)
    assert most <= files.MAX_DEFLATE_RATIO * size
    assert most <= max(files.LARGE_BYTES, files.MAX_LARGE_RATIO * size)


@SETTINGS
@given(
    names=st.lists(
        st.lists(st.sampled_from(["a", "b", "c.txt", "metrics.json"]), min_size=1, max_size=3).map(
            "/".join
        ),
        unique=True,
        max_size=6,
    ),
    there=st.lists(st.sampled_from(["a", "b", "metrics.json", "a/a", "a/b/c.txt"]), unique=True),
)
def test_files_replace_others_together_or_not_at_all(names, there, tmp_path_factory):
    """Whatever is in the way: a file where a folder belongs changes nothing."""
    folder = tmp_path_factory.mktemp("together")
    write(folder, there, "old")
    before = contents(folder)
    with staging.staging_folder(folder) as home:
        write(home, names, "new")
        new = contents(home)
        try:
            staging.replace_together(home, folder, [], ("metrics.json",))
        except OSError:
            assert {k: v for k, v in contents(folder).items() if ".para" not in k} == before
        else:
            after = {k: v for k, v in contents(folder).items() if ".para" not in k}
            before.pop("metrics.json", None)
            assert after == before | new


def write(folder, names, text) -> None:
    for name in names:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError:  # one of them is the folder of another
            continue


def contents(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("plan", ["../../outside", "/etc", "a/../../../b"])
def test_a_plan_of_somebody_else_moves_nothing(plan, tmp_path):
    """Who can write into a folder cannot make the next run delete elsewhere."""
    folder = tmp_path / "OUT"
    with staging.staging_folder(folder) as home:
        left = folder / home.name
        name = left.name
    folder.mkdir(exist_ok=True)
    (tmp_path / "outside").write_text("mine", encoding="utf-8")
    left = folder / name
    left.mkdir()
    content = {"folder": "..", "remove": [plan, "../outside"], "last": []}
    (left / ".plan.json").write_text(json.dumps(content), encoding="utf-8")
    staging.sweep(folder)
    assert (tmp_path / "outside").exists()


def test_nibabel_agrees_on_what_is_good(scratch):
    """The header is read by ourselves; the numbers are those that nibabel reads."""
    path = scratch / "n.nii.gz"
    image = nib.Nifti1Image((DATA * 10).astype(np.int16), np.diag([2, 2, 3, 1.0]))
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, path)
    np.testing.assert_allclose(load_volume(path).data, nib.load(path).get_fdata(), rtol=1e-6)
