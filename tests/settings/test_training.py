"""Which training settings are refused before anything is loaded."""

import math

import pytest
from peft import LoraConfig

from unlora import InputError, UnlearnConfig
from unlora.settings.checks import range_problems
from unlora.settings.training import ADAPTER_RANGES, UnlearnSettings


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "retain_weight", "weight_decay", "lora_alpha", "max_grad_norm"])
def test_training_settings_must_be_finite(tmp_path, name, value):
    with pytest.raises(InputError, match=f"^{name}={value}: it is not a finite number"):
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_only_the_limit_of_the_retain_loss_may_be_infinite(tmp_path):
    assert UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, max_retain_loss=math.inf).problems() == []
    with pytest.raises(InputError, match="max_retain_loss=nan"):
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, max_retain_loss=math.nan)


def test_all_wrong_numbers_are_reported_at_once(tmp_path):
    wrong = {"lora_alpha": 0, "retain_weight": -1.0, "learning_rate": -1e-4, "weight_decay": -0.1, "r": "8"}
    with pytest.raises(InputError) as error:
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **wrong)
    assert {problem.argument for problem in error.value.problems} == set(wrong)


@pytest.mark.parametrize("change", [{"r": 0}, {"lora_alpha": 0}, {"lora_dropout": 0.1}])
def test_a_lora_config_is_checked_against_the_same_ranges(change, tmp_path):
    [problem] = range_problems(LoraConfig(**change), ADAPTER_RANGES)
    with pytest.raises(InputError) as error:
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **change)
    assert error.value.problems == (problem,)


def test_the_help_of_the_exported_rank_names_the_rank_of_every_start():
    """`tests/adapter/test_export.py` checks that the exported adapters have these ranks."""
    shown = UnlearnSettings.__dataclass_fields__["export_rank"].metadata["help"]
    assert "rank r for a plain LoRA start and 2r for other starts, plus the ranks of earlier requests" in shown
