"""`unlora finetune`, from data files to a saved model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from unlora.cli import main


@pytest.mark.parametrize("lora", [{}, {"r": 4, "lora_dropout": 0}], ids=["all weights", "LoRA"])
def test_finetune_learns_and_saves_a_model_that_loads(model_folder, data, tmp_path, capsys, lora):
    run = tmp_path / "tuned"
    settings = {
        "model_name_or_path": model_folder,
        "train_data": data / "retain.jsonl",
        "output_dir": run,
        "num_train_epochs": 30,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "gradient_accumulation_steps": 1,
        "save_steps": 10,
        "save_total_limit": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **lora,
    }
    argv = ["finetune", *(part for k, v in settings.items() for part in (f"--{k}", str(v)))]
    assert main(argv) == 0
    assert "step 30 of 30: loss " in capsys.readouterr().err  # printed in place of a progress bar
    assert not [file for file in run.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (run / ".partial").exists()
    log = json.loads((run / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["loss"] < log[0]["loss"] / (1.5 if lora else 2)
    AutoModelForCausalLM.from_pretrained(run, use_safetensors=True)
    tuned, base = (load_file(folder / "model.safetensors") for folder in (run, model_folder))
    assert tuned.keys() == base.keys()  # the adapter has been merged
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(tuned[name], base[name]) == bool(lora)
    weights = {name: value.clone() for name, value in tuned.items()}
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0  # training is already finished
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_a_rank_of_nothing_is_refused(model_folder, data, tmp_path, capsys):
    flags = ["--model_name_or_path", str(model_folder), "--train_data", str(data / "retain.jsonl")]
    assert main(["finetune", *flags, "--output_dir", str(tmp_path / "t"), "--r", "0", "--use_cpu", "true"]) == 2
    assert "r=0: an adapter has at least rank 1" in capsys.readouterr().err


def test_fine_tuning_on_a_run_is_refused(data, tmp_path, first_run, capsys):
    named = {"on": first_run, "train_data": data / "retain.jsonl", "output_dir": tmp_path / "tuned", "use_cpu": True}
    assert main(["finetune", *(part for k, v in named.items() for part in (f"--{k}", str(v)))]) == 2
    assert "on=" in capsys.readouterr().err
