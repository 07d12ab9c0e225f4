from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paramorph import CONFIGS
from paramorph.augmentation import Augmentation
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph.data import Subject
from paramorph.losses import LossConfig
from paramorph.training import Trainer, TrainingConfig, TrainingError
from paramorph_rt.metrics.surface import surface_distances

SHAPE = (32, 32, 64)
INFO = WeightsInfo("tiny", CONFIGS["paramorph-tiny"].with_options(window=(2, 2, 2)), SHAPE)
CONFIG = TrainingConfig(
    steps=6,
    learning_rate=1e-3,
    warmup_steps=1,
    precision="float32",
    validate_every=3,
    checkpoint_every=3,
)
UNCHANGED = Augmentation(
    **{name: 0.0 for name, value in vars(Augmentation()).items() if isinstance(value, float)}
)


def ball(name: str, centre: tuple[float, float, float], radius: float) -> Subject:
    axes = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    distance = np.linalg.norm(np.stack(axes, -1) - centre, axis=-1)
    image = 1 / (1 + np.exp(distance - radius))
    return Subject(name, image.astype(np.float32), (distance < radius).astype(np.uint8))


BALLS = [ball("a", (15, 16, 32), 8), ball("b", (17, 15, 31), 9), ball("c", (16, 17, 30), 7)]


def same_weights(one: Trainer, other: Trainer) -> bool:
    state = other.weights.state_dict()
    return all(torch.equal(t, state[name]) for name, t in one.weights.state_dict().items())


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("options", "network"),
    [({}, {}), ({"ema": 0.9, "accumulate": 2, "recompute": True}, {"drop_path": 0.2, "passes": 2})],
    ids=["plain", "with-everything"],
)
def test_a_killed_and_resumed_training_equals_an_unbroken_one(
    options, network, tmp_path, monkeypatch
):
    config = replace(CONFIG, **options)
    info = replace(INFO, network=INFO.network.with_options(**network))
    loss = LossConfig(folding=1.0, labels=0.5)
    unbroken = Trainer(tmp_path / "unbroken", info, config, BALLS, BALLS[:2], loss=loss)
    unbroken.run()

    killed = Trainer(tmp_path / "killed", info, config, BALLS, BALLS[:2], loss=loss)
    step = killed._train_step
    monkeypatch.setattr(killed, "_train_step", lambda: step() if killed.step < 4 else kill())
    with pytest.raises(KilledError):
        killed.run()
    resumed = Trainer(tmp_path / "killed", info, config, BALLS, BALLS[:2], loss=loss)
    assert resumed.resume()
    assert resumed.step == 3
    resumed.run()
    assert same_weights(unbroken, resumed)
    assert unbroken.best == resumed.best


def kill():
    raise KilledError


