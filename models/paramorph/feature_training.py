"""Training of the feature network: voxels of one structure get like features, in every subject.

Cross entropy and Dice of the labels, over voxels drawn from each subject: so few of them take the
memory that the probabilities of a hundred labels would need.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from paramorph.checkpoint import FeatureInfo, load_feature_weights, save_weights
from paramorph.feature_network import FeatureNetwork
from paramorph.label_codes import label_codes, nearness
from paramorph.options import check_range, option
from paramorph.run_folder import RunFolder, TrainingError
from paramorph.training import scheduled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from paramorph.examples import Examples, Source

#: Smoothing has no part in the training, and older checkpoints do not know it.
FREE_ON_RESUME = frozenset(
    {
        "features.smoothing",
        *(f"training.{name}" for name in ("steps", "validate_every", "checkpoint_every")),
    }
)
_CODED_BY = 4  # subjects from whose maps the labels' codes are made


@dataclass(frozen=True)
class FeatureTrainingConfig:
    """How the feature network is trained."""

    steps: int = option(3000, "optimiser steps, of one subject each")
    learning_rate: float = option(2e-3, "of AdamW, at its peak")
    warmup_steps: int = option(50, "linear rise to the peak")
    decay_power: float = option(0.9, "polynomial decay to zero at the last step")
    weight_decay: float = option(1e-5, "of AdamW")
    labels: tuple[int, ...] = option(
        (), "what is learned beside the background; [] is what enough of the subjects have"
    )
    merged: tuple[tuple[int, ...], ...] = option(
        (), "groups of labels that are learned as one, such as the zones of one organ"
    )
    image_share: float = option(
        0.5, "of the steps that see an image, where there are label maps without images too"
    )
    voxels: int = option(110_000, "drawn from each subject for the loss")
    labelled_share: float = option(
        0.8, "of them that have a label; the fewer labelled voxels there are, the less should it be"
    )
    gradient_clip: float = option(5.0, "largest norm of all gradients together")
    ema: float = option(0.99, "share of the averaged weights that each step keeps")
    seed: int = option(0, "of everything random: subjects, augmentation, voxels, first weights")
    validate_every: int = option(300, "steps")
    checkpoint_every: int = option(50, "steps")

    def __post_init__(self) -> None:
        check_range(self, ("image_share", "labelled_share"), most=1)


class FeatureTrainer:
    """One training in one folder, with the files of `training.Trainer` and its way to resume.

    Args:
        folder: Written to; created if it does not exist.
        info: The network, its grid, and what is to be recorded with its weights.
        config: How it is trained.
        examples: What it learns from.

    Raises:
        TrainingError: No subjects.
    """

    def __init__(
        self,
        folder: str | Path,
        info: FeatureInfo,
        config: FeatureTrainingConfig,
        examples: Examples,
    ) -> None:
        if not examples.training:
            raise TrainingError("training data: expected a subject, got none; add volumes.")
        self.config, self.labels = config, dict(examples.labels)
        self.training, self.validation = examples.training, examples.validation
        self.settings = examples.settings
        self.count = max(self.labels.values()) + 1
        self.info = replace(info, network=replace(info.network, labels=self.count))
        self.folder = RunFolder(folder)
        torch.manual_seed(config.seed)
        network = FeatureNetwork(self.info.network)
        network.codes.copy_(self._codes())
        self.model = network.to(memory_format=torch.channels_last_3d)
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.best = 0, -math.inf
        self.schedule = [[0, config.steps]]  # from which step on, towards which last step

    def start_from(self, path: str | Path) -> None:
        """Take over weights of another training of the same labels, on this grid or another.

        The labels' codes are not trained, so they stay, and there may be another number of
        channels.

        Raises:
            CheckpointError: Not weights of a feature network.
            TrainingError: Of another network.
        """
        network, info = load_feature_weights(path)
        ours = self.info.network
        free = {name: getattr(ours, name) for name in ("channels", "strength", "smoothing")}
        if replace(info.network, **free) != ours:
            raise TrainingError(
                f"{path}: expected weights of {ours}, got {info.network}; change "
                "[features], or start without [run] init."
            )
        for model in (self.model, self.averaged.module):
            model.load_state_dict({**network.state_dict(), "codes": model.codes})

    def run(self) -> None:
        """Train to the last step; with none, only write the weights that it starts from."""
        if self.config.steps == 0:
            self._validate_and_keep()
        while self.step < self.config.steps:
            started = time.perf_counter()
            values = self._train_step()
            self.step += 1
            values["seconds"] = time.perf_counter() - started
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
        state = self.folder.read_checkpoint(self._settings(), FREE_ON_RESUME)
        if state is None:
            return False
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
        for image, numbers in (source.unchanged() for source in self.validation):
            with torch.no_grad(), self._autocast():
                embedded = _per_voxel(network.embedding(_channels_last(image)))
            predicted = torch.cat(
                [network.classifier(part).argmax(1) for part in embedded.split(200_000)]
            )
            scores.append(_mean_dice(predicted, numbers.flatten(), self.count))
        return sum(scores) / len(scores) if scores else None

    def _train_step(self) -> dict[str, float]:
        rng = random.Random(f"{self.config.seed} {self.step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        source = rng.choice(self._drawn_kind(rng))
        image, labels = source.changed(generator)
        labels = labels.flatten()
        chosen = _drawn(labels, self.config.voxels, self.config.labelled_share, generator)
        with self._autocast():
            embedded = _per_voxel(self.model.embedding(_channels_last(image)))
        logits, truth = self.model.classifier(embedded[chosen]), labels[chosen]
        cross_entropy, dice = F.cross_entropy(logits, truth), _soft_dice(logits, truth)
        loss = cross_entropy + 1 - dice
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.step + 1}, {source.name}: expected a finite loss, got {loss.item()}; "
                "look at this volume, or lower the learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = scheduled(self.config, self.step)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        return {"cross_entropy": cross_entropy.item(), "dice": dice.item()}

    def _codes(self) -> Float[Tensor, "channels labels"]:
        """Of the labels, by how near they lie to each other in some of the subjects."""
        some = (source.unchanged().numbers for source in self.training[:_CODED_BY])
        near = nearness(some, self.count, self.info.spacing_mm)
        network = self.info.network
        return network.strength * label_codes(self.count, network.channels, near)

    def _drawn_kind(self, rng: random.Random) -> Sequence[Source]:
        """The subjects with an image, or those without."""
        kinds = [[s for s in self.training if s.imaged == imaged] for imaged in (True, False)]
        if not all(kinds):
            return self.training
        return kinds[rng.random() >= self.config.image_share]

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
        self.folder.save_checkpoint(
            self._settings(),
            model=self.model.state_dict(),
            averaged=self.averaged.state_dict(),
            optimizer=self.optimizer.state_dict(),
            step=self.step,
            best=self.best,
            schedule=self.schedule,
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "features": self.info.network.as_dict(),
            "training": asdict(self.config),
            **self.settings,
            "subjects": [source.name for source in self.training],
            "labels": sorted(self.labels),
        }

    @staticmethod
    def _autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


def _drawn(
    labels: Int[Tensor, " n"], count: int, labelled_share: float, rng: torch.Generator
) -> Int[Tensor, " m"]:
    """Voxels for the loss, some labelled and the others anywhere; none whose label is ignored."""
    labelled, known = (labels > 0).nonzero()[:, 0], (labels >= 0).nonzero()[:, 0]
    inside = round(labelled_share * count) if len(labelled) else 0
    anywhere = known[torch.randint(len(known), (count - inside,), generator=rng)]
    if not inside:
        return anywhere
    return torch.cat([labelled[torch.randint(len(labelled), (inside,), generator=rng)], anywhere])


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
