"""Writing a bundle: the ONNX files and the manifest that the runtime reads, all or nothing."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from paramorph.checkpoint import load_feature_weights, load_weights
from paramorph.config import check_shape
from paramorph.warp import SAMPLING
from paramorph_export.card import read_card
from paramorph_export.errors import ExportError
from paramorph_export.features import write_features
from paramorph_export.graph import for_cpus
from paramorph_export.grid_sample import STANDARD_OPSET
from paramorph_export.precision import with_precision
from paramorph_export.refined import refinement_by, write_refined
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

    from paramorph.checkpoint import FeatureInfo, WeightsInfo
    from paramorph.networks import RegistrationNetwork
    from paramorph_export.pairs import Pair

    Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Graphs:
    """Which graphs of a registration network a bundle gets.

    Attributes:
        shapes: Volume sizes (D, H, W), float32 graphs for each; the first is that of the
            manifest's grid. Empty is the one that the weights were trained on.
        halves: Precisions of further graphs besides float32, for GPUs: fp16, bf16.
        fp32_for_gpus: Write a float32 graph for GPUs too. That for CPUs computes the same, and in
            TensorRT takes up to ten times the memory.
        real_pairs: Folder of labelled volumes on which the halves are measured as well.
    """

    shapes: Sequence[Shape] = ()
    halves: Sequence[str] = ()
    fp32_for_gpus: bool = False
    real_pairs: Path | None = None


def write_bundle(  # its keywords are options of the command
    out_dir: str | Path,
    weights: Path | None,
    graphs: Graphs = Graphs(),
    *,
    features: Path | None = None,
    refined: int | None = None,
    card: Path | None = None,
    domain: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Trace, verify and write the networks and `manifest.json`; returns the manifest.

    The float32 networks of all shapes share one copy of `weights` (see `storage`), so weights in
    half make a bundle of half the size. Everything happens in a folder beside `out_dir` that takes
    its place at the end, so a failure leaves an existing bundle as it was.

    Args:
        out_dir: The bundle's folder.
        weights: Of a registration network; they may be those of the bundle that is replaced. None
            makes a bundle of features alone.
        graphs: Of the registration network.
        features: Weights of a feature network for the refinement.
        refined: Make one network of the features and a refinement by them, with so many iterations
            at 1.5 mm; only without `weights`.
        card: Model card, whose name the bundle gets; None is the name of the weights.
        domain: A bundle whose domain is this one's, too; it may be the one that is replaced.
        force: Replace an existing bundle.

    Raises:
        ExportError: Neither weights nor features, the folder exists and `force` is not given, or
            it is no bundle, or an ONNX file does not compute what the network does.
    """
    out_dir, source = Path(out_dir), weights or features
    if source is None:
        raise ExportError("expected --weights, --features or both, got neither; pass one.")
    check_replaceable(out_dir, force)
    network, info = load_weights(weights) if weights else (None, load_feature_weights(source)[1])
    graphs = replace(graphs, shapes=list(dict.fromkeys(graphs.shapes or [info.shape])))
    with staging_folder(out_dir.absolute().parent) as home:
        staging = home / out_dir.name
        staging.mkdir()
        started = time.perf_counter()
        inputs, networks, of_features = input_spec(info, graphs.shapes[0]), [], None
        refinement = refinement_by(source, refined) if refined is not None else None
        if refinement:
            inputs = replace(inputs, grid=refinement.finest())
            pairs = _real_pairs(graphs, inputs)
            networks = write_refined(staging, source, refinement, graphs.halves, pairs)
        else:
            if network:
                networks = _write_networks(staging, source, network, info, graphs)
            if features:
                of_features = write_features(staging, features, info, graphs.shapes)
            for name, graph in REFINEMENT_GRAPHS.items():
                onnx.save(graph(), staging / name)
        more = {
            "card": read_card(card) if card else None,
            "opset": STANDARD_OPSET,
            "refinement": None if refinement else list(REFINEMENT_GRAPHS),
            "refined": refinement.as_manifest() if refinement else None,
            "features": of_features,
            "domain": _copy_domain(staging, domain) if domain else None,
            "provenance": _provenance(source, info, time.perf_counter() - started),
        }
        sampling = info.network.sampling if network else "exact"
        manifest = new_manifest(
            card.stem if card else info.name,
            inputs,
            {"convention": sampling, **SAMPLING[sampling]},
            networks,
            sorted(staging.iterdir()),
            info.network.as_dict() if network else None,
            **more,
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


def _provenance(weights: Path, info: WeightsInfo | FeatureInfo, seconds: float) -> dict[str, Any]:
    return {
        "weights": weights.name,
        "weights_sha256": sha256_of(weights),
        "export_seconds": round(seconds, 1),
        **info.provenance,
    }


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
    folder: Path, weights: Path, network: RegistrationNetwork, info: WeightsInfo, graphs: Graphs
) -> list[dict[str, Any]]:
    """The graphs of all shapes, which share one copy of the weights; their manifest entries."""
    shutil.copyfile(weights, folder / WEIGHTS)
    entries: list[dict[str, Any]] = []
    for number, shape in enumerate(graphs.shapes):
        suffix = f".{'x'.join(map(str, shape))}" if number else ""
        entries += _write_graphs(folder / f"registration{suffix}", network, info, shape, graphs)
    return entries


def _write_graphs(
    path: Path, network: RegistrationNetwork, info: WeightsInfo, shape: Shape, graphs: Graphs
) -> Iterator[dict[str, Any]]:
    """The graphs of one shape, in float32 and in halves; their entries in the manifest.

    Args:
        path: Of the files, without their suffixes.
        network: In float32.
        info: Of its weights.
        shape: (D, H, W).
        graphs: Which.
    """
    check_shape(shape)
    log.info("%s: tracing the network at %s …", path.name, "×".join(map(str, shape)))
    traced = onnx_from_network(network, shape)
    reference = path.with_name(f"{path.name}.onnx")
    small = stored_small(for_cpus(traced), path.with_name(WEIGHTS))
    onnx.save(small, reference)
    log.info("%s: comparing with PyTorch …", reference.name)
    entry = NetworkEntry(reference.name, "fp32", shape, weights=WEIGHTS)
    yield _measured(entry, small, verify(reference, network, shape))
    if graphs.fp32_for_gpus:
        file = path.with_name(f"{path.name}.gpu.onnx")
        model = with_precision(traced, "fp32")
        onnx.save(model, file)
        entry = NetworkEntry(file.name, "fp32", shape, "gpu")
        yield _measured(entry, model, verify(file, network, shape))
    pairs = _real_pairs(graphs, input_spec(info, shape))
    for precision in graphs.halves:
        file = path.with_name(f"{path.name}.{precision}.onnx")
        log.info("%s: rounding to %s …", file.name, precision)
        model = with_precision(traced, precision)
        onnx.save(model, file)
        measured = verify_half(file, reference, shape, precision, pairs, info.network.sampling)
        yield _measured(NetworkEntry(file.name, precision, shape, "gpu"), model, measured)


def _real_pairs(graphs: Graphs, inputs: InputSpec) -> Sequence[Pair]:
    """On which the halves are measured."""
    if not (graphs.real_pairs and graphs.halves):
        return ()
    # Imported here: pairs are read as the runtime reads them, by packages that nothing else of an
    # export needs.
    from paramorph_export.pairs import pairs_of

    return pairs_of(graphs.real_pairs, inputs)


def _measured(
    entry: NetworkEntry, model: onnx.ModelProto, measured: dict[str, Any]
) -> dict[str, Any]:
    return network_entry(entry, nodes=len(model.graph.node), verification=measured)
