"""The ONNX file against PyTorch, on fresh random volumes, in voxels."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F

from paramorph_export.errors import ExportError
from paramorph_export.trace import INPUTS, OUTPUTS, RegistrationGraph

if TYPE_CHECKING:
    from pathlib import Path

    from paramorph.network import ParaMorph

#: Largest difference of the displacement that an export may show.
TOLERANCE_VOX = 1e-3


def verify(
    path: Path, network: ParaMorph, shape: tuple[int, int, int], seed: int | None = None
) -> dict[str, Any]:
    """Run the file in ONNX Runtime (CPU) and the network in PyTorch on the same random pair.

    Args:
        path: The ONNX file.
        network: The network it was made from, float32.
        shape: Volume size (D, H, W).
        seed: Of the volumes; None draws one, which the result names.

    Returns:
        Measured differences, for the manifest.

    Raises:
        ExportError: The displacements differ by more than 1e-3 voxel, or are not finite.
    """
    seed = secrets.randbits(32) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    moving, fixed = (_random_volume(shape, generator) for _ in INPUTS)
    with torch.inference_mode():
        expected = [out.numpy() for out in RegistrationGraph(network)(moving, fixed)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = dict(zip(INPUTS, (moving.numpy(), fixed.numpy()), strict=True))
    displacement, warped = session.run(list(OUTPUTS), inputs)

    difference = np.abs(displacement - expected[0])
    result = {
        "reference": f"PyTorch {torch.__version__}, float32",
        "runtime": f"ONNX Runtime {onnxruntime.__version__}, CPU",
        "seed": seed,
        "max_displacement_vox": float(np.abs(expected[0]).max()),
        "max_difference_vox": float(difference.max()),
        "mean_difference_vox": float(difference.mean()),
        "max_warped_difference": float(np.abs(warped - expected[1]).max()),
    }
    if not difference.max() <= TOLERANCE_VOX:  # also true for NaN
        raise ExportError(
            f"{path.name}: expected ONNX Runtime within {TOLERANCE_VOX} voxel of PyTorch, got "
            f"{difference.max():.2g} (seed {seed}); report this with your versions of torch, onnx "
            "and onnxruntime."
        )
    return result


def _random_volume(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """Structure at several scales, (1, 1, D, H, W) in [0, 1]."""
    volume = torch.zeros(1, 1, *shape)
    for cell in (4, 8, 32):
        noise = torch.rand(1, 1, *[n // cell for n in shape], generator=generator)
        volume += F.interpolate(noise, size=shape, mode="trilinear") * cell
    volume -= volume.min()
    return volume / volume.max()
