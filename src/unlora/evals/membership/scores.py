"""Can it be told what a model was trained on? Membership scores of one example, and how well they tell two sets apart.

Every score is the higher, the more likely the example was trained on. `logp` is [tokens], the log-probability of each
label given all tokens before it, in nats. All are pure functions; `evals/leakage.py` gets their arguments from a model.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unlora.common.errors import InputError, Problem
from unlora.evals.metrics import Values, finite_values, membership_auc, two_classes

# A prediction whose spread rounds to 0 in float32 (its square is below the smallest float32) counts as this wide.
LEAST_STD = 1e-19


def loss_score(logp: ArrayLike) -> float:
    """Mean log-probability, minus the mean-token loss (Yeom et al. 2018, https://arxiv.org/abs/1709.01604)."""
    return float(finite_values("logp", logp).mean())


def zlib_score(logp: ArrayLike, text: str) -> float:
    """`loss_score` over the bytes of the zlib-compressed text (Carlini et al. 2021, https://arxiv.org/abs/2012.07805).

    Text that zlib compresses well is likely under any model; the quotient makes less of it.
    """
    return loss_score(logp) / len(zlib.compress(text.encode("utf-8")))


def min_k_score(logp: ArrayLike, percent: int) -> float:
    """Mean of the lowest `percent` % of the values, rounded down to whole tokens, at least one.

    With log-probabilities it is Min-K% (Shi et al. 2024, https://arxiv.org/abs/2310.16789); with `standardised` ones
    Min-K%++.

    Raises:
        InputError: no values, values not finite, or a percentage outside 1 to 100.
    """
    if not 1 <= percent <= 100:
        raise InputError(Problem("percent", percent, "it is the share of tokens that counts", "use 1 to 100"))
    values = np.sort(finite_values("logp", logp))
    return float(values[: max(1, len(values) * percent // 100)].mean())


def standardised(logp: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Values:
    """(logp − μ) / σ of each token, [tokens], for Min-K%++ (Zhang et al. 2025, https://arxiv.org/abs/2404.02936).

    Args:
        logp: [tokens].
        mean: [tokens], μ, the mean of log p(v) over tokens v drawn from the model's prediction p.
        std: [tokens], σ, its standard deviation; below 1e-19, where the model is certain, it counts as that.
    """
    centred = finite_values("logp", logp) - finite_values("mean", mean)
    return centred / np.maximum(finite_values("std", std), LEAST_STD)


def reference_score(logp: ArrayLike, reference_logp: ArrayLike) -> float:
    """`loss_score` minus that of a reference model: what is likely in itself no longer counts.

    Source: Carlini et al. 2021 (https://arxiv.org/abs/2012.07805) for comparing with another model, Watson et al. 2022
    (https://arxiv.org/abs/2111.08440) for the difference.
    """
    return loss_score(logp) - loss_score(reference_logp)


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve of a score.

    Args:
        value: probability that a random member's score is above a random other example's, ties counting half.
        standard_error: of `value`, as examples vary; 0 where the score separates the sets wholly.
    """

    value: float
    standard_error: float


def score_auc(members: ArrayLike, others: ArrayLike) -> Auc:
    """How well a score tells members from others: 1 wholly, 0.5 not at all, below 0.5 members look less like members.

    The standard error is DeLong's (Biometrics 44, 1988): it takes no shape of the two distributions for granted.

    Args:
        members: [n], scores of examples that were trained on.
        others: [m], scores of examples of the same kind that were not.

    Raises:
        InputError: as `two_classes`.
    """
    from scipy.stats import rankdata

    inside, outside = two_classes(members, others)
    ranks = rankdata([*inside, *outside])
    # The share of the other set that each value is above, from its rank among all less its rank among its own.
    above_others = (ranks[: len(inside)] - rankdata(inside)) / len(outside)
    above_members = (ranks[len(inside) :] - rankdata(outside)) / len(inside)
    variance = above_others.var(ddof=1) / len(inside) + above_members.var(ddof=1) / len(outside)
    return Auc(membership_auc(-inside, -outside), math.sqrt(variance))


def privacy_leakage(auc: float, retrained_auc: float) -> float:
    """MUSE's PrivLeak in percent: 0 as if retrained, −100 nothing unlearned, positive unlearned too much.

    It is 100 · (A − A_retrained) / A_retrained of areas A in which the unseen examples are the positive class, as in
    MUSE's code and published values, so A = 1 − `score_auc`. MUSE takes Min-40%.

    Args:
        auc: `score_auc` of forget against holdout examples under the unlearned model.
        retrained_auc: the same under a model that was trained without the forget set.

    Raises:
        InputError: areas outside [0, 1], or a retrained area of 1, to which nothing can be compared.

    Source: Shi et al. 2025 (https://arxiv.org/abs/2407.06460), equation of C3.
    """
    for name, value in {"auc": auc, "retrained_auc": retrained_auc}.items():
        if not 0 <= value <= 1:
            raise InputError(Problem(name, value, "an area under the curve is in [0, 1]", "check where it comes from"))
    if retrained_auc == 1:
        reason = "the retrained model itself tells the sets apart wholly, so that PrivLeak would divide by zero"
        fix = "use a holdout set of the forget set's kind, or more examples"
        raise InputError(Problem("retrained_auc", retrained_auc, reason, fix))
    return 100 * (retrained_auc - auc) / (1 - retrained_auc)
