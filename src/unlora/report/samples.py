"""Single examples of a run: the question, the right answer token by token, and what each model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlora.evals.log_format import TASKS
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
        probability: by model.
        change: what unlearning added to its probability, if the original's is known.
        end: whether the token only ends the text.
    """

    text: str
    probability: Mapping[str, float]
    change: float | None
    end: bool


@dataclass(frozen=True)
class Sample:
    """One example.

    Args:
        question: what was asked; in a conversation, the user's last turn.
        turns: role and text of each turn before the answer, if there are several.
        reference: the right answer.
        tokens: those of the right answer.
        answers: what each model says.
        probability: of the right answer, by model.
    """

    question: str
    turns: Sequence[tuple[str, str]]
    reference: str
    tokens: Sequence[ShownToken]
    answers: Mapping[str, str]
    probability: Mapping[str, float]


def sample_counts(run: Run) -> dict[str, int]:
    """Return the number of evaluated examples by set."""
    return {name: len(run.prompts("unlearned", name)) for name in TASKS if run.task("unlearned", name)}


def samples(run: Run, name: str, most: int | None = None) -> list[Sample]:
    """Return the examples of a set that are most worth looking at: `most` of them, or as many as a page shows.

    Of the forget set these are the answers that are still the most likely, of other sets those that lost the most.
    """
    asked = run.prompts("unlearned", name)
    models = [model for model in MODELS if asked and run.prompts(model, name) == asked]
    if not models:
        return []
    values = {model: example_values(name, run.task(model, name)).get("probability") for model in models}
    probability = {model: column for model, column in values.items() if column is not None}
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
    """Return role and text of each turn before an answer. A prompt without a chat is one turn of the user."""
    if "turns" in run.task("unlearned", name):
        return [(role, text) for role, text in _cell(run, "unlearned", name, "turns", place)]
    prompt = run.prompts("unlearned", name)[place]
    return [("user", prompt.removeprefix("Question: ").removesuffix("Answer:").rstrip())]


def question_in(turns: Sequence[tuple[str, str]]) -> str:
    """Return what is asked: the user's last turn."""
    said = [text for role, text in turns if role == "user"]
    return said[-1] if said else "(nothing: the assistant begins)"


def _cell(run: Run, model: str, name: str, metric: str, place: int) -> Any:
    """Return a column's value of the example at this place."""
    column = run.task(model, name)[metric]
    return column[sorted(column, key=int)[place]]  # JSON's keys are texts, and "10" would come before "2"


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
    # The log does not mark the end token. If the others spell out the whole answer, it is the last one.
    ends = "".join(own[:-1]).strip() == reference.strip()
    found = []
    for at, text in enumerate(own):
        chances = {model: float(np.exp(-column[at])) for model, column in losses.items()}
        change = chances["unlearned"] - chances["original"] if "original" in chances else None
        found.append(ShownToken(text if at else text.lstrip(), chances, change, end=ends and at == last))
    return found
