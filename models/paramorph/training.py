"""Training: pairs of volumes, both directions, checkpoints that a kill cannot hurt."""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from paramorph.augmentation import Augmentation
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph.config import NetworkConfig, PyramidConfig
from paramorph.losses import LossConfig, total
from paramorph.network import ParaMorph
from paramorph.networks import RegistrationNetwork, network_of
from paramorph.options import option
from paramorph.pair_loss import PairLoss
from paramorph.pyramid_loss import PyramidLoss
from paramorph.run_folder import RunFolder, TrainingError
from paramorph.validation import Validation, validate_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from paramorph.data import Subject
    from paramorph.feature_training import FeatureTrainingConfig

# What may change when a training goes on: how long it is, and when it is validated and saved.
FREE_ON_RESUME = frozenset(
    f"training.{name}" for name in ("steps", "validate_every", "checkpoint_every", "patience")
)
PRECISIONS = {"bf16": "bf16-mixed", "float32": "32-true"}


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are changed, and when they are validated and saved."""

    steps: int = option(1000, "optimiser steps; more of them prolong a training on --resume")
    learning_rate: float = option(5e-4, "of Adam (amsgrad), at its peak")
    warmup_steps: int = option(30, "linear rise to the peak")
    decay_power: float = option(
        0.9, "polynomial decay: the rate is peak × (1 - step / steps) ** decay_power"
    )
    accumulate: int = option(1, "pairs per step and process, one after the other")
    precision: str = option("bf16", "bfloat16 where autocast finds it safe, or none", PRECISIONS)
    recompute: bool = option(False, "activation checkpointing: less memory, more time")
    gradient_clip: float = option(1.0, "largest norm of all gradients together")
    ema: float = option(0.0, "share of the averaged weights that each step keeps; 0: no average")
    seed: int = option(0, "of everything random: pairs, augmentation, first weights, drop path")
    validate_every: int = option(100, "steps")
    checkpoint_every: int = option(25, "steps")
    patience: int = option(0, "validations without a better one that end the training; 0: never")


def scheduled(config: TrainingConfig | FeatureTrainingConfig, step: int) -> float:
    """The learning rate of a step, counted from 0: a linear rise, then a polynomial decay."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * (1 - step / config.steps) ** config.decay_power


def _function_of(config: NetworkConfig | PyramidConfig) -> NetworkConfig | PyramidConfig:
    """Without what weights do not depend on."""
    if isinstance(config, PyramidConfig):
        return config
    return config.with_options(drop_path=0.0, passes=1, smoothing=0.0)


