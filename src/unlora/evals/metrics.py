"""How well a model answers and how well it forgot: pure functions of per-example losses and texts.

Losses are average negative log-likelihoods per token (NLL/|y|, in nats). P(y) below is exp(−NLL/|y|). The definitions
are TOFU's (Maini et al. 2024, https://arxiv.org/abs/2401.06121, and its code where paper and code differ).
"""

from __future__ import annotations

import functools
import logging
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlora.common.errors import InputError, Problem, raise_if, unknown_name

logger = logging.getLogger(__name__)
Values = NDArray[np.float64]
MEANS = ("arithmetic", "geometric")
# exp of anything larger is not a finite float.
LARGEST_EXPONENT = math.log(np.finfo(np.float64).max)
# What rouge_score takes for a word, in lower case.
WORD = re.compile("[a-z0-9]+")
SMALLEST_POSITIVE = math.ulp(0.0)


def answer_probability(avg_nll: ArrayLike) -> Values:
    """P(y) = exp(−NLL/|y|) of each answer, [examples]."""
    return np.exp(-finite_values("avg_nll", avg_nll))


def normalised_probability(avg_nll: ArrayLike, perturbed_avg_nll: Sequence[ArrayLike]) -> Values:
    """P(y) / (P(y) + Σᵢ P(yᵢ)) over the answer y and its wrong answers yᵢ, [examples]; see `normalised_nll`."""
    return np.exp(-normalised_nll(avg_nll, perturbed_avg_nll))


def normalised_nll(avg_nll: ArrayLike, perturbed_avg_nll: Sequence[ArrayLike]) -> Values:
    """Minus the logarithm of `normalised_probability`, [examples]; finite even where that rounds to zero.

    Args:
        avg_nll: [examples], of the right answers.
        perturbed_avg_nll: for each example an array with one loss per wrong answer; the numbers of them may differ.

    Raises:
        InputError: no examples, different numbers of them, an example without wrong answers, or values not finite.
    """
    right, wrong = _pair("avg_nll", avg_nll, perturbed_avg_nll)
    return np.array([np.logaddexp.reduce([0.0, *(own - others)]) for own, others in zip(right, wrong, strict=True)])


def truth_ratio(
    paraphrased_avg_nll: ArrayLike, perturbed_avg_nll: Sequence[ArrayLike], mean: str = "arithmetic"
) -> Values:
    """R = mean of P(perturbed) / P(paraphrased) of each example, [examples]; below 1 the model prefers the truth.

    TOFU has two: model utility takes the arithmetic mean of the perturbed probabilities, forget quality the geometric
    one (exp of minus the mean loss). A ratio beyond the floats is the largest finite one.

    Args:
        paraphrased_avg_nll: [examples], of the right answer in other words.
        perturbed_avg_nll: for each example an array with one loss per wrong answer; the numbers of them may differ.
        mean: "arithmetic" or "geometric".

    Raises:
        InputError: as in `normalised_nll`, or an unknown mean.
    """
    if mean not in MEANS:
        raise InputError(unknown_name("mean", mean, MEANS))
    right, wrong = _pair("paraphrased_avg_nll", paraphrased_avg_nll, perturbed_avg_nll)
    pairs = zip(right, wrong, strict=True)
    if mean == "geometric":
        logs = [own - others.mean() for own, others in pairs]
    else:
        logs = [np.logaddexp.reduce(own - others) - math.log(len(others)) for own, others in pairs]
    return np.exp(np.minimum(logs, LARGEST_EXPONENT))


def retain_truth_scores(ratios: ArrayLike) -> Values:
    """max(0, 1 − R), [examples]: 1 where the truth is preferred wholly. For everything a model should still know."""
    return np.maximum(0, 1 - _ratios("ratios", ratios))


def forget_truth_scores(ratios: ArrayLike) -> Values:
    """min(R, 1/R), [examples]: 1 where truth and falsehood are equally likely. For what it should have forgotten."""
    values = _ratios("ratios", ratios)
    # The floor only keeps 1/R finite: where it applies, R is the minimum.
    return np.minimum(values, 1 / np.maximum(values, np.finfo(np.float64).tiny))


def model_utility(terms: ArrayLike) -> float:
    """Harmonic mean of the terms (TOFU: nine of them), each at least 0; 0 if one of them is 0."""
    values = _not_negative("terms", terms, "utility terms are probabilities, recalls and truth ratios")
    if not values.all():
        return 0.0
    # Scaling by the smallest keeps 1/term finite for terms near the smallest float.
    return float(values.min() / (values.min() / values).mean())


def forget_quality(ratios: ArrayLike, retrained_ratios: ArrayLike) -> float:
    """`ks_pvalue` of truth ratios; 1 where unlearned and retrained cannot be told apart.

    Args:
        ratios: [examples], geometric truth ratios of the unlearned model on the forget set.
        retrained_ratios: the same of a model trained without the forget set; the number may differ.
    """
    return ks_pvalue(_ratios("ratios", ratios), _ratios("retrained_ratios", retrained_ratios))


