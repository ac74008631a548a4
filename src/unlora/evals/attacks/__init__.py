"""Attacks on a model that has unlearned: does the forget set come back?

To add one: write `cases(model, materials, config)` in a file of its own, and add it here, to the help of
`AttackConfig` and to docs/methods.md. `model` is the one before unlearning, for what has to be known of it.
"""

from collections.abc import Callable
from typing import Any

from unlora.common.errors import Problem, unknown_name
from unlora.evals.attacks import fewshot, paraphrase, prefix, quantise, relearn
from unlora.evals.attacks.interface import Case, Materials, UnavailableError, asked, measure
from unlora.settings import AttackConfig

ATTACKS: dict[str, Callable[[Any, Materials, AttackConfig], list[Case]]] = {
    "relearn": relearn.cases,
    "quantise": quantise.cases,
    "paraphrase": paraphrase.cases,
    "prefix": prefix.cases,
    "fewshot": fewshot.cases,
}


def attack_problems(config: AttackConfig) -> list[Problem]:
    """What is wrong with the settings of the attacks."""
    unknown = [unknown_name("attacks", name, ATTACKS) for name in config.attacks or () if name not in ATTACKS]
    return [*unknown, *config.problems()]


__all__ = ["ATTACKS", "Case", "Materials", "UnavailableError", "asked", "attack_problems", "measure"]
