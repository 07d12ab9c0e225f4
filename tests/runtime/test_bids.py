from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from paramorph_rt import Registration
from paramorph_rt.errors import OutputError
from paramorph_rt.request import Inputs, Options
from paramorph_rt.results.bids import IGNORE, bids_names
from paramorph_rt.results.bids_sidecars import DATASET, Uris, is_skull_stripped, root_of
from paramorph_rt.results.outputs import check_outputs

from .phantoms import centred_grid, head, head_labels, volume_of

TEMPLATE = "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"
OUT = Path("derivatives")
OPTIONS = Options()


@pytest.mark.parametrize(
    ("moving", "fixed", "warped", "way"),
    [
        (
            "sub-01_ses-2_acq-x_desc-brain_T1w.nii.gz",
            TEMPLATE,
            "sub-01/ses-2/anat/sub-01_ses-2_acq-x_space-MNI152NLin2009cAsym_desc-brain_T1w.nii.gz",
            "sub-01_ses-2_acq-x_from-T1w_to-MNI152NLin2009cAsym_mode-image",
        ),
        (
            "sub-01_T2w.nii.gz",
            "sub-01_T1w.nii.gz",
            "sub-01/anat/sub-01_space-T1w_T2w.nii.gz",
            "sub-01_from-T2w_to-T1w_mode-image",
        ),
        (
            "sub-01_space-T1w_T2w.nii.gz",
            "sub-02_ses-a_T1w.nii.gz",
            "sub-01/anat/sub-01_space-sub02sesaT1w_T2w.nii.gz",
            "sub-01_from-T1w_to-sub02sesaT1w_mode-image",
        ),
        (
            "sub-01_task-rest_dir-AP_sbref.nii",
            "my atlas_v2.nrrd",
            "sub-01/func/sub-01_task-rest_dir-AP_space-myatlasv2_sbref.nii.gz",
            "sub-01_task-rest_dir-AP_from-sbref_to-myatlasv2_mode-image",
        ),
        (
            "patient 7/scan.nii.gz",
            "other/scan.nii.gz",
            "sub-scan/anat/sub-scan_space-scan_image.nii.gz",
            "sub-scan_from-scanmoving_to-scan_mode-image",
        ),
    ],
)
def test_names_follow_those_of_the_images(moving, fixed, warped, way):
    names = bids_names(Inputs(Path(moving), Path(fixed)), OPTIONS, OUT)
    assert names.warped == warped
    folder = warped.rpartition("/")[0]
    assert names.displacement == f"{folder}/{way}_xfm.nii.gz"
    assert names.affine == f"{folder}/{way}_desc-affine_xfm.txt"
    assert f"{folder}/{way}_xfm.json" in names.sidecars
    start, end = way.partition("_from-")[2].removesuffix("_mode-image").split("_to-")
    assert f"from-{end}_to-{start}_mode" in names.inverse


def test_what_goes_along_keeps_its_own_entities():
    inputs = Inputs(
        Path("sub-01_T1w.nii.gz"),
        Path(TEMPLATE),
        moving_labels=Path("sub-01_desc-aseg_dseg.nii.gz"),
        also=(Path("sub-01_FLAIR.nii.gz"), Path("t2.mha")),
        also_labels=(Path("lesion.nii.gz"),),
    )
    names = bids_names(inputs, Options(output_grid="fine grid.nii.gz"), OUT)
    stem = "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_res-finegrid"
    assert names.warped_labels == f"{stem}_desc-aseg_dseg.nii.gz"
    assert names.also_names == {
        "sub-01_FLAIR.nii.gz": f"{stem}_FLAIR.nii.gz",
        "t2.nii.gz": f"{stem}_desc-t2_image.nii.gz",
        "lesion.nii.gz": f"{stem}_desc-lesion_dseg.nii.gz",
    }
    assert "finegrid" in names.sidecars[f"{stem}_FLAIR.json"].content["Resolution"]


def test_series_and_its_reference_have_names_of_their_own():
    moving, series = Path("sub-01_task-rest_bold.nii.gz"), Options(apply_to_all=True)
    names = bids_names(Inputs(moving, Path(TEMPLATE)), series, OUT)
    assert names.series.endswith("_space-MNI152NLin2009cAsym_bold.nii.gz")
    assert names.warped.endswith("_space-MNI152NLin2009cAsym_boldref.nii.gz")
    names = bids_names(Inputs(Path("sub-01_T1map.nii.gz"), Path(TEMPLATE)), series, OUT)
    assert names.warped.endswith("_desc-reference_T1map.nii.gz")


def test_two_results_of_one_name_are_refused():
    same = (Path("a/sub-01_T2w.nii.gz"), Path("b/sub-01_T2w.nii.gz"))
    inputs = Inputs(Path("sub-01_T1w.nii.gz"), Path(TEMPLATE), also=same)
    with pytest.raises(OutputError, match=r"_T2w.nii.gz: expected a BIDS name for each result"):
        bids_names(inputs, OPTIONS, OUT)


