"""What of `shard_base` is refused, before anything is loaded; what sharding gives is tested in test_distributed.py."""

import json
from pathlib import Path

import pytest

from unlora.models.sharding import zero3_settings
from unlora.settings import ModelConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepspeed" / "zero3.json"


def problems(shard_base):
    return [str(problem) for problem in ModelConfig("model", shard_base=str(shard_base)).problems()]


def test_one_process_has_nothing_to_spread_over():
    (problem,) = problems("fsdp")
    assert problem.startswith("shard_base='fsdp': there is only one process")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"zero_optimization": {"stage": 2}}, "ZeRO stage 2 leaves the weights whole"),
        ({"zero_optimization": {"stage": 3}, "optimizer": {}, "bf16": {}}, "it sets bf16, optimizer, but DeepSpeed"),
        ({"zero_optimization": 3}, "neither 'fsdp' nor a DeepSpeed configuration"),
        ([], "neither 'fsdp' nor a DeepSpeed configuration"),
    ],
)
def test_other_configurations_than_zero3_are_refused(settings, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    (problem,) = problems(tmp_path / "zero.json")
    assert reason in problem


def test_a_mistyped_name_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = problems("fspd")
    assert "shard_base='fspd': neither 'fsdp' nor a DeepSpeed configuration (FileNotFoundError" in problem


def test_the_example_is_a_configuration_and_what_is_auto_is_left_to_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert problems(EXAMPLE) == []
    settings = {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto"}}
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    told = zero3_settings(str(tmp_path / "zero3.json"), "bfloat16")
    assert told["zero_optimization"] == {"stage": 3}
    assert (told["bf16"]["enabled"], told["fp16"]["enabled"]) == (True, False)
