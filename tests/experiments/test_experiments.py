"""The experiments can be imported, their settings are valid, and small ones run. docs/results.md has their results."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from experiments._persona import mean_error
from experiments.ablation import GRID, METHODS, Cell, Results, chosen
from transformers import AutoModelForCausalLM
from transformers.utils.logging import enable_progress_bar

from experiments import _speed, extraction, gpu, operations, reglu, repselect, sizes, training
from unlora.benchmarks.builtin.persona_data import generate
from unlora.common.files import write_jsonl
from unlora.settings import ImportanceConfig

MODULES = sorted(path.stem for path in (Path(__file__).parents[2] / "experiments").glob("[a-z]*.py"))


@pytest.fixture(autouse=True)
def bars():
    """Switch progress bars on again after each test. Experiments switch them off, usually in a process of their own."""
    yield
    enable_progress_bar()


@pytest.mark.parametrize("name", MODULES)
def test_every_measurement_is_a_documented_command(name):
    module = importlib.import_module(f"experiments.{name}")
    assert module.__doc__
    assert callable(module.main)


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_the_ablation_are_valid(method):
    assert ImportanceConfig(**METHODS[method]).problems() == []


def test_the_best_setting_is_the_one_of_best_quality_among_those_that_keep_the_utility(tmp_path):
    results = Results(tmp_path)
    results.values = {Cell("vila", "ihl", *setting, 3): {"diverged": True} for setting in GRID}
    for rate, weight, quality, utility in [
        (1e-4, 1.0, -9.0, 1.0),
        (1e-4, 3.0, -10.0, 1.0),
        (3e-4, 1.0, -2.0, 0.99),
        (3e-4, 3.0, -3.0, 0.99),
        (6e-4, 1.0, -0.5, 0.6),
        (6e-4, 3.0, -1.0, 0.9),
        (1.2e-3, 3.0, -0.1, 0.0),
    ]:
        value = {"log10_forget_quality": quality, "utility": utility}
        results.values[Cell("vila", "ihl", rate, weight, 3)] = value
    assert chosen(results, "vila", "ihl", 3, 0.0) == Cell("vila", "ihl", 1.2e-3, 3.0, 3)
    assert chosen(results, "vila", "ihl", 3, 0.98) == Cell("vila", "ihl", 3e-4, 1.0, 3)
    assert chosen(results, "vila", "ihl", 3, 1.1) is None


def test_standard_error_of_the_mean():
    """For 1 and 3: mean 2, standard deviation √2, standard error √2 / √2 = 1."""
    assert mean_error([1.0, 3.0]) == "2.000 ± 1.000"
    assert mean_error([]) == mean_error([1.0]) == "-"


# Numbers of parameters of the models that the shapes are named after.
SIZES = {
    "SmolLM2-135M": 134_515_008,
    "Phi-1.5": 1_418_270_720,
    "Llama-2-7B": 6_738_415_616,
    "Llama-3-8B": 8_030_261_248,
}


@pytest.mark.parametrize("name", SIZES)
def test_shapes_are_those_of_the_models_they_are_named_after(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_speed.shapes()[name])
    assert model.num_parameters() == SIZES[name]


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    """A folder with a small forget set and retain set in TOFU's schema."""
    folder = tmp_path_factory.mktemp("tofu")
    for name, count in (("forget01", 8), ("retain99", 24)):
        rows = [{"question": f"Who wrote {name} {i}?", "answer": f"Ada {'and ' * (i % 5)}{i}."} for i in range(count)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.mark.slow
def test_extraction_is_measured_beside_its_floor_and_the_authors_procedures(tofu, tmp_path, capsys):
    flags = ["--model", "tiny", "--data", str(tofu), "--rounds", "1", "--json", str(tmp_path / "out.json")]
    extraction.main([*flags, "--batches", "2", "--converged", "24"])
    result = json.loads((tmp_path / "out.json").read_text())
    rows = {row["procedure"]: row for row in result["rows"]}
    assert list(rows) == ["floor", "unlora", "start", "vila", "fila"]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 and len(row["runs"]) == 1 for row in rows.values())
    # The procedure makes ten passes over two batches of four from each set, of which one batch was measured.
    assert rows["vila"]["runs"][0]["share"] == rows["fila"]["runs"][0]["share"] == 1 / 40
    assert result["notes"][-1].startswith("    24 examples: 1.0000")  # compared with itself, because there are only 24
    assert "scaled up" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_step_is_measured_beside_its_floor_and_the_authors_procedure(tofu, tmp_path):
    flags = ["--model", "tiny", "--data", str(tofu), "--rounds", "2", "--json", str(tmp_path / "out.json")]
    training.main([*flags, "--no_memory", "--pairs", "2"])
    rows = {row["procedure"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["floor", "unlora", "vila"]
    assert all(len(row["runs"]) == 2 for row in rows.values())
    assert rows["vila"]["runs"][0]["share"] == 2  # the authors' batch has four pairs, a step has two


@pytest.mark.slow
def test_a_gpu_is_measured_part_by_part(model_folder, tmp_path):
    """Measure a tiny model on the CPU, where only the seconds differ from those on a GPU."""
    flags = ["--json", tmp_path / "out.json", "--device", "cpu", "--dtype", "float32", "--model", "tiny"]
    flags += ["--rows", 4, 8, "--batches", 2, "--rounds", 1, "--small", model_folder, "--finetune", "--max_steps 1"]
    limits = "--loss ihl --max_steps 1 --ds_size 2 --max_new_tokens 2 --retain_samples 8"
    gpu.main([*map(str, flags), "--unlearn", limits])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["extraction"]["ratio"] == found["extraction"]["unlora"] / found["extraction"]["floor"]
    assert found["start"]["seconds"] > 0
    assert found["step"]["unlora"] > 0
    stages = [found["forget10"][name] for name in ("importance", "start", "training")]
    assert found["forget10"]["whole"] == pytest.approx(sum(stages))
    assert found["forget10"]["updates"] == 5
    assert found["finetune"]["exit_code"] == 0
    for seed in (0, 1):
        assert found[f"unlearn seed {seed}"]["exit_code"] == 0
        assert found[f"unlearn seed {seed}"]["stages"]["training"] > 0
        assert "forget" in found[f"unlearn seed {seed}"]["unlearned"]


def test_what_fails_or_has_no_time_on_a_gpu_does_not_lose_the_rest(tmp_path):
    results = gpu.Results(tmp_path / "out.json", seconds=60)
    results.run("broken", lambda: {"value": 1 / 0})
    results.run("whole", lambda: {"value": 2})
    results.end = 0
    results.run("late", lambda: {"value": 3})
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["broken"]["error"] == "ZeroDivisionError: division by zero"
    assert found["whole"]["value"] == 2
    assert found["late"] == "left out: no time"


def test_a_part_is_scaled_up_and_what_comes_once_is_not():
    assert _speed.Run(fixed=1.0, sample=2.0, share=0.25).seconds == 9.0


def test_samples_are_spread_over_the_whole():
    """If batches are sorted by length, evenly spaced ones cover all lengths."""
    assert _speed.spread(range(10), 2) == [2, 7]
    assert _speed.spread(range(3), 5) == [0, 1, 2]


@pytest.mark.parametrize(("name", "most"), [("importance", 6), ("training", 10), ("evaluation", 3)])
def test_operations_beyond_the_floor_stay_few(name, most):
    """Count operations per adapted layer and batch. On a GPU, their number determines the cost of a small model."""
    floor, found = (
        operations.per_layer(operations.PROCEDURES[key], torch.bfloat16) for key in (operations.FLOORS[name], name)
    )
    assert 1 < (found - floor).calls <= most


def test_what_computes_nothing_is_no_operation():
    a, b = torch.ones(4, 8), torch.ones(8, 2)
    found = operations.counted(lambda: (a @ b).T.reshape(-1).add_(1).view(2, 4))
    assert found == operations.Operations(calls=3, bytes=2 * 4 * 2 * 4)


def test_a_request_of_some_rows_keeps_all_others():
    configs = sizes.configs_of(0, 6)
    assert configs["forget"] == generate(0)["forget"][:6]
    assert len(configs["retain"]) + 6 == 640
    assert len(configs["full"]) - len(configs["retain_full"]) == 6
    assert len(sizes.configs_of(0, 66)["forget"]) == 66  # persona only has 64 about its eight people


def test_the_covariance_of_outputs_leaves_out_padding(tiny_model):
    model, name = tiny_model("llama"), "model.layers.0.mlp.up_proj"
    ids, outputs = torch.tensor([[5, 6, 7], [8, 9, 0]]), []
    covariance = reglu.Covariance([name])
    covariance.add(model, {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])})
    for row in ([5, 6, 7], [8, 9]):
        with model.get_submodule(name).register_forward_hook(lambda module, inputs, output: outputs.append(output[0])):
            model(input_ids=torch.tensor([row]))
    expected = torch.cov(torch.cat(outputs).double().T, correction=0)
    torch.testing.assert_close(covariance.of(name), expected, rtol=1e-3, atol=1e-7)


def test_a_matrix_without_its_first_component_is_the_rest_of_its_decomposition():
    matrix = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(repselect.without_first(matrix, 1), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(repselect.without_first(matrix, 0), matrix)
