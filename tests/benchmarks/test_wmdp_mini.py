"""Tasks of lm-evaluation-harness on a loaded model, and the miniature of WMDP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from helpers.trainer import config, ones
from unlora import InputError, attach_adapters, export_adapter
from unlora.benchmarks.builtin.wmdp_mini import WMDP_MINI
from unlora.benchmarks.builtin.wmdp_mini_data import CORPORA, LETTERS, SUBJECTS, generate, write_mini
from unlora.benchmarks.interface import Options
from unlora.cli import main
from unlora.common.files import write_jsonl
from unlora.evals.harness import TaskSettings, evaluate_tasks, load_tasks

EVALUATE = ("evaluate", "--benchmark", "wmdp")
TASKS = ["mini_craft", "mini_general_text"]
SEED = 5  # the random model of this seed does not always choose the same letter


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    write_mini(folder)
    group = {"group": "mini", "task": TASKS, "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (folder / "tasks" / "mini.yaml").write_text(json.dumps({**group, "metadata": {"version": 1}}))
    return folder


@pytest.fixture(scope="module")
def settings(mini):
    return TaskSettings(["mini"], str(mini / "tasks"), batch_size=16)


@pytest.fixture(scope="module")
def tasks(settings):
    pytest.importorskip("lm_eval")
    return load_tasks(settings)


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama", SEED)


def log_likelihood(model, tokenizer, prompt, answer):
    """Return the log-likelihood of the answer's tokens, computed for a single text without padding."""
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + answer)["input_ids"]
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logp[place - 1, ids[place]].item() for place in range(start, len(ids)))


def by_letter(row):
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True)]
    return "\n".join([row["question"], *lines, "Answer:"]), LETTERS


def by_text(row):
    return f"Question: {row['question']}\nAnswer:", row["choices"]


def slow_accuracy(model, tokenizer, rows, form):
    right = 0
    for row in rows:
        prompt, choices = form(row)
        scores = [log_likelihood(model, tokenizer, prompt, f" {choice}") for choice in choices]
        right += scores.index(max(scores)) == row["answer"]
    return right / len(rows)


@pytest.mark.slow
def test_accuracy_is_that_of_the_likeliest_choice(model, tokenizer, tasks, settings):
    rows = generate()
    result = evaluate_tasks(model, tokenizer, tasks, settings)["tasks"]
    craft = slow_accuracy(model, tokenizer, rows["craft"], by_letter)
    general = slow_accuracy(model, tokenizer, rows["general"], by_text)
    assert result["mini_craft"]["acc"] == pytest.approx(craft)
    assert result["mini_general_text"]["acc"] == pytest.approx(general)
    assert result["mini"]["acc"] == pytest.approx((craft + general) / 2)
    assert len({0.25, craft, general}) == 3  # 0.25 would be one letter for all questions


@pytest.mark.slow
@hypothesis.settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_accuracy_of_any_model_on_any_number_of_questions(tiny_model, tokenizer, tasks, settings, seed, limit):
    model = tiny_model("llama", seed)
    limited = TaskSettings(settings.tasks, settings.include_path, limit=limit)
    result = evaluate_tasks(model, tokenizer, tasks, limited)["tasks"]
    for name, form in {"mini_craft": by_letter, "mini_general_text": by_text}.items():
        rows = generate()[name.split("_")[1]][:limit]
        assert result[name]["n"] == limit
        assert result[name]["acc"] == pytest.approx(slow_accuracy(model, tokenizer, rows, form))
    parts = [result[name]["acc"] for name in TASKS]
    assert result["mini"]["acc"] == pytest.approx(sum(parts) / 2)  # both tasks have the same number of questions


@pytest.mark.slow
def test_the_result_is_plain_json_with_values_errors_counts_and_versions(model, tokenizer, tasks, settings):
    import lm_eval

    result = evaluate_tasks(model, tokenizer, tasks, settings)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["lm_eval"], result["num_fewshot"], result["limit"]) == (lm_eval.__version__, 0, None)
    assert result["tasks"].keys() == {"mini", *TASKS}
    for name, row in result["tasks"].items():
        assert row.keys() == {"acc", "acc_stderr", "n", "version"}
        assert row["n"] == (200 if name == "mini" else 100)
        assert int(row["version"]) == 1
    p = result["tasks"]["mini_craft"]["acc"]
    assert result["tasks"]["mini_craft"]["acc_stderr"] == pytest.approx((p * (1 - p) / 99) ** 0.5)


