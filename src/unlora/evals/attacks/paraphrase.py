"""Paraphrase: the questions are asked in other words.

Lynch et al. 2024 (https://arxiv.org/abs/2402.16835).
"""

from __future__ import annotations

from torch import nn

from unlora.evals.attacks.interface import Case, Materials, UnavailableError, probe, questions
from unlora.evals.questions import Question
from unlora.settings import AttackConfig


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return one case, in which each question is replaced by its `paraphrased_question`, a column of TOFU."""
    rows = questions(materials.forget)
    lacking = sum(row.paraphrased_question is None for row in rows)
    if lacking:
        reason = f"{lacking} of the {len(rows)} forget rows have no paraphrased_question"
        raise UnavailableError(reason, "add it to each row, or unlearn with eval_data whose rows have it")
    return [Case("paraphrased_question", probe([_paraphrased(row) for row in rows], materials))]


def _paraphrased(row: Question) -> Question:
    """Return the row with its question in other words. In a conversation, the last turn of the user is replaced."""
    words = str(row.paraphrased_question)
    return row._replace(question=words if isinstance(row.question, str) else row.question.asking(words))
