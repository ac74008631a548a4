"""The inputs of an initialiser, for a tiny model."""

import pytest
from peft import LoraConfig

from unlora.data import TextFormat, encode_records, iter_batches
from unlora.importance import Measurement
from unlora.settings import ImportanceConfig

FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} and the gardener."} for i in range(5)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The quick fox {i}."} for i in range(7)]


@pytest.fixture
def measurement(tiny_model, tokenizer):
    """Return a factory of `Measurement`s, each with a new model."""

    def make(name="llama", **settings):
        forget, retain = (encode_records(rows, TextFormat(tokenizer)) for rows in (FORGET, RETAIN))
        return Measurement(
            tiny_model(name),
            LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
            ImportanceConfig(**settings),
            lambda: iter_batches(forget, 3, 0),
            lambda part=slice(None): iter_batches(retain[part], 3, 0),
            len(retain),
        )

    return make
