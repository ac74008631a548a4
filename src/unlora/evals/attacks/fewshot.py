"""Few-shot: other forget rows with their answers precede the question in the prompt.

Lynch et al. 2024 (https://arxiv.org/abs/2402.16835).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from unlora.common.errors import InputError
from unlora.data import Example, TextFormat, encode_turns
from unlora.data.conversations import Turn, is_system
from unlora.evals.attacks.interface import Case, Materials, Probe, UnavailableError, questions, split
from unlora.evals.questions import Question
from unlora.evals.scoring import position_limit
from unlora.settings import AttackConfig


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return a case for each seed. The seed draws the shots, and the model is asked the questions of the other rows."""
    rows = questions(materials.forget)
    found = [_case(rows, materials, config.shots, seed) for seed in range(config.seeds)]
    longest = max(len(example["input_ids"]) for case in found for example in case.forget.examples)
    new, limit = materials.settings.max_new_tokens, position_limit(model)
    if limit is not None and longest + new > limit:
        reason = f"{longest} tokens of text and {new} to generate are more than the model's {limit} positions"
        raise UnavailableError(reason, "use fewer shots")
    return found


def _case(rows: Sequence[Question], materials: Materials, shots: int, seed: int) -> Case:
    shown, others = split(rows, shots, seed)
    rest = [row for row in others if not any(_shows(shot, row) for shot in shown)]
    if not rest:
        reason = f"{shots} of the {len(rows)} forget rows would be shots, which leaves none to ask"
        raise UnavailableError(reason, "use fewer shots")
    examples = [few_shot(shown, row, materials.text_format) for row in rest]
    return Case(f"{shots}-shot", Probe(examples, [row.answer for row in rest]))


def _shows(shot: Question, row: Question) -> bool:
    """Return whether a shot comes later in the same conversation, so that it would show the answer to the row."""
    if isinstance(shot.question, str) or isinstance(row.question, str):
        return False
    said = row.question.answered(row.answer)
    return shot.question.turns[: len(said)] == said


def few_shot(shots: Sequence[Question], row: Question, text_format: TextFormat) -> Example:
    """Tokenise the shots and then the row, labelled on its answer: as turns of a chat, or as blocks of text."""
    texts = [one.question for one in (*shots, row) if isinstance(one.question, str)]
    if not text_format.is_chat and len(texts) > len(shots):
        before = [f"{text}\nAnswer: {shot.answer}" for text, shot in zip(texts, shots, strict=False)]
        return encode_turns("\n\nQuestion: ".join([*before, texts[-1]]), row.answer, text_format)
    template = text_format.template
    earlier = [
        turn for shot in shots for turn in _without_system(template.context(shot.question).answered(shot.answer))
    ]
    try:
        return encode_turns(template.context(row.question).after(earlier), row.answer, text_format, row.where)
    except InputError as error:
        reason = f"the turns of several conversations cannot be joined into one ({error})"
        raise UnavailableError(reason, "leave this attack out") from error


def _without_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    return turns[1:] if is_system(turns[0]) else turns
