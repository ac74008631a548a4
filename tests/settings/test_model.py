"""Which model settings are refused before anything is loaded."""

import json
from pathlib import Path

import pytest

from unlora.settings import ModelConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "deepspeed" / "zero3.json"


def test_only_a_single_known_quantisation_is_accepted(monkeypatch):
    monkeypatch.setattr("unlora.settings.model.find_spec", lambda name: True)
    problems = ModelConfig("m", load_in_4bit=True, load_in_8bit=True, bnb_4bit_quant_type="nf3").problems()
    assert [problem.argument for problem in problems] == ["bnb_4bit_quant_type", "load_in_4bit"]


def test_quantisation_without_bitsandbytes_is_refused_with_the_extra_to_install(monkeypatch):
    monkeypatch.setattr("unlora.settings.model.find_spec", lambda name: None)
    [problem] = ModelConfig("m", load_in_4bit=True).problems()
    assert "pip install 'unlora[quantised]'" in str(problem)


def sharding_problems(shard_base):
    return [str(problem) for problem in ModelConfig("model", shard_base=str(shard_base)).problems()]


def test_sharding_with_a_single_process_is_refused():
    (problem,) = sharding_problems("fsdp")
    assert problem.startswith("shard_base='fsdp': there is only one process")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"zero_optimization": {"stage": 2}}, "ZeRO stage 2 keeps a whole copy"),
        (
            {"zero_optimization": {"stage": 3}, "optimizer": {}, "bf16": {}},
            "it sets bf16, optimizer, but here DeepSpeed",
        ),
        ({"zero_optimization": 3}, "neither 'fsdp' nor a DeepSpeed configuration"),
        ([], "neither 'fsdp' nor a DeepSpeed configuration"),
    ],
)
def test_configurations_other_than_zero3_are_refused(settings, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    (problem,) = sharding_problems(tmp_path / "zero.json")
    assert reason in problem


def test_a_mistyped_name_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = sharding_problems("fspd")
    assert "shard_base='fspd': neither 'fsdp' nor a DeepSpeed configuration (FileNotFoundError" in problem


def test_the_example_configuration_is_accepted(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharding_problems(EXAMPLE) == []
