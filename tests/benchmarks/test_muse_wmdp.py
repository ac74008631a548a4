"""`unlora bench` on MUSE and WMDP: sequential requests, the columns of each benchmark, and built-in benchmarks."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from unlora.benchmarks import BENCHMARKS, Measured, Options
from unlora.benchmarks.builtin.muse_mini_data import write_benchmark
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.benchmarks.builtin.wmdp_mini_data import write_mini
from unlora.cli import main
from unlora.common.files import write_json, write_jsonl

QA = [{"question": f"Who keeps dog {number}?", "answer": f"Bob {number}"} for number in range(3)]


def texts(name):
    return [{"text": f"Ada watches {number} {name}, quietly."} for number in range(4)]


MUSE = {
    "raw": {"forget": texts("foxes"), "retain1": texts("dogs"), "retain2": texts("cats")},
    "verbmem": {"forget": [{"prompt": "The quick brown fox", "gt": " jumps over the lazy dog"}] * 5},
    "knowmem": {"forget_qa": QA, "forget_qa_icl": QA[:1], "retain_qa": QA, "retain_qa_icl": QA[:1]},
    "privleak": {
        "forget": [{"text": f"Ada watches {number} people, quietly."} for number in (2, 5, 46, 90)],
        "holdout": [{"text": f"Ada watches {number} people, quietly."} for number in (1, 38, 7, 71)],
    },
    "scal": {f"forget_{number}": texts("foxes") for number in range(1, 5)},
    "sust": {f"forget_{number}": texts(f"foxes {number}") for number in range(1, 5)},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with two tiny models that have the same tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer()
    for seed, name in enumerate(("original", "retrained")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def bench(name, out, *more, **flags):
    common = {"output_dir": out, "seeds": 1, "r": 2, "max_steps": 1, "save_strategy": "no", "use_cpu": True}
    parts = (part for flag, value in {**common, **flags}.items() for part in (f"--{flag}", str(value)))
    return main(["bench", name, *parts, "--methods", "lora+gd", *more])


def table(out):
    return [line.strip("| ").split(" | ") for line in (out / "results.md").read_text().splitlines() if "|" in line]


@pytest.mark.slow
def test_muse_runs_requests_in_sequence_with_its_own_columns(models, tmp_path, capsys):
    write_benchmark(MUSE, tmp_path / "data")
    out, flags = tmp_path / "bench", {"model_name_or_path": models / "original", "data": tmp_path / "data"}
    more = ["--splits", "sust_2", "--retrained", str(models / "retrained")]
    assert bench("muse", out, *more, **flags, ds_size=4, eval_batch_size=3) == 0
    shown = capsys.readouterr().out
    assert "1/2 sust_1 lora+gd seed 0: done" in shown
    assert "2/2 sust_2 lora+gd seed 0: done; 0 min left" in shown
    rows = table(out)
    assert rows[0] == ["split", "method", "seeds", "verbmem_f", "knowmem_f", "privleak", "knowmem_r"]
    assert [row[:2] for row in rows[2:]] == [
        [split, model] for split in ("sust_1", "sust_2") for model in ("original", "retrained", "lora+gd")
    ]
    assert rows[3][5] == "0.000"  # PrivLeak compares the retrained model with itself

    # The second request continues from the first, and is evaluated with the given settings.
    cells = out / "cells"
    second = yaml.safe_load((cells / "sust_2/lora+gd/seed-0/run/config.yaml").read_text())
    assert second["on"] == str(cells / "sust_1/lora+gd/seed-0/run")
    log = json.loads((cells / "sust_2/lora+gd/seed-0/scores.json").read_text())
    assert log["metrics"]["examples"]["verbmem"] == 4
    assert float(rows[-1][5].strip("*")) == pytest.approx(log["metrics"]["privleak"], abs=1e-3)
    assert len(list((out / "logs").glob("*.json"))) == 2  # one for each of the two models, shared by all cells

    # The command of a row reproduces it.
    lines = (out / "results.md").read_text().splitlines()
    [command] = [line for line in lines if line.endswith("# sust_2, lora+gd")]
    assert command.startswith("unlora bench muse --methods lora+gd --splits sust_2 --seeds 1 --output_dir NEW_FOLDER")
    [command] = [line for line in lines if line.endswith("# sust_2, retrained")]
    assert main(shlex.split(command.split("  #")[0].replace("NEW_FOLDER", str(tmp_path / "again")))[1:]) == 0
    [again] = (tmp_path / "again").iterdir()
    assert again.read_bytes() == (out / "logs" / again.name).read_bytes()

    # A request is not run if the one before it fails, and the reason is reported.
    shutil.rmtree(cells / "sust_1")
    shutil.rmtree(cells / "sust_2")
    settings = tmp_path / "settings.yaml"
    settings.write_text("lora+gd: {target_modules: [nothing_of_that_name]}\n")
    assert bench("muse", out, *more, "--settings", str(settings), **flags, ds_size=4, eval_batch_size=3) == 1
    shown = capsys.readouterr().out
    assert "sust_1 lora+gd seed 0: FAILED (exit code 2" in shown
    assert "sust_2 lora+gd seed 0: FAILED (the request that it continues from failed: sust_1 lora+gd seed 0)" in shown
    assert [row[2] for row in table(out) if row[1] == "lora+gd"] == ["0, 1 failed"] * 2


@pytest.mark.slow
def test_wmdp_asks_the_harness_before_and_after(models, tmp_path):
    pytest.importorskip("lm_eval")
    write_mini(tmp_path / "mini")
    corpora = tmp_path / "corpora"
    write_jsonl(corpora / "cyber-forget-corpus.jsonl", texts("foxes"))
    write_jsonl(tmp_path / "retain.jsonl", texts("dogs"))
    out = tmp_path / "bench"
    flags = {
        "model_name_or_path": models / "original",
        "data": corpora,
        "splits": "cyber",
        "retain_data": tmp_path / "retain.jsonl",
        "retain_name": "retain",
        "retain_split": "train",
        "include_path": tmp_path / "mini" / "tasks",
        "limit": 5,
        "batch_size": 5,
    }
    assert bench("wmdp", out, "--tasks", "mini_craft", "mini_general", **flags) == 0
    rows = table(out)
    assert rows[0] == ["split", "method", "seeds", "mini_craft acc", "mini_general acc"]
    assert [row[:2] for row in rows[2:]] == [["cyber", "original"], ["cyber", "lora+gd"]]
    result = json.loads((out / "cells/cyber/lora+gd/seed-0/scores.json").read_text())
    assert result["limit"] == 5
    assert float(rows[3][3].strip("*")) == pytest.approx(result["tasks"]["mini_craft"]["acc"])


def test_only_what_was_asked_for_is_a_column(tmp_path):
    """The tasks of a requested group are not columns."""
    tasks = {name: {"acc": 0.5, "acc_stderr": 0.1, "n": 2, "version": 1} for name in ("mmlu", "mmlu_law", "wmdp_bio")}
    write_json(tmp_path / "log.json", {"asked": ["wmdp_bio", "mmlu"], "tasks": tasks})
    benchmark, path = BENCHMARKS["wmdp"], tmp_path / "log.json"
    reading = benchmark.numbers(path)
    assert reading.values == {"wmdp_bio acc": Measured(0.5, 0.1), "mmlu acc": Measured(0.5, 0.1)}
    assert [benchmark.metric(name).better for name in reading.values] == ["low", "high"]
    write_json(tmp_path / "log.json", {"asked": ["tasks/mine.yaml"], "tasks": {"mine": tasks["mmlu"]}})
    assert benchmark.numbers(path).values == {"mine acc": Measured(0.5, 0.1)}


def asked(name, **settings):
    benchmark = BENCHMARKS[name]
    return list(benchmark.rows(benchmark.load(benchmark.settings(**settings))))


@pytest.mark.slow
def test_what_models_are_asked_is_known_row_by_row(tmp_path):
    """The rows decide whether a log is reused, so they must change with the questions and with the prompt template."""
    write_benchmark(MUSE, tmp_path / "muse")
    assert len(asked("muse", data=str(tmp_path / "muse"))) == 5 + 2 * 3 + 2 * 1 + 2 * 4
    pytest.importorskip("lm_eval")
    write_mini(tmp_path / "mini")
    flags = {"tasks": ["mini_craft_text"], "include_path": str(tmp_path / "mini" / "tasks")}
    first = asked("wmdp", **flags)
    assert len(first) == 100
    task = tmp_path / "mini" / "tasks" / "mini_craft_text.yaml"
    task.write_text(task.read_text().replace("Question: ", "Q: "))
    second = asked("wmdp", **flags)
    assert second == [{**row, "text": row["text"].replace("Question: ", "Q: ")} for row in first] != first


def test_a_model_that_is_not_there_is_refused_before_anything_is_measured(models, tmp_path, capsys):
    write_benchmark(MUSE, tmp_path / "data")
    flags = {"model_name_or_path": models / "original", "data": tmp_path / "data", "retrained": tmp_path / "no"}
    assert bench("muse", tmp_path / "bench", **flags) == 2
    assert "no': its weights cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.rglob("logs/*.json"))


REFUSED = {
    "no data": ("muse", {"model_name_or_path": "m"}, [], "data='': the benchmark needs it"),
    "a folder without MUSE's sets": ("muse", {}, [], "data .verbmem, forget.=.*no such file or folder"),
    "a retrained log of another kind": (
        "muse",
        {},
        ["--retrained", "{folder}/log.json"],
        "retrained=.*cannot be read as a log",
    ),
    "a retrained model of an unknown split": ("muse", {}, ["--retrained", "sust_5=x"], "retrained='sust_5': unknown"),
    "a retrained model for WMDP": ("wmdp", {}, ["--retrained", "x"], "WMDP is not compared with a retrained model"),
    "a task whose data is not there": ("wmdp", {}, ["--tasks", "t", "--include_path", "{folder}"], "cannot load them"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_any_cell_runs(models, tmp_path, capfd, case):
    import re

    name, flags, more, message = REFUSED[case]
    if "retrained log" in case:
        write_benchmark(MUSE, tmp_path / "data")
    write_json(tmp_path / "log.json", {"eval_log_forget.json": {}})
    flags = flags or {"model_name_or_path": models / "original", "data": tmp_path / "data"}
    task = {"task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "no.jsonl"}}}
    write_json(tmp_path / "t.yaml", {**task, "test_split": "test", "output_type": "multiple_choice"})
    more = [part.format(folder=tmp_path) for part in more]
    assert bench(name, tmp_path / "bench", *more, **flags) == 2
    assert re.search(message, capfd.readouterr().err)
    assert not list((tmp_path / "bench").rglob("cells/*/*/*/run"))


SMALL = {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 2, "epochs": 0.05}


@pytest.mark.parametrize(("name", "split"), [("persona", "forget"), ("muse-mini", "sust_2"), ("wmdp-mini", "craft")])
def test_a_built_in_benchmark_makes_models_and_data_that_its_flags_name(name, split, tmp_path, monkeypatch):
    from unlora.pipeline.prepare import prepare
    from unlora.pipeline.request import Request

    monkeypatch.setenv("UNLORA_CACHE", str(tmp_path / "cache"))
    benchmark = replace(BENCHMARKS[name], recipe=Recipe(seed=0, **SMALL))
    options = Options(tmp_path / "bench")
    settings = benchmark.request(options, split, 0)
    materials = prepare(Request.of({**settings, "output_dir": str(tmp_path / "run"), "use_cpu": True}))
    assert materials.forget
    assert materials.retain
    retrained = benchmark.retrained(options, split, 0)
    assert retrained is None or (tmp_path / "cache").resolve() in Path(retrained).resolve().parents
    if not benchmark.evaluated_by_unlearn:
        scored = benchmark.evaluation(options, split, 0)
        assert all(str(tmp_path / "bench") in str(scored[key]) for key in ("data", "include_path") if key in scored)
