"""Build the TensorRT plugin: `python export/build_plugin.py --help`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from paramorph_rt.errors import MissingDependencyError, exit_code

SOURCE = Path(__file__).parent / "plugin"
BUILD = Path(__file__).parents[1] / "build"
LIBRARY = "libparamorph_plugin.so"
#: Where `make plugin` puts the headers of TensorRT.
DOWNLOADED_HEADERS = BUILD / "tensorrt" / "kernel_lens" / "include" / "tensorrt"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Compile GridSample3D for TensorRT 10.0 to 11.1 with CMake and print where "
        "the library is. The CUDA compiler is $CUDACXX, else that of NVIDIA's wheels, else nvcc "
        "on PATH."
    )
    p.add_argument("--build-dir", type=Path, default=BUILD / "plugin", help="(%(default)s)")
    p.add_argument(
        "--tensorrt",
        type=Path,
        default=DOWNLOADED_HEADERS,
        metavar="DIR",
        help="TensorRT's folder, or that of its headers (default: what `make plugin` downloads)",
    )
    return p


def in_wheel(distribution: str, pattern: str) -> Path | None:
    """The first file of an installed distribution whose path ends like this."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).resolve() for f in files if f.match(pattern)), None)


def cmake() -> str:
    """CMake's path: the one of this environment, else the one on PATH.

    Raises:
        MissingDependencyError: There is none.
    """
    here = str(Path(sys.executable).parent)
    found = shutil.which("cmake", path=os.pathsep.join([here, os.environ.get("PATH", "")]))
    if found is None:
        raise MissingDependencyError("cmake: expected it on PATH, found none; run `make plugin`")
    return found


def cuda_options() -> list[str]:
    """How CMake finds the CUDA compiler.

    Raises:
        MissingDependencyError: There is none.
    """
    explicit = os.environ.get("CUDACXX")
    wheel = in_wheel("nvidia-cuda-nvcc", "bin/nvcc")
    if wheel is not None and not explicit:
        # This nvcc looks for its own libraries in lib64; the wheels keep them in lib.
        return [
            f"-DCMAKE_CUDA_COMPILER={wheel}",
            f"-DCMAKE_CUDA_FLAGS=-L{wheel.parents[1] / 'lib'}",
        ]
    found = shutil.which(explicit or "nvcc")
    if found is None:
        raise MissingDependencyError(
            f"{explicit or 'nvcc'}: expected a CUDA compiler, found none; run `make plugin`, "
            "or put that of CUDA 12.8 or newer on PATH"
        )
    return [f"-DCMAKE_CUDA_COMPILER={found}"]


def header_options(folder: Path) -> list[str]:
    """How CMake finds TensorRT's headers, given TensorRT's folder or theirs.

    Raises:
        MissingDependencyError: They are not there.
    """
    for candidate in (folder, folder / "include"):
        if (candidate / "NvInferRuntime.h").is_file():
            return [f"-DTENSORRT_INCLUDE_DIR={candidate.resolve()}"]
    raise MissingDependencyError(
        f"{folder}: expected TensorRT's headers, found no NvInferRuntime.h; run `make plugin`, "
        "or pass --tensorrt DIR"
    )


def build(build_dir: Path, options: list[str], targets: list[str]) -> None:
    """Configure and compile; the tools' output goes to stderr.

    Raises:
        ExportError: CMake or a compiler failed.
    """
    from paramorph_export.errors import ExportError

    configure = [cmake(), "-S", str(SOURCE), "-B", str(build_dir), *options]
    compile_ = [cmake(), "--build", str(build_dir), "--target", *targets]
    for command in (configure, compile_):
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise ExportError(
                f"{build_dir}: expected CMake to build the plugin, got its exit code "
                f"{done.returncode}; what it said stands above"
            )


def run(args: argparse.Namespace) -> None:
    options = [*cuda_options(), *header_options(args.tensorrt)]
    build(args.build_dir, options, ["paramorph_plugin"])
    print(args.build_dir / LIBRARY)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("build_plugin", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
