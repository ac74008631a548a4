import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from helpers.moments import FORGET, RETAIN, moments_of
from helpers.runs import flags
from unlora.adapter import attach_adapters
from unlora.adapter.targets import target_shapes
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.importance import INITIALISERS, Initialiser, register_initialiser, relative_importance
from unlora.importance.table import estimate_settings, initialiser_problems, unread_settings
from unlora.runs.folder import IMPORTANCE
from unlora.settings import ImportanceConfig


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("name", INITIALISERS)
def test_every_initialiser_leaves_the_function_of_the_model_as_it_was(measurement, tokenizer, name, architecture):
    given = measurement(architecture, init=name)
    ids = tokenizer("The gardener keeps a grey cat", return_tensors="pt").input_ids
    before = given.model(ids).logits
    model = attach_adapters(given.model, given.adapter, INITIALISERS[name].row_importance(given))
    assert (model(ids).logits - before).abs().max() <= 1e-4


@pytest.mark.parametrize("name", [name for name, initialiser in INITIALISERS.items() if initialiser.uses_data])
def test_importance_of_data_follows_the_data(measurement, name):
    """Swapping the two sets changes the importance, because other weights matter for the other set."""
    given = measurement(init=name)
    swapped = replace(given, forget=given.retain, retain=lambda part=slice(None): given.forget())
    rows, other = INITIALISERS[name].row_importance(given), INITIALISERS[name].row_importance(swapped)
    assert rows.keys() == other.keys() == target_shapes(given.model, None).keys()
    assert all(value.isfinite().all() and (value >= 0).all() for value in rows.values())
    assert all(torch.corrcoef(torch.stack([rows[layer], other[layer]]))[0, 1] < 0.9 for layer in rows)


def ones(measurement):
    """Return the same importance for every row: the number of forget batches."""
    batches = len(list(measurement.forget()))
    shapes = target_shapes(measurement.model, measurement.adapter.target_modules)
    return {name: torch.full(shape[:1], float(batches)) for name, shape in shapes.items()}


@pytest.mark.usefixtures("registries")
def test_a_registered_initialiser_is_chosen_by_its_name_like_the_built_in_ones(capsys):
    register_initialiser("ones", Initialiser(ones, "all ones", "ours", reads=("sigma",), uses_data=True))
    assert ImportanceConfig(init="ones").problems() == []
    assert unread_settings(ImportanceConfig(init="ones", sigma=0.1, retain_samples=4)) == []
    assert unread_settings(ImportanceConfig(init="ones", probe_offset=False)) == ["probe_offset"]
    assert estimate_settings(ImportanceConfig(init="ones", sigma=0.1))["sigma"] == 0.1
    assert main(["ls", "initialisers", "--markdown"]) == 0
    assert "| `ones` | all ones | sigma = 0.05, normalised = true," in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_a_registered_initialiser_starts_a_run_and_its_importance_is_saved(model_folder, data, tmp_path):
    register_initialiser("ones", Initialiser(ones, "all ones", "ours", uses_data=True))
    run = tmp_path / "run"
    assert main(["unlearn", *flags(model_folder, data, run, init="ones", max_steps=1)]) == 0
    with safe_open(run / IMPORTANCE, framework="pt") as file:
        assert json.loads(file.metadata()["settings"])["init"] == "ones"
        rows = file.get_tensor("model.layers.0.self_attn.q_proj")
    assert (rows == rows[0]).all()
    assert rows[0] > 0


@pytest.mark.usefixtures("registries")
def test_a_registered_initialiser_with_its_own_information_is_a_method_of_relative_importance():
    """Here F is E[g²] of A alone, [rank, in], and the importance is F_forget / (F_retain + ε·mean F_retain)."""

    def of_a(moments, centred):
        for name in moments.mean:
            if ".lora_A." in name:
                yield name, moments.information(name, centred)

    register_initialiser("of_a", Initialiser(ones, "F = E[g²] of A", "ours", uses_data=True, fisher=of_a))
    [importance] = relative_importance(moments_of(**FORGET), moments_of(**RETAIN), "of_a", epsilon=0.5).values()
    torch.testing.assert_close(importance, torch.tensor([[3.0, 0.5]]) / (torch.ones(2) + 0.5))


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "reads", "message"),
    [
        ("vila", (), "name='vila': another initialiser has this name"),
        ("mine", ("sigmma",), "reads='sigmma': unknown name.*did you mean 'sigma'"),
    ],
)
def test_what_would_not_work_is_refused_and_not_registered(name, reads, message):
    before = dict(INITIALISERS)
    with pytest.raises(InputError, match=message):
        register_initialiser(name, Initialiser(ones, "", "", reads=reads))
    assert before == INITIALISERS


def test_an_unknown_initialiser_is_refused_with_a_suggestion():
    [problem] = ImportanceConfig(init="villa").problems()
    assert "did you mean 'vila'" in str(problem)


@pytest.mark.parametrize("name", ["pissa", "lora"])
def test_an_importance_file_for_an_initialiser_that_measures_nothing_is_refused(name):
    [problem] = initialiser_problems(ImportanceConfig(init=name, importance_file="i.safetensors"))
    assert str(problem).startswith(f"importance_file='i.safetensors': {name!r} does not measure an importance")


def test_settings_that_do_not_change_what_is_measured_stay_out_of_the_key():
    usual = estimate_settings(ImportanceConfig("vila"))
    for same in ({"normalised": False}, {"importance_file": "f"}, {"importance_batch_size": 3}):
        assert estimate_settings(ImportanceConfig(**{"init": "vila", **same})) == usual
    batches = {"init": "vila", "moments_per": "batch", "importance_batch_size": 4}
    assert estimate_settings(ImportanceConfig(**batches)) != estimate_settings(
        ImportanceConfig(**batches, forget_passes=2)
    )
    for other in ({"sigma": 0.1}, {"epsilon": 1.0}, {"retain_samples": 9}, {"init": "fila"}, {"importance_seed": 1}):
        assert estimate_settings(ImportanceConfig(**{"init": "vila", **other})) != usual
