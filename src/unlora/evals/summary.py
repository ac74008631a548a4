"""Compute the metrics of an evaluation log, written by unlora or by TOFU's own code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlora.common.errors import InputError, Problem
from unlora.evals import metrics
from unlora.evals.log_format import GENERAL_SETS, TASKS, Columns, Log, column
from unlora.evals.same_examples import check_same_examples, forget_examples
from unlora.evals.text_quality import reference_measures, summarise_text

# The metrics of a set whose mean is model utility, and all its metrics.
UTILITY = ("probability", "rougeL_recall", "truth_ratio")
_SUMMARY = (*UTILITY, "truth_ratio_geometric")


def summarise(log: Log, retrained: Log | None = None, expected: Sequence[str] = ()) -> dict[str, Any]:
    """Return the metrics of a log as plain JSON values. A metric is None if the log lacks the values for it.

    Args:
        log: log of the model to evaluate.
        retrained: log of a model trained without the forget set. Without it, or without wrong answers in both logs,
            there is no forget quality.
        expected: the sets of the benchmark (`BENCHMARK_SETS`). If the log lacks one of their terms, there is no model
            utility, because it would not be comparable with the benchmark's. Empty for the user's own sets.

    Returns:
        By name:

        - `sets`: by set name, probability, rougeL_recall, truth_ratio and truth_ratio_geometric. The truth ratio is
          mean max(0, 1−R), on the forget set mean min(R, 1/R), with R from the arithmetic and the geometric mean.
          If the log has them, the counts and means of `summarise_text` as well.
        - `model_utility`: harmonic mean of probability, rougeL_recall and (arithmetic) truth_ratio over all sets except
          forget, as far as the log has them. `utility_terms` names them: a complete TOFU log has nine. This is the
          definition of TOFU's own code.
        - `model_utility_geometric`: model utility with the geometric truth ratio, as in the aggregation script of TOFU,
          LoKU and VILA, and in open-unlearning.
        - `missing_utility_terms`: the terms of the expected sets that the log lacks. Model utility is then None.
        - `forget_quality`, `log10_forget_quality`: Kolmogorov-Smirnov p-value against `retrained`.

    Raises:
        InputError: a value is not finite, `retrained` is of another forget set, or only one of the logs has forget
            truth ratios.
    """
    tasks = {name: log[task] for name, task in TASKS.items() if task in log}
    references = reference_measures(log)
    sets = {name: {**_summarise_set(name, task), **summarise_text(task, references)} for name, task in tasks.items()}
    terms, geometric_terms = _utility_terms(sets, "truth_ratio"), _utility_terms(sets, "truth_ratio_geometric")
    needed = [f"{name} {key}" for name in expected if name != "forget" for key in UTILITY]
    quality = None
    if retrained is not None:
        ratios = both_truth_ratios(log, retrained)
        check_same_examples(forget_examples(log), retrained)
        quality = metrics.forget_quality(*ratios) if ratios else None
    return {
        "sets": sets,
        "model_utility": _utility(terms, needed),
        "model_utility_geometric": _utility(geometric_terms, needed),
        "utility_terms": list(terms),
        "missing_utility_terms": [term for term in needed if term not in terms],
        "forget_quality": quality,
        "log10_forget_quality": None if quality is None else math.log10(quality),
    }


def _utility_terms(sets: Mapping[str, Mapping[str, Any]], truth_ratio: str) -> dict[str, float]:
    """Return the available terms of model utility by name, with one of the two truth ratios."""
    names = {key: truth_ratio if key == "truth_ratio" else key for key in UTILITY}
    values = {f"{name} {key}": sets[name][names[key]] for name in sets if name != "forget" for key in UTILITY}
    return {term: value for term, value in values.items() if value is not None}


def _utility(terms: Mapping[str, float], needed: Sequence[str]) -> float | None:
    """Return model utility, or None if there are no terms or a needed one is missing."""
    return metrics.model_utility(list(terms.values())) if terms and set(needed) <= terms.keys() else None


def _summarise_set(name: str, columns: Columns) -> dict[str, float | None]:
    values = example_values(name, columns)
    return {metric: float(values[metric].mean()) if metric in values else None for metric in _SUMMARY}


def example_values(name: str, columns: Columns) -> dict[str, metrics.Values]:
    """Return the values of single examples whose means are the metrics of a set, by metric [examples].

    Args:
        name: the name of the set.
        columns: its columns in the log. Metrics that need other columns are left out.
    """
    answers, wrong = column(columns, "avg_gt_loss"), column(columns, "average_perturb_loss")
    rouge = column(columns, "rougeL_recall")
    values: dict[str, metrics.Values] = {}
    if answers and name not in GENERAL_SETS:
        values["probability"] = metrics.answer_probability(answers)
    elif answers and wrong:
        values["probability"] = metrics.normalised_probability(answers, wrong)
    if rouge:
        values["rougeL_recall"] = metrics.finite_values("rougeL_recall", rouge)
    score = metrics.forget_truth_scores if name == "forget" else metrics.retain_truth_scores
    if wrong and "avg_paraphrased_loss" in columns:
        values["truth_ratio"] = score(_truth_ratios(columns, "arithmetic"))
    if has_truth_ratios(columns):
        values["truth_ratio_geometric"] = score(geometric_ratios(columns))
    return values


def has_truth_ratios(columns: Columns) -> bool:
    """Return whether a set in a log has geometric truth ratios, or the losses that they are computed from."""
    return "truth_ratio" in columns or {"avg_paraphrased_loss", "average_perturb_loss"} <= columns.keys()


def geometric_ratios(columns: Columns) -> metrics.Values:
    """Return the geometric truth ratios of a set, [examples]. Some logs have only these ratios and no losses."""
    if {"avg_paraphrased_loss", "average_perturb_loss"} <= columns.keys():
        return _truth_ratios(columns, "geometric")
    return metrics.finite_values("truth_ratio", column(columns, "truth_ratio"))


def _truth_ratios(columns: Columns, mean: str) -> metrics.Values:
    return metrics.truth_ratio(column(columns, "avg_paraphrased_loss"), column(columns, "average_perturb_loss"), mean)


def forget_truth_ratios(argument: str, log: Log) -> metrics.Values:
    """Return the geometric truth ratios of the forget set, [examples], from which forget quality is computed.

    Raises:
        InputError: the log, which the user gave as `argument`, lacks the losses.
    """
    columns = log.get(TASKS["forget"], {})
    if not has_truth_ratios(columns):
        reason = f"forget quality needs the paraphrased and perturbed losses of {TASKS['forget']}"
        raise InputError(Problem(argument, sorted(log), reason, "evaluate the forget set with perturbed answers"))
    return geometric_ratios(columns)


def both_truth_ratios(log: Log, retrained: Log) -> tuple[metrics.Values, metrics.Values] | None:
    """Return the forget truth ratios of both logs, or None if neither has any because there are no wrong answers.

    Raises:
        InputError: only one of them has truth ratios.
    """
    logs = {"log": log, "retrained": retrained}
    if not any(has_truth_ratios(one.get(TASKS["forget"], {})) for one in logs.values()):
        return None
    own, other = (forget_truth_ratios(name, one) for name, one in logs.items())
    return own, other
