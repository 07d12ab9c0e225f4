"""The shipped weights under trouble: moved, scaled, coarse, noisy, strange and unsuitable images.

Pairs of labelled volumes are registered as they are, then with each of `TROUBLES` in the moving
image. Colin27 → MNI152 is judged by grey and white matter; newborns are what nothing was trained
on, and their T1 against another's T2 is a case that should fail.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nilearn import datasets

from evaluation import LabelledPair, load_pair
from pairs import BenchmarkError, add_pair_options, labelled_pairs
from paramorph.data import SubjectFiles
from paramorph_rt import Registration
from paramorph_rt.errors import ParamorphError, exit_code
from paramorph_rt.field import DisplacementField
from paramorph_rt.spaces import Grid, to_sitk
from paramorph_rt.volume import Volume, load_volume
from record import weights_sha256, write_page, write_result
from tables import markdown_table
from troubles import TROUBLES, same_places

COLIN27 = Path(__file__).parents[1] / "examples/colin27/ch2bet.nii.gz"
GREY, WHITE = 2, 3
AS_THEY_ARE = "as they are"
COLUMNS = (
    ("case", "case", ""),
    ("pairs", "pairs", "d"),
    ("Dice before", "dice_before", ".3f"),
    ("affine", "dice_affine", ".3f"),
    ("after", "dice_after", ".3f"),
    ("worst pair", "dice_after_worst", ".3f"),
    ("NCC affine", "ncc_affine", ".3f"),
    ("after", "ncc_after", ".3f"),
    ("folds, %", "nonpositive_jacobian_percent", ".3f"),
    ("field differs, mm", "field_difference_mm", ".3f"),
)

Row = dict[str, Any]


def measure(
    register: Registration, case: str, pair: LabelledPair, usual: DisplacementField | None = None
) -> tuple[Row, DisplacementField | None]:
    """Register one pair.

    Args:
        register: The model.
        case: What the table calls it.
        pair: Images and labels.
        usual: What was found without the trouble, to be compared with what is found now.

    Returns:
        Figures and the field, or the `error` that refused the pair and None.
    """
    row: Row = {"case": case, "pair": f"{pair.moving.name} → {pair.fixed.name}"}
    try:
        result = register(pair.moving, pair.fixed, pair.moving_labels, pair.fixed_labels)
    except ParamorphError as err:
        return row | {"error": str(err)}, None
    metrics, field = result.metrics, result.displacement
    row |= {f"dice_{stage}": entry["mean"] for stage, entry in metrics["dice"].items()}
    row |= {f"ncc_{stage}": value for stage, value in metrics["ncc"].items()}
    row["nonpositive_jacobian_percent"] = metrics["nonpositive_jacobian_percent"]
    if usual is not None:
        distances_mm = np.linalg.norm(field.vectors_mm - usual.vectors_mm, axis=-1)
        row["field_difference_mm"] = float(distances_mm.max())
    return row, field


def troubled(register: Registration, pair: LabelledPair) -> Iterator[Row]:
    """One pair as it is, then with each trouble in its moving image."""
    row, usual = measure(register, AS_THEY_ARE, pair)
    yield row
    for case, trouble in TROUBLES.items():
        moving, labels = trouble(pair.moving, pair.moving_labels)
        changed = LabelledPair(moving, pair.fixed, labels, pair.fixed_labels)
        stayed = same_places(moving.grid, pair.moving.grid)
        yield measure(register, case, changed, usual if stayed else None)[0]


def colin_to_mni() -> LabelledPair:
    """Colin27 with the tissues that its brightness parts, MNI152 with those of its own maps."""
    colin = load_volume(COLIN27)
    classes = sitk.OtsuMultipleThresholds(to_sitk(colin.data, colin.grid), 3)
    tissues = sitk.GetArrayFromImage(classes).T  # background, fluid, grey, white
    tissues = np.where(tissues >= GREY, tissues, 0).astype(np.uint8)
    template = datasets.load_mni152_template(resolution=1)
    grid = Grid(template.shape, template.affine)
    grey, white = (
        load(resolution=1).get_fdata() > 0.5
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    mni_tissues = (GREY * grey + WHITE * (white & ~grey)).astype(np.uint8)
    return LabelledPair(
        colin,
        Volume(template.get_fdata(dtype=np.float32), grid, "MNI152"),
        Volume(tissues, colin.grid, "Colin27's tissues"),
        Volume(mni_tissues, grid, "MNI152's tissues"),
    )


def newborns(folder: Path) -> Iterator[tuple[str, LabelledPair]]:
    """Each newborn's T1 to the next one's T1, then to the next one's T2."""
    names = sorted(path.name.split("_")[0] for path in folder.glob("*_T1w_brain.nii.gz"))
    if len(names) < 2:
        raise BenchmarkError(
            f"{folder}: expected at least two NAME_T1w_brain.nii.gz, got {len(names)}; check "
            "--neonate."
        )
    for contrast in ("T1", "T2"):
        for moving, fixed in zip(names, names[1:] + names[:1], strict=True):
            files = (
                SubjectFiles(
                    name,
                    folder / f"{name}_{kind}w_brain.nii.gz",
                    folder / f"{name}_Segmentation.nii.gz",
                )
                for name, kind in ((moving, "T1"), (fixed, contrast))
            )
            yield f"newborn's T1 → another's {contrast}", load_pair(*files)


