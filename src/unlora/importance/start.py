"""Initialise an adapter in one call, for training with a custom loop, transformers or TRL."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerFast

from unlora.adapter import attach_adapters
from unlora.adapter.settings import AdapterSettings
from unlora.common.errors import Problem, raise_if, unknown_name
from unlora.data.encoding import Example, TextFormat, encode_records
from unlora.data.padding import Batches, padding_id
from unlora.data.sources import Record
from unlora.importance.initialiser import Measurement
from unlora.importance.ratio import normalised_rows
from unlora.importance.sampling import retain_sample
from unlora.importance.table import INITIALISERS
from unlora.models.memory import batch_limit
from unlora.settings import ImportanceConfig

# The default number of rows in a batch on a CPU.
_CPU_ROWS = 8
# Rank and alpha of the VILA paper.
_RANK, _ALPHA = 8, 16


def start_adapter(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    forget: Sequence[Record],
    retain: Sequence[Record],
    init: str = "vila",
    config: AdapterSettings | None = None,
    batch_size: int | None = None,
    prompt_format: str = "auto",
) -> PeftModel:
    """Measure the importance for the forget set, and add a LoRA adapter that is initialised from it.

    Train the returned model like any PEFT model, and write the result with `export_adapter`.

    Args:
        model: a causal LM. Its weights are never changed.
        tokenizer: its tokenizer.
        forget: rows to forget: question and answer, chat messages, or text.
        retain: rows to keep, of the same kinds. A random sample of them is measured, as many as forget rows and at
            least 32.
        init: the initialiser; see `unlora ls initialisers`.
        config: a `peft.LoraConfig` with rank, alpha and target modules; by default rank 8 and alpha 16 on all linear
            layers but the head.
        batch_size: maximum number of rows in a backward pass. None fills the memory of a GPU.
        prompt_format: how questions become prompts.

    Returns:
        The model, with the same predictions as before: "unlearn" is trainable, and "offset" cancels its start.

    Raises:
        InputError: an unknown initialiser, fewer than two rows, rows that cannot be tokenised, a batch size below 1, or
            invalid adapter settings.
    """
    text_format = TextFormat(tokenizer, prompt_format)
    sets = {"forget": forget, "retain": retain}
    encoded = [encode_records(rows, text_format, argument=name) for name, rows in sets.items()]
    return start_on(model, tokenizer, encoded[0], encoded[1], init, config, batch_size)


def start_on(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    forget: Sequence[Example],
    retain: Sequence[Example],
    init: str = "vila",
    config: AdapterSettings | None = None,
    batch_size: int | None = None,
) -> PeftModel:
    """Do the same as `start_adapter`, from tokenised examples."""
    raise_if([] if init in INITIALISERS else [unknown_name("init", init, INITIALISERS)])
    limit = batch_limit(model, batch_size, on_cpu=_CPU_ROWS, backward=True)
    reason, fix = "the variance of gradients needs at least two rows", "give more rows, or use init='pissa' or 'lora'"
    sets = {"forget": forget, "retain": retain}
    raise_if(
        Problem(name, f"{len(part)} rows", reason, fix)
        for name, part in sets.items()
        if INITIALISERS[init].uses_data and len(part) < 2
    )
    adapter = config or LoraConfig(r=_RANK, lora_alpha=_ALPHA)
    settings, pad_id = ImportanceConfig(init=init), padding_id(tokenizer)
    sample = retain_sample(retain, settings.retain_size(len(forget)), settings.importance_seed)
    of_forget, of_retain = (lambda part=part: Batches(part, limit, pad_id) for part in (forget, sample))
    measurement = Measurement(model, adapter, settings, of_forget, of_retain, limit)
    importance = INITIALISERS[init].row_importance(measurement)
    if importance is not None and settings.normalised:
        importance = normalised_rows(importance)
    return attach_adapters(model, adapter, importance)
