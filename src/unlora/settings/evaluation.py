"""What is evaluated, on which data, and where the result goes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from unlora.common.errors import Problem
from unlora.common.files import unwritable_problems
from unlora.settings.checks import at_least, missing, value_problems
from unlora.settings.data import UNSEEN, ForgetData, HoldoutData, RetainData
from unlora.settings.model import ModelConfig
from unlora.settings.names import BENCHMARKS, name_problems
from unlora.settings.setting import setting

_SOME = at_least(1, "nothing would be evaluated")
_RANGES = {
    **dict.fromkeys(("ds_size", "eval_batch_size", "max_new_tokens", "limit", "batch_size"), _SOME),
    "num_fewshot": at_least(0, "the number of examples cannot be negative"),
}


# Suffixes of open-unlearning's log files: all values, and only the aggregated values.
EVAL, SUMMARY = "_EVAL.json", "_SUMMARY.json"
_RETRAINED = "Model trained without the forget set, or its log of the same evaluation (.json), to compare with."


def summary_file(log: str) -> str | None:
    """Return the file of aggregated values next to a log in open-unlearning's format, or None for another log."""
    return log.removesuffix(EVAL) + SUMMARY if log.endswith(EVAL) else None


def file_problems(argument: str, log: str) -> list[Problem]:
    """Return a problem for each existing file that a new log, or its file of aggregated values, would overwrite."""
    files = [log, *filter(None, [summary_file(log)])]
    used = [file for file in files if os.path.exists(file)]
    return [Problem(argument, file, "it is already in use", "name a new file") for file in used]


def is_log(name: str) -> bool:
    """Return whether a retrained model is given by a log of its evaluation, and not by the model itself."""
    return name.endswith(".json")


def log_problems(retrained: str | None) -> list[Problem]:
    """Check that the log of a retrained model exists, if it is given by a log."""
    if retrained is None or not is_log(retrained) or os.path.isfile(retrained):
        return []
    return [Problem("retrained", retrained, "there is no such file", "name a log (.json), or the retrained model")]


@dataclass
class SampleSettings:
    """How much of each set is evaluated, and in which batches."""

    ds_size: int | None = setting(
        300,
        "Maximum number of answers of each set, starting with the first (for plain text, of chunks). A conversation "
        "may have several answers.",
    )
    eval_batch_size: int | None = setting(
        None,
        "Maximum number of examples in a forward pass. Defaults to as many as fit a GPU, or 32 on a CPU.",
    )

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return value_problems(self, _RANGES)


@dataclass
class EvalSettings(SampleSettings):
    """How much is evaluated, and how."""

    max_new_tokens: int = setting(200, "Maximum number of tokens of a generated answer.")


@dataclass
class TofuSettings(EvalSettings):
    """What is evaluated: sets in TOFU's schema."""

    eval_data: str | None = setting(
        None,
        "Folder or dataset on the Hugging Face Hub in TOFU's schema. Defaults to the forget and retain sets.",
    )
    eval_forget_name: str = setting("forget10_perturbed", "Forget configuration of eval_data.")
    eval_retain_name: str = setting("retain_perturbed", "Retain configuration of eval_data.")
    eval_real_authors_name: str = setting(
        "real_authors_perturbed", "Configuration of eval_data with real authors, or none."
    )
    eval_world_facts_name: str = setting(
        "world_facts_perturbed", "Configuration of eval_data with general facts, or none."
    )
    eval_holdout_name: str = setting(
        "none",
        "Configuration of eval_data with rows that no model was trained on, or none. With it, the evaluation includes "
        "membership inference.",
    )


@dataclass
class OwnSetsSettings(RetainData, ForgetData, TofuSettings):
    """The user's own sets: the forget and retain set, or a dataset in TOFU's schema."""

    forget_data: str = setting("", "The forget set, if no benchmark is named.")
    retain_data: str = setting("", "The retain set, if no benchmark is named.")
    eval_data: str | None = setting(
        None, "Folder or dataset on the Hugging Face Hub in TOFU's schema, in place of forget_data and retain_data."
    )

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        named = self.forget_data or self.retain_data
        found = super().problems()
        if not (self.eval_data or named):
            reason, fix = "there is nothing to evaluate", "name forget_data, retain_data or both, or eval_data"
            found.append(Problem("forget_data", self.forget_data, reason, fix))
        if self.eval_data and named:
            reason = "forget_data and retain_data also name the evaluated sets"
            found.append(Problem("eval_data", self.eval_data, reason, "name either eval_data or the two sets"))
        return found


@dataclass
class EvalConfig(TofuSettings):
    """What is evaluated, on the model before and after unlearning."""

    retrained: str | None = setting(None, f"{_RETRAINED} Forget quality needs it.")
    original_log: str | None = setting(
        None, "Log of the same evaluation of the model before this request, if you have one already."
    )

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [*super().problems(), *log_problems(self.retrained)]