def summarise(rows: Iterable[Row]) -> list[Row]:
    """One row per case: means over its pairs; the worst Dice and the largest field difference."""
    rows, summary = list(rows), []
    for case in dict.fromkeys(row["case"] for row in rows):
        done = [row for row in rows if row["case"] == case and "error" not in row]
        entry: Row = {"case": case, "pairs": len(done)}
        for key in (key for _, key, spec in COLUMNS if spec.endswith("f")):
            values = [row[key] for row in done if row.get(key) is not None]
            average = max if key == "field_difference_mm" else statistics.mean
            entry[key] = average(values) if values else None
        entry["dice_after_worst"] = min((row["dice_after"] for row in done), default=None)
        summary.append(entry)
    return summary


def run(args: argparse.Namespace) -> None:
    """Measure every case; write the JSON and the table."""
    pairs = labelled_pairs(args.folder, args.pairs)
    strangers = list(newborns(args.neonate)) if args.neonate else []
    register = Registration(args.model, args.threads)
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)

    for moving, fixed in pairs:
        for row in troubled(register, load_pair(moving, fixed)):
            note(row)
    note(measure(register, "Colin27 → MNI152, tissues", colin_to_mni())[0])
    for case, pair in strangers:
        note(measure(register, case, pair)[0])
    summary = summarise(rows)
    bundle = register.bundle
    path = write_result(
        f"robustness-{args.name or bundle.name}",
        {
            "model": bundle.name,
            "weights_sha256": weights_sha256(bundle),
            "summary": summary,
            "rows": rows,
        },
        packages=["nilearn"],
    )
    table = _page(json.loads(path.read_text(encoding="utf-8")), path.stem)
    write_page(path, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_pair_options(parser)
    add("--model", type=Path, metavar="BUNDLE", help="(default: the shipped one)")
    add("--neonate", type=Path, metavar="DIR", help="NAME_T1w_brain, _T2w_brain, _Segmentation")
    add("--name", help="of the result files (default: the model's)")
    add("--threads", type=int, help="default: all cores")
    args = parser.parse_args()
    return exit_code("robustness.py", lambda: run(args))


def _page(result: Row, name: str) -> str:
    failures = [
        f"- {row['case']}, {row['pair']}: {row['error']}\n"
        for row in result["rows"]
        if "error" in row
    ]
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/robustness.py` from `{name}.json`: {result['model']}, commit "
        f"{result['commit']}. Means over the pairs. The trouble is in the moving image; where it "
        "is moved or resampled its labels are too, by nearest neighbour, so a part of the change "
        "in Dice is theirs. The last column is the largest difference, over all voxels, from the "
        "field of the same pair as it is, where the moving voxels stay in their places.\n\n"
        + markdown_table(result["summary"], COLUMNS)
        + ("\nRefused:\n\n" + "".join(failures) if failures else "")
    )


if __name__ == "__main__":
    sys.exit(main())
