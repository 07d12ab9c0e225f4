"""A registration's request: the files that go in, and the options of what is done with them.

The metadata of every field say what it is for, how the command line spells it, and where it appears
again. The options of `infer`, `cohort` and `bids`, the columns of a cohort's table, the parameters
in a report and the record of a result are made from that. Without NumPy, for the command's help.
"""
# ruff: noqa: RUF009 (the calls return dataclass fields)

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .backends import AUTO, BACKENDS, PRECISIONS
from .bundle import AUTO_MODEL, NO_MODEL, bundle_path
from .fields import about, aside, heading_of, option, whole
from .refinement.settings import DEFAULT_ITERATIONS, Level, levels_of

if TYPE_CHECKING:
    from .geometry.resample import Interpolation
    from .steps.affine import AffineKind

# Names of `transforms.formats.FORMATS` and of `Interpolation`, whose modules load NumPy.
FORMATS = ("itk", "fsl", "niftyreg", "freesurfer")
INTERPOLATIONS = ("linear", "nearest", "bspline")
# Grids of the results that are no file.
GRIDS = ("fixed", "moving")
# ITK starts as many as it is given, and no machine has more cores.
MOST_THREADS = 1024
MOST_ITERATIONS = 10_000


def fields_of(kind: type[Inputs] | type[Options]) -> dict[str, dataclasses.Field[Any]]:
    """The fields by name, in the order of the help."""
    return {of.name: of for of in dataclasses.fields(kind)}


def _file(help: str, metavar: str = "NII", heading: str | None = "") -> Any:
    return option(None, help, metavar=metavar, heading=heading, parse=Path, record="never")


def _files(help: str) -> Any:
    return option((), help, metavar="NII", heading="warped along", parse=Path, record="never")


def _needed(help: str, *flags: str) -> Any:
    return aside(dataclasses.MISSING, help, *flags, metavar="FILE", parse=Path)


@dataclass(frozen=True)
class Inputs:
    """The files of a registration, by their roles."""

    moving: Path = _needed(
        "volume to be warped: NIfTI, NRRD, MetaImage, Analyze, or a folder with a DICOM series, as "
        "all inputs may be; results are NIfTI",
        "-m",
        "--moving",
    )
    fixed: Path = _needed("volume that the moving one is registered to", "-f", "--fixed")
    moving_labels: Path | None = _file("label map of the moving volume")
    fixed_labels: Path | None = _file("label map of the fixed volume")
    moving_mask: Path | None = _file(
        "mask on the moving volume's grid, such as of the brain: voxels that are 0 count as "
        "background, and holes, such as a lesion, exert no force"
    )
    fixed_mask: Path | None = _file("the same for the fixed volume")
    initial_transform: Path | None = _file(
        "linear transform, fixed to moving (of FSL and FreeSurfer as they write it): where the "
        "affine search starts, or with --no-affine the affine itself",
        metavar="FILE",
        heading=None,
    )
    also: tuple[Path, ...] = _files(
        "more images in the moving image's world, on any grid: warped along into also_warped/"
    )
    also_labels: tuple[Path, ...] = _files("the same for label maps")

    def files(self) -> dict[str, Path]:
        """Every file by its role; of several in one role, each with its number from 1."""
        files = {role: getattr(self, role) for role in SINGLE if getattr(self, role) is not None}
        for role in SEVERAL:
            files |= {f"{role} {n}": path for n, path in enumerate(getattr(self, role), 1)}
        return files


#: Roles of one file, and roles of several.
SINGLE = tuple(name for name, of in fields_of(Inputs).items() if of.default != ())
SEVERAL = tuple(name for name, of in fields_of(Inputs).items() if of.default == ())


