"""A bundle as a model repository of NVIDIA Triton, for those who serve over a network.

A model's folder holds its networks or engines, config.pbtxt, and a README with a client; what comes
before and after the network stays with the client.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError, OutputError
from .system.staging import flush, staging_folder, swap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .bundle import Bundle, EngineEntry, NetworkEntry

log = logging.getLogger(__name__)

CONFIG = "config.pbtxt"
README = "README.md"
VERSION = "1"  # the folder of a model's only version
_NOT_SERVED = {"bf16": "ONNX Runtime has no kernels for some of its operators in bfloat16"}


@dataclass(frozen=True)
class ServedModel:
    """One model of the repository.

    Attributes:
        name: Of its folder, and in requests.
        backend: Triton's, "onnxruntime" or "tensorrt".
        precision: Of the network.
        shape: Of the network grid.
        files: The bundle's file for each name in the version's folder.
        by_capability: Engines alone: the file for each compute capability.
        on_gpu: Whether it runs on a GPU alone.
        library: Version of TensorRT that the engines need.
    """

    name: str
    backend: str
    precision: str
    shape: tuple[int, int, int]
    files: dict[str, str]
    by_capability: dict[str, str]
    on_gpu: bool
    library: str = ""


def write_repository(bundle: Bundle, out_dir: str | Path, force: bool = False) -> list[ServedModel]:
    """Write a model for each network of a bundle, and for each set of TensorRT engines.

    Engines of one precision, shape and TensorRT version are one model, from which Triton chooses
    by the GPU's compute capability. What Triton cannot load is left out with a warning: networks in
    bf16, engines of TensorRT-RTX, and engines that need a plugin. Other models in the repository
    stay.

    Args:
        bundle: Its files are verified as they are copied.
        out_dir: Repository, made if it does not exist.
        force: Replace models of the same names.

    Returns:
        What was written.

    Raises:
        BundleError: A file was altered, the bundle's name cannot be a model's, or it holds nothing
            that Triton can serve.
        OutputError: A model is there already and `force` is not set, or writing fails; no model is
            half-written then.
    """
    out_dir = Path(out_dir)
    models = served_models(bundle)
    _check_free(out_dir, models, force)
    with _staged(out_dir, [model.name for model in models]) as staging:
        for model in models:
            version = staging / model.name / VERSION
            version.mkdir(parents=True)
            for name, file in model.files.items():
                (version / name).write_bytes(bundle.verified_bytes(file))
            (version.parent / CONFIG).write_text(config_of(model, bundle), encoding="utf-8")
            (version.parent / README).write_text(readme_of(model, bundle), encoding="utf-8")
    return models


def served_models(bundle: Bundle) -> list[ServedModel]:
    """The models that a bundle makes, see `write_repository`.

    Raises:
        BundleError: Its name cannot be a model's, or it holds nothing that Triton can serve.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bundle.name):
        raise BundleError(
            f"{bundle.name!r}: expected a bundle's name of letters, digits, dots, dashes and "
            "underscores for Triton, got others; rename it in the manifest and export it again."
        )
    models = []
    for entry in bundle.networks:
        if reason := _NOT_SERVED.get(entry.precision):
            log.warning("%s: left out, because %s.", entry.file, reason)
        else:
            models.append(_of_network(bundle, entry))
    sets: dict[tuple, list[EngineEntry]] = {}
    for engine in bundle.engines:
        if engine.flavour != "tensorrt":
            reason = "Triton loads engines of TensorRT and not of TensorRT-RTX"
        elif engine.plugin is not None:
            reason = "Triton opens plugin libraries without registering what is in this one"
        else:
            key = engine.version, engine.precision, engine.shape
            sets.setdefault(key, []).append(engine)
            continue
        log.warning(
            "%s: left out, because %s; its network is served by ONNX Runtime.", engine.file, reason
        )
    models += [_of_engines(bundle, engines) for engines in sets.values()]
    if not models:
        raise BundleError(
            f"{bundle.name}: expected a registration network that Triton can serve, got none; "
            "choose another model, as one of features alone needs the refinement of paramorph-rt."
        )
    return models