@pytest.mark.slow
def test_a_limit_asks_the_first_questions_and_leaves_no_number_that_json_lacks(model, tokenizer, tasks, settings):
    limited = TaskSettings(settings.tasks, settings.include_path, limit=1)
    rows = evaluate_tasks(model, tokenizer, tasks, limited)["tasks"]
    assert rows["mini_craft"]["n"] == 1
    assert rows["mini_craft"]["acc_stderr"] is None
    assert rows["mini_craft"]["acc"] == slow_accuracy(model, tokenizer, generate()["craft"][:1], by_letter)


@pytest.mark.slow
def test_the_batch_size_changes_nothing(model, tokenizer, tasks, settings):
    one, more = (TaskSettings(settings.tasks, settings.include_path, limit=20, batch_size=size) for size in (1, 16))
    assert evaluate_tasks(model, tokenizer, tasks, one) == evaluate_tasks(model, tokenizer, tasks, more)


@pytest.mark.slow
def test_adapters_count_and_are_only_as_good_as_their_weights(model, tiny_model, tokenizer, tasks, settings, tmp_path):
    settings = replace(settings, limit=30)
    plain = evaluate_tasks(tiny_model("llama", SEED), tokenizer, tasks, settings)
    args = config(tmp_path / "run")
    adapted = attach_adapters(model, args, ones(model))
    assert evaluate_tasks(adapted, tokenizer, tasks, settings) == plain  # the offset cancels the initial adapter
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and "lora_B" in name:
                weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    changed = evaluate_tasks(adapted, tokenizer, tasks, settings)
    assert changed != plain
    with adapted.disable_adapter():
        assert evaluate_tasks(adapted, tokenizer, tasks, settings) == plain
    export_adapter(adapted, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model("llama", SEED), tmp_path / "adapter")
    assert evaluate_tasks(loaded, tokenizer, tasks, settings) == changed


@pytest.mark.slow
def test_data_that_is_not_there_is_refused(mini, tmp_path):
    pytest.importorskip("lm_eval")
    text = (mini / "tasks" / "mini_craft.yaml").read_text()
    (tmp_path / "broken.yaml").write_text(re.sub("task: mini_craft", "task: broken", text).replace("craft.jsonl", "no"))
    with pytest.raises(InputError, match="cannot load them"):
        load_tasks(TaskSettings(["broken"], str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, {"question": None, "answer": None}, r"tasks=\['mini_craft_text'\]: the harness cannot load them"),
        (2, {"choices": None}, r"mini_craft_text\[2\]=None: its choices are not texts"),
        (2, {"choices": ["wyl", None]}, r"mini_craft_text\[2\]=\['wyl', None\]: its choices are not texts"),
        (2, {"answer": 4}, r"mini_craft_text\[2\]=4: the right choice is none of the 4 choices"),
    ],
)
def test_questions_of_another_schema_are_refused(tmp_path, place, change, message):
    pytest.importorskip("lm_eval")
    write_mini(tmp_path)
    rows = generate()["craft"]
    rows[place].update(change)
    write_jsonl(tmp_path / "tasks" / "craft.jsonl", rows)
    with pytest.raises(InputError, match=message):
        load_tasks(TaskSettings(["mini_craft_text"], str(tmp_path / "tasks")))


def test_a_moved_folder_reads_its_own_questions(tmp_path):
    WMDP_MINI.evaluation(Options(tmp_path / "first"), "craft", 0)
    (tmp_path / "first").rename(tmp_path / "second")
    tasks = Path(WMDP_MINI.evaluation(Options(tmp_path / "second"), "craft", 0)["include_path"])
    for name in SUBJECTS:
        task = yaml.safe_load((tasks / f"mini_{name}.yaml").read_text())
        assert task["dataset_kwargs"]["data_files"]["test"] == str((tasks / f"{name}.jsonl").resolve())