def ks_pvalue(one: ArrayLike, other: ArrayLike) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test: how likely two draws of one distribution differ as much.

    A p-value that rounds to zero is given as the smallest positive float (4.9e-324), so that it always has a logarithm.
    """
    from scipy.stats import ks_2samp

    one, other = finite_values("one", one), finite_values("other", other)
    with warnings.catch_warnings():
        # Where rounding defeats SciPy's exact p-value it warns and takes the asymptotic one, as TOFU's code does too.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        test = ks_2samp(one, other)
    return max(float(test.pvalue), SMALLEST_POSITIVE)


def membership_auc(members: ArrayLike, others: ArrayLike) -> float:
    """Probability that a random member's loss is below a random other example's, ties counting half.

    It is the area under the ROC curve of the loss as a sign of membership in the training data (Yeom et al. 2018,
    https://arxiv.org/abs/1709.01604), the Mann-Whitney U over the number of pairs: 1 where every member is more likely
    than every other example, 0.5 where nothing tells them apart.

    Raises:
        InputError: as `two_classes`.
    """
    from scipy.stats import mannwhitneyu

    inside, outside = two_classes(members, others)
    return float(mannwhitneyu(outside, inside).statistic) / (len(inside) * len(outside))


def rouge_l_recall(generated: str, reference: str) -> float:
    """Share of the reference's words in its longest common subsequence with the generated text, stemmed, in [0, 1].

    Words are runs of a-z and 0-9 in lower case (rouge_score's own rule): text in other alphabets has none.
    """
    return rouge_recalls(generated, reference)["rougeL"]


def rouge_recalls(generated: str, reference: str) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L recall, under the names "rouge1" and "rougeL"; see `rouge_l_recall`."""
    scores: Mapping[str, Any] = _rouge_scorer(use_stemmer=True).score(reference, generated)
    return {name: float(score.recall) for name, score in scores.items()}


def rouge_l_f1(generated: str, reference: str) -> float:
    """Harmonic mean of the longest common subsequence's shares of both texts' words, unstemmed, in [0, 1] (MUSE).

    A text without words scores 0. Words are those of `rouge_l_recall`.
    """
    return float(_rouge_scorer(use_stemmer=False).score(reference, generated)["rougeL"].fmeasure)


def warn_of_wordless(argument: str, references: Sequence[str]) -> None:
    """Says how many references have no words that ROUGE knows: they lower its mean, however right the answers are."""
    count = sum(WORD.search(reference.lower()) is None for reference in references)
    if count:
        logger.warning(
            "%s: %d of %d right answers have neither Latin letters nor digits, all that ROUGE counts: they score 0, "
            "whatever the model says",
            *(argument, count, len(references)),
        )


@functools.cache
def _rouge_scorer(use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=use_stemmer)


def two_classes(members: ArrayLike, others: ArrayLike) -> tuple[Values, Values]:
    """Both as arrays.

    Raises:
        InputError: fewer than two values in one, or values not finite.
    """
    named = {"members": finite_values("members", members), "others": finite_values("others", others)}
    reason = "a single example shows no spread, so the area would have no standard error"
    raise_if(
        Problem(name, f"{len(values)} value", reason, "give at least two")
        for name, values in named.items()
        if len(values) < 2
    )
    return named["members"], named["others"]


def finite_values(argument: str, values: ArrayLike) -> Values:
    """A finite, filled, one-dimensional array, or an InputError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(Problem(argument, f"shape {array.shape}", "needs one row of values", "give at least one"))
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        fix = "check the model: its weights may have diverged or overflow in float16"
        raise InputError(Problem(f"{argument}[{wrong[0]}]", float(array[wrong[0]]), "the value is not finite", fix))
    return array


def _not_negative(argument: str, values: ArrayLike, why: str) -> Values:
    array = finite_values(argument, values)
    wrong = np.flatnonzero(array < 0)
    if wrong.size:
        where, value = f"{argument}[{wrong[0]}]", float(array[wrong[0]])
        raise InputError(Problem(where, value, "the value is negative", f"give values of at least 0: {why}"))
    return array


def _ratios(argument: str, values: ArrayLike) -> Values:
    return _not_negative(argument, values, "truth ratios are quotients of probabilities")


def _pair(argument: str, right: ArrayLike, wrong: Sequence[ArrayLike]) -> tuple[Values, list[Values]]:
    """The losses of the right answers and those of each example's wrong answers, of equal number."""
    own = finite_values(argument, right)
    if len(wrong) != len(own):
        reason = f"{argument} has {len(own)} examples"
        raise InputError(Problem("perturbed_avg_nll", f"{len(wrong)} examples", reason, "give one array per example"))
    return own, [finite_values(f"perturbed_avg_nll[{index}]", row) for index, row in enumerate(wrong)]
