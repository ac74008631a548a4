"""Metrics of knowledge and forgetting, as pure functions of the losses and texts of examples.

Losses are average negative log-likelihoods per token (NLL/|y|, in nats), and P(y) is exp(−NLL/|y|). The definitions are
TOFU's (Maini et al. 2024, https://arxiv.org/abs/2401.06121). Where its paper and its code differ, the code is followed.
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

from unlora.common.errors import InputError, Problem, unknown_name

logger = logging.getLogger(__name__)
Values = NDArray[np.float64]
MEANS = ("arithmetic", "geometric")
# Relative difference up to which two neighbouring values count as equal; float32 has about seven digits.
_ROUNDING_NOISE = 1e-5
# exp of anything larger overflows.
_LARGEST_EXPONENT = math.log(np.finfo(np.float64).max)
_SMALLEST_POSITIVE = math.ulp(0.0)
# A word as rouge_score defines it, in lower case.
WORD = re.compile("[a-z0-9]+")


def answer_probability(avg_nll: ArrayLike) -> Values:
    """Return P(y) = exp(−NLL/|y|) of each answer, [examples]."""
    return np.exp(-finite_values("avg_nll", avg_nll))


def normalised_probability(avg_nll: ArrayLike, perturbed_avg_nll: Sequence[ArrayLike]) -> Values:
    """Return P(y) / (P(y) + Σᵢ P(yᵢ)) for each answer y and its wrong answers yᵢ, [examples]. See `normalised_nll`."""
    return np.exp(-normalised_nll(avg_nll, perturbed_avg_nll))


def normalised_nll(avg_nll: ArrayLike, perturbed_avg_nll: Sequence[ArrayLike]) -> Values:
    """Return −log of `normalised_probability`, [examples]. It is finite even where the probability rounds to zero.

    Args:
        avg_nll: [examples], losses of the right answers.
        perturbed_avg_nll: [examples][wrong answers], losses of each example's wrong answers, whose number may differ
            between examples.

    Raises:
        InputError: no examples, arguments of different lengths, an example without wrong answers, or values that are
            not finite.
    """
    right, wrong = _pair("avg_nll", avg_nll, perturbed_avg_nll)
    return np.array([np.logaddexp.reduce([0.0, *(own - others)]) for own, others in zip(right, wrong, strict=True)])


def truth_ratio(
    paraphrased_avg_nll: ArrayLike, perturbed_avg_nll: Sequence[ArrayLike], mean: str = "arithmetic"
) -> Values:
    """Return R = mean P(perturbed) / P(paraphrased) of each example, [examples]. Below 1, the model prefers the truth.

    TOFU has two versions: model utility uses the arithmetic mean of the perturbed probabilities, and forget quality the
    geometric mean (exp of minus the mean loss). A ratio that would overflow is the largest finite float.

    Args:
        paraphrased_avg_nll: [examples], losses of the paraphrased right answers.
        perturbed_avg_nll: [examples][wrong answers], as for `normalised_nll`.
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
    return np.exp(np.minimum(logs, _LARGEST_EXPONENT))


def retain_truth_scores(ratios: ArrayLike) -> Values:
    """Return max(0, 1 − R), [examples], for sets that a model should still know: 1 if it fully prefers the truth."""
    return np.maximum(0, 1 - _ratios("ratios", ratios))


def forget_truth_scores(ratios: ArrayLike) -> Values:
    """Return min(R, 1/R), [examples], for the forget set: 1 if truth and falsehood are equally likely."""
    values = _ratios("ratios", ratios)
    # The floor keeps 1/R finite. It does not change the result, because R is the minimum where it applies.
    return np.minimum(values, 1 / np.maximum(values, np.finfo(np.float64).tiny))


def model_utility(terms: ArrayLike) -> float:
    """Return the harmonic mean of the terms (TOFU has nine), each at least 0. It is 0 if a term is 0."""
    from scipy.stats import hmean

    values = _not_negative("terms", terms, "utility terms are probabilities, recalls and truth ratios")
    with np.errstate(over="ignore"):  # 1/x of a term below 1e-308 is infinite, and the mean is then 0
        return float(hmean(values))


def forget_quality(ratios: ArrayLike, retrained_ratios: ArrayLike) -> float:
    """Return the `ks_pvalue` of truth ratios: 1 if the unlearned and the retrained model cannot be told apart.

    Args:
        ratios: [examples], geometric truth ratios of the unlearned model on the forget set.
        retrained_ratios: the same of a model trained without the forget set. The number of examples may differ.
    """
    return ks_pvalue(_ratios("ratios", ratios), _ratios("retrained_ratios", retrained_ratios))


