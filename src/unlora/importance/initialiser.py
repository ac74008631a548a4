"""The interface of initialisers and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unlora.adapter.settings import AdapterSettings
from unlora.data.batching import BatchLimit
from unlora.data.padding import Batch
from unlora.importance.moments import Moments
from unlora.settings import SMOOTHING, ImportanceConfig

# The settings of `ImportanceConfig` that determine the importance for given Fisher informations.
RATIO_SETTINGS = ("smoothing", "epsilon", "centred")
# The settings that the pipeline reads for every initialiser that uses data: sampling, batching and storage.
_DATA_SETTINGS = (
    *("normalised", "moments_per", "forget_passes", "importance_seed"),
    *("retain_samples", "importance_batch_size", "importance_file"),
)


@dataclass(frozen=True)
class Measurement:
    """The inputs of an initialiser.

    Args:
        model: the original model, which must not be changed.
        adapter: rank, scaling and target modules of the adapter to initialise.
        config: the settings of the importance.
        forget: returns a new iterable of this process's batches of the forget set at each call.
        retain: likewise for the retain sample.
        limit: the limit that the batches follow. `gradient_moments` halves it when it runs out of memory, which needs
            batches that can be iterated again.
    """

    model: nn.Module
    adapter: AdapterSettings
    config: ImportanceConfig
    forget: Callable[[], Iterable[Batch]]
    retain: Callable[[], Iterable[Batch]]
    limit: BatchLimit | None = None


@dataclass(frozen=True)
class Initialiser:
    """A method to initialise the adapter.

    Args:
        row_importance: returns {module name: [out] importance of each row of the weight}, at least 0. Its square roots
            are the row weights of `weighted_low_rank`. Returns None for a plain LoRA start (A random, B = 0).
        formula: the importance of a weight W [out, in], as the documentation shows it.
        paper: the citation.
        reads: the names of the settings of `ImportanceConfig` that `row_importance` itself reads.
        uses_data: whether it depends on the forget and retain sets. If so, the result is saved with the run and can be
            reused through `importance_file`.
        fisher: (moments, centred) -> iterator of (module name, [out, in] Fisher information), layer by layer, if the
            method is based on Fisher information. It makes the name a `method` of `relative_importance`.
        centred: whether the Fisher information is by default the variance of the gradient instead of its mean square.
    """

    row_importance: Callable[[Measurement], dict[str, Tensor] | None]
    formula: str
    paper: str
    reads: tuple[str, ...] = ()
    uses_data: bool = False
    fisher: Callable[[Moments, bool], Iterator[tuple[str, Tensor]]] | None = None
    centred: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that have an effect, with their defaults. None if the value depends on data or hardware."""
        names = (*self.reads, *(_DATA_SETTINGS if self.uses_data else ()))
        own = {"epsilon": SMOOTHING[ImportanceConfig.smoothing], "centred": self.centred}
        return {name: own.get(name, getattr(ImportanceConfig, name)) for name in names}

    def takes_variance(self, config: ImportanceConfig) -> bool:
        """Whether the variance of gradients is used, which needs at least two examples."""
        return self.centred if config.centred is None or "centred" not in self.reads else config.centred

    def ratio(self, config: ImportanceConfig) -> dict[str, Any]:
        """The keyword arguments of `importance_ratio` for these settings."""
        return {**config.ratio(), "centred": self.takes_variance(config)}
