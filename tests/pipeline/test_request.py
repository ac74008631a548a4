"""Defaults of a request, and warnings about settings that it does not use."""

import pytest

from helpers.runs import request
from unlora import UnlearnConfig
from unlora.importance.table import INITIALISERS, unread_settings
from unlora.pipeline.request import Request
from unlora.settings import DataConfig, EvalConfig, ImportanceConfig, ModelConfig
from unlora.settings.published import published

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
    """A grid of methods takes the settings of every initialiser from the same configuration."""
    name = next(name for name in published() if name.startswith("vila-"))
    given = {"config": name, "init": init, "model_name_or_path": "m", "output_dir": tmp_path / "run", "use_cpu": "true"}
    request([part for flag, value in given.items() for part in (f"--{flag}", str(value))]).check()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("distil", "lora", 2e-3, 3.0, 2, True)),
        ({"loss": "ihl"}, ("ihl", "vila", 1e-4, 1.0, 4, False)),
        ({"init": "vila"}, ("distil", "vila", 2e-4, 3.0, 2, True)),
        ({"init": "lora", "loss": "ihl"}, ("ihl", "lora", 1e-4, 1.0, 4, False)),
        ({"init": "vila", "learning_rate": 1e-3, "max_steps": 9}, ("distil", "vila", 1e-3, 3.0, 2, False)),
        ({"init": "vila", "learning_rate": 2e-3}, ("distil", "vila", 2e-3, 3.0, 2, True)),
    ],
)
def test_defaults_depend_on_the_loss_and_the_initialiser(tmp_path, given, expected):
    names = {"model_name_or_path": "m", "forget_data": "f", "retain_data": "r", "output_dir": str(tmp_path / "run")}
    request = Request.of({**names, "use_cpu": True, **given})
    args = request.args
    strength = (args.learning_rate, args.retain_weight, args.gradient_accumulation_steps)
    assert (args.loss, request.importance.init, *strength, args.until_taught) == expected
