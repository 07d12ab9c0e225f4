"""Everything that one training needs to know, from its configuration file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paramorph.augmentation import Augmentation
from paramorph.checkpoint import WeightsInfo, load_weights
from paramorph.config import CONFIGS, check_shape, config_named
from paramorph.data import DataConfig
from paramorph.losses import LossConfig
from paramorph.options import OptionError, from_table, option, read_table, toml_text
from paramorph.training import TrainingConfig
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.system.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class RunOptions:
    """The training as a whole."""

    name: str = option("paramorph", "what the weights are to be called")
    out: str = option("", "run folder: log, pictures, checkpoint, weights")
    init: str = option("", "weights to start from, e.g. of a training on a coarser grid")


@dataclass(frozen=True)
class GridOptions:
    """The network grid, and the intensities on it."""

    shape: tuple[int, int, int] = option((160, 160, 96), "voxels D H W, multiples of 32")
    spacing_mm: tuple[float, float, float] = option((1.0, 1.0, 1.0), "of its voxels")
    orientation: str = option("RAS", "anatomical directions of the axes D H W")
    lower_percentile: float = option(0.0, "intensity that becomes 0; 0 is the minimum")
    upper_percentile: float = option(100.0, "intensity that becomes 1; 100 is the maximum")


@dataclass(frozen=True)
class NetworkOptions:
    """The network: a named size, and what may vary in it."""

    size: str = option("paramorph-small", "named size", CONFIGS)
    fusion: str = option("cross", "where convolution features join (PMFE)", ("cross", "post"))
    window: tuple[int, ...] = option((), "attention window in tokens D H W; [] is shape / 32")
    drop_path: float = option(0.0, "stochastic depth of the last encoder block, linear from 0")
    passes: int = option(1, "passes of the network, each on the volume warped so far")
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

    @property
    def out(self) -> Path:
        """The run folder.

        Raises:
            OptionError: The file names none.
        """
        if not self.run.out:
            raise OptionError("[run] out: expected a folder, got none; set it or pass --out.")
        return Path(self.run.out).expanduser()

    def as_toml(self) -> str:
        """The file that gives this configuration, every option in it."""
        return toml_text({name: getattr(self, name) for name in SECTIONS})

    @property
    def cache(self) -> Path:
        """The cache of prepared subjects."""
        return Path(self.data.cache).expanduser() if self.data.cache else self.out / "cache"

    @property
    def input_spec(self) -> InputSpec:
        g = self.grid
        return InputSpec(
            GridSpec(check_shape(g.shape), g.spacing_mm, g.orientation),
            IntensitySpec(g.lower_percentile, g.upper_percentile),
        )

    def weights_info(self) -> WeightsInfo:
        """What the weights will say about themselves."""
        options, grid = self.network, self.grid
        shape = check_shape(grid.shape)  # before windows are made of it
        network = config_named(options.size).with_options(
            fusion=options.fusion,
            window=options.window or tuple(n // 32 for n in shape),
            drop_path=options.drop_path,
            passes=options.passes,
            integration_steps=options.integration_steps,
        )
        provenance = {"config": options.size}
        if self.run.init:
            _, origin = load_weights(self.run.init)
            sha256 = sha256_of(self.run.init)
            provenance["started_from"] = {"sha256": sha256, **origin.provenance}
        return WeightsInfo(
            name=self.run.name,
            network=network,
            shape=shape,
            spacing_mm=grid.spacing_mm,
            orientation=grid.orientation,
            lower_percentile=grid.lower_percentile,
            upper_percentile=grid.upper_percentile,
            provenance=provenance,
        )


def load_run_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The training that a TOML file describes; what it leaves out has its default.

    Args:
        path: The file.
        overrides: `section.option=value` each, stronger than the file.

    Raises:
        OptionError: An unknown section or option, a value of another type, or no such file.
    """
    table = read_table(path, overrides)
    unknown = set(table) - set(SECTIONS)
    if unknown:
        raise OptionError(
            f"{path}: expected the sections {', '.join(SECTIONS)}, got "
            f"{', '.join(sorted(unknown))}; see --options."
        )
    return RunConfig(
        **{name: from_table(kind, name, table.get(name, {})) for name, kind in SECTIONS.items()}
    )


def all_options() -> str:
    """A configuration file with every option, its default and what it means."""
    return toml_text(SECTIONS)
