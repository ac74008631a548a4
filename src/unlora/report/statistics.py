"""Uncertainty of means over examples: 95 % percentile intervals of a bootstrap over the examples.

Examples are drawn with replacement (Efron 1979, The Annals of Statistics 7). All metrics of a set use the same draws,
and so do two models that are compared. The interval of a difference or a quotient is therefore a paired one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlora.benchmarks import Measured

Values = NDArray[np.float64]
# {set: {metric: [examples]}}
Columns = Mapping[str, Mapping[str, Values]]
_DRAWS, _SEED, _LEVEL = 1000, 0, 0.95
# The central `_LEVEL` of a normal distribution lies within this many standard errors of its mean.
SPREAD = 1.96


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    Args:
        value: the value.
        low, high: the ends of the interval.
        has_interval: False for an exact value and for one from a single example, whose uncertainty is unknown. The
            ends then equal the value.
    """

    value: float
    low: float
    high: float
    has_interval: bool = True

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.has_interval and (self.low > 0 or self.high < 0)

    def ends(self, form: Callable[[float], str]) -> str:
        """Return "LOW to HIGH" in this format; empty without an interval."""
        return f"{form(self.low)} to {form(self.high)}" if self.has_interval else ""


def estimate_of(measured: Measured, limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Return the value with its normal 95 % interval, clipped to the range of the quantity."""
    if measured.standard_error == 0:
        return exactly(measured.value)
    reach, (lowest, highest) = SPREAD * measured.standard_error, limits
    return Estimate(
        measured.value,
        max(measured.value - reach, min(lowest, measured.value)),
        min(measured.value + reach, max(highest, measured.value)),
    )


def exactly(value: float) -> Estimate:
    """Return a value without an interval."""
    return Estimate(value, value, value, has_interval=False)


def quotient(one: Measured, other: Measured) -> Estimate | None:
    """Return one / other with a first-order interval for independent values; None unless `other` is positive.

    Two measurements on the same examples are usually positively correlated, so the interval tends to be too wide.
    """
    if other.value <= 0:
        return None
    value = one.value / other.value
    error = math.hypot(one.standard_error, value * other.standard_error) / other.value
    return estimate_of(Measured(value, error))


def interval(value: float, drawn: Values, fewest: int) -> Estimate:
    """Return the value with the central `_LEVEL` interval of `drawn`, [draws].

    Args:
        value: the value.
        drawn: the value in each bootstrap draw.
        fewest: the number of examples, or the smallest number if several sets of examples were drawn.
    """
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(float(value), float(low), float(high)) if fewest > 1 else exactly(float(value))


def mean_estimate(values: Values) -> Estimate:
    """Return the mean of values, [examples], with its bootstrap interval."""
    return interval(values.mean(), _bootstrap(np.mean, values), len(values))


def difference(one: Values, other: Values, paired: bool) -> Estimate:
    """Return the mean of `one` minus the mean of `other`, with its bootstrap interval.

    Args:
        one, other: [examples].
        paired: whether both hold the same examples in the same order.
    """
    if paired:
        return mean_estimate(one - other)
    drawn = _bootstrap(lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), one, other)
    return interval(one.mean() - other.mean(), drawn, min(len(one), len(other)))


def utility_draws(columns: Columns) -> Values:
    """Return the harmonic mean over the means of all metrics of all sets, for each bootstrap draw: [draws].

    The draws depend only on the number of examples in each set, so they are the same for two models.
    """
    from scipy.stats import hmean

    sets = [np.array(list(metrics.values())) for metrics in columns.values()]  # [metrics, examples] each

    def utility(*drawn: NDArray[np.int64], axis: int) -> Values:
        means = [values[:, examples].mean(axis=axis) for values, examples in zip(sets, drawn, strict=True)]
        return np.asarray(hmean(np.concatenate(means), axis=0))

    return _bootstrap(utility, *(np.arange(values.shape[1]) for values in sets))


def _bootstrap(statistic: Callable[..., Any], *samples: NDArray[Any]) -> Values:
    """Return the statistic over bootstrap draws, [draws]. The samples are drawn independently of each other."""
    from scipy.stats import bootstrap

    # SciPy refuses a sample of one example. With two copies of it, every draw is the same.
    enough = [np.resize(sample, max(2, len(sample))) for sample in samples]
    result = bootstrap(enough, statistic, n_resamples=_DRAWS, method="percentile", vectorized=True, rng=_SEED)
    return np.asarray(result.bootstrap_distribution)
