"""Transform files that are none: refused by one sentence, by whatever command reads them."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from .harness import check_refused, snapshot
from .images import GRID

BAD: dict[str, tuple[str, Callable[[Path], object]]] = {}


def bad(name: str):
    """A file of this name, that the function below writes."""

    def keep(write):
        BAD[f"{write.__name__}{Path(name).suffix}"] = name, write
        return write

    return keep


for _suffix in ("tfm", "txt", "mat", "h5", "lta", "mgz", "nii.gz"):
    for _what, _content in {
        "nothing": b"",
        "text": b"hello\n",
        "noise": np.random.default_rng(3).bytes(4000),
        "null_bytes": bytes(4000),
        "not_utf8": b"\xff\xfe1 0 0 0\n",
        "one_long_line": b"1 " * 10**6,
    }.items():
        BAD[f"{_what}.{_suffix}"] = (
            f"bad.{_suffix}",
            lambda path, content=_content: path.write_bytes(content),
        )
    BAD[f"fifo.{_suffix}"] = f"bad.{_suffix}", os.mkfifo
    BAD[f"device.{_suffix}"] = f"bad.{_suffix}", lambda path: path.symlink_to("/dev/zero")
    BAD[f"folder.{_suffix}"] = f"bad.{_suffix}", Path.mkdir
    BAD[f"missing.{_suffix}"] = f"bad.{_suffix}", lambda path: None
    BAD[f"long_name.{_suffix}"] = "x" * 300 + f".{_suffix}", lambda path: None


def _affine(**changes: object) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(changes.get("matrix", (1.0, 0, 0, 0, 1, 0, 0, 0, 1)))
    transform.SetTranslation(changes.get("translation", (1.0, 2, 3)))
    return transform


_TFM = """#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: 1 0 0 0 1 0 0 0 1 1 2 3
FixedParameters: 0 0 0
"""
for _what, (_before, _after) in {
    "nan": ("1 2 3", "nan 2 3"),
    "inf": ("1 2 3", "inf 2 3"),
    "singular": ("1 0 0 0 1 0 0 0 1 1", "0 0 0 0 0 0 0 0 0 1"),
    "too_few": ("Parameters: 1 0 0", "Parameters: 1"),
    "unknown": ("AffineTransform_double_3_3", "QuarkTransform_double_3_3"),
    "two_dimensions": ("AffineTransform_double_3_3", "AffineTransform_double_2_2"),
    "no_type": ("Transform: AffineTransform_double_3_3\n", ""),
    "words": ("1 2 3", "a b c"),
}.items():
    BAD[f"{_what}_parameters.tfm"] = (
        "bad.tfm",
        lambda path, pair=(_before, _after): path.write_text(_TFM.replace(*pair), encoding="utf-8"),
    )


def _text(kind: str, sizes: str) -> str:
    """A transform on a grid of these sizes, without the parameters that it needs."""
    lines = _TFM.replace("AffineTransform", kind).splitlines()[:3]
    grid = f"{sizes} 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
    return "\n".join([*lines, "Parameters: 0 0 0", f"FixedParameters: {grid}\n"])


for _kind, _sizes in (
    ("BSplineTransform", "-1 -1 -1"),
    ("BSplineTransform", "100000 100000 100000"),
    ("DisplacementFieldTransform", "100000 100000 100000"),
):
    BAD[f"{_kind}_{_sizes[:2]}.tfm"] = (
        "bad.tfm",
        lambda path, said=(_kind, _sizes): path.write_text(_text(*said), encoding="utf-8"),
    )


def _matlab(rows: int, *values: float, kind: int = 0, name: bytes = b"AffineTransform_double_3_3"):
    """Two variables of MATLAB's level 4; `rows` is what the first one announces."""
    variables = ((name, kind, rows, values), (b"fixed", 0, 3, (0.0, 0.0, 0.0)))
    return b"".join(
        struct.pack("<5i", sort, count, 1, 0, len(label) + 1)
        + label
        + struct.pack(f"<x{len(numbers)}d", *numbers)
        for label, sort, count, numbers in variables
    )


_AFFINE = (1.0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3)
for _what, _content in {
    "endless_rows": _matlab(2**30, *_AFFINE),
    "negative_rows": _matlab(-12, *_AFFINE),
    "too_few_rows": _matlab(3, 1.0, 2.0, 3.0),
    "nan_rows": _matlab(12, *[float("nan")] * 12),
    "a_kind_of_its_own": _matlab(12, *_AFFINE, kind=7777),
    "a_long_name": _matlab(12, *_AFFINE, name=b"x" * 10_000),
}.items():
    BAD[f"{_what}.mat"] = "bad.mat", lambda path, content=_content: path.write_bytes(content)


@bad("bad.h5")
def nan_field(path: Path) -> None:
    image = sitk.GetImageFromArray(np.full((6, 6, 6, 3), np.nan), isVector=True)
    sitk.WriteTransform(sitk.DisplacementFieldTransform(image), str(path))


@bad("bad.h5")
def cut(path: Path) -> None:
    sitk.WriteTransform(_affine(), str(path))
    path.write_bytes(path.read_bytes()[:-500])


