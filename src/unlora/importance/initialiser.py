"""What an initialiser is, and what it is given to decide where the adapter starts."""

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

# The settings of `ImportanceConfig` that decide how two Fisher informations become an importance.
RATIO_SETTINGS = ("smoothing", "epsilon", "centred")
# The settings that the pipeline reads for every initialiser that uses data: what it samples, batches and stores.
_DATA_SETTINGS = (
    *("normalised", "moments_per", "forget_passes", "importance_seed"),
    *("retain_samples", "importance_batch_size", "importance_file"),
)


@dataclass(frozen=True)
class Measurement:
    """What an initialiser is given.

    Args:
        model: the original model. It must be left as it was found.
        adapter: rank, scaling and target modules of the adapter to start.
        config: how the importance is estimated.
        forget: returns this process's batches of the forget set, anew at each call.
        retain: the same for the retain sample, or for a part of it that a slice names: `retain(slice(0, 128))`.
        retain_size: the number of examples in the retain sample.
        limit: what the size of the batches follows. `gradient_moments` halves it if the memory is too small, which
            needs batches that can be iterated again.
    """

    model: nn.Module
    adapter: AdapterSettings
    config: ImportanceConfig
    forget: Callable[[], Iterable[Batch]]
    retain: Callable[..., Iterable[Batch]]
    retain_size: int
    limit: BatchLimit | None = None


@dataclass(frozen=True)
class Initialiser:
    """One way to start the adapter.

    Args:
        row_importance: returns {module name: [out] importance of each row of the weight}, not negative. Its square
            roots are the row weights of `weighted_low_rank`. Returns None for a plain LoRA start (A random, B = 0).
        formula: the importance of a weight W [out, in], as the documentation shows it.
        paper: the citation.
        reads: the names of the settings of `ImportanceConfig` that `row_importance` itself reads.
        uses_data: whether it looks at the forget and retain sets. If so, the result is saved with the run and can be
            reused through `importance_file`.
        fisher: (moments, centred) -> (module name, [out, in] Fisher information) for one layer after the other, if
            the method is a choice of Fisher information. It makes the name a `method` of `relative_importance`.
        centred: whether that information is by default the variance of the gradient or its mean square.
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
        """All settings that have an effect, with their defaults. None means that data or machine decide."""
        names = (*self.reads, *(_DATA_SETTINGS if self.uses_data else ()))
        own = {"epsilon": SMOOTHING[ImportanceConfig.smoothing], "centred": self.centred}
        return {name: own.get(name, getattr(ImportanceConfig, name)) for name in names}

    def takes_variance(self, config: ImportanceConfig) -> bool:
        """Whether it takes the variance of gradients, which needs at least two of them."""
        return self.centred if config.centred is None or "centred" not in self.reads else config.centred

    def ratio(self, config: ImportanceConfig) -> dict[str, Any]:
        """The keyword arguments of `importance_ratio` that the settings ask for."""
        return {**config.ratio(), "centred": self.takes_variance(config)}
