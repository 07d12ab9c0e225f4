from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from paramorph_rt.errors import EvaluationError
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.spaces import flip_vectors, to_sitk
from paramorph_rt.images.landmarks import Landmarks, load_landmarks, paired
from paramorph_rt.metrics.landmarks import map_points, target_registration_error

from .phantoms import centred_grid, smooth_displacement_vox

RAS = [[1.0, 2.0, 3.0], [-4.0, 5.5, -6.0]]
LPS = [[-1.0, -2.0, 3.0], [4.0, -5.5, -6.0]]


def markups(status: str = "defined") -> str:
    points = [
        {"label": f"F-{n}", "position": point, "positionStatus": status}
        for n, point in enumerate(LPS)
    ]
    return json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]})


FCSV = """# Markups fiducial file version = 4.11
# CoordinateSystem = {space}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
vtkMRMLMarkupsFiducialNode_0,-1,-2,3,0,0,0,1,1,1,0,F-0,,
vtkMRMLMarkupsFiducialNode_1,4,-5.5,-6,0,0,0,1,1,1,0,F-1,"a, b",
"""


@pytest.mark.parametrize(
    ("name", "text", "space", "names"),
    [
        ("a.csv", "1,2,3\n-4,5.5,-6\n", "RAS", ()),
        ("a.csv", "x,y,z,t,label\n-1,-2,3,0,F-0\n4,-5.5,-6,0,F-1\n", "LPS", ("F-0", "F-1")),
        ("a.csv", "\ufeffName; Z; Y; X\nF-0; 3; 2; 1\nF-1; -6; 5.5; -4\n", "RAS", ("F-0", "F-1")),
        ("a.tsv", "# CoordinateSystem = LPS\nx\ty\tz\n-1\t-2\t3\n4\t-5.5\t-6\n", None, ()),
        ("a.txt", "1 2 3\n-4  5.5 -6\n", "RAS", ()),
        ("a.csv", "label,l,p,s,defined\nF-0,-1,-2,3,1\nF-1,4,-5.5,-6,1\n", None, ("F-0", "F-1")),
        ("a.csv", "label,r,a,s,defined\ntwin,1,2,3,1\ntwin,-4,5.5,-6,1\n", None, ()),
        ("a.fcsv", FCSV.format(space="LPS"), None, ("F-0", "F-1")),
        ("a.fcsv", FCSV.format(space="1"), "LPS", ("F-0", "F-1")),
        ("a.mrk.json", markups(), None, ("F-0", "F-1")),
    ],
)
def test_every_file_becomes_ras_millimetres(tmp_path, name, text, space, names):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = load_landmarks(tmp_path / name, space)
    np.testing.assert_array_equal(found.points_mm, RAS)
    assert found.names == names


def test_voxel_indices_are_of_the_image(tmp_path):
    grid = centred_grid("oblique", (9, 8, 7), (1, 2, 3))
    (tmp_path / "a.csv").write_text("0,0,0\n8,7,6\n", encoding="utf-8")
    found = load_landmarks(tmp_path / "a.csv", "voxel", grid).points_mm
    np.testing.assert_allclose(found, [grid.affine[:3, 3], -grid.affine[:3, 3]], atol=1e-9)
    with pytest.raises(EvaluationError, match=r"expected the image whose voxels .*, got none"):
        load_landmarks(tmp_path / "a.csv", "voxel")


@pytest.mark.parametrize(
    ("name", "text", "space", "match"),
    [
        ("a.csv", "x,y,z\n1,2,3\n", None, "whether its landmarks are RAS or LPS.*--landmark-space"),
        ("a.mrk.json", markups(), "RAS", "in RAS, as --landmark-space says, got .* says LPS"),
        ("a.mrk.json", markups("undefined"), None, "no position for F-0"),
        ("a.mrk.json", "{}", None, "3D Slicer markups file, got something else"),
        ("a.csv", "a,b,c\n1,2,3\n", "RAS", r"columns a, b, c"),
        ("a.csv", "1,2\n3,4\n", "RAS", "got something else"),
        ("a.csv", "1,2,nan\n", "RAS", "no three finite coordinates"),
        ("a.csv", "x,y,z\n", "RAS", "no three finite coordinates"),
        ("a.csv", "", "RAS", "got something else"),
        ("a.csv", "1,2,3\n4,5,six\n", "RAS", "got something else"),
        ("a.fcsv", FCSV.format(space="2"), None, "got something else"),
    ],
)
def test_unusable_files_are_one_sentence(tmp_path, name, text, space, match):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(EvaluationError, match=match):
        load_landmarks(tmp_path / name, space)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(EvaluationError, match="expected a landmark file, found none"):
        load_landmarks(tmp_path / "a.csv", "RAS")


