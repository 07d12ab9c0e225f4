"""Bundles as a command line names them, and the weights that they were exported from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pairs import BenchmarkError
from paramorph_rt.bundle import Bundle, default_bundle_path, load_bundle
from record import weights_sha256

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    import onnx


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """`--model`, once per bundle, for `named_bundles`."""
    parser.add_argument(
        "--model", action="append", metavar="BUNDLE[:LABEL]", help="(default: the shipped one)"
    )


def named_bundles(models: Sequence[str] | None) -> dict[str, Bundle]:
    """Bundles by label; one without a label goes by its own name.

    Raises:
        BundleError: One that cannot be loaded.
        BenchmarkError: Two of one label.
    """
    found: dict[str, Bundle] = {}
    for model in models or [str(default_bundle_path())]:
        path, colon, label = model.rpartition(":")
        if Path(model).is_dir() or not colon:
            path, label = model, ""
        bundle = load_bundle(Path(path).resolve())
        label = label or bundle.name
        if label in found:
            raise BenchmarkError(
                f"{label}: expected one bundle of that name, got two; tell them apart by --model "
                "BUNDLE:LABEL."
            )
        found[label] = bundle
    return found


def single_bundle(models: Sequence[str] | None) -> tuple[str, Bundle]:
    """The one bundle that was named, and its label.

    Raises:
        BundleError: It cannot be loaded.
        BenchmarkError: More than one.
    """
    found = named_bundles(models)
    if len(found) > 1:
        raise BenchmarkError(
            f"--model: expected one bundle, got {len(found)}; measure them one after the other."
        )
    return next(iter(found.items()))


def traced(bundle: Bundle, weights: Path) -> onnx.ModelProto:
    """The float32 graph of a bundle's grid as it is traced, before it is rewritten for CPUs.

    Args:
        weights: That the bundle was exported from (`weights_of`).
    """
    from paramorph.checkpoint import load_weights
    from paramorph_export.trace import onnx_from_network

    return onnx_from_network(load_weights(weights)[0], bundle.inputs.grid.shape)


def weights_of(bundle: Bundle, files: Iterable[Path] = ()) -> Path:
    """The file of weights that a bundle was exported from, by its hash.

    Args:
        bundle: Its manifest has the hash.
        files: Where to look, besides the bundle.

    Raises:
        BenchmarkError: None of them.
    """
    wanted = weights_sha256(bundle)
    for path in (*files, *bundle.folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == wanted:
                return path.resolve()
    raise BenchmarkError(
        f"{bundle.name}: expected the weights of SHA-256 {(wanted or 'unknown')[:12]}… for "
        "PyTorch, found none; pass --weights, or leave PyTorch out of --contenders."
    )
