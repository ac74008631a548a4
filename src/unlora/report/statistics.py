"""Uncertainty of means over examples: 95 % percentile intervals of a bootstrap over the examples.

Examples are drawn with replacement (Efron 1979, The Annals of Statistics 7), the same ones for all metrics of a set and
for two models that are compared, so that an interval of a difference or a quotient is a paired one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
# By set and metric the values of all examples, each [examples].
Columns = Mapping[str, Mapping[str, Values]]
DRAWS, SEED, LEVEL = 1000, 0, 0.95
# The standard errors that the middle `LEVEL` of a normal distribution lies within.
SPREAD = 1.96


@dataclass(frozen=True)
class Estimate:
    """A value with the interval that it lies in; both ends are the value where one example leaves no spread."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Measured:
    """A value and its standard error over the examples, 0 where that is not known."""

    value: float
    standard_error: float

    def estimate(self) -> Estimate:
        """With its interval of 95 %, normal."""
        reach = SPREAD * self.standard_error
        return Estimate(self.value, self.value - reach, self.value + reach)


def exactly(value: float) -> Estimate:
    """A value without an interval."""
    return Estimate(value, value, value)


def quotient(one: Measured, other: Measured) -> Estimate | None:
    """As if the two did not vary together (to first order): wider than of the same examples. None where other is 0."""
    if other.value <= 0:
        return None
    value = one.value / other.value
    error = math.hypot(one.standard_error, value * other.standard_error) / other.value
    return Measured(value, error).estimate()


def interval(value: float, drawn: Values) -> Estimate:
    """The value with the middle `LEVEL` of the values drawn."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high))


def drawn_means(values: Mapping[str, Values]) -> dict[str, Values]:
    """By metric the mean in each draw of the examples, [draws]; all metrics see the same examples."""
    size = len(next(iter(values.values())))
    weights = np.random.default_rng(SEED).multinomial(size, np.full(size, 1 / size), DRAWS) / size
    return {name: weights @ column for name, column in values.items()}


def mean_estimate(values: Values) -> Estimate:
    """The mean of [examples]."""
    return interval(values.mean(), drawn_means({"mean": values})["mean"])


def difference(one: Values, other: Values, paired: bool) -> Estimate:
    """Mean of `one` minus mean of `other`; paired if they are of the same examples in the same order."""
    if paired:
        return mean_estimate(one - other)
    rng = np.random.default_rng(SEED)
    means = [rng.choice(values, (DRAWS, len(values))).mean(axis=1) for values in (one, other)]
    return interval(one.mean() - other.mean(), means[0] - means[1])


def harmonic_mean(terms: Values) -> Values:
    """Over the first axis; 0 where a term is 0."""
    smallest = np.maximum(terms.min(axis=0), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(smallest > 0, smallest / (smallest / terms).mean(axis=0), 0.0)


def utility_draws(columns: Columns) -> Values:
    """The harmonic mean of the means of all metrics of all sets, in each draw, [draws]."""
    return harmonic_mean(np.array([mean for values in columns.values() for mean in drawn_means(values).values()]))
