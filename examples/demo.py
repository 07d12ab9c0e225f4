"""Register Colin27 to the MNI152 template with the shipped model, and draw before and after.

Both come along: `examples/colin27` beside this file, the template inside the PyPI package nilearn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from nilearn.datasets import load_mni152_template

from paramorph_rt.cli import main as paramorph_rt
from paramorph_rt.preprocess import resample_to_grid
from paramorph_rt.transforms.itk import read_affine
from paramorph_rt.volume import Volume, load_volume

COLIN27 = Path(__file__).parent / "colin27"
PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))


def picture(moving: Volume, fixed: Volume, out_dir: Path) -> None:
    """Three planes of moving (as it lies in the world), after its affine, after all, and fixed.

    The contour is that of the fixed brain and its bright tissue: it fits where the image fits.
    """
    warped = load_volume(out_dir / "warped.nii.gz")
    aligned = resample_to_grid(moving, fixed.grid, read_affine(out_dir / "affine.tfm"))
    columns = {
        "moving": resample_to_grid(moving, fixed.grid),
        "after affine": aligned,
        "after ParaMorph": warped.data,
        "fixed": fixed.data,
    }
    figure, axes = plt.subplots(3, 4, figsize=(12, 9.5), facecolor="black")
    levels = np.percentile(fixed.data[fixed.data > 0], [1, 60])
    for row, (_, axis) in zip(axes, PLANES, strict=True):
        index = fixed.grid.shape[axis] // 2 + (8 if axis == 0 else 0)
        outline = np.take(fixed.data, index, axis).T
        for ax, (title, volume) in zip(row, columns.items(), strict=True):
            shown = volume / np.percentile(volume[volume > 0], 99.5)
            ax.imshow(np.take(shown, index, axis).T, cmap="gray", origin="lower", vmin=0, vmax=1)
            ax.contour(outline, levels=levels, colors=["#ff5533", "#ffcc33"], linewidths=0.6)
            ax.set_axis_off()
            if row is axes[0]:
                ax.set_title(title, color="white", fontsize=13)
    figure.tight_layout(pad=0.3)
    figure.savefig(out_dir / "before_after.png", dpi=110)
    print(f"picture: {out_dir / 'before_after.png'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out-dir", type=Path, default=Path("demo"))
    parser.add_argument("--model", type=Path, help="bundle (default: the shipped one)")
    parser.add_argument("--force", action="store_true", help="replace an earlier demo")
    args = parser.parse_args()

    args.out_dir.mkdir(parents=True, exist_ok=True)
    template = args.out_dir / "mni152.nii.gz"
    load_mni152_template(resolution=1).to_filename(template)
    moving, labels = COLIN27 / "ch2bet.nii.gz", COLIN27 / "aal.nii.gz"
    command = ["infer", "--moving", str(moving), "--fixed", str(template)]
    command += ["--moving-labels", str(labels), "--out-dir", str(args.out_dir)]
    command += ["--model", str(args.model)] if args.model else []
    command += ["--force"] if args.force else []
    print("paramorph-rt", *command)
    code = paramorph_rt(command)
    if code == 0:
        picture(load_volume(moving), load_volume(template), args.out_dir)
    return code


if __name__ == "__main__":
    sys.exit(main())
