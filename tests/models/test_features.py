"""The feature network and its training: shapes, norms, learning, resuming, refusals."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from paramorph import feature_network
from paramorph.augmentation import Augmentation
from paramorph.checkpoint import CheckpointError, FeatureInfo, load_feature_weights, load_weights
from paramorph.config import ConfigError
from paramorph.data import DataError, Subject
from paramorph.examples import Examples, Imaged, common_labels, numbered
from paramorph.feature_network import FeatureConfig, FeatureNetwork
from paramorph.feature_training import FeatureTrainer, FeatureTrainingConfig
from paramorph.label_codes import label_codes, nearness
from paramorph.training import TrainingError

SHAPE = (16, 24, 20)
TINY = FeatureConfig((4, 8, 8), 6, 4, 5)
STILL = Augmentation(
    *(0.0,) * 7,
    common_elastic_vox=0.0,
    gamma=0.0,
    bias=0.0,
    noise=0.0,
)


def subject(name: str, seed: int, numbers=(0, 4, 17, 300)) -> Subject:
    """Boxes of four brightnesses, one per label, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.int32)
    for number, label in enumerate(numbers[1:]):
        start = 2 + 5 * number + int(rng.integers(0, 2))
        labels[3:13, start : start + 5, 4:16] = label
    brightness = dict(zip((0, 4, 17, 300), (0.0, 0.3, 0.6, 0.9), strict=True))
    image = np.vectorize(brightness.get)(labels) + 0.02 * rng.random(SHAPE)
    return Subject(name, image.astype(np.float32), labels)


def trainer(folder: Path, steps: int = 60, augmentation: Augmentation = STILL) -> FeatureTrainer:
    config = FeatureTrainingConfig(
        steps, warmup_steps=5, voxels=2000, ema=0.9, validate_every=steps, checkpoint_every=10
    )
    info = FeatureInfo("tiny", TINY, SHAPE)
    labels = numbered([0, 4, 17, 300])
    training = [Imaged(subject(str(seed), seed), labels, augmentation) for seed in range(3)]
    validation = [Imaged(subject("validation", 9), labels, augmentation)]
    settings = {"augmentation": asdict(augmentation)}
    return FeatureTrainer(folder, info, config, Examples(labels, training, validation, settings))


def test_features_are_the_expected_codes(monkeypatch):
    network = FeatureNetwork(TINY).eval()
    volumes = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        found = network(volumes)
        monkeypatch.setattr(feature_network, "SLAB_NUMBERS", 10**12)
        whole = network(volumes)
        embedding = network.embedding(volumes).movedim(1, -1)
        logits = network.classifier(embedding.reshape(-1, 6)).reshape(2, *SHAPE, 4)
    wanted = (2 * logits).softmax(-1) @ network.codes.T
    assert found.shape == (2, 5, *SHAPE)
    torch.testing.assert_close(found, wanted.movedim(-1, 1))
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(network.codes.norm(dim=0), torch.ones(4))


def test_few_labels_have_codes_at_right_angles():
    torch.testing.assert_close(label_codes(3, 5).T @ label_codes(3, 5), torch.eye(3))
    many = label_codes(138, 12)
    torch.testing.assert_close(many.norm(dim=0), torch.ones(138))
    assert torch.equal(many, label_codes(138, 12))


def test_strength_scales_the_features():
    volume = torch.rand(1, 1, *SHAPE)
    plain, strong = FeatureNetwork(TINY), FeatureNetwork(replace(TINY, strength=3.0))
    assert plain.codes.norm(dim=0).max() < 1.001
    strong.load_state_dict({**plain.state_dict(), "codes": strong.codes})
    with torch.no_grad():
        torch.testing.assert_close(strong(volume), 3 * plain(volume))


def test_labels_side_by_side_have_unlike_codes():
    # Slabs one after the other: each label lies beside two of 30, and far from the others.
    numbers = torch.arange(30).repeat_interleave(4)[None, None, :, None, None]
    near = nearness([numbers.expand(1, 1, 120, 12, 12)], 30, (2.0, 2.0, 2.0))
    codes = label_codes(30, 4, near)
    alike = codes.T @ codes
    beside = alike.diagonal(1)
    assert near.diagonal(1).min() > 0.5
    assert near.diagonal(8).max() < 0.05
    assert beside.max() < 0.3
    assert label_codes(30, 4).T.matmul(label_codes(30, 4)).diagonal(1).max() > 0.8


def test_both_ways_to_normalise_are_the_same():
    network = FeatureNetwork(TINY).eval()
    volumes = torch.rand(2, 1, *SHAPE)
    with torch.no_grad():
        together, alone = network(volumes), torch.cat([network(v[None]) for v in volumes])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_labels_are_learned(tmp_path):
    trained = trainer(tmp_path / "run", 120)
    before = trained.validate()
    trained.run()
    assert before < 0.5
    assert trained.validate() > 0.8
    network, info = load_feature_weights(tmp_path / "run" / "weights.safetensors")
    assert info.network == TINY
    assert info.provenance["labels"] == [0, 4, 17, 300]
    assert info.provenance["validation_dice"] == pytest.approx(trained.best)
    volume = trained.training[0].image
    with torch.no_grad():
        assert network(volume).isfinite().all()


