"""Engines in a bundle: TensorRT builds each in a process of its own; all are added, or none."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramorph_export.errors import ExportError
from paramorph_rt.backends.gpu import find_gpu
from paramorph_rt.bundle import PORTABLE, EngineEntry, load_bundle
from paramorph_rt.bundle.manifest import engine_entry, read_manifest, with_engines, write_manifest
from paramorph_rt.bundle.names import LIBRARIES
from paramorph_rt.errors import BackendError, BundleError, MissingDependencyError, install_command
from paramorph_rt.system.files import sha256_of
from paramorph_rt.system.staging import flush

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paramorph_rt.bundle import Bundle, NetworkEntry

FOLDER = "engines"
CARDS = {"rtx3080": "sm86"}
#: What TensorRT for RTX builds for, none of it for data centres. TensorRT builds for the GPU that
#: is here, whichever that is.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121", PORTABLE)
CHILD = Path(__file__).with_name("engine_child.py")


@dataclass(frozen=True)
class Job:
    """The child's task: one engine.

    Attributes:
        module: `tensorrt_rtx` or `tensorrt`.
        network: ONNX file.
        target: Such as "sm86", or `PORTABLE`.
        plugin: GridSample3D's library, for versions of TensorRT that have no such layer.
        engine: File to write.
        answer: JSON file to write: what the build was and needs.
        parent: Process without which it ends.
    """

    module: str
    network: str
    target: str
    plugin: str | None
    engine: str
    answer: str
    parent: int


def add_engines(
    folder: str | Path,
    targets: Sequence[str],
    flavour: str = "auto",
    precision: str = "fp16",
    plugin: Path | None = None,
    time_limit_s: float = 900,
) -> list[dict[str, Any]]:
    """Build an engine of each of a bundle's networks of one precision, for each target.

    An engine of the same flavour, target, precision and shape is replaced. The bundle stays as it
    was until the last engine is built.

    Args:
        folder: The bundle.
        targets: Cards (`CARDS`), compute capabilities such as "sm86", or "portable": one engine of
            TensorRT for RTX for all cards from 8.0 on that it supports.
        flavour: "tensorrt-rtx" needs no GPU; "tensorrt" builds for the GPU that is here; "auto" is
            the first that is installed.
        precision: Of the networks.
        plugin: Library of GridSample3D, used by TensorRT before 11.2 and copied into the bundle.
        time_limit_s: Of each build.

    Returns:
        The new entries of the manifest.

    Raises:
        BundleError: No bundle, an altered network, or none of this precision.
        ExportError: An unknown target, no GPU of its kind, or a build that failed or took too long.
        MissingDependencyError: The flavour's package is not installed.
    """
    bundle = load_bundle(folder)
    networks = [n for n in bundle.networks if (n.precision, n.device) == (precision, "gpu")]
    if not networks:
        how = "--fp32-for-gpus" if precision == "fp32" else f"--precision fp32 {precision}"
        raise BundleError(
            f"{bundle.name}: expected a network of precision {precision} for GPUs, got none; "
            f"export the bundle with {how}, or choose another --precision."
        )
    flavour = _installed(flavour)
    targets = list(dict.fromkeys(_checked_target(name, flavour) for name in targets))
    entries, files = [], {}
    with tempfile.TemporaryDirectory(prefix=".engines-", dir=bundle.folder) as name:
        for network in networks:
            for target in targets:
                entry, parts = _build(
                    bundle, network, flavour, target, plugin, time_limit_s, Path(name)
                )
                entries.append(entry)
                files |= parts
        _take(bundle, entries, files)
    return entries


def _installed(flavour: str) -> str:
    # TensorRT for RTX first, which builds without a GPU.
    for name in ("tensorrt-rtx", "tensorrt"):
        if flavour in ("auto", name) and importlib.util.find_spec(LIBRARIES[name]):
            return name
    wanted = "tensorrt-rtx" if flavour == "auto" else flavour
    raise MissingDependencyError(
        f"{flavour}: expected the package {LIBRARIES[wanted]}, found none; run "
        f"{install_command(wanted)}."
    )


def _checked_target(name: str, flavour: str) -> str:
    target = CARDS.get(name, name)
    if flavour == "tensorrt-rtx":
        if target not in RTX_TARGETS:
            raise ExportError(
                f"--target: expected {', '.join((*CARDS, *RTX_TARGETS))} for {flavour}, got "
                f"{name}; choose one of them, or another --flavour."
            )
        return target
    if not re.fullmatch(r"sm\d{2,3}", target):
        raise ExportError(
            f"--target: expected {', '.join(CARDS)} or a compute capability such as sm86 for "
            f"{flavour}, got {name}; name the GPU's."
        )
    try:
        here = find_gpu().compute_capability
    except BackendError as err:
        raise ExportError(
            f"tensorrt: expected a GPU to build on, got none ({err}); build where the engine will "
            "run, or choose --flavour tensorrt-rtx, which needs none."
        ) from err
    if here != _capability(target):
        raise ExportError(
            f"tensorrt: expected a GPU of compute capability {_capability(target)} for {name}, got "
            f"one of {here}; build on such a GPU."
        )
    return target


def _capability(target: str) -> str:
    """ "sm86" → "8.6"."""
    if target == PORTABLE:
        return PORTABLE
    return f"{target[2:-1]}.{target[-1]}"


def _build(  # what is built, for what, and where
    bundle: Bundle,
    network: NetworkEntry,
    flavour: str,
    target: str,
    plugin: Path | None,
    time_limit_s: float,
    staging: Path,
) -> tuple[dict[str, Any], dict[str, Path]]:
    """One engine in `staging`: its entry, and the files that belong to it by their final names."""
    stem = "-".join((flavour, target, network.precision, "x".join(map(str, network.shape))))
    engine, log, answer = (staging / f"{stem}.{suffix}" for suffix in ("engine", "log", "json"))
    job = Job(
        LIBRARIES[flavour],
        str(_network_file(bundle, network, staging).resolve()),
        target,
        str(plugin.resolve()) if plugin else None,
        str(engine),
        str(answer),
        os.getpid(),
    )
    built, seconds = _run_job(job, log, time_limit_s, stem)
    # Part of the name, so that a rebuilt engine never stands under the hash of the one before.
    sha256 = sha256_of(engine)
    final = f"{FOLDER}/{stem}-{sha256[:8]}"
    files, own_plugin = {f"{final}.engine": engine, f"{final}.log": log}, None
    if built["needs_plugin"] and plugin is not None:
        copy = Path(shutil.copyfile(plugin, staging / plugin.name))
        own_plugin = f"{FOLDER}/{plugin.stem}-{sha256_of(copy)[:8]}{plugin.suffix}"
        files[own_plugin] = copy
    entry = EngineEntry(
        f"{final}.engine",
        flavour,
        built["version"],
        _capability(target),
        network.precision,
        network.shape,
        own_plugin,
    )
    recorded = engine_entry(
        entry,
        f"{final}.log",
        tf32=False,
        network=network.file,
        network_sha256=bundle.sha256(network.file),
        build_seconds=round(seconds, 1),
        device_memory_bytes=built["activation_bytes"],
        weights_bytes=built["weights_bytes"],
    )
    return recorded, files


def _run_job(job: Job, log: Path, time_limit_s: float, what: str) -> tuple[dict[str, Any], float]:
    """What the child says of the engine that it built, and how many seconds it took."""
    started = time.perf_counter()
    _run_child([sys.executable, str(CHILD), json.dumps(asdict(job))], log, time_limit_s, what)
    seconds = time.perf_counter() - started
    return json.loads(Path(job.answer).read_text(encoding="utf-8")), seconds


def _network_file(bundle: Bundle, network: NetworkEntry, staging: Path) -> Path:
    """The network in one file, with the parameters that it reads from elsewhere."""
    path = bundle.verified_network(network)
    if network.weights is None:
        return path
    import onnx

    from paramorph_export.storage import whole

    onnx.save(whole(path), staging / network.file)
    return staging / network.file


def _run_child(command: list[str], log: Path, time_limit_s: float, what: str) -> None:
    """Run the build; a failure keeps its log where its message says.

    Raises:
        ExportError: It failed, crashed or took too long.
    """
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(time_limit_s)
            outcome = _outcome(code)
        except subprocess.TimeoutExpired:
            outcome = f"none after {time_limit_s:g} s"
        finally:  # also when this program is interrupted
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if outcome:
        handle, log_copy = tempfile.mkstemp(prefix=f"{what}-", suffix=".log")
        os.close(handle)
        shutil.copyfile(log, log_copy)
        last = _reason(log.read_text(encoding="utf-8", errors="replace"))
        raise ExportError(
            f"{what}: expected an engine, got {outcome}{last}; read {log_copy}, and raise "
            "--time-limit if it was too short."
        )


def _outcome(code: int) -> str | None:
    if code == 0:
        return None
    if code < 0:
        return f"a crash of the library ({signal.Signals(-code).name})"
    return "a refusal of the library"


def _reason(log: str) -> str:
    """Its last error, if there is one."""
    errors = re.findall(r"^(?:ERROR|INTERNAL_ERROR) (.+)$", log, re.MULTILINE)
    return f": {errors[-1].strip().rstrip('.')}" if errors else ""


def _take(bundle: Bundle, entries: list[dict[str, Any]], files: dict[str, Path]) -> None:
    """Move the files into the bundle, then let its manifest know of them in one step."""
    manifest, stale = with_engines(read_manifest(bundle.folder), entries, files)
    (bundle.folder / FOLDER).mkdir(exist_ok=True)
    for name, staged in files.items():
        staged.replace(bundle.folder / name)
    flush(bundle.folder / FOLDER)
    write_manifest(bundle.folder, manifest)
    for name in stale:
        (bundle.folder / name).unlink(missing_ok=True)