def config_of(model: ServedModel, bundle: Bundle) -> str:
    """The text of config.pbtxt: protobuf's text format of Triton's ModelConfig.

    Source:
        triton-inference-server/common, protobuf/model_config.proto.
    """
    lines = [
        f"name: {_quoted(model.name)}",
        f"backend: {_quoted(model.backend)}",
        "max_batch_size: 0  # the dimensions below are complete; one pair a request",
        f"default_model_filename: {_quoted(next(iter(model.files)))}",
    ]
    for capability, file in model.by_capability.items():
        pair = f"key: {_quoted(capability)}, value: {_quoted(file)}"
        lines.append(f"cc_model_filenames {{ {pair} }}")
    for what in ("input", "output"):
        for name, dims in _tensors(model, bundle, f"{what}s").items():
            listed = ", ".join(map(str, dims))
            lines.append(f"{what} {{")
            lines.append(f"  name: {_quoted(name)}, data_type: TYPE_FP32, dims: [{listed}]")
            lines.append("}")
    if model.on_gpu:
        lines.append("instance_group { kind: KIND_GPU, count: 1 }  # more would share one GPU")
    lines += _warm_up(model, bundle)
    for key, value in _parameters(model, bundle).items():
        entry = f"key: {_quoted(key)}, value: {{ string_value: {_quoted(value)} }}"
        lines.append(f"parameters {{ {entry} }}")
    return "\n".join(lines) + "\n"


def readme_of(model: ServedModel, bundle: Bundle) -> str:  # one page of text
    """What a client must know, with one that works."""
    spec = bundle.inputs
    tensors = {
        what: "\n".join(
            f"| `{name}` | FP32 | {' × '.join(map(str, dims))} | {_MEANING[name]} |"
            for name, dims in _tensors(model, bundle, what).items()
        )
        for what in ("inputs", "outputs")
    }
    spacing = " × ".join(f"{mm:g}" for mm in spec.grid.spacing_mm)
    engines = _ENGINES.format(library=model.library) if model.by_capability else ""
    lower, upper = spec.intensity.lower_percentile, spec.intensity.upper_percentile
    return f"""# {model.name}

The network of the ParaMorph bundle `{bundle.name}` in {model.precision}, for NVIDIA Triton
Inference Server with its backend `{model.backend}`. Start the server with

    NVIDIA_TF32_OVERRIDE=0 tritonserver --model-repository=REPOSITORY \\
        --model-control-mode=explicit --load-model={model.name}

where REPOSITORY is the folder above this one. Without the second line the server loads all models
that are there, and by default ends if one of them fails, as an engine for another GPU does;
`--exit-on-error=false` lets it go on with the others. Without NVIDIA_TF32_OVERRIDE=0 a GPU may
round what float32 products multiply to 10 bits. One request is one pair; the first is a made-up one
of the server's own, which lets it choose its kernels.
{engines}
| tensor | type | shape | meaning |
|---|---|---|---|
{tensors["inputs"]}
{tensors["outputs"]}

The server runs the network alone. The client aligns the images affinely, brings both onto one grid
of {spacing} mm with {spec.grid.orientation} axes over the fixed foreground, maps the
percentiles {lower:g} and {upper:g} of their intensities to 0 and 1, and afterwards turns the
displacement into a field on the fixed image's own grid. `paramorph_rt` does all of it with any
engine that has these attributes and this method:

```python
import tritonclient.grpc as triton

from paramorph_rt import Registration


class Served:
    name, precision = "triton", "{model.precision}"
    shapes = ({model.shape},)

    def __init__(self, address: str) -> None:
        self.client = triton.InferenceServerClient(address)

    def run(self, moving, fixed):
        inputs = []
        for name, image in (("moving", moving), ("fixed", fixed)):
            tensor = triton.InferInput(name, [1, 1, *image.shape], "FP32")
            tensor.set_data_from_numpy(image[None, None])
            inputs.append(tensor)
        wanted = [triton.InferRequestedOutput("displacement")]
        answer = self.client.infer("{model.name}", inputs, outputs=wanted)
        return answer.as_numpy("displacement")[0]


register = Registration("BUNDLE", backend=Served("localhost:8001"))
register("moving.nii.gz", "fixed.nii.gz").save("OUT")
```

It needs `pip install paramorph-rt 'tritonclient[grpc]'` and the bundle, of which it reads what the
network expects; `parameters` in {CONFIG} say which bundle this is. Put the server behind
authentication before others can reach it: requests carry images of people.
"""