def test_training_makes_volumes_more_alike(tmp_path):
    config = replace(CONFIG, steps=25, learning_rate=3e-3, warmup_steps=5, validate_every=25)
    loss = LossConfig(similarity="mse", smoothness=0.02)
    trainer = Trainer(tmp_path, INFO, config, BALLS, BALLS, loss=loss, augmentation=UNCHANGED)
    before, after = trainer.validate(), trainer.run()
    assert after.similarity < 0.8 * before.similarity
    assert after.dice > before.dice == pytest.approx(before.dice_before, abs=1e-3)
    assert after.assd_mm < after.assd_before_mm
    _, info = load_weights(tmp_path / "weights.safetensors")
    assert info.provenance["validation"]["dice"] == after.dice
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["dice"] == after.dice
    lines = [
        json.loads(line)
        for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 26  # a line per step, one for the validation
    assert (tmp_path / "pictures" / "step-000025.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_validation_measures_what_the_runtime_measures(tmp_path):
    info = replace(INFO, spacing_mm=(1.0, 2.0, 0.5))
    result = Trainer(tmp_path, info, CONFIG, BALLS, BALLS[:2]).validate()
    spacing = np.array(info.spacing_mm)
    both = [surface_distances(a.labels, b.labels, spacing, [1])[1].assd_mm for a, b in PAIRS]
    assert result.assd_before_mm == pytest.approx(np.mean(both))
    assert result.nonpositive_jacobian_percent == 0


PAIRS = [(BALLS[0], BALLS[1]), (BALLS[1], BALLS[0])]


@pytest.mark.parametrize("size", ["paramorph-tiny", "pyramid-tiny"])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_step_computes_in_the_precision_that_was_asked_for(tmp_path, size, precision):
    """In one process, too, where Fabric's wrapper sees to `forward` alone."""
    network = INFO.network if size == "paramorph-tiny" else CONFIGS[size]
    config = replace(CONFIG, precision=precision)
    trainer = Trainer(tmp_path, replace(INFO, network=network), config, BALLS)
    computed = set()
    for module in trainer.network.module.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda _, __, output: computed.add(output.dtype))
    trainer._train_step()
    assert computed == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_labels_join_the_loss(tmp_path):
    loss = LossConfig(similarity="mse", smoothness=0.0, labels=1.0)
    trainer = Trainer(tmp_path, INFO, CONFIG, BALLS, loss=loss, augmentation=UNCHANGED)
    before = trainer._pair_terms(0)
    assert set(before) == {"similarity", "labels"}
    before["labels"].backward()
    parameters = list(trainer.network.parameters())
    slope = torch.cat([p.grad.flatten() for p in parameters]).norm()
    with torch.no_grad():  # straight down the slope of this one pair
        for parameter in parameters:
            parameter -= 0.3 / slope * parameter.grad
    assert trainer._pair_terms(0)["labels"] < before["labels"] - 0.02
    without = replace(BALLS[0], labels=None)
    with pytest.raises(TrainingError, match="a: expected labels, as the loss uses them"):
        Trainer(tmp_path, INFO, CONFIG, [without, BALLS[1]], loss=loss)


def test_averaged_weights_are_what_is_kept(tmp_path):
    config = replace(CONFIG, ema=0.9, validate_every=CONFIG.steps)  # the only one is the best
    trainer = Trainer(tmp_path, INFO, config, BALLS, BALLS[:2])
    trainer.run()
    average, newest = trainer.weights.state_dict(), trainer.network.module.state_dict()
    assert any(not torch.equal(average[name], newest[name]) for name in average)
    kept, _ = load_weights(tmp_path / "weights.safetensors")
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, average[name].half().float()), name


def test_training_ends_when_nothing_gets_better(tmp_path):
    config = replace(CONFIG, steps=50, learning_rate=0.0, validate_every=2, patience=2)
    trainer = Trainer(tmp_path, INFO, config, BALLS, BALLS[:2])
    trainer.run()
    assert trainer.step == 6  # the first validation is the best, two more are not better
    again = Trainer(tmp_path, INFO, config, BALLS, BALLS[:2])
    again.resume()
    again.run()
    assert again.step == 6


def test_other_settings_are_not_resumed(tmp_path):
    Trainer(tmp_path, INFO, CONFIG, BALLS).run()
    with pytest.raises(TrainingError, match=r"got one that differs in training\.learning_rate;"):
        Trainer(tmp_path, INFO, replace(CONFIG, learning_rate=5e-3), BALLS).resume()
    with pytest.raises(TrainingError, match=r"differs in loss\.bending"):
        Trainer(tmp_path, INFO, CONFIG, BALLS, loss=LossConfig(bending=1.0)).resume()