@bad("bad.h5")
def flipped(path: Path) -> None:
    sitk.WriteTransform(_affine(), str(path))
    content = bytearray(path.read_bytes())
    content[::97] = bytes(len(content[::97]))
    path.write_bytes(content)


def _field(path: Path, vectors: np.ndarray, **header: object) -> None:
    image = nib.Nifti1Image(vectors.astype(np.float32), GRID.affine)
    image.header.set_intent("vector")
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)


_SHAPE = (*GRID.shape, 1, 3)


@bad("bad.nii.gz")
def nan_vectors(path: Path) -> None:
    _field(path, np.full(_SHAPE, np.nan))


@bad("bad.nii.gz")
def scalars(path: Path) -> None:
    _field(path, np.zeros(GRID.shape))


@bad("bad.nii.gz")
def four_components(path: Path) -> None:
    _field(path, np.zeros((*GRID.shape, 1, 4)))


@bad("bad.nii.gz")
def no_intent(path: Path) -> None:
    _field(path, np.zeros(_SHAPE), intent_code=0)


@bad("bad.nii.gz")
def no_orientation(path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(_SHAPE, np.float32), None)
    image.header.set_intent("vector")
    nib.save(image, path)


_LTA = """type      = 1
nxforms   = 1
mean      = 0.0 0.0 0.0
sigma     = 1.0
1 4 4
1 0 0 0
0 1 0 0
0 0 1 0
0 0 0 1
"""
for _what, (_before, _after) in {
    "no_type": ("type      = 1", "type ="),
    "nan": ("1 0 0 0\n", "nan 0 0 0\n"),
    "singular": ("1 0 0 0\n", "0 0 0 0\n"),
    "unknown_type": ("type      = 1", "type      = 14"),
    "several": ("nxforms   = 1", "nxforms   = 3"),
    "short": ("0 0 1 0\n0 0 0 1\n", ""),
    "words": ("1 0 0 0\n", "a b c d\n"),
    "voxels_of_nothing": ("type      = 1", "type      = 0"),
    "last_row": ("0 0 0 1\n", "0 0 0 7\n"),
}.items():
    BAD[f"{_what}.lta"] = (
        "bad.lta",
        lambda path, pair=(_before, _after): path.write_text(_LTA.replace(*pair), encoding="utf-8"),
    )


def _mgz(path: Path, shape=(6, 6, 6), spacing=1.0, value=0.0, keep: int | None = None) -> None:
    geometry = (spacing, 1.0, 1.0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    head = struct.pack(">7ih15f", 3 << 8 | 1, *shape, 3, 3, 1, 1, *geometry).ljust(284, b"\0")
    body = np.full((6, 6, 6, 3), value, ">f4").tobytes()
    content = gzip.compress(head + body + bytes(20))
    path.write_bytes(content[:keep])


@bad("bad.mgz")
def nan_geometry(path: Path) -> None:
    _mgz(path, spacing=float("nan"))


@bad("bad.mgz")
def nan_voxels(path: Path) -> None:
    _mgz(path, value=float("nan"))


@bad("bad.mgz")
def absurd_shape(path: Path) -> None:
    _mgz(path, shape=(1000, 1000, 1000))


@bad("bad.mgz")
def negative_shape(path: Path) -> None:
    _mgz(path, shape=(-6, 6, 6))


@bad("bad.mgz")
def cut_gzip(path: Path) -> None:
    _mgz(path, keep=60)


@bad("bad.mgz")
def no_tags(path: Path) -> None:
    _mgz(path)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_transform_is_refused_by_one_sentence_and_leaves_nothing(name, program, good, place):
    file, write = BAD[name]
    try:
        write(place / file)
    except OSError:
        assert len(file) > 255  # nobody can make it
    before = snapshot(place)
    command = ("transform", "convert", place / file, "--out", "out.tfm", "--quiet")
    outcome = program(*command, cwd=place)
    check_refused(outcome)
    assert snapshot(place) == before


@pytest.mark.parametrize("command", ["apply", "infer"])
@pytest.mark.parametrize("name", ["fifo.mat", "nan_parameters.tfm", "nan_field.h5", "noise.mgz"])
def test_whoever_reads_it(command, name, program, good, place):
    file, write = BAD[name]
    write(place / file)
    pair = ("-m", good / "moving.nii.gz", "-f", good / "fixed.nii.gz", "--quiet")
    if command == "infer":
        words = ("infer", *pair, "-o", "OUT", "--model", "none", "--initial-transform", file)
    else:
        words = ("transform", "apply", file, *pair, "--out", "o.nii.gz")
    check_refused(program(*words, cwd=place))
    assert {path.name for path in place.iterdir()} == {file}


def test_a_good_matlab_file_is_read(program, place):
    (place / "good.mat").write_bytes(_matlab(12, *_AFFINE))
    words = ("transform", "convert", "good.mat", "--out", "out.tfm", "--quiet")
    assert program(*words, cwd=place).code == 0
    assert sitk.ReadTransform(str(place / "out.tfm")).GetParameters() == _AFFINE
