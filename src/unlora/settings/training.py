"""Our own training settings. `UnlearnConfig` and `FinetuneConfig` add those of `transformers.TrainingArguments`.

They stand apart because the help of a command must not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unlora.common.errors import Problem
from unlora.settings.checks import below


@dataclass
class UnlearnSettings:
    """Adapter, losses and training. The defaults are the paper's where it has them."""

    r: int = field(default=8, metadata={"help": "Rank of the LoRA adapter."})
    lora_alpha: float = field(default=16.0, metadata={"help": "LoRA alpha; the adapter is scaled by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Must be 0: the offset must cancel the start exactly."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r) (rank-stabilised LoRA)."})
    target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt, as in PEFT; all linear layers but the head if not given."}
    )
    export_rank: int | None = field(
        default=None,
        metadata={
            "help": "Most ranks of the exported adapter, by truncated SVD; "
            "exact (twice r, more after earlier requests) if not given."
        },
    )
    loss: str = field(default="ihl", metadata={"help": "Forget loss: see `unlora ls losses`."})
    loss_kwargs: dict | str | None = field(
        default=None, metadata={"help": "The forget loss's own settings as JSON, such as '{\"beta\": 0.1}' for npo."}
    )
    retain_loss: str | None = field(
        default=None,
        metadata={
            "help": "Retain loss (see `unlora ls retain_losses`) or none; what goes with the forget loss if not given."
        },
    )
    retain_weight: float = field(
        default=1.0, metadata={"help": "λ in loss = forget loss + λ · retain loss; where it starts for pdu."}
    )
    max_retain_loss: float | None = field(
        default=None,
        metadata={
            "help": "Stop if a batch's retain loss exceeds this; the first batch's + ln(vocabulary) if not given "
            "(no limit for hidden_mse)."
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the forget set."})
    gradient_accumulation_steps: int = field(
        default=4, metadata={"help": "Batches added up before an update; 4 × 8 pairs is the paper's 32."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be False: batches hold pairs."})
    logging_steps: float = field(default=5, metadata={"help": "Log forget and retain loss every so many updates."})

    def adapter_problems(self) -> list[Problem]:
        """What is wrong with our own settings. Whether they suit the model is checked by `attach_adapters`."""
        problems = below(self, {"r": 1, "export_rank": 1}, "an adapter has at least rank 1")
        reasons = {
            "retain_weight": "it would reward forgetting the retain set",
            "learning_rate": "it would follow the gradient upwards",
            "weight_decay": "it would let the adapter grow without end",
        }
        problems += [problem for name, reason in reasons.items() for problem in below(self, {name: 0}, reason)]
        if self.lora_alpha <= 0:
            reason = "the factors are divided by it"
            problems.append(Problem("lora_alpha", self.lora_alpha, reason, "use a positive value"))
        if self.lora_dropout:
            reason = "dropout would drop different units in the two adapters, so they would not cancel at the start"
            problems.append(Problem("lora_dropout", self.lora_dropout, reason, "use 0"))
        if self.remove_unused_columns:
            problems.append(Problem("remove_unused_columns", True, "it would drop the pairs", "leave it False"))
        return problems


@dataclass
class FinetuneSettings:
    """Fine-tuning with TOFU's defaults (arXiv 2401.06121), of all weights or with LoRA."""

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the data."})
    warmup_steps: float = field(
        default=0.2,
        metadata={"help": "Updates of linear warm-up; below 1 a share of all: TOFU warms up for one of its 5 epochs."},
    )
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Batches added up before an update."})
    logging_steps: float = field(default=20, metadata={"help": "Log the loss every so many updates."})
    r: int | None = field(
        default=None,
        metadata={"help": "Rank of a LoRA adapter to train and merge at the end; all weights train if not given."},
    )
    lora_alpha: float = field(default=32.0, metadata={"help": "LoRA alpha; the adapter is scaled by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapter, while it trains."})
    target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt, as in PEFT; all linear layers but the head if not given."}
    )

    def adapter_problems(self) -> list[Problem]:
        """What is wrong with our own settings."""
        return below(self, {"r": 1}, "an adapter has at least rank 1")
