"""What of the settings is refused before anything is loaded, and what only is pointed out."""

import math
from dataclasses import replace

import pytest

from unlora import InputError, UnlearnConfig
from unlora.cli.arguments import published
from unlora.cli.unlearn import request_from
from unlora.importance.table import INITIALISERS, unread_settings
from unlora.pipeline.request import Request
from unlora.settings import AttackConfig, DataConfig, EvalConfig, ImportanceConfig, ModelConfig, StoppingConfig


def arguments_of(problems):
    return [problem.argument for problem in problems]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ImportanceConfig, "epsilon"),
        (ImportanceConfig, "sigma"),
        (ImportanceConfig, "retain_convergence"),
        (StoppingConfig, "stop_auc"),
        (AttackConfig, "learning_rate"),
    ],
)
def test_what_is_no_finite_number_is_refused(kind, name, value):
    assert set(arguments_of(kind(**{name: value}).problems())) == {name}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "retain_weight", "weight_decay", "lora_alpha", "max_grad_norm"])
def test_training_takes_finite_numbers(tmp_path, name, value):
    with pytest.raises(InputError, match=f"^{name}={value}: it is not a finite number"):
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})


def test_only_the_limit_of_the_retain_loss_may_be_infinite(tmp_path):
    assert UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, max_retain_loss=math.inf).problems() == []
    with pytest.raises(InputError, match="max_retain_loss=nan"):
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, max_retain_loss=math.nan)


def test_wrong_numbers_of_training_are_told_at_once(tmp_path):
    wrong = {"lora_alpha": 0, "retain_weight": -1.0, "learning_rate": -1e-4, "weight_decay": -0.1}
    with pytest.raises(InputError) as error:
        UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **wrong)
    assert arguments_of(error.value.problems) == list(wrong)


def test_a_convergence_that_is_not_looked_at_is_refused():
    assert arguments_of(ImportanceConfig(retain_convergence=0.9, retain_samples=50).problems()) == [
        "retain_convergence"
    ]
    batches = ImportanceConfig(retain_convergence=0.9, moments_per="batch", importance_batch_size=4)
    assert arguments_of(batches.problems()) == ["retain_convergence"]
    for fine in (None, ImportanceConfig.retain_convergence):
        assert replace(batches, retain_convergence=fine).problems() == []
    assert ImportanceConfig(retain_convergence=0.9).problems() == []


def test_a_missing_importance_file_is_refused(tmp_path):
    [problem] = ImportanceConfig(importance_file=str(tmp_path / "i.safetensors")).problems()
    assert (problem.argument, problem.reason) == ("importance_file", "no such file")


@pytest.mark.parametrize("change", [{"holdout_split": "test"}, {"stop_every": 2}, {"stop_auc": 0.6}])
def test_a_stopping_rule_without_unseen_rows_is_refused(change):
    [problem] = StoppingConfig(**change).problems()
    assert problem.argument == next(iter(change))
    assert "no holdout_data" in problem.reason
    assert StoppingConfig("unseen.jsonl", **change).problems() == []


UNREAD = {
    "vila": [],
    "fila": ["probe_offset", "sigma"],
    "pissa": ["probe_offset", "sigma", "smoothing"],
    "lora": ["probe_offset", "sigma", "smoothing"],
}


@pytest.mark.parametrize("init", INITIALISERS)
def test_settings_that_the_initialiser_does_not_read_are_pointed_out(init, tmp_path, caplog):
    config = ImportanceConfig(init, smoothing="absolute", sigma=0.1, probe_offset=False, importance_seed=7)
    assert unread_settings(config) == UNREAD[init]
    assert unread_settings(ImportanceConfig(init, importance_seed=7)) == []
    args = UnlearnConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    Request(ModelConfig("m"), DataConfig(forget_data="f", retain_data="r"), config, EvalConfig(), args).check()
    shown = f"init={init!r} does not read {', '.join(UNREAD[init])}"
    assert (shown in caplog.text) == bool(UNREAD[init])


@pytest.mark.parametrize("init", INITIALISERS)
def test_a_published_configuration_serves_every_initialiser(init, tmp_path):
    """A grid takes its settings from one configuration, whatever the initialiser."""
    name = next(name for name in published() if name.startswith("vila-"))
    given = {"config": name, "init": init, "model_name_or_path": "m", "output_dir": tmp_path / "run", "use_cpu": "true"}
    request_from([part for flag, value in given.items() for part in (f"--{flag}", str(value))], "unlearn", "").check()
