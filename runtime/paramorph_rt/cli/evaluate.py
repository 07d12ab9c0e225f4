"""`paramorph-rt evaluate`: metrics of a registration by its files, whoever made them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..request import FORMATS, Options
from .arguments import STDOUT, add_fields, add_json
from .transform import notation, read_transforms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..images.landmarks import Landmarks

# Those of `landmarks`, which would load NumPy for `--help`.
SPACES = ("RAS", "LPS", "voxel")

_EXAMPLES = """
"before" needs the moving image, labels or landmarks; "after" the warped ones, or the transform,
through which the moving ones are then warped. docs/metrics.md defines every metric.

examples:
  paramorph-rt evaluate --fixed f.nii.gz --moving m.nii.gz --warped w.nii.gz \\
      --fixed-labels fl.nii.gz --moving-labels ml.nii.gz --warped-labels wl.nii.gz \\
      --transform OUT/displacement.nii.gz --csv labels.csv --json metrics.json

  paramorph-rt evaluate --fixed f.nii.gz --moving m.nii.gz \\
      --transform 1Warp.nii.gz 0GenericAffine.mat \\
      --fixed-landmarks f.csv --moving-landmarks m.csv --landmark-space LPS
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:  # one option after the other
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a registration: labels, images, deformation, landmarks",
        description="Measure a registration by its files, whichever program made them.",
        epilog=_EXAMPLES.strip(),
    )
    add = parser.add_argument
    add(
        "-f", "--fixed", type=Path, metavar="NII", help="fixed image, on whose grid all is compared"
    )
    add("-m", "--moving", type=Path, metavar="NII", help="moving image")
    add("--warped", type=Path, metavar="NII", help="moving image on the fixed image's grid")
    add("--fixed-labels", type=Path, metavar="NII", help="label map of the fixed image")
    add("--moving-labels", type=Path, metavar="NII", help="label map of the moving image")
    add("--warped-labels", type=Path, metavar="NII", help="moving labels on the fixed grid")
    add(
        "--transform",
        "--displacement",
        dest="transforms",
        nargs="+",
        default=[],
        metavar="TRANSFORM",
        help="fixed to moving, FILE or [FILE,1]; several in the order of ANTs' -t",
    )
    add(
        "--from",
        dest="source",
        choices=FORMATS,
        help="its format (default: recognised from the file)",
    )
    _add_landmarks(parser)
    add(
        "--nsd-tolerance",
        type=_not_negative,
        metavar="MM",
        help="of the normalised surface distance, in mm (default: 1)",
    )
    add_fields(parser, Options, ["threads"])
    _add_tables(parser)
    parser.set_defaults(run=run)


def _add_landmarks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--fixed-landmarks",
        type=Path,
        metavar="FILE",
        help="points in the fixed image: CSV, .fcsv or .mrk.json",
    )
    add("--moving-landmarks", type=Path, metavar="FILE", help="the same points, moving image")
    add(
        "--landmark-space",
        choices=SPACES,
        help="of landmarks whose file does not say: world mm, or voxel indices from 0",
    )
    add("--fixed-landmark-space", choices=SPACES, help="the same of the fixed ones alone")
    add("--moving-landmark-space", choices=SPACES, help="the same of the moving ones alone")


def _add_tables(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--label-names",
        type=Path,
        metavar="FILE",
        help="names of labels for --csv and --json: CSV, TSV, FreeSurfer or ITK-SNAP table",
    )
    add(
        "--csv",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="print a row per label to stdout instead of a table, or write it into a file",
    )
    add_json(parser, "all metrics")
    add("--force", action="store_true", help="replace existing --csv and --json")


def run(args: argparse.Namespace) -> int:
    """Measure, write, print."""
    from ..errors import EvaluationError
    from ..evaluation import label_table
    from ..results.json_files import json_text
    from ..results.outputs import check_file
    from ..system.staging import staged_file
    from ..system.threads import itk_threads

    to_stdout = [path for path in (args.csv, args.json) if path == STDOUT]
    if len(to_stdout) == 2:
        raise EvaluationError("--csv: expected one table on stdout, got --json there too; name it.")
    if args.csv and args.json and args.csv.resolve() == args.json.resolve():
        raise EvaluationError(
            f"{args.csv}: expected a file for --csv and another for --json, got one for both; "
            "choose another name."
        )
    files = [path for path in (args.csv, args.json) if path and path not in to_stdout]
    for path in files:
        check_file(path, args.force, inputs=_inputs(args))
    _check(args)
    with itk_threads(args.threads):
        metrics = _metrics(args)
    texts = {}
    if args.csv:
        texts[args.csv] = label_table(metrics)
    if args.json:
        texts[args.json] = json_text(metrics)
    for path in files:
        with staged_file(path) as staging:
            staging.write_text(texts[path], encoding="utf-8")
    print(texts[to_stdout[0]].rstrip("\n") if to_stdout else "\n".join(_lines(metrics, files)))
    return 0


