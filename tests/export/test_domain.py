"""What a model was made for, described from images and written into its bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from paramorph_export.bundle import write_bundle
from paramorph_export.errors import ExportError
from paramorph_rt.bundle import load_bundle
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, load_volume, save_volume
from paramorph_rt.quality.domain import domain_of, misfits
from paramorph_rt.quality.looks import likeness, look_of


@pytest.fixture
def describe_domain(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "export")
    import describe_domain

    yield describe_domain
    sys.modules.pop("describe_domain", None)


@pytest.fixture
def images(tmp_path) -> list[str]:
    """Three ellipsoids of 20 to 22 voxels, brighter inside and above."""
    found = []
    for number in range(3):
        radius = np.array([10, 12, 9]) + number / 2
        points = np.moveaxis(
            np.indices((32, 36, 30)) - np.array([16, 18, 15])[:, None, None, None], 0, -1
        )
        far = ((points / radius) ** 2).sum(-1)
        data = np.where(far < 1, 100 * (2 - far) + 3 * points[..., 2], 0).astype(np.float32)
        path = tmp_path / f"{number}.nii.gz"
        save_volume(path, Volume(data, Grid(data.shape, np.diag([2.0, 2.0, 2.0, 1.0])), "image"))
        found.append(str(path))
    return found


def test_a_domain_is_written_and_goes_along(weights, images, describe_domain, tmp_path, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    write_bundle(first, weights)
    with pytest.raises(ExportError, match="expected a bundle that describes its domain"):
        write_bundle(again, weights, domain=first)
    options = ["--bundle", str(first), "--of", "ellipsoids", "--images", *images]
    assert describe_domain.main(options) == 0
    assert "of ellipsoids, images 3" in capsys.readouterr().out
    domain = domain_of(load_bundle(first))
    volumes_ml = [look_of(load_volume(path)).volume_ml for path in images]
    assert domain.volume_ml == pytest.approx((0.7 * min(volumes_ml), 1.4 * max(volumes_ml)), abs=1)
    assert (domain.spacing_mm, domain.at_border) == (6, (0, 0.2))
    for path in images:
        assert not list(misfits(look_of(load_volume(path)), "fixed", domain))
        assert likeness(look_of(load_volume(path)).ranks, domain.ranks) > 0.95
    write_bundle(again, weights, domain=first)
    taken = domain_of(load_bundle(again))
    np.testing.assert_array_equal(taken.ranks, domain.ranks)
    assert (taken.of, taken.volume_ml) == (domain.of, domain.volume_ml)


def test_models_of_any_contrast_have_no_map(weights, images, describe_domain, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(folder, weights)
    options = ["--bundle", str(folder), "--of", "x", "--any-contrast", "--images", *images]
    assert describe_domain.main(options) == 0
    assert domain_of(load_bundle(folder)).ranks is None
    assert describe_domain.main([*options, "--volume-ml", "300", "2600"]) == 0
    assert domain_of(load_bundle(folder)).volume_ml == (300, 2600)
    missing = [*options, str(tmp_path / "none.nii.gz")]
    assert describe_domain.main(missing) == 1
    assert domain_of(load_bundle(folder)).of == "x"