Metric = Literal["auto", "ncc", "mind"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done with a pair, or with all pairs of a cohort.

    In Python, `refine` may be the levels themselves.
    """

    bids_names: bool = aside(
        False,
        "names and sidecars of BIDS derivatives, DIR being the dataset: "
        "sub-X/anat/sub-X_space-MNI_T1w.nii.gz, sub-X_from-T1w_to-MNI_mode-image_xfm.nii.gz",
    )
    model: str | Path = aside(
        AUTO_MODEL,
        "auto (default): the first shipped model that was made for such images, or none; the name "
        "of a shipped model or the folder of a bundle, which is used in any case; or none: a "
        "classical registration, refined from the affine alone",
        metavar="MODEL",
    )
    refine: int | tuple[Level, ...] = option(
        DEFAULT_ITERATIONS,
        "iterations at 1.5 mm that refine the field on the pair itself; at 6, 3, 1 and 0.7 mm in "
        f"proportion (default: {DEFAULT_ITERATIONS}); off keeps the network's field",
        metavar="N|off",
        parse=lambda text: 0 if text == "off" else whole(0, MOST_ITERATIONS)(text),
        heading="refinement",
        text=lambda value: f"{value} iterations" if value else "off",
        record="always",
    )
    metric: Metric = option(
        "auto",
        "what the refinement compares: local correlation (ncc), also descriptors of "
        "self-similarity, for unlike contrasts (mind), or what suits the pair (auto, the default)",
        choices=("auto", "ncc", "mind"),
        text=lambda value: "" if value == "auto" else value,
    )
    affine: AffineKind | Literal["none"] = option(
        "auto",
        "type of the affine alignment (default: affine; rigid for a cut-out of a larger body)",
        choices=("rigid", "similarity", "affine"),
        off=("--no-affine", "the pair is affinely aligned already"),
        text=lambda value: "affine" if value == "auto" else value,
        record="always",
    )
    initial_format: str | None = option(
        None,
        f"of the initial transform: {', '.join(FORMATS)} (default: recognised from the file; "
        "needed for FSL's and NiftyReg's)",
        "--initial-transform-format",
        choices=FORMATS,
        metavar="FORMAT",
        heading="",
    )
    inverse: bool = option(
        False,
        "also write inverse_displacement.nii.gz, which lies on the moving image's grid",
        record="always",
    )
    itk_composite: bool = aside(
        False,
        "also write composite.h5: affine and field in one file, which antsApplyTransforms and 3D "
        "Slicer take (24 bytes per voxel)",
    )
    strip: bool = option(
        False,
        "extract the brain from images that have no mask, such as heads with skull, in any "
        "contrast, for use as one; also writes moving_brain_mask.nii.gz and "
        "fixed_brain_mask.nii.gz",
        heading="brain extraction",
    )
    output_grid: str = option(
        "fixed",
        "voxels on which the results lie, in the fixed world: fixed (default), moving, or a NIfTI "
        "file's; a warning says how much of the fixed image they do not cover",
        metavar="GRID",
        text=lambda value: Path(value).name,
        record="always",
        as_recorded=lambda value: value if value in GRIDS else "file",
    )
    interpolation: Interpolation = option(
        "linear",
        "of warped images (default: linear); label maps take the nearest voxel",
        choices=INTERPOLATIONS,
        record="always",
    )
    apply_to_all: bool = option(
        False,
        "the moving file is a 4-D series: register one volume and also write all, warped, as "
        "warped_series.nii.gz",
        heading="",
    )
    reference_volume: int | None = option(
        None,
        "which volume of the series is registered, from 0 (default: the mean of all)",
        metavar="N",
        parse=whole(0),
        heading="",
    )
    analyze_orientation: str | None = option(
        None,
        "orientation of images whose headers do not say it (Analyze, NIfTI without orientation "
        "codes), such as LAS; whoever made the data knows it",
        metavar="CODE",
        heading="",
    )
    backend: str = aside(
        AUTO,
        f"inference engine: {', '.join(BACKENDS)} (default: auto, the fastest that works here; see "
        "paramorph-rt info)",
        choices=(AUTO, *BACKENDS),
        metavar="ENGINE",
    )
    precision: str = aside(
        AUTO,
        "of the network (default: auto, fp16 on a GPU if the bundle has it, else fp32, but for "
        "features bf16 where openvino and the CPU have it); bf16 needs those, or a bundle that "
        "holds it",
        choices=(AUTO, *PRECISIONS),
    )
    surfaces: bool = option(
        True,
        "measure only overlap and volumes of labels: ASSD, HD95 and NSD of the more than 100 "
        "labels of a brain take longer than registering it",
        "--no-surface-distances",
        heading="",
    )
    label_names: Path | None = _file(
        "names of labels for metrics, tables and reports: a number and a name in each line (CSV, "
        "BIDS TSV, FreeSurfer, ITK-SNAP, text)",
        metavar="FILE",
    )
    fail_on_quality: bool = aside(
        False,
        "exit with code 3 where a warning makes a result doubtful; it is written all the same",
    )
    threads: int | None = option(
        None,
        "CPU threads (default: all cores)",
        metavar="N",
        parse=whole(1, MOST_THREADS),
        record="never",
    )
    report: bool = aside(
        False,
        "also write report.html: one page, under 5 MB for 1 mm brains, that works offline",
        group="pictures",
    )
    report_3d: bool = aside(
        False,
        "write report.html with an interactive 3-D view, which adds about 4 MB",
        group="pictures",
    )
    figures: bool = aside(
        False,
        "also write PNG figures for papers into figures/",
        group="pictures",
    )

    @property
    def levels(self) -> tuple[Level, ...]:
        """Of the refinement, coarse to fine; () is none."""
        return levels_of(self.refine) if isinstance(self.refine, int) else self.refine

    @property
    def is_series(self) -> bool:
        """Whether the moving file is a series."""
        return self.apply_to_all or self.reference_volume is not None

    def files(self) -> dict[str, Path]:
        """The files among the options, by name."""
        grid = None if self.output_grid in GRIDS else Path(self.output_grid)
        files = {"output_grid": grid, "label_names": self.label_names}
        return {name: path for name, path in files.items() if path is not None}

    def absolute(self) -> Options:
        """The same with absolute paths: workers of a cluster have working folders of their own."""
        shipped = self.model in (AUTO_MODEL, NO_MODEL)
        files = {name: path.absolute() for name, path in self.files().items()}
        return replace(
            self,
            model=self.model if shipped else bundle_path(self.model).absolute(),
            output_grid=str(files.get("output_grid", self.output_grid)),
            label_names=files.get("label_names"),
        )


def parameters(inputs: Inputs, options: Options) -> dict[str, str]:
    """What was requested, by the headings of a report."""
    rows: dict[str, list[str]] = {}
    for part in (inputs, options):
        for name, of in fields_of(type(part)).items():
            text = heading_of(of) and about(of).shown(getattr(part, name))
            if text:
                rows.setdefault(heading_of(of), []).append(text)
    return {heading: ", ".join(texts) for heading, texts in rows.items()}


def record(options: Options) -> dict[str, Any]:
    """The options that decide a result, by name; None is the default, which is not written."""
    values = {}
    for name, of in fields_of(Options).items():
        value = getattr(options, name)
        if about(of).record == "always" or (about(of).record != "never" and value != of.default):
            values[name] = about(of).as_recorded(value)
    return values
