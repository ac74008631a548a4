"""The importance stage: which rows of which weights hold the forget set, measured once and kept on disk."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from unlora.common.distributed import on_main, share
from unlora.common.errors import Problem
from unlora.common.progress import bar
from unlora.data import Batch, Example, iter_batches, padding_id
from unlora.importance import INITIALISERS, Measurement
from unlora.importance.ratio import normalised_rows
from unlora.importance.storage import importance_key, load_importance, save_importance
from unlora.importance.table import estimate_settings
from unlora.pipeline.job import Job
from unlora.runs.folder import IMPORTANCE
from unlora.settings import ImportanceConfig

# Retain examples per forget example in the estimate: the authors make ten passes over equal parts of both.
RETAIN_SHARE = 10


def too_few_examples(
    config: ImportanceConfig, forget: Sequence[Example], retain: Sequence[Example]
) -> Iterator[Problem]:
    """Sets that give a single gradient: its variance would be nothing but rounding errors."""
    if not INITIALISERS[config.init].takes_variance(config):
        return
    size = (config.importance_batch_size or 1) if config.moments_per == "batch" else 1
    gradients = {
        "forget_data": config.forget_passes * -(-len(forget) // size),
        "retain_data": -(-min(len(retain), config.retain_samples or len(retain)) // size),
    }
    for name, count in gradients.items():
        if count < 2:
            reason = f"{config.init!r} takes the variance of gradients, which needs those of two examples or batches"
            fix = f"give at least {size + 1} examples, or use init='fila', 'pissa' or 'lora'"
            yield Problem(name, "1 gradient", reason, fix)


def importance_for(job: Job) -> dict[str, Tensor] | None:
    """The row importance: read where the user or an earlier part of this run has it, else estimated and saved.

    None for a plain LoRA start. What is not measured on data is made anew each time. The file has the importance as it
    was measured, so that layers can be compared; what is returned is normalised where that is asked for.
    """
    request, path = job.request, job.folder / IMPORTANCE
    config, given = request.importance, request.importance.importance_file
    size = config.retain_samples or RETAIN_SHARE * len(job.forget)
    retain = retain_sample(job.retain, size, config.importance_seed)
    initialiser = INITIALISERS[config.init]
    measurement = measurement_for(job, retain)
    if not initialiser.uses_data:
        return initialiser.row_importance(measurement)
    args, targets = request.args, request.args.target_modules
    # The gradients of the factors grow with the scaling, and only a relative ε grows with them.
    adapter = {"r": args.r, "scaling": args.scaling, "targets": sorted(targets) if targets else "all-linear"}
    settings = {**estimate_settings(config), **adapter}
    key = importance_key(job.model, (job.forget, retain), settings)
    importance = on_main(lambda: load_importance(given or path, key) if given or path.exists() else None)
    if importance is None:
        if args.gradient_checkpointing:
            job.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            job.model.train()
        measured = initialiser.row_importance(measurement)
        job.model.eval()
        assert measured is not None
        on_main(lambda: save_importance(measured, path, key, settings))
        importance = measured
    return normalised_rows(importance) if config.normalised else importance


def retain_sample(retain: Sequence[Example], size: int, seed: int) -> list[Example]:
    """`size` random examples, or all of them where there are fewer."""
    return random.Random(seed).sample(list(retain), min(size, len(retain)))


def measurement_for(job: Job, retain: Sequence[Example]) -> Measurement:
    """What the initialiser may look at: this process's share of the batches."""
    config = job.request.importance
    pad_id, size = padding_id(job.text_format.tokenizer), config.batch_size(job.model.device.type)

    def of_forget() -> Iterable[Batch]:
        drawn = random.Random(config.importance_seed)
        passes = [drawn.sample(job.forget, len(job.forget)) for _ in range(config.forget_passes)]
        return shown_batches("forget", passes, config, size, pad_id)

    def of_retain(part: slice = slice(None)) -> Iterable[Batch]:
        return shown_batches("retain", [retain[part]], config, size, pad_id)

    return Measurement(job.model, job.request.args, config, of_forget, of_retain, len(retain))


def shown_batches(
    name: str, passes: Sequence[Sequence[Example]], config: ImportanceConfig, size: int, pad_id: int
) -> Iterable[Batch]:
    """This process's batches of all passes, with a progress bar: of similar length where that changes no moments."""
    if config.moments_per == "example":
        parts: Sequence[Sequence[Example]] = [share(examples) for examples in passes]
    else:  # whole batches are shared: their gradients depend on who is in them
        parts = share([examples[i : i + size] for examples in passes for i in range(0, len(examples), size)])
    sort = config.moments_per == "example"
    batches = (batch for part in parts for batch in iter_batches(part, size, pad_id, sort=sort))
    total = sum(-(-len(part) // size) for part in parts)
    return bar(batches, total=total, desc=f"gradients of the {name} set", unit=" batches")
