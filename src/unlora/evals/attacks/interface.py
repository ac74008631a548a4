"""The interface of attacks: for each setting, how the model is changed and what it is then asked."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import nn

from unlora.data import IGNORE_INDEX, Example, TextFormat, encode_answers
from unlora.evals.generation import continue_prompts
from unlora.evals.metrics import answer_probability, rouge_l_recall
from unlora.evals.questions import Question
from unlora.evals.scoring import example_nll
from unlora.models.generation import decode
from unlora.settings import EvalSettings

T = TypeVar("T")
Metrics = dict[str, float]
# A question with its answer, or a tokenised chunk of plain text. A set has only one of the two.
Item = Question | Example


class UnavailableError(Exception):
    """The data or the model do not allow the attack."""

    def __init__(self, reason: str, fix: str) -> None:
        self.reason = reason
        self.fix = fix
        super().__init__(f"{reason} ({fix})")


@dataclass(frozen=True)
class Materials:
    """The inputs of attacks.

    Args:
        text_format: how rows become tokens.
        forget: the forget set: questions with answers, or tokenised chunks of plain text, without duplicates.
        retain: the retain set, in the same form. One of the sets may have questions and the other plain text.
        settings: the settings of the evaluation.
        given_tokens: number of tokens of a chunk of text that the model is given, at most half of the chunk.
    """

    text_format: TextFormat
    forget: Sequence[Item]
    retain: Sequence[Item]
    settings: EvalSettings
    given_tokens: int = 32


@dataclass(frozen=True)
class Probe:
    """Examples with labels on the tokens that are scored, and the text that the model should no longer produce there.

    The model is given everything before an example's first label. It is scored on the labels, and its greedy
    continuation is compared with the reference.

    Args:
        examples: [rows].
        references: [rows].
        new_tokens: the maximum length of a continuation. By default, that of the evaluation.
    """

    examples: Sequence[Example]
    references: Sequence[str]
    new_tokens: int | None = None


class Attempt(Protocol):
    """One execution of an attack on a model. Several results with the same setting are random draws."""

    def results(self, model: nn.Module, materials: Materials) -> list[tuple[str, Metrics]]:
        """Return (setting, the model's metrics). The setting is the strength of the attack, as the report shows it.

        The confidence interval of a metric, if known, is under `<metric>_low` and `<metric>_high`.
        """


@dataclass(frozen=True)
class Case:
    """An attempt with one setting. Several cases with the same setting are random draws, whose mean is reported.

    Args:
        setting: the strength of the attack, as the report shows it.
        forget: what is measured on the forget set.
        retain: whether the retain set is scored too, for attacks that may damage the whole model.
        change: returns a context manager that yields the attacked model and restores the model at the end.
    """

    setting: str
    forget: Probe
    retain: bool = False
    change: Callable[[nn.Module], AbstractContextManager[nn.Module]] = nullcontext

    def results(self, model: nn.Module, materials: Materials) -> list[tuple[str, Metrics]]:
        """Return the setting and the metrics of `measure`."""
        return [(self.setting, measure(model, self, materials))]


def questions(rows: Sequence[Item]) -> list[Question]:
    """Return the rows as questions.

    Raises:
        UnavailableError: the rows are plain text.
    """
    if not _are_questions(rows):
        raise UnavailableError("the rows are plain text", "this attack needs questions and answers")
    return [row for row in rows if isinstance(row, Question)]


def _are_questions(rows: Sequence[Item]) -> bool:
    return isinstance(rows[0], Question)


def probe(rows: Sequence[Item], materials: Materials) -> Probe:
    """Return the probe without any attack: the questions as in the evaluation, or text whose beginning is given."""
    examples = encode_rows(rows, materials.text_format)
    if _are_questions(rows):
        return Probe(examples, [row.answer for row in questions(rows)])
    given = (min(materials.given_tokens, len(example["labels"]) // 2) for example in examples)
    return continuation_probe([without_labels(*pair) for pair in zip(examples, given, strict=True)], materials)


def without_labels(example: Example, first: int) -> Example:
    """Return the example with labels only from position `first` on."""
    return {"input_ids": example["input_ids"], "labels": [IGNORE_INDEX] * first + example["labels"][first:]}


def continuation_probe(examples: Sequence[Example], materials: Materials) -> Probe:
    """Return a probe that compares continuations with the labelled text, without its end tokens.

    For plain text, the reference and the continuation have the same maximum number of tokens.
    """
    tokenizer, ends = materials.text_format.tokenizer, materials.text_format.end_tokens
    rests = [[example["labels"][place] for place in answer_places(example, ends)] for example in examples]
    new = None if _are_questions(materials.forget) else min(materials.settings.max_new_tokens, max(map(len, rests)))
    return Probe(examples, [decode(rest[:new], tokenizer).strip() for rest in rests], new)


def answer_places(example: Example, ends: Collection[int]) -> list[int]:
    """Return the positions of the labelled tokens, without the end tokens `ends` after the answer."""
    places = [place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX]
    while places and example["labels"][places[-1]] in ends:
        places.pop()
    return places


def encode_rows(rows: Sequence[Item], text_format: TextFormat) -> list[Example]:
    """Return one example per row: the tokenised question and answer, or the chunk itself."""
    pairs = [(row.question, row.answer) for row in rows if isinstance(row, Question)]
    if pairs:
        return encode_answers(pairs, text_format)
    return [row for row in rows if not isinstance(row, Question)]


def split(rows: Sequence[T], count: int, seed: int) -> tuple[list[T], list[T]]:
    """Draw `count` rows with `seed`; return them and the rest. A smaller draw with the same seed is a subset."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[place] for place in order[:count]], [rows[place] for place in sorted(order[count:])]


def measure(model: nn.Module, case: Case, materials: Materials) -> Metrics:
    """Return the metrics of the attacked model, which are means over rows in [0, 1].

    Returns:
        forget_probability, exp(−NLL/|y|) of the labelled tokens; forget_rougeL_recall of the continuation; and
        retain_probability, if `case.retain` is set.
    """
    text_format, settings = materials.text_format, materials.settings
    with case.change(model) as attacked:
        prompts = [_prompt(example) for example in case.forget.examples]
        new = case.forget.new_tokens or settings.max_new_tokens
        texts = continue_prompts(attacked, prompts, text_format, new, settings.eval_batch_size)
        recalls = [rouge_l_recall(*pair) for pair in zip(texts, case.forget.references, strict=True)]
        metrics = {
            "forget_probability": _probability(attacked, case.forget.examples, materials),
            "forget_rougeL_recall": sum(recalls) / len(recalls),
        }
        if case.retain:
            examples = probe(materials.retain, materials).examples
            metrics["retain_probability"] = _probability(attacked, examples, materials)
    return metrics


def _prompt(example: Example) -> list[int]:
    first = next(place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
    return example["input_ids"][:first]


def _probability(model: nn.Module, examples: Sequence[Example], materials: Materials) -> float:
    sums, tokens = example_nll(model, examples, materials.text_format, materials.settings.eval_batch_size)
    return float(answer_probability(sums / tokens).mean())
