"""Two processes, started with `accelerate launch`, give the same results as one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from unlora.cli import main
from unlora.common.files import write_jsonl

pytestmark = pytest.mark.slow

# Seven rows of unequal length: batches of four leave a remainder, and the processes get different numbers of tokens.
FORGET = [
    {"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does{', and so does Bob' * (i % 3)}."} for i in range(7)
]
RETAIN = [
    {"question": f"What does dog {i} watch?", "answer": f"The fox {i}{' and the owl' * (i % 2)}."} for i in range(9)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_jsonl(folder / "forget.jsonl", FORGET)
    write_jsonl(folder / "retain.jsonl", RETAIN)
    return folder


def flags(inputs, run, **changes):
    settings = {
        "model_name_or_path": inputs / "model",
        "forget_data": inputs / "forget.jsonl",
        "retain_data": inputs / "retain.jsonl",
        "output_dir": run,
        "loss": "ihl",
        "r": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_new_tokens": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def launch(*argv, processes=2):
    """Run a script with `accelerate launch --multi_gpu`. Its flag `--cpu` would start a single process only."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    settings = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    settings += ["--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *settings, *argv], capture_output=True, text=True, env=environment, timeout=600)


def assert_equal_tensors(one, other, tolerance=1e-5):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=tolerance, atol=tolerance)


def test_two_processes_give_the_importance_the_adapter_and_the_metrics_of_one(inputs, tmp_path):
    assert main(["unlearn", *flags(inputs, tmp_path / "one", per_device_train_batch_size=4)]) == 0
    result = launch("-m", "unlora", "unlearn", *flags(inputs, tmp_path / "two", per_device_train_batch_size=2))
    assert result.returncode == 0, result.stderr
    assert not re.search("process group has NOT been destroyed", result.stderr)
    assert result.stdout.splitlines()[-1] == str(tmp_path / "two" / "adapter")
    assert result.stdout.count("adapter") == 1  # only the main process prints
    one, two = (tmp_path / name for name in ("one", "two"))
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
    assert_equal_tensors(one / "importance.safetensors", two / "importance.safetensors")
    assert_equal_tensors(*(run / "adapter" / "adapter_model.safetensors" for run in (one, two)))
    logs = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    for first, second in zip(*(log["train"] for log in logs), strict=True):
        for name in ("loss", "forget_loss", "retain_loss", "grad_norm"):
            assert second.get(name, 0) == pytest.approx(first.get(name, 0), rel=1e-4, abs=1e-5), name
    for name, values in logs[0]["unlearned"]["sets"].items():
        for metric in ("probability", "rougeL_recall"):
            assert logs[1]["unlearned"]["sets"][name][metric] == pytest.approx(values[metric], abs=1e-5)
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()


