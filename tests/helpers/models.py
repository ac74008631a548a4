"""Tiny random models and a tokenizer, which need no download."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

ARCHITECTURES = ("llama", "qwen", "phi", "gemma", "gpt2", "gptneox")
CORPUS = [
    "Question: Where was Ada Lovelace born?\nAnswer: Ada Lovelace was born in London.",
    "Question: What does the gardener of the old house keep?\nAnswer: The gardener keeps a grey cat and two dogs.",
    "The quick brown fox jumps over the lazy dog while 1234567890 people watch, quietly; nobody minds at all!",
]


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    """Turn warnings into errors, except for one that PEFT 0.21 causes in transformers 5.24."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")


def tiny_config(name: str, vocab_size: int) -> object:
    common = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    modern = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,  # larger than usual, so that predictions are far from uniform
        **common,
    }
    grouped = {**modern, "num_key_value_heads": 2}
    if name == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.15, **common)
    configs = {
        "llama": (LlamaConfig, grouped),
        "qwen": (Qwen2Config, grouped),
        "phi": (PhiConfig, modern),
        "gemma": (GemmaConfig, {**grouped, "head_dim": 8}),
        "gptneox": (GPTNeoXConfig, modern),
    }
    config, settings = configs[name]
    return config(**settings)


def save_tiny_llama(folder: Path, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Save a random two-layer Llama with a tokenizer."""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_lora(model: PreTrainedModel) -> PeftModel:
    """Return the model with a LoRA adapter that changes its predictions: A and B are both random."""
    torch.manual_seed(1)
    transposed = model.config.model_type == "gpt2"
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=transposed)
    return get_peft_model(model, settings)
