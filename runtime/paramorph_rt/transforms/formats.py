"""Any transform file: which format it is in, and the module that reads or writes it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import TransformError
from ..geometry.transform import as_transform
from ..images.nifti import open_nifti
from ..system.files import check_regular
from . import Images, Transform, freesurfer, fsl, itk, niftyreg

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from ..geometry.field import DisplacementField
    from ..geometry.transform import Affine

FORMATS: dict[str, ModuleType] = {
    "itk": itk,
    "fsl": fsl,
    "niftyreg": niftyreg,
    "freesurfer": freesurfer,
}


def read_transform(
    path: Path, format: str | None = None, images: Images | None = None
) -> Affine | DisplacementField:
    """Read an affine or a field as a map from fixed to moving (RAS).

    Args:
        path: Transform file.
        format: A name of `FORMATS`; None is what the file says.
        images: What some formats refer to.

    Raises:
        TransformError: The format is unknown, the file is not of it, or an image is missing.
        VolumeError: A damaged NIfTI or MGH file.
    """
    transform = as_transform(FORMATS[format or format_of(path)].read(path, images or Images()))
    transform.check(path.name)
    return transform


def read_start(
    path: Path, format: str | None = None, images: Images | None = None
) -> Float[np.ndarray, "4 4"]:
    """Read the linear transform, fixed → moving (RAS), that a registration starts from.

    Args:
        path: Transform file.
        format: A name of `FORMATS`; None is what the file says.
        images: What some formats refer to.

    Raises:
        TransformError: The file holds a field, does not state its format, or cannot be read.
    """
    say = "say with --initial-transform-format what it is"
    transform = read_transform(path, format or format_of(path, else_do=say), images)
    if transform.grid is not None:
        raise TransformError(
            f"{path.name}: expected a linear transform to start from, got a displacement field; "
            "pass its affine part."
        )
    return transform


def write_transform(
    path: Path, transform: Transform, format: str = "itk", images: Images | None = None
) -> None:
    """Write an affine or a field, a map from fixed to moving (RAS).

    Args:
        path: Its suffix must be one of the format's.
        transform: Affine or field.
        format: A name of `FORMATS`.
        images: What some formats refer to.

    Raises:
        TransformError: A suffix of another kind of file, or an image is missing.
    """
    check_suffix(path, transform, format)
    module, is_field = FORMATS[format], as_transform(transform).grid is not None
    write = module.write_field if is_field else module.write_affine
    write(path, transform, images or Images())


def check_suffix(path: Path, transform: Transform, format: str) -> None:
    """Refuse a name that readers of the format would take for something else."""
    module = FORMATS[format]
    is_field = as_transform(transform).grid is not None
    suffixes = module.FIELD_SUFFIXES if is_field else module.AFFINE_SUFFIXES
    kind = "a field" if is_field else "an affine"
    if not path.name.endswith(suffixes):
        raise TransformError(
            f"{path.name}: expected {' or '.join(suffixes)} for {kind} in the "
            f"{format} format, got another suffix; rename it or choose another --to."
        )


def format_of(path: Path, else_do: str = "say with --from what it is") -> str:
    """Recognise the format by suffix and header.

    Args:
        path: Transform file.
        else_do: Advice where the file does not say.

    Raises:
        TransformError: The file does not say.
    """
    if path.name.endswith((".nii", ".nii.gz")):
        return _format_of_nifti(path, else_do)
    if path.name.endswith((".mgz", ".mgh", ".lta")):
        return "freesurfer"
    if path.name.endswith((".tfm", ".h5")):
        return "itk"
    check_regular(path, "a transform", TransformError)
    with path.open("rb") as stream:
        start = stream.read(64)
    # ITK's .mat is binary MATLAB; FSL's is text.
    if start.startswith(b"#Insight Transform File") or b"\0" in start:
        return "itk"
    raise TransformError(
        f"{path.name}: expected a file that states its format, got plain text, as FSL and NiftyReg "
        f"write it; {else_do}."
    )


def _format_of_nifti(path: Path, else_do: str) -> str:
    header = open_nifti(path).header
    intent = int(header["intent_code"])
    if header["intent_name"].item() == niftyreg.INTENT_NAME:
        return "niftyreg"
    if intent == itk.VECTOR_INTENT:
        return "itk"
    if 2006 <= intent <= 2016:  # the range that NIfTI gives to FSL
        return "fsl"
    raise TransformError(
        f"{path.name}: expected a displacement field that states its format, got NIfTI intent "
        f"{intent}; {else_do}."
    )