def test_reference_passes_accumulation_and_checkpoints_are_shared_alike_also_after_a_resume(inputs, tmp_path):
    """Cover the reference pass of NPO, the second pass of KL, and two batches per update.

    The last batch of an epoch is empty in one of the processes.
    """
    common = {"loss": "npo", "retain_loss": "kl", "save_strategy": "steps", "save_steps": 1}
    common["gradient_checkpointing"] = True
    run = {name: tmp_path / name for name in ("one", "two")}
    assert main(["unlearn", *flags(inputs, run["one"], per_device_train_batch_size=4, **common)]) == 0
    two = flags(inputs, run["two"], per_device_train_batch_size=1, **common, **{"gradient_accumulation_steps": 2})
    result = launch("-m", "unlora", "unlearn", *two)
    assert result.returncode == 0, result.stderr
    for name in ("adapter", "checkpoint-2"):
        assert_equal_tensors(*(folder / name / "adapter_model.safetensors" for folder in run.values()))
    # Leave what a kill in the second epoch would leave.
    whole = (run["two"] / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("adapter", "checkpoint-4"):
        shutil.rmtree(run["two"] / name)
    result = launch("-m", "unlora", "unlearn", *two, "--resume_from_checkpoint", "true")
    assert result.returncode == 0, result.stderr
    assert (run["two"] / "adapter" / "adapter_model.safetensors").read_bytes() == whole


@pytest.fixture(params=["fsdp", "zero3"])
def shard_base(request, tmp_path):
    if request.param == "fsdp":
        return "fsdp"
    # Without this setting, DeepSpeed does not shard weights this small.
    settings = '{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}'
    (tmp_path / "zero3.json").write_text(settings)
    return str(tmp_path / "zero3.json")


def test_a_base_sharded_over_two_processes_gives_the_same_too(inputs, tmp_path, shard_base):
    """No process holds the whole base, but importance, adapter, checkpoints and answers equal those of one process."""
    common = {"loss": "npo", "retain_loss": "kl", "save_strategy": "epoch", "gradient_checkpointing": True}
    common |= {"num_train_epochs": 1, "max_new_tokens": 2}
    run = {name: tmp_path / name for name in ("one", "two")}
    assert main(["unlearn", *flags(inputs, run["one"], per_device_train_batch_size=4, **common)]) == 0
    two = flags(inputs, run["two"], per_device_train_batch_size=2, shard_base=shard_base, **common)
    result = launch("-m", "unlora", "unlearn", *two)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(run["two"] / "adapter")
    for name in ("adapter", "checkpoint-2"):
        assert_equal_tensors(*(folder / name / "adapter_model.safetensors" for folder in run.values()))
    assert_equal_tensors(*(folder / "importance.safetensors" for folder in run.values()))
    assert len({(folder / "samples.jsonl").read_text() for folder in run.values()}) == 1


HELD = """
import sys
from unlora.settings import ModelConfig
from unlora.models.load import load_model
from unlora.models.sharding import whole

model, _ = load_model(ModelConfig(sys.argv[1], shard_base=sys.argv[2]))
held = [p.ds_tensor if hasattr(p, "ds_tensor") else p.to_local() for p in model.parameters()]
weights = [whole(p) for p in model.parameters()]
print(sum(p.numel() for p in held) / sum(p.numel() for p in weights), float(sum(p.double().sum() for p in weights)))
"""


def test_each_of_two_processes_holds_half_of_a_sharded_base(inputs, tmp_path, shard_base):
    (tmp_path / "held.py").write_text(HELD)
    result = launch(str(tmp_path / "held.py"), str(inputs / "model"), shard_base)
    assert result.returncode == 0, result.stderr
    shares = [line.split() for line in result.stdout.splitlines()]
    whole = sum(value.double().sum().item() for value in load_file(inputs / "model" / "model.safetensors").values())
    assert len(shares) == 2
    for share, total in shares:
        assert float(share) == pytest.approx(0.5, abs=0.02)
        assert float(total) == pytest.approx(whole)


def test_wrong_input_ends_all_processes_with_one_message(inputs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    result = launch("-m", "unlora", "unlearn", *flags(inputs, tmp_path / "run"))
    assert result.returncode != 0
    assert result.stderr.count("error: output_dir=") == 1
    assert "it is already in use" in result.stderr


def muse_folder(folder):
    """Write a few rows of every set of MUSE."""
    texts = [{"text": f"Ada watches {number} people, quietly{'; nobody minds' * (number % 2)}."} for number in range(7)]
    pairs = [{"question": row["question"], "answer": row["answer"]} for row in FORGET]
    sets = {
        "verbmem/forget": [{"prompt": "The quick brown fox", "gt": " jumps over the lazy dog"}] * 3,
        "privleak/forget": texts[:4],
        "privleak/holdout": texts[4:],
        **{f"knowmem/{part}_qa": pairs[:5] for part in ("forget", "retain")},
        **{f"knowmem/{part}_qa_icl": pairs[5:] for part in ("forget", "retain")},
    }
    for name, rows in sets.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def test_two_processes_share_scoring_and_one_writes(inputs, tmp_path):
    model = ["--model_name_or_path", str(inputs / "model")]
    sets = ["--forget_data", str(inputs / "forget.jsonl"), "--holdout_data", str(inputs / "retain.jsonl")]
    muse = ["--benchmark", "muse", "--data", str(muse_folder(tmp_path / "muse"))]
    commands = {
        "membership": [*model, *sets, "--eval_batch_size", "2", "--gradnorm"],
        "evaluate": [*model, *muse, "--eval_batch_size", "2"],
    }
    for command, arguments in commands.items():
        one, two = (tmp_path / f"{command}-{count}.json" for count in (1, 2))
        assert main([command, *arguments, "--log", str(one)]) == 0
        result = launch("-m", "unlora", command, *arguments, "--log", str(two))
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == str(two)
        logs = [json.loads(path.read_text()) for path in (one, two)]
        assert logs[0].get("texts") == logs[1].get("texts")
        for name, columns in logs[0]["scores"].items():
            for score, values in columns.items():
                assert logs[1]["scores"][name][score] == pytest.approx(values, rel=1e-3, abs=1e-5), (name, score)


def test_the_harness_is_refused_in_several_processes(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    log = tmp_path / "tasks.json"
    model = ["--model_name_or_path", str(inputs / "model"), "--tasks", "wmdp_bio", "--log", str(log)]
    assert main(["evaluate", "--benchmark", "wmdp", *model]) == 2
    assert "processes=2: each would ask all questions" in capsys.readouterr().err
    assert not log.exists()
