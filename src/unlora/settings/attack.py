"""How a run is attacked."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlora.common.errors import Problem
from unlora.settings.checks import not_finite, not_positive


@dataclass
class AttackConfig:
    """What is tried to bring the forget set back, and how hard."""

    attacks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Some of relearn, quantise, prefix, and for questions paraphrase and fewshot. All that the data "
            "allow if not given."
        },
    )
    retrained: str | None = field(
        default=None,
        metadata={"help": "Model trained without the forget set (a folder, or its name on the Hub), to compare with."},
    )
    seeds: int = field(
        default=3, metadata={"help": "Random draws of each random attack. Results are mean and standard error."}
    )
    relearn_percent: list[float] = field(
        default_factory=lambda: [1.0, 5.0, 10.0, 20.0],
        metadata={"help": "Percent of the forget set that the attacker has (at least 1 row). The rest is measured."},
    )
    relearn_steps: int = field(default=50, metadata={"help": "Optimiser steps of the attacker."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "The attacker's learning rate. The run's own if not given."}
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows in one of the attacker's steps."})
    r: int = field(default=8, metadata={"help": "Rank of the attacker's LoRA adapter (alpha is twice the rank)."})
    prefix_percent: list[float] = field(
        default_factory=lambda: [25.0, 50.0],
        metadata={"help": "Percent of the tokens of each answer, or chunk of text, that are given and not measured."},
    )
    given_tokens: int = field(
        default=32,
        metadata={"help": "Tokens of each chunk of plain text that are given, at most half. The rest is measured."},
    )
    shots: int = field(default=3, metadata={"help": "Answered forget rows that are shown before each question."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded. Whether the attacks exist is checked where they are known."""
        positive = ("seeds", "relearn_steps", "learning_rate", "per_device_train_batch_size", "r", "shots")
        reason, fix = "nothing would be given, or nothing would be left to measure", "use values between 0 and 100"
        percentages = {name: getattr(self, name) for name in ("relearn_percent", "prefix_percent")}
        return [
            *not_finite(self),
            *not_positive(self, (*positive, "given_tokens")),
            *(
                Problem(name, value, reason, fix)
                for name, values in percentages.items()
                for value in values
                if not 0 < value < 100
            ),
        ]
