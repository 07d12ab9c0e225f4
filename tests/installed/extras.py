"""What an extra does for its user, alone on top of the base: its command, run once.

`python extras.py EXTRA COLIN27_FOLDER CLONE`, in an empty folder; EXTRA is base for scripts that
lack theirs. Engines for GPUs say what they lack where there is none.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

SCRIPTS = Path(sysconfig.get_path("scripts"))
PROGRAM = str(SCRIPTS / "paramorph-rt")


def base(images: list[str], clone: Path) -> None:
    """Scripts of the clone say which extra they need, in one sentence."""
    out = ["--out", "never"]
    for line in (
        ["models/train.py", "--options"],
        ["models/train_features.py", "--options"],
        ["models/prepare.py", "--config", "mine.toml"],
        ["models/import_checkpoint.py", "any.pth.tar", *out, "--window", "5", "5", "3"],
        ["export/to_onnx.py", "--weights", "any.safetensors", "--out-dir", "never"],
        ["export/write_refinement.py"],
        ["examples/demo.py", "--out-dir", "never"],
    ):
        command = [sys.executable, "-P", str(clone / line[0]), *line[1:]]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        print(done.stderr, end="")
        assert done.returncode == 1, line
        assert done.stderr.count("\n") == 1, line
        assert 'run `python -m pip install "paramorph-rt[' in done.stderr, line
    assert not Path("never").exists()


def report(images: list[str], clone: Path) -> None:
    """One page and figures of a pair."""
    options = ["--out-dir", "out", "--force", "--report", "--figures", "--backend", "onnxruntime"]
    subprocess.run([PROGRAM, "infer", *images, *options], check=True)
    assert Path("out/report.html").stat().st_size > 100_000
    assert list(Path("out/figures").glob("*.png"))


def cluster(images: list[str], clone: Path) -> None:
    """A pair on a worker of Dask's."""
    from distributed import LocalCluster

    with Path("pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("moving", "fixed"), (images[1], images[3])])
    with LocalCluster(n_workers=1, threads_per_worker=3, dashboard_address=None) as workers:
        options = ["--out-dir", "cohort", "--scheduler", workers.scheduler_address]
        subprocess.run([PROGRAM, "cohort", "pairs.csv", *options], check=True)


def signing(images: list[str], clone: Path) -> None:
    """A signed model is accepted by whoever asks for the signature, another one is not."""
    import paramorph_rt

    for line in (
        "genpkey -algorithm ed25519 -out private.pem",
        "pkey -in private.pem -pubout -out public.pem",
    ):
        subprocess.run(["openssl", *line.split()], check=True)
    shipped = Path(paramorph_rt.__file__).parent / "bundles/hippocampus-small"
    shutil.copytree(shipped, "mine")
    subprocess.run([PROGRAM, "sign", "mine", "--key", "private.pem"], check=True)
    asked = ["--require-signature", "public.pem", "--model"]
    subprocess.run([PROGRAM, "info", *asked, "mine"], check=True)
    assert subprocess.run([PROGRAM, "info", *asked, "brain-t1-small"], check=False).returncode == 1


def gpu(backend: str, module: str | None, images: list[str]) -> None:
    """The package can be imported, and without a GPU one sentence says so."""
    if module is not None:
        import_module(module)
    command = [PROGRAM, "infer", *images, "--out-dir", "never", "--backend", backend]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert "GPU: expected one of NVIDIA" in last, last
    assert not Path("never").exists()


def export(images: list[str], clone: Path) -> None:
    """The shipped weights again, by the installed exporter: -P keeps the clone's packages out."""
    import paramorph_rt

    weights = Path(paramorph_rt.__file__).parent / "bundles/brain-t1-small/weights.safetensors"
    script, shape = str(clone / "export/to_onnx.py"), ["--shape", "32", "64", "32"]
    command = [sys.executable, "-P", script, "--weights", str(weights), *shape]
    subprocess.run([*command, "--out-dir", "bundle", "--force"], check=True)
    subprocess.run([PROGRAM, "info", "--model", "bundle", "--load"], check=True)


def train(images: list[str], clone: Path) -> None:
    """Its options; a training takes longer than all the other sessions."""
    import_module("paramorph.training")
    script = str(clone / "models/train.py")
    subprocess.run([sys.executable, "-P", script, "--options"], check=True)


def main() -> int:
    extra, colin, clone = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # The template of its own kind: a brain to itself is enough to see a command work.
    image = str(colin / "ch2bet.nii.gz")
    images = ["--moving", image, "--fixed", image]
    gpus = {
        "tensorrt-rtx": ("tensorrt-rtx", "tensorrt_rtx"),
        "tensorrt-rtx-onnxruntime": ("tensorrt-rtx", "onnxruntime_ep_nv_tensorrt_rtx"),
        "cuda": ("cuda", None),
    }
    if extra in gpus:
        gpu(*gpus[extra], images)
    else:
        known = (base, report, cluster, signing, export, train)
        {each.__name__: each for each in known}[extra](images, clone)
    return 0


if __name__ == "__main__":
    sys.exit(main())
