"""How a run is attacked."""

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
    """Which attacks try to bring the forget set back, and how strong they are."""

    attacks: list[str] | None = setting(
        None,
        "Some of relearn, quantise, prefix, and for questions also paraphrase, fewshot and sampling. Defaults to all "
        "that the data allow.",
    )
    retrained: str | None = setting(
        None, "Model trained without the forget set, to compare with: a folder or a name on the Hugging Face Hub."
    )
    seeds: int = setting(3, "Random draws of each random attack. Results are mean and standard error.")
    relearn_percent: list[float] = setting(
        [1.0, 5.0, 10.0, 20.0],
        "Percent of the forget set that the attacker trains on (at least 1 row). The rest is measured.",
    )
    relearn_steps: int = setting(50, "Optimiser steps of the attacker.")
    learning_rate: float | None = setting(None, "The attacker's learning rate. Defaults to that of the run.")
    per_device_train_batch_size: int = setting(8, "Rows in one of the attacker's steps.")
    r: int = setting(8, "Rank of the attacker's LoRA adapter (alpha is twice the rank).")
    prefix_percent: list[float] = setting(
        [25.0, 50.0], "Percent of the tokens of each answer or chunk of text that are given and not measured."
    )
    given_tokens: int = setting(
        32, "Tokens of each chunk of plain text that are given, at most half of it. The rest is measured."
    )
    shots: int = setting(3, "Answered forget rows that are shown before each question.")
    samples: list[int] = setting(
        [1, 8, 32],
        "Numbers of sampled answers to each question of which one may contain the fact. The largest number is drawn.",
    )

    def problems(self) -> list[Problem]:
        """Check the numbers, and that the attacks exist."""
        unknown = [unknown_name("attacks", name, ATTACKS) for name in self.attacks or () if name not in ATTACKS]
        return [*unknown, *value_problems(self, _RANGES)]
