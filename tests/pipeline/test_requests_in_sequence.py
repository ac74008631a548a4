"""Three successive deletion requests for a model that has memorised its people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import LlamaForCausalLM, set_seed

from helpers.scoring import answer_nll
from unlora.adapter import compression, export_adapter
from unlora.benchmarks.builtin.persona_data import generate
from unlora.benchmarks.builtin.persona_models import Recipe, model_config, train_tokenizer, training_arguments
from unlora.common.files import write_jsonl
from unlora.data import TextFormat, encode_records
from unlora.evals import evaluate, summarise
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.unlearn import ADAPTER, Request, unlearn
from unlora.settings import DataConfig, EvalConfig, EvalSettings, ImportanceConfig, ModelConfig
from unlora.training.config import UnlearnConfig
from unlora.training.finetune import finetune

pytestmark = pytest.mark.slow

RECIPE = Recipe(hidden_size=96, intermediate_size=192, layers=2, heads=4, epochs=40, batch_size=32, learning_rate=5e-3)
EVALUATION = EvalSettings(ds_size=80, max_new_tokens=24)
RANK = 16


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Return a folder with a model that has memorised 30 people and with its data, and the sets by name.

    `request0` to `request2` each have the rows of one person, and `retain` has those of the other people.
    """
    folder = tmp_path_factory.mktemp("people")
    configs = generate(seed=0, people=30, holdout_people=1)
    rows = [row for row in configs["full"] if row["question"] not in {fact["question"] for fact in configs["facts"]}]
    tokenizer = train_tokenizer((f"{row['question']}\n{row['answer']}" for row in rows), RECIPE.vocab_size)
    set_seed(0)
    model = LlamaForCausalLM(model_config(RECIPE, tokenizer))
    args = replace(training_arguments(RECIPE, folder / "model", "people"), disable_tqdm=True)
    finetune(model, tokenizer, encode_records(rows, TextFormat(tokenizer)), args)
    sets = {f"request{i}": configs["forget"][8 * i : 8 * i + 8] for i in range(3)} | {"retain": configs["retain"]}
    for name, members in sets.items():
        write_jsonl(folder / "data" / f"{name}.jsonl", members)
    return folder, sets


def request(folder, number, run, **settings):
    """Return request `number`, which continues from the previous request."""
    data = str(folder / "data")
    return Request(
        model=ModelConfig(str(folder / "model"), on=str(run / f"run{number - 1}") if number else None),
        data=DataConfig(forget_data=data, forget_name=f"request{number}", retain_data=data, retain_name="retain"),
        importance=ImportanceConfig(),
        evaluation=EvalConfig(),
        args=UnlearnConfig(
            loss="ihl",
            output_dir=str(run / f"run{number}"),
            learning_rate=1e-3,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            num_train_epochs=25,
            warmup_steps=0.1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        ),
    )


def known(model, rows, text_format):
    """Return the mean probability of the answers."""
    nll, tokens = answer_nll(model, [(row["question"], row["answer"]) for row in rows], text_format, 16)
    return float(np.exp(-nll / tokens).mean())


def utility(model, sets, text_format):
    return summarise(evaluate(model, {"retain": sets["retain"]}, text_format, EVALUATION))["model_utility"]


def with_adapter(folder, adapter):
    """Load the original model with this adapter only."""
    return load_adapter(load_model(ModelConfig(str(folder / "model")))[0], str(adapter))


def test_each_request_stays_forgotten_and_one_adapter_holds_them_all(people, tmp_path):
    folder, sets = people
    base, tokenizer = load_model(ModelConfig(str(folder / "model")))
    text_format = TextFormat(tokenizer)
    parts = {name: rows for name, rows in sets.items() if name != "retain"}
    assert min(known(base, rows, text_format) for rows in parts.values()) > 0.9
    original = utility(base, sets, text_format)

    right_after = {}
    for number in range(3):
        result = unlearn(request(folder, number, tmp_path), sets={})
        model = with_adapter(folder, tmp_path / f"run{number}" / ADAPTER)
        values = {name: known(model, rows, text_format) for name, rows in parts.items()}
        forgotten = [values[f"request{i}"] < 0.6 for i in range(3)]
        assert forgotten == [i <= number for i in range(3)], values
        right_after[f"request{number}"] = values[f"request{number}"]
        assert all(abs(values[name] - value) < 0.2 for name, value in right_after.items()), (values, right_after)
    assert utility(model, sets, text_format) >= 0.9 * original

    # The same holds after compression to rank 16, a third of the rank of 48 that the three requests add up to.
    cost = compression(result.model, RANK)
    assert 0 < cost.relative_error <= cost.largest_relative_error < 0.5
    export_adapter(result.model, tmp_path / "compressed", RANK)
    compressed = with_adapter(folder, tmp_path / "compressed")
    assert all(abs(known(compressed, rows, text_format) - values[name]) < 0.2 for name, rows in parts.items())
    assert utility(compressed, sets, text_format) >= 0.9 * original