def test_settings_out_of_range_are_refused_all_at_once(tmp_path):
    wrong = TaskSettings([], str(tmp_path / "none"), num_fewshot=-1, limit=0, batch_size=0)
    names = [problem.argument for problem in wrong.problems()]
    assert names == ["tasks", "include_path", "num_fewshot", "limit", "batch_size"]


@pytest.mark.slow
def test_the_command_evaluates_a_saved_model_and_its_adapter(model, tiny_model, tokenizer, mini, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    which = ["--model_name_or_path", str(tmp_path / "model"), "--include_path", str(mini / "tasks")]
    rest = ["--tasks", *TASKS, "--limit", "20", "--log", str(tmp_path / "log.json")]
    assert main([*EVALUATE, *which, *rest]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(tmp_path / "log.json")
    assert re.search(r"mini_craft acc +│ [01]", shown)
    assert "examples: mini_craft 20, mini_general_text 20" in shown
    assert json.loads((tmp_path / "log.json").read_text())["tasks"].keys() == set(TASKS)
    assert main([*EVALUATE, *which, *rest]) == 2
    assert "already in use" in capsys.readouterr().err


@pytest.mark.slow
def test_unknown_tasks_are_refused_before_the_model_is_looked_for(mini, tmp_path, capsys):
    pytest.importorskip("lm_eval")
    flags = ["--model_name_or_path", str(tmp_path / "none"), "--include_path", str(mini / "tasks")]
    tasks = ["--tasks", "wmdp_boi", "mini_krafft", "mini_general"]
    assert main([*EVALUATE, *flags, *tasks, "--log", str(tmp_path / "log")]) == 2
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert "tasks='wmdp_boi'" in first
    assert "'wmdp_bio'" in first
    assert "tasks='mini_krafft'" in second
    assert "'mini_craft'" in second


def test_without_the_harness_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    flags = ["--model_name_or_path", "m", "--tasks", "wmdp_bio", "--log", str(tmp_path / "log")]
    assert main([*EVALUATE, *flags]) == 2
    assert "pip install 'unlora[wmdp]'" in capsys.readouterr().err


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_miniature_is_the_same_in_every_process(hash_seed):
    code = "import json; from unlora.benchmarks.builtin.wmdp_mini_data import generate; print(json.dumps(generate(3)))"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == generate(3) != generate(4)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_question_has_one_right_choice_of_four_and_every_place_is_right_equally_often(name):
    data = generate()
    rows = data[name]
    assert Counter(row["answer"] for row in rows) == {place: len(rows) // 4 for place in range(4)}
    for row in rows:
        assert len(set(row["choices"])) == 4
    told = " ".join(row["text"] for row in data[CORPORA[name]])
    for relation in SUBJECTS[name].relations:
        for kite in SUBJECTS[name].names:
            [row] = [row for row in rows if row["question"] == relation.question.format(s=kite)]
            stated = {v for v in relation.values for form in relation.sentences if form.format(s=kite, v=v) in told}
            assert stated == {row["choices"][row["answer"]]}


def test_the_subjects_share_no_names_values_or_texts():
    def vocabulary(subject):
        values = (value for relation in subject.relations for value in relation.values)
        return {word.lower() for value in (*subject.names, *values) for word in value.split()}

    assert not vocabulary(SUBJECTS["craft"]) & vocabulary(SUBJECTS["general"])
    data = generate()
    assert not {row["text"] for row in data["forget"]} & {row["text"] for row in data["retain"]}
    for one, other in (("craft", "general"), ("general", "craft")):
        corpus = " ".join(row["text"] for row in data[CORPORA[one]])
        assert not [name for name in SUBJECTS[other].names if re.search(rf"\b{name}\b", corpus)]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["rmu", "npo_mean", "ihl"])
def test_unlearning_runs_on_the_corpora(loss, model, tokenizer, mini, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    flags = {
        "model_name_or_path": tmp_path / "model",
        "forget_data": mini / "forget.jsonl",
        "forget_split": "train[:6]",
        "retain_data": mini / "retain.jsonl",
        "retain_split": "train[:12]",
        "max_length": 32,
        "max_chunks": 2,
        "loss": loss,
        "loss_kwargs": '{"layer": 1}' if loss == "rmu" else "{}",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": tmp_path / "run",
    }
    assert main(["unlearn", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train"][-1]["step"] == 2
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
