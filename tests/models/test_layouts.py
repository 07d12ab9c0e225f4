"""Small trees of each layout; the files are empty where only their names matter."""

from __future__ import annotations

import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from paramorph.data import DataConfig, DataError, load_split, prepare_subjects
from paramorph.data.published import LPBA40_LABELS
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import VolumeError

ZONES = "t2_anatomy_reader1.nii.gz"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def names(subjects):
    return [subject.name for subject in subjects]


def prostate158(root, cases):
    for case in cases:
        part = "prostate158_test/test" if case < 20 else "prostate158_train/train"
        folder = f"{part}/{case:03}"
        others = ("adc.nii.gz", "dwi.nii.gz", "t2_anatomy_reader2.nii.gz", "empty.nii.gz")
        touch(root, *(f"{folder}/{name}" for name in ("t2.nii.gz", ZONES, *others)))
    touch(root, "prostate158_train/train.csv", "prostate158_train/valid.csv")


def lpba40_of_transmatch(root):
    touch(root, "fixed.nii.gz")
    for n in range(1, 41):
        touch(root, f"label/S{n:02}.delineation.structure.label.nii.gz")
        if n > 1:
            part = "test" if n <= 10 else "train"
            touch(root, f"{part}/S{n:02}.delineation.skullstripped.nii.gz")


def lpba40_of_loni(root):
    for n in range(1, 41):
        case = f"delineation_space/S{n:02}/S{n:02}.delineation"
        touch(root, f"{case}.skullstripped.nii.gz", f"{case}.structure.label.nii.gz")


def lpba40_of_klein(root):
    for n in range(1, 41):
        for kind in ("", "_label"):
            folder = f"LPBA40_rigidly_registered{kind}_pairs"
            touch(root, f"{folder}/l{n}_to_l{n}.nii", f"{folder}/l{n}_to_l{n % 40 + 1}.nii")


def test_a_folder_may_come_with_one_for_validation(tmp_path):
    touch(tmp_path, "train/b.nii.gz", "train/a.nii", "train/a_labels.nii", "other/c.nii.gz")
    config = DataConfig(root=str(tmp_path / "train"))
    assert names(load_split(config).training) == ["a", "b"]
    assert load_split(config).validation == []
    assert load_split(replace(config, reference="b")).reference.name == "b"
    config = DataConfig(root=config.root, validation_root=str(tmp_path / "other"))
    assert names(load_split(config).validation) == ["c"]


def test_other_layouts_take_no_validation_folder(tmp_path):
    config = DataConfig(layout="lpba40", root=str(tmp_path), validation_root="other")
    with pytest.raises(DataError, match="validation_root: expected nothing with the layout lpba40"):
        load_split(config)