class Trainer:
    """One training in one folder.

    The folder gets `log.jsonl` (a line per step and per validation) and the same for TensorBoard,
    `pictures/` of the first validation pair, `checkpoint.pt` (everything needed to go on) and
    `weights.safetensors` (the best validation so far, or the newest where there is none). A second
    start with `resume` continues from the checkpoint; every pair and its augmentation are drawn
    from the seed and the pair's own number, so a resumed training does what an unbroken one would
    have done, and two processes do together what one does that accumulates two pairs.

    Args:
        folder: Written to; created if it does not exist.
        info: The network, its grid, and what is to be recorded with its weights.
        training: At least two subjects on that grid.
        validation: Each is registered to the next; fewer than two are no validation.
        fabric: Device, precision and processes; the default is one process on the CPU.

    Raises:
        TrainingError: Too few volumes, or no labels where the loss needs them.
    """

    def __init__(  # what is trained, on what; the keywords say how
        self,
        folder: str | Path,
        info: WeightsInfo,
        config: TrainingConfig,
        training: Sequence[Subject],
        validation: Sequence[Subject] = (),
        *,
        loss: LossConfig | None = None,
        augmentation: Augmentation | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.info, self.config = info, config
        self.loss, self.augmentation = loss or LossConfig(), augmentation or Augmentation()
        self.training = list(training)
        self._check_subjects()
        self.pairs = list(pairwise([*validation, validation[0]])) if len(validation) > 1 else []
        self.folder = RunFolder(folder)
        self.fabric = fabric or Fabric(
            accelerator="cpu", devices=1, precision=PRECISIONS[config.precision]
        )
        torch.manual_seed(config.seed)
        network = network_of(info.network)
        if isinstance(
            network, ParaMorph
        ):  # its convolutions are faster so on CPUs, a pyramid's not
            network = network.to(memory_format=torch.channels_last_3d)
        self.averaged = None
        if config.ema:
            average = get_ema_multi_avg_fn(config.ema)
            self.averaged = AveragedModel(network, self.fabric.device, multi_avg_fn=average)
        if config.recompute:
            network.recompute_activations()
        optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, amsgrad=True)
        self.network, self.optimizer = self.fabric.setup(network, optimizer)
        kind = PyramidLoss if isinstance(info.network, PyramidConfig) else PairLoss
        self.network.mark_forward_method(kind.forward_method)
        self.pair_loss = kind(
            self._in_precision(kind.forward_method),
            info.network,
            self.loss,
            self.augmentation,
            self.fabric.device,
            self.training,
        )
        self.step, self.best, self.not_better = 0, -float("inf"), 0

    @property
    def weights(self) -> RegistrationNetwork:
        """The network that is validated and saved: the average, where there is one."""
        return self.averaged.module if self.averaged else self.network.module

    def start_from(self, path: str | Path) -> None:
        """Take over weights of another training of the same network, on this grid or another.

        The head is scaled so that the displacements stay the same in millimetres.

        Raises:
            CheckpointError: Not weights of this toolkit.
            TrainingError: Weights of another network.
        """
        network, info = load_weights(path)
        if _function_of(info.network) != _function_of(self.info.network):
            raise TrainingError(
                f"{path}: expected weights of the network {self.info.network}, got those of "
                f"{info.network}; set the same options under [network]."
            )
        network.rescale(torch.tensor(info.spacing_mm) / torch.tensor(self.info.spacing_mm))
        self.network.module.load_state_dict(network.state_dict())
        if self.averaged:
            self.averaged.module.load_state_dict(network.state_dict())

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False if there is none.

        A training may be prolonged by more steps, and looked at more or less often. The learning
        rate then follows the longer schedule from here on: it starts again above zero.

        Raises:
            TrainingError: The checkpoint is of a training with other settings, or has more steps.
        """
        state = self.folder.read_checkpoint(self.settings(), FREE_ON_RESUME, self.fabric.device)
        if state is None:
            return False
        if self.config.steps < state["step"]:
            raise TrainingError(
                f"{self.folder.checkpoint}: expected training.steps from the {state['step']} that "
                f"are done, got {self.config.steps}; set more to prolong it, or choose another "
                "--out."
            )
        self.network.module.load_state_dict(state["network"])
        if self.averaged:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        self.not_better = state["not_better"]
        return True

    def run(self) -> Validation | None:
        """Train to the last step, or until nothing gets better; returns the last validation.

        Raises:
            TrainingError: A loss that is not finite; what was trained before is in the checkpoint.
        """
        result = None
        while self.step < self.config.steps and not self._has_stalled():
            started = time.perf_counter()
            try:
                losses = self._train_step()
            except TrainingError:
                self._save_checkpoint()
                raise
            self.step += 1
            losses["seconds"] = time.perf_counter() - started
            if self.fabric.is_global_zero:
                self.folder.log(self.step, losses)
            last = self.step == self.config.steps
            if last or self.step % self.config.validate_every == 0:
                result = self._validate_and_keep()
            if last or self._has_stalled() or self.step % self.config.checkpoint_every == 0:
                self._save_checkpoint()
        return result

    def validate(self, picture: Path | None = None) -> Validation:
        """The means over the validation pairs, on the network grid; `picture`: a PNG of the first.

        The network is left in training mode.
        """
        pictures = [picture] + [None] * (len(self.pairs) - 1)
        return Validation.mean(
            [
                validate_pair(self.weights, self.info, self.loss, *pair, self._autocast(), picture)
                for pair, picture in zip(self.pairs, pictures, strict=True)
            ]
        )

    def settings(self) -> dict[str, Any]:
        """Everything that decides what is trained."""
        return {
            "weights": asdict(self.info) | {"network": self.info.network.as_dict()},
            "loss": asdict(self.loss),
            "training": asdict(self.config),
            "augmentation": asdict(self.augmentation),
            "subjects": [subject.name for subject in self.training],
            "processes": self.fabric.world_size,
        }

    def learning_rate(self) -> float:
        """Of the step about to be taken."""
        return scheduled(self.config, self.step)

    def _train_step(self) -> dict[str, float]:
        """One step of the optimiser, on `accumulate` pairs in every process."""
        count = self.config.accumulate
        sums: dict[str, float] = {}
        for index in range(count):
            number = (self.step * count + index) * self.fabric.world_size + self.fabric.global_rank
            with self.fabric.no_backward_sync(self.network, enabled=index < count - 1):
                terms = self._pair_terms(number)
                self.fabric.backward(total(self.loss, terms) / count)
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item() / count
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged:
            self.averaged.update_parameters(self.network.module)
        return {**sums, "gradient_norm": norm.item()}

    def _pair_terms(self, number: int) -> dict[str, Tensor]:
        """The loss's terms of the pair with this number since the start."""
        rng = random.Random(f"{self.config.seed} {number}")
        subjects = rng.sample(self.training, 2)
        terms = self.pair_loss.terms(*subjects, rng)
        self._check_finite(terms, subjects)
        return terms

    def _check_finite(self, terms: dict[str, Tensor], subjects: Sequence[Subject]) -> None:
        """Stop all processes at a loss that is not finite in one; that one names the pair."""
        values = {name: term.item() for name, term in terms.items()}
        finite = all(math.isfinite(value) for value in values.values())
        everywhere = self.fabric.all_reduce(
            torch.tensor(int(finite), device=self.fabric.device), reduce_op="sum"
        )
        if not finite:
            moving, fixed = subjects
            raise TrainingError(
                f"step {self.step + 1}, {moving.name} → {fixed.name}: expected a finite loss, got "
                f"{values}; look at these volumes and at {self.folder.path / 'log.jsonl'}, or "
                "lower the learning rate (what was trained is in the checkpoint)."
            )
        if int(everywhere) < self.fabric.world_size:
            raise TrainingError(
                f"step {self.step + 1}: expected a finite loss in every process, got another in "
                "one; see its own message."
            )

    def _check_subjects(self) -> None:
        if len(self.training) < 2:
            raise TrainingError(
                f"training data: expected at least two volumes, got {len(self.training)}; "
                "add volumes."
            )
        for subject in self.training:
            if self.loss.uses_labels and subject.labels is None:
                raise TrainingError(
                    f"{subject.name}: expected labels, as the loss uses them, got none; add its "
                    "label map or set loss.labels, loss.codes and loss.anatomy to 0."
                )

    def _validate_and_keep(self) -> Validation | None:
        """Validate, log, and write the weights if none were better; all processes learn of it."""
        result, score = None, float(self.step)
        if self.pairs and self.fabric.is_global_zero:
            result = self.validate(self.folder.picture(self.step))
            score = -result.similarity if result.dice is None else result.dice
            self.folder.log_validation(self.step, result)
        score = self.fabric.broadcast(score)
        self.not_better = 0 if score > self.best else self.not_better + 1
        if score > self.best:
            self.best = score
            if self.fabric.is_global_zero:
                self._save_weights(result)
        return result

    def _save_weights(self, result: Validation | None) -> None:
        recorded = {key: v for key, v in self.settings().items() if key != "weights"}
        provenance = {
            **self.info.provenance,
            **recorded,
            "step": self.step,
            "validation": None if result is None else asdict(result),
        }
        info = WeightsInfo(**{**vars(self.info), "provenance": provenance})
        save_weights(self.folder.weights, self.weights.state_dict(), info, torch.float16)

    def _has_stalled(self) -> bool:
        return 0 < self.config.patience <= self.not_better

    def _save_checkpoint(self) -> None:
        if self.fabric.is_global_zero:
            self.folder.save_checkpoint(
                self.settings(),
                network=self.network.module.state_dict(),
                averaged=self.averaged.state_dict() if self.averaged else None,
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                best=self.best,
                not_better=self.not_better,
            )
        self.fabric.barrier()

    def _in_precision(self, method: str) -> Callable[[Tensor, Tensor], Any]:
        """A method of the network that is trained, in the training's precision.

        Of one process Fabric's wrapper sees to that for `forward` alone.
        """

        def call(moving: Tensor, fixed: Tensor) -> Any:
            with self._autocast():
                return getattr(self.network, method)(moving, fixed)

        return call

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.fabric.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )
