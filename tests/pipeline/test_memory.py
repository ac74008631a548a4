"""Runs whose batches do not fit into memory end with the same result, and log the smaller batch size."""

import pytest
import torch
from safetensors.torch import load_file

from helpers.memory import memory_for, told
from helpers.runs import flags
from unlora.cli import main
from unlora.evals import read_log
from unlora.runs.folder import EVALUATIONS

TOKENS = 60


def test_a_run_that_is_short_of_memory_ends_with_the_same_adapter_and_evaluation(
    plain_run, model_folder, tmp_path, caplog
):
    whole, _, _ = plain_run
    with memory_for(TOKENS):
        assert main(["unlearn", *flags(model_folder, whole.parent / "data", tmp_path / "run")]) == 0
    # A few messages from each of scoring, generation, importance and training, but not one per batch.
    assert 4 <= len(told(caplog)) <= 12
    found, expected = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", whole)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    logs = [read_log(folder / EVALUATIONS["unlearned"]) for folder in (tmp_path / "run", whole)]
    for task, columns in logs[1].items():
        assert logs[0][task]["generated_text"] == columns["generated_text"]
        for row, loss in columns["avg_gt_loss"].items():
            assert logs[0][task]["avg_gt_loss"][row] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("lora", [{}, {"r": 4, "lora_dropout": 0}], ids=["all weights", "LoRA"])
def test_fine_tuning_that_is_short_of_memory_ends_with_the_same_model(model_folder, data, tmp_path, caplog, lora):
    settings = {
        "model_name_or_path": model_folder,
        "train_data": data / "retain.jsonl",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "optim": "sgd",  # AdamW would turn rounding errors of near-zero gradients into full steps
        "learning_rate": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **lora,
    }
    argv = ["finetune", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]
    assert main([*argv, "--output_dir", str(tmp_path / "whole")]) == 0
    assert not told(caplog)
    with memory_for(40):
        assert main([*argv, "--output_dir", str(tmp_path / "parts")]) == 0
    assert 2 <= len(told(caplog)) <= 4  # from the trial of the forecast and from training, but not one per batch
    folders = (model_folder, tmp_path / "whole", tmp_path / "parts")
    start, expected, found = (load_file(folder / "model.safetensors") for folder in folders)
    assert any(not torch.allclose(value, start[name], atol=1e-3) for name, value in expected.items())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
