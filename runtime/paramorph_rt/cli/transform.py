"""`paramorph-rt transform`: apply, invert, compose and convert transforms of any known format."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..request import FORMATS, INTERPOLATIONS, Options
from .arguments import add_fields
from .infer import inverse_lines

if TYPE_CHECKING:
    from ..geometry.field import DisplacementField
    from ..geometry.transform import Affine, Transform
    from ..transforms import Images

_ORDER = """
A transform maps points of the fixed image to the moving one. Several are read as ANTs reads its -t:
a point of the fixed image passes them from left to right, so a field stands before its affine,
1Warp.nii.gz 0GenericAffine.mat. [FILE,1] is the inverse of an affine."""

_ACTIONS = {
    "apply": """warp an image or a label map

example:
  paramorph-rt transform apply OUT/displacement.nii.gz --moving t2.nii.gz --fixed atlas.nii.gz \\
      --out t2_on_atlas.nii.gz
""",
    "invert": """turn a transform round, so that it maps moving to fixed

The inverse of a field lies on the grid of --moving; its error is printed, with --fixed both ways.

examples:
  paramorph-rt transform invert OUT/affine.tfm --out back.tfm
  paramorph-rt transform invert OUT/displacement.nii.gz --moving m.nii.gz --out back.nii.gz
""",
    "compose": """join transforms into one

Affines alone make an affine. A field lies on the grid of --fixed, or else on that of the first.

example:
  paramorph-rt transform compose 1Warp.nii.gz 0GenericAffine.mat --out complete.nii.gz
""",
    "convert": """write a transform in another format

example:
  paramorph-rt transform convert OUT/displacement.nii.gz --to fsl --moving m.nii.gz \\
      --out warp.nii.gz
""",
}

# What the fixed and the moving image are for.
_IMAGES = {
    "apply": ("image on whose grid the result lies", "image or label map to be warped"),
    "invert": (
        "fixed image, which files of FSL and FreeSurfer refer to",
        "moving image, on whose grid the inverse of a field lies",
    ),
    "compose": (
        "fixed image, on whose grid the result lies (default: that of the first field)",
        "moving image, which files of FSL and FreeSurfer refer to",
    ),
    "convert": (
        "fixed image, which files of FSL and FreeSurfer refer to",
        "moving image, which they refer to as well",
    ),
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the options of all actions."""
    parser = subparsers.add_parser(
        "transform",
        help="apply, invert, compose or convert transforms",
        description="Work with the transforms of ITK, ANTs, FSL, NiftyReg and FreeSurfer.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    runs: dict[str, Callable[[argparse.Namespace], None]] = {
        "apply": _apply,
        "invert": _invert,
        "compose": _compose,
        "convert": _convert,
    }
    for name, text in _ACTIONS.items():
        summary, _, rest = text.partition("\n")
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{_ORDER}",
            epilog=rest.strip(),
        )
        _add_options(action, name)
        action.set_defaults(run=run, action=runs[name])


def _add_options(parser: argparse.ArgumentParser, action: str) -> None:
    add = parser.add_argument
    add(
        "transforms",
        nargs="+" if action in ("apply", "compose") else 1,
        metavar="TRANSFORM",
        help="transform file; [FILE,1] inverts an affine",
    )
    needed, (fixed, moving) = action == "apply", _IMAGES[action]
    add("-f", "--fixed", type=Path, required=needed, metavar="NII", help=fixed)
    add("-m", "--moving", type=Path, required=needed, metavar="NII", help=moving)
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="file of the result")
    add("--from", dest="source", choices=FORMATS, help="format (default: recognised from the file)")
    if action == "apply":
        add(
            "--interpolation",
            choices=INTERPOLATIONS,
            default="linear",
            help="nearest for label maps (default: linear)",
        )
    else:
        add("--to", default="itk", choices=FORMATS, help="format of --out (default: itk)")
    add_fields(parser, Options, ["threads"])
    add("--force", action="store_true", help="replace an existing --out")


def run(args: argparse.Namespace) -> int:
    """Do the action and say what was written."""
    from ..system.threads import itk_threads

    with itk_threads(args.threads):
        args.action(args)
    print(f"wrote {args.out}")
    return 0


