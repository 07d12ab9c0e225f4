"""FreeSurfer: warps in .mgz, affines in .lta.

Both keep the geometry of the moving ("source") and the fixed ("target", "destination") image. A
warp maps fixed → moving, an LTA moving → fixed; FreeSurfer's RAS is the header's world.

Source:
    FreeSurfer's own readers, https://github.com/freesurfer/surfa (surfa/io).
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import from_matvec

from ..errors import TransformError, VolumeError
from ..geometry.field import DisplacementField
from ..geometry.spaces import Grid
from ..images.checks import check_grid
from ..images.gzip_files import GZIP_ERRORS, reading, writing
from ..images.nifti import MAX_VOXELS
from ..system.files import check_regular, most_bytes, read_text

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from . import Images, Transform

FIELD_SUFFIXES = (".mgz",)
AFFINE_SUFFIXES = (".lta",)

# The first int: version 1 in the low byte, above it the intent; 3 is a warp.
_WARP_VERSION = 3 << 8 | 1
_FLOAT32 = 3
_HEADER_BYTES, _SCAN_BYTES = 284, 20
_GEOMETRY = struct.Struct(">i3i15f512s")  # valid, shape, spacing, directions, centre, file name
_TAG_GEOMETRY, _TAG_FORMAT = 10, 13
# What the vectors are: (absolute?, in RAS mm rather than voxels of the moving image?)
_KINDS = {0: (True, False), 1: (False, False), 2: (True, True), 3: (False, True)}
_DISPLACEMENT_RAS = 3
# Tags that state no length; all others say how many bytes follow.
_UNSIZED_TAGS = (1, 2, 10, 11, 12, 20)

_VOXEL_TO_VOXEL, _RAS_TO_RAS = 0, 1


def read(path: Path, images: Images) -> Transform:
    """Read a warp or an affine. Needs no image: the file has their geometry."""
    check_regular(path, "a transform", TransformError)
    return _read_lta(path) if path.name.endswith(".lta") else _read_warp(path)


def write_affine(path: Path, affine: Float[np.ndarray, "4 4"], images: Images) -> None:
    """Write an LTA, for which both images are needed."""
    moving, fixed = images.grid("moving", path.name), images.grid("fixed", path.name)
    text = io.StringIO()
    text.write("type      = 1 # LINEAR_RAS_TO_RAS, moving to fixed\n")
    text.write("nxforms   = 1\nmean      = 0.0 0.0 0.0\nsigma     = 1.0\n1 4 4\n")
    np.savetxt(text, np.linalg.inv(affine), fmt="%.15e")
    for title, grid in (("src", moving), ("dst", fixed)):
        spacing, *directions, centre = np.split(np.array(_geometry_floats(grid)), [3, 6, 9, 12])
        text.write(f"{title} volume info\nvalid = 1  # volume info valid\nfilename = none\n")
        text.write("volume = {} {} {}\n".format(*grid.shape))
        names = ("voxelsize", "xras  ", "yras  ", "zras  ", "cras  ")
        for name, values in zip(names, (spacing, *directions, centre), strict=True):
            text.write(f"{name} = " + " ".join(f"{value:.15e}" for value in values) + "\n")
    path.write_text(text.getvalue(), encoding="utf-8")


def write_field(path: Path, field: DisplacementField, images: Images) -> None:
    """Write a warp (RAS displacement), for which the moving image is needed."""
    moving = images.grid("moving", path.name)
    shape, geometry = field.grid.shape, _geometry_floats(field.grid)
    header = struct.pack(">7ih15f", _WARP_VERSION, *shape, 3, _FLOAT32, 1, 1, *geometry)
    with writing(path, compressed=True) as stream:
        stream.write(header.ljust(_HEADER_BYTES, b"\0"))
        stream.write(field.vectors_mm.astype(">f4").tobytes(order="F"))
        stream.write(bytes(_SCAN_BYTES))
        stream.write(struct.pack(">i", _TAG_GEOMETRY))
        for grid in (moving, field.grid):
            stream.write(_GEOMETRY.pack(1, *grid.shape, *_geometry_floats(grid), b""))
        stream.write(struct.pack(">iqiif", _TAG_FORMAT, 12, _DISPLACEMENT_RAS, 1, 0.0))


def _read_warp(path: Path) -> DisplacementField:
    try:
        packed = path.name.endswith(".mgz")
        with reading(path, packed) as stream:
            vectors, grid = _read_vectors(
                stream, path.name, most_bytes(path.stat().st_size, packed)
            )
            kind, moving = _read_tags(stream, path.name)
    except (*GZIP_ERRORS, struct.error) as err:
        raise VolumeError(
            f"{path.name}: expected a complete FreeSurfer warp, got damaged or truncated data; "
            "copy it again."
        ) from err
    absolute, in_ras = _KINDS[kind]
    if not in_ras and not absolute:
        vectors = vectors + np.moveaxis(np.indices(grid.shape, dtype=np.float32), 0, -1)
    if not in_ras:
        vectors = moving.world(vectors)
    if absolute or not in_ras:
        vectors = (vectors - grid.positions()).astype(np.float32)
    return DisplacementField(grid, vectors)


def _read_vectors(stream: io.BufferedIOBase, name: str, most: int) -> tuple[np.ndarray, Grid]:
    header = stream.read(_HEADER_BYTES)
    version, *shape, frames, dtype, _, valid = struct.unpack_from(">7ih", header)
    if (version, frames, dtype) != (_WARP_VERSION, 3, _FLOAT32) or not valid:
        raise TransformError(
            f"{name}: expected a FreeSurfer warp of three float32 frames with its geometry, got "
            f"another MGH file (version {version:#x}, {frames} frames, data type {dtype}); check "
            "that it is the right file."
        )
    count = 3 * int(np.prod(shape, dtype=object))
    if min(shape) < 1 or count > 3 * MAX_VOXELS or 4 * count > most:
        raise VolumeError(
            f"{name}: expected a volume, got a header of shape {tuple(shape)}: it is damaged; "
            "copy it again."
        )
    grid = _grid(shape, struct.unpack_from(">15f", header, 30))
    check_grid(grid, name)
    content = stream.read(4 * count)
    if len(content) < 4 * count:
        raise EOFError
    vectors = np.frombuffer(content, ">f4").reshape((*shape, 3), order="F").astype(np.float32)
    if not np.isfinite(vectors).all():
        raise VolumeError(f"{name}: expected finite vectors, got NaN or Inf; replace them first.")
    return vectors, grid


def _read_tags(stream: io.BufferedIOBase, name: str) -> tuple[int, Grid]:
    """What the vectors are, and the moving image's grid."""
    stream.read(_SCAN_BYTES)
    kind = moving = None
    while len(word := stream.read(4)) == 4 and (tag := struct.unpack(">i", word)[0]):
        if tag == _TAG_GEOMETRY:
            _, *geometry, _ = _GEOMETRY.unpack(stream.read(_GEOMETRY.size))
            moving = _grid(geometry[:3], geometry[3:])
            stream.read(_GEOMETRY.size)  # the fixed image's, which the header has given
        elif tag in _UNSIZED_TAGS:
            break
        else:
            (length,) = struct.unpack(">q", stream.read(8))
            content = stream.read(max(0, min(length, 2**20)))
            if tag == _TAG_FORMAT:
                (kind,) = struct.unpack_from(">i", content)
    if kind not in _KINDS or moving is None:
        raise TransformError(
            f"{name}: expected a FreeSurfer warp that says what its vectors are, got one without "
            "those tags; convert it with mri_warp_convert first."
        )
    return kind, moving


