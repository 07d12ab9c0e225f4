"""Register Colin27 to the MNI152 template with the shipped model, and draw before and after.

Both come along: `examples/colin27` beside this file, the template inside the PyPI package nilearn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from paramorph_rt.cli import main as paramorph_rt
from paramorph_rt.errors import imports_of
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import to_sitk
from paramorph_rt.images.volume import Volume, load_volume
from paramorph_rt.steps.foreground import foreground_box
from paramorph_rt.transforms.itk import read_affine

with imports_of("demo", "demo"):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from nilearn.datasets import load_mni152_template

COLIN27 = Path(__file__).parent / "colin27"


def picture(moving: Volume, fixed: Volume, out_dir: Path) -> None:
    """Three planes of the moving image: where its header puts it, after the affine, after all.

    The contour, everywhere the same, is that of the fixed image's brain and ventricles.
    """
    columns = {
        "moving": resample_to_grid(moving, fixed.grid),
        "after affine": resample_to_grid(moving, fixed.grid, read_affine(out_dir / "affine.tfm")),
        "after ParaMorph": load_volume(out_dir / "warped.nii.gz").data,
        "fixed": fixed.data,
    }
    lo, hi = foreground_box(fixed)
    box = tuple(slice(max(a - 6, 0), b + 6) for a, b in zip(lo, hi, strict=True))
    middle = [(a + b) // 2 for a, b in zip(lo, hi, strict=True)]
    middle[0] += 6  # beside the midline, where there are ventricles
    smooth = sitk.GetArrayFromImage(
        sitk.SmoothingRecursiveGaussian(to_sitk(fixed.data, fixed.grid), 1.5)
    ).T

    def plane(volume: np.ndarray, axis: int) -> np.ndarray:
        return np.take(volume, middle[axis], axis)[tuple(np.delete(np.array(box), axis))].T

    figure, axes = plt.subplots(3, 4, figsize=(12, 10.6), facecolor="black")
    for axis in range(3):
        for column, (title, volume) in enumerate(columns.items()):
            ax = axes[axis, column]
            image = plane(volume / np.percentile(volume[volume > 0], 99.5), axis)
            ax.imshow(image, cmap="gray", origin="lower", vmin=0, vmax=1.1)
            level = 0.6 * np.median(fixed.data[fixed.data > 0])
            ax.contour(plane(smooth, axis), levels=[level], colors="#ff6040", linewidths=0.9)
            ax.set_axis_off()
            if axis == 0:
                ax.set_title(title, color="white", fontsize=14)
    figure.tight_layout(pad=0.4)
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
