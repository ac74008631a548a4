"""The importance stage: which rows of which weights matter to the forget set. It is measured once and kept on disk."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from unlora.common.distributed import on_main, share
from unlora.common.errors import InputError, Problem
from unlora.common.progress import shown
from unlora.data import Batch, Example, iter_batches, padding_id
from unlora.data.batching import BatchLimit
from unlora.importance import INITIALISERS, Initialiser, Measurement
from unlora.importance.ratio import normalised_rows
from unlora.importance.sampling import retain_sample
from unlora.importance.storage import importance_key, load_importance, save_importance
from unlora.importance.table import estimate_settings
from unlora.models.memory import batch_limit, enable_checkpointing
from unlora.pipeline.job import Job
from unlora.runs.folder import IMPORTANCE
from unlora.settings import ImportanceConfig


def too_few_examples(
    config: ImportanceConfig, forget: Sequence[Example], retain: Sequence[Example]
) -> Iterator[Problem]:
    """Yield a problem for each set that gives only one gradient: its variance would be nothing but rounding error."""
    if not INITIALISERS[config.init].takes_variance(config):
        return
    size = (config.importance_batch_size or 1) if config.moments_per == "batch" else 1
    gradients = {
        "forget_data": config.forget_passes * -(-len(forget) // size),
        "retain_data": -(-min(len(retain), config.retain_samples or len(retain)) // size),
    }
    for name, count in gradients.items():
        if count < 2:
            reason = f"{config.init!r} takes the variance of gradients, which needs at least two examples or batches"
            fix = f"give at least {size + 1} examples, or use init='fila', 'pissa' or 'lora'"
            yield Problem(name, "1 gradient", reason, fix)


def importance_for(job: Job) -> dict[str, Tensor] | None:
    """Return the importance of each row of the adapted weights, or None for a plain LoRA start.

    It is read from the user's file or, in a resumed run, from the run's folder. Otherwise it is estimated and saved.
    The file holds the importance as measured, so that layers can be compared; it is normalised after reading.

    Returns:
        {module name: importance of its rows, [out]}.
    """
    config = job.request.importance
    retain = retain_sample(job.retain, config.retain_size(len(job.forget)), config.importance_seed)
    measurement = measurement_for(job, retain)
    initialiser = INITIALISERS[config.init]
    if not initialiser.uses_data:  # this takes no time, so nothing is saved
        return initialiser.row_importance(measurement)
    settings = _settings_in_key(job)
    key = importance_key(job.model, (job.forget, retain), settings)
    source = config.importance_file or (job.folder / IMPORTANCE if job.is_finished(IMPORTANCE) else None)
    if source is None:
        importance = _measured(job, initialiser, measurement)
        job.write(IMPORTANCE, lambda path: save_importance(importance, path, key, settings))
    else:
        importance = on_main(lambda: load_importance(source, key))
    return normalised_rows(importance) if config.normalised else importance


def _settings_in_key(job: Job) -> dict[str, object]:
    """Return all settings that the importance depends on. A file that was made with other settings is refused."""
    args, targets = job.request.args, job.request.args.target_modules
    # The gradients of the factors are proportional to the scaling. Only a relative ε scales with them.
    adapter = {"r": args.r, "scaling": args.scaling, "targets": sorted(targets) if targets else "all-linear"}
    return {**estimate_settings(job.request.importance), **adapter}


def _measured(job: Job, initialiser: Initialiser, measurement: Measurement) -> dict[str, Tensor]:
    args = job.request.args
    if args.gradient_checkpointing:  # transformers only uses it in training mode
        enable_checkpointing(job.model, args.gradient_checkpointing_kwargs)
        job.model.train()
    measured = initialiser.row_importance(measurement)
    job.model.eval()
    if measured is None:
        reason = "it is declared with uses_data=True, but returned None"
        raise InputError(Problem("init", job.request.importance.init, reason, "return {module name: [out] importance}"))
    return measured


def measurement_for(job: Job, retain: Sequence[Example]) -> Measurement:
    """Return the data and settings that the initialiser may use. The batches are this process's share."""
    config = job.request.importance
    pad_id = padding_id(job.text_format.tokenizer)
    limit = None
    if config.moments_per == "example":
        limit = batch_limit(job.model, config.importance_batch_size, on_cpu=4, backward=True)

    def of_forget() -> Iterable[Batch]:
        drawn = random.Random(config.importance_seed)
        passes = [drawn.sample(job.forget, len(job.forget)) for _ in range(config.forget_passes)]
        return _Batches("forget", passes, config, limit, pad_id)

    def of_retain() -> Iterable[Batch]:
        return _Batches("retain", [retain], config, limit, pad_id)

    return Measurement(job.model, job.request.args, config, of_forget, of_retain, limit)


@dataclass(frozen=True)
class _Batches:
    """This process's batches of some passes over a set, with a progress bar.

    Moments over examples do not depend on the batches. Each process gets a share of the examples, and batches together
    examples of similar length, as many as the limit allows. Moments over batches do depend on them, so the examples are
    batched in the order in which they were drawn, and each process gets a share of these batches.
    """

    name: str
    passes: Sequence[Sequence[Example]]
    config: ImportanceConfig
    limit: BatchLimit | None
    pad_id: int

    def __iter__(self) -> Iterator[Batch]:
        parts: Sequence[Sequence[Example]]
        size = self.config.importance_batch_size or 1
        if self.limit is None:
            parts = share([part[i : i + size] for part in self.passes for i in range(0, len(part), size)])
        else:
            parts = [share(examples) for examples in self.passes]
        with shown(f"gradients of the {self.name} set", " rows", sum(map(len, parts))) as progress:
            done = 0
            for part in parts:
                for batch in iter_batches(part, self.limit or size, self.pad_id, sort=self.limit is not None):
                    yield batch
                    done += len(batch["input_ids"])
                    progress(done)