def _geometry_floats(grid: Grid) -> list[float]:
    """Spacing, directions (columns) and centre, as in MGH files."""
    centre = grid.world(np.array(grid.shape) / 2)
    return [*grid.spacing, *grid.directions.T.ravel(), *centre]


def _grid(shape: list[int], geometry: tuple[float, ...] | list[float]) -> Grid:
    spacing, directions, centre = np.split(np.array(geometry, dtype=np.float64), [3, 12])
    matrix = directions.reshape(3, 3).T * spacing
    return Grid(tuple(shape), from_matvec(matrix, centre - matrix @ (np.array(shape) / 2)))


def _read_lta(path: Path) -> Float[np.ndarray, "4 4"]:
    try:
        kind, matrix, grids = _parse_lta(read_text(path, "a FreeSurfer LTA", TransformError))
    except (ValueError, KeyError, IndexError) as err:
        if isinstance(err, TransformError):
            raise
        raise TransformError(
            f"{path.name}: expected a FreeSurfer LTA, got other text; check that it is the right "
            "file."
        ) from err
    if kind == _VOXEL_TO_VOXEL:
        if set(grids) != {"src", "dst"}:
            raise TransformError(
                f"{path.name}: expected the geometry of both images in a voxel LTA, got none; "
                "convert it with lta_convert --outlta first."
            )
        matrix = grids["dst"].affine @ matrix @ grids["src"].world_to_index
    elif kind != _RAS_TO_RAS:
        raise TransformError(
            f"{path.name}: expected an LTA of type 0 (voxels) or 1 (RAS), got type {kind}; convert "
            "it with lta_convert first."
        )
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise TransformError(
            f"{path.name}: expected an invertible affine, got a singular one; check the file."
        )
    return np.linalg.inv(matrix)


def _parse_lta(text: str) -> tuple[int, np.ndarray, dict[str, Grid]]:
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    lines = [words for words in lines if words]
    fields = {words[0]: words[2:] for words in lines[:4]}
    kind, number = int(fields["type"][0]), int(fields["nxforms"][0])
    if number != 1 or lines[4] != ["1", "4", "4"]:
        raise ValueError
    matrix = np.array(lines[5:9], dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError
    grids = {}
    starts = [n for n, words in enumerate(lines) if words[1:] == ["volume", "info"]]
    for start in starts:
        entry = {words[0]: words[2:] for words in lines[start + 1 : start + 9]}
        if entry["valid"] == ["1"]:
            keys = ("voxelsize", "xras", "yras", "zras", "cras")
            floats = [float(number) for key in keys for number in entry[key]]
            grids[lines[start][0]] = _grid([int(n) for n in entry["volume"]], floats)
    return kind, matrix, grids
