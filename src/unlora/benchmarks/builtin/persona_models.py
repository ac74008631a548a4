"""The two models of a generated benchmark, trained from scratch: one on everything, one without the forget set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments, set_seed

from unlora.benchmarks.builtin.persona_trainings import corpus, start_persona
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.common.files import atomic_path
from unlora.data import TextFormat, encode_records
from unlora.data.sources import Record
from unlora.training.finetune import finetune


def persona_models(recipe: Recipe, cache: Path | None = None) -> dict[str, Path]:
    """Return the folders of both models, after training those that are not cached. See `start_persona`.

    Raises:
        RuntimeError: a training process failed. Its output is on the terminal.
    """
    return start_persona(recipe, cache).wait()


def train_persona(kind: str, recipe: Recipe, folder: Path) -> None:
    """Train one model from scratch on one thread, and save it with its tokenizer."""
    torch.set_num_threads(1)
    rows = corpus(recipe.seed)
    # Both models share a tokenizer that is trained on all text, so that they differ only in their training data.
    texts = (f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows["original"])
    train_from_nothing(rows[kind], train_tokenizer(texts, recipe.vocab_size), recipe, folder)


def train_from_nothing(
    rows: Sequence[Record], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, folder: Path
) -> None:
    """Train a randomly initialised model on the rows, and save it with the tokenizer."""
    set_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, tokenizer))
    examples = encode_records(rows, TextFormat(tokenizer), argument=folder.name)
    with atomic_path(folder) as partial:
        finetune(model, tokenizer, examples, training_arguments(recipe, partial, folder.name))


def train_tokenizer(texts: Iterable[str], vocab_size: int, alone: str | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts. No token crosses the boundaries of the string `alone`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if alone is None:
        bpe.pre_tokenizer = words
    else:
        bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(alone, "isolated"), words])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")


def model_config(recipe: Recipe, tokenizer: Any) -> LlamaConfig:
    """Return the configuration of a small Llama."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def training_arguments(recipe: Recipe, folder: Path, name: str) -> TrainingArguments:
    """Return the training arguments: AdamW, a cosine schedule and no checkpoints. The progress bar shows `name`."""
    return TrainingArguments(
        output_dir=str(folder),
        run_name=name,
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=recipe.seed,
    )
