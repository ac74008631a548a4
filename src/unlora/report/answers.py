"""Answers that still reveal the fact, and answers that are broken text: their counts, and the worst of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unlora.evals.summary import example_values
from unlora.evals.text_quality import judged_answers, reference_measures
from unlora.report.names import COUNTS, SETS
from unlora.report.read import Run
from unlora.report.samples import question_in, turns_before
from unlora.report.statistics import Estimate
from unlora.runs.folder import MODELS


@dataclass(frozen=True)
class Count:
    """A number of answers, `count`, out of all the answers, `of`."""

    count: int
    of: int

    def __str__(self) -> str:
        return f"{self.count} of {self.of}"

    def __add__(self, other: Count) -> Count:
        """Add two counts over different answers."""
        return Count(self.count + other.count, self.of + other.of)

    def estimate(self) -> Estimate:
        """Return the share with its 95 % interval (Wilson 1927), which has a positive width even for 0 and 1."""
        from scipy.stats import binomtest

        found = binomtest(self.count, self.of).proportion_ci(method="wilson")
        return Estimate(self.count / self.of, float(found.low), float(found.high))

    def exceeds(self, other: Count, level: float) -> bool:
        """Return whether the share is significantly larger than the other one, by Fisher's exact test at this level."""
        from scipy.stats import fisher_exact

        table = [[part.count, part.of - part.count] for part in (self, other)]
        return bool(fisher_exact(table, alternative="greater").pvalue < level)


# {kind: {set: {model: count}}}; the kinds are those of `COUNTS`.
Counts = Mapping[str, Mapping[str, Mapping[str, Count]]]


@dataclass(frozen=True)
class WorstAnswer:
    """The worst answer of the unlearned model of one kind, as an example of what is counted.

    Args:
        kind: a key of `COUNTS`.
        question: the question.
        reference: the right answer.
        answer: the model's answer.
    """

    kind: str
    question: str
    reference: str
    answer: str


def answer_counts(run: Run) -> Counts:
    """Return how many answers are broken or reveal the fact, by set and model, for all logs that record this."""
    found: dict[str, dict[str, dict[str, Count]]] = {kind: {} for kind in COUNTS}
    for model in run.logs:
        for name in SETS:
            for kind, (judged, possible) in _judged(run, model, name).items():
                if name in COUNTS[kind].sets and possible:
                    found[kind].setdefault(name, {})[model] = Count(int(judged.sum()), possible)
    return found


def sampled_counts(run: Run) -> tuple[str, dict[str, Count]] | None:
    """Return the setting with the most samples, and the facts that each model reveals in them.

    Returns:
        (setting, {model: count}), or None if no answers were sampled.
    """
    found = [attack for attack in (run.attacks.found if run.attacks else ()) if attack.counts_facts]
    if not found:
        return None
    # The last setting has all samples that were drawn, so its mean over subsets of samples is a whole number of facts.
    counts = {
        model: Count(round(values["revealed"] * values["facts"]), int(values["facts"]))
        for model, values in found[-1].models.items()
        if model in MODELS
    }
    return found[-1].setting, counts


def _judged(run: Run, model: str, name: str) -> dict[str, tuple[NDArray[np.bool_], int]]:
    """Return {kind: (which answers of a set are of this kind, how many could be)}.

    Only the answer to a row that has a fact can reveal it.
    """
    columns = run.task(model, name)
    judged = judged_answers(columns, reference_measures(run.logs[model]))
    facts = sum(value is not None for value in columns.get("fact_recall", {}).values())
    return {kind: (found, facts if kind == "given_away" else len(found)) for kind, found in judged.items()}


def worst_answers(run: Run) -> list[WorstAnswer]:
    """Return one answer to the forget questions for each kind that the unlearned model gives.

    Among the answers that reveal the fact, this is the one whose right answer is the most likely. Among the broken
    answers, it is the one that the original model finds the least likely; an empty one is chosen only if all are empty.
    """
    if "unlearned" not in run.logs:
        return []
    columns = run.task("unlearned", "forget")
    texts = list(columns.get("generated_text", {}).values())
    scores = {}
    if "probability" in (values := example_values("forget", columns)):
        scores["given_away"] = values["probability"]
    if "answer_measures" in columns:
        means = [row[0] for row in columns["answer_measures"].values()]
        scores["broken"] = np.array([-np.inf if mean is None else mean for mean in means])
    found = []
    for kind, (judged, _) in _judged(run, "unlearned", "forget").items():
        if judged.any() and texts:
            score = scores.get(kind, np.zeros(len(judged)))
            places = np.flatnonzero(judged)
            place = int(places[score[places].argmax()])
            _, answer, reference = texts[place]
            question = question_in(turns_before(run, "forget", place))
            found.append(WorstAnswer(kind, question, reference, answer))
    return sorted(found, key=lambda worst: list(COUNTS).index(worst.kind))


def counts_text(counts: Counts) -> str:
    """Return sentences on the unlearned model's answers: on the forget set, and on other sets if more are broken."""
    sentences = []
    for kind, by_set in counts.items():
        for name, by_model in by_set.items():
            others = {model: by_model[model].count for model in ("original", "retrained") if model in by_model}
            own = by_model.get("unlearned")
            if own is None or (name != "forget" and own.count <= max(others.values(), default=0)):
                continue  # in the other sets, only what unlearning broke matters
            where = "" if name == "forget" else f" to the questions of the {SETS[name]}"
            compared = "; ".join(f"{model} model: {count}" for model, count in others.items())
            sentences.append(f"{own} answers{where} {COUNTS[kind].verb}{compared and f' ({compared})'}.")
    return " ".join(sentences)
