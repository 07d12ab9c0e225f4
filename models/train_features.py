"""Train a feature network on labelled volumes: `python models/train_features.py --help`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from paramorph_rt.bundle import InputSpec
from paramorph_rt.errors import ParamorphError, exit_code, imports_of

with imports_of("train_features", "train"):
    import numpy as np
    import torch

    from paramorph.augmentation import Augmentation
    from paramorph.checkpoint import FeatureInfo, load_feature_weights
    from paramorph.data import DataConfig, Subject, load_split, prepare_subjects
    from paramorph.data.label_maps import LabelMapConfig, load_label_maps
    from paramorph.examples import (
        Examples,
        Imaged,
        Painted,
        check_labelled,
        common_labels,
        numbered,
    )
    from paramorph.feature_network import FeatureConfig
    from paramorph.feature_training import FeatureTrainer, FeatureTrainingConfig
    from paramorph.options import (
        add_config_options,
        option,
        overrides_of,
        read_sections,
        toml_text,
    )
    from paramorph.run_config import GridOptions, RunOptions
    from paramorph.synthesis import Painter, Synthesis


@dataclass(frozen=True)
class FeatureOptions:
    """The network."""

    widths: tuple[int, ...] = option((16, 32, 64, 96, 128), "channels at each scale, finest first")
    embedding: int = option(12, "values per voxel that distinguish the labels")
    channels: int = option(6, "features per voxel, which the code of a label consists of")
    strength: float = option(1.0, "of the features beside the intensities: length of the codes")
    smoothing: float = option(
        1.0, "factor on the refinement's smoothing of fields where these features are compared"
    )


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
    add_config_options(p)
    return p


def run(args: argparse.Namespace) -> None:
    if args.options:
        print(toml_text(SECTIONS), end="")
        return
    c = read_sections(args.config, SECTIONS, overrides_of(args))
    run: RunOptions = c["run"]
    run.check_new(args.resume)
    if args.threads:
        torch.set_num_threads(args.threads)
    info = weights_info(c)
    trainer = FeatureTrainer(run.folder, info, c["training"], examples(c))
    if args.resume and trainer.resume():
        print(f"resumed at step {trainer.step}")
    elif run.init:
        trainer.start_from(run.init)
    (run.folder / "config.toml").write_text(toml_text(c), encoding="utf-8")
    trainer.run()
    print(f"weights: {trainer.folder.weights}")


def weights_info(c: dict[str, Any]) -> FeatureInfo:
    """What the weights will say about themselves."""
    run, grid, network = c["run"], c["grid"], FeatureConfig(**vars(c["features"]))
    if any(n % network.size_multiple for n in grid.shape):
        raise ParamorphError(
            f"[grid] shape: expected multiples of {network.size_multiple}, got {grid.shape}."
        )
    origin = run.origin(load_feature_weights)
    return FeatureInfo(run.name, network, **vars(grid), provenance=origin)


def examples(c: dict[str, Any]) -> Examples:
    """Of labelled images, of label maps of which images are painted, or of both."""
    spec = c["grid"].spec
    images = ([], [])
    if c["data"].root:
        images = prepared(c["run"], c["data"], spec)
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
    settings = {name: asdict(c[name]) for name in ("augmentation", "synthesis")}
    return Examples(learned, training, validation, settings)


def prepared(
    run: RunOptions, data: DataConfig, spec: InputSpec
) -> tuple[list[Subject], list[Subject]]:
    """Labelled images on the network grid, to train and to validate on."""
    split = load_split(data)
    files = [*split.training, *split.validation]
    prepare = partial(prepare_subjects, spec=spec, cache=run.cache(data))
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
