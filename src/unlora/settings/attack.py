"""Settings of the attacks on a run."""

from __future__ import annotations

from dataclasses import dataclass

from unlora.common.errors import Problem, unknown_name
from unlora.settings.checks import between, positive, value_problems
from unlora.settings.names import ATTACKS
from unlora.settings.setting import setting

_PERCENT = between(0, 100, "nothing would be given, or nothing would be left to measure")
_RANGES = {
    "seeds": positive(),
    "relearn_percent": _PERCENT,
    "relearn_steps": positive(),
    "learning_rate": positive(),
    "per_device_train_batch_size": positive(),
    "r": positive(),
    "prefix_percent": _PERCENT,
    "given_tokens": positive(),
    "shots": positive(),
    "samples": positive(),
}


@dataclass
class AttackConfig:
    """Which attacks try to recover the forget set, and how strong they are."""

    attacks: list[str] | None = setting(
        None,
        "Any of relearn, quantise and prefix, and for questions also paraphrase, fewshot and sampling. Defaults to all "
        "that the data allow.",
    )
    retrained: str | None = setting(
        None, "Model trained without the forget set, to compare with: a folder or a name on the Hugging Face Hub."
    )
    seeds: int = setting(3, "Number of seeds of each random attack. Results are mean and standard error.")
    relearn_percent: list[float] = setting(
        [1.0, 5.0, 10.0, 20.0],
        "Percentages of the forget set that the attacker trains on (at least 1 row). The rest is measured.",
    )
    relearn_steps: int = setting(50, "Number of the attacker's optimiser steps.")
    learning_rate: float | None = setting(None, "The attacker's learning rate. Defaults to the run's.")
    per_device_train_batch_size: int = setting(8, "Number of rows in each of the attacker's steps.")
    r: int = setting(8, "Rank of the attacker's LoRA adapter (alpha is twice the rank).")
    prefix_percent: list[float] = setting(
        [25.0, 50.0],
        "Percentages of the tokens of each answer or text chunk that are given as a prefix. The rest is measured.",
    )
    given_tokens: int = setting(
        32, "Number of tokens of each plain-text chunk that are given, at most half of them. The rest is measured."
    )
    shots: int = setting(3, "Number of answered forget rows that are shown before each question.")
    samples: list[int] = setting(
        [1, 8, 32],
        "Values of k: the attack measures whether at least one of k sampled answers contains the fact. The largest k "
        "is the number of answers drawn for each question.",
    )

    def problems(self) -> list[Problem]:
        """Check the numbers, and that the attacks exist."""
        unknown = [unknown_name("attacks", name, ATTACKS) for name in self.attacks or () if name not in ATTACKS]
        return [*unknown, *value_problems(self, _RANGES)]
