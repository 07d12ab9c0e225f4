"""Unsupervised training: pairs of volumes, both directions, checkpoints that a kill cannot hurt."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paramorph.augmentation import Augmentation
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph.losses import SIMILARITIES, gradient_smoothness
from paramorph.network import ParaMorph
from paramorph.warp import warp
from paramorph_rt.errors import ParamorphError
from paramorph_rt.field import field_from_network
from paramorph_rt.metrics.deformation import nonpositive_jacobian_percent
from paramorph_rt.metrics.overlap import dice, mean_over, present_labels
from paramorph_rt.spaces import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from paramorph.data import Subject

#: Weights of the smoothness term that the reference uses with each similarity.
DEFAULT_SMOOTHNESS = {"ncc": 1.0, "mse": 0.02}


class TrainingError(ParamorphError, RuntimeError):
    """Training that cannot start, go on, or resume."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training besides data and network."""

    steps: int = 1000  # optimiser steps
    learning_rate: float = 5e-4  # at its peak
    warmup_steps: int = 30  # linear rise to the peak
    decay_power: float = 0.9  # polynomial decay to zero at the last step
    similarity: str = "ncc"  # ncc (local, window 9) or mse
    smoothness: float | None = None  # weight of the squared gradient; None: 1 for ncc, 0.02 for mse
    gradient_clip: float = 1.0  # largest norm of all gradients together
    augmentation: Augmentation = field(default_factory=Augmentation)
    bf16: bool = True  # bfloat16 where autocast finds it safe; losses stay float32
    seed: int = 0
    validate_every: int = 100  # steps
    checkpoint_every: int = 25  # steps

    @property
    def smoothness_weight(self) -> float:
        return DEFAULT_SMOOTHNESS[self.similarity] if self.smoothness is None else self.smoothness


@dataclass(frozen=True)
class Validation:
    """Means over the validation pairs."""

    dice: float | None  # over all labels present in both maps; None without labels
    dice_before: float | None  # the same with a zero field: what affine alignment gives
    nonpositive_jacobian_percent: float
    similarity: float  # the training's similarity loss


