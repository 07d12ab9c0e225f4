"""Everything that one training needs to know, from its configuration file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramorph.augmentation import Augmentation
from paramorph.checkpoint import WeightsInfo, load_weights
from paramorph.config import CONFIGS, NetworkConfig, check_shape, config_named
from paramorph.data import DataConfig, load_split, prepare_subjects
from paramorph.losses import LossConfig
from paramorph.options import OptionError, option, read_sections, toml_text
from paramorph.training import TrainingConfig
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.system.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from paramorph.checkpoint import FeatureInfo
    from paramorph.data import Subject


@dataclass(frozen=True)
class RunOptions:
    """The training as a whole."""

    name: str = option("paramorph", "what the weights are to be called")
    out: str = option("", "run folder: log, pictures, checkpoint, weights")
    init: str = option("", "weights to start from, e.g. of a training on a coarser grid")

    @property
    def folder(self) -> Path:
        """The run folder.

        Raises:
            OptionError: The file names none.
        """
        if not self.out:
            raise OptionError("[run] out: expected a folder, got none; set it or pass --out.")
        return Path(self.out).expanduser()

    def check_new(self, resume: bool) -> None:
        """Refuse a folder with a checkpoint that nobody asks to go on from.

        Raises:
            OptionError: It has one.
        """
        if (self.folder / "checkpoint.pt").exists() and not resume:
            raise OptionError(
                f"{self.folder}: expected a new run folder, got one with a checkpoint; "
                "pass --resume to go on with it or choose another --out."
            )

    def origin(self, load: Callable[[str], tuple[Any, WeightsInfo | FeatureInfo]]) -> dict:
        """What new weights say of those that they start from, which `load` reads."""
        if not self.init:
            return {}
        _, theirs = load(self.init)
        return {"started_from": {"sha256": sha256_of(self.init), **theirs.provenance}}

    def cache(self, data: DataConfig) -> Path:
        """The folder of prepared subjects."""
        return Path(data.cache).expanduser() if data.cache else self.folder / "cache"


@dataclass(frozen=True)
class GridOptions:
    """The network grid, and the intensities on it."""

    shape: tuple[int, int, int] = option((160, 160, 96), "voxels D H W, multiples of 32")
    spacing_mm: tuple[float, float, float] = option((1.0, 1.0, 1.0), "of its voxels")
    orientation: str = option("RAS", "anatomical directions of the axes D H W")
    lower_percentile: float = option(0.0, "intensity that becomes 0; 0 is the minimum")
    upper_percentile: float = option(100.0, "intensity that becomes 1; 100 is the maximum")

    @property
    def spec(self) -> InputSpec:
        """What the network expects."""
        return InputSpec(
            GridSpec(self.shape, self.spacing_mm, self.orientation),
            IntensitySpec(self.lower_percentile, self.upper_percentile),
        )


@dataclass(frozen=True)
class NetworkOptions:
    """The network: a named size, and what may vary in it; nothing does in a pyramid."""

    size: str = option("paramorph-small", "named size", CONFIGS)
    fusion: str = option("cross", "where convolution features join (PMFE)", ("cross", "post"))
    window: tuple[int, ...] = option((), "attention window in tokens D H W; [] is shape / 32")
    drop_path: float = option(0.0, "stochastic depth of the last encoder block, linear from 0")
    passes: int = option(1, "passes of the network, each on the volume warped so far")
    smoothing: float = option(
        0.0, "standard deviation in voxels of a Gaussian over each pass's field; 0: none"
    )
    integration_steps: int = option(
        0, "squarings of a stationary velocity field (diffeomorphic); 0: a displacement directly"
    )


SECTIONS = {
    "run": RunOptions,
    "data": DataConfig,
    "grid": GridOptions,
    "network": NetworkOptions,
    "loss": LossConfig,
    "training": TrainingConfig,
    "augmentation": Augmentation,
}


@dataclass(frozen=True)
class RunConfig:
    """One configuration file, checked."""

    run: RunOptions
    data: DataConfig
    grid: GridOptions
    network: NetworkOptions
    loss: LossConfig
    training: TrainingConfig
    augmentation: Augmentation

    def as_toml(self) -> str:
        """The file that gives this configuration, every option in it."""
        return toml_text({name: getattr(self, name) for name in SECTIONS})

    def prepared(self) -> tuple[list[Subject], list[Subject]]:
        """The subjects to train and to validate on, prepared or read from the cache.

        Raises:
            DataError, VolumeError, AlignmentError: See `load_split` and `prepare_subjects`.
        """
        check_shape(self.grid.shape)
        split = load_split(self.data)
        subjects = prepare_subjects(
            [*split.training, *split.validation],
            split.reference,
            self.grid.spec,
            self.run.cache(self.data),
            self.data.workers,
            affine=self.data.affine,
        )
        count = len(split.training)
        return subjects[:count], subjects[count:]

    def weights_info(self) -> WeightsInfo:
        """What the weights will say about themselves."""
        options = self.network
        shape = check_shape(self.grid.shape)  # before windows are made of it
        network = config_named(options.size)
        if isinstance(network, NetworkConfig):
            network = network.with_options(
                fusion=options.fusion,
                window=options.window or tuple(n // 32 for n in shape),
                drop_path=options.drop_path,
                passes=options.passes,
                smoothing=options.smoothing,
                integration_steps=options.integration_steps,
            )
        elif options != NetworkOptions(options.size):
            raise OptionError(
                f"[network] size: expected no other option beside {options.size}, got "
                f"{options}; leave the others out."
            )
        provenance = {"config": options.size, **self.run.origin(load_weights)}
        return WeightsInfo(self.run.name, network, **vars(self.grid), provenance=provenance)


def load_run_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The training that a TOML file describes; what it leaves out has its default.

    Args:
        path: The file.
        overrides: `section.option=value` each, stronger than the file.

    Raises:
        OptionError: An unknown section or option, a value of another type, or no such file.
    """
    return RunConfig(**read_sections(path, SECTIONS, overrides))


def all_options() -> str:
    """A configuration file with every option, its default and what it means."""
    return toml_text(SECTIONS)
