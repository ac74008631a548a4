"""What a user can set beside training: model, data, importance, evaluation, tasks, stopping, attacks; with help."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.errors import InputError, Problem, not_finite, unknown_name
from unlora.hashes import ADAPTER_WEIGHTS
from unlora.sharding import sharding_problems

if TYPE_CHECKING:
    from unlora.data.sources import Record
    from unlora.evals import EvalSettings

# The files of a run's folder that a later command reads.
CONFIG, ADAPTER, MEMBERSHIP = "config.yaml", "adapter", "membership.json"
# Model -> its log of MUSE's or the harness's command.
SCORES = {"original": "scores_before.json", "unlearned": "scores_after.json", "retrained": "scores_retrained.json"}
# What each choice compares.
STOP_STATISTICS = {"auto": ("nll", "truth_ratio"), "nll": ("nll",), "truth_ratio": ("truth_ratio",)}
PROMPT_FORMATS = ("auto", "base", "tofu", "chat")
# The sets that a whole evaluation log of each benchmark has.
BENCHMARK_SETS = {
    "tofu": ("retain", "real_authors", "world_facts", "forget"),
    "persona": ("retain", "world_facts", "forget"),
}
GRANULARITIES = ("example", "batch")
# Settings that moments of single examples do not depend on.
OF_BATCHES = ("importance_batch_size", "forget_passes")
QUANT_TYPES = ("nf4", "fp4")
# ε of the importance ratio, if not given, for each kind of smoothing.
SMOOTHING = {"relative": 0.1, "absolute": 1e-5, "per_token": 1e-5}


@dataclass
class ModelConfig:
    """Which model, and how it is loaded."""

    model_name_or_path: str = field(metadata={"help": "The model: a folder, or its name on the Hugging Face hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})
    attn_implementation: str | None = field(default=None, metadata={"help": "As in transformers: sdpa, eager, ..."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    load_in_8bit: bool = field(
        default=False,
        metadata={"help": "Round the base's linear layers to 8 bits (needs unlora[quantised])."},
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Round the base's linear layers to 4 bits (needs unlora[quantised])."}
    )
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"help": "Kind of the 4 bits: nf4 or fp4."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Round the scales of the 4 bits too."})
    shard_base: str | None = field(
        default=None,
        metadata={
            "help": "Spread the frozen base over the processes of `accelerate launch`: fsdp (PyTorch's FSDP2), or the "
            "path of a DeepSpeed ZeRO-3 configuration (needs unlora[deepspeed])."
        },
    )
    on: str | None = field(
        default=None,
        metadata={
            "help": "Run folder of an earlier request to go on from: its adapter stays, the exported one holds both."
        },
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        dtypes = ("auto", "float32", "bfloat16", "float16")
        problems = [] if self.dtype in dtypes else [unknown_name("dtype", self.dtype, dtypes)]
        problems += self._problems_of_weights()
        return problems if self.on is None else [*problems, *self._problems_of_run(self.on)]

    @property
    def quantised(self) -> str | None:
        """The flag that has the base quantised, if one does."""
        return next((name for name in ("load_in_8bit", "load_in_4bit") if getattr(self, name)), None)

    def _problems_of_weights(self) -> list[Problem]:
        problems = []
        if self.bnb_4bit_quant_type not in QUANT_TYPES:
            problems.append(unknown_name("bnb_4bit_quant_type", self.bnb_4bit_quant_type, QUANT_TYPES))
        if self.load_in_8bit and self.load_in_4bit:
            problems.append(Problem("load_in_4bit", True, "load_in_8bit is given too", "leave one of them out"))
        if self.quantised and self.shard_base:
            reason = "quantised weights are not sharded"
            problems.append(Problem("shard_base", self.shard_base, reason, f"leave it or {self.quantised} out"))
        if self.shard_base:
            problems += sharding_problems(self.shard_base)
            if int(os.environ.get("WORLD_SIZE", 1)) < 2:
                fix = "start several with `accelerate launch`, or leave it out"
                problems.append(Problem("shard_base", self.shard_base, "there is only one process", fix))
        if self.quantised and find_spec("bitsandbytes") is None:
            fix = "pip install 'unlora[quantised]'"
            problems.append(Problem(self.quantised, True, "bitsandbytes is not installed", fix))
        return problems

    def _problems_of_run(self, run: str) -> list[Problem]:
        if not (Path(run) / ADAPTER / ADAPTER_WEIGHTS).is_file():
            reason, fix = "it has no exported adapter", "name the folder of an `unlora unlearn` that has finished"
            return [Problem("on", run, reason, fix)]
        values = {name: getattr(self, name) for name in ("model_name_or_path", "model_revision")}
        theirs = run_settings(run)
        return [
            Problem(name, value, f"the adapter in {run} is for {theirs.get(name)!r}", "leave it out")
            for name, value in values.items()
            if value != theirs.get(name) and not _same_folder(value, str(theirs.get(name)))
        ]


def run_settings(run: str) -> dict[str, Any]:
    """The model's and the text's settings of an earlier run, which a request on top of it takes over."""
    names = {*ModelConfig.__dataclass_fields__, *TextConfig.__dataclass_fields__} - {"on"}
    return {name: value for name, value in saved_settings(run).items() if name in names}


def saved_settings(run: str, argument: str = "on") -> dict[str, Any]:
    """All settings of an earlier run, one flat mapping of flags."""
    import yaml

    try:
        return dict(yaml.safe_load((Path(run) / CONFIG).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        reason = f"its {CONFIG} cannot be read ({error})"
        raise InputError(Problem(argument, run, reason, "name the folder of an earlier `unlora unlearn`")) from error


def check_finished(run: str) -> None:
    """Raises `InputError` unless the folder is that of a run with an adapter."""
    if not (Path(run) / ADAPTER / ADAPTER_WEIGHTS).is_file():
        reason, fix = "it has no exported adapter", "name the folder of an `unlora unlearn` that has finished"
        raise InputError(Problem("RUN", run, reason, fix))


def settings_of(kind: Any, values: Mapping[str, Any]) -> Any:
    """One of the dataclasses here, from those of the settings that are its own."""
    return kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(one).resolve() == Path(other).resolve()


@dataclass
class TextConfig:
    """How records become tokens."""

    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "base ('Question: ... Answer: ...'), tofu (the same, 'Answer:' counting as part of the answer), "
            "chat (the tokenizer's template), or auto."
        },
    )
    max_length: int = field(default=512, metadata={"help": "Most tokens of an example; plain text is cut into chunks."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = []
        if self.prompt_format not in PROMPT_FORMATS:
            problems.append(unknown_name("prompt_format", self.prompt_format, PROMPT_FORMATS))
        if self.max_length < 2:
            problems.append(Problem("max_length", self.max_length, "nothing can be predicted", "use at least 2"))
        return problems


@dataclass
class DataConfig(TextConfig):
    """What to forget and what to keep. Each set is a file, a folder of `<name>.jsonl`, or a dataset on the hub."""

    forget_data: str = field(default="", metadata={"help": "The forget set: file, folder or hub dataset. Required."})
    forget_name: str | None = field(default=None, metadata={"help": "Its configuration, such as forget10."})
    forget_split: str = field(default="train", metadata={"help": "Its split; slices such as train[:40] work."})
    alternate_key: str | None = field(
        default=None,
        metadata={
            "help": "Column of the forget rows with the answer to give instead, for idk and dpo; "
            "built-in refusals if not given."
        },
    )
    retain_data: str = field(default="", metadata={"help": "The retain set: file, folder or hub dataset. Required."})
    retain_name: str | None = field(default=None, metadata={"help": "Its configuration, such as retain90."})
    retain_split: str = field(default="train", metadata={"help": "Its split; slices such as train[:160] work."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the retain set as a stream of unknown length, and only as much of it as the run can use."
        },
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Rows of the stream among which each next one is drawn (streaming)."}
    )
    max_chunks: int | None = field(
        default=None, metadata={"help": "Chunks of a plain text that are used, from its beginning; all if not given."}
    )
    min_characters: int = field(
        default=0, metadata={"help": "Plain texts of fewer characters, such as headings, are left out."}
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        missing = [name for name in ("forget_data", "retain_data") if not getattr(self, name)]
        reason, fix = "no dataset is named", "give a file, a folder or a hub dataset"
        problems = [*super().problems(), *(Problem(name, "", reason, fix) for name in missing)]
        if self.max_chunks is not None and self.max_chunks < 1:
            problems.append(Problem("max_chunks", self.max_chunks, "no text would be left", "use at least 1"))
        if self.min_characters < 0:
            problems.append(Problem("min_characters", self.min_characters, "no text is that short", "use 0 or more"))
        if self.shuffle_buffer_size < 1:
            reason = "there would be nothing to draw from"
            problems.append(Problem("shuffle_buffer_size", self.shuffle_buffer_size, reason, "use at least 1"))
        return problems


@dataclass
class ImportanceConfig:
    """How the importance is estimated."""

    init: str = field(default="vila", metadata={"help": "How the adapter is initialised: see `unlora ls`."})
    smoothing: str = field(
        default="relative",
        metadata={
            "help": "ε of F_forget / (ε + F_retain): relative to the layer's mean F_retain, absolute, or per_token "
            "(absolute, after dividing by the tokens a second time, as in the authors' code)."
        },
    )
    epsilon: float | None = field(default=None, metadata={"help": "ε; 0.1 (relative) or 1e-5 (others) if not given."})
    centred: bool | None = field(
        default=None, metadata={"help": "Variance (true) or mean square (false) of gradients; as the init defines it."}
    )
    normalised: bool = field(
        default=True,
        metadata={"help": "Scale each layer's importance to mean row sum 1: A and B start about equally large."},
    )
    moments_per: str = field(
        default="example", metadata={"help": "Gradient moments over examples, or over batches as in the authors' code."}
    )
    forget_passes: int = field(
        default=1, metadata={"help": "Passes over the forget set in newly drawn batches (moments_per=batch)."}
    )
    probe_offset: bool = field(
        default=True,
        metadata={"help": "Cancel the random factors' product; false lets it disturb the model, as the authors do."},
    )
    sigma: float = field(
        default=0.05, metadata={"help": "Deviation of the random factors that gradients are taken at."}
    )
    importance_seed: int = field(default=42, metadata={"help": "Seed of those factors and of the retain sample."})
    retain_samples: int | None = field(
        default=None,
        metadata={
            "help": "Retain examples in the estimate; if not given, up to 10 times the forget examples, and for vila "
            "no more than retain_convergence asks for."
        },
    )
    retain_convergence: float | None = field(
        default=0.98,
        metadata={
            "help": "Estimated correlation (Spearman's, of rows) with the importance from endless retain data at which "
            "no more examples are taken; null takes all."
        },
    )
    importance_batch_size: int | None = field(
        default=None,
        metadata={"help": "Examples of a backward pass; 16, or 4 on a CPU, if not given."},
    )
    importance_file: str | None = field(
        default=None, metadata={"help": "Read the importance from this file, made by `unlora importance`."}
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        from unlora.initialisers import INITIALISERS  # here, because it loads torch

        names = (("init", INITIALISERS), ("smoothing", SMOOTHING), ("moments_per", GRANULARITIES))
        problems = [
            unknown_name(n, getattr(self, n), options) for n, options in names if getattr(self, n) not in options
        ]
        problems += not_finite(self)
        positive = ("epsilon", "sigma", "retain_samples", "importance_batch_size", "forget_passes")
        values = {name: getattr(self, name) for name in positive}
        problems += [
            Problem(name, value, "it must be positive", "use a positive value")
            for name, value in values.items()
            if value is not None and value <= 0
        ]
        if self.retain_convergence is not None and not 0 < self.retain_convergence < 1:
            reason = "it is a correlation that a sample can have with endless data"
            problems.append(Problem("retain_convergence", self.retain_convergence, reason, "use 0.98, or null"))
        elif self.stops_at is None and self.retain_convergence not in (None, type(self).retain_convergence):
            other = "moments_per" if self.moments_per == "batch" else "retain_samples"
            reason, fix = f"{other}={getattr(self, other)!r} takes the whole sample", f"leave it or {other} out"
            problems.append(Problem("retain_convergence", self.retain_convergence, reason, fix))
        if self.forget_passes > 1 and self.moments_per == "example":
            reason = "the gradients of single examples are the same in each pass"
            problems.append(Problem("forget_passes", self.forget_passes, reason, "use 1, or moments_per='batch'"))
        if self.moments_per == "batch" and self.importance_batch_size is None:
            reason = "the moments are of the gradients of whole batches, and depend on their size"
            problems.append(Problem("importance_batch_size", None, reason, "name it; the authors take 4"))
        if self.importance_file and self.init in INITIALISERS and INITIALISERS[self.init].centred is None:
            reason = f"{self.init!r} measures no importance"
            problems.append(Problem("importance_file", self.importance_file, reason, "leave it out"))
        elif self.importance_file and not Path(self.importance_file).is_file():
            problems.append(Problem("importance_file", self.importance_file, "no such file", "check the path"))
        return problems

    def unread(self) -> list[str]:
        """The settings that the user has changed and the initialiser does not read; a seed says nothing of the user."""
        from unlora.initialisers import INITIALISERS

        unread = [*self.__dataclass_fields__.keys() - {"init", "importance_seed", *INITIALISERS[self.init].reads}]
        return sorted(name for name in unread if getattr(self, name) != getattr(type(self), name))

    def batch_size(self, device: str) -> int:
        """Examples of a backward pass on that kind of device: a CPU is as fast on few, in a fraction of the memory."""
        return self.importance_batch_size or (4 if device == "cpu" else 16)

    @property
    def stops_at(self) -> float | None:
        """The stability of the importance at which the retain pass ends; None where the whole sample is measured."""
        return self.retain_convergence if self.moments_per == "example" and self.retain_samples is None else None

    def ratio(self) -> dict[str, Any]:
        """How two informations become an importance, as `relative_importance` takes it; normalised is only its use."""
        return {name: getattr(self, name) for name in ("smoothing", "epsilon", "centred")}

    def estimate(self) -> dict[str, object]:
        """The settings that change what is measured, as they enter the key of the importance file."""
        from unlora.initialisers import INITIALISERS

        unread = {"importance_file", "normalised", *(OF_BATCHES if self.moments_per == "example" else ())}
        names = [name for name in ("init", *INITIALISERS[self.init].reads) if name not in unread]
        return {name: getattr(self, name) for name in names}


@dataclass
class EvalConfig:
    """What is evaluated after unlearning, on the model before and after."""

    eval_data: str | None = field(
        default=None,
        metadata={"help": "Folder or hub dataset in TOFU's schema; forget and retain set themselves if not given."},
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
        metadata={"help": "Evaluation log of the model before this request, where there is one already."},
    )
    ds_size: int | None = field(default=300, metadata={"help": "First examples of each set that are evaluated."})
    max_new_tokens: int = field(default=200, metadata={"help": "Most tokens of a generated answer."})
    eval_batch_size: int = field(default=32, metadata={"help": "Examples of a forward pass."})

    def sets(self) -> dict[str, list[Record]]:
        """The sets of `eval_data`, as `unlora.evals.evaluate` takes them."""
        from unlora.evals import load_sets

        assert self.eval_data is not None
        names = {
            name: getattr(self, f"eval_{name}_name") for name in ("forget", "retain", "real_authors", "world_facts")
        }
        return load_sets(self.eval_data, {name: config for name, config in names.items() if config != "none"})

    def settings(self) -> EvalSettings:
        """How much is evaluated, as `unlora.evals.evaluate` takes it."""
        from unlora.evals import EvalSettings

        return EvalSettings(self.ds_size, self.max_new_tokens, self.eval_batch_size)

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        values = {name: getattr(self, name) for name in ("ds_size", "max_new_tokens", "eval_batch_size")}
        return [
            Problem(name, value, "nothing would be evaluated", "use at least 1")
            for name, value in values.items()
            if value is not None and value < 1
        ]


@dataclass
class StoppingConfig:
    """When unlearning stops before its last epoch; without `holdout_data` it does not."""

    holdout_data: str | None = field(
        default=None,
        metadata={"help": "Rows like the forget set's that the model never saw; training stops when both look alike."},
    )
    holdout_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    holdout_split: str = field(default="train", metadata={"help": "Its split; slices such as train[:40] work."})
    stop_every: int = field(default=5, metadata={"help": "Optimiser steps between two comparisons."})
    stop_statistic: str = field(
        default="auto",
        metadata={"help": "What is compared: nll, truth_ratio, or auto (both where rows have wrong answers)."},
    )
    stop_auc: float = field(
        default=0.5,
        metadata={"help": "Stop when a forget example is more likely than an unseen one at most this often."},
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = not_finite(self)
        if self.holdout_data is None:
            reason, fix = "there is no holdout_data to compare with", "name holdout_data, or leave it out"
            values = {name: getattr(self, name) for name in self.__dataclass_fields__}
            problems += [
                Problem(name, value, reason, fix)
                for name, value in values.items()
                if value != getattr(type(self), name)
            ]
        if self.stop_statistic not in STOP_STATISTICS:
            problems.append(unknown_name("stop_statistic", self.stop_statistic, STOP_STATISTICS))
        if self.stop_every < 1:
            problems.append(Problem("stop_every", self.stop_every, "there would be no check", "use at least 1"))
        if not 0 < self.stop_auc < 1:
            reason = "it is the share of pairs in which the forget example is the more likely one"
            problems.append(Problem("stop_auc", self.stop_auc, reason, "use a value near 0.5"))
        return problems


@dataclass
class AttackConfig:
    """What is tried to bring the forget set back, and how hard."""

    attacks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Some of relearn, quantise, prefix, and for questions paraphrase, fewshot; all that the data allow "
            "if not given."
        },
    )
    retrained: str | None = field(
        default=None,
        metadata={"help": "Model trained without the forget set (folder or hub): what the unlearned one should equal."},
    )
    seeds: int = field(default=3, metadata={"help": "Random draws of each attack that draws; mean and standard error."})
    relearn_percent: list[float] = field(
        default_factory=lambda: [1.0, 5.0, 10.0, 20.0],
        metadata={"help": "Percent of the forget set that the attacker has (at least 1 row); the rest is measured."},
    )
    relearn_steps: int = field(default=50, metadata={"help": "Optimiser steps of the attacker."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "The attacker's learning rate; the run's own if not given."}
    )
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows of one of the attacker's steps."})
    r: int = field(default=8, metadata={"help": "Rank of the attacker's LoRA adapter (alpha is twice that)."})
    prefix_percent: list[float] = field(
        default_factory=lambda: [25.0, 50.0],
        metadata={"help": "Percent of the tokens of each answer, or chunk of text, that are given, not measured."},
    )
    given_tokens: int = field(
        default=32,
        metadata={"help": "Tokens of each chunk of plain text that are given, at most half; the rest is measured."},
    )
    shots: int = field(default=3, metadata={"help": "Forget rows with answers that stand before each question."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        from unlora.evals.attacks import ATTACKS  # here, because it loads torch

        problems = [unknown_name("attacks", name, ATTACKS) for name in self.attacks or () if name not in ATTACKS]
        problems += not_finite(self)
        positive = ("seeds", "relearn_steps", "learning_rate", "per_device_train_batch_size", "r", "shots")
        values = {name: getattr(self, name) for name in (*positive, "given_tokens")}
        problems += [
            Problem(name, value, "it must be positive", "use a positive value")
            for name, value in values.items()
            if value is not None and value <= 0
        ]
        for name in ("relearn_percent", "prefix_percent"):
            problems += [
                Problem(
                    name, value, "nothing would be left to measure, or nothing is given", "use values from 0 to 100"
                )
                for value in getattr(self, name)
                if not 0 < value < 100
            ]
        return problems


@dataclass
class TaskSettings:
    """Which tasks, and how much of them."""

    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of tasks, groups or tags (wmdp_bio wmdp_cyber mmlu), or YAML files. Required."},
    )
    include_path: str | None = field(default=None, metadata={"help": "Folder of your own task YAML files."})
    num_fewshot: int = field(default=0, metadata={"help": "Answered examples before each question."})
    limit: int | None = field(default=None, metadata={"help": "First questions of each task that are asked."})
    batch_size: int = field(default=8, metadata={"help": "Questions of a forward pass."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = [] if self.tasks else [Problem("tasks", "", "it is required", "name it")]
        if self.include_path is not None and not Path(self.include_path).is_dir():
            problems.append(Problem("include_path", self.include_path, "no such folder", "check the path"))
        least = {"num_fewshot": 0, "limit": 1, "batch_size": 1}
        values = {name: getattr(self, name) for name in least}
        return problems + [
            Problem(name, value, "it is too small", f"use at least {least[name]}")
            for name, value in values.items()
            if value is not None and value < least[name]
        ]


@dataclass
class ExportConfig:
    """What is made of a run, and where it goes."""

    output_dir: str = field(default="", metadata={"help": "Where it is written: a new folder. Required."})
    merge: bool = field(
        default=False,
        metadata={"help": "The whole model with the adapter merged into its weights, in place of the adapter."},
    )
    max_rank: int | None = field(
        default=None, metadata={"help": "Most ranks of the adapter, by truncated SVD; as in the run if not given."}
    )
    card: bool = field(default=True, metadata={"help": "Write a model card with the run's metrics, README.md."})
    base_model: str | None = field(
        default=None,
        metadata={"help": "What the base is called on the hub, for others to find it; needed where it is a folder."},
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Upload the folder to this repository on the hub (owner/name)."}
    )
    private: bool = field(default=True, metadata={"help": "Whether that repository is private."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        problems = [] if self.output_dir else [Problem("output_dir", "", "it is required", "name a new folder")]
        if self.max_rank is not None and self.max_rank < 1:
            reason, fix = "an adapter has at least rank 1", "use a positive rank, or leave it out"
            problems.append(Problem("max_rank", self.max_rank, reason, fix))
        if self.max_rank is not None and self.merge:
            problems.append(Problem("max_rank", self.max_rank, "a merged model has no adapter", "leave it out"))
        return problems