def _apply(args: argparse.Namespace) -> None:
    from ..geometry.compose import apply_transforms
    from ..images.volume import load_grid, load_labels, load_volume, save_volume
    from ..results.outputs import check_file
    from ..system.staging import staged_file

    check_file(args.out, args.force, (".nii", ".nii.gz"), _inputs(args))
    load = load_labels if args.interpolation == "nearest" else load_volume
    moving, grid = load(args.moving), load_grid(args.fixed)
    warped = apply_transforms(moving, read_transforms(args), grid, args.interpolation)
    with staged_file(args.out) as path:
        save_volume(path, warped)


def _invert(args: argparse.Namespace) -> None:
    from ..geometry.inverse import invert_field
    from ..images.volume import load_volume
    from ..metrics.consistency import consistency_mm
    from ..results.outputs import check_file
    from ..transforms import Images

    check_file(args.out, args.force, inputs=_inputs(args))
    (transform,), images = read_transforms(args), _images(args)
    back = Images(fixed=images.moving, moving=images.fixed)
    if transform.grid is None:
        _write(args, transform.inverse(), back)
        return
    images.grid("moving", args.transforms[0])
    moving = load_volume(args.moving)
    inverse = invert_field(transform, moving.grid)
    _write(args, inverse.field, back)
    fixed = load_volume(args.fixed) if args.fixed else None
    print("\n".join(inverse_lines(consistency_mm(inverse, transform, moving, fixed))))


def _compose(args: argparse.Namespace) -> None:
    from ..geometry.compose import compose
    from ..results.outputs import check_file

    check_file(args.out, args.force, inputs=_inputs(args))
    images = _images(args)
    _write(args, compose(read_transforms(args), images.fixed), images)


def _convert(args: argparse.Namespace) -> None:
    from ..results.outputs import check_file

    check_file(args.out, args.force, inputs=_inputs(args))
    (transform,) = read_transforms(args)
    _write(args, transform, _images(args))


def notation(word: str) -> tuple[Path, bool]:
    """A transform's file, and whether [FILE,1] asks for its inverse."""
    notation = re.fullmatch(r"\[(.+),([01])\]", word)
    return (Path(notation[1]), notation[2] == "1") if notation else (Path(word), False)


def _inputs(args: argparse.Namespace) -> list[Path]:
    transforms = [notation(word)[0] for word in args.transforms]
    return [*transforms, *(path for path in (args.fixed, args.moving) if path)]


def _images(args: argparse.Namespace) -> Images:
    from ..images.volume import load_grid
    from ..transforms import Images

    return Images(*(path and load_grid(path) for path in (args.fixed, args.moving)))


def read_transforms(args: argparse.Namespace) -> list[Affine | DisplacementField]:
    """The transforms in order, each inverted if the ANTs notation [FILE,1] asks for it.

    Args:
        args: With `transforms`, `source` (--from), `fixed` and `moving` (image files or None).
    """
    from ..errors import TransformError
    from ..transforms import Images
    from ..transforms.formats import read_transform

    if args.source == "fsl" and len(args.transforms) > 1:
        raise TransformError(
            "transforms: expected one at a time in FSL's coordinates, as the images between two "
            "are unknown, got several; convert each to itk first."
        )
    images = _images(args) if len(args.transforms) == 1 else Images()
    transforms = []
    for word in args.transforms:
        path, is_inverted = notation(word)
        transform = read_transform(path, args.source, images)
        if is_inverted:
            if transform.grid is not None:
                raise TransformError(
                    f"{word}: expected an affine to invert on the way, got a field; run "
                    "paramorph-rt transform invert first."
                )
            transform = transform.inverse()
        transforms.append(transform)
    return transforms


def _write(args: argparse.Namespace, transform: Transform, images: Images) -> None:
    from ..system.staging import staged_file
    from ..transforms.formats import check_suffix, write_transform

    check_suffix(args.out, transform, args.to)
    with staged_file(args.out) as path:
        write_transform(path, transform, args.to, images)
