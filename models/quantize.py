"""Store weights in int8: `python models/quantize.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paramorph_rt.errors import ParamorphError, exit_code, imports_of

with imports_of("quantize", "train"):
    import torch

    from paramorph.checkpoint import (
        FeatureInfo,
        load_feature_weights,
        load_weights,
        save_weights,
        weights_kind,
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Round large tensors of trained weights to int8 with a scale per row, half the "
        "bytes of float16. Networks still compute in float32, with the rounded values.",
    )
    p.add_argument("weights", type=Path, help=".safetensors of a registration or feature network")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="another file")
    return p


def run(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise ParamorphError(
            f"{args.out}: expected a new file, got an existing one; choose another."
        )
    is_features = weights_kind(args.weights) is FeatureInfo
    network, info = (load_feature_weights if is_features else load_weights)(args.weights)
    save_weights(args.out, network.state_dict(), info, torch.int8)
    before, after = (path.stat().st_size / 1e6 for path in (args.weights, args.out))
    print(f"{args.out}: {after:.1f} MB, {before:.1f} before")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("quantize", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
