"""Train ParaMorph on your own volumes: `python models/train.py --help`."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from paramorph_rt.errors import exit_code, imports_of

with imports_of("train", "train"):
    import torch
    from lightning_fabric import Fabric

    from paramorph.options import add_config_options, overrides_of
    from paramorph.run_config import RunConfig, all_options, load_run_config
    from paramorph.training import PRECISIONS, Trainer

EPILOG = """
examples:
  python models/train.py --options > mine.toml          every option, its default, what it means
  python models/train.py --config mine.toml
  python models/train.py --config mine.toml --resume    go on after a kill, or a power cut
  python models/train.py --config mine.toml --resume --set training.steps=2000   or for longer
  python models/train.py --config mine.toml --set training.steps=20 --out runs/try
  torchrun --nproc-per-node 4 models/train.py --config mine.toml     four GPUs, or four processes

The run folder gets config.toml, command.txt (exact command and versions), log.jsonl, tensorboard/,
pictures/, checkpoint.pt, metrics.json and weights.safetensors.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Train ParaMorph without supervision (labels, if there are any, are for "
        "validation, or join the loss with loss.labels).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(p)
    p.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    return p


def run(args: argparse.Namespace) -> None:
    if args.options:
        print(all_options(), end="")
        return
    config = load_run_config(args.config, overrides_of(args))
    config.run.check_new(args.resume)
    info = config.weights_info()
    fabric = _fabric(args.device, PRECISIONS[config.training.precision])
    if args.threads:
        torch.set_num_threads(args.threads)
    with fabric.rank_zero_first():  # the others find everything prepared
        training, validation = config.prepared()
    trainer = Trainer(
        config.run.folder,
        info,
        config.training,
        training,
        validation,
        loss=config.loss,
        augmentation=config.augmentation,
        fabric=fabric,
    )
    if args.resume and trainer.resume():
        fabric.print(f"resumed at step {trainer.step}")
    elif config.run.init:
        trainer.start_from(config.run.init)
    if fabric.is_global_zero:
        _record(config, args.config)
    trainer.run()
    fabric.print(f"weights: {trainer.folder.weights}")


def _fabric(device: str | None, precision: str) -> Fabric:
    """One process, or all that torchrun has started, over as many machines."""
    accelerator = device or ("cuda" if torch.cuda.is_available() else "cpu")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=accelerator,
        devices=here,
        num_nodes=processes // here,
        strategy="ddp" if processes > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def _record(config: RunConfig, source: Path) -> None:
    """The request and the environment, for later readers of the run folder."""
    (config.run.folder / "config.toml").write_text(config.as_toml(), encoding="utf-8")
    names = ("torch", "numpy", "SimpleITK", "lightning-fabric", "paramorph-rt")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    with open(config.run.folder / "command.txt", "a", encoding="utf-8") as file:
        file.write(f"{shlex.join(['python', *sys.argv])}\n")
        file.write(f"# from {source}; python {platform.python_version()}, {versions}\n")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("train", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
