"""A small `UnlearnTrainer`."""

from __future__ import annotations

import os
import signal

import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from helpers.models import make_tokenizer, tiny_config
from unlora import UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.data import TextFormat, encode_records

FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does."} for i in range(6)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The fox {i}."} for i in range(9)]


def examples(tokenizer):
    text_format = TextFormat(tokenizer)
    return encode_records(FORGET, text_format), encode_records(RETAIN, text_format)


def ones(model):
    """Return an importance of 1 for every row of every linear layer."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    return {name: torch.ones(layer.out_features) for name, layer in layers.items()}


def config(folder, **settings):
    defaults = {
        "loss": "ihl",
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


class KillInStep(TrainerCallback):
    """Kill this process with SIGKILL in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_twelve_steps(folder, killed_in_step=None, resume=False):
    """Train with a checkpoint after each step, and return the adapter's weights. May run in a separate process."""
    torch.set_num_threads(1)  # as in conftest, since results of two processes are compared exactly
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer)))
    args = config(folder, num_train_epochs=6, save_strategy="steps", save_steps=1, loss="npo")
    model = attach_adapters(base, args, ones(base))
    callbacks = [] if killed_in_step is None else [KillInStep(killed_in_step)]
    trainer = UnlearnTrainer(model, args, *examples(tokenizer), tokenizer, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return adapter_state(model)
