"""Membership scores of an example, and how well a score tells training data from unseen data, as pure functions.

The higher a score, the more likely it is that the model was trained on the example. `logp` is [tokens], the
log-probability of each label given all tokens before it, in nats. `leakage_scores` computes these arguments.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unlora.common.errors import InputError, Problem
from unlora.evals.metrics import Values, auc_standard_error, finite_values, membership_auc, merge_ties

# The smallest standard deviation that is used: the square of anything smaller is 0 in float32.
_LEAST_STD = 1e-19


def loss_score(logp: ArrayLike) -> float:
    """Return the mean log-probability, which is minus the mean-token loss (Yeom et al. 2018, https://arxiv.org/abs/1709.01604)."""
    return float(finite_values("logp", logp).mean())


def zlib_size(text: str) -> int:
    """Return the size of the zlib-compressed text in bytes."""
    return len(zlib.compress(text.encode("utf-8")))


def zlib_score(logp: ArrayLike, zlib_bytes: int) -> float:
    """Return `loss_score` divided by the `zlib_size` of the text.

    Text that zlib compresses well is likely under any model, and the division reduces its weight (Carlini et al. 2021,
    https://arxiv.org/abs/2012.07805).
    """
    return loss_score(logp) / zlib_bytes


def min_k_score(logp: ArrayLike, percent: int) -> float:
    """Return the mean of the lowest `percent` % of the values, rounded down to whole tokens, but at least one.

    With log-probabilities it is Min-K% (Shi et al. 2024, https://arxiv.org/abs/2310.16789), and with `standardised`
    log-probabilities Min-K%++.

    Raises:
        InputError: no values, values that are not finite, or a percentage outside 1 to 100.
    """
    if not 1 <= percent <= 100:
        raise InputError(Problem("percent", percent, "it is the percentage of tokens that count", "use 1 to 100"))
    values = np.sort(finite_values("logp", logp))
    return float(values[: max(1, len(values) * percent // 100)].mean())


def standardised(logp: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Values:
    """Return (logp − μ) / σ of each token, [tokens], for Min-K%++.

    Source: Zhang et al. 2025 (https://arxiv.org/abs/2404.02936).

    Args:
        logp: [tokens].
        mean: [tokens], μ, the mean of log p(v) over tokens v drawn from the model's prediction p.
        std: [tokens], σ, the standard deviation of log p(v). It is 0 where the model is certain; 1e-19 is used there.
    """
    centred = finite_values("logp", logp) - finite_values("mean", mean)
    return centred / np.maximum(finite_values("std", std), _LEAST_STD)


def reference_score(logp: ArrayLike, reference_logp: ArrayLike) -> float:
    """Return `loss_score` minus that of a reference model, which discounts text that is likely under any model.

    `reference_logp` may be [1], the mean over the tokens.

    Source: Carlini et al. 2021 (https://arxiv.org/abs/2012.07805) for the comparison with another model, and Watson et
    al. 2022 (https://arxiv.org/abs/2111.08440) for the difference.
    """
    return loss_score(logp) - loss_score(reference_logp)


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve of a score.

    Args:
        value: the probability that a random member's score is above another example's, with ties counting half.
        standard_error: the standard error of `value` over draws of the examples; never 0.
    """

    value: float
    standard_error: float


def score_auc(members: ArrayLike, others: ArrayLike) -> Auc:
    """Return how well a score tells members from others: 1 is perfect, 0.5 is chance.

    Below 0.5, the members look less like training data than the others do. The standard error is DeLong's (Biometrics
    44, 1988), which assumes nothing about the shape of the two distributions. It is 0 if a score separates the sets
    completely, however few examples there are, so `_separated_error` is used then. It cannot be estimated if a set has
    a single example; then `auc_standard_error` is used, which assumes that the sets do not differ.

    Args:
        members: [members], scores of examples that the model was trained on.
        others: [others], scores of examples of the same kind that it was not trained on.

    Raises:
        InputError: as `membership_auc`.
    """
    from scipy.stats import rankdata

    inside, outside = merge_ties(finite_values("members", members), finite_values("others", others))
    area = membership_auc(-inside, -outside)
    if min(len(inside), len(outside)) == 1:
        return Auc(area, auc_standard_error(len(inside), len(outside)))
    ranks = rankdata([*inside, *outside])
    # The share of the other set that each value is above: its rank among all values, minus its rank in its own set.
    above_others = (ranks[: len(inside)] - rankdata(inside)) / len(outside)
    above_members = (ranks[len(inside) :] - rankdata(outside)) / len(inside)
    variance = above_others.var(ddof=1) / len(inside) + above_members.var(ddof=1) / len(outside)
    error = math.sqrt(variance) if variance > 0 else _separated_error(area, len(inside), len(outside))
    return Auc(area, error)


def _separated_error(area: float, members: int, others: int) -> float:
    """Return Hanley and McNeil's standard error (Radiology 143, 1982) of an area plus a pair that counts half."""
    pairs = members * others
    a = (area * pairs + 0.5) / (pairs + 1)
    same_member, same_other = a / (2 - a), 2 * a * a / (1 + a)
    variance = a * (1 - a) + (members - 1) * (same_member - a * a) + (others - 1) * (same_other - a * a)
    return math.sqrt(variance / pairs)


def privacy_leakage(auc: float, retrained_auc: float) -> float:
    """Return MUSE's PrivLeak in percent.

    It is 0 if the model looks retrained, −100 if it has unlearned nothing, and positive if it has unlearned too much:
    100 · (A − A_retrained) / A_retrained, where A is the AUC with the unseen examples as the positive class, as in
    MUSE's code and published values. So A = 1 − `score_auc`. MUSE uses Min-40%.

    Args:
        auc: `score_auc` of forget against holdout examples under the unlearned model.
        retrained_auc: the same AUC under a model that was trained without the forget set.

    Raises:
        InputError: an AUC outside [0, 1], or a retrained AUC of 1, which makes the denominator 0.

    Source: Shi et al. 2025 (https://arxiv.org/abs/2407.06460), equation of C3.
    """
    for name, value in {"auc": auc, "retrained_auc": retrained_auc}.items():
        if not 0 <= value <= 1:
            raise InputError(Problem(name, value, "an AUC is between 0 and 1", "check how it was computed"))
    if retrained_auc == 1:
        reason = "the retrained model itself tells the sets apart perfectly, so PrivLeak would divide by zero"
        fix = "use a holdout set of the forget set's kind, or more examples"
        raise InputError(Problem("retrained_auc", retrained_auc, reason, fix))
    return 100 * (retrained_auc - auc) / (1 - retrained_auc)
