"""What an attack is: for each of its settings what is asked, and what is done to the model before."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from unlora.data import IGNORE_INDEX, Example, TextFormat, encode_records
from unlora.data.sources import Record
from unlora.evals.metrics import answer_probability, rouge_l_recall
from unlora.evals.scoring import continue_prompts, decode, end_tokens, example_nll
from unlora.settings import EvalSettings

T = TypeVar("T")
Metrics = dict[str, float]


class UnavailableError(Exception):
    """The data or the model do not allow an attack."""

    def __init__(self, reason: str, fix: str) -> None:
        self.reason = reason
        self.fix = fix
        super().__init__(f"{reason} ({fix})")


@dataclass(frozen=True)
class Materials:
    """What attacks work with.

    Args:
        text_format: how rows become tokens.
        forget: question/answer rows, or chunks of plain text that are tokenised already (`Example`), all different.
        retain: the same; one set may be of questions, and the other of text.
        settings: of the evaluation.
        given_tokens: of a chunk of text, which the model is given; at most half of it.
    """

    text_format: TextFormat
    forget: Sequence[Record]
    retain: Sequence[Record]
    settings: EvalSettings
    given_tokens: int = 32


@dataclass(frozen=True)
class Asked:
    """Examples that are labelled on what is measured, and what the model ought not to say there.

    The model is given everything before an example's first label: it is scored on the labels, and its greedy
    continuation is compared with the reference.

    Args:
        examples: [rows].
        references: [rows].
        new_tokens: the longest continuation; that of the evaluation if not given.
    """

    examples: Sequence[Example]
    references: Sequence[str]
    new_tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """One measurement. Several cases of one setting are draws, of which the mean is reported.

    Args:
        setting: how hard the attack is, as users read it.
        forget: what is asked of the forget set.
        retain: whether the retain set is scored too: for attacks that may harm the whole model.
        change: (model) -> context within which the model is attacked, and after which it is what it was.
    """

    setting: str
    forget: Asked
    retain: bool = False
    change: Callable[[Any], AbstractContextManager[Any]] = nullcontext


def is_text(rows: Sequence[Record]) -> bool:
    """Whether the rows are chunks of plain text."""
    return "input_ids" in rows[0] and "question" not in rows[0]


def check_questions(rows: Sequence[Record]) -> None:
    """Raises `UnavailableError` where the rows are plain text."""
    if is_text(rows):
        raise UnavailableError("the rows are plain text", "it takes questions and answers")


def asked(rows: Sequence[Record], materials: Materials) -> Asked:
    """The rows' questions, as the plain evaluation asks them; of text its beginning is given, and it is to go on."""
    examples = encode_rows(rows, materials.text_format)
    if not is_text(rows):
        return Asked(examples, [str(row["answer"]) for row in rows])
    given = (min(materials.given_tokens, len(example["labels"]) // 2) for example in examples)
    return going_on([without_labels(*pair) for pair in zip(examples, given, strict=True)], materials)


def without_labels(example: Example, first: int) -> Example:
    """The example with labels from place `first` on alone."""
    return {"input_ids": example["input_ids"], "labels": [IGNORE_INDEX] * first + example["labels"][first:]}


def going_on(examples: Sequence[Example], materials: Materials) -> Asked:
    """Examples whose continuation is compared with what is labelled, without its end, and of text no longer than that.

    Of text the first tokens count, as many as may be generated.
    """
    tokenizer, ends = materials.text_format.tokenizer, end_tokens(materials.text_format)
    rests = [[example["labels"][place] for place in answer_places(example, ends)] for example in examples]
    new = min(materials.settings.max_new_tokens, max(map(len, rests))) if is_text(materials.forget) else None
    return Asked(examples, [decode(rest[:new], tokenizer).strip() for rest in rests], new)


def answer_places(example: Example, ends: set[int]) -> list[int]:
    """Where the labelled tokens stand, without those that end an answer."""
    places = [place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX]
    while places and example["labels"][places[-1]] in ends:
        places.pop()
    return places


def encode_rows(rows: Sequence[Record], text_format: TextFormat) -> list[Example]:
    """One example a row, of its question and answer, or the chunk as it is."""
    if is_text(rows):
        return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    turns = [{"question": row["question"], "answer": row["answer"]} for row in rows]
    return encode_records(turns, text_format)


def split(rows: Sequence[T], count: int, seed: int) -> tuple[list[T], list[T]]:
    """`count` rows drawn by `seed`, and the rest; with the same seed fewer rows are among more."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return [rows[place] for place in order[:count]], [rows[place] for place in sorted(order[count:])]


def measure(model: nn.Module, case: Case, materials: Materials) -> Metrics:
    """The model's metrics in this case: means over rows, each in [0, 1].

    Returns:
        forget_probability, exp(−NLL/|y|) of what is labelled; forget_rougeL_recall of the continuation; and where the
        case says so retain_probability.
    """
    text_format, settings = materials.text_format, materials.settings
    with case.change(model) as attacked:
        prompts = [_prompt(example) for example in case.forget.examples]
        new = case.forget.new_tokens or settings.max_new_tokens
        said = continue_prompts(attacked, prompts, text_format, new, settings.eval_batch_size)
        recalls = [rouge_l_recall(*pair) for pair in zip(said, case.forget.references, strict=True)]
        metrics = {
            "forget_probability": _probability(attacked, case.forget.examples, materials),
            "forget_rougeL_recall": sum(recalls) / len(recalls),
        }
        if case.retain:
            retain = asked(materials.retain, materials).examples
            metrics["retain_probability"] = _probability(attacked, retain, materials)
    return metrics


def _prompt(example: Example) -> list[int]:
    first = next(place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX)
    return example["input_ids"][:first]


def _probability(model: nn.Module, examples: Sequence[Example], materials: Materials) -> float:
    sums, tokens = example_nll(model, examples, materials.text_format, materials.settings.eval_batch_size)
    return float(answer_probability(sums / tokens).mean())
