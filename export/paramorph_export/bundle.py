"""Writing a bundle: the ONNX files and the manifest that the runtime reads, all or nothing."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from paramorph.checkpoint import WeightsInfo
from paramorph.config import check_shape
from paramorph.warp import SAMPLING
from paramorph_export.card import read_card
from paramorph_export.errors import ExportError
from paramorph_export.features import write_features
from paramorph_export.graph import for_cpus
from paramorph_export.grid_sample import STANDARD_OPSET
from paramorph_export.precision import with_precision
from paramorph_export.refinement import REFINEMENT_GRAPHS
from paramorph_export.storage import WEIGHTS, stored_small
from paramorph_export.trace import onnx_from_network
from paramorph_export.verify import verify, verify_half
from paramorph_rt.bundle import MANIFEST, GridSpec, InputSpec, IntensitySpec, NetworkEntry
from paramorph_rt.bundle.manifest import network_entry, new_manifest, write_manifest
from paramorph_rt.system.files import sha256_of
from paramorph_rt.system.staging import flush, staging_folder, swap

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from paramorph.checkpoint import FeatureInfo
    from paramorph.network import ParaMorph
    from paramorph_export.pairs import Pair

    Shape = tuple[int, int, int]


def write_bundle(
    out_dir: str | Path,
    network: ParaMorph | None,
    info: WeightsInfo | FeatureInfo,
    weights: Path | None,
    shapes: Sequence[Shape],
    force: bool = False,
    *,
    halves: Sequence[str] = (),
    fp32_for_gpus: bool = False,
    real_pairs: Path | None = None,
    features: Path | None = None,
    card: Path | None = None,
    domain: Path | None = None,
) -> dict[str, Any]:
    """Trace, verify and write the networks and `manifest.json`; returns the manifest.

    The float32 networks of all shapes share one copy of `weights` (see `storage`), so weights in
    half make a bundle of half the size. Everything happens in a folder beside `out_dir` that takes
    its place at the end, so a failure leaves an existing bundle as it was.

    Args:
        out_dir: The bundle's folder.
        network: In float32; None makes a bundle of features alone.
        info: What is recorded about its weights, or else about the features'.
        weights: The file they came from; it may be that of the bundle that is replaced.
        shapes: Volume sizes (D, H, W), a graph for each; the first is that of the manifest's grid.
        force: Replace an existing bundle.
        halves: Precisions of further graphs besides float32, for GPUs: fp16, bf16.
        fp32_for_gpus: Write a float32 graph for GPUs too. That for CPUs computes the same, and in
            TensorRT takes up to ten times the memory.
        real_pairs: Folder of labelled volumes on which these are measured as well.
        features: Weights of a feature network for the refinement.
        card: Model card, whose name the bundle gets; None is the name of the weights.
        domain: A bundle whose domain is this one's, too; it may be the one that is replaced.

    Raises:
        ExportError: The folder exists and `force` is not given, or it is no bundle, or an ONNX
            file does not compute what the network does.
    """
    out_dir = Path(out_dir)
    check_replaceable(out_dir, force)
    with staging_folder(out_dir.absolute().parent) as home:
        staging = home / out_dir.name
        staging.mkdir()
        started = time.perf_counter()
        networks: list[dict[str, Any]] = []
        if isinstance(info, WeightsInfo) and network is not None and weights is not None:
            shutil.copyfile(weights, staging / WEIGHTS)
            for shape in dict.fromkeys(shapes):
                is_first, further = shape == shapes[0], (halves, fp32_for_gpus, real_pairs)
                networks += _write_networks(staging, network, info, shape, is_first, *further)
        of_features = write_features(staging, features, info, shapes) if features else None
        for name, graph in REFINEMENT_GRAPHS.items():
            onnx.save(graph(), staging / name)
        domain_entry = _copy_domain(staging, domain) if domain else None
        seconds = time.perf_counter() - started
        sampling = info.network.sampling if isinstance(info, WeightsInfo) else "exact"
        source = weights or features
        assert source is not None
        manifest = new_manifest(
            card.stem if card else info.name,
            input_spec(info, shapes[0]),
            {"convention": sampling, **SAMPLING[sampling]},
            networks,
            sorted(staging.iterdir()),
            info.network.as_dict() if networks else None,
            card=read_card(card) if card else None,
            opset=STANDARD_OPSET,
            refinement=list(REFINEMENT_GRAPHS),
            features=of_features,
            domain=domain_entry,
            provenance={
                "weights": source.name,
                "weights_sha256": sha256_of(source),
                "export_seconds": round(seconds, 1),
                **info.provenance,
            },
        )
        write_manifest(staging, manifest)
        flush(staging)
        check_replaceable(out_dir, force)  # another export may have been faster
        swap(staging, out_dir)
    return manifest


def input_spec(info: WeightsInfo | FeatureInfo, shape: Shape) -> InputSpec:
    """What the runtime will prepare for a graph of this shape."""
    return InputSpec(
        GridSpec(shape, info.spacing_mm, info.orientation),
        IntensitySpec(info.lower_percentile, info.upper_percentile),
    )


def check_replaceable(out_dir: Path, force: bool) -> None:
    """Refuse to overwrite: without `force` anything, with it anything but a bundle."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return
    if not (out_dir / MANIFEST).is_file():
        raise ExportError(
            f"{out_dir}: expected a new folder or a bundle, got something else; choose another "
            "--out-dir."
        )
    if not force:
        raise ExportError(
            f"{out_dir}: expected a new folder, got an existing bundle; pass --force to replace it."
        )


