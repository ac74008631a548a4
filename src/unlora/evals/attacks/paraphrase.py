"""Paraphrase: the questions are asked in other words.

Lynch et al. 2024 (https://arxiv.org/abs/2402.16835).
"""

from __future__ import annotations

from torch import nn

from unlora.data.sources import has_keys
from unlora.evals.attacks.interface import Case, Materials, UnavailableError, check_questions, probe
from unlora.settings import AttackConfig


def cases(model: nn.Module, materials: Materials, config: AttackConfig) -> list[Case]:
    """Return one case, in which each question is replaced by its `paraphrased_question`, a column of TOFU."""
    check_questions(materials.forget)
    lacking = sum(not has_keys(row, "paraphrased_question") for row in materials.forget)
    if lacking:
        reason = f"{lacking} of the {len(materials.forget)} forget rows have no paraphrased_question"
        raise UnavailableError(reason, "add it to each row, or unlearn with eval_data whose rows have it")
    rows = [{"question": row["paraphrased_question"], "answer": row["answer"]} for row in materials.forget]
    return [Case("paraphrased_question", probe(rows, materials))]