def landmarks(names: tuple[str, ...], count: int = 3) -> Landmarks:
    return Landmarks(np.arange(3 * count).reshape(-1, 3).astype(float), names, "l.csv")


def test_pairs_are_made_by_name_where_both_files_have_the_same():
    fixed, moving = paired(landmarks(("a", "b", "c")), landmarks(("c", "a", "b")))
    assert fixed.names == moving.names == ("a", "b", "c")
    np.testing.assert_array_equal(moving.points_mm[:, 0], [3, 6, 0])


@pytest.mark.parametrize(
    ("of_fixed", "of_moving", "names"),
    [
        ((), (), ("1", "2", "3")),
        (("a", "b", "c"), (), ("a", "b", "c")),
        ((), ("a", "b", "c"), ("a", "b", "c")),
        (("F1", "F2", "F3"), ("M3", "M2", "M1"), ("F1", "F2", "F3")),
    ],
)
def test_pairs_are_made_by_order_otherwise(of_fixed, of_moving, names):
    fixed, moving = paired(landmarks(of_fixed), landmarks(of_moving))
    assert fixed.names == moving.names == names
    np.testing.assert_array_equal(fixed.points_mm, moving.points_mm)


def test_unequal_numbers_are_refused():
    with pytest.raises(EvaluationError, match=r"expected as many landmarks as in l.csv, 3, got 2"):
        paired(landmarks(()), landmarks((), 2))


def bent_field() -> DisplacementField:
    grid = centred_grid("oblique", (20, 24, 16), (1, 2, 1.5))
    vectors_vox = np.moveaxis(smooth_displacement_vox(), 0, -1)
    return DisplacementField(grid, (vectors_vox @ grid.affine[:3, :3].T).astype(np.float32))


def test_points_go_where_scipy_and_simpleitk_send_them():
    field = bent_field()
    index = np.random.default_rng(0).uniform(1, 14, (20, 3))
    points = field.grid.world(index)
    matrix = np.array([[0.9, 0.2, 0, 3], [-0.1, 1.1, 0, -2], [0, 0.1, 1, 5], [0, 0, 0, 1]])
    found = map_points(points, [field, matrix])
    moved = [
        map_coordinates(field.vectors_mm[..., c].astype(float), index.T, order=1) for c in range(3)
    ]
    expected = (points + np.stack(moved, axis=1)) @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    image = to_sitk(field.vectors_mm.astype(float), field.grid)
    transform = sitk.DisplacementFieldTransform(image)
    by_itk = [transform.TransformPoint(p) for p in flip_vectors(points).tolist()]
    np.testing.assert_allclose(
        map_points(points, [field]), flip_vectors(np.array(by_itk)), atol=1e-4
    )


def test_error_is_zero_where_the_transform_leads_and_the_distance_before():
    field = bent_field()
    fixed = field.grid.world([[3, 4, 5], [10, 11, 12], [7, 20, 8]])
    moving = fixed + field.vectors_mm[[3, 10, 7], [4, 11, 20], [5, 12, 8]]
    moving[2] += (0, 3, 4)
    after = target_registration_error(fixed, moving, "abc", [field])
    assert after["landmarks"] == pytest.approx({"a": 0, "b": 0, "c": 5}, abs=1e-4)
    assert after["mean"] == pytest.approx(5 / 3, abs=1e-4)
    assert (after["median"], after["max"]) == pytest.approx((0, 5), abs=1e-4)
    assert after["outside"] == 0
    before = target_registration_error(fixed, moving, "abc")
    assert list(before["landmarks"].values()) == pytest.approx(
        np.linalg.norm(fixed - moving, axis=1)
    )


def test_a_landmark_outside_the_field_has_no_error_and_does_not_count():
    field = bent_field()
    fixed = field.grid.world([[3, 4, 5], [19.4, 5, 5], [-0.6, 5, 5], [30, 4, 5]])
    found = target_registration_error(fixed, fixed, "abcd", [field])
    assert [found["landmarks"][name] is None for name in "abcd"] == [False, False, True, True]
    assert found["outside"] == 2
    nothing = target_registration_error(fixed[3:], fixed[3:], "d", [field, np.eye(4), field])
    assert (nothing["mean"], nothing["max"], nothing["outside"]) == (None, None, 1)
