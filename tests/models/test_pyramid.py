"""The pyramid network and its loss, held to hand-made cases, NumPy and the runtime's own metric."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from paramorph import CONFIGS
from paramorph.augmentation import Augmentation, smooth_noise
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph.config import ConfigError, PyramidConfig, config_from_dict
from paramorph.losses import LossConfig, log_jacobian
from paramorph.options import OptionError
from paramorph.pyramid import Estimate, PyramidNetwork, correlation, upsampled
from paramorph.pyramid_loss import PyramidLoss
from paramorph.run_config import load_run_config
from paramorph.training import Trainer, TrainingConfig, TrainingError
from paramorph.warp import warp
from paramorph_rt.geometry.field import field_from_network
from paramorph_rt.geometry.spaces import Grid

from .test_training import BALLS, CONFIG, SHAPE, UNCHANGED

TINY = CONFIGS["pyramid-tiny"]
INFO = WeightsInfo("tiny", TINY, SHAPE, provenance={})
LOSS = LossConfig(ncc_window=5, smoothness=1, folding=5, log_jacobian=1, codes=10, anatomy=3)


def pair(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(2, 1, 1, *SHAPE, generator=generator).unbind())


def moved_network(squarings: int = 4) -> PyramidNetwork:
    """Whose velocities are a few voxels long."""
    torch.manual_seed(0)
    network = PyramidNetwork(PyramidConfig((4, 6, 8), (6, 8, 8), codes=4, squarings=squarings))
    with torch.no_grad():
        for flow in network.flows:
            flow.head.weight.normal_(std=0.05)
    return network.eval()


def smooth_displacement(seed: int, vox: float) -> torch.Tensor:
    return vox * smooth_noise(torch.Generator().manual_seed(seed), 3, torch.Size(SHAPE), 4)


def test_training_starts_near_the_identity_and_ends_at_half_resolution():
    torch.manual_seed(0)
    network = PyramidNetwork(TINY).eval()
    with torch.no_grad():
        displacement = network(*pair())
        estimate = network.estimate(*pair())
    assert displacement.shape == (1, 3, *SHAPE)
    assert displacement.abs().max() < 0.1
    sizes = [tuple(u.shape[2:]) for u in estimate.displacements]
    assert sizes == [(4, 4, 8), (8, 8, 16), (16, 16, 32), (16, 16, 32)]
    assert torch.equal(upsampled(estimate.displacements[-1]), displacement)
    assert estimate.codes.shape == (2, 4, 16, 16, 32)


@pytest.mark.parametrize("offset", [(0, 0, 0), (1, 0, -1), (-1, 1, 1)])
def test_correlation_is_that_of_numpy_and_peaks_where_features_went(offset):
    generator = np.random.default_rng(1)
    fixed = generator.normal(size=(8, 6, 7, 5)).astype(np.float32)
    moving = np.roll(fixed, offset, axis=(1, 2, 3))
    found = correlation(torch.from_numpy(fixed)[None], torch.from_numpy(moving)[None])[0].numpy()
    inner = (slice(2, -2),) * 3
    for number, (i, j, k) in enumerate(np.ndindex(3, 3, 3)):
        neighbour = np.roll(moving, (1 - i, 1 - j, 1 - k), axis=(1, 2, 3))
        expected = (fixed * neighbour).mean(axis=0)
        np.testing.assert_allclose(found[number][inner], expected[inner], atol=1e-5)
    best = found[(slice(None), *inner)].mean(axis=(1, 2, 3)).argmax()
    assert best == np.ravel_multi_index(np.add(offset, 1), (3, 3, 3))


def test_upsampled_displacement_means_the_same_in_finer_voxels():
    fine = smooth_displacement(2, 2.0)
    coarse = torch.nn.functional.avg_pool3d(fine, 2) / 2
    inner = (slice(None), slice(None), *[slice(2, -2)] * 3)
    assert (upsampled(coarse) - fine)[inner].abs().max() < 0.15
    shift = torch.full((1, 3, 4, 4, 4), 1.5)
    assert torch.equal(upsampled(shift), torch.full((1, 3, 8, 8, 8), 3.0))


def test_log_jacobian_is_that_of_the_runtimes_determinants():
    displacement = smooth_displacement(3, 9.0)
    field = field_from_network(displacement[0].numpy(), Grid(SHAPE, np.eye(4)), "exact")
    inside = field.jacobian_determinant()[1:-1, 1:-1, 1:-1]
    assert inside.std() > 0.05
    expected = np.square(np.log(inside)).mean()
    assert log_jacobian(displacement).item() == pytest.approx(expected, rel=1e-3)
    scaled = torch.stack(
        torch.meshgrid(*[0.1 * torch.arange(n, dtype=torch.float32) for n in SHAPE], indexing="ij")
    )[None]
    assert log_jacobian(scaled).item() == pytest.approx((3 * np.log(1.1)) ** 2, rel=1e-4)


def test_loss_falls_when_the_displacement_is_right():
    """Two equal images, one shifted by 4 voxels: the true displacement costs less than none."""
    labels = BALLS[0].labels
    shifted = np.roll(labels, 4, axis=2)

    def shifting(vox: float):
        scales = [torch.zeros(1, 3, *(n // s for n in SHAPE)) for s in (8, 4, 2, 2)]
        for u, s in zip(scales, (8, 4, 2, 2), strict=True):
            u[:, 2] = vox / s
        return lambda moving, fixed: Estimate(scales, torch.zeros(2, 4, 16, 16, 32))

    moving = type(BALLS[0])("m", np.roll(BALLS[0].image, 4, axis=2), shifted)
    loss = LossConfig(codes=1.0, anatomy=1.0, smoothness=0)
    terms = {}
    for vox in (0.0, 4.0):
        arguments = (shifting(vox), TINY, loss, UNCHANGED, torch.device("cpu"), BALLS)
        terms[vox] = PyramidLoss(*arguments).terms(moving, BALLS[0], random.Random(0))
    assert terms[4.0]["codes"] < 0.05 * terms[0.0]["codes"]
    assert terms[4.0]["similarity"] < terms[0.0]["similarity"] - 0.05
    assert terms[4.0]["anatomy"] == pytest.approx(1, abs=0.02)  # codes have length 1, but at edges


def test_training_with_codes_makes_labels_overlap(tmp_path):
    config = TrainingConfig(
        **{**vars(CONFIG), "steps": 40, "learning_rate": 5e-3, "validate_every": 40}
    )
    trainer = Trainer(tmp_path, INFO, config, BALLS, BALLS, loss=LOSS, augmentation=UNCHANGED)
    before, after = trainer.validate(), trainer.run()
    assert after.dice > before.dice + 0.02
    network, info = load_weights(tmp_path / "weights.safetensors")
    assert isinstance(network, PyramidNetwork)
    assert info.network == TINY
    assert info.provenance["loss"]["codes"] == 10


def test_a_resumed_training_goes_on(tmp_path):
    config = TrainingConfig(**{**vars(CONFIG), "steps": 2, "checkpoint_every": 1, "ema": 0.5})
    Trainer(tmp_path, INFO, config, BALLS, loss=LOSS).run()
    longer = TrainingConfig(**{**vars(config), "steps": 3, "recompute": False})
    resumed = Trainer(tmp_path, INFO, longer, BALLS, loss=LOSS)
    assert resumed.resume()
    assert resumed.step == 2
    resumed.run()


def test_codes_need_labels(tmp_path):
    bare = [type(b)(b.name, b.image, None) for b in BALLS]
    with pytest.raises(TrainingError, match=r"a: expected labels.*loss.codes"):
        Trainer(tmp_path, INFO, CONFIG, bare, loss=LOSS)
    without = LossConfig(ncc_window=5)
    Trainer(
        tmp_path, INFO, TrainingConfig(**{**vars(CONFIG), "steps": 1}), bare, loss=without
    ).run()


def test_weights_start_a_training_at_another_spacing(tmp_path):
    network = moved_network(squarings=2)
    info = WeightsInfo("coarse", network.config, SHAPE, (2.0, 1.0, 1.0))
    save_weights(tmp_path / "w.safetensors", network.state_dict(), info)
    trainer = Trainer(tmp_path / "run", WeightsInfo("fine", network.config, SHAPE), CONFIG, BALLS)
    trainer.start_from(tmp_path / "w.safetensors")
    theirs = network.flows[0].head.weight
    assert torch.equal(trainer.weights.flows[0].head.weight[0], 2 * theirs[0])
    assert torch.equal(trainer.weights.flows[0].head.weight[1:], theirs[1:])
    other = Trainer(tmp_path / "other", INFO, CONFIG, BALLS)
    with pytest.raises(TrainingError, match="expected weights of the network"):
        other.start_from(tmp_path / "w.safetensors")


def test_config_survives_json_and_refuses_nonsense(tmp_path):
    assert config_from_dict(TINY.as_dict()) == TINY
    with pytest.raises(ConfigError, match=r"expected fields of this version, got \['colour'\]"):
        config_from_dict({**TINY.as_dict(), "colour": 1})
    for wrong in ({"widths": (4,)}, {"repeats": 0}, {"squarings": -1}):
        with pytest.raises(ConfigError, match="network config: expected"):
            PyramidConfig(**wrong)
    with pytest.raises(ConfigError, match="multiples of 32"):
        PyramidNetwork(TINY)(*torch.zeros(2, 1, 1, 32, 32, 40).unbind())
    file = tmp_path / "pyramid.toml"
    file.write_text('[network]\nsize = "pyramid-small"\n', encoding="utf-8")
    assert load_run_config(file).weights_info().network == CONFIGS["pyramid-small"]
    with pytest.raises(OptionError, match="expected no other option beside pyramid-small"):
        load_run_config(file, ["network.passes=2"]).weights_info()


def test_warping_coarse_to_fine_composes():
    """Of two flows at one scale, the second sees what the first has warped."""
    network = moved_network(squarings=0)
    with torch.no_grad():
        first, second = network.estimate(*pair()).displacements[-2:]
        features = network._features(*pair())[-1]
        moving, fixed = features.chunk(2)
        scales = network._features(*pair())
        context = None
        so_far = None
        for both, flow in zip(scales, network.flows, strict=False):
            m, f = both.chunk(2)
            if so_far is None:
                context, so_far = flow(m, f)
                continue
            so_far = upsampled(so_far)
            context = torch.nn.functional.interpolate(context, scale_factor=2)
            context, v = flow(warp(m, so_far), f, context)
            so_far = v + warp(so_far, v)
        assert torch.allclose(so_far, first, atol=1e-5)
        _, v = network.flows[-1](warp(moving, first), fixed, context)
        assert torch.allclose(v + warp(first, v), second, atol=1e-5)


def test_augmented_steps_are_drawn_from_their_number(tmp_path):
    config = TrainingConfig(**{**vars(CONFIG), "steps": 1})
    runs = [
        Trainer(tmp_path / n, INFO, config, BALLS, loss=LOSS, augmentation=Augmentation())
        for n in "ab"
    ]
    for run in runs:
        run.run()
    one, other = (run.weights.state_dict() for run in runs)
    assert all(torch.equal(t, other[name]) for name, t in one.items())
