"""Every command accepts the folder of an adapter as a model: the adapter on its base model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer
from helpers.runs import RECORDED_FORGET, UNSEEN, exported, flags, logits, write_rows
from unlora import InputError
from unlora.adapter.offset import original_model
from unlora.chat.source import load_side_by_side
from unlora.cli import main
from unlora.cli.tables import print_sets
from unlora.models.load import load_model
from unlora.models.source import _found_base
from unlora.pipeline.attack import read_run
from unlora.pipeline.loading import comparable_model, load_start
from unlora.settings import ModelConfig


def save_adapter(model_folder, folder, tokens=0, **settings):
    """Save a random adapter for the model as fine-tuning would, and return the logits of the model with it."""
    torch.manual_seed(2)
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), make_tokenizer()
    if tokens:
        tokenizer.add_tokens([f"<{i}>" for i in range(tokens)])
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(base, LoraConfig(**settings))
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return logits(model)


@pytest.fixture(scope="module")
def tuned(model_folder, tmp_path_factory):
    """Return a folder with an adapter and a run that started from it, and the logits of the model with the adapter.

    Tests must not change the folder.
    """
    folder = tmp_path_factory.mktemp("tuned")
    found = save_adapter(model_folder, folder / "adapter", use_rslora=True)
    write_rows(folder / "data" / "forget.jsonl", RECORDED_FORGET)
    write_rows(folder / "data" / "retain.jsonl", UNSEEN)
    run = flags(folder / "adapter", folder / "data", folder / "run", learning_rate=1e-2)
    assert main(["unlearn", *run]) == 0
    return folder, found


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_adapter_stays_on_its_base_and_is_part_of_what_is_exported(tuned, model_folder):
    folder, found = tuned
    run = folder / "run"
    same(logits(load_model(ModelConfig(str(folder / "adapter")))[0]), found)
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model_folder)
    assert settings["r"] == 12  # twice the trained rank of 4, and 4 of the adapter it started from
    unlearned = logits(exported(model_folder, run))
    assert (unlearned - found).abs().max() > 1e-2
    sides = load_side_by_side(read_run(str(run)))
    same(logits(sides.model), unlearned)
    with original_model(sides.model) as original:
        same(logits(original), found)
    same(logits(sides.model), unlearned)
    same(logits(load_start(ModelConfig(str(folder / "adapter"), on=str(run)))[0]), unlearned)


def test_every_command_takes_it(tuned, tmp_path, model_folder, capsys):
    folder, _ = tuned
    run = shutil.copytree(folder / "run", tmp_path / "run")
    forget, unseen = (str(folder / "data" / f"{name}.jsonl") for name in ("forget", "retain"))
    assert main(["verify", str(run)]) == 0
    assert "start_adapter" in capsys.readouterr().out
    sets = ["--forget_data", forget, "--holdout_data", unseen, "--use_cpu", "true"]
    assert main(["membership", "--on", str(run), "--log", str(tmp_path / "m.json"), *sets[:4]]) == 0
    named = ["--model_name_or_path", str(folder / "adapter"), "--log", str(tmp_path / "n.json")]
    assert main(["membership", *named, *sets[:4]]) == 0
    alone, before = (json.loads((tmp_path / name).read_text()) for name in ("n.json", "m.json"))
    assert before["original"] == alone["metrics"]
    assert before["metrics"] != alone["metrics"]
    assert main(["attack", str(run), "--attacks", "quantise", "relearn", "--relearn_steps", "1", "--seeds", "1"]) == 0
    assert main(["export", str(run), "--output_dir", str(tmp_path / "merged"), "--merge", "true"]) == 0
    same(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(exported(model_folder, run)))
    second = flags(folder / "adapter", folder / "data", tmp_path / "second", on=run, learning_rate=1e-2)
    write_rows(tmp_path / "data" / "next.jsonl", [{"question": "Who was Ada?", "answer": "A writer."}] * 2)
    second[second.index("--forget_data") + 1] = str(tmp_path / "data" / "next.jsonl")
    del second[second.index("--forget_name") : second.index("--forget_name") + 2]
    assert main(["unlearn", *second, "--init", "lora", "--loss", "npo"]) == 0
    assert json.loads((tmp_path / "second" / "adapter" / "adapter_config.json").read_text())["r"] == 16


OTHERS = {
    "DoRA": ({"use_dora": True}, "use_dora"),
    "a whole module": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "added tokens": ({"tokens": 3}, "weights of embed_tokens"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_adapters_work_or_are_refused_by_name_before_anything_is_loaded(
    tuned, model_folder, tmp_path, capsys, case
):
    settings, message = OTHERS[case]
    found = save_adapter(model_folder, tmp_path / "other", **settings)
    if case != "PiSSA":  # PiSSA changes the base, and PEFT only reproduces this from the same initialisation
        same(logits(load_model(ModelConfig(str(tmp_path / "other")))[0]), found)
    assert main(["unlearn", *flags(tmp_path / "other", tuned[0] / "data", tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert f"model_name_or_path='{tmp_path / 'other'}': it is not plain LoRA" in error
    assert message in error


def test_fine_tuning_an_adapter_is_refused_before_anything_is_loaded(tuned, tmp_path, capsys):
    folder, _ = tuned
    named = ["--model_name_or_path", str(folder / "adapter"), "--train_data", str(folder / "data" / "retain.jsonl")]
    assert main(["finetune", *named, "--output_dir", str(tmp_path / "x"), "--use_cpu", "true"]) == 2
    assert "it is an adapter, and fine-tuning moves the weights of a whole model" in capsys.readouterr().err


BASES = {
    "no base": ({"base_model_name_or_path": None}, "does not name its base model"),
    "a base that is gone": (
        {"base_model_name_or_path": "/no/such/model"},
        "/adapter': its base '/no/such/model': there is no such folder",
    ),
    "another kind of adapter": ({"peft_type": "IA3"}, "it is an adapter of type IA3"),
}


@pytest.mark.parametrize("case", BASES)
def test_an_adapter_without_its_base_is_refused(tuned, tmp_path, capsys, case):
    folder, _ = tuned
    change, message = BASES[case]
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert main(["unlearn", *flags(adapter, folder / "data", tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_the_adapter_of_a_run_is_such_a_model(tuned, model_folder):
    folder, _ = tuned
    model = load_model(ModelConfig(str(folder / "run" / "adapter"), tokenizer_name_or_path=str(model_folder)))[0]
    assert isinstance(model, PeftModel)
    same(logits(model), logits(exported(model_folder, folder / "run")))


def test_a_base_that_is_named_by_a_relative_path_is_found_beside_the_adapter(
    tuned, model_folder, tmp_path, monkeypatch, capsys
):
    folder, found = tuned
    shutil.copytree(model_folder, tmp_path / "models" / "base")
    adapter = shutil.copytree(folder / "adapter", tmp_path / "models" / "tuned" / "checkpoint-2")
    file, settings = (
        adapter / "adapter_config.json",
        json.loads((folder / "adapter" / "adapter_config.json").read_text()),
    )
    monkeypatch.chdir(tmp_path / "models" / "tuned")
    for base in ("base", "../../base", "models/base"):
        file.write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        _found_base.cache_clear()
        same(logits(load_model(ModelConfig(str(adapter)))[0]), found)
        assert (
            f"the base {base!r} of the adapter {adapter} is {tmp_path / 'models' / 'base'}" in capsys.readouterr().err
        )


def drop(adapter, part):
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, adapter / "adapter_model.safetensors")


def test_added_tokens_have_the_embeddings_that_the_adapter_was_trained_with(model_folder, tmp_path):
    size = len(make_tokenizer())
    settings = {
        "tokens": 2,
        "trainable_token_indices": {name: [size, size + 1] for name in ("embed_tokens", "lm_head")},
    }
    found = save_adapter(model_folder, tmp_path / "alone", **settings)
    drop(tmp_path / "alone", "base_layer")  # the smallest form of this adapter has no full embeddings
    same(logits(load_model(ModelConfig(str(tmp_path / "alone")))[0]), found)
    save_adapter(model_folder, tmp_path / "half", tokens=2)
    drop(tmp_path / "half", "lm_head")
    with pytest.raises(InputError, match="trained with 2 added tokens, and has no weights of lm_head for them"):
        load_model(ModelConfig(str(tmp_path / "half")))


def test_what_is_wrong_with_a_retrained_adapter_is_said_of_retrained(tuned, tmp_path):
    folder, _ = tuned
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "IA3"}))
    with pytest.raises(InputError, match=r"^retrained='.*/adapter': it is an adapter of type IA3"):
        comparable_model(ModelConfig(str(folder / "adapter")), str(adapter), "retrained")


def test_an_evaluation_shows_the_retrained_model_without_wrong_answers(tuned, tmp_path, model_folder, capsys):
    folder, _ = tuned
    rows = write_rows(tmp_path / "data" / "plain.jsonl", [{"question": "Who?", "answer": "Ada."}] * 2)
    named = ["--model_name_or_path", str(folder / "adapter"), "--forget_data", str(rows)]
    others = ["--retrained", str(model_folder), "--log", str(tmp_path / "log.json"), "--max_new_tokens", "2"]
    assert main(["evaluate", *named, *others, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["retrained"]["forget"]["probability"] != found["sets"]["forget"]["probability"]
    print_sets(found, ())
    printed = capsys.readouterr().out
    assert "retrained: forget" in printed
    assert "forget quality needs forget rows with wrong answers" in printed
