"""Few-shot: other forget rows are shown before the question, with their answers.

Lynch et al. 2024 (https://arxiv.org/abs/2402.16835).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from unlora.data import IGNORE_INDEX, Example, TextFormat, encode_records, encode_turns
from unlora.data.sources import Record
from unlora.evals.attacks.interface import (
    Case,
    Materials,
    Probe,
    UnavailableError,
    check_questions,
    split,
    without_labels,
)
from unlora.evals.scoring import position_limit
from unlora.settings import AttackConfig


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return a case for each seed, which draws the shots. The other rows are asked for."""
    check_questions(materials.forget)
    if len(materials.forget) <= config.shots:
        reason = f"{config.shots} of the {len(materials.forget)} forget rows would be shots, which leaves none to ask"
        raise UnavailableError(reason, "use fewer shots")
    found = [_case(materials, config.shots, seed) for seed in range(config.seeds)]
    longest = max(len(example["input_ids"]) for case in found for example in case.forget.examples)
    new, limit = materials.settings.max_new_tokens, position_limit(model)
    if limit is not None and longest + new > limit:
        reason = f"{longest} tokens of text and {new} to generate are more than the model's {limit} positions"
        raise UnavailableError(reason, "use fewer shots")
    return found


def _case(materials: Materials, shots: int, seed: int) -> Case:
    shown, rest = split(materials.forget, shots, seed)
    examples = [few_shot(shown, row, materials.text_format) for row in rest]
    return Case(f"{shots}-shot", Probe(examples, [str(row["answer"]) for row in rest]))


def few_shot(shots: Sequence[Record], row: Record, text_format: TextFormat) -> Example:
    """Tokenise the shots and then the row, labelled on its answer: as turns of a chat, or as blocks of text."""
    if not text_format.is_chat:
        before = [f"{shot['question']}\nAnswer: {shot['answer']}" for shot in shots]
        return encode_turns("\n\nQuestion: ".join([*before, str(row["question"])]), str(row["answer"]), text_format)
    roles = (("user", "question"), ("assistant", "answer"))
    turns = [{"role": role, "content": str(turn[key])} for turn in (*shots, row) for role, key in roles]
    example = encode_records([{"messages": turns}], replace(text_format, max_length=sys.maxsize))[0]
    # All answers are labelled, and the last one ends the example: it begins behind the last token without a label.
    last_unlabelled = max(place for place, label in enumerate(example["labels"]) if label == IGNORE_INDEX)
    return without_labels(example, last_unlabelled + 1)
