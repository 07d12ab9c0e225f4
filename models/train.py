"""Train ParaMorph on a folder of volumes: `python models/train.py --help`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from paramorph.checkpoint import WeightsInfo, load_weights, sha256_of
from paramorph.config import CONFIGS, check_shape, config_named
from paramorph.data import find_subjects, prepare_subjects
from paramorph.losses import SIMILARITIES
from paramorph.training import Trainer, TrainingConfig
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import ParamorphError, exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Train ParaMorph without supervision on a folder of volumes "
        "(NAME.nii.gz, with NAME_labels.nii.gz beside it where labels exist)."
    )
    p.add_argument("--data", type=Path, required=True, help="folder of training volumes")
    p.add_argument("--validation", type=Path, help="folder of validation volumes")
    p.add_argument("--out", type=Path, required=True, help="run folder: log, checkpoint, weights")
    p.add_argument("--name", default="paramorph", help="what the weights are to be called")
    p.add_argument("--network", default="paramorph-small", choices=list(CONFIGS))
    p.add_argument("--fusion", default="cross", choices=["cross", "post"])
    p.add_argument(
        "--window", type=int, nargs=3, help="attention window, tokens (default: shape / 32)"
    )
    p.add_argument(
        "--shape", type=int, nargs=3, default=[160, 160, 96], help="network grid, voxels D H W"
    )
    p.add_argument(
        "--spacing", type=float, nargs=3, default=[1.0, 1.0, 1.0], help="of that grid, mm"
    )
    p.add_argument("--orientation", default="RAS", help="of its axes D H W (default RAS)")
    p.add_argument(
        "--percentiles",
        type=float,
        nargs=2,
        default=[0.0, 100.0],
        help="intensities that become 0 and 1, among voxels above the minimum (default 0 100)",
    )
    p.add_argument("--reference", help="subject that all are aligned to (default: the first)")
    p.add_argument(
        "--init",
        type=Path,
        metavar="WEIGHTS",
        help="start from these weights, e.g. of a training on a coarser grid",
    )
    p.add_argument("--drop-path", type=float, default=0.0, help="stochastic depth (default 0)")
    p.add_argument("--similarity", default="ncc", choices=list(SIMILARITIES))
    p.add_argument("--smoothness", type=float, help="weight (default 1 for ncc, 0.02 for mse)")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--learning-rate", type=float, default=5e-4)
    p.add_argument("--validate-every", type=int, default=100, help="steps")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--float32", action="store_true", help="no bfloat16")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return p


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    shape = check_shape(tuple(args.shape))
    if (args.out / "checkpoint.pt").exists() and not args.resume:
        raise ParamorphError(
            f"{args.out}: expected a new run folder, got one with a checkpoint; "
            "pass --resume to go on with it or choose another --out."
        )
    info = WeightsInfo(
        name=args.name,
        network=config_named(args.network).with_options(
            window=tuple(args.window or (n // 32 for n in shape)),
            fusion=args.fusion,
            drop_path=args.drop_path,
        ),
        shape=shape,
        spacing_mm=tuple(args.spacing),
        orientation=args.orientation,
        lower_percentile=args.percentiles[0],
        upper_percentile=args.percentiles[1],
        provenance={"config": args.network, **_origin(args.init)},
    )
    spec = InputSpec(
        GridSpec(info.shape, info.spacing_mm, info.orientation), IntensitySpec(*args.percentiles)
    )
    files = find_subjects(args.data)
    by_name = {subject.name: subject for subject in files}
    reference = by_name.get(args.reference or files[0].name)
    if reference is None:
        raise ParamorphError(
            f"--reference: expected a subject of {args.data}, got {args.reference}; "
            f"choose one of {', '.join(by_name)}."
        )
    cache = args.out / "cache"
    training = prepare_subjects(files, reference, spec, cache)
    validation_files = find_subjects(args.validation) if args.validation else []
    trainer = Trainer(
        args.out,
        info,
        TrainingConfig(
            steps=args.steps,
            learning_rate=args.learning_rate,
            similarity=args.similarity,
            smoothness=args.smoothness,
            bf16=not args.float32,
            seed=args.seed,
            validate_every=args.validate_every,
        ),
        training,
        prepare_subjects(validation_files, reference, spec, cache),
        args.device,
    )
    if args.init:
        trainer.start_from(args.init)
    if args.resume and trainer.resume():
        print(f"resumed at step {trainer.step}")
    with open(args.out / "command.txt", "a") as file:
        file.write(shlex.join(["python", *sys.argv]) + f"  # torch {torch.__version__}\n")
    trainer.run()
    print(f"weights: {args.out / 'weights.safetensors'}")


def _origin(init: Path | None) -> dict[str, Any]:
    """What the weights will say about those that they started from."""
    if init is None:
        return {}
    _, info = load_weights(init)
    return {"started_from": {"sha256": sha256_of(init), **info.provenance}}


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("train", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
