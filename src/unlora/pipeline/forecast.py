"""A forecast of a run before it starts: rows, tokens, updates, and estimates of time and memory.

The time is extrapolated from a few trial passes by the number of tokens. It is only an estimate: texts of other
lengths, other work on the machine and training that ends early change the time that the run takes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from unlora.common.progress import tell
from unlora.data import Batch, Example, TextFormat, padding_id
from unlora.data.duplicates import near_duplicates
from unlora.data.encoding import count_labels
from unlora.evals.questions import read_questions
from unlora.evals.scoring import CPU_ROWS, evaluating
from unlora.evals.tofu import text_count
from unlora.importance import INITIALISERS
from unlora.losses.table import LOSSES, RETAIN_LOSSES
from unlora.models.batches import run_in_batches
from unlora.models.forward import causal_lm, labelled_tokens
from unlora.models.memory import batch_limit
from unlora.pipeline.job import Job
from unlora.teachers.people import names_of
from unlora.training.finetune import FinetuneConfig
from unlora.training.taught import LEAST_STEPS, most_steps

logger = logging.getLogger(__name__)
# The cost of a forward and a backward pass in forward passes: a backward pass costs about two.
_TRAINED = 3
# Values that a layer keeps for the backward pass, per token and hidden unit (Korthikanti et al. 2022: 34 bytes in 16
# bits), and the number of copies of the logits that a loss makes.
_KEPT, _LOGITS = 17, 3
# Bytes of a trained weight, its gradient and Adam's two moments, in float32.
_TRAINING_BYTES = 16
# The maximum number of near duplicates that are listed.
_SHOWN = 3
# The maximum number of examples of each set in the trial passes.
_TRIAL = 8


@dataclass(frozen=True)
class Forecast:
    """What a run will do.

    Args:
        rows: {set: number of rows}.
        tokens: {set: number of tokens}.
        updates: lower and upper bound on the number of optimiser steps. They differ if training may end early.
        seconds: {stage: estimated lower and upper bound on its seconds}.
        memory_bytes: estimated memory on the model's device, in bytes.
        near_duplicates: (forget, retain) pairs of row numbers whose texts are nearly the same.
        names: the people that the forget set seems to be about, if the teacher needs to know them.
        compared: descriptions of what the verdict will be based on.
    """

    rows: dict[str, int]
    tokens: dict[str, int]
    updates: tuple[int, int]
    seconds: dict[str, tuple[float, float]]
    memory_bytes: int
    near_duplicates: list[tuple[int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)

    @property
    def whole(self) -> tuple[float, float]:
        """Lower and upper bound on the seconds of all stages together."""
        least, most = (sum(ends) for ends in zip(*self.seconds.values(), strict=True))
        return least, most

    def announcement(self) -> str:
        """Return a sentence on the expected time of the run and of its stages."""
        parts = ", ".join(f"{name} {_duration(*ends)}" for name, ends in self.seconds.items())
        least, most = self.updates
        steps = f"{most} updates" if least == most else f"{least} to {most} updates, until the goal is reached"
        return f"expected time: {_duration(*self.whole)}, an estimate from a trial: {parts} ({steps})"

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def forecast(job: Job) -> Forecast:
    """Return the forecast of a job. All processes must call this, because it runs the model."""
    sets = {"forget": job.forget, "retain": job.retain}
    rows = {"forget": len(job.rows.used_forget), "retain": len(job.rows.used_retain)}
    rows |= {f"evaluated {name}": len(part) for name, part in _evaluated(job).items()}
    if job.rows.holdout is not None:
        rows["holdout"] = len(job.rows.holdout)
    updates = planned_updates(job)
    return Forecast(
        rows=rows,
        tokens={name: _tokens(part) for name, part in sets.items()},
        updates=updates,
        seconds=_seconds(job, updates),
        memory_bytes=_memory(job),
        near_duplicates=near_duplicates(job.rows.forget, job.rows.retain),
        names=_names(job),
        compared=_compared(job),
    )


def _evaluated(job: Job) -> dict[str, Sequence[Any]]:
    """Return {evaluated set: its questions}, as they will be asked.

    Raises:
        InputError: rows that cannot be evaluated.
    """
    size = job.request.evaluation.ds_size
    return {name: read_questions(name, rows, size) for name, rows in job.sets.items()}


def planned_updates(job: Job) -> tuple[int, int]:
    """Return a lower and an upper bound on the number of optimiser steps."""
    args = job.request.args
    per_pass = math.ceil(len(job.trained) / _pairs_per_update(args))
    if args.until_taught:
        most = args.max_steps if args.max_steps > 0 else most_steps(per_pass)
        return min(LEAST_STEPS, most), most
    most = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_pass)
    return (min(job.request.stopping.stop_every, most) if job.unseen else most), most


def _seconds(job: Job, updates: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Return {stage: lower and upper bound on its seconds}."""
    args, config = job.request.args, job.request.importance
    speed, step = _trial(job)
    found: dict[str, tuple[float, float]] = {}
    if job.sets:
        once = _evaluation(job, speed, step)
        evaluations = 1 + (job.original_log is None) + (job.retrained_model is not None)
        least, most = (evaluations + _evaluations_in_training(job, number) for number in updates)
        found["evaluation"] = (least * once, most * once)
    if INITIALISERS[config.init].uses_data:
        forget = config.forget_passes * _tokens(job.forget)
        examples = min(len(job.retain), config.retain_size(len(job.forget)))
        retain = examples * _tokens(job.retain) / len(job.retain)
        found["importance"] = (_TRAINED * (forget + retain) / speed,) * 2
    loss, retain_loss = LOSSES[args.loss], RETAIN_LOSSES.get(args.chosen_retain_loss)
    passes = _TRAINED + bool(loss.needs_reference_pass or (retain_loss and retain_loss.needs_reference_pass))
    pairs = min(args.train_batch_size * args.gradient_accumulation_steps, len(job.trained))
    pair = _tokens(job.trained) / len(job.trained) + (_tokens(job.retain) / len(job.retain) if retain_loss else 0)
    update = passes * pairs * pair / speed
    found["training"] = (updates[0] * update, updates[1] * update)
    return found