_MEANING = {
    "moving": "moving image, affinely aligned, on the network grid, in [0, 1]",
    "fixed": "fixed image on the network grid, in [0, 1]",
    "displacement": "voxels of the network grid, fixed → moving; channel = axis",
    "warped": "`moving` at the displaced points; leave it out of the request to save its time",
}
_ENGINES = """
Its engines were built by TensorRT {library} and load in this version alone: choose the Triton
release that contains it.
"""


def _of_network(bundle: Bundle, entry: NetworkEntry) -> ServedModel:
    on_gpu = entry.device == "gpu"
    kind = "fp32-gpu" if on_gpu and entry.precision == "fp32" else entry.precision
    name = f"{bundle.name}-onnx-{kind}{_shape_suffix(bundle, entry.shape)}"
    files = {"model.onnx": entry.file} | {file: file for file in entry.files[1:]}
    return ServedModel(name, "onnxruntime", entry.precision, entry.shape, files, {}, on_gpu)


def _of_engines(bundle: Bundle, engines: Sequence[EngineEntry]) -> ServedModel:
    first = engines[0]
    suffix = f"{first.precision}{_shape_suffix(bundle, first.shape)}"
    plans = {e.compute_capability: f"sm{e.compute_capability}.plan" for e in engines}
    return ServedModel(
        f"{bundle.name}-tensorrt-{first.version}-{suffix}",
        "tensorrt",
        first.precision,
        first.shape,
        {plans[e.compute_capability]: e.file for e in engines},
        plans,
        True,
        first.version,
    )


def _shape_suffix(bundle: Bundle, shape: tuple[int, int, int]) -> str:
    return "" if shape == bundle.inputs.grid.shape else f"-{'x'.join(map(str, shape))}"


def _tensors(model: ServedModel, bundle: Bundle, what: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the "inputs" or "outputs" by name, batch and channel first."""
    return {name: (1, count, *model.shape) for name, count in bundle.tensors(what).items()}


def _warm_up(model: ServedModel, bundle: Bundle) -> list[str]:
    """A request when the model is loaded: the first is where kernels are searched for."""
    lines = ["model_warmup {", '  name: "one pair", batch_size: 1']
    for name, dims in _tensors(model, bundle, "inputs").items():
        value = f"data_type: TYPE_FP32, dims: [{', '.join(map(str, dims))}], random_data: true"
        lines.append(f"  inputs {{ key: {_quoted(name)}, value: {{ {value} }} }}")
    return [*lines, "}"]


def _parameters(model: ServedModel, bundle: Bundle) -> dict[str, str]:
    hashes = {name: bundle.sha256(file) for name, file in model.files.items()}
    return {
        "paramorph_bundle": bundle.name,
        **{f"paramorph_sha256:{name}": value for name, value in hashes.items()},
    }


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _check_free(out_dir: Path, models: Sequence[ServedModel], force: bool) -> None:
    if out_dir.exists() and not out_dir.is_dir():
        raise OutputError(f"{out_dir}: expected a folder, got a file; choose another --out-dir.")
    existing = [model.name for model in models if (out_dir / model.name).exists()]
    if existing and not force:
        raise OutputError(
            f"{out_dir}: expected no model of this bundle, got {', '.join(existing)}; pass --force "
            "to replace them, or choose another --out-dir."
        )


@contextmanager
def _staged(out_dir: Path, names: Sequence[str]) -> Iterator[Path]:
    """A hidden folder whose folders of these names move to `out_dir` when the block ends well."""
    try:
        with staging_folder(out_dir) as staging:
            yield staging
            flush(staging)
            for name in names:
                # A server that polls must never see a model's folder half-written, or none.
                swap(staging / name, out_dir / name)
    except OutputError:
        raise
    except OSError as err:
        raise OutputError(
            f"{out_dir}: expected to write the repository, got {err.strerror or err}; free the "
            "disk or choose another --out-dir."
        ) from err
