"""Unlearn a file of questions and answers with the Python API, from the data to the exported adapter.

python examples/unlearn.py MODEL forget.jsonl retain.jsonl ADAPTER_FOLDER
"""

import sys

from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlora import (
    UnlearnConfig,
    UnlearnTrainer,
    attach_adapters,
    export_adapter,
    gradient_moments,
    relative_importance,
)
from unlora.adapter import detach_adapters
from unlora.data import TextFormat, encode_records, iter_batches, load_records, padding_id
from unlora.importance import attach_probe


def main(name: str, forget_file: str, retain_file: str, folder: str) -> None:
    """Unlearn `forget_file` from the model, and write the adapter to `folder`."""
    base, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    text_format = TextFormat(tokenizer, max_length=256)
    forget = encode_records(load_records(forget_file), text_format)
    retain = encode_records(load_records(retain_file), text_format)

    # Locate the forget set: measure gradient moments of random LoRA factors on the original model.
    probe = attach_probe(base, LoraConfig(r=8, lora_alpha=16))
    of_forget, of_retain = (
        gradient_moments(probe, iter_batches(examples, 8, padding_id(tokenizer))) for examples in (forget, retain)
    )
    base = detach_adapters(probe)
    importance = relative_importance(of_forget, of_retain, method="vila", normalised=True, rows=True)

    # Initialise the adapter from the most important rows, and train it.
    config = UnlearnConfig(output_dir="checkpoints", loss="ihl", learning_rate=4e-4, save_strategy="no")
    model = attach_adapters(base, config, importance)
    UnlearnTrainer(model, config, forget, retain, processing_class=tokenizer).train()
    print(export_adapter(model, folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
