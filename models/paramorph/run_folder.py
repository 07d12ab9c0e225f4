"""The folder of a training: what lies where in it, and its log."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from paramorph.validation import Validation


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

    def _write(self, line: dict, show: bool) -> None:
        with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if show:
            print(json.dumps(line), flush=True)

    @cached_property
    def _tensorboard(self) -> SummaryWriter:
        return SummaryWriter(self.path / "tensorboard")
