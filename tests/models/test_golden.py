"""Displacements of the reference network, for weights rebuilt from names and shapes.

On a GPU with `PARAMORPH_TEST_DEVICE=cuda`; `$PARAMORPH_REFERENCE` is where the golden outputs are.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from paramorph import CONFIGS, ParaMorph
from paramorph.reference import convert_reference_state

REFERENCE = Path(
    os.environ.get("PARAMORPH_REFERENCE", Path(__file__).parents[3] / "shared" / "reference")
)
DEVICE = os.environ.get("PARAMORPH_TEST_DEVICE", "cpu")

pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the golden outputs of the reference are not at hand"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("golden_file", "keys_file"),
    [
        ("golden_64x64x64_w4.npz", "state_dict_keys_w4.json"),
        ("golden_160x160x96_w553.npz", "state_dict_keys_w553.json"),
    ],
)
def test_displacement_is_that_of_the_reference(golden_file, keys_file):
    spec = importlib.util.spec_from_file_location("golden", REFERENCE / "deterministic_weights.py")
    rebuild = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rebuild)
    golden = np.load(REFERENCE / golden_file)
    shape, step = tuple(int(n) for n in golden["shape"]), int(golden["step"])
    arrays = rebuild.reference_state_dict(REFERENCE / keys_file)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    moving, fixed = (
        torch.from_numpy(rebuild.smooth_volume(shape, seed=s)).to(DEVICE) for s in (1, 2)
    )
    # Products with 10 bits on a GPU otherwise.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    for fusion in ("post", "cross"):
        config = CONFIGS["paramorph"].with_options(
            window=tuple(int(n) for n in golden["window"]), fusion=fusion, window_return="reference"
        )
        network = ParaMorph(config).eval()
        network.load_state_dict(convert_reference_state(state, config))
        network.to(DEVICE)
        with torch.inference_mode():
            displacement = network(moving, fixed).cpu().numpy()
        seen = displacement[:, :, ::step, ::step, ::step]
        # Measured 4e-6; network.md asks for 1e-4 of a faithful float32 implementation.
        np.testing.assert_allclose(seen, golden[fusion], atol=1e-4, rtol=0)
        for statistic in ("mean", "std"):
            found = getattr(displacement, statistic)((2, 3, 4)).ravel()
            expected = golden[f"{fusion}_{statistic}"].ravel()
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