def test_weights_of_a_coarser_grid_move_as_many_millimetres(tiny, tmp_path):
    coarse = WeightsInfo("tiny", tiny.config, SHAPE, spacing_mm=(3.0, 2.0, 1.0))
    save_weights(tmp_path / "coarse.safetensors", tiny.state_dict(), coarse)
    fine = WeightsInfo("tiny", tiny.config, SHAPE, spacing_mm=(1.5, 2.0, 2.0))
    trainer = Trainer(tmp_path, fine, CONFIG, BALLS)
    trainer.start_from(tmp_path / "coarse.safetensors")
    moving, fixed = (torch.from_numpy(ball.image)[None, None] for ball in BALLS[:2])
    with torch.inference_mode():
        before, after = tiny(moving, fixed), trainer.weights.eval()(moving, fixed)
    scale = torch.tensor([2.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    # Channels last adds up in another order; displacements are of about a voxel.
    torch.testing.assert_close(after, before * scale, atol=2e-3, rtol=1e-3)

    trainer = Trainer(tmp_path, INFO, CONFIG, BALLS)
    with pytest.raises(TrainingError, match="expected weights of the network"):
        trainer.start_from(tmp_path / "coarse.safetensors")


def test_one_volume_is_too_few(tmp_path):
    with pytest.raises(TrainingError, match="expected at least two volumes, got 1"):
        Trainer(tmp_path, INFO, CONFIG, BALLS[:1])


def test_a_loss_that_is_not_finite_names_the_pair_and_loses_nothing(tmp_path):
    trainer = Trainer(tmp_path, INFO, CONFIG, BALLS)
    for _ in range(2):
        trainer._train_step()
        trainer.step += 1
    trained = {name: t.clone() for name, t in trainer.weights.state_dict().items()}
    trainer.training = [replace(s, image=np.full(SHAPE, np.nan, np.float32)) for s in BALLS]
    with pytest.raises(TrainingError, match=r"step 3, [abc] → [abc]: expected a finite loss, got"):
        trainer.run()
    resumed = Trainer(tmp_path, INFO, CONFIG, BALLS)
    resumed.resume()
    assert resumed.step == 2
    for name, tensor in resumed.weights.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_learning_rate_rises_then_decays_to_zero(tmp_path):
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10)
    trainer = Trainer(tmp_path, INFO, config, BALLS)
    rates = []
    for trainer.step in range(100):
        rates.append(trainer.learning_rate())
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[50] == pytest.approx(0.5**0.9)
    assert rates[99] < 0.02


TWO_PROCESSES = """
import sys
import torch
from lightning_fabric import Fabric
from tests.models.test_training import BALLS, CONFIG, INFO
from paramorph.training import Trainer

torch.set_num_threads(1)
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="32-true")
fabric.launch()
trainer = Trainer(sys.argv[1], INFO, CONFIG, BALLS, BALLS[:2], fabric=fabric)
taken = []
clip = torch.nn.utils.clip_grad_norm_
def keep(parameters, largest):
    parameters = list(parameters)
    taken.append([p.grad.clone() for p in parameters])
    return clip(parameters, largest)
torch.nn.utils.clip_grad_norm_ = keep
trainer.run()
torch.save(taken, f"{sys.argv[1]}/gradients-{fabric.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_take_the_gradients_of_one_that_accumulates(tmp_path, monkeypatch):
    (tmp_path / "both.py").write_text(TWO_PROCESSES, encoding="utf-8")
    root = Path(__file__).parents[2]
    subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone"],
            *["--nproc-per-node", "2", tmp_path / "both.py", tmp_path / "two"],
        ],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    ranks = [torch.load(tmp_path / "two" / f"gradients-{rank}.pt") for rank in range(2)]
    gradients = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters, largest):
        parameters = list(parameters)
        gradients.append([p.grad.clone() for p in parameters])
        return clip(parameters, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    one = Trainer(tmp_path / "one", INFO, replace(CONFIG, accumulate=2), BALLS, BALLS[:2])
    one.run()
    for first, second in zip(*ranks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    # Afterwards Adam turns roundings of tiny gradients into steps as large as any other.
    expected, found = (torch.cat([g.flatten() for g in g0]) for g0 in (gradients[0], ranks[0][0]))
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert len(gradients) == len(ranks[0]) == CONFIG.steps
