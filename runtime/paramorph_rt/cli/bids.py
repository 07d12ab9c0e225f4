"""`paramorph-rt bids`: a BIDS App that registers a dataset's participants to a template."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import sign
from .arguments import options_of
from .cohort import (
    add_running_options,
    checked_options,
    is_doubtful,
    register_all,
    summary_table,
)
from .messages import DOUBTFUL

if TYPE_CHECKING:
    from ..cohort.pairs import Pair
    from ..request import Options

LEVELS = ("participant", "group")

_EPILOG = """
OUT_DIR becomes a dataset of BIDS derivatives, which names its sources by BIDS URIs. The level
`participant` registers, and a second run keeps what is finished; `group` summarises what all runs
have left in OUT_DIR: summary.html, .csv and .json.

examples:
  paramorph-rt bids BIDS_DIR OUT participant --template mni.nii.gz
  paramorph-rt bids BIDS_DIR OUT participant --template mni.nii.gz --participant-label 01 02
  paramorph-rt bids BIDS_DIR OUT group --template mni.nii.gz
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "bids",
        help="register the participants of a BIDS dataset to a template (BIDS App)",
        description="Register the anatomical images of a BIDS dataset to a template. Called as "
        "BIDS Apps are; the results are a dataset of BIDS derivatives.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the dataset")
    add("out_dir", type=Path, metavar="OUT_DIR", help="folder for the derivatives")
    add(
        "level",
        choices=LEVELS,
        metavar="LEVEL",
        help="participant: register; group: summarise what is registered",
    )
    add("--template", type=Path, required=True, metavar="NII", help="fixed image for all")
    add("--template-labels", type=Path, metavar="NII", help="label map of the template")
    for entity, prefix in (("participant", "sub-"), ("session", "ses-")):
        add(
            f"--{entity}-label",
            f"--{entity}_label",
            nargs="+",
            default=[],
            metavar="LABEL",
            help=f"only these {entity}s, with or without {prefix} (default: all)",
        )
    add("--suffix", default="T1w", metavar="NAME", help="of the images in anat (default: T1w)")
    add(
        "--derivatives",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="derivatives with label maps of the images (…_dseg.nii.gz), to be warped along",
    )
    add_running_options(parser)
    sign.add_option(parser)
    parser.set_defaults(run=run, bids_names=True)


def run(args: argparse.Namespace) -> int:
    """Register the participants, or summarise."""
    from ..cohort.dataset import Selection, pairs_of_dataset
    from ..errors import CohortError

    args.out_dir = args.out_dir.absolute()
    if args.out_dir.resolve() == args.bids_dir.resolve():
        raise CohortError(
            f"{args.out_dir}: expected a folder of its own for the derivatives, got the dataset "
            "itself; choose another, such as derivatives/paramorph in it."
        )
    group = args.level == "group"
    options = options_of(args) if group else checked_options(args)
    images = Selection(
        args.bids_dir.absolute(),
        args.suffix,
        args.participant_label,
        args.session_label,
        [path.absolute() for path in args.derivatives],
    )
    labels = args.template_labels and args.template_labels.absolute()
    pairs = pairs_of_dataset(images, args.template.absolute(), labels, args.out_dir)
    return (_summarise if group else register_all)(args, options, pairs)


def _summarise(args: argparse.Namespace, options: Options, pairs: list[Pair]) -> int:
    from ..cohort.dataset import finished
    from ..cohort.summary import HTML, write_summary
    from ..errors import CohortError
    from ..results.json_files import json_text

    outcomes = finished(pairs, options, args.out_dir)
    if not outcomes:
        raise CohortError(
            f"{args.out_dir}: expected results of the level participant, got none; run that first "
            "with the same options."
        )
    summary = write_summary(args.out_dir, pairs, outcomes, 0, options)
    page = args.out_dir / HTML
    print(json_text(summary, None).rstrip() if args.json else summary_table(summary, page))
    return DOUBTFUL if options.fail_on_quality and is_doubtful(summary) else 0