@pytest.mark.parametrize(
    ("layout", "root", "message"),
    [
        ("folders", "data", "layout: expected folder or csv or .*, got folders"),
        ("folder", "", "root: expected where the data lie, got nothing"),
        ("folder", "nowhere", "nowhere: expected a folder of volumes, found none"),
        ("csv", "nowhere.csv", r"nowhere\.csv: expected a CSV file in UTF-8, got .*No such file"),
        ("prostate158", "nowhere", "root: expected a folder, got nowhere"),
        ("prostate158", ".", r"expected CASE/t2\.nii\.gz with t2_anatomy_reader1\.nii\.gz beneath"),
        ("hph-pm", ".", r"expected CASE/t2\.nii\.gz with mask\.nii\.gz beneath it, found none"),
        ("lpba40", ".", r"expected S01\.delineation\.skullstripped\.nii\.gz beneath it, found no"),
    ],
)
def test_a_root_without_its_layout_is_refused(tmp_path, monkeypatch, layout, root, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        load_split(DataConfig(layout=layout, root=root))


def test_prostate158_validates_on_its_test_cases_first(tmp_path):
    prostate158(tmp_path, range(1, 159))
    split = load_split(DataConfig(layout="prostate158", root=str(tmp_path)))
    assert names(split.validation) == [f"{n:03}" for n in range(1, 33)]  # 20 % of 158
    assert names(split.training) == [f"{n:03}" for n in range(33, 159)]
    first = split.validation[0]
    assert first.image == tmp_path / "prostate158_test/test/001/t2.nii.gz"
    assert first.labels == tmp_path / f"prostate158_test/test/001/{ZONES}"


def test_a_partial_prostate158_is_split_in_the_same_proportion(tmp_path):
    prostate158(tmp_path, range(20, 159))
    split = load_split(DataConfig(layout="prostate158", root=str(tmp_path / "prostate158_train")))
    assert (len(split.training), len(split.validation)) == (111, 28)


@pytest.mark.parametrize("cases", [4, 5, 9])
def test_both_parts_of_a_split_can_form_pairs(tmp_path, cases):
    prostate158(tmp_path, range(1, cases + 1))
    split = load_split(DataConfig(layout="prostate158", root=str(tmp_path)))
    assert len(split.validation) == 2
    assert len(split.training) == cases - 2


def test_fewer_cases_than_two_pairs_are_refused(tmp_path):
    prostate158(tmp_path, range(3))
    with pytest.raises(DataError, match=r"at least two cases to train on and two to .*, found 3"):
        load_split(DataConfig(layout="prostate158", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (ZONES, r"021/t2\.nii\.gz: expected labels of the same case, found none"),
        ("t2.nii.gz", r"021/t2_anatomy_reader1\.nii\.gz: expected an image of the same case"),
    ],
)
def test_an_incomplete_case_is_named(tmp_path, missing, message):
    prostate158(tmp_path, range(20, 26))
    (tmp_path / "prostate158_train/train/021" / missing).unlink()
    with pytest.raises(DataError, match=message):
        load_split(DataConfig(layout="prostate158", root=str(tmp_path)))


def test_a_case_that_lies_there_twice_is_named(tmp_path):
    prostate158(tmp_path, range(20, 26))
    touch(tmp_path, "copy/022/t2.nii.gz")
    with pytest.raises(DataError, match=r"022/t2.nii.gz: expected one file for the case 022"):
        load_split(DataConfig(layout="prostate158", root=str(tmp_path)))


@pytest.mark.parametrize("tree", [lpba40_of_loni, lpba40_of_transmatch, lpba40_of_klein])
def test_lpba40_validates_on_its_first_ten(tmp_path, tree):
    tree(tmp_path)
    split = load_split(DataConfig(layout="lpba40", root=str(tmp_path)))
    assert names(split.validation) == [f"S{n:02}" for n in range(1, 11)]
    assert names(split.training) == [f"S{n:02}" for n in range(11, 41)]
    everyone = split.training + split.validation
    assert all("label" in str(s.labels.relative_to(tmp_path)) for s in everyone)
    assert not any("label" in str(s.image.relative_to(tmp_path)) for s in everyone)
    assert all(s.keep_labels == LPBA40_LABELS for s in everyone)
    if tree is lpba40_of_klein:  # each in its own space, not moved to the next
        assert split.training[0].image.name == "l11_to_l11.nii"


def test_lpba40_keeps_54_labels_in_left_and_right_pairs():
    assert len(LPBA40_LABELS) == len(set(LPBA40_LABELS)) == 54
    assert not {181, 182} & set(LPBA40_LABELS)
    left = [n for n in LPBA40_LABELS if n % 2]
    assert [n + 1 for n in left] == [n for n in LPBA40_LABELS if n % 2 == 0]


def analyze_of_loni(root, orientation):
    """Four cases as LONI has them: a header beside gzipped voxels, odd labels on the left."""
    axes = nib.orientations.axcodes2ornt(orientation)
    right, *others = np.meshgrid(*[np.arange(n) for n in (40, 12, 10)], indexing="ij")
    labels = np.where(others[0] > 3, np.where(right < 20, 21, 166), 0).astype(np.uint8)  # RAS
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), axes)
    for n in range(1, 5):
        image = (labels * 2 + others[1]).astype(np.int16)
        for kind, data in (("skullstripped", image), ("structure.label", labels)):
            path = root / f"S{n:02}/S{n:02}.delineation.{kind}.hdr"
            path.parent.mkdir(exist_ok=True)
            turned = nib.orientations.apply_orientation(data, back)
            nib.AnalyzeImage(np.ascontiguousarray(turned), None).to_filename(path)
            voxels = path.with_suffix(".img")
            path.with_suffix(".img.gz").write_bytes(gzip.compress(voxels.read_bytes()))
            voxels.unlink()
    return DataConfig(layout="lpba40", root=str(root))


@pytest.mark.parametrize("orientation", ["LAS", "RAS", "PSR"])
def test_lpba40_is_read_from_analyze_as_it_is_told_to_lie(tmp_path, orientation):
    config = analyze_of_loni(tmp_path, orientation)
    spec = InputSpec(GridSpec((40, 12, 10), (1.0, 1.0, 1.0), "RAS"), IntensitySpec(0, 100))

    def prepared(code):
        split = load_split(replace(config, analyze_orientation=code))
        assert names(split.validation) == ["S01", "S02"]
        options = {"report": len, "affine": False}
        one = split.reference
        return prepare_subjects([one], one, spec, tmp_path / "cache", **options)[0]

    found = prepared(orientation).labels
    middle = found[:, 2:-2, 2:-2]  # the network's grid is over the foreground
    assert middle[:15].max() == 21
    assert middle[25:].max() == 166
    with pytest.raises(VolumeError, match=r"got Analyze, .* data\.analyze_orientation"):
        prepared("")
    mirrored = orientation.translate(str.maketrans("LR", "RL"))
    with pytest.raises(VolumeError, match=r"further right by analyze_orientation .* R for L"):
        prepared(mirrored)
    with pytest.raises(DataError, match=r"\[data\] analyze_orientation: expected three letters"):
        prepared("LLL")
    voxels = next(tmp_path.rglob("S03*skullstripped.img.gz"))
    voxels.unlink()
    with pytest.raises(VolumeError, match=r"found no S03\.delineation\.skullstripped\.img"):
        prepared(orientation)


