"""ONNX files against PyTorch and against one another, in voxels."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F

from paramorph_export.errors import ExportError
from paramorph_export.precision import LARGEST, emulated
from paramorph_export.trace import RegistrationGraph
from paramorph_rt.bundle.names import INPUTS, OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from jaxtyping import Float

    from paramorph.networks import RegistrationNetwork
    from paramorph_export.pairs import Pair

    Shape = tuple[int, int, int]
    Volume = Float[np.ndarray, "i j k"]

log = logging.getLogger(__name__)

#: Difference of the displacement to PyTorch that a float32 export may show in all but a thousandth
#: of the voxels, and in any. A second pass amplifies what the first rounds where volumes are steep.
TOLERANCE_VOX, LARGEST_TOLERANCE_VOX = 1e-3, 1e-2
#: Mean and 99.9th percentile of a half graph's difference to float32; bfloat16 has 3 bits less.
HALF_TOLERANCES_VOX = {"fp16": (0.01, 0.1), "bf16": (0.08, 0.8)}
DICE_TOLERANCE = 1e-3


def verify(
    path: Path, network: RegistrationNetwork, shape: Shape, seed: int | None = None
) -> dict[str, Any]:
    """Run the file in ONNX Runtime (CPU) and the network in PyTorch on the same random pair.

    Args:
        path: The ONNX file, in float32.
        network: The network it was made from, float32.
        shape: Volume size (D, H, W).
        seed: Of the volumes; None draws one, which the result names.

    Returns:
        Measured differences, for the manifest.

    Raises:
        ExportError: The displacements differ by more than 1e-3 voxel in more than a thousandth of
            the voxels, or by 1e-2 anywhere, or are not finite.
    """
    seed = secrets.randbits(32) if seed is None else seed
    moving, fixed = random_pair(shape, seed)
    with torch.inference_mode():
        expected = [
            out.numpy() for out in RegistrationGraph(network)(_batch(moving), _batch(fixed))
        ]
    displacement, warped = GraphSession(path).run(moving, fixed, OUTPUTS)

    difference = np.abs(displacement - expected[0])
    result = {
        "reference": f"PyTorch {torch.__version__}, float32",
        "runtime": f"ONNX Runtime {onnxruntime.__version__}, CPU",
        "seed": seed,
        "max_displacement_vox": float(np.abs(expected[0]).max()),
        "max_difference_vox": float(difference.max()),
        "mean_difference_vox": float(difference.mean()),
        "p999_difference_vox": float(np.quantile(difference, 0.999)),
        "max_warped_difference": float(np.abs(warped - expected[1]).max()),
    }
    p999, largest = result["p999_difference_vox"], result["max_difference_vox"]
    if not (p999 <= TOLERANCE_VOX and largest <= LARGEST_TOLERANCE_VOX):  # also true for NaN
        raise ExportError(
            f"{path.name}: expected ONNX Runtime within {TOLERANCE_VOX} voxel of PyTorch in 99.9 % "
            f"of all voxels and {LARGEST_TOLERANCE_VOX} in any, got {p999:.2g} and {largest:.2g} "
            f"(seed {seed}); report this with your versions of torch, onnx and onnxruntime."
        )
    return result


def verify_half(  # two graphs, and what they are compared on
    path: Path,
    reference: Path,
    shape: Shape,
    precision: str,
    pairs: Sequence[Pair] = (),
    sampling: str = "exact",
    seed: int | None = None,
) -> dict[str, Any]:
    """Run a half graph, emulated in ONNX Runtime (CPU), and its float32 graph on the same pairs.

    A random pair, volumes that no scanner makes (`extreme_pairs`), which only have to stay finite,
    and the real pairs that are given. See `precision.emulated` for what a CPU can show.

    Args:
        path: The half graph.
        reference: The float32 graph.
        shape: Volume size (D, H, W) of both.
        precision: fp16 or bf16.
        pairs: Real pairs on a grid of this shape.
        sampling: Convention of the network, for Dice.
        seed: Of the random volumes; None draws one, which the result names.

    Returns:
        Measured differences of the displacement, as lengths of vectors, for the manifest.

    Raises:
        ExportError: Differences beyond `HALF_TOLERANCES_VOX` or `DICE_TOLERANCE`, or a displacement
            that is not finite.
    """
    seed = secrets.randbits(32) if seed is None else seed
    half, full = GraphSession(emulated(onnx.load(path))), GraphSession(reference)

    def compare(name: str, moving: Volume, fixed: Volume, pair: Pair | None = None) -> dict:
        log.info("%s: comparing with float32 on %s …", path.name, name)
        (expected,) = full.run(moving, fixed, OUTPUTS[:1])
        outputs, largest = half.run(moving, fixed, (OUTPUTS[0], LARGEST))
        result = {"pair": name, **differences(expected[0], outputs[0]), "largest": float(largest)}
        if not np.isfinite(outputs).all():
            raise ExportError(
                f"{path.name}: expected finite displacements, got others for {name} (largest "
                f"number in half {largest:.3g}); export with another --precision."
            )
        if pair is not None:
            before, after = (pair.dice(u[0], sampling) for u in (expected, outputs))
            result |= {"dice": after, "dice_change": after - before}
        return result

    judged = [compare(f"random, seed {seed}", *random_pair(shape, seed))]
    judged += [compare(p.name, p.prepared.moving, p.prepared.fixed, p) for p in pairs]
    extreme = [compare(name, *volumes) for name, *volumes in extreme_pairs(shape)]
    for row in judged:
        _check_half(path.name, precision, row)
    return {
        "reference": reference.name,
        "runtime": f"ONNX Runtime {onnxruntime.__version__}, CPU, rounding every weight and the "
        "output of every operator",
        "seed": seed,
        **{key: max(row[key] for row in judged) for key in differences(np.zeros(1), np.zeros(1))},
        "largest_in_half": max(row["largest"] for row in (*judged, *extreme)),
        "pairs": judged[1:],
        "random": judged[0],
        "extreme": extreme,
    }


def _check_half(name: str, precision: str, row: dict[str, Any]) -> None:
    """Refuse differences of a pair that are larger than rounding explains."""
    mean, p999 = HALF_TOLERANCES_VOX[precision]
    if not (
        row["mean_difference_vox"] <= mean
        and row["p999_difference_vox"] <= p999
        and abs(row.get("dice_change", 0.0)) <= DICE_TOLERANCE
    ):
        raise ExportError(
            f"{name}: expected a displacement within {mean} voxel of float32 on average, "
            f"{p999} at the 99.9th percentile, and Dice within {DICE_TOLERANCE}, got "
            f"{row['mean_difference_vox']:.2g}, {row['p999_difference_vox']:.2g} and "
            f"{row.get('dice_change', 0):.2g} for {row['pair']}; export without {precision}."
        )


def differences(
    expected: Float[np.ndarray, "3 i j k"], actual: Float[np.ndarray, "3 i j k"]
) -> dict[str, float]:
    """Lengths of the difference vectors in voxels: mean, 99.9th percentile, largest."""
    lengths = np.linalg.norm(actual - expected, axis=0)
    return {
        "mean_difference_vox": float(lengths.mean(dtype=np.float64)),
        "p999_difference_vox": float(np.quantile(lengths, 0.999)),
        "max_difference_vox": float(lengths.max()),
    }


def random_pair(shape: Shape, seed: int) -> tuple[Volume, Volume]:
    """Two volumes in [0, 1] with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    moving, fixed = (_random_volume(shape, generator) for _ in INPUTS)
    return moving, fixed