def _copy_domain(folder: Path, domain: Path) -> dict[str, Any]:
    """Another bundle's domain as this one's: its entry in the manifest, and its map."""
    # Imported here: it needs what reads images, and nothing else of an export does.
    from paramorph_export.domain import MAP, domain_in

    entry, content = domain_in(domain)
    if content is None:
        return entry
    (folder / MAP).write_bytes(content)
    return entry | {"map": MAP}


def _write_networks(
    folder: Path,
    network: ParaMorph,
    info: WeightsInfo,
    shape: Shape,
    is_first: bool,
    halves: Sequence[str],
    fp32_for_gpus: bool,
    real_pairs: Path | None,
) -> Iterator[dict[str, Any]]:
    """The graphs of one shape, in float32 and in halves; their entries in the manifest."""
    stem = "registration" if is_first else f"registration.{'x'.join(map(str, shape))}"
    check_shape(shape)
    log.info("%s: tracing the network at %s …", stem, "×".join(map(str, shape)))
    traced = onnx_from_network(network, shape)
    reference = folder / f"{stem}.onnx"
    small = stored_small(for_cpus(traced), folder / WEIGHTS)
    onnx.save(small, reference)
    log.info("%s: comparing with PyTorch …", reference.name)
    entry = NetworkEntry(reference.name, "fp32", shape, weights=WEIGHTS)
    yield _measured(entry, small, verify(reference, network, shape))
    if fp32_for_gpus:
        path = folder / f"{stem}.gpu.onnx"
        model = with_precision(traced, "fp32")
        onnx.save(model, path)
        entry = NetworkEntry(path.name, "fp32", shape, "gpu")
        yield _measured(entry, model, verify(path, network, shape))
    pairs: Sequence[Pair] = ()
    if real_pairs and halves:
        # Imported here: pairs are read as the runtime reads them, by packages that nothing else of
        # an export needs.
        from paramorph_export.pairs import pairs_of

        pairs = pairs_of(real_pairs, input_spec(info, shape))
    for precision in halves:
        path = folder / f"{stem}.{precision}.onnx"
        log.info("%s: rounding to %s …", path.name, precision)
        model = with_precision(traced, precision)
        onnx.save(model, path)
        measured = verify_half(path, reference, shape, precision, pairs, info.network.sampling)
        yield _measured(NetworkEntry(path.name, precision, shape, "gpu"), model, measured)


def _measured(
    entry: NetworkEntry, model: onnx.ModelProto, measured: dict[str, Any]
) -> dict[str, Any]:
    return network_entry(entry, nodes=len(model.graph.node), verification=measured)
