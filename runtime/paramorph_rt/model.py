"""A model that is ready to run: a bundle and its engines, each loaded when it is first wanted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import Backend, choose_backend, choose_features
from .errors import BundleError, ParamorphError
from .geometry.field import DisplacementField, field_from_network
from .quality.domain import Domain, domain_of
from .refinement.images import Features
from .refinement.settings import DEFAULT_LEVELS, Level
from .system.threads import Later, at_once

if TYPE_CHECKING:
    from .bundle import Bundle
    from .steps.preparation import PreparedPair


@dataclass(eq=False)
class Model:
    """A bundle and the engines of its networks.

    Attributes:
        bundle: The bundle.
        networks: Engine of the registration networks, loaded or to be loaded.
        feature_networks: The same of the feature networks; None where they are not to be used.
    """

    bundle: Bundle
    networks: Backend | Later[Backend]
    feature_networks: Backend | Later[Backend] | None = None

    @classmethod
    def of(cls, bundle: Bundle, backend: str, precision: str, threads: int | None) -> Model:
        """Whose engines are loaded when they are wanted; arguments as of `choose_backend`."""
        request = bundle, backend, precision, threads
        return cls(
            bundle,
            Later(lambda: at_once(lambda: choose_backend(*request))),
            Later(lambda: at_once(lambda: choose_features(*request))),
        )

    @cached_property
    def domain(self) -> Domain | None:
        """What it was made for, if its bundle says so."""
        return domain_of(self.bundle)

    @property
    def refinement(self) -> dict[str, Any] | None:
        """What its networks do to their field themselves, for metrics.json."""
        if not self.bundle.refined:
            return None
        return {
            "engine": "network",
            "features": True,
            "smoothing": self.bundle.smoothing,
            "metric": "ncc",
            "levels": [asdict(level) for level in self.bundle.refined],
        }

    def has_features(self, levels: Sequence[Level]) -> bool:
        """Whether a refinement compares features; else it starts from the network's field."""
        if self.feature_networks is None or not self.bundle.feature_networks:
            return False
        return any(level.features and level.iterations for level in levels)

    def serves(self, levels: Sequence[Level]) -> bool:
        """Whether it contributes anything with these levels."""
        return bool(self.bundle.networks) or self.has_features(levels)

    def engine(self, levels: Sequence[Level]) -> Backend:
        """What runs for these levels; one that is still loading is waited for.

        Raises:
            BundleError: A model of features alone, and no refinement that compares them; one whose
                networks refine themselves, and another refinement than theirs.
            ParamorphError: Whatever else is wrong with it.
        """
        wanted = self._wanted(levels)
        return wanted.result() if isinstance(wanted, Later) else wanted

    def start(self, levels: Sequence[Level]) -> None:
        """Begin to load what these levels need."""
        wanted = self._wanted(levels)
        if isinstance(wanted, Later):
            wanted.start()

    def is_ready(self, levels: Sequence[Level]) -> bool:
        """Whether `engine` returns at once."""
        wanted = self._wanted(levels)
        return wanted.done() if isinstance(wanted, Later) else True

    def close(self) -> None:
        """Close the engines that it loaded, not those that it was given loaded."""
        for engine in (self.networks, self.feature_networks):
            if isinstance(engine, Later) and engine.has_started():
                with suppress(ParamorphError):  # what could not be loaded holds nothing
                    engine.result().close()

    def run(
        self, pair: PreparedPair, levels: Sequence[Level]
    ) -> tuple[DisplacementField, Features | None]:
        """The network's field without the affine; or zeros, and features for the refinement."""
        output = self.engine(levels).run(pair.moving, pair.fixed)
        if self.has_features(levels):
            still = np.zeros((*pair.grid.shape, 3), np.float32)
            moving, fixed = output
            features = Features(moving, fixed, self.bundle.smoothing)
            return DisplacementField(pair.grid, still), features
        return field_from_network(output, pair.grid, self.bundle.sampling), None

    def _wanted(self, levels: Sequence[Level]) -> Backend | Later[Backend]:
        if self.has_features(levels):
            assert self.feature_networks is not None
            return self.feature_networks
        if self.bundle.refined:
            self._check_refinement(levels)
        if not self.bundle.networks:
            raise BundleError(
                f"{self.bundle.name}: expected a refinement that compares its features, got none; "
                "leave --refine off out, or choose a model that has a registration network."
            )
        return self.networks

    def _check_refinement(self, levels: Sequence[Level]) -> None:
        """Refuse another refinement than that of the networks, as far as one was asked for.

        Levels finer than all of theirs are not: no grid of theirs is that fine.
        """
        finest_mm = min(level.spacing_mm for level in self.bundle.refined)
        as_fine = tuple(level for level in levels if level.spacing_mm >= finest_mm)
        if as_fine != self.bundle.refined and tuple(levels) != DEFAULT_LEVELS:
            raise BundleError(
                f"{self.bundle.name}: expected the refinement that its network does itself, got "
                "another; leave --refine out, or export it again with --refined N."
            )
