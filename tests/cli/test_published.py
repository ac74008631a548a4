"""The published configurations have the settings of the released ones, and they run."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from helpers.runs import request
from unlora.cli import main
from unlora.cli.arguments import parse
from unlora.common.errors import InputError
from unlora.settings import FinetuneSettings, ModelConfig, TrainDataConfig
from unlora.settings.published import published

# Learning rate / λ / β in VILA's released configurations for TOFU: a column each for forget01, forget05 and forget10.
RELEASED = {
    "llama2-7b": {
        "gd": "7e-5/.7 1e-4/1.8 5e-5/1.6",
        "ihl": "2e-4/.9 1e-4/1.3 1e-4/1.3",
        "npo": "2e-4/.7/.3 1e-4/1.5/.5 1e-4/1.5/.5",
    },
    "phi-1.5": {
        "gd": "2e-4/1.1 4e-5/1.9 7e-5/1.1",
        "ihl": "2e-4/1.4 9e-5/1.3 1e-4/.8",
        "npo": "3e-5/1.1/.2 3e-5/1.5/.4 5e-5/1.8/.3",
    },
}
CASES = {
    f"vila-{model}-{split}-{loss}": (loss, split, [float(value) for value in values.split("/")])
    for model, losses in RELEASED.items()
    for loss, row in losses.items()
    for split, values in zip(("forget01", "forget05", "forget10"), row.split(), strict=True)
}
# λ² of ihl. Until May 2026, VILA's trainer multiplied the retain loss by λ twice.
SQUARED = {
    "llama2-7b": {"forget01": 0.81, "forget05": 1.69, "forget10": 1.69},
    "phi-1.5": {"forget01": 1.96, "forget05": 1.69, "forget10": 0.64},
}
CASES |= {
    f"vila-{model}-{split}-ihl-squared": ("ihl", split, [CASES[f"vila-{model}-{split}-ihl"][2][0], weight])
    for model, weights in SQUARED.items()
    for split, weight in weights.items()
}
# Loss, learning rate, λ and settings of the loss in VILA's released configurations for WMDP.
WMDP = {
    "vila-zephyr-7b-wmdp-gd": ("gd", 8e-5, 1.6, {}),
    "vila-zephyr-7b-wmdp-ihl": ("ihl", 3e-5, 1.0, {}),
    "vila-zephyr-7b-wmdp-npo": ("npo_mean", 1e-5, 1.1, {"beta": 0.02}),
}

# The settings that all of VILA's configurations share, by part of the request.
SHARED = {
    "model": {"dtype": "bfloat16"},
    "importance": {
        "init": "vila",
        "sigma": 0.05,
        "importance_seed": 42,
        "moments_per": "batch",
        "forget_passes": 10,
        "probe_offset": False,
        "smoothing": "per_token",
        "epsilon": 1e-5,
        "normalised": False,
    },
    "args": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": None, "lr_scheduler_type": "linear"},
}
# The additional settings that the configurations for one benchmark share.
OF_TOFU = {
    "data": {"forget_data": "locuslab/TOFU", "retain_data": "locuslab/TOFU", "max_length": 500},
    "importance": {"importance_batch_size": 4},
    "evaluation": {"eval_data": "locuslab/TOFU"},
    "args": {
        "weight_decay": 0.01,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "seed": 42,
    },
}
OF_WMDP = {  # one epoch over the first 512 tokens of each of 500 texts
    "model": {"model_name_or_path": "HuggingFaceH4/zephyr-7b-beta"},
    "data": {
        "forget_split": "train[:500]",
        "retain_data": "Salesforce/wikitext",
        "retain_name": "wikitext-2-raw-v1",
        "retain_split": "test",
        "max_length": 512,
        "max_chunks": 1,
        "min_characters": 51,
    },
    "importance": {"importance_batch_size": 1},
    "args": {
        "weight_decay": 0.0,
        "max_steps": 125,
        "warmup_steps": 12,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "seed": 3,
    },
}
FORGET_ROWS = {"forget01": 40, "forget05": 200, "forget10": 400}


def argv(flags):
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def read(name, folder, **flags):
    """Return the validated request that a published configuration and flags describe."""
    values = {"config": name, **flags, "output_dir": folder / "run", "use_cpu": "true"}
    described = request(argv(values))
    described.check()
    return described


def assert_settings(request, settings):
    for part, values in settings.items():
        chosen = getattr(request, part)
        assert {name: getattr(chosen, name) for name in values} == values


# Model, learning rate, weight decay, number of epochs and rank in TOFU's configurations for fine-tuning.
FINETUNE = {
    "tofu-phi-1.5": ("microsoft/phi-1_5", 2e-5, 0.01, 5, None),
    "tofu-llama2-7b": ("NousResearch/Llama-2-7b-chat-hf", 1e-5, 0.01, 5, None),
    "tofu-llama2-7b-lora": ("NousResearch/Llama-2-7b-chat-hf", 1e-4, 0.0, 10, 8),
}


def test_there_is_one_for_each_released_configuration():
    assert published().keys() == CASES.keys() | WMDP.keys() | FINETUNE.keys()


@pytest.mark.parametrize("name", CASES)
def test_published_settings_are_the_released_ones(name, tmp_path):
    loss, split, (learning_rate, weight, *beta) = CASES[name]
    request = read(name, tmp_path, model_name_or_path="m")
    args = request.args
    assert (args.loss, args.learning_rate, args.retain_weight) == (loss, learning_rate, weight)
    assert args.loss_kwargs == ({"beta": beta[0]} if beta else {})
    assert (request.data.forget_name, request.data.retain_name) == (split, f"retain{100 - int(split[-2:])}")
    assert request.data.prompt_format == ("tofu" if "phi" in name else "chat")
    assert request.evaluation.eval_forget_name == f"{split}_perturbed"
    rows = FORGET_ROWS[split]
    assert (args.max_steps, args.warmup_steps) == (int(5 * rows) // 32, max(1, rows // 32))
    assert_settings(request, SHARED)
    assert_settings(request, OF_TOFU)


@pytest.mark.parametrize("name", WMDP)
def test_published_settings_for_wmdp_are_the_released_ones(name, tmp_path):
    request = read(name, tmp_path, forget_data="f.jsonl")
    args = request.args
    assert (args.loss, args.learning_rate, args.retain_weight, args.loss_kwargs or {}) == WMDP[name]
    assert_settings(request, SHARED)
    assert_settings(request, OF_WMDP)


@pytest.mark.parametrize("name", FINETUNE)
def test_published_settings_for_fine_tuning_are_tofus(name, tmp_path):
    flags = ["--config", name, "--output_dir", str(tmp_path / "model"), "--use_cpu", "true"]
    model, data, args = parse((ModelConfig, TrainDataConfig, FinetuneSettings), flags, "finetune")
    assert not [*model.problems(), *data.problems(), *args.problems()]
    found = (model.model_name_or_path, args.learning_rate, args.weight_decay, args.num_train_epochs, args.r)
    assert found == FINETUNE[name]
    assert (data.train_data, data.train_name, data.max_length) == ("locuslab/TOFU", "full", 500)
    assert data.prompt_format == ("tofu" if "phi" in name else "chat")
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 32
    assert args.get_warmup_steps(125 * args.num_train_epochs) == 125  # one epoch
    assert (args.lora_alpha, args.lora_dropout) == (32, 0.05)


def test_a_switch_needs_no_value_though_it_may_be_none_and_other_flags_say_that_they_do(tmp_path):
    flags = ["--config", sorted(FINETUNE)[0], "--output_dir", str(tmp_path / "model"), "--use_cpu"]
    kinds = (ModelConfig, TrainDataConfig, FinetuneSettings)
    assert parse(kinds, [*flags, "--disable_tqdm", "--ddp_find_unused_parameters"], "finetune")[2].disable_tqdm is True
    assert parse(kinds, [*flags, "--disable-tqdm", "false"], "finetune")[2].disable_tqdm is False
    with pytest.raises(InputError, match="label_names=None: no value is given"):
        parse(kinds, [*flags, "--label_names"], "finetune")


@pytest.mark.slow
def test_a_published_configuration_of_fine_tuning_runs_on_local_data(shared_data, tmp_path):
    save_model(tmp_path / "model")
    flags = {
        "config": "tofu-phi-1.5",
        "model_name_or_path": tmp_path / "model",
        "train_data": shared_data / "tofu",
        "train_split": "train[:10]",
        "output_dir": tmp_path / "tuned",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    assert main(["finetune", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]) == 0
    assert (tmp_path / "tuned" / "model.safetensors").is_file()
    log = json.loads((tmp_path / "tuned" / "checkpoint-25" / "trainer_state.json").read_text())["log_history"]
    rates = [step["learning_rate"] for step in log if "learning_rate" in step]
    # Five epochs of five updates: the learning rate rises from 0 during the first epoch, and then falls.
    expected = [2e-5 * (step / 5 if step < 5 else (25 - step) / 20) for step in range(25)]
    assert rates == pytest.approx(expected)


def save_model(folder):
    """Save a tiny model and its tokenizer to `folder`."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = tiny_config("llama", len(tokenizer))
    config.max_position_embeddings = 512
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_a_published_configuration_runs_on_local_data_and_flags_win(shared_data, tmp_path):
    save_model(tmp_path / "model")
    data = str(shared_data / "tofu")
    flags = {
        "config": "vila-phi-1.5-forget01-npo",
        "model_name_or_path": tmp_path / "model",
        "output_dir": tmp_path / "run",
        "forget_data": data,
        "forget_split": "train[:6]",
        "retain_data": data,
        "eval_data": data,
        "ds_size": 2,
        "max_new_tokens": 4,
        "gradient_accumulation_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    assert main(["unlearn", *argv(flags)]) == 0
    assert load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["unlearned"]["model_utility"] <= 1
    assert metrics["train"][-1]["step"] == 6  # the configuration's max_steps, whatever the number of rows


def test_an_unknown_name_is_refused_with_the_known_ones(capsys):
    assert main(["validate", "vila-phi-forget01-npo"]) == 2
    assert "neither a file nor the name of a published configuration" in capsys.readouterr().err
