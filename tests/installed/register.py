"""What an installed paramorph-rt does for its user: Colin27 to a deformed copy, in both ways.

Run by a Python that has the package and nothing else, far from its source:
`python register.py COLIN27_FOLDER WORK_FOLDER [BACKEND]`. Only what the base install brings is
imported here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import SimpleITK as sitk

WAVE_MM, BEND_MM = 60.0, 4.0
TURN_DEGREES = 6
NEVER = {"torch", "onnx", "onnxscript", "paramorph", "paramorph_export", "scipy"}


def deformed(image: sitk.Image, interpolator: int) -> sitk.Image:
    """The image turned and bent by waves, on its own grid."""
    grid = sitk.Image(image.GetSize(), sitk.sitkVectorFloat64, 3)
    grid.CopyInformation(image)
    index = np.indices(image.GetSize()[::-1])[::-1]  # x, y, z
    waves = [BEND_MM * np.sin(2 * np.pi * index[(axis + 1) % 3] / WAVE_MM) for axis in range(3)]
    field = sitk.GetImageFromArray(np.stack(waves, axis=-1), isVector=True)
    field.CopyInformation(grid)
    turn = sitk.Euler3DTransform()
    turn.SetCenter(image.TransformContinuousIndexToPhysicalPoint([n / 2 for n in image.GetSize()]))
    turn.SetRotation(0, 0, np.radians(TURN_DEGREES))
    bend = sitk.CompositeTransform([turn, sitk.DisplacementFieldTransform(field)])
    return sitk.Resample(image, image, bend, interpolator, 0.0)


def check_metrics(folder: Path, backend: str) -> None:
    """The labels met, and the engine is the one that was asked for."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    before, after = (metrics["dice"][stage]["mean"] for stage in ("before", "after"))
    print(f"Dice of 116 labels {before:.3f} before, {after:.3f} after, by {metrics['backend']}")
    assert after > before + 0.2, "the labels did not meet"
    if backend != "auto":
        assert metrics["backend"].startswith(backend)


def main() -> int:
    colin, work, backend = Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ["auto"])[0]
    moving, moving_labels = colin / "ch2bet.nii.gz", colin / "aal.nii.gz"
    fixed, fixed_labels = work / "fixed.nii.gz", work / "fixed_labels.nii.gz"
    for source, target, interpolator in (
        (moving, fixed, sitk.sitkLinear),
        (moving_labels, fixed_labels, sitk.sitkNearestNeighbor),
    ):
        sitk.WriteImage(deformed(sitk.ReadImage(str(source)), interpolator), str(target))

    program = Path(sysconfig.get_path("scripts")) / "paramorph-rt"
    command = [str(program), "infer", "--moving", str(moving), "--fixed", str(fixed)]
    command += ["--moving-labels", str(moving_labels), "--fixed-labels", str(fixed_labels)]
    command += ["--out-dir", str(work / "command"), "--backend", backend]
    command += ["--no-surface-distances"]
    subprocess.run(command, check=True)
    check_metrics(work / "command", backend)

    from paramorph_rt import Registration

    register = Registration(backend=backend)
    register(moving, fixed).save(work / "python")
    same = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(work / way / "warped.nii.gz")))
        for way in ("command", "python")
    ]
    np.testing.assert_allclose(*same, atol=1e-3 * float(same[0].max()))
    assert not NEVER & set(sys.modules), "more than the base install was imported"
    return 0


if __name__ == "__main__":
    sys.exit(main())
