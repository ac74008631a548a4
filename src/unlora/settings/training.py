"""Our own training settings. `UnlearnConfig` and `FinetuneConfig` add those of `transformers.TrainingArguments`.

They are separate so that `--help` does not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlora.common.errors import Problem
from unlora.settings.checks import Range, at_least, positive, value_problems
from unlora.settings.inherited import RANGES, mapping_problems
from unlora.settings.names import TEACHERS, loss_problems, name_problems
from unlora.settings.setting import setting

RANK = at_least(1, "an adapter has at least rank 1")
# Requirements for an adapter that starts without any effect, whether its settings are flags or a `LoraConfig`.
ADAPTER_RANGES = {
    "r": RANK,
    "lora_alpha": positive("the factors are divided by it"),
    "lora_dropout": Range(
        "0",
        "dropout would drop different units in the two adapters, so they would not cancel at the start",
        lambda p: p == 0,
    ),
}
_RANGES = {
    **RANGES,
    **ADAPTER_RANGES,
    "export_rank": RANK,
    "forget_weight": positive("nothing would be forgotten"),
    "retain_weight": at_least(0, "it would reward forgetting the retain set"),
    "max_retain_loss": positive(),
}
_FINETUNE_RANGES = {
    **RANGES,
    "r": RANK,
    "lora_alpha": positive("the adapter would have no effect"),
    "lora_dropout": Range("a value from 0 to below 1", "it is a probability", lambda p: 0 <= p < 1),
}
# Defaults that depend on the loss: for losses that distil a teacher, and for all others (as in the paper).
DISTILLING: dict[str, Any] = {
    "init": "lora",
    "learning_rate": 2e-3,
    "retain_weight": 3.0,
    "gradient_accumulation_steps": 2,
}
# The learning rate of a loss that distils a teacher from any other start than plain LoRA's. The factors of other starts
# are large from the beginning, so that an update changes the weights more (docs/results.md).
STARTED_LEARNING_RATE = 2e-4
PUSHING: dict[str, Any] = {
    "init": "vila",
    "learning_rate": 1e-4,
    "retain_weight": 1.0,
    "gradient_accumulation_steps": 4,
}
# A model agrees with its teacher if two means over the labelled tokens are at most this many nats: KL(teacher ‖ model),
# and the log-probability of the true token minus the teacher's.
AGREEMENT = 0.1
_LEARNING_RATE = "The initial learning rate of AdamW."
_WEIGHT_DECAY = "Weight decay of AdamW."
_ALPHA = "LoRA alpha. The adapter is scaled by alpha / r."
_TARGETS = "Modules to adapt, as in PEFT. Defaults to all-linear: all linear layers but the output head."


@dataclass
class UnlearnSettings:
    """Adapter, losses and training. The defaults are the paper's where it has them."""

    r: int = setting(8, "Rank of the LoRA adapter.")
    lora_alpha: float = setting(16.0, _ALPHA)
    lora_dropout: float = setting(0.0, "Must be 0, so that the offset cancels the start exactly.")
    use_rslora: bool = setting(False, "Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    target_modules: list[str] | None = setting(None, _TARGETS)
    export_rank: int | None = setting(
        None,
        "Maximum rank of the exported adapter, by truncated SVD. Defaults to an exact export: rank r for a plain LoRA "
        "start and 2r for other starts, plus the ranks of earlier requests.",
    )
    loss: str = setting("distil", "Forget loss: see `unlora ls losses`.")
    loss_kwargs: dict | str | None = setting(
        None, "The forget loss's own settings as JSON, such as '{\"beta\": 0.1}' for npo."
    )
    retain_loss: str | None = setting(
        None,
        "Retain loss (see `unlora ls retain_losses`), or none. Defaults to the one that goes with the forget loss.",
    )
    teacher: str = setting("changed_names", "The teacher, if the loss distils one: see `unlora ls teachers`.")
    until_taught: bool | None = setting(
        None,
        "Train until the model agrees with its teacher, for at most max_steps. Defaults to true for a loss that "
        "distils one, unless num_train_epochs or max_steps is given.",
    )
    forget_weight: float = setting(1.0, "γ in loss = γ · forget loss + λ · retain loss.")
    retain_weight: float | None = setting(
        None,
        "λ in loss = γ · forget loss + λ · retain loss. The loss pdu starts from it and changes it. Defaults to 3 for "
        "distil, and 1 for losses without a teacher.",
    )
    max_retain_loss: float | None = setting(
        None,
        "Stop if a batch's retain loss exceeds this. Defaults to the first batch's + ln(vocabulary); no limit for "
        "hidden_mse.",
    )
    learning_rate: float | None = setting(
        None,
        f"{_LEARNING_RATE} Defaults to 2e-3 for distil, 2e-4 for distil with another init than lora, and 1e-4 for "
        "losses without a teacher.",
    )
    weight_decay: float = setting(0.01, _WEIGHT_DECAY)
    num_train_epochs: float = setting(5.0, "Number of passes over the forget set, unless until_taught.")
    gradient_accumulation_steps: int | None = setting(
        None,
        "Number of batches whose gradients are accumulated before an update. Defaults to 2 for distil, and 4 for "
        "losses without a teacher: 4 × 8 pairs is the paper's 32.",
    )
    remove_unused_columns: bool = setting(False, "Must be false, because batches hold pairs.")
    logging_steps: float = setting(5, "Number of updates between two logs of the forget and retain loss.")

    def own_problems(self) -> list[Problem]:
        """Check these settings, and the numbers of subclasses. `attach_adapters` checks whether they suit the model."""
        problems = value_problems(self, _RANGES, infinite=("max_retain_loss",))
        problems += [*loss_problems(self.loss, self.retain_loss), *name_problems("teacher", self.teacher, TEACHERS)]
        if self.remove_unused_columns:
            problems.append(Problem("remove_unused_columns", True, "it would drop the pairs", "set it to false"))
        return [*problems, *mapping_problems("loss_kwargs", self.loss_kwargs)]


@dataclass
class FinetuneSettings:
    """Fine-tuning with TOFU's defaults (arXiv 2401.06121), of all weights or with LoRA."""

    learning_rate: float = setting(1e-5, _LEARNING_RATE)
    weight_decay: float = setting(0.01, _WEIGHT_DECAY)
    num_train_epochs: float = setting(5.0, "Number of passes over the data.")
    warmup_steps: float = setting(
        0.2, "Number of updates of linear warm-up, or if below 1, their share of all: TOFU warms up for 1 of 5 epochs."
    )
    gradient_accumulation_steps: int = setting(4, "Number of batches whose gradients are accumulated before an update.")
    logging_steps: float = setting(5, "Number of updates between two logs of the loss.")
    logging_first_step: bool = setting(True, "Log the loss of the first update as well.")
    r: int | None = setting(
        None, "Rank of a LoRA adapter, which is merged into the weights at the end. Defaults to training all weights."
    )
    lora_alpha: float = setting(32.0, _ALPHA)
    lora_dropout: float = setting(0.05, "Dropout of the adapter's input during training.")
    target_modules: list[str] | None = setting(None, _TARGETS)

    def own_problems(self) -> list[Problem]:
        """Check these settings, and the numbers of subclasses."""
        return value_problems(self, _FINETUNE_RANGES)