def _inputs(args: argparse.Namespace) -> list[Path]:
    roles = ("fixed", "moving", "warped")
    files = [getattr(args, name) for role in roles for name in (role, f"{role}_labels")]
    files += [args.fixed_landmarks, args.moving_landmarks, args.label_names]
    return [*(path for path in files if path), *(notation(word)[0] for word in args.transforms)]


def _check(args: argparse.Namespace) -> None:
    """Refuse what no content of the files could make right."""
    from ..errors import EvaluationError
    from ..evaluation import label_table

    for role, other in (("fixed", "moving"), ("moving", "fixed")):
        if getattr(args, f"{role}_landmarks") and not getattr(args, f"{other}_landmarks"):
            raise EvaluationError(
                f"landmarks: expected those of both images, got none of the {other} one; pass "
                f"--{other}-landmarks."
            )
    for path, fixed in (
        (args.warped, args.fixed),
        (args.warped_labels, args.fixed_labels),
    ):
        if path and not fixed:
            raise EvaluationError(
                f"{path.name}: expected a fixed image or label map to compare it with, got none; "
                "pass --fixed or --fixed-labels."
            )
    if args.csv and not (args.fixed_labels and (args.moving_labels or args.warped_labels)):
        label_table({})  # says what it lacks


def _metrics(args: argparse.Namespace) -> dict[str, Any]:
    from ..evaluation import Kind, evaluate
    from ..images.label_names import load_label_names
    from ..images.volume import load_labels, load_volume
    from ..metrics.surface import NSD_TOLERANCE_MM

    return evaluate(
        Kind(*(path and load_volume(path) for path in (args.fixed, args.moving, args.warped))),
        Kind(
            args.fixed_labels and load_labels(args.fixed_labels),
            args.moving_labels and load_labels(args.moving_labels),
            # A warp may have pushed all labels out; that is a result.
            args.warped_labels and load_labels(args.warped_labels, may_be_empty=True),
        ),
        read_transforms(args) if args.transforms else (),
        _landmarks(args),
        nsd_tolerance_mm=NSD_TOLERANCE_MM if args.nsd_tolerance is None else args.nsd_tolerance,
        label_names=args.label_names and load_label_names(args.label_names),
    )


def _landmarks(args: argparse.Namespace) -> tuple[Landmarks, Landmarks] | None:
    from ..images.landmarks import load_landmarks
    from ..images.volume import load_grid

    files = {"fixed": args.fixed_landmarks, "moving": args.moving_landmarks}
    if not any(files.values()):
        return None
    landmarks = []
    for role, path in files.items():
        image = getattr(args, role) or getattr(args, f"{role}_labels")
        space = getattr(args, f"{role}_landmark_space") or args.landmark_space
        grid = load_grid(image) if space == "voxel" and image else None
        landmarks.append(load_landmarks(path, space, grid))
    return landmarks[0], landmarks[1]


def _lines(metrics: dict[str, Any], files: list[Path]) -> Iterator[str]:
    """A table for people."""
    from ..metrics.definitions import metric_of

    stages = ("before", "after")
    yield f"{'':<34}" + "".join(f"{stage:>11}" for stage in stages)
    tables: dict[str, dict[str, float | None]] = {}
    for key in ("ncc", "ssim", "mse"):
        if key in metrics:
            tables[metric_of(key).heading] = metrics[key]
    for key in ("dice", "assd_mm", "hd95_mm", "nsd", "tre_mm"):
        if key in metrics:
            title = f"mean {metric_of(key).heading}"
            if key == "nsd":
                title += f" at {metrics['nsd_tolerance_mm']:g} mm"
            tables[title] = {s: table["mean"] for s, table in metrics[key].items()}
    if "volume_change_percent" in metrics:
        change = metrics["volume_change_percent"]["after"]["mean"]
        tables[f"mean {metric_of('volume_change_percent').heading}"] = {"after": change}
    for key in metrics["definitions"]:
        if not isinstance(metrics[key], dict):
            tables[metric_of(key).heading] = {"after": metrics[key]}
    for title, row in tables.items():
        yield f"{title:<34}" + "".join(f"{_cell(row, stage):>11}" for stage in stages)
    for stage, table in metrics.get("tre_mm", {}).items():
        if table["outside"]:
            yield f"{stage}: {table['outside']} landmarks lie outside the displacement field"
    if "dice" in metrics:
        table = metrics["volume_mm3"]
        over = "both label maps have" if "moving" in table else "the fixed label map has"
        yield f"means are over the labels that {over}"
    for path in files:
        yield f"wrote {path}"


def _cell(row: dict[str, float | None], stage: str) -> str:
    if stage not in row:
        return ""
    value = row[stage]
    return "–" if value is None else f"{value:.4f}"


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected millimetres, got {text}")
    return value
