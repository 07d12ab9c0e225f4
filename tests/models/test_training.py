from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from paramorph import CONFIGS
from paramorph.augmentation import Augmentation
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph.data import Subject
from paramorph.training import Trainer, TrainingConfig, TrainingError

from .test_data import write_subject

SHAPE = (32, 32, 32)
INFO = WeightsInfo("tiny", CONFIGS["paramorph-tiny"].with_options(window=(2, 2, 2)), SHAPE)
CONFIG = TrainingConfig(
    steps=6, learning_rate=1e-3, warmup_steps=1, bf16=False, validate_every=3, checkpoint_every=3
)


def ball(name: str, centre: tuple[float, float, float], radius: float) -> Subject:
    axes = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    distance = np.linalg.norm(np.stack(axes, -1) - centre, axis=-1)
    image = 1 / (1 + np.exp(distance - radius))
    return Subject(name, image.astype(np.float32), (distance < radius).astype(np.uint8))


BALLS = [ball("a", (15, 16, 16), 8), ball("b", (17, 15, 16), 9), ball("c", (16, 17, 14), 7)]


class KilledError(Exception):
    pass


def test_a_killed_and_resumed_training_equals_an_unbroken_one(tmp_path, monkeypatch):
    unbroken = Trainer(tmp_path / "unbroken", INFO, CONFIG, BALLS, BALLS[:2])
    unbroken.run()

    killed = Trainer(tmp_path / "killed", INFO, CONFIG, BALLS, BALLS[:2])
    step = killed._train_step
    monkeypatch.setattr(killed, "_train_step", lambda: step() if killed.step < 4 else kill())
    with pytest.raises(KilledError):
        killed.run()
    resumed = Trainer(tmp_path / "killed", INFO, CONFIG, BALLS, BALLS[:2])
    assert resumed.resume()
    assert resumed.step == 3
    resumed.run()
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def kill():
    raise KilledError


def test_training_makes_volumes_more_alike(tmp_path):
    config = TrainingConfig(
        steps=40,
        learning_rate=2e-3,
        warmup_steps=5,
        bf16=False,
        similarity="mse",
        validate_every=40,
        augmentation=Augmentation(0, 0, 0, 0, 0, 0, 0),
    )
    trainer = Trainer(tmp_path, INFO, config, BALLS, BALLS)
    before, after = trainer.validate(), trainer.run()
    assert after.similarity < 0.7 * before.similarity
    assert after.dice > before.dice == pytest.approx(before.dice_before, abs=1e-3)
    _, info = load_weights(tmp_path / "weights.safetensors")
    assert info.provenance["validation"]["dice"] == after.dice
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 41  # a line per step, one for the validation


def test_other_settings_are_not_resumed(tmp_path):
    Trainer(tmp_path, INFO, CONFIG, BALLS).run()
    other = TrainingConfig(steps=6, learning_rate=5e-3, bf16=False)
    with pytest.raises(TrainingError, match="expected a checkpoint of these settings"):
        Trainer(tmp_path, INFO, other, BALLS).resume()


def test_weights_of_a_coarser_grid_move_as_many_millimetres(tiny, tmp_path):
    coarse = WeightsInfo("tiny", tiny.config, SHAPE, spacing_mm=(3.0, 2.0, 1.0))
    save_weights(tmp_path / "coarse.safetensors", tiny.state_dict(), coarse)
    fine = WeightsInfo("tiny", tiny.config, SHAPE, spacing_mm=(1.5, 2.0, 2.0))
    trainer = Trainer(tmp_path, fine, CONFIG, BALLS)
    trainer.start_from(tmp_path / "coarse.safetensors")
    moving, fixed = (torch.from_numpy(ball.image)[None, None] for ball in BALLS[:2])
    with torch.inference_mode():
        before, after = tiny(moving, fixed), trainer.network.eval()(moving, fixed)
    scale = torch.tensor([2.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(after, before * scale, atol=1e-4, rtol=1e-4)

    trainer = Trainer(tmp_path, INFO, CONFIG, BALLS)
    with pytest.raises(TrainingError, match="expected weights of the network"):
        trainer.start_from(tmp_path / "coarse.safetensors")


def test_one_volume_is_too_few(tmp_path):
    with pytest.raises(TrainingError, match="expected at least two volumes, got 1"):
        Trainer(tmp_path, INFO, CONFIG, BALLS[:1])


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    broken = Subject("nan", np.full(SHAPE, np.nan, np.float32), None)
    with pytest.raises(TrainingError, match="expected a finite loss, got nan"):
        Trainer(tmp_path, INFO, CONFIG, [broken, broken]).run()


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


def test_augmentation_is_decided_by_its_generator():
    volume = torch.from_numpy(BALLS[0].image)[None, None]
    runs = [
        Augmentation()(volume, volume, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])
    assert not torch.equal(runs[0][0], runs[0][1])  # moving and fixed differ a little


def test_no_augmentation_is_the_identity():
    volume = torch.from_numpy(BALLS[0].image)[None, None]
    off = Augmentation(0, 0, 0, 0, 0, 0, 0)
    moving, _ = off(volume, volume, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moving, volume, atol=1e-5, rtol=0)


def test_rotation_turns_about_the_centre():
    only_flip = Augmentation(0, 0, 0, 0, 0, flip_probability=1.0, gamma=0)
    volume = torch.rand(1, 1, 5, 6, 7)
    flipped, _ = only_flip(volume, volume, torch.Generator().manual_seed(0))
    torch.testing.assert_close(flipped, volume.flip(2), atol=1e-5, rtol=0)


def test_train_command_from_files_to_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "models")
    import train

    folder, out = tmp_path / "volumes", tmp_path / "run"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write_subject(folder, name, centre=(seed, -seed, 0), seed=seed)
    options = ["--data", str(folder), "--validation", str(folder), "--out", str(out)]
    size = ["--shape", *["32"] * 3, "--window", *["2"] * 3, "--spacing", *["2"] * 3]
    options += ["--network", "paramorph-tiny", *size]
    options += ["--steps", "2", "--float32", "--name", "phantom"]
    monkeypatch.setattr(sys, "argv", ["models/train.py", *options])
    assert train.main(options) == 0
    _, info = load_weights(out / "weights.safetensors")
    assert (info.name, info.spacing_mm, info.shape) == ("phantom", (2.0, 2.0, 2.0), SHAPE)
    assert "models/train.py --data" in (out / "command.txt").read_text()

    assert train.main(options) == 1
    assert "pass --resume to go on with it" in capsys.readouterr().err
    assert train.main([*options, "--resume"]) == 0
    assert train.main([*options[:4], "--out", str(tmp_path / "x"), "--reference", "z"]) == 1
    assert "expected a subject of" in capsys.readouterr().err
