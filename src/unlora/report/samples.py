"""Single examples of a run: the question, the right answer token by token, and the answer of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlora.evals.log_format import TASKS, column
from unlora.evals.summary import example_values
from unlora.report.read import Run
from unlora.report.statistics import Values
from unlora.runs.folder import MODELS

# How many examples of each set are shown.
SAMPLES = {"forget": 20, "retain": 10}


@dataclass(frozen=True)
class ShownToken:
    """A token of the right answer.

    Args:
        text: its text.
        probability: {model: its probability}.
        change: its probability under the unlearned model minus that under the original, if the latter is known.
        end: whether it is the end token.
    """

    text: str
    probability: Mapping[str, float]
    change: float | None
    end: bool


@dataclass(frozen=True)
class Sample:
    """One example.

    Args:
        question: the question; in a conversation, the user's last turn.
        turns: role and text of each turn before the answer, if there are several.
        reference: the right answer.
        tokens: the tokens of the right answer.
        answers: {model: its answer}.
        probability: {model: probability of the right answer}.
    """

    question: str
    turns: Sequence[tuple[str, str]]
    reference: str
    tokens: Sequence[ShownToken]
    answers: Mapping[str, str]
    probability: Mapping[str, float]


def sample_counts(run: Run) -> dict[str, int]:
    """Return {set: number of evaluated examples}."""
    return {name: len(run.prompts("unlearned", name)) for name in TASKS if run.task("unlearned", name)}


def samples(run: Run, name: str, most: int | None = None) -> list[Sample]:
    """Return the examples of a set that are most worth reading: at most `most`, or as many as a page shows.

    In the forget set, these are the examples whose right answers are still the most likely; in other sets, those whose
    right answers lost the most probability.
    """
    asked = run.prompts("unlearned", name)
    models = [model for model in MODELS if asked and run.prompts(model, name) == asked]
    if not models:
        return []
    values = {model: example_values(name, run.task(model, name)).get("probability") for model in models}
    probability = {model: chances for model, chances in values.items() if chances is not None}
    order: Sequence[int] = range(len(asked))
    if "unlearned" in probability:
        score = -probability["unlearned"]
        if name != "forget" and "original" in probability:
            score = probability["unlearned"] - probability["original"]
        order = np.argsort(score, kind="stable").tolist()
    return [_sample(run, name, models, probability, place) for place in order[: most or SAMPLES[name]]]


def _sample(run: Run, name: str, models: Sequence[str], probability: Mapping[str, Values], place: int) -> Sample:
    rows = {model: _cell(run, model, name, "generated_text", place) for model in models}
    turns, reference = turns_before(run, name, place), rows["unlearned"][2]
    return Sample(
        question=question_in(turns),
        turns=turns if len(turns) > 1 else (),
        reference=reference,
        tokens=_tokens(run, name, models, place, reference),
        answers={model: row[1] for model, row in rows.items()},
        probability={model: float(values[place]) for model, values in probability.items()},
    )


def turns_before(run: Run, name: str, place: int) -> list[tuple[str, str]]:
    """Return role and text of each turn before an answer. A prompt without chat turns is a single turn of the user."""
    if "turns" in run.task("unlearned", name):
        return [(role, text) for role, text in _cell(run, "unlearned", name, "turns", place)]
    prompt = run.prompts("unlearned", name)[place]
    return [("user", prompt.removeprefix("Question: ").removesuffix("Answer:").rstrip())]


def question_in(turns: Sequence[tuple[str, str]]) -> str:
    """Return the question: the user's last turn."""
    said = [text for role, text in turns if role == "user"]
    return said[-1] if said else "(nothing: the assistant begins)"


def _cell(run: Run, model: str, name: str, metric: str, place: int) -> Any:
    """Return the value of one example in a column of a model's log."""
    return column(run.task(model, name), metric)[place]


def _tokens(run: Run, name: str, models: Sequence[str], place: int, reference: str) -> list[ShownToken]:
    known = [model for model in models if {"gt_tokens", "gt_token_loss"} <= run.task(model, name).keys()]
    if "unlearned" not in known:
        return []
    own = _cell(run, "unlearned", name, "gt_tokens", place)
    # Another tokenizer gives other tokens, and their probabilities cannot be compared one by one.
    losses = {
        model: _cell(run, model, name, "gt_token_loss", place)
        for model in known
        if _cell(run, model, name, "gt_tokens", place) == own
    }
    last = len(own) - 1
    # The log does not mark the end token. The last token is one if the tokens before it spell out the whole answer.
    ends = "".join(own[:-1]).strip() == reference.strip()
    found = []
    for at, text in enumerate(own):
        chances = {model: float(np.exp(-values[at])) for model, values in losses.items()}
        change = chances["unlearned"] - chances["original"] if "original" in chances else None
        found.append(ShownToken(text if at else text.lstrip(), chances, change, end=ends and at == last))
    return found
