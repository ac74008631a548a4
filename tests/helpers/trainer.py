"""A small `UnlearnTrainer`."""

from __future__ import annotations

import torch

from unlora import UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.data import TextFormat, encode_records

FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does."} for i in range(6)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The fox {i}."} for i in range(9)]


def examples(tokenizer):
    text_format = TextFormat(tokenizer)
    return encode_records(FORGET, text_format), encode_records(RETAIN, text_format)


def ones(model):
    """Every row of every linear layer equally important."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    return {name: torch.ones(layer.out_features) for name, layer in layers.items()}


def config(folder, **settings):
    defaults = {
        "r": 4,
        "lora_alpha": 8,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return UnlearnConfig(output_dir=str(folder), **{**defaults, **settings})


def make_trainer(tiny_model, tokenizer, folder, callbacks=None, **settings):
    base = tiny_model("llama")
    args = config(folder, **settings)
    forget, retain = examples(tokenizer)
    return UnlearnTrainer(attach_adapters(base, args, ones(base)), args, forget, retain, tokenizer, callbacks=callbacks)


def adapter_state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".unlearn." in name}
