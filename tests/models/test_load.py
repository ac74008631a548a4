"""Loading models, including in 4 and 8 bits: the start from dequantised weights, and one complete request."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.models import make_tokenizer
from unlora.adapter import attach_adapters, weighted_low_rank
from unlora.adapter.offset import base_weight, lora_layers
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.common.files import write_jsonl
from unlora.data import pad_batch
from unlora.models.forward import labelled_tokens
from unlora.models.load import load_adapter, load_model
from unlora.settings import ModelConfig

FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does."} for i in range(4)]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The fox {i}."} for i in range(6)]
BITS = ["load_in_8bit", "load_in_4bit"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Save data and a tiny Llama whose layer sizes are multiples of 64, as groups of 64 weights share a scale."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.15, max_position_embeddings=256, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    return folder


@pytest.mark.parametrize("bits", BITS)
def test_the_adapter_starts_at_the_dequantised_weight_and_leaves_the_model_as_it_was(inputs, bits):
    pytest.importorskip("bitsandbytes", reason="needs unlora[quantised]")
    base, _ = load_model(ModelConfig(str(inputs / "model"), **{bits: True}))
    whole, _ = load_model(ModelConfig(str(inputs / "model")))
    batch = pad_batch([{"input_ids": list(range(2, 20)), "labels": list(range(2, 20))}], 0)
    with torch.no_grad():
        before = labelled_tokens(base, batch).logits
    layers = {name: module for name, module in whole.named_modules() if name.endswith("_proj")}
    importance = {name: torch.ones(layer.out_features) for name, layer in layers.items()}
    model = attach_adapters(base, LoraConfig(r=4, lora_alpha=8), importance)
    with torch.no_grad():
        after = labelled_tokens(model, batch).logits
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    for name, layer in lora_layers(model):
        weight = base_weight(layer).float()
        assert weight.shape == layers[name].weight.shape
        error = (weight - layers[name].weight).norm() / layers[name].weight.norm()
        assert 0 < error < (0.02 if bits == "load_in_8bit" else 0.15)
        a0, b0 = weighted_low_rank(weight, importance[name], 4, 2.0)
        torch.testing.assert_close(layer.lora_A["unlearn"].weight, a0)
        torch.testing.assert_close(layer.lora_B["unlearn"].weight, b0)


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_one_request_whole_on_a_quantised_base(inputs, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="needs unlora[quantised]")
    run = tmp_path / "run"
    settings = {
        "model_name_or_path": inputs / "model",
        "forget_data": inputs / "forget.jsonl",
        "retain_data": inputs / "retain.jsonl",
        "output_dir": run,
        bits: True,
        "r": 4,
        "num_train_epochs": 4,
        "learning_rate": 1e-2,
        "loss": "gd",
        "retain_weight": 0,
        "gradient_checkpointing": True,
        "save_strategy": "no",
        "max_new_tokens": 4,
        "use_cpu": True,
    }
    assert main(["unlearn", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    before, after = (metrics[name]["sets"]["forget"]["probability"] for name in ("original", "unlearned"))
    assert after < before
    importance = load_file(run / "importance.safetensors")
    assert len(importance) == 14
    assert all(bool(torch.isfinite(values).all()) for values in importance.values())
    base, _ = load_model(ModelConfig(str(inputs / "model"), **{bits: True}))
    PeftModel.from_pretrained(base, run / "adapter")


def test_a_quantised_model_is_not_fine_tuned(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unlora.settings.model.find_spec", lambda name: True)  # pretend that bitsandbytes is installed
    train = ["--train_data", str(inputs / "forget.jsonl"), "--output_dir", str(tmp_path / "x"), "--use_cpu", "true"]
    assert main(["finetune", "--model_name_or_path", str(inputs / "model"), "--load_in_4bit", "true", *train]) == 2
    assert "fine-tuning changes the weights" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused_by_the_users_name_for_it(inputs, tiny_model, tmp_path):
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    model, _ = load_model(ModelConfig(str(inputs / "model")))
    with pytest.raises(InputError, match=f"RUN='{tmp_path}': PEFT cannot load it on this model"):
        load_adapter(model, str(tmp_path), argument="RUN")