def test_dataset_grows_by_subjects_and_force_replaces_only_ones_own(zero_bundle_path, tmp_path):
    fixed = volume_of(head, centred_grid("RAS", (44, 50, 42)), TEMPLATE)
    register, out = Registration(zero_bundle_path), tmp_path / "derivatives"
    results = {}
    for subject in ("01", "02"):
        moving = volume_of(head, centred_grid("LAS", (46, 52, 40)), f"sub-{subject}_T1w.nii.gz")
        labels = volume_of(head_labels, moving.grid, f"sub-{subject}_dseg.nii.gz")
        result = register(
            moving, fixed, labels, affine=False, also=[replace(moving, name="x.mha")], refine=0
        )
        inputs = Inputs(
            tmp_path / moving.name,
            tmp_path / TEMPLATE,
            moving_labels=tmp_path / labels.name,
            also=(tmp_path / "x.mha",),
        )
        names = bids_names(inputs, OPTIONS, out)
        result.save(out, names=names, extras={"report": lambda f: (f / "report.html").touch()})
        results[subject] = result, names
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    stem = "sub-02/anat/sub-02_"
    space, way = f"{stem}space-MNI152NLin2009cAsym", f"{stem}from-T1w_to-MNI152NLin2009cAsym"
    second = {
        *(f"{space}_{name}" for name in ("T1w.nii.gz", "T1w.json", "dseg.nii.gz", "dseg.json")),
        *(f"{space}_desc-x_image.{ending}" for ending in ("nii.gz", "json")),
        *(f"{way}_mode-image_{name}" for name in ("xfm.nii.gz", "xfm.json", "metrics.json")),
        *(f"{way}_mode-image_desc-affine_xfm.{ending}" for ending in ("txt", "json")),
        f"{way}_mode-image_report.html",
    }
    assert files == {
        DATASET,
        IGNORE,
        *second,
        *(name.replace("sub-02", "sub-01") for name in second),
    }
    sidecar = json.loads((out / f"{space}_T1w.json").read_text(encoding="utf-8"))
    assert sidecar == {
        "Description": "Warped by the transform among its sources",
        "SkullStripped": False,
        "Sources": ["bids:raw:sub-02_T1w.nii.gz", f"bids::{way}_mode-image_xfm.nii.gz"],
        "SpatialReference": f"bids:raw:{TEMPLATE}",
    }
    described = json.loads((out / DATASET).read_text(encoding="utf-8"))
    assert described["DatasetType"] == "derivative"
    assert described["DatasetLinks"] == {"raw": ".."}

    result, names = results["01"]
    with pytest.raises(
        OutputError, match=r"expected no earlier results, got sub-01/anat/sub-01_sp"
    ):
        check_outputs(out, False, names)
    (out / DATASET).write_text("mine", encoding="utf-8")
    result.save(out, force=True, names=names)
    assert not (out / names.report).exists()  # of the earlier run, and not made by this one
    assert second < {str(path.relative_to(out)) for path in out.rglob("*")}
    assert (out / DATASET).read_text(encoding="utf-8") == "mine"


def test_whether_the_skull_is_off_its_sidecar_says_or_its_name(tmp_path):
    image = tmp_path / "sub-1_T1w.nii.gz"
    assert not is_skull_stripped(image)
    assert is_skull_stripped(tmp_path / "sub-1_desc-brain_T1w.nii.gz")
    (tmp_path / "sub-1_T1w.json").write_text('{"SkullStripped": true}', encoding="utf-8")
    assert is_skull_stripped(image)


def test_a_file_belongs_to_its_dataset(tmp_path):
    image = tmp_path / "study/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    image.parent.mkdir(parents=True)
    assert root_of(image) == tmp_path / "study"
    assert root_of(tmp_path / "other/t1.nii.gz") == tmp_path / "other"
    (tmp_path / DATASET).write_text("{}", encoding="utf-8")
    assert root_of(image) == tmp_path


def test_uris_keep_the_names_that_the_description_gives(tmp_path):
    out = tmp_path / "study/derivatives/x"
    out.mkdir(parents=True)
    uri = Uris(out)
    assert uri(tmp_path / "study/sub-1/anat/a.nii") == "bids:raw:sub-1/anat/a.nii"
    assert uri(tmp_path / "tpl-MNI/t.nii") == "bids:tplMNI:t.nii"
    assert uri(tmp_path / "b/tpl-MNI/t.nii") == "bids:tplMNI1:t.nii"
    assert uri(out / "t.nii") == "bids::t.nii"
    links = {"raw": "../..", "tplMNI": "../../../tpl-MNI", "tplMNI1": "../../../b/tpl-MNI"}
    assert uri.links == links
    # Another run into the same folder, whose moving image is of another dataset.
    (out / DATASET).write_text(json.dumps({"DatasetLinks": links}), encoding="utf-8")
    again = Uris(out)
    assert again(tmp_path / "new/sub-1/anat/a.nii") == "bids:new:sub-1/anat/a.nii"
    assert again(tmp_path / "study/sub-2/anat/b.nii") == "bids:raw:sub-2/anat/b.nii"


def test_a_description_that_is_there_gets_the_links_that_it_lacks(zero_bundle_path, tmp_path):
    image = volume_of(head, centred_grid("RAS", (44, 50, 42)), "sub-1_T1w.nii.gz")
    result = Registration(zero_bundle_path)(image, image, affine=False)
    out = tmp_path / "out"
    out.mkdir()
    mine = {"Name": "mine", "DatasetType": "derivative", "DatasetLinks": {"atlas": "doi:1"}}
    (out / DATASET).write_text(json.dumps(mine), encoding="utf-8")
    inputs = Inputs(tmp_path / "s/sub-1/anat/sub-1_T1w.nii.gz", tmp_path / TEMPLATE)
    names = bids_names(inputs, OPTIONS, out)
    result.save(out, names=names)
    found = json.loads((out / DATASET).read_text(encoding="utf-8"))
    assert found == mine | {"DatasetLinks": names.shared[DATASET]["DatasetLinks"]}
    assert set(found["DatasetLinks"].values()) == {"doi:1", "../s", ".."}