def test_the_54_labels_are_what_a_training_sees(tmp_path):
    axes = np.meshgrid(*[np.arange(12)] * 3, indexing="ij")
    ball = sum((a - 5.5) ** 2 for a in axes) < 25
    labels = np.where(ball, np.where(axes[0] < 4, 21, np.where(axes[0] < 8, 166, 181)), 0)
    for n in range(1, 5):
        case = tmp_path / f"S{n:02}.delineation"
        nib.save(nib.Nifti1Image(ball.astype(np.float32), np.eye(4)), f"{case}.skullstripped.nii")
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.eye(4)), f"{case}.structure.label.nii")
    split = load_split(DataConfig(layout="lpba40", root=str(tmp_path)))
    spec = InputSpec(GridSpec((12, 12, 12), (1.0, 1.0, 1.0), "RAS"), IntensitySpec(0, 100))
    reference = split.reference
    (subject,) = prepare_subjects([reference], reference, spec, tmp_path / "cache", report=len)
    assert set(np.unique(subject.labels)) == {0, 21, 166}


def test_an_in_house_set_validates_on_ten_of_110(tmp_path):
    for n in range(110):
        touch(tmp_path, f"case{n:03}/t2.nii", f"case{n:03}/mask.nii.gz")
    split = load_split(DataConfig(layout="hph-pm", root=str(tmp_path)))
    assert names(split.validation) == [f"case{n:03}" for n in range(10)]
    assert names(split.training) == [f"case{n:03}" for n in range(10, 110)]
    assert split.training[0].labels == tmp_path / "case010/mask.nii.gz"


def test_case_folders_may_be_links(tmp_path):
    for n in range(4):
        touch(tmp_path, f"store/{n}/t2.nii.gz", f"store/{n}/mask.nii.gz")
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / f"set/case{n}").symlink_to(tmp_path / f"store/{n}")
    split = load_split(DataConfig(layout="hph-pm", root=str(tmp_path / "set")))
    assert names(split.validation) == ["case0", "case1"]


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file beside two volumes and loads it."""
    touch(tmp_path, "images/a.nii.gz", "images/b.nii", "labels/a.nii.gz", "notes.txt")

    def load(text, encoding="utf-8"):
        (tmp_path / "subjects.csv").write_text(text, encoding=encoding)
        return load_split(DataConfig(layout="csv", root=str(tmp_path / "subjects.csv")))

    return load


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_lists_subjects(table, tmp_path, encoding):
    split = table(
        "image, labels, name, split\n"
        "images/a.nii.gz,labels/a.nii.gz,first,validation\n\n"
        f"{tmp_path}/images/b.nii,,,\n",
        encoding,
    )
    (first,), (b,) = split.validation, split.training
    assert (first.name, first.image, first.labels) == (
        "first",
        tmp_path / "images/a.nii.gz",
        tmp_path / "labels/a.nii.gz",
    )
    assert (b.name, b.image, b.labels) == ("b", tmp_path / "images/b.nii", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected columns among image, .* got none"),
        ("labels,name\n", "line 1: expected columns .* with image among them, got labels, name"),
        ("image;labels\n", "line 1: expected columns .* got image;labels; .* by commas"),
        ("image,label\n", "line 1: expected columns .* got image, label"),
        ("image,image\n", "line 1: expected columns .* got image, image"),
        ("image\n", r"subjects\.csv: expected a subject to train on, found none"),
        ("image,split\nimages/a.nii.gz,validation\n", "expected a subject to train on, found none"),
        ("image\nimages/a.nii.gz,x\n", "line 2: expected 1 cells as in line 1, got 2"),
        ("image,name\n\n,x\n", "line 3: expected an image, got an empty cell"),
        ("image\nimages/c.nii\n", r"line 2: expected a volume at .*images/c\.nii, found none"),
        (
            "image\nnotes.txt\n",
            r"line 2: expected a \.nii, \.nii\.gz or \.hdr file, got .*notes\.txt",
        ),
        ("image,labels\nimages/b.nii,labels/b.nii\n", "line 2: expected a volume at .*labels/b"),
        ("image,name\nimages/b.nii,x/y\n", "line 2: expected a name fit for a file, got x/y"),
        (
            "image\nimages/a.nii.gz\nlabels/a.nii.gz\n",
            "line 3: expected a name of its own, got a as in line 2; fill the column name",
        ),
        (
            "image,split\nimages/a.nii.gz,test\n",
            "line 2: expected training or validation as split, got test",
        ),
        ('image\n"images/a.nii.gz\n', r"subjects\.csv: expected a CSV file in UTF-8, got unexpect"),
    ],
)
def test_a_defect_of_a_csv_is_named_with_its_line(table, text, message):
    with pytest.raises(DataError, match=message):
        table(text)


def test_a_csv_of_another_encoding_is_refused(table):
    with pytest.raises(DataError, match=r"subjects\.csv: expected a CSV file in UTF-8, got 'utf-8"):
        table("image,name\nimages/b.nii,Größe\n", "latin-1")
