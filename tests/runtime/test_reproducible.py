"""What docs/reproducibility.md promises: equal input, engine and precision give equal bits."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import nibabel
import numpy as np
import pytest

from paramorph_rt.images.volume import save_volume

from .phantoms import centred_grid, head, volume_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    grid = centred_grid("RAS", (44, 52, 40))
    save_volume(folder / "fixed.nii.gz", volume_of(head, grid))
    bent = volume_of(head, grid, through=lambda points: points + 2 * np.sin(points / 9))
    save_volume(folder / "moving.nii.gz", bent)
    return folder


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_neither_runs_nor_threads_nor_cores_change_a_bit(images, tmp_path, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    results = []
    one_core = {min(os.sched_getaffinity(0))}
    for run, (threads, cores) in enumerate(((1, None), (2, None), (2, None), (2, one_core))):
        out = tmp_path / str(run)
        line = ["-m", str(images / "moving.nii.gz"), "-f", str(images / "fixed.nii.gz")]
        line += ["-o", str(out), "--model", "hippocampus-small", "--backend", engine]
        command = [sys.executable, "-m", "paramorph_rt", "infer", *line, "--threads", str(threads)]
        limit = partial(os.sched_setaffinity, 0, cores) if cores else None
        subprocess.run(command, check=True, capture_output=True, preexec_fn=limit)
        field = np.asarray(nibabel.load(out / "displacement.nii.gz").dataobj)
        affine = (out / "affine.tfm").read_text(encoding="utf-8")
        results.append((field.tobytes(), affine, (out / "warped.nii.gz").read_bytes()))
        assert np.abs(field).max() > 0.1  # there was something to be done
    assert all(result == results[0] for result in results)
