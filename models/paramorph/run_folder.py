"""The folder of a training: what lies where in it, its log, and its checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from paramorph_rt.errors import ParamorphError
from paramorph_rt.system.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Collection

    from paramorph.validation import Validation


class TrainingError(ParamorphError, RuntimeError):
    """Training that cannot start, go on, or resume."""


class RunFolder:
    """Paths inside `path`, and a log as JSON lines, on the terminal, and for TensorBoard."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.path / "checkpoint.pt"
        self.weights = self.path / "weights.safetensors"

    def picture(self, step: int) -> Path:
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:06d}.png"

    def log(self, step: int, values: dict[str, float]) -> None:
        """One training step."""
        self._write({"step": step, **values}, show=step == 1 or step % 10 == 0)
        for name, value in values.items():
            self._tensorboard.add_scalar(f"training/{name}", value, step)

    def log_validation(self, step: int, result: Validation) -> None:
        values = asdict(result)
        self._write({"step": step, "validation": values}, show=True)
        (self.path / "metrics.json").write_text(
            json.dumps({"step": step, **values}) + "\n", encoding="utf-8"
        )
        for name, value in values.items():
            if value is not None:
                self._tensorboard.add_scalar(f"validation/{name}", value, step)
        self._tensorboard.flush()

    def save_checkpoint(self, settings: dict[str, Any], **state: Any) -> None:
        """Replace the checkpoint, of which a kill leaves the old one or the new one."""
        with staged_file(self.checkpoint) as staging:
            torch.save({"settings": settings, **state}, staging)

    def read_checkpoint(
        self, settings: dict[str, Any], free: Collection[str], device: torch.device | str = "cpu"
    ) -> dict[str, Any] | None:
        """What `save_checkpoint` was given; None if there is no checkpoint.

        Args:
            settings: Of the training that is to go on.
            free: Those of them that may be others than before, by dotted names.
            device: Where the tensors go.

        Raises:
            TrainingError: The checkpoint is of a training with other settings.
        """
        if not self.checkpoint.exists():
            return None
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        ours, theirs = _flat(settings), _flat(state["settings"])
        names = sorted((ours | theirs).keys() - free)
        if differing := [name for name in names if ours.get(name) != theirs.get(name)]:
            raise TrainingError(
                f"{self.checkpoint}: expected a checkpoint of these settings, got one that differs "
                f"in {', '.join(differing)}; resume with the same options or choose another --out."
            )
        return state

    def _write(self, line: dict, show: bool) -> None:
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if show:
            print(json.dumps(line), flush=True)

    @cached_property
    def _tensorboard(self) -> SummaryWriter:
        return SummaryWriter(self.path / "tensorboard")


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted names; lists and tuples are the same."""
    if isinstance(settings, dict):
        parts = [_flat(v, f"{name}.{k}" if name else k) for k, v in settings.items()]
        return {k: v for part in parts for k, v in part.items()}
    return {name: list(settings) if isinstance(settings, tuple) else settings}
