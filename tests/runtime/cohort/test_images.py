"""Which files of flat folders, trees and BIDS datasets a cohort takes for images."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramorph_rt.cohort.images import images_with_labels
from paramorph_rt.cohort.pairs import pairs_of_all, pairs_to_template
from paramorph_rt.errors import CohortError
from paramorph_rt.results import outputs


@pytest.fixture
def tree(tmp_path):
    """Makes empty files; names say all."""

    def make(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def found(*paths: Path, **options) -> dict[str, str | None]:
    """Each image and its label map, relative to the first path."""
    root = paths[0] if paths[0].is_dir() else paths[0].parent

    def relative(path: Path | None) -> str | None:
        return path and path.relative_to(root).as_posix()

    images = images_with_labels(paths, **options)
    return {relative(image.image): relative(image.labels) for image in images}


def test_flat_folder_of_bids_names(tree):
    """As a session saw it: four pairs instead of two, without a word."""
    root = tree(*(f"sub-{n}_{kind}.nii.gz" for n in "12" for kind in ("T1w", "dseg")))
    assert found(root) == {f"sub-{n}_T1w.nii.gz": f"sub-{n}_dseg.nii.gz" for n in "12"}
    assert len(pairs_of_all(images_with_labels([root]))) == 2


@pytest.mark.parametrize(
    "session", ["", "ses-1/"], ids=["without sessions", "with sessions"]
)  # fmt: skip
def test_bids_dataset_is_walked_to_its_anatomical_images(tree, session):
    image = session.replace("/", "_") + "T1w.nii.gz"
    root = tree(
        *(f"sub-{n}/{session}anat/sub-{n}_{image}" for n in ("01", "02")),
        f"sub-01/{session}anat/sub-01_{session.replace('/', '_')}T1w.json",
        f"sub-01/{session}func/sub-01_task-rest_bold.nii.gz",
        f"sub-01/{session}dwi/sub-01_dwi.nii.gz",
        *("dataset_description.json", "README.nii.gz", ".git/annex/x.nii.gz"),
        *("derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "code/y.nii"),
    )
    assert found(root) == {f"sub-{n}/{session}anat/sub-{n}_{image}": None for n in ("01", "02")}
    # The folder of one subject is a tree of the same kind.
    assert list(found(root / "sub-01")) == [f"{session}anat/sub-01_{image}"]


def test_label_maps_of_derivatives_are_found_when_they_are_named(tree):
    root = tree(
        *(f"raw/sub-{n}/anat/sub-{n}_{kind}.nii.gz" for n in "12" for kind in ("T1w", "T2w")),
        *(f"seg/sub-{n}/anat/sub-{n}_space-T1w_desc-aseg_dseg.nii.gz" for n in "12"),
        "seg/sub-1/anat/sub-1_space-MNI152NLin2009cAsym_dseg.nii.gz",
        "seg/sub-1/anat/sub-1_label-GM_probseg.nii.gz",
    )
    pairs = {
        image.image.name: image.labels and image.labels.name
        for image in images_with_labels([root / "raw"], label_folders=[root / "seg"])
    }
    assert pairs == {
        **{f"sub-{n}_T1w.nii.gz": f"sub-{n}_space-T1w_desc-aseg_dseg.nii.gz" for n in "12"},
        **{f"sub-{n}_T2w.nii.gz": None for n in "12"},
    }


def test_what_this_toolkit_and_others_write_is_told_by_its_name(tree):
    names = [name for name in outputs.PLAIN.own if name.endswith(".nii.gz")]
    assert len(names) == 7
    others = ("also_warped/t2.nii.gz", "antsWarp_1Warp.nii.gz", "antsWarp_1InverseWarp.nii.gz")
    bids = ("sub-1_space-T1w_desc-brain_mask.nii.gz", "sub-1_label-GM_probseg.nii.gz")
    root = tree(*names, *others, *bids, "x_mask.nii.gz", "sub-1_from-a_to-b_mode-image_xfm.nii.gz")
    assert found(root) == {outputs.WARPED: outputs.WARPED_LABELS}


def test_a_tree_of_equal_names_gives_each_pair_its_own(tree):
    root = tree(*(f"oasis/{n}/t1.nii.gz" for n in "ab"), "oasis/c/t1_labels.mha", "oasis/c/t1.mha")
    images = images_with_labels([root / "oasis"])
    names = [pair.name for pair in pairs_to_template(root / "oasis/a/t1.nii.gz", images)]
    assert names == ["b_t1", "c_t1"]
    assert images[-1].labels == root / "oasis/c/t1_labels.mha"


def test_results_that_lie_below_the_images_are_no_images(tree):
    root = tree("a.nii.gz", "b.hdr", "b.img", "out/pairs/a/warped.nii.gz")
    assert list(found(root, but=root / "out")) == ["a.nii.gz", "b.hdr"]


def test_longest_name_owns_the_image(tree):
    root = tree("a_t1.nii.gz", "a_labels.nii.gz", "a_t1_left.nii.gz", "a_t1_left_labels.nii.gz")
    assert found(root) == {
        "a_t1.nii.gz": "a_labels.nii.gz",
        "a_t1_left.nii.gz": "a_t1_left_labels.nii.gz",
    }


def test_images_are_files_as_well(tree):
    root = tree("a_t1.nii.gz", "a_labels.nii.gz")
    image, labels = root / "a_t1.nii.gz", root / "a_labels.nii.gz"
    assert found(image) == {"a_t1.nii.gz": None}
    assert found(image, labels) == {"a_t1.nii.gz": "a_labels.nii.gz"}


BAD = {
    "empty": ([], "expected a folder with images .* got none in it"),
    "empty dataset": (["sub-1/func/sub-1_bold.nii.gz"], "got none in anat below its subjects"),
    "labels alone": (["a_labels.nii.gz"], "expected at least one image, got only label maps"),
    "orphan": (["a.nii.gz", "b_labels.nii.gz"], "b_labels.nii.gz: expected its image beside it"),
    "several": (
        ["sub-1_T1w.nii.gz", "sub-1_desc-a_dseg.nii.gz", "sub-1_desc-b_dseg.nii.gz"],
        "sub-1_T1w.nii.gz: expected one label map, got sub-1_desc-a_dseg.nii.gz and sub-1_desc-b",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_sentence(tree, case):
    names, match = BAD[case]
    with pytest.raises(CohortError, match=match):
        images_with_labels([tree(*names)])


def test_what_is_not_there(tree):
    root = tree("a.nii.gz")
    with pytest.raises(CohortError, match="nowhere: expected an image or a folder, found none"):
        images_with_labels([root / "nowhere"])
    images = images_with_labels([root])
    with pytest.raises(CohortError, match="expected at least one pair, got none"):
        pairs_of_all(images)
    with pytest.raises(CohortError, match=r"a.nii.gz: expected a file as fixed, found none at"):
        pairs_to_template(root / "none.nii", images)


def test_a_label_map_of_no_image_of_a_dataset_is_told(tree, caplog):
    root = tree("sub-1_T1w.nii.gz", "sub-1_space-MNI_dseg.nii.gz")
    assert found(root) == {"sub-1_T1w.nii.gz": None}
    assert "sub-1_space-MNI_dseg.nii.gz: a label map of none of the images" in caplog.text
