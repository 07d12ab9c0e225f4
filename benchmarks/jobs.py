"""The whole job from files to files, by us and by peers: read, register, warp, Dice of all, write.

Everyone is asked for the warped image, the warped labels, a complete displacement field and the
mean Dice, by the means that its own users have. Run as a script, this is a peer's process.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isolated import run_measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paramorph.data import SubjectFiles

METRICS = "metrics.json"
MANY = "many"
START_UP = "start-up"  # interpreter, imports, reading a bundle, the end: all beside the stages


@dataclass(frozen=True)
class Files:
    """A pair on disk and a folder for the results; all paths absolute."""

    moving: str
    fixed: str
    moving_labels: str
    fixed_labels: str
    out: str

    @classmethod
    def of(cls, moving: SubjectFiles, fixed: SubjectFiles, out: Path) -> Files:
        paths = (moving.image, fixed.image, moving.labels, fixed.labels, out)
        return cls(*(str(path.resolve()) for path in paths))


@dataclass(frozen=True)
class Job:
    """One way to do it.

    Attributes:
        title: What tables call it.
        peer: A key of `PEERS`, or None for ours.
        model: Bundle, for ours.
        engine: `backend:precision`, for ours.
    """

    title: str
    peer: str | None = None
    model: str | None = None
    engine: str = "auto:auto"

    def run(self, files: Files, threads: int, timeout_s: float) -> dict[str, Any]:
        """Do it in a process of its own.

        Returns:
            `seconds` from the process's start to its end, `cpu_seconds`, `peak_mb`, `stages`
            (seconds by name) and mean `dice`; or `error`.
        """
        usage = run_measured(self._command(files, threads), threads, timeout_s)
        if "error" in usage:
            return usage
        told = json.loads((Path(files.out) / METRICS).read_text(encoding="utf-8"))
        rest = usage["seconds"] - sum(told["seconds"].values())
        dice = told["dice"] if self.peer else told["dice"]["after"]["mean"]
        return {**usage, "stages": {START_UP: rest, **told["seconds"]}, "dice": dice}

    def run_many(
        self, files: Files, count: int, threads: int, timeout_s: float
    ) -> dict[str, float] | dict[str, str]:
        """Ours on the same pair again and again, through one `Registration`; see `run_measured`."""
        task = {"model": self.model, "engine": self.engine, "count": count, "threads": threads}
        task["files"] = asdict(files)
        command = [sys.executable, __file__, MANY, json.dumps(task)]
        return run_measured(command, threads, timeout_s)

    def _command(self, files: Files, threads: int) -> list[str]:
        if self.peer:
            return [sys.executable, __file__, self.peer, json.dumps(asdict(files))]
        backend, _, precision = self.engine.partition(":")
        command = [sys.executable, "-m", "paramorph_rt", "infer", "--threads", str(threads)]
        command += ["--moving", files.moving, "--fixed", files.fixed, "--out-dir", files.out]
        command += ["--moving-labels", files.moving_labels, "--fixed-labels", files.fixed_labels]
        # Of metrics, peers take the Dice alone.
        command += ["--backend", backend, "--precision", precision, "--no-surface-distances"]
        return command + (["--model", self.model] if self.model else [])


class Stages(dict):
    """Seconds by name."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[name] = time.perf_counter() - start


def syn(files: Files, seconds: Stages) -> float:
    """ANTs' symmetric normalisation by antspyx, its affine included."""
    import ants

    with seconds("load"):
        moving, fixed = ants.image_read(files.moving), ants.image_read(files.fixed)
        moving_labels, fixed_labels = (
            ants.image_read(path, pixeltype="unsigned int")
            for path in (files.moving_labels, files.fixed_labels)
        )
    with seconds("register"):
        found = ants.registration(
            fixed, moving, type_of_transform="SyN", outprefix=f"{files.out}/syn_"
        )
    transforms = found["fwdtransforms"]
    with seconds("warp"):
        labels = ants.apply_transforms(
            fixed, moving_labels, transforms, interpolator="nearestNeighbor"
        ).clone("unsigned int")
    with seconds("metrics"):
        table = ants.label_overlap_measures(labels, fixed_labels)
    with seconds("save"):
        ants.image_write(found["warpedmovout"], f"{files.out}/warped.nii.gz")
        ants.image_write(labels, f"{files.out}/warped_labels.nii.gz")
        # Both transforms as one field: syn_comp.nii.gz.
        field = ants.apply_transforms(fixed, moving, transforms, compose=f"{files.out}/syn_")
        Path(field).rename(f"{files.out}/displacement.nii.gz")
    measured = table[table["Label"] != "All"]
    return float(measured["MeanOverlap"].mean())


def elastix(files: Files, seconds: Stages) -> float:
    """elastix by itk-elastix: translation, affine, B-splines, with default parameters."""
    import itk

    from methods import elastix_parameters

    with seconds("load"):
        moving, fixed = itk.imread(files.moving, itk.F), itk.imread(files.fixed, itk.F)
        moving_labels = itk.imread(files.moving_labels, itk.F)
        fixed_labels = itk.imread(files.fixed_labels, itk.SS)
    with seconds("register"):
        warped, found = itk.elastix_registration_method(
            fixed, moving, parameter_object=elastix_parameters()
        )
    with seconds("warp"):
        for number in range(found.GetNumberOfParameterMaps()):
            found.SetParameter(number, "FinalBSplineInterpolationOrder", "0")
        labels = itk.transformix_filter(moving_labels, found)
        labels = itk.cast_image_filter(labels, ttype=(type(labels), type(fixed_labels)))
    with seconds("metrics"):
        overlap = itk.LabelOverlapMeasuresImageFilter.New(
            SourceImage=labels, TargetImage=fixed_labels
        )
        overlap.Update()
        present = [
            set(itk.array_view_from_image(image).ravel().tolist())
            for image in (moving_labels, fixed_labels)
        ]
        values = [overlap.GetDiceCoefficient(int(n)) for n in set.intersection(*present) - {0}]
    with seconds("save"):
        itk.imwrite(warped, f"{files.out}/warped.nii.gz")
        itk.imwrite(labels, f"{files.out}/warped_labels.nii.gz")
        # It writes a file of its own as well, in the working folder unless told where.
        field = itk.transformix_deformation_field(moving, found, output_directory=files.out)
        itk.imwrite(field, f"{files.out}/displacement.nii.gz")
    return float(sum(values) / len(values))


PEERS: dict[str, Callable[[Files, Stages], float]] = {"syn": syn, "elastix": elastix}


def register_many(files: dict[str, str], model: str, engine: str, count: int, threads: int) -> None:
    """The process of `Job.run_many`."""
    from paramorph_rt import Registration

    register = Registration(model, threads, *engine.split(":"))
    inputs = [files[role] for role in ("moving", "fixed", "moving_labels", "fixed_labels")]
    for number in range(count):
        register(*inputs, surfaces=False).save(Path(files["out"]) / str(number))


def main(what: str, task: str) -> None:
    """Run many pairs, or do a peer's job and tell what it took."""
    if what == MANY:
        register_many(**json.loads(task))
        return
    files, seconds = Files(**json.loads(task)), Stages()
    dice = PEERS[what](files, seconds)
    (Path(files.out) / METRICS).write_text(
        json.dumps({"seconds": seconds, "dice": dice}), encoding="utf-8"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
