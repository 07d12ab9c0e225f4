"""Bundles as a command line names them, and the weights that they were exported from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from paramorph_rt.bundle import Bundle, default_bundle_path, load_bundle
from paramorph_rt.system.files import sha256_of
from record import BenchmarkError, weights_sha256


def named_bundles(models: Sequence[str] | None) -> dict[str, Bundle]:
    """Bundles by label; one without a label goes by its own name.

    Raises:
        BundleError: One that cannot be loaded.
        BenchmarkError: Two of one label.
    """
    bundles: dict[str, Bundle] = {}
    for model in models or [str(default_bundle_path())]:
        path, colon, label = model.rpartition(":")
        if Path(model).is_dir() or not colon:
            path, label = model, ""
        bundle = load_bundle(Path(path).resolve())
        label = label or bundle.name
        if label in bundles:
            raise BenchmarkError(
                f"{label}: expected one bundle of that name, got two; name them by --model "
                "BUNDLE:LABEL."
            )
        bundles[label] = bundle
    return bundles


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
        if sha256_of(path) == wanted:
            return path.resolve()
    raise BenchmarkError(
        f"{bundle.name}: expected the weights of SHA-256 {(wanted or 'unknown')[:12]}… for "
        "PyTorch, found none; pass --weights, or leave PyTorch out of --contenders."
    )
