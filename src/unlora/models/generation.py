"""Shared parts of text generation: settings, prompts, and decoding up to the end token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from unlora.data.encoding import IGNORE_INDEX, Example, TextFormat
from unlora.data.padding import padding_id
from unlora.models.forward import causal_lm


def generated_text(tokens: Sequence[int], text_format: TextFormat) -> str:
    """Return the text of generated tokens up to the first of the text format's `end_tokens`, without special tokens."""
    stops = text_format.end_tokens
    return decode(list(takewhile(lambda token: token not in stops, tokens)), text_format.tokenizer)


def prompt_example(ids: list[int]) -> Example:
    """Return an example without labels, whose tokens are input to the model but not scored."""
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)}


def generation_config(max_new_tokens: int, text_format: TextFormat, temperature: float = 0.0) -> GenerationConfig:
    """Return settings for greedy decoding, or for sampling from the full distribution if `temperature` is above 0."""
    sampling = {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **(sampling if temperature else {"do_sample": False}),
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(text_format.end_tokens) or None,
        pad_token_id=padding_id(text_format.tokenizer),
    )


def decode(tokens: list[int], tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the text of generated tokens, without special tokens."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


@contextmanager
def without_own_settings(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Disable the model's own generation settings, and yield the module that can generate."""
    core: PreTrainedModel = causal_lm(model)
    own = core.generation_config
    core.generation_config = GenerationConfig()  # transformers fills unset values of a given configuration from it
    try:
        yield core
    finally:
        core.generation_config = own