def _evaluations_in_training(job: Job, updates: int) -> int:
    """Return the number of evaluations during a training with this number of updates."""
    args, count = job.request.args, 0
    if args.eval_strategy == "epoch":
        count = math.ceil(updates / math.ceil(len(job.trained) / _pairs_per_update(args)))
    elif args.eval_strategy == "steps":
        count = math.ceil(updates / (args.eval_steps if args.eval_steps >= 1 else args.eval_steps * updates))
    return count + args.eval_on_start


def _pairs_per_update(args: TrainingArguments) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def finetune_forecast(
    model: PreTrainedModel, examples: Sequence[Example], text_format: TextFormat, args: FinetuneConfig
) -> Forecast:
    """Return the forecast of a fine-tuning."""
    per_update = _pairs_per_update(args)
    steps = math.ceil(args.num_train_epochs * math.ceil(len(examples) / per_update))
    steps = args.max_steps if args.max_steps > 0 else steps
    with evaluating(model):
        speed = _reading_speed(model, examples[:_TRIAL], text_format)
    update = _TRAINED * min(per_update, len(examples)) / args.world_size * _tokens(examples) / len(examples) / speed
    trained = sum(p.numel() for p in model.parameters()) if args.r is None else _adapter_size(model, args.r)
    memory = _weights(model) + trained * _TRAINING_BYTES + _activations(model, examples, args)
    rows, tokens = {"train": len(examples)}, {"train": _tokens(examples)}
    return Forecast(rows, tokens, (steps, steps), {"training": (steps * update,) * 2}, memory)


def _trial(job: Job) -> tuple[float, float]:
    """Return the tokens per second that the model reads, and the seconds of one generation step of a batch."""
    size = min(job.request.args.per_device_train_batch_size, _TRIAL)
    examples = [*job.forget[:size], *job.retain[:size]]

    def generate() -> None:
        model = causal_lm(job.model)
        start = torch.full((len(examples), 1), examples[0]["input_ids"][0], device=model.device)
        model(input_ids=start, attention_mask=torch.ones_like(start))

    with evaluating(job.model):
        speed = _reading_speed(job.model, examples, job.text_format, job.request.evaluation.eval_batch_size)
        step = _timed(generate, job.model)
    return speed, step


def _reading_speed(
    model: nn.Module, examples: Sequence[Example], text_format: TextFormat, rows: int | None = None
) -> float:
    """Return the tokens per second that the model reads, in batches of at most `rows` of these examples."""
    seconds = 0.0

    def read(places: range, batch: Batch) -> None:
        nonlocal seconds
        seconds += _timed(lambda: labelled_tokens(model, batch), model)

    run_in_batches(read, examples, batch_limit(model, rows, on_cpu=CPU_ROWS), padding_id(text_format.tokenizer))
    return _tokens(examples) / seconds


def _timed(function: Callable[[], object], model: nn.Module) -> float:
    """Return the seconds of a call, measured after one call for warming up."""
    for _ in range(2):
        started = time.perf_counter()
        function()
        if next(model.parameters()).device.type == "cuda":
            torch.cuda.synchronize()
    return max(time.perf_counter() - started, 1e-9)


