"""Checks of a pair before, the choice of a model, and the score of the result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.eulerangles import euler2mat

from paramorph_rt import Registration
from paramorph_rt.bundle import NO_MODEL, bundle_path, candidates, default_bundle_path, load_bundle
from paramorph_rt.cli import main
from paramorph_rt.errors import BundleError
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.images.volume import Volume, load_volume, save_labels, save_volume
from paramorph_rt.quality import checks
from paramorph_rt.quality.choice import choose
from paramorph_rt.quality.domain import Domain, domain_of, map_from_stored, misfits, stored_map
from paramorph_rt.quality.looks import likeness, look_of
from paramorph_rt.quality.score import coefficients, score_of
from paramorph_rt.report.tables import verdict

from .conftest import SHARED_DATA
from .phantoms import (
    centred_grid,
    head,
    head_labels,
    read_manifest,
    replace_file,
    volume_of,
    write_bundle,
    write_manifest,
)

SHAPE = (48, 56, 44)
RAS = centred_grid("RAS", SHAPE)
COLIN = Path(__file__).parents[2] / "examples/colin27/ch2bet.nii.gz"


def uneven(points: np.ndarray) -> np.ndarray:
    """Brighter inside, above and in front, so that contrast and pose matter."""
    x, y, z = np.moveaxis(points, -1, 0)
    radius = (x / 18) ** 2 + (y / 22) ** 2 + (z / 16) ** 2
    bright = 70 + 100 * (1 - radius) + 2 * z + y + 0.2 * x
    return np.where(radius < 1, bright, 0).astype(np.float32)


def image(function=uneven, orientation: str = "RAS", name: str = "image.nii") -> Volume:
    shape = {"RAS": SHAPE, "PIR": (56, 44, 48)}[orientation]
    return volume_of(function, centred_grid(orientation, shape), name)


def changed(volume: Volume, change) -> Volume:
    return replace(volume, data=np.ascontiguousarray(change(volume.data), dtype=np.float32))


@pytest.fixture(scope="module")
def domain() -> Domain:
    """Of images like `uneven`."""
    look = look_of(image())
    volume = (0.7 * look.volume_ml, 1.4 * look.volume_ml)
    return Domain("uneven heads", volume, 3.0, (0.0, 0.2), 0.5, look.ranks)


def names(flags) -> list[str]:
    return [flag.name for flag in flags]


# --- looks


def test_a_look_is_what_can_be_worked_out_by_hand():
    look = look_of(image())
    ellipsoid_ml = 4 / 3 * np.pi * 18 * 22 * 16 / 1000
    assert look.volume_ml == pytest.approx(ellipsoid_ml, rel=0.02)
    assert look.extent_mm == pytest.approx((36, 44, 32), abs=2)
    assert look.spacing_mm == (1, 1)
    assert look.at_border == 0
    # Brighter to the top and front: so are the ranks.
    assert np.nanmean(look.ranks[:, :, 12:]) > np.nanmean(look.ranks[:, :, :8]) + 0.1
    assert np.nanmean(look.ranks[:, 14:]) > np.nanmean(look.ranks[:, :10]) + 0.05


def test_maps_mind_neither_brightness_nor_size_nor_storage():
    look = look_of(image()).ranks
    for other in (
        changed(image(), lambda data: data**2 + 0 * data),
        image(lambda points: uneven(points * 1.3)),
        image(orientation="PIR"),
    ):
        assert likeness(look, look_of(other).ranks) > 0.97


@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_maps_mind_contrast_and_pose(orientation):
    look, other = look_of(image()).ranks, image(orientation=orientation)
    inverted = changed(other, lambda data: np.where(data > 0, 250 - data, 0))
    assert likeness(look, look_of(inverted).ranks) < 0  # the rim is darker in both
    above = other.grid.orientation.index("S" if "S" in other.grid.orientation else "I")
    upside_down = changed(other, lambda data: np.flip(data, above))
    assert likeness(look, look_of(upside_down).ranks) < 0.8
    assert likeness(look, np.flip(look_of(upside_down).ranks, 2)) > 0.95


# --- checks of a pair


def test_ordinary_images_have_no_flags():
    moving, fixed = look_of(volume_of(head, RAS)), look_of(image())
    assert not [*checks.content(moving, "moving"), *checks.content(fixed, "fixed")]
    assert not list(checks.of_pair(fixed, look_of(image(lambda p: uneven(p * 1.2)))))
    assert not list(checks.identical(image(), volume_of(head, RAS)))


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda data: np.where(data > 110, 2, np.where(data > 0, 1, 0)), "content"),
        (lambda data: np.where(data > 0, 100, 0), "content"),
        (lambda data: np.where(data > 0, data, 60), "background"),
        (lambda data: np.random.default_rng(0).random(data.shape) * (data > 0) + 1, "noise"),
    ],
    ids=["label map", "ball", "grey background", "noise"],
)
def test_what_is_no_scan_is_told(change, flag):
    (found,) = checks.content(look_of(changed(image(name="odd.nii"), change)), "moving")
    assert (found.name, found.of) == (flag, "moving")
    assert found.sentence.startswith("odd.nii: expected")


def test_the_same_image_twice_is_told():
    (found,) = checks.identical(image(name="a.nii"), image(name="b.nii"))
    assert found.sentence == (
        "a.nii: expected another image than b.nii, got the same voxels; check the paths."
    )


def test_other_sizes_and_swapped_axes_are_told():
    fixed = look_of(image(name="fixed.nii"))
    small = look_of(image(lambda points: uneven(points * 2.3)))
    (found,) = checks.of_pair(small, fixed)
    assert (found.name, found.of) == ("size", "pair")
    assert found.value < found.limit
    turned = look_of(changed(image(name="turned.nii"), lambda data: data[:, :, ::-1]))
    (found,) = checks.of_pair(turned, fixed)
    assert "turned.nii: expected to lie as fixed.nii does" in found.sentence
    assert "top and bottom" in found.sentence
    assert not list(checks.of_pair(turned, fixed, poses=False))


# --- the model's domain


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda v: v, None),
        (lambda v: changed(v, lambda data: np.where(data > 0, 250 - data, 0)), "contrast"),
        (lambda v: changed(v, lambda data: data[:, :, ::-1]), "orientation"),
        (lambda v: changed(v, lambda data: data[:, ::-1, ::-1]), "orientation"),
        (lambda v: image(lambda points: uneven(points * 0.85)), "large"),
        (lambda v: image(lambda points: uneven(points * 1.3)), "small"),
        (lambda v: volume_of(uneven, centred_grid("RAS", (48, 56, 11), (1, 1, 4))), "coarse"),
        (lambda v: volume_of(uneven, centred_grid("RAS", (24, 30, 22))), "border"),
    ],
)
def test_what_a_model_was_not_made_for_is_told(domain, change, flag):
    look = look_of(change(image(name="x.nii")))
    if flag == "border":  # a cut-out fills its image whatever it shows
        domain = replace(domain, ranks=None, volume_ml=None)
    assert names(misfits(look, "fixed", domain)) == ([flag] if flag else [])


def structured(points: np.ndarray) -> np.ndarray:
    """With folds, by which a tilt shows."""
    x, y, z = np.moveaxis(points, -1, 0)
    folds = 60 * np.cos(x / 3) * np.sin(y / 4 + 1) * np.cos(z / 3 + 0.5)
    return np.where(uneven(points) > 0, uneven(points) + folds, 0).astype(np.float32)


@pytest.mark.parametrize("degrees", [(15, 0, 0), (0, -20, 0), (8, -12, 15)])
@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_a_tilted_head_is_of_its_kind_all_the_same(domain, degrees, orientation):
    domain = replace(domain, ranks=look_of(image(structured)).ranks, least_likeness=0.9)
    rotation = euler2mat(*np.deg2rad(degrees)[::-1])
    tilted = image(lambda points: structured(points @ rotation), orientation)
    assert likeness(look_of(tilted).ranks, domain.ranks) < 0.9
    assert names(misfits(look_of(tilted), "moving", domain)) == []
    inverted = changed(tilted, lambda data: np.where(data > 0, 250 - data, 0))
    assert names(misfits(look_of(inverted), "moving", domain)) == ["contrast"]


def test_a_tilted_brain_is_registered_by_the_model_of_brains():
    brain = load_volume(COLIN)
    domain = domain_of(load_bundle(default_bundle_path()))
    rotation = np.eye(4)
    rotation[:3, :3] = euler2mat(*np.deg2rad((12, -9, 6)))
    tilted = look_of(
        replace(brain, data=resample_to_grid(brain, brain.grid, rotation).astype(np.float32))
    )
    assert likeness(tilted.ranks, domain.ranks) < domain.least_likeness
    assert names(misfits(tilted, "moving", domain)) == []


def test_a_mirrored_image_is_told_by_its_asymmetry(domain):
    def lopsided(points):
        x, y, _ = np.moveaxis(points, -1, 0)
        return uneven(points) + np.where(uneven(points) > 0, 25 * np.sin(x / 8) * np.cos(y / 9), 0)

    def mostly(points):
        return 0.7 * uneven(points) + 0.3 * lopsided(points)

    domain = replace(domain, ranks=look_of(image(mostly)).ranks)
    assert names(misfits(look_of(image(mostly)), "moving", domain)) == []
    mirrored = changed(image(mostly), lambda data: data[::-1])
    assert names(misfits(look_of(mirrored), "moving", domain)) == ["left_right"]


def test_maps_come_through_bytes():
    ranks = look_of(image()).ranks
    back = map_from_stored(stored_map(ranks))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(ranks))
    np.testing.assert_allclose(np.nan_to_num(back), np.nan_to_num(ranks), atol=0.002)


def with_domain(folder: Path, entry: dict, ranks: np.ndarray | None = None) -> Path:
    if ranks is not None:
        nib.save(nib.Nifti1Image(stored_map(ranks), np.eye(4)), folder / "domain.nii.gz")
        replace_file(folder, "domain.nii.gz", (folder / "domain.nii.gz").read_bytes())
        entry = entry | {"map": "domain.nii.gz"}
    write_manifest(folder, read_manifest(folder) | {"domain": entry})
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_bundle(tmp_path / "bundle", np.zeros((3, 20, 24, 16), np.float32))


def test_a_bundle_says_its_domain(bundle, domain):
    assert domain_of(load_bundle(bundle)) is None
    entry = {"of": "heads", "volume_ml": [10, 20], "spacing_mm": 3, "least_likeness": 0.4}
    found = domain_of(load_bundle(with_domain(bundle, entry, domain.ranks)))
    assert (found.of, found.volume_ml, found.spacing_mm) == ("heads", (10, 20), 3)
    assert (found.at_border, found.least_likeness) == (None, 0.4)
    assert likeness(found.ranks, domain.ranks) > 0.999


@pytest.mark.parametrize(
    ("entry", "ranks"),
    [({}, None), ({"of": "x", "volume_ml": [1]}, None), ({"of": "x"}, np.zeros((3, 4, 5)))],
)
def test_a_domain_that_cannot_be_used_is_refused(bundle, entry, ranks):
    with pytest.raises(BundleError, match=r"^known-displacement: expected a domain as export"):
        domain_of(load_bundle(with_domain(bundle, entry, ranks)))


def test_an_altered_or_broken_map_is_refused(bundle, domain):
    with_domain(bundle, {"of": "x"}, domain.ranks)
    replace_file(bundle, "domain.nii.gz", b"no image")
    with pytest.raises(BundleError, match="expected a domain as export"):
        domain_of(load_bundle(bundle))
    (bundle / "domain.nii.gz").write_bytes(b"My image")
    with pytest.raises(BundleError, match="expected SHA-256"):
        domain_of(load_bundle(bundle))


# --- the choice


def model(name: str, domain: Domain | None, comes_along: bool = True) -> SimpleNamespace:
    folder = Path("/bundles") / name
    bundle = SimpleNamespace(name=name, comes_along=comes_along, folder=folder)
    return SimpleNamespace(bundle=bundle, domain=domain)


def test_the_first_model_that_was_made_for_a_pair_is_taken(domain):
    right, other = look_of(image()), look_of(image(lambda points: uneven(points * 1.3)))
    narrow, wide = model("narrow", domain), model("wide", None)
    assert choose([narrow, wide], right, right, is_free=True).model is narrow
    found = choose([narrow, wide], right, other, is_free=True)
    assert found.model is wide
    assert found.reason == (
        "model: narrow was not made for this pair: small (fixed); it starts from wide, and --model "
        "narrow takes the model all the same."
    )
    assert (names(found.flags), found.doubts) == (["small"], ())
    found = choose([narrow], other, right, is_free=True)
    assert (found.model, found.as_metrics()["name"]) == (None, NO_MODEL)
    assert "starts from the affine alone" in found.reason


def test_models_after_one_that_suits_are_not_looked_at(domain):
    class Unread(SimpleNamespace):
        @property
        def domain(self) -> Domain:
            raise AssertionError("was looked at")

    right = look_of(image())
    assert choose([model("narrow", domain), Unread()], right, right, is_free=True).reason is None


def test_a_model_that_was_named_is_taken_and_doubted(domain):
    other = look_of(image(lambda points: uneven(points * 1.3)))
    named = model("named", domain)
    found = choose([named], other, other, is_free=False)
    assert (found.model, found.reason) == (named, None)
    assert [(flag.name, flag.of) for flag in found.doubts] == [
        ("small", "moving"),
        ("small", "fixed"),
    ]
    assert choose([], other, other, is_free=True).model is None


def test_a_skull_stays_a_doubt_though_the_model_is_left_out(domain):
    large = look_of(image(lambda points: uneven(points * 0.85)))
    found = choose([model("m", domain)], large, large, is_free=True)
    assert found.model is None
    assert names(found.doubts) == ["large", "large"]


def test_what_only_the_first_model_minds_is_no_doubt_where_another_fits(domain):
    large = look_of(image(lambda points: uneven(points * 0.85)))
    fitting = model("fitting", None)
    found = choose([model("narrow", domain), fitting], large, large, is_free=True)
    assert found.model is fitting
    assert (names(found.flags), found.doubts) == (["large", "large"], ())


def test_shipped_models_go_by_name_and_a_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.delenv("PARAMORPH_MODEL", raising=False)
    shipped = default_bundle_path()
    assert candidates()[0] == shipped
    monkeypatch.chdir(tmp_path)
    assert bundle_path("brain-t1-small") == shipped
    assert bundle_path("./none") == Path("none")
    (tmp_path / "brain-t1-small").mkdir()
    assert bundle_path("brain-t1-small") == Path("brain-t1-small")
    monkeypatch.setenv("PARAMORPH_MODEL", str(tmp_path))
    assert candidates() == [tmp_path]


def test_colin_is_what_the_shipped_model_was_made_for():
    found = domain_of(load_bundle(default_bundle_path()))
    colin = load_volume(COLIN)
    assert not names(misfits(look_of(colin), "fixed", found))
    foreground = colin.data > 0
    inverted = np.where(foreground, colin.data.max() + 1 - colin.data, 0).astype(np.float32)
    turned = np.ascontiguousarray(colin.data[:, :, ::-1])
    assert names(misfits(look_of(replace(colin, data=inverted)), "fixed", found)) == ["contrast"]
    assert names(misfits(look_of(replace(colin, data=turned)), "fixed", found)) == ["orientation"]


@pytest.mark.parametrize(("contrast", "is_told"), [("t1", False), ("t2", True), ("flair", True)])
def test_other_contrasts_of_a_brain_are_told(contrast, is_told):
    path = SHARED_DATA / f"contrasts/07/{contrast}.nii.gz"
    if not path.exists():
        pytest.skip("needs the real volumes of ../shared/data")
    found = misfits(
        look_of(load_volume(path)), "fixed", domain_of(load_bundle(default_bundle_path()))
    )
    assert names(found) == (["contrast"] if is_told else [])


# --- registrations


@pytest.fixture
def shifting(tmp_path, monkeypatch, domain) -> Path:
    """A model that shifts everything, for heads that are far larger than ours; the default."""
    shift = np.zeros((3, 20, 24, 16), np.float32)
    shift[0] = 1.0
    folder = write_bundle(tmp_path / "shifting", shift)
    with_domain(folder, {"of": "giants", "volume_ml": [500, 900]})
    monkeypatch.setenv("PARAMORPH_MODEL", str(folder))
    return folder


def test_auto_starts_from_the_affine_where_the_model_does_not_fit(shifting):
    fixed = volume_of(head, RAS, "fixed.nii")
    moving = volume_of(lambda p: head(p + 0.6), centred_grid("RAS", (50, 54, 46)), "moving.nii")
    auto = Registration()(moving, fixed, affine=False, refine=2)
    none = Registration(NO_MODEL)(moving, fixed, affine=False, refine=2)
    np.testing.assert_array_equal(auto.displacement.vectors_mm, none.displacement.vectors_mm)
    assert auto.metrics["model"] == NO_MODEL
    quality = auto.metrics["quality"]
    assert "known-displacement was not made for this pair" in quality["choice"]["reason"]
    assert {flag["name"] for flag in quality["flags"]} >= {"small"}
    assert not [w for w in auto.metrics["warnings"] if "giants" in w]
    assert any("not made for" in fact for fact in verdict(auto.metrics).facts)
    forced = Registration(shifting)(moving, fixed, affine=False, refine=0)
    assert forced.metrics["model"] == "known-displacement"
    assert len([w for w in forced.metrics["warnings"] if "expected giants" in w]) == 2


def files_of(folder: Path) -> list[str]:
    options = []
    for role, function in (("moving", lambda p: head(p + 0.6)), ("fixed", head)):
        save_volume(folder / f"{role}.nii.gz", volume_of(function, RAS))
        save_labels(folder / f"{role}_labels.nii.gz", volume_of(head_labels, RAS))
        options += [f"--{role}", str(folder / f"{role}.nii.gz")]
    return options


def test_pipelines_get_a_code_of_their_own_for_doubtful_results(shifting, tmp_path, capsys):
    out, files = tmp_path / "out", files_of(tmp_path)
    options = ["--no-affine", "--out-dir", str(out), "--force"]
    fails = ["infer", *files, *options, "--fail-on-quality", "--refine", "off"]
    assert main([*fails, "--model", str(shifting)]) == 3
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["warnings"]
    assert (out / "warped.nii.gz").is_file()
    assert f"quality score    {metrics['quality']['score']:.2f}" in capsys.readouterr().out
    assert main(["infer", *files, *options, "--refine", "off", "--model", str(shifting)]) == 0


def test_a_cohort_has_it_too(shifting, tmp_path):
    files_of(tmp_path)
    (tmp_path / "pairs.csv").write_text("moving,fixed\nmoving.nii.gz,fixed.nii.gz\n")
    command = ["cohort", str(tmp_path / "pairs.csv"), "--out-dir", str(tmp_path / "out")]
    command += ["--no-affine", "--model", str(shifting), "--refine", "off"]
    assert main([*command, "--fail-on-quality"]) == 3
    assert main(command) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    score = summary["results"][0]["metrics"]["quality.score"]
    assert summary["kept"] == 1
    assert 0 <= score <= 1
    page = (tmp_path / "out/summary.html").read_text(encoding="utf-8")
    assert f'<td class="score" style="--doubt:{100 * (1 - score):.0f}%"' in page


# --- the score


def test_the_score_falls_with_each_sign_of_failure():
    good = {
        "uncertainty_coefficient": 0.5,
        "overlap": 0.98,
        "ncc": 0.9,
        "roughness": 0.2,
        "folds": 0.0,
        "reach": 0.05,
    }
    good["doubts"] = 0
    bad = {
        "uncertainty_coefficient": 0.1,
        "overlap": 0.6,
        "ncc": 0.1,
        "roughness": 0.9,
        "folds": 3.0,
        "reach": 0.3,
    }
    bad["doubts"] = 3
    assert score_of(good) > 0.8
    assert score_of(bad) < 0.2
    for name in coefficients()["parts"]:
        assert score_of(good | {name: bad[name]}) < score_of(good)
        assert score_of(good | {name: None}) <= score_of(good | {name: bad[name]})


def test_the_shipped_coefficients_have_the_signs_that_they_must_have():
    signs = {
        "uncertainty_coefficient": 1,
        "overlap": 1,
        "ncc": 1,
        "roughness": -1,
        "folds": -1,
        "reach": -1,
        "doubts": -1,
    }
    parts = coefficients()["parts"]
    assert parts
    for name, part in parts.items():
        assert part["weight"] * signs[name] > 0
        assert part["range"][0] < part["range"][1]
