"""The cards at the top of a page: is it gone, is the text still good, what did it cost, and what comes next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from unlora.report.advice import Place, Step, follow_ups
from unlora.report.answers import Count, WorstAnswer, worst_answers
from unlora.report.names import COUNTS, MISSING, SETS, capitalised, fixed, p_value, percent
from unlora.report.read import Run
from unlora.report.samples import Sample, samples
from unlora.report.statistics import Estimate
from unlora.report.summary import LEVEL, Summary
from unlora.report.verdict import Verdict
from unlora.runs.folder import MODELS


@dataclass(frozen=True)
class Bar:
    """A labelled value as a bar.

    Args:
        name: the model or set.
        share: length of the bar, 0 to 1.
        text: the value as text.
    """

    name: str
    share: float
    text: str


@dataclass(frozen=True)
class Bars:
    """A group of bars and its title."""

    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class ShownExample:
    """One question and its answers.

    Args:
        title: why the example is shown.
        question: the question.
        said: ("right" or a model, answer) pairs.
    """

    title: str
    question: str
    said: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Card:
    """The answer to one of the four questions.

    Args:
        question: the heading.
        value: the main number.
        label: what this number is.
        note: what to compare it with.
        bars: the values of all models or sets.
        example: the worst example.
        steps: what to do next.
    """

    question: str
    value: str
    label: str
    note: str = ""
    bars: Bars | None = None
    example: ShownExample | None = None
    steps: tuple[Step, ...] = ()


def cards(run: Run, summary: Summary, told: Verdict) -> list[Card]:
    """Return the answers to the four questions, in their order."""
    worst = {answer.kind: answer for answer in worst_answers(run)}
    return [
        _gone(run, summary, worst.get("given_away")),
        _readable(summary, worst.get("broken")),
        _cost(run, summary),
        Card("What next?", "", "", told.attacks, steps=told.steps or tuple(follow_ups(run, Place.on_page(run)))),
    ]


def _gone(run: Run, summary: Summary, worst: WorstAnswer | None) -> Card:
    """Return the card on forgetting: how many answers give the fact away or, without counts, how likely they are."""
    question, bars = "Is it gone?", _probabilities(summary)
    example = _of_worst(worst) or _of_likeliest(run)
    tests = []
    if "unlearned" in summary.quality:
        p = summary.quality["unlearned"]
        found = "no difference from the retrained model detected" if p >= LEVEL else "not like the retrained model"
        tests.append(f"Forget quality: p = {p_value(p)} ({found}).")
    if (count := summary.count("given_away", "forget", "unlearned")) is not None:
        note = " ".join([_others(summary, "given_away", "forget"), *tests])
        return Card(question, str(count), COUNTS["given_away"].label, note.strip(), bars, example)
    if (mean := summary.mean("forget", "probability", "unlearned")) is not None:
        return Card(question, fixed(mean.value), "probability of the forget answers", " ".join(tests), bars, example)
    if summary.axes is not None and "unlearned" in summary.axes.points:
        values = {model: y for model, (_, y) in summary.axes.points.items()}
        return Card(question, f"{values['unlearned'].value:.3g}", summary.axes.y, bars=_bars("", values))
    return Card(question, MISSING, "nothing was evaluated")


def _readable(summary: Summary, worst: WorstAnswer | None) -> Card:
    """Return the card on the text: how many answers are broken, in the forget set and in the other sets."""
    question, kind = "Is the text still good?", "broken"
    count = summary.count(kind, "forget", "unlearned")
    if count is None:
        return Card(question, MISSING, "no answers were judged")
    by_set = {SETS[name]: known["unlearned"] for name, known in summary.counts[kind].items() if "unlearned" in known}
    bars = tuple(Bar(name, each.count / each.of, str(each)) for name, each in by_set.items())
    label, note = f"{COUNTS[kind].label} to the forget questions", _others(summary, kind, "forget")
    return Card(question, str(count), label, note, Bars("Broken answers of each set", bars), _of_worst(worst))


def _cost(run: Run, summary: Summary) -> Card:
    """Return the card on the cost: the share of the utility that was kept, and the answer that lost the most."""
    question, name = "What did it cost?", summary.utility_name
    title = f"{capitalised(name)}{f', over {summary.terms} terms' if summary.terms else ''}"
    bars, example = _bars(title, summary.utility), _of_loss(run)
    effort = _effort(run)
    if (kept := summary.share_kept) is None:
        known = summary.utility.get("unlearned")
        value, label = (MISSING, "utility was not measured") if known is None else (f"{known.value:.3g}", name)
        return Card(question, value, label, effort, bars, example)
    ends = kept.ends(percent)
    measured = f"measured on {summary.measured_on}" if summary.terms and summary.measured_on else ""
    note = capitalised(", ".join(filter(None, (ends and f"95 % interval {ends} %", measured))))
    notes = " ".join(filter(None, (note and f"{note}.", effort)))
    return Card(question, f"{percent(kept.value)} %", f"of the {name} kept", notes, bars, example)


def _effort(run: Run) -> str:
    """Return a sentence on how long the training took; empty if the run did not record it."""
    seconds = run.record.get("times", {}).get("training")
    steps = max((row["step"] for row in run.train if "step" in row), default=None)
    if not isinstance(seconds, int | float) or steps is None:
        return ""
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return f"Training took {int(steps)} steps and {took}."


def _probabilities(summary: Summary) -> Bars | None:
    return _bars("Probability of the right answer, forget set", summary.means.get("forget", {}).get("probability", {}))


def _bars(title: str, values: Mapping[str, Estimate]) -> Bars | None:
    """Return a bar for each model, scaled to 1 or to the largest value, whichever is larger."""
    if "unlearned" not in values:
        return None
    most = max(1.0, *(value.value for value in values.values()))
    shown = {model: values[model].value for model in MODELS if model in values}
    bars = (Bar(model, min(max(value / most, 0.0), 1.0), _rounded(value)) for model, value in shown.items())
    return Bars(title, tuple(bars))


def _rounded(value: float) -> str:
    return fixed(value) if abs(value) < 10 else fixed(value, 1)


def _others(summary: Summary, kind: str, name: str) -> str:
    """Return the counts of the models to compare with, as a sentence."""
    others: Iterator[tuple[str, Count | None]] = (
        (model, summary.count(kind, name, model)) for model in ("original", "retrained")
    )
    known = ", ".join(f"{model} {count.count}" for model, count in others if count is not None)
    return known and f"{capitalised(known)}."


def _of_worst(worst: WorstAnswer | None) -> ShownExample | None:
    if worst is None:
        return None
    said = (("right", worst.reference), ("unlearned", worst.answer))
    return ShownExample(COUNTS[worst.kind].example, worst.question, said)


def _of_likeliest(run: Run) -> ShownExample | None:
    """Return the forget question whose right answer is the most likely."""
    found = samples(run, "forget", 1)
    return _compared(found[0], "The right answer that is still the most likely") if found else None


def _of_loss(run: Run) -> ShownExample | None:
    """Return the retain question whose right answer lost the most."""
    found = samples(run, "retain", 1)
    return _compared(found[0], "The retain answer that lost the most") if found else None


def _compared(sample: Sample, title: str) -> ShownExample:
    chances = {model: value for model, value in sample.probability.items() if not math.isnan(value)}
    change = [f"{chances[model]:.2f}" for model in ("original", "unlearned") if model in chances]
    title += f" (P = {' → '.join(change)})" if change else ""
    said = (("right", sample.reference), ("unlearned", sample.answers["unlearned"]))
    return ShownExample(title, sample.question, said)
