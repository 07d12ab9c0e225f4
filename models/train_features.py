"""Train a feature network on labelled volumes: `python models/train_features.py --help`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import ParamorphError, exit_code, imports_of
from paramorph_rt.system.files import sha256_of

with imports_of("train_features", "train"):
    import numpy as np
    import torch

    from paramorph.augmentation import Augmentation
    from paramorph.checkpoint import FeatureInfo, load_feature_weights
    from paramorph.data import DataConfig, Subject, load_split, prepare_subjects
    from paramorph.data.label_maps import LabelMapConfig, load_label_maps
    from paramorph.examples import Imaged, Painted, Source, check_labelled, common_labels, numbered
    from paramorph.feature_network import FeatureConfig
    from paramorph.feature_training import FeatureTrainer, FeatureTrainingConfig
    from paramorph.options import from_table, option, read_table, toml_text
    from paramorph.run_config import GridOptions, RunOptions
    from paramorph.synthesis import Painter, Synthesis


@dataclass(frozen=True)
class FeatureOptions:
    """The network."""

    widths: tuple[int, ...] = option((16, 32, 64, 96, 128), "channels at each scale, finest first")
    embedding: int = option(12, "values per voxel that distinguish the labels")
    channels: int = option(6, "features per voxel, which the code of a label consists of")
    strength: float = option(1.0, "of the features beside the intensities: length of the codes")


SECTIONS = {
    "run": RunOptions,
    "data": DataConfig,
    "label_maps": LabelMapConfig,
    "grid": GridOptions,
    "features": FeatureOptions,
    "training": FeatureTrainingConfig,
    "augmentation": Augmentation,
    "synthesis": Synthesis,
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Train a network whose features are alike where two images show the same "
        "structure, from volumes with label maps, or from label maps alone. The refinement of a "
        "pair compares them.",
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="FILE", help="TOML file of options")
    what.add_argument("--options", action="store_true", help="print every option and stop")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="stronger than the file; may be repeated",
    )
    p.add_argument("--out", help="run folder (short for --set run.out=…)")
    p.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    p.add_argument("--threads", type=int, help="CPU threads")
    return p


def run(args: argparse.Namespace) -> None:
    if args.options:
        print(toml_text(SECTIONS), end="")
        return
    overrides = [*args.set, *([f"run.out={json.dumps(args.out)}"] if args.out else [])]
    table = read_table(args.config, overrides)
    if unknown := set(table) - set(SECTIONS):
        raise ParamorphError(
            f"{args.config}: expected the sections {', '.join(SECTIONS)}, got "
            f"{', '.join(sorted(unknown))}; see --options."
        )
    c = {name: from_table(kind, name, table.get(name, {})) for name, kind in SECTIONS.items()}
    run, grid = c["run"], c["grid"]
    if not run.out:
        raise ParamorphError("[run] out: expected a folder, got none; set it or pass --out.")
    out = Path(run.out).expanduser()
    if (out / "checkpoint.pt").exists() and not args.resume:
        raise ParamorphError(
            f"{out}: expected a new run folder, got one with a checkpoint; "
            "pass --resume to go on with it or choose another --out."
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    network = FeatureConfig(**vars(c["features"]))
    if any(n % network.size_multiple for n in grid.shape):
        raise ParamorphError(
            f"[grid] shape: expected multiples of {network.size_multiple}, got {grid.shape}."
        )
    intensity = IntensitySpec(grid.lower_percentile, grid.upper_percentile)
    spec = InputSpec(GridSpec(grid.shape, grid.spacing_mm, grid.orientation), intensity)
    origin = {}
    if run.init:
        _, theirs = load_feature_weights(run.init)
        origin = {"started_from": {"sha256": sha256_of(run.init), **theirs.provenance}}
    info = FeatureInfo(
        run.name,
        network,
        grid.shape,
        grid.spacing_mm,
        grid.orientation,
        grid.lower_percentile,
        grid.upper_percentile,
        origin,
    )
    learned, training, validation = sources(c, spec, out)
    trainer = FeatureTrainer(
        out,
        info,
        c["training"],
        learned,
        training,
        validation,
        {name: asdict(c[name]) for name in ("augmentation", "synthesis")},
    )
    if args.resume and trainer.resume():
        print(f"resumed at step {trainer.step}")
    elif run.init:
        trainer.start_from(run.init)
    (out / "config.toml").write_text(toml_text(c), encoding="utf-8")
    trainer.run()
    print(f"weights: {trainer.folder.weights}")


def sources(
    c: dict[str, Any], spec: InputSpec, out: Path
) -> tuple[dict[int, int], list[Source], list[Source]]:
    """The number of each label that is learned, and what it is learned from.

    Labelled images, label maps of which images are painted, or both; to train and to validate on.
    """
    images = ([], [])
    if c["data"].root:
        images = prepared(c["data"], spec, out)
    maps = load_label_maps(c["label_maps"], spec.grid, c["training"].labels)
    if not (images[0] or maps[0]):
        raise ParamorphError(
            "training data: expected [data] root, [label_maps] root or both, got neither; set one."
        )
    every = sorted({0}.union(*(np.unique(m.labels).tolist() for part in maps for m in part)))
    chosen = c["training"].labels
    known = [subject.labels for subject in images[0]] + [m.labels for m in maps[0]]
    learned = numbered({0, *chosen} if chosen else common_labels(known), c["training"].merged)
    painter = Painter(c["synthesis"], every, learned)
    change, shape = c["augmentation"], spec.grid.shape
    training, validation = (
        [Imaged(subject, learned, change) for subject in images[part]]
        + [Painted(m, every, learned, painter, change, shape) for m in maps[part]]
        for part in (0, 1)
    )
    return learned, training, validation


def prepared(data: DataConfig, spec: InputSpec, out: Path) -> tuple[list[Subject], list[Subject]]:
    """Labelled images on the network grid, to train and to validate on."""
    split = load_split(data)
    cache = Path(data.cache).expanduser() if data.cache else out / "cache"
    files = [*split.training, *split.validation]
    prepare = partial(prepare_subjects, spec=spec, cache=cache)
    if data.affine:
        subjects = prepare(files, split.reference, workers=data.workers)
    else:  # no two images meet, so each has the grid over its own foreground
        subjects = [prepare([one], one, affine=False)[0] for one in files]
    for subject in subjects:
        check_labelled(subject)
    count = len(split.training)
    return subjects[:count], subjects[count:]


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("train_features", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
