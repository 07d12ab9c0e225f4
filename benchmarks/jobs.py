"""Registration jobs from files to files, ours and peers', each in its own process.

Each writes the warped image, the warped labels, a complete displacement field and the mean Dice, by
the means that its own users have: ours is the command `paramorph-rt infer`, peers are in peers.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isolated import run_measured
from paramorph_rt.errors import MissingDependencyError
from record import check_known, read_result, version_of

if TYPE_CHECKING:
    from pairs import Case
    from paramorph_rt.bundle import Bundle

ROLES = ("moving", "fixed", "moving_labels", "fixed_labels")
METRICS = "metrics.json"
FIELD = "displacement.nii.gz"
WARPED, WARPED_LABELS = "warped.nii.gz", "warped_labels.nii.gz"  # as `infer` calls them
START_UP = "start-up"  # interpreter, imports, reading a bundle, the end: all beside the stages
NETWORK_STAGES = ("network", "features")
# Not part of the registration itself, which goes from images in memory to warped images and field.
AROUND = (START_UP, "load", "load network", "metrics", "save")


@dataclass(frozen=True)
class Task:
    """A pair on disk and a folder for the results; all paths absolute.

    Attributes:
        affine: What precedes the deformable registration: "affine", or "rigid" for a cut-out of a
            larger body.
    """

    moving: str
    fixed: str
    moving_labels: str
    fixed_labels: str
    out: str
    affine: str = "affine"

    @classmethod
    def of(cls, case: Case, out: Path, affine: str = "affine") -> Task:
        moving, fixed = case.moving, case.fixed
        paths = (moving.image, fixed.image, moving.labels, fixed.labels, out)
        return cls(*(str(path.resolve()) for path in paths), affine)


@dataclass(frozen=True)
class Job:
    """One way to do it.

    Attributes:
        title: What tables and plots call it.
        peer: A key of `peers.PEERS`, or None for ours.
        package: That a peer needs besides our own ones.
        model: Bundle, or "none" for no network, for ours; None is the shipped one.
        refine: As the option of `infer`, for ours; None is the default.
        engine: `backend:precision`, for ours.
        masks: Where brain masks come from, for ours: "strip", or the "labels" of both images.
    """

    title: str
    peer: str | None = None
    package: str | None = None
    model: str | None = None
    refine: str | None = None
    engine: str = "auto:auto"
    masks: str | None = None

    def run(self, task: Task, threads: int, timeout_s: float) -> dict[str, Any]:
        """Do it in a process of its own.

        Returns:
            `seconds` from the process's start to its end, `cpu_seconds`, `peak_mb`, and `stages`
            (seconds by name); or `error`.
        """
        usage = run_measured(self._command(task, threads), threads, timeout_s)
        if "error" in usage:
            return usage
        stages = read_result(Path(task.out) / METRICS)["seconds"]
        return {**usage, "stages": {START_UP: usage["seconds"] - sum(stages.values()), **stages}}

    def _command(self, task: Task, threads: int) -> list[str]:
        if self.peer:
            peers = Path(__file__).with_name("peers.py")
            return [sys.executable, str(peers), self.peer, json.dumps(asdict(task))]
        kind = "rigid" if task.affine == "rigid" else None
        options = {"affine": kind, "refine": self.refine, "model": self.model, "threads": threads}
        files = {role: getattr(task, role) for role in ROLES}
        if self.masks == "labels":
            files |= {"moving_mask": task.moving_labels, "fixed_mask": task.fixed_labels}
        command = infer_command(files, task.out, self.engine, **options)
        command += ["--strip"] if self.masks == "strip" else []
        return [*command, "--no-surface-distances"]  # of metrics, peers take the Dice alone


#: The methods of all tables and plots; another peer or setting of ours is another entry.
JOBS: dict[str, Job] = {
    "nothing": Job("no registration", "nothing"),
    "affine": Job("affine", "affine"),
    "default": Job("ParaMorph"),
    "no-network": Job("ParaMorph, no network", model="none"),
    "no-network-thorough": Job("ParaMorph, no network, 16 iterations", model="none", refine="16"),
    "unrefined": Job("ParaMorph, not refined", refine="off"),
    "thorough": Job("ParaMorph, 16 iterations", refine="16"),
    "auto": Job("ParaMorph, --model auto", model="auto"),
    "forced": Job("ParaMorph, brain-t1-small", model="brain-t1-small"),
    "strip": Job("ParaMorph, --strip", model="auto", masks="strip"),
    "masked": Job("ParaMorph, masks of the labels", model="auto", masks="labels"),
    "onnxruntime": Job("ParaMorph, ONNX Runtime", engine="onnxruntime:fp32"),
    "openvino": Job("ParaMorph, OpenVINO", engine="openvino:fp32"),
    "openvino-bf16": Job("ParaMorph, OpenVINO bf16", engine="openvino:bf16"),
    "demons": Job("diffeomorphic demons", "demons"),
    "elastix": Job("elastix B-spline", "elastix", "itk-elastix"),
    "syn": Job("ANTs SyN", "syn", "antspyx"),
    "greedy": Job("greedy", "greedy", "picsl-greedy"),
    "greedy-sv": Job("greedy, log-demons", "greedy-sv", "picsl-greedy"),
    "convexadam": Job("ConvexAdam", "convexadam", "convexAdam"),
    "fireants": Job("FireANTs", "fireants", "fireants"),
}
#: The peers whose time others are measured by.
YARDSTICKS = {"greedy": JOBS["greedy"].title, "syn": JOBS["syn"].title}


def infer_command(
    files: Mapping[str, object], out: object, engine: str, **options: object
) -> list[str]:
    """`paramorph-rt infer`, by its options' names; those that are None are left out.

    Args:
        files: By role.
        out: Folder of the results.
        engine: `backend:precision`, or `backend` alone.
        options: Any others.
    """
    backend, _, precision = engine.partition(":")
    options |= {**files, "out_dir": out, "backend": backend, "precision": precision or None}
    command = [sys.executable, "-m", "paramorph_rt", "infer"]
    for name, value in options.items():
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return command


def jobs_named(names: str, bundles: Mapping[str, Bundle]) -> list[Job]:
    """The jobs of a command line; those with a network once per bundle.

    Args:
        names: Keys of `JOBS`, with commas between them.
        bundles: By label, which goes into the title unless there is but one; see `named_bundles`.

    Raises:
        BenchmarkError: A name that is unknown.
        MissingDependencyError: A peer whose package is not installed.
    """
    wanted = [name for name in names.split(",") if name]
    check_known("--methods", wanted, JOBS)
    jobs = []
    for name in wanted:
        job = JOBS[name]
        if job.package and version_of(job.package) is None:
            raise MissingDependencyError(
                f"{name}: expected the package {job.package}, found none; install it as "
                "benchmarks/README.md says, or leave it out of --methods."
            )
        if job.peer or job.model:
            jobs.append(job)
            continue
        for label, bundle in bundles.items():
            title = f"{job.title}, {label}" if len(bundles) > 1 else job.title
            jobs.append(replace(job, title=title, model=str(bundle.folder)))
    return jobs


def packages_of(jobs: Iterable[Job]) -> list[str]:
    """Whose versions a result names."""
    return sorted({job.package for job in jobs if job.package} | {"openvino"})


def of_network(stages: Mapping[str, float]) -> float | None:
    """Seconds of a job's networks; None if it has none."""
    seconds = [stages[stage] for stage in NETWORK_STAGES if stage in stages]
    return sum(seconds) if seconds else None


def of_registration(stages: Mapping[str, float]) -> float:
    """Seconds of a job's registration, from images in memory to warped images and field."""
    return sum(seconds for stage, seconds in stages.items() if stage not in AROUND)
