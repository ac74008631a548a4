"""What is evaluated, on what, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unlora.common.errors import Problem
from unlora.settings.checks import below, missing
from unlora.settings.model import ModelConfig

NOTHING = "nothing would be evaluated"


@dataclass
class EvalSettings:
    """How much is evaluated, and how."""

    ds_size: int | None = field(
        default=300, metadata={"help": "How many examples of each set are evaluated, from the first on."}
    )
    max_new_tokens: int = field(default=200, metadata={"help": "Most tokens of a generated answer."})
    eval_batch_size: int = field(default=32, metadata={"help": "Examples in a forward pass."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return below(self, {"ds_size": 1, "max_new_tokens": 1, "eval_batch_size": 1}, NOTHING)


@dataclass
class EvalConfig(EvalSettings):
    """What is evaluated, on the model before and after unlearning."""

    eval_data: str | None = field(
        default=None,
        metadata={
            "help": "Folder or dataset on the Hub in TOFU's schema. The forget and retain sets themselves if not given."
        },
    )
    eval_forget_name: str = field(default="forget10_perturbed", metadata={"help": "Its forget configuration."})
    eval_retain_name: str = field(default="retain_perturbed", metadata={"help": "Its retain configuration."})
    eval_real_authors_name: str = field(
        default="real_authors_perturbed", metadata={"help": "Its configuration of real authors, or none."}
    )
    eval_world_facts_name: str = field(
        default="world_facts_perturbed", metadata={"help": "Its configuration of general facts, or none."}
    )
    retrain_log: str | None = field(
        default=None, metadata={"help": "Evaluation log of a model trained without the forget set, for forget quality."}
    )
    original_log: str | None = field(
        default=None,
        metadata={"help": "Evaluation log of the model before this request, if you have one already."},
    )


@dataclass
class TargetConfig:
    """What to evaluate, and where the result goes."""

    adapter: str | None = field(default=None, metadata={"help": "PEFT adapter folder to load on the model."})
    log: str = field(default="", metadata={"help": "Where the result is written: a new file. Required."})

    def target_problems(self, model: ModelConfig) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = missing(self, ("log",))
        if model.on is not None and self.adapter is not None:
            reason = "that run's own adapter is evaluated, which contains those of all earlier requests"
            problems.append(Problem("on", model.on, reason, "name either on or adapter"))
        if self.log and Path(self.log).exists():
            problems.append(Problem("log", self.log, "it is already in use", "name a new file"))
        return problems

    def adapted(self, model: ModelConfig) -> bool:
        """Whether the evaluated model has an adapter, without which it is the original."""
        return self.adapter is not None or model.on is not None


@dataclass
class ReportedConfig(TargetConfig):
    """What to evaluate, for the report of the run that it belongs to."""

    log: str = field(
        default="",
        metadata={"help": "Where the result is written: a new file. With --on, a file in that run if not given."},
    )

    def log_in_run(self, model: ModelConfig, name: str) -> None:
        """Write the result into the evaluated run, where its report looks for it, unless the user named a file."""
        if model.on is not None and not self.log:
            self.log = str(Path(model.on) / name)


@dataclass
class MuseConfig(ReportedConfig):
    """What is evaluated on what."""

    data: str = field(
        default="", metadata={"help": "muse-bench/MUSE-News, -Books, or a folder of the same schema. Required."}
    )
    retrain_log: str | None = field(
        default=None,
        metadata={"help": "This command's log of a model trained without the forget set, for privacy leakage."},
    )
    ds_size: int | None = field(
        default=300, metadata={"help": "How many rows of each set are evaluated. MUSE's sets have 100."}
    )
    eval_batch_size: int = field(
        default=8, metadata={"help": "Texts in a forward pass. Some have thousands of tokens."}
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return [*missing(self, ("data",)), *below(self, {"ds_size": 1, "eval_batch_size": 1}, NOTHING)]


@dataclass
class TaskSettings:
    """Which tasks of lm-evaluation-harness, and how much of them."""

    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of tasks, groups or tags (wmdp_bio wmdp_cyber mmlu), or YAML files. Required."},
    )
    include_path: str | None = field(default=None, metadata={"help": "Folder of your own task YAML files."})
    num_fewshot: int = field(default=0, metadata={"help": "Answered examples before each question."})
    limit: int | None = field(default=None, metadata={"help": "How many questions of each task are asked."})
    batch_size: int = field(default=8, metadata={"help": "Questions in a forward pass."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = missing(self, ("tasks",))
        if self.include_path is not None and not Path(self.include_path).is_dir():
            problems.append(Problem("include_path", self.include_path, "there is no such folder", "check the path"))
        return [*problems, *below(self, {"num_fewshot": 0, "limit": 1, "batch_size": 1}, "it is too small")]


@dataclass
class MembershipConfig(ReportedConfig):
    """Which sets are compared, and by which attacks."""

    forget_data: str = field(
        default="", metadata={"help": "The forget set: a file, a folder or a dataset on the Hub. Required."}
    )
    forget_name: str | None = field(default=None, metadata={"help": "Its configuration, such as forget10."})
    forget_split: str = field(default="train", metadata={"help": "Its split. Slices such as train[:40] work."})
    holdout_data: str = field(
        default="", metadata={"help": "Rows like the forget set's that the model never saw. Required."}
    )
    holdout_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    holdout_split: str = field(default="train", metadata={"help": "Its split. Slices such as train[:40] work."})
    ds_size: int | None = field(default=300, metadata={"help": "How many rows of each set are scored."})
    eval_batch_size: int = field(default=32, metadata={"help": "Examples in a forward pass."})
    reference_model: str | None = field(
        default=None, metadata={"help": "Add the reference attack, with this other model that has the same tokenizer."}
    )
    gradnorm: bool = field(default=False, metadata={"help": "Add the gradient-norm attack, for a backward pass."})
    retrain_log: str | None = field(
        default=None,
        metadata={"help": "This command's log of a model trained without the forget set, for PrivLeak."},
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return [
            *missing(self, ("forget_data", "holdout_data")),
            *below(self, {"ds_size": 1, "eval_batch_size": 1}, "nothing would be scored"),
        ]
