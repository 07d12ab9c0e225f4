"""Training of the feature network: voxels of one structure get like features, in every subject.

Cross entropy and Dice of the labels, over voxels drawn from each subject: so few of them take the
memory that the probabilities of a hundred labels would need.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from paramorph.augmentation import Augmentation
from paramorph.checkpoint import FeatureInfo, load_feature_weights, save_weights
from paramorph.feature_network import FeatureNetwork
from paramorph.options import option
from paramorph.run_folder import RunFolder
from paramorph.training import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from paramorph.data import Subject

#: Of the training subjects that must have a label for it to be learned.
LEAST_SHARE = 0.3
_IGNORED = -1


@dataclass(frozen=True)
class FeatureTrainingConfig:
    """How the feature network is trained."""

    steps: int = option(3000, "optimiser steps, of one subject each")
    learning_rate: float = option(2e-3, "of AdamW, at its peak")
    warmup_steps: int = option(50, "linear rise to the peak")
    decay_power: float = option(0.9, "polynomial decay to zero at the last step")
    weight_decay: float = option(1e-5, "of AdamW")
    voxels: int = option(110_000, "drawn from each subject for the loss, most of them labelled")
    gradient_clip: float = option(5.0, "largest norm of all gradients together")
    ema: float = option(0.99, "share of the averaged weights that each step keeps")
    seed: int = option(0, "of everything random: subjects, augmentation, voxels, first weights")
    validate_every: int = option(300, "steps")
    checkpoint_every: int = option(50, "steps")


class FeatureTrainer:
    """One training in one folder, with the files of `training.Trainer` and its way to resume.

    Args:
        folder: Written to; created if it does not exist.
        info: The network, its grid, and what is to be recorded with its weights.
        training: Subjects with label maps, on that grid.
        validation: Subjects of which the labels are predicted, to see how far the training is.

    Raises:
        TrainingError: No subjects, or one without labels.
    """

    def __init__(
        self,
        folder: str | Path,
        info: FeatureInfo,
        config: FeatureTrainingConfig,
        training: Sequence[Subject],
        validation: Sequence[Subject] = (),
        augmentation: Augmentation | None = None,
    ) -> None:
        self.config = config
        self.augmentation = augmentation or Augmentation(flip_probability=0.0)
        _check_subjects([*training, *validation])
        self.labels = common_labels(training)
        self.info = replace(info, network=replace(info.network, labels=len(self.labels)))
        self.training = [(s.name, *self._tensors(s)) for s in training]
        self.validation = [(s.name, *self._tensors(s)) for s in validation]
        self.folder = RunFolder(folder)
        torch.manual_seed(config.seed)
        network = FeatureNetwork(self.info.network)
        self.model = network.to(memory_format=torch.channels_last_3d)
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.best = 0, -math.inf
        self.schedule = [[0, config.steps]]  # from which step on, towards which last step

    def start_from(self, path: str | Path) -> None:
        """Take over weights of another training of the same labels, on this grid or another.

        Raises:
            CheckpointError: Not weights of a feature network.
            TrainingError: Of another network.
        """
        network, info = load_feature_weights(path)
        if info.network != self.info.network:
            raise TrainingError(
                f"{path}: expected weights of {self.info.network}, got {info.network}; change "
                "[features], or start without [run] init."
            )
        for model in (self.model, self.averaged.module):
            model.load_state_dict(network.state_dict())

    def run(self) -> None:
        """Train to the last step."""
        while self.step < self.config.steps:
            values = self._train_step()
            self.step += 1
            self.folder.log(self.step, values)
            last = self.step == self.config.steps
            if last or self.step % self.config.validate_every == 0:
                self._validate_and_keep()
            if last or self.step % self.config.checkpoint_every == 0:
                self._save_checkpoint()

    def resume(self) -> bool:
        """Go on from the folder's checkpoint, if there is one.

        The number of steps may be another than before: the learning rate decays towards the new
        last step from here on, and the weights record both.

        Raises:
            TrainingError: It is that of a training with other settings.
        """
        if not self.folder.checkpoint.exists():
            return False
        state = torch.load(self.folder.checkpoint, weights_only=True)
        if not _same_but_for_steps(state["settings"], self._settings()):
            raise TrainingError(
                f"{self.folder.checkpoint}: expected a training with these settings, got others; "
                "choose another --out, or the configuration that it was started with."
            )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self.schedule = state.get("schedule") or [[0, state["settings"]["training"]["steps"]]]
        if self.schedule[-1][1] != self.config.steps:
            self.schedule.append([self.step, self.config.steps])
        return True

    def validate(self) -> float | None:
        """Mean Dice of the labels predicted by the averaged weights, over labels and subjects."""
        network = self.averaged.module
        scores = []
        for _, image, labels in self.validation:
            with torch.no_grad(), self._autocast():
                found = _per_voxel(network.embedding(_channels_last(image)))
            predicted = torch.cat(
                [network.classifier(part).argmax(1) for part in found.split(200_000)]
            )
            scores.append(_mean_dice(predicted, labels.flatten(), len(self.labels)))
        return float(np.mean(scores)) if scores else None

    def _train_step(self) -> dict[str, float]:
        rng = random.Random(f"{self.config.seed} {self.step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        name, image, labels = rng.choice(self.training)
        change, _ = self.augmentation.draw(image.shape[2:], generator)
        image, labels = change.image(image), change.labels(labels).flatten()
        chosen = _drawn(labels, self.config.voxels, generator)
        with self._autocast():
            found = _per_voxel(self.model.embedding(_channels_last(image)))
        logits, truth = self.model.classifier(found[chosen]), labels[chosen]
        cross_entropy, dice = F.cross_entropy(logits, truth), _soft_dice(logits, truth)
        loss = cross_entropy + 1 - dice
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.step + 1}, {name}: expected a finite loss, got {loss.item()}; look at "
                "this volume, or lower the learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        return {"cross_entropy": cross_entropy.item(), "dice": dice.item()}

    def _learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        decay = (1 - self.step / self.config.steps) ** self.config.decay_power
        return self.config.learning_rate * warmup * decay

    def _tensors(self, subject: Subject) -> tuple[Tensor, Tensor]:
        """Image, and its labels as numbers of `self.labels`."""
        numbers = np.full(int(subject.labels.max()) + 1, _IGNORED)
        for number, label in enumerate(self.labels):
            if label < len(numbers):
                numbers[label] = number
        image, labels = torch.from_numpy(subject.image), torch.from_numpy(numbers[subject.labels])
        return image[None, None], labels[None, None]

    def _validate_and_keep(self) -> None:
        dice = self.validate()
        self.folder.log(self.step, {} if dice is None else {"validation_dice": dice})
        score = self.step if dice is None else dice
        if score > self.best:
            self.best = score
            provenance = {**self.info.provenance, **self._settings(), "step": self.step}
            provenance |= {"validation_dice": dice, "schedule": self.schedule}
            info = FeatureInfo(**{**vars(self.info), "provenance": provenance})
            state = self.averaged.module.state_dict()
            save_weights(self.folder.weights, state, info, torch.float16)

    def _save_checkpoint(self) -> None:
        state = {
            "settings": self._settings(),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
            "schedule": self.schedule,
        }
        partial = self.folder.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.folder.checkpoint)

    def _settings(self) -> dict[str, Any]:
        return {
            "features": self.info.network.as_dict(),
            "training": asdict(self.config),
            "augmentation": asdict(self.augmentation),
            "subjects": [name for name, *_ in self.training],
            "labels": self.labels,
        }

    @staticmethod
    def _autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


def _same_but_for_steps(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    free = dict.fromkeys(("steps", "validate_every", "checkpoint_every"))
    without = [{**s, "training": {**s["training"], **free}} for s in (ours, theirs)]
    return without[0] == without[1]


def common_labels(subjects: Sequence[Subject]) -> list[int]:
    """0 and the labels of at least `LEAST_SHARE` of the subjects, ascending."""
    counts = Counter(label for s in subjects for label in np.unique(s.labels).tolist())
    return sorted({0, *(x for x, n in counts.items() if n >= LEAST_SHARE * len(subjects))})


def _check_subjects(subjects: Sequence[Subject]) -> None:
    if not subjects:
        raise TrainingError("training data: expected a subject, got none; add volumes.")
    for subject in subjects:
        if subject.labels is None:
            raise TrainingError(
                f"{subject.name}: expected labels, from which features are learned, got none; add "
                "its label map."
            )


def _drawn(labels: Int[Tensor, " n"], count: int, rng: torch.Generator) -> Int[Tensor, " m"]:
    """Voxels for the loss: most of them labelled, a fifth anywhere; none whose label is ignored."""
    labelled, known = (labels > 0).nonzero()[:, 0], (labels >= 0).nonzero()[:, 0]
    anywhere = known[torch.randint(len(known), (count // 5,), generator=rng)]
    if not len(labelled):
        return anywhere
    inside = labelled[torch.randint(len(labelled), (count - count // 5,), generator=rng)]
    return torch.cat([inside, anywhere])


def _soft_dice(logits: Float[Tensor, "n labels"], truth: Int[Tensor, " n"]) -> Tensor:
    """Mean over the labels of which enough voxels were drawn."""
    shares = logits.softmax(1)
    wanted = F.one_hot(truth, logits.shape[1]).to(shares.dtype)
    counts = wanted.sum(0)
    dice = 2 * (shares * wanted).sum(0) / (shares.sum(0) + counts + 1e-3)
    return dice[counts > 20].mean()


def _mean_dice(predicted: Int[Tensor, " n"], truth: Int[Tensor, " n"], labels: int) -> float:
    known = truth >= 0
    predicted, truth = predicted[known], truth[known]
    ours, theirs, both = (
        torch.bincount(t, minlength=labels).double()[1:]
        for t in (predicted, truth, truth[predicted == truth])
    )
    return (2 * both / (ours + theirs))[theirs > 0].mean().item()


def _per_voxel(volume: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "n c"]:
    return volume.float().permute(0, 2, 3, 4, 1).flatten(0, 3)


def _channels_last(volume: Tensor) -> Tensor:
    return volume.contiguous(memory_format=torch.channels_last_3d)
