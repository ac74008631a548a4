"""Attacks on an unlearned model: does the forget set come back?

To add an attack, write `cases(model, materials, config)` in a file of its own, and add it to `ATTACKS`, to the help of
`AttackConfig` and to docs/methods.md. `model` is the original model, in case the attack depends on its properties.
"""

from collections.abc import Callable, Sequence

from torch import nn

from unlora.common.errors import Problem, unknown_name
from unlora.evals.attacks import fewshot, paraphrase, prefix, quantise, relearn, sampling
from unlora.evals.attacks.interface import Attempt, Case, Materials, UnavailableError, measure, probe
from unlora.settings import AttackConfig

ATTACKS: dict[str, Callable[[nn.Module, Materials, AttackConfig], Sequence[Attempt]]] = {
    "relearn": relearn.cases,
    "quantise": quantise.cases,
    "paraphrase": paraphrase.cases,
    "prefix": prefix.cases,
    "fewshot": fewshot.cases,
    "sampling": sampling.cases,
}


def attack_problems(config: AttackConfig) -> list[Problem]:
    """Return what is wrong with the settings of the attacks."""
    unknown = [unknown_name("attacks", name, ATTACKS) for name in config.attacks or () if name not in ATTACKS]
    return [*unknown, *config.problems()]


__all__ = ["ATTACKS", "Attempt", "Case", "Materials", "UnavailableError", "attack_problems", "measure", "probe"]