def extreme_pairs(shape: Shape) -> Iterator[tuple[str, Volume, Volume]]:
    """Names and volumes that no scanner makes: nothing, everything, edges everywhere, one voxel."""
    nothing, everything = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    board = (np.indices(shape).sum(0) % 2).astype(np.float32)
    hot = nothing.copy()
    hot[tuple(n // 2 for n in shape)] = 1
    beyond = np.random.default_rng(0).uniform(-0.5, 1.5, shape).astype(np.float32)
    yield "nothing twice", nothing, nothing
    yield "everything and nothing", everything, nothing
    yield "a checkerboard twice", board, board
    yield "one hot voxel and nothing", hot, nothing
    yield "noise from -0.5 to 1.5 and its mirror image", beyond, beyond[::-1].copy()


class GraphSession:
    """A graph in ONNX Runtime, on the CPU.

    Args:
        model: A file, or a graph in memory.
    """

    def __init__(self, model: Path | onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # which would keep the largest activations allocated
        # By need; its own order would first compute all that `LARGEST` looks at, and keep it.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )

    def run(self, moving: Volume, fixed: Volume, outputs: Sequence[str]) -> list[np.ndarray]:
        """The outputs of these names, with their batch axis."""
        volumes = (moving, fixed)
        return self._session.run(
            list(outputs), {name: v[None, None] for name, v in zip(INPUTS, volumes, strict=True)}
        )


def _batch(volume: Volume) -> torch.Tensor:
    return torch.from_numpy(volume)[None, None]


def _random_volume(shape: Shape, generator: torch.Generator) -> Volume:
    volume = torch.zeros(1, 1, *shape)
    for cell in (4, 8, 32):
        noise = torch.rand(1, 1, *[max(1, n // cell) for n in shape], generator=generator)
        volume += F.interpolate(noise, size=shape, mode="trilinear") * cell
    volume -= volume.min()
    return (volume / volume.max())[0, 0].numpy()