def _evaluation(job: Job, speed: float, step: float) -> float:
    """Return the seconds of evaluating one model: scoring all answers, and generating an answer to each question."""
    settings = job.request.evaluation
    asked = sum(map(len, _evaluated(job).values()))
    answers = text_count(job.sets, settings) - asked  # the rest of the count are the answers to be generated
    mean = (_tokens(job.forget) + _tokens(job.retain)) / (len(job.forget) + len(job.retain))
    longest = max(count_labels([example]) for example in job.forget)
    batches = math.ceil(asked / (settings.eval_batch_size or CPU_ROWS))
    # Evaluated rows are assumed to be as long as the rows that are trained on.
    return max(answers, asked) * mean / speed + batches * min(longest, settings.max_new_tokens) * step


def _memory(job: Job) -> int:
    """Return the bytes of weights, adapter, optimiser and activations."""
    model, args = causal_lm(job.model), job.request.args
    adapter = 2 * _adapter_size(model, args.r)  # the trained adapter and the frozen offset
    # A batch has as many retain rows as forget rows, hence the factor of 2.
    activations = 2 * _activations(model, [*job.forget, *job.retain], args)
    return _weights(job.model) + adapter * _TRAINING_BYTES + activations


def _weights(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _adapter_size(model: PreTrainedModel, rank: int) -> int:
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return rank * sum(m.in_features + m.out_features for m in linear)


def _activations(model: PreTrainedModel, examples: Sequence[Example], args: TrainingArguments) -> int:
    """Return the bytes of the activations and logits of a batch of the longest examples."""
    config = model.config.get_text_config()
    layers = 1 if args.gradient_checkpointing else getattr(config, "num_hidden_layers", 1)
    size = max(2, next(model.parameters()).element_size())
    longest = max(len(example["input_ids"]) for example in examples)
    labels = max(count_labels([example]) for example in examples)
    states = longest * layers * config.hidden_size * _KEPT * size
    return int(args.per_device_train_batch_size * (states + labels * config.vocab_size * 4 * _LOGITS))


def _names(job: Job) -> list[str]:
    """Return the names that a teacher will replace: those that the user gives, or else those that it detects."""
    if not job.request.args.has_teacher:
        return []
    if job.request.data.forget_names:
        return list(job.request.data.forget_names)
    return [" ".join(name) for name in names_of(job.rows.used_forget, job.rows.used_retain)]


def _compared(job: Job) -> list[str]:
    """Return descriptions of what the verdict will be based on."""
    found = []
    if job.retrained_log is not None:
        found.append("the log of the retrained model")
    if job.retrained_model is not None:
        found.append(f"the retrained model {job.retrained_model.model_name_or_path}")
    if job.unseen is not None:
        found.append(f"{len(job.rows.holdout or ())} unseen rows, by which training stops")
    if job.sets:
        names = ", ".join(name.replace("_", " ") for name in job.sets)
        found.append(f"the original and the unlearned model, on the sets {names}")
    return found or ["nothing: no set is evaluated"]


def _tokens(examples: Sequence[Example]) -> int:
    return sum(len(example["input_ids"]) for example in examples)


def _duration(least: float, most: float) -> str:
    """Return a range of seconds in words."""
    one, other = _in_words(least), _in_words(most)
    return other if one == other else f"{one} to {other}"


def _in_words(seconds: float) -> str:
    if seconds < 10:  # what the trial does not measure, such as writing files, takes about as long
        return "a few seconds"
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{math.ceil(count / 2**20)} MiB"


def announce(found: Forecast) -> None:
    """Tell the user how long the run will take, and warn of forget rows that the retain set would teach again."""
    tell(found.announcement())
    if found.near_duplicates:
        logger.warning(
            "%d forget rows are nearly the same as retain rows, which teach them again, such as %s",
            *(len(found.near_duplicates), _first_pairs(found)),
        )


def _first_pairs(found: Forecast) -> str:
    """Return the first few pairs of near duplicates as text."""
    return ", ".join(f"forget[{one}] and retain[{other}]" for one, other in found.near_duplicates[:_SHOWN])


def describe(found: Forecast) -> Mapping[str, str]:
    """Return a forecast as {label: text}."""
    least, most = found.updates
    alike = f"{len(found.near_duplicates)} (such as {_first_pairs(found)})" if found.near_duplicates else "none"
    return {
        "rows": ", ".join(f"{name} {count}" for name, count in found.rows.items()),
        # Rows that are in both sets have been refused before.
        **({"in both sets": "none", "nearly alike in both sets": alike} if "retain" in found.rows else {}),
        "tokens": ", ".join(f"{name} {count:,}" for name, count in found.tokens.items()),
        "updates": f"{most}" if least == most else f"{least} to {most}",
        **({"about": ", ".join(found.names)} if found.names else {}),
        "memory (estimate)": _size(found.memory_bytes),
        **({"compared": "; ".join(found.compared)} if found.compared else {}),
        "time": found.announcement(),
    }