def test_a_resumed_training_goes_on_as_if_unbroken(tmp_path):
    whole = trainer(tmp_path / "whole", 20)
    whole.run()
    broken = trainer(tmp_path / "broken", 20)
    stopped = broken.folder.log

    def stop(step, values):
        stopped(step, values)
        if step == 13:
            raise KeyboardInterrupt

    broken.folder.log = stop
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = trainer(tmp_path / "broken", 20)
    assert again.resume()
    assert again.step == 10
    again.run()
    for ours, theirs in zip(again.averaged.parameters(), whole.averaged.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_a_training_can_be_prolonged(tmp_path):
    trainer(tmp_path / "run", 10).run()
    longer = trainer(tmp_path / "run", 30)
    assert longer.resume()
    longer.run()
    assert longer.step == 30
    _, info = load_feature_weights(tmp_path / "run" / "weights.safetensors")
    assert info.provenance["schedule"] in ([[0, 10]], [[0, 10], [10, 30]])


def test_a_training_starts_from_another_ones_weights(tmp_path):
    first = trainer(tmp_path / "first", 60)
    first.run()
    second = trainer(tmp_path / "second", 10)
    before = second.validate()
    second.start_from(tmp_path / "first" / "weights.safetensors")
    assert second.validate() > before + 0.1
    assert second.validate() == pytest.approx(first.validate(), abs=0.02)


def test_other_settings_do_not_resume(tmp_path):
    trainer(tmp_path / "run", 10).run()
    other = trainer(tmp_path / "run", 10, augmentation=Augmentation(flip_probability=0.0))
    with pytest.raises(TrainingError, match=r"differs in augmentation\.bias, "):
        other.resume()


def test_smoothing_may_be_another_and_missing_on_resume(tmp_path):
    trainer(tmp_path / "run", 10).run()
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    del state["settings"]["features"]["smoothing"]  # as of a version that did not know it
    torch.save(state, checkpoint)
    assert trainer(tmp_path / "run", 20).resume()


def test_rare_labels_are_left_out():
    present = [(0, 4, 17, 300), (0, 4, 17), (0, 4), (0, 4, 17)]
    assert common_labels([subject("s", 0, labels).labels for labels in present]) == [0, 4, 17]


def test_subjects_without_labels_are_refused():
    bare = Subject("bare", np.zeros(SHAPE, np.float32), None)
    with pytest.raises(DataError, match="bare: expected labels"):
        Imaged(bare, {0: 0, 1: 1}, STILL)


def test_configs_that_cannot_be():
    with pytest.raises(ConfigError, match="at least two scales"):
        FeatureConfig((8,))
    with pytest.raises(ConfigError, match="a label beside the background"):
        FeatureConfig(labels=1)
    for wrong in ({"strength": 0.0}, {"smoothing": -1.0}):
        with pytest.raises(ConfigError, match="strength and smoothing above 0"):
            FeatureConfig(**wrong)
    with pytest.raises(ConfigError, match="fields of this version"):
        FeatureConfig.from_dict({"widths": [4, 8], "depth": 3})


def test_weights_of_the_other_kind_are_refused(tmp_path):
    trainer(tmp_path / "run", 10).run()
    with pytest.raises(CheckpointError, match="'paramorph' metadata"):
        load_weights(tmp_path / "run" / "weights.safetensors")


def test_command_trains_from_a_file(train_features, tmp_path, capsys):
    for n in range(3):
        made = subject(str(n), n)
        for suffix, data in (("", made.image * 100), ("_labels", made.labels)):
            nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"s{n}{suffix}.nii.gz")
    config = tmp_path / "features.toml"
    config.write_text(
        f'[run]\nname = "tiny"\nout = {json.dumps(str(tmp_path / "out"))}\n'
        f"[data]\nroot = {json.dumps(str(tmp_path))}\naffine = false\n"
        "[grid]\nshape = [24, 24, 20]\n"
        "[features]\nwidths = [4, 8, 8]\nembedding = 5\nchannels = 3\n"
        "[training]\nsteps = 2\nvoxels = 500\n"
        "[augmentation]\nflip_probability = 0.0\n",
        encoding="utf-8",
    )
    assert train_features.main(["--config", str(config)]) == 0
    assert (tmp_path / "out" / "weights.safetensors").exists()
    assert train_features.main(["--config", str(config)]) == 1
    assert "expected a new run folder" in capsys.readouterr().err
    wrong = [
        "--config",
        str(config),
        "--set",
        "grid.shape=[24, 24, 21]",
        "--out",
        str(tmp_path / "o"),
    ]
    assert train_features.main(wrong) == 1
    assert "expected multiples of 4" in capsys.readouterr().err