def ks_pvalue(one: ArrayLike, other: ArrayLike) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test.

    It is the probability that two samples of the same distribution differ at least as much. A p-value that rounds to
    zero is returned as the smallest positive float (4.9e-324), so that it always has a logarithm.
    """
    from scipy.stats import ks_2samp

    samples = merge_ties(finite_values("one", one), finite_values("other", other))
    with warnings.catch_warnings():
        # If rounding defeats SciPy's exact p-value, it warns and uses the asymptotic one, as TOFU's code does too.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        test = ks_2samp(*samples)
    return max(float(test.pvalue), _SMALLEST_POSITIVE)


def membership_auc(members: ArrayLike, others: ArrayLike) -> float:
    """Return the probability that a random member's loss is below another example's, with ties counting half.

    It is the area under the ROC curve of the loss as a sign of membership in the training data (Yeom et al. 2018,
    https://arxiv.org/abs/1709.01604), which equals the Mann-Whitney U divided by the number of pairs. It is 1 if every
    member is more likely than every other example, and 0.5 if the loss does not tell them apart.

    Raises:
        InputError: an empty sample, or values that are not finite.
    """
    from scipy.stats import mannwhitneyu

    inside, outside = merge_ties(finite_values("members", members), finite_values("others", others))
    return float(mannwhitneyu(outside, inside).statistic) / (len(inside) * len(outside))


def auc_standard_error(members: int, others: int) -> float:
    """Return the standard error of the AUC between `members` and `others` examples of the same distribution.

    It is √((n + m + 1) / (12 n m)) (Mann and Whitney 1947) for any numbers n and m of examples.
    """
    return math.sqrt((members + others + 1) / (12 * members * others))


def merge_ties(one: Values, other: Values) -> tuple[Values, Values]:
    """Return two samples, [one] and [other], in which values that differ by rounding noise alone are equal.

    All rank statistics (AUC, Kolmogorov-Smirnov) need this. The last bits of a text's loss depend on its row in the
    batch and on the CPU. Between texts that are equally likely, this noise would decide every comparison, and an AUC of
    0.5 could become any number. Neighbouring values in sorted order are merged, instead of rounding all values to a
    number of digits, because noise can also move a value across a rounding boundary.
    """
    values = np.concatenate([one, other])
    order = np.argsort(values)
    ascending = values[order]
    size = np.maximum(np.abs(ascending[1:]), np.abs(ascending[:-1]))
    is_new = np.concatenate([[True], np.diff(ascending) > _ROUNDING_NOISE * size])
    values[order] = ascending[is_new][np.cumsum(is_new) - 1]
    return values[: len(one)], values[len(one) :]


def rouge_l_recall(generated: str, reference: str) -> float:
    """Return the share of the reference's words in its longest common subsequence with the generated text, in [0, 1].

    Words are stemmed. A word is a run of a-z and 0-9 in lower case (rouge_score's rule), so a text in another alphabet
    has none.
    """
    return rouge_recalls(generated, reference)["rougeL"]


def rouge_recalls(generated: str, reference: str) -> dict[str, float]:
    """Return ROUGE-1 and ROUGE-L recall, named "rouge1" and "rougeL". See `rouge_l_recall`."""
    scores: Mapping[str, Any] = _rouge_scorer(use_stemmer=True).score(reference, generated)
    return {name: float(score.recall) for name, score in scores.items()}


def rouge_l_f1(generated: str, reference: str, use_stemmer: bool = False) -> float:
    """Return ROUGE-L F1 as MUSE computes it, in [0, 1]: words are not stemmed. open-unlearning stems them.

    It is the harmonic mean of two shares: that of the generated and that of the reference's words in the longest common
    subsequence. A text without words scores 0. Words are defined as in `rouge_l_recall`.
    """
    return float(_rouge_scorer(use_stemmer=use_stemmer).score(reference, generated)["rougeL"].fmeasure)


def warn_of_wordless(argument: str, references: Sequence[str]) -> None:
    """Warn about references without a word that ROUGE counts. They lower its mean even if the answers are right."""
    count = sum(WORD.search(reference.lower()) is None for reference in references)
    if count:
        logger.warning(
            "%s: %d of %d right answers have neither Latin letters nor digits, and ROUGE counts nothing else: they "
            "score 0, whatever the model says",
            *(argument, count, len(references)),
        )


@functools.cache
def _rouge_scorer(use_stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=use_stemmer)


def finite_values(argument: str, values: ArrayLike) -> Values:
    """Return the values as a one-dimensional array, or raise `InputError` if it is empty or not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise InputError(
            Problem(
                argument, f"shape {array.shape}", "it must be a one-dimensional array of values", "give at least one"
            )
        )
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
    """Return the losses of right and wrong answers as arrays, after checking that both have the same examples."""
    own = finite_values(argument, right)
    if len(wrong) != len(own):
        reason = f"{argument} has {len(own)} examples"
        raise InputError(Problem("perturbed_avg_nll", f"{len(wrong)} examples", reason, "give one array per example"))
    return own, [finite_values(f"perturbed_avg_nll[{index}]", row) for index, row in enumerate(wrong)]