class Trainer:
    """One training in one folder.

    The folder gets `config.json`, `log.jsonl` (a line per step and per validation),
    `checkpoint.pt` (everything needed to go on), `weights.safetensors` (the best validation so
    far, or the newest without labels). A second start with `resume` continues from the checkpoint;
    every step draws its pair and augmentation from the seed and its own number, so a resumed run
    does what an unbroken one would have done.
    """

    def __init__(
        self,
        folder: str | Path,
        info: WeightsInfo,
        config: TrainingConfig,
        training: Sequence[Subject],
        validation: Sequence[Subject] = (),
        device: str = "cpu",
    ) -> None:
        if len(training) < 2:
            raise TrainingError(
                f"training data: expected at least two volumes, got {len(training)}; add volumes."
            )
        self.folder, self.info, self.config = Path(folder), info, config
        self.training, self.device = training, torch.device(device)
        self.pairs = list(pairwise([*validation, validation[0]])) if len(validation) > 1 else []
        torch.manual_seed(config.seed)
        network = ParaMorph(info.network).to(self.device, memory_format=torch.channels_last_3d)
        self.network = network  # convolutions are a fifth faster with channels last on CPUs
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, amsgrad=True
        )
        self.step, self.best = 0, -float("inf")

    def start_from(self, path: str | Path) -> None:
        """Take over weights of another training of the same network, on this grid or another.

        The head is scaled so that the displacements stay the same in millimetres.

        Raises:
            CheckpointError: Not weights of this toolkit.
            TrainingError: Weights of another network.
        """
        network, info = load_weights(path)
        theirs, ours = (i.network.with_options(drop_path=0.0) for i in (info, self.info))
        if theirs != ours:
            raise TrainingError(
                f"{path}: expected weights of the network {ours}, got those of {theirs}; "
                "pass the same --network, --fusion and --window."
            )
        scale = torch.tensor(info.spacing_mm) / torch.tensor(self.info.spacing_mm)
        with torch.no_grad():
            network.decoder.head.weight *= scale[:, None, None, None, None]
            network.decoder.head.bias *= scale
        self.network.load_state_dict(network.state_dict())

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False if there is none.

        Raises:
            TrainingError: The checkpoint is of a training with other settings.
        """
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != self._settings():
            raise TrainingError(
                f"{path}: expected a checkpoint of these settings, got one of others; "
                "resume with the same options or choose another --out."
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        return True

    def run(self) -> Validation | None:
        """Train to the last step; returns the last validation, None without volumes for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self._settings(), indent=1) + "\n")
        result = None
        while self.step < self.config.steps:
            started = time.perf_counter()
            losses = self._train_step()
            self.step += 1
            self._log(step=self.step, seconds=time.perf_counter() - started, **losses)
            last = self.step == self.config.steps
            if last or self.step % self.config.validate_every == 0:
                result = self._validate_and_keep()
            if last or self.step % self.config.checkpoint_every == 0:
                self._save_checkpoint()
        return result

    def validate(self) -> Validation:
        """The validation pairs, each subject to the next, on the network grid."""
        self.network.eval()
        rows = [self._validate_pair(moving, fixed) for moving, fixed in self.pairs]
        self.network.train()
        means = {}
        for key in Validation.__dataclass_fields__:
            values = [row[key] for row in rows if row[key] is not None]
            means[key] = float(np.mean(values)) if values else None
        return Validation(**means)

    def _train_step(self) -> dict[str, float]:
        rng = random.Random(f"{self.config.seed} {self.step}")
        moving, fixed = (self._tensor(s) for s in rng.sample(list(self.training), 2))
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        moving, fixed = self.config.augmentation(moving, fixed, generator)
        torch.manual_seed(rng.getrandbits(60))  # drop path

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            fields = self.network.both_ways(moving, fixed)
        similarity, smoothness = 0.0, 0.0
        for source, target, displacement in zip(
            (moving, fixed), (fixed, moving), fields, strict=True
        ):
            warped = warp(source, displacement.float(), self.info.network.sampling)
            similarity = similarity + SIMILARITIES[self.config.similarity](warped, target) / 2
            smoothness = smoothness + gradient_smoothness(displacement) / 2
        loss = similarity + self.config.smoothness_weight * smoothness
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: expected a finite loss, got {loss.item()}; look at the last "
                f"lines of {self.folder / 'log.jsonl'} and lower the learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        return {
            "similarity": similarity.item(),
            "smoothness": smoothness.item(),
            "gradient_norm": norm.item(),
        }

    def learning_rate(self) -> float:
        """Of the step about to be taken."""
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        decay = (1 - self.step / self.config.steps) ** self.config.decay_power
        return self.config.learning_rate * warmup * decay

    @torch.inference_mode()
    def _validate_pair(self, moving: Subject, fixed: Subject) -> dict[str, float | None]:
        source, target = self._tensor(moving), self._tensor(fixed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            displacement = self.network(source, target).float()
        sampling = self.info.network.sampling
        field = field_from_network(
            displacement[0].cpu().numpy(), Grid(self.info.shape, np.eye(4)), sampling
        )
        row: dict[str, float | None] = {"dice": None, "dice_before": None}
        if moving.labels is not None and fixed.labels is not None:
            labels = torch.from_numpy(moving.labels.astype(np.float32))[None, None]
            warped = warp(labels.to(self.device), displacement, sampling, "nearest")
            warped_labels = warped[0, 0].cpu().numpy().astype(moving.labels.dtype)
            common = present_labels(moving.labels) & present_labels(fixed.labels)
            row["dice"] = mean_over(dice(fixed.labels, warped_labels), common)
            row["dice_before"] = mean_over(dice(fixed.labels, moving.labels), common)
        row["nonpositive_jacobian_percent"] = nonpositive_jacobian_percent(field)
        warped = warp(source, displacement, sampling)
        row["similarity"] = SIMILARITIES[self.config.similarity](warped, target).item()
        return row

    def _validate_and_keep(self) -> Validation | None:
        """Validate, log, and write the weights if none were better."""
        result = self.validate() if self.pairs else None
        score = float(self.step)
        if result is not None:
            self._log(step=self.step, validation=asdict(result))
            score = -result.similarity if result.dice is None else result.dice
        if score > self.best:
            self.best = score
            provenance = {
                **self.info.provenance,
                "training": self._settings()["training"],
                "step": self.step,
                "validation": None if result is None else asdict(result),
            }
            info = WeightsInfo(**{**vars(self.info), "provenance": provenance})
            path = self.folder / "weights.safetensors"
            save_weights(path, self.network.state_dict(), info, torch.float16)
        return result

    def _save_checkpoint(self) -> None:
        state = {
            "settings": self._settings(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": self.best,
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / "checkpoint.pt")

    def _settings(self) -> dict[str, Any]:
        return {
            "weights": json.loads(self.info.to_json()),
            "training": asdict(self.config),
            "subjects": [subject.name for subject in self.training],
        }

    def _log(self, **line: Any) -> None:
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if "validation" in line or self.step % 10 == 0 or self.step == 1:
            print(json.dumps(line), flush=True)

    def _tensor(self, subject: Subject) -> Tensor:
        return torch.from_numpy(subject.image)[None, None].to(self.device)