@dataclass
class TargetConfig:
    """What to evaluate, and where the result goes."""

    adapter: str | None = setting(
        None, "Folder of a PEFT adapter to load on the model. It replaces an adapter that is named as the model."
    )
    log: str = setting("", "New file for the result. Required.")

    def target_problems(self, model: ModelConfig) -> list[Problem]:
        """Check everything that can be checked before anything is loaded."""
        problems = missing(self, ("log",), fix="name a new file")
        if model.on is not None and self.adapter is not None:
            reason = "that run's own adapter is evaluated, which already includes all earlier requests"
            problems.append(Problem("on", model.on, reason, "name either on or adapter"))
        if self.log:
            problems += file_problems("log", self.log) or unwritable_problems(Path(self.log), "log")
        return problems

    def adapted(self, model: ModelConfig) -> bool:
        """Return whether the evaluated model has an adapter. Without one it is the original model."""
        return self.adapter is not None or model.on is not None


@dataclass
class ReportedConfig(TargetConfig):
    """What to evaluate, with the result in the evaluated run by default, where its report finds it."""

    log: str = setting("", "New file for the result. Required without --on; with it, defaults to a file in that run.")

    def log_in_run(self, model: ModelConfig, name: str) -> None:
        """Put the log into the evaluated run, where its report looks for it, unless the user named a file."""
        if model.on is not None and not self.log:
            self.log = str(Path(model.on) / name)


@dataclass
class EvaluateConfig(ReportedConfig):
    """What to evaluate, on which benchmark, and what to compare it with."""

    benchmark: str | None = setting(
        None,
        "The benchmark: see `unlora ls benchmarks`. Defaults to your own sets: forget_data and retain_data, or "
        "eval_data.",
    )
    log: str = setting(
        "",
        "New file for the result. Required without --on; with it, defaults to a file in that run. "
        "Without a model, the existing log whose numbers are shown.",
    )
    convert: str | None = setting(
        None,
        "Convert the log to this new file: `*_EVAL.json` is written in open-unlearning's format, with `*_SUMMARY.json` "
        "next to it, and any other name in ours.",
    )
    retrained: str | None = setting(None, _RETRAINED)

    def problems(self) -> list[Problem]:
        """Check that the benchmark exists."""
        return [] if self.benchmark is None else name_problems("benchmark", self.benchmark, BENCHMARKS)

    def retrained_problems(self) -> list[Problem]:
        """Check that the retrained model's log exists, if one is named."""
        return log_problems(self.retrained)


class LogConfig(EvaluateConfig):
    """An existing log whose numbers are shown, without a model."""

    def problems(self) -> list[Problem]:
        """Check that a log is named, and that no setting needs a model."""
        problems = super().problems() + missing(self, ("log",), fix="name an existing log, or a model and a new file")
        if self.log and not os.path.isfile(self.log):
            problems.append(Problem("log", self.log, "there is no such file", "check the path"))
        if self.adapter is not None:
            problems.append(Problem("adapter", self.adapter, "no model is named", "add --model_name_or_path"))
        return [*problems, *self.retrained_problems()]


@dataclass
class BenchmarkSettings(SampleSettings):
    """The data of a benchmark, and how much of it is evaluated."""

    data: str = setting(
        "",
        "The benchmark's data: a folder or a dataset on the Hugging Face Hub. Required for a benchmark that takes it.",
    )
    eval_batch_size: int = setting(8, "Number of texts in a forward pass. MUSE's texts may have thousands of tokens.")

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [*missing(self, ("data",)), *super().problems()]


@dataclass
class TaskSettings:
    """Which tasks of lm-evaluation-harness are evaluated, and how much of each."""

    tasks: list[str] = setting(
        [], "Names of tasks, groups or tags (wmdp_bio wmdp_cyber mmlu), or YAML files. Required."
    )
    include_path: str | None = setting(None, "Folder of your own task YAML files.")
    num_fewshot: int = setting(0, "Number of answered examples before each question.")
    limit: int | None = setting(None, "Maximum number of questions of each task.")
    batch_size: int = setting(8, "Number of questions in a forward pass.")

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        problems = missing(self, ("tasks",))
        if self.include_path is not None and not os.path.isdir(self.include_path):
            problems.append(Problem("include_path", self.include_path, "there is no such folder", "check the path"))
        return [*problems, *value_problems(self, _RANGES)]


@dataclass
class MembershipConfig(HoldoutData, ForgetData, SampleSettings, ReportedConfig):
    """Which sets are compared, and by which attacks."""

    holdout_data: str | None = setting(None, f"{UNSEEN} Required.")
    reference_model: str | None = setting(
        None, "Add the reference attack, which compares with this other model. It must have the same tokenizer."
    )
    gradnorm: bool = setting(False, "Add the gradient-norm attack, which costs a backward pass.")
    parameter_gradnorm: bool = setting(
        False,
        "Add open-unlearning's gradient-norm attack (mia_gradnorm). It costs a separate backward pass for each "
        "example, and memory for the gradient of every parameter.",
    )
    min_k: list[int] = setting([20, 40], "The percentages k of Min-K% and Min-K%++.")
    retrained: str | None = setting(
        None, "Log of the same command for a model trained without the forget set. PrivLeak needs it."
    )

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        reason, fix = "each is a percentage of the tokens", "give numbers from 1 to 100, each once"
        wrong = not self.min_k or len(set(self.min_k)) < len(self.min_k) or not all(1 <= k <= 100 for k in self.min_k)
        percents = [Problem("min_k", self.min_k, reason, fix)] if wrong else []
        return [*missing(self, ("forget_data", "holdout_data")), *percents, *super().problems()]
