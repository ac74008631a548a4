"""One request whole, as a user runs it: from files to an adapter, or to an error before anything is written."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer
from helpers.runs import FORGET, RETAIN, exported, flags, logits, request, write_rows
from unlora.adapter import reference_model
from unlora.cli import main
from unlora.settings import ImportanceConfig


@pytest.mark.slow
def test_unlearn_leaves_a_complete_run_and_prints_the_adapter_last(model_folder, data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["unlearn", *flags(model_folder, data, run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "adapter")
    assert {file.name for file in run.iterdir()} == {
        "adapter",
        "config.yaml",
        "eval_unlearned.json",
        "eval_original.json",
        "forgotten.json",
        "importance.safetensors",
        "metrics.json",
        "record.json",
        "report.html",
        "samples.jsonl",
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["original"]["sets"]["forget"]["probability"] > 0
    assert metrics["unlearned"]["forget_quality"] is None
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == len(FORGET) + len(RETAIN)
    assert rows[0].keys() == {"task", "prompt", "reference", "original", "unlearned"}
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), run / "adapter")


@pytest.mark.slow
def test_the_written_configuration_repeats_the_run(model_folder, data, tmp_path):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "a", loss="npo", loss_kwargs='{"beta": 0.5}')]) == 0
    config = tmp_path / "a" / "config.yaml"
    assert yaml.safe_load(config.read_text())["loss_kwargs"] == {"beta": 0.5}
    assert main(["unlearn", "--config", str(config), "--output_dir", str(tmp_path / "b")]) == 0
    first, second = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_the_base_model_on_disk_and_in_memory_is_unchanged(model_folder, data, tmp_path):
    before = (model_folder / "model.safetensors").read_bytes()
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run")]) == 0
    assert (model_folder / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_importance_computed_alone_is_the_one_that_a_run_computes(model_folder, data, tmp_path):
    assert main(["importance", *flags(model_folder, data, tmp_path / "imp")]) == 0
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "a")]) == 0
    alone, within = (tmp_path / name / "importance.safetensors" for name in ("imp", "a"))
    assert {n: t.tolist() for n, t in load_file(alone).items()} == {n: t.tolist() for n, t in load_file(within).items()}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "b", importance_file=alone)]) == 0
    assert not (tmp_path / "b" / "importance.safetensors").exists()
    adapters = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("export_rank", [None, 2])
def test_evaluation_of_the_exported_adapter_equals_the_run_s_own(model_folder, data, tmp_path, export_rank):
    facts = [{**row, "perturbed_answer": ["No.", "Never."]} for row in RETAIN]
    for name in ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write_rows(data / f"{name}.jsonl", facts)
    benchmark = {"eval_data": data, "eval_forget_name": "forget", "max_new_tokens": 8}
    settings = {**benchmark, "export_rank": export_rank, "learning_rate": 1e-2}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **settings)]) == 0
    evaluate = ["evaluate", "--model_name_or_path", str(model_folder), "--adapter", str(tmp_path / "run" / "adapter")]
    rest = [part for name, value in benchmark.items() for part in (f"--{name}", str(value))]
    assert main([*evaluate, *rest, "--log", str(tmp_path / "log.json")]) == 0
    own = json.loads((tmp_path / "run" / "eval_unlearned.json").read_text())
    again = json.loads((tmp_path / "log.json").read_text())
    for task, columns in own.items():
        assert again[task]["generated_text"] == columns["generated_text"]
        for index, value in columns["avg_gt_loss"].items():
            assert again[task]["avg_gt_loss"][index] == pytest.approx(value, abs=1e-4)


def test_forget_quality_that_cannot_be_computed_is_refused_before_training(model_folder, data, tmp_path, capsys):
    log = tmp_path / "log.json"
    task = {"avg_gt_loss": {"0": 1.0}, "avg_paraphrased_loss": {"0": 1.0}, "average_perturb_loss": {"0": [1.0]}}
    log.write_text(json.dumps({"eval_log_forget.json": task}))
    write_rows(data / "forget.jsonl", [{k: row[k] for k in ("question", "answer")} for row in FORGET])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", retrain_log=log)]) == 2
    assert "retrain_log=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_plain_text_sets_are_unlearned_too(model_folder, tmp_path, capsys):
    data = tmp_path / "data"
    write_rows(data / "forget.jsonl", [{"text": "Ada keeps a grey cat and two dogs. " * 9}])
    write_rows(data / "retain.jsonl", [{"text": "The quick brown fox jumps over the lazy dog. " * 9}])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", max_length=32)]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").is_file()


def test_short_texts_take_no_part_but_are_in_the_hashes_of_the_data(model_folder, tmp_path, capsys):
    data = tmp_path / "data"
    heading = {"text": "= A heading in both sets ="}
    write_rows(data / "forget.jsonl", [heading, {"text": "Ada keeps a grey cat and two dogs. " * 9}])
    write_rows(data / "retain.jsonl", [{"text": "The quick brown fox jumps over the lazy dog. " * 9}, heading])
    run = tmp_path / "run"
    assert main(["unlearn", *flags(model_folder, data, run, max_length=32, min_characters=51)]) == 0
    assert [len(part["rows"]) for part in json.loads((run / "forgotten.json").read_text())] == [1]
    assert json.loads((run / "record.json").read_text())["data"]["forget"]["rows"] == 2
    assert main(["verify", str(run)]) == 0


def test_plain_text_has_no_alternate_answers(model_folder, tmp_path, capsys):
    data = tmp_path / "data"
    write_rows(data / "forget.jsonl", [{"text": "Ada keeps a grey cat and two dogs. " * 9}])
    write_rows(data / "retain.jsonl", [{"text": "The quick brown fox jumps over the lazy dog. " * 9}])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", loss="idk")]) == 2
    assert "another answer can be given to a question only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["idk", "dpo"])
def test_alternates_are_a_column_of_the_forget_set_or_else_refusals(model_folder, data, tmp_path, loss):
    write_rows(data / "forget.jsonl", [{**row, "other": f"Eve {i} does."} for i, row in enumerate(FORGET)])
    trained = {}
    for key in (None, "other"):
        run = tmp_path / str(key)
        assert main(["unlearn", *flags(model_folder, data, run, loss=loss, alternate_key=key)]) == 0
        assert yaml.safe_load((run / "config.yaml").read_text())["alternate_key"] == key
        trained[key] = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert trained[None] != trained["other"]


@pytest.mark.slow
def test_a_known_log_of_the_model_before_is_taken_and_one_of_other_sets_is_refused(
    model_folder, data, tmp_path, capsys
):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "a")]) == 0
    log = tmp_path / "a" / "eval_original.json"
    known = json.loads(log.read_text())
    known["eval_log_forget.json"]["rougeL_recall"]["0"] = 0.125
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(known))
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "b", original_log=changed)]) == 0
    assert json.loads((tmp_path / "b" / "eval_original.json").read_text()) == known
    capsys.readouterr()
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "c", original_log=changed, ds_size=1)]) == 2
    assert "original_log" in (error := capsys.readouterr().err)
    assert "of other sets or sizes than this evaluation" in error
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("init", ["fila", "pissa", "lora"])
def test_a_single_forget_example_is_served_by_starts_that_need_no_variance(model_folder, data, tmp_path, init):
    write_rows(data / "forget.jsonl", FORGET[:1])
    run = tmp_path / "run"
    assert main(["unlearn", *flags(model_folder, data, run, init=init)]) == 0
    ranks = {
        tensor.shape[0]
        for name, tensor in load_file(run / "adapter" / "adapter_model.safetensors").items()
        if ".lora_A." in name
    }
    assert ranks == {4 if init == "lora" else 8}  # a plain start has no offset to export
    assert (run / "importance.safetensors").exists() == (init == "fila")


def test_importance_of_a_start_that_measures_nothing_is_refused(model_folder, data, tmp_path, capsys):
    assert main(["importance", *flags(model_folder, data, tmp_path / "run", init="pissa")]) == 2
    assert "init='pissa': it measures nothing" in capsys.readouterr().err
    changes = {"init": "lora", "importance_file": "i.safetensors"}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **changes)]) == 2
    assert "importance_file='i.safetensors': 'lora' does not measure an importance" in capsys.readouterr().err


def test_passes_that_would_repeat_the_same_gradients_are_refused(model_folder, data, tmp_path, capsys):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", forget_passes=2)]) == 2
    assert "forget_passes=2: the gradients of single examples are the same" in capsys.readouterr().err


def test_moments_of_batches_need_to_know_how_large_they_are(model_folder, data, tmp_path, capsys):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", moments_per="batch")]) == 2
    assert "importance_batch_size=None: moments of the gradients of whole batches" in capsys.readouterr().err


def test_a_cpu_gets_few_examples_at_a_time_unless_told_otherwise():
    assert [ImportanceConfig().batch_size(device) for device in ("cpu", "cuda")] == [4, 16]
    assert ImportanceConfig(importance_batch_size=5).batch_size("cpu") == 5


@pytest.mark.slow
def test_an_interrupted_run_resumes(model_folder, data, tmp_path):
    run, steps = tmp_path / "run", {"save_strategy": "steps", "save_steps": 1}
    assert main(["unlearn", *flags(model_folder, data, run, **steps)]) == 0
    for name in ("adapter", "metrics.json", "eval_unlearned.json"):  # as if it had been killed before the export
        path = run / name
        subprocess.run(["rm", "-r", str(path)], check=True)
    assert main(["unlearn", *flags(model_folder, data, run, resume_from_checkpoint="true", **steps)]) == 0
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture(scope="module")
def first_run(model_folder, tmp_path_factory):
    """A finished request, large enough a change to be seen, with settings that a second one takes over."""
    folder = tmp_path_factory.mktemp("first")
    write_rows(folder / "data" / "forget.jsonl", FORGET)
    write_rows(folder / "data" / "retain.jsonl", RETAIN)
    settings = {"dtype": "float32", "prompt_format": "base", "learning_rate": 1e-2}
    assert main(["unlearn", *flags(model_folder, folder / "data", folder / "run", **settings)]) == 0
    return folder / "run"


def run_request(*args, **settings):
    """`unlora unlearn` with `flags`, giving the result with its model."""
    from unlora.pipeline.unlearn import unlearn

    return unlearn(request(flags(*args, **settings)))


SECOND = {"model_name_or_path": None, "forget_name": "second", "learning_rate": 1e-2, "loss": "npo"}


@pytest.fixture
def second(data):
    write_rows(data / "second.jsonl", [{**row, "question": f"Is it so? {row['question']}"} for row in FORGET])
    return SECOND


@pytest.mark.slow
def test_a_second_request_goes_on_from_the_first_and_leaves_one_adapter_for_the_base(
    model_folder, data, tmp_path, first_run, second
):
    run = tmp_path / "run"
    result = run_request(model_folder, data, run, **second, on=first_run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model_name_or_path"] == str(model_folder)
    assert (settings["dtype"], settings["prompt_format"]) == ("float32", "base")
    assert settings["on"] == str(first_run)
    after_first, after_second = exported(model_folder, first_run), exported(model_folder, run)
    assert after_second.peft_config["default"].r == 2 * 4 + 2 * 4
    assert (logits(after_second) - logits(result.model)).abs().max() <= 1e-4
    assert (logits(after_second) - logits(after_first)).abs().max() > 0.05
    with reference_model(result.model):
        assert (logits(result.model) - logits(after_first)).abs().max() <= 1e-4


def test_before_the_second_request_is_after_the_first(model_folder, data, tmp_path, first_run, second):
    """Both runs evaluate the same questions; the second starts at the model that the first left."""
    settings = {**second, "forget_name": "forget", "on": first_run}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **settings)]) == 0
    old, new = (json.loads((run / "metrics.json").read_text()) for run in (first_run, tmp_path / "run"))
    for name, metrics in old["unlearned"]["sets"].items():
        assert new["original"]["sets"][name]["probability"] == pytest.approx(metrics["probability"], rel=1e-4)


@pytest.mark.slow
def test_the_configuration_of_a_second_request_repeats_it(model_folder, data, tmp_path, first_run, second):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "a", **second, on=first_run)]) == 0
    config = str(tmp_path / "a" / "config.yaml")
    assert main(["unlearn", "--config", config, "--output_dir", str(tmp_path / "b")]) == 0
    one, other = ((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "ab")
    assert one == other


@pytest.mark.slow
def test_a_second_request_resumes(model_folder, data, tmp_path, first_run, second):
    run, settings = tmp_path / "run", {**second, "on": first_run, "save_strategy": "steps", "save_steps": 1}
    assert main(["unlearn", *flags(model_folder, data, run, **settings)]) == 0
    whole = load_file(run / "adapter" / "adapter_model.safetensors")
    for name in (
        "adapter",
        "metrics.json",
        "eval_unlearned.json",
        "checkpoint-2",
    ):  # as if it had been killed after step 1
        subprocess.run(["rm", "-r", str(run / name)], check=True)
    assert main(["unlearn", *flags(model_folder, data, run, resume_from_checkpoint="true", **settings)]) == 0
    resumed = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_evaluation_on_a_run_is_that_of_its_adapter(model_folder, data, tmp_path, first_run, capsys):
    for name in ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write_rows(data / f"{name}.jsonl", [{**row, "perturbed_answer": ["No."]} for row in RETAIN])
    rest = [
        "--eval_data",
        str(data),
        "--eval_forget_name",
        "forget",
        "--max_new_tokens",
        "8",
        "--prompt_format",
        "base",
    ]
    named = ["--model_name_or_path", str(model_folder), "--adapter", str(first_run / "adapter")]
    for log, which in (("a.json", ["--on", str(first_run)]), ("b.json", named)):
        assert main(["evaluate", *which, *rest, "--log", str(tmp_path / log)]) == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert main(["evaluate", "--on", str(first_run), *named, *rest, "--log", str(tmp_path / "c.json")]) == 2
    assert "name either on or adapter" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["unlearn", "importance", "validate"])
def test_an_earlier_run_that_cannot_be_gone_on_from_is_refused(
    model_folder, data, tmp_path, first_run, capsys, command
):
    def error(**settings):
        assert main([command, *flags(model_folder, data, tmp_path / "run", **settings)]) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "on='no/such/run': its config.yaml cannot be read" in error(on="no/such/run", model_name_or_path=None)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((first_run / "config.yaml").read_bytes())
    assert "it has no exported adapter" in error(on=unfinished)
    other = error(on=first_run, model_name_or_path="another/model")
    assert f"model_name_or_path='another/model': the adapter in {first_run} was made for '{model_folder}'" in other
    assert "model_revision='old': the adapter in" in error(on=first_run, model_revision="old")


def test_a_retain_set_with_rows_that_an_earlier_request_forgot_is_refused(
    model_folder, data, tmp_path, first_run, second, capsys
):
    write_rows(data / "retain.jsonl", [*RETAIN, FORGET[2]])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **second, on=first_run)]) == 2
    assert "1 of them are rows that run had to forget, and would be taught again" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_earlier_run_s_model_may_be_named_by_another_path(model_folder, data, tmp_path, first_run):
    (tmp_path / "link").symlink_to(model_folder)
    assert main(["validate", *flags(tmp_path / "link", data, tmp_path / "run", on=first_run)]) == 0


def test_fine_tuning_on_a_run_is_refused(data, tmp_path, first_run, capsys):
    named = {"on": first_run, "train_data": data / "retain.jsonl", "output_dir": tmp_path / "tuned", "use_cpu": True}
    assert main(["finetune", *(part for k, v in named.items() for part in (f"--{k}", str(v)))]) == 2
    assert "on=" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compressed_export_is_what_is_evaluated_and_its_error_is_told(model_folder, data, tmp_path, capsys):
    settings = {"learning_rate": 1e-2, "max_new_tokens": 4}
    whole = run_request(model_folder, data, tmp_path / "whole", **settings)
    assert "compression" not in whole.metrics
    run = tmp_path / "small"
    assert main(["unlearn", *flags(model_folder, data, run, export_rank=2, **settings)]) == 0
    *_, told, page, last = capsys.readouterr().out.splitlines()
    assert (page, last) == (str(run / "report.html"), str(run / "adapter"))
    cost = json.loads((run / "metrics.json").read_text())["compression"]
    assert cost.keys() == {"rank", "relative_error", "largest_relative_error"}
    assert cost["rank"] == 2
    assert 0.01 < cost["relative_error"] < cost["largest_relative_error"] < 1
    assert told.startswith(f"exported at rank 2: relative error of the weight change {cost['relative_error']:.3g},")
    loaded = exported(model_folder, run)
    assert loaded.peft_config["default"].r == 2
    assert (logits(loaded) - logits(whole.model)).abs().max() > 0.01
    benchmark = {name: Path(run / f"eval_{name}.json").read_text() for name in ("original", "unlearned")}
    assert benchmark["original"] == (tmp_path / "whole" / "eval_original.json").read_text()
    assert benchmark["unlearned"] != (tmp_path / "whole" / "eval_unlearned.json").read_text()


@pytest.mark.slow
def test_an_export_rank_of_all_ranks_loses_nothing(model_folder, data, tmp_path):
    exact = run_request(model_folder, data, tmp_path / "a")
    ranked = run_request(model_folder, data, tmp_path / "b", export_rank=8)
    assert ranked.metrics["compression"] == {"rank": 8, "relative_error": 0.0, "largest_relative_error": 0.0}
    files = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    assert (logits(exact.model) - logits(ranked.model)).abs().max() <= 1e-4


def wrong_rows(data, name, rows):
    write_rows(data / f"{name}.jsonl", rows)


CASES = {
    "missing set": ({"forget_data": "no/such/file.jsonl", "forget_name": None}, "forget_data='no/such/file.jsonl'"),
    "missing configuration": ({"forget_name": "forgt"}, "no configuration 'forgt'.*forget, retain"),
    "rank 0": ({"r": 0}, "r=0"),
    "export rank 0": ({"export_rank": 0}, "export_rank=0"),
    "rank beyond a layer": ({"r": 17}, "r=17: the smallest adapted layer has ranks 1 to 16"),
    "LoRA on the head": ({"target_modules": "lm_head"}, "target_modules.*head"),
    "no such layers": ({"target_modules": "c_attn"}, "target_modules.*no such linear layer"),
    "dropout": ({"lora_dropout": 0.1}, "lora_dropout=0.1"),
    "unknown loss": ({"loss": "ihll"}, "did you mean 'ihl'"),
    "unknown initialiser": ({"init": "villa"}, "did you mean 'vila'"),
    "unknown flag": ({"lerning_rate": 1}, "flag='lerning_rate'.*did you mean 'learning_rate'"),
    "labels cut off": ({"max_length": 8}, "max_length=8: .*every label"),
    "no such model": ({"model_name_or_path": "no/such/model/folder"}, "model_name_or_path='no/such/model/folder'"),
    "a layer that the model has not": ({"loss": "rmu"}, r"loss_kwargs\['layer'\]=7: .*use a layer from 0 to 1"),
    "a retain loss that cannot be read": ({"loss": "npo", "retain_loss": "hidden_mse"}, "use 'nll' or 'kl'"),
    "alternates that are not read": (
        {"loss": "npo", "alternate_key": "other"},
        "alternate_key='other'.*use dpo or idk",
    ),
    "alternates that are not there": ({"loss": "idk", "alternate_key": "other"}, r"forget_data\[0\] has no text"),
    "unknown dtype": ({"dtype": "float23"}, "did you mean 'float32'"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_settings_are_refused_before_anything_is_written(model_folder, data, tmp_path, capsys, case):
    import re

    changes, message = CASES[case]
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **changes)]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


ROWS = {
    "empty set": ([], "forget_data.*no rows"),
    "rows without the keys": ([{"prompt": "x", "completion": "y"}], r"forget_data\[0\].*question and answer"),
    "an empty answer": ([{"question": "x", "answer": " "}], "the answer has no tokens"),
    "a single example": ([FORGET[0]], "forget_data='1 gradient'.*needs those of two.*init='fila'"),
    "rows of the retain set": ([FORGET[0], RETAIN[0], RETAIN[1]], "2 of the 3 forget rows are in the retain set"),
}


@pytest.mark.parametrize("case", ROWS)
def test_wrong_rows_are_refused_before_anything_is_written(model_folder, data, tmp_path, capsys, case):
    import re

    rows, message = ROWS[case]
    rows = [{key: row[key] for key in row if key != "perturbed_answer"} for row in rows]
    write_rows(data / "forget.jsonl", rows)
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run")]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_and_kept(model_folder, data, tmp_path, capsys):
    write_rows(tmp_path / "run" / "notes.txt", ["mine"])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run")]) == 2
    assert "already in use" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_all_problems_of_a_configuration_are_shown_at_once(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model_name_or_path: m\ndtype: int3\nforget_data: f.jsonl\nsigma: 0\nmax_length: 1\noutput_dir: x\n"
    )
    assert main(["validate", str(config)]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("dtype=", "retain_data=", "sigma=", "max_length="))


def test_unknown_keys_of_a_configuration_get_a_suggestion(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("model_name_or_path: m\nretain_wait: 2\n")
    assert main(["validate", str(config)]) == 2
    assert "config key='retain_wait': unknown name. Fix: did you mean 'retain_weight'?" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(b"junk", "safetensors"), (None, "no importance written by unlora")])
def test_a_corrupt_or_foreign_importance_file_is_refused(model_folder, data, tmp_path, capsys, content, message):
    file = tmp_path / "importance.safetensors"
    if content is None:
        save_file({"x": torch.ones(2)}, file)
    else:
        file.write_bytes(content)
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", importance_file=file)]) == 2
    error = capsys.readouterr().err
    assert "importance_file=" in error
    assert message in error


def test_importance_of_other_settings_is_refused(model_folder, data, tmp_path, capsys):
    assert main(["importance", *flags(model_folder, data, tmp_path / "imp", smoothing="absolute")]) == 0
    file = tmp_path / "imp" / "importance.safetensors"
    given = {"importance_file": file, "smoothing": "absolute"}
    for change in ({"sigma": 0.1}, {"lora_alpha": 32}, {"use_rslora": "true"}):
        assert main(["unlearn", *flags(model_folder, data, tmp_path / next(iter(change)), **given | change)]) == 2
        assert "another model, data or settings" in capsys.readouterr().err


def test_a_tokenizer_without_pad_and_eos_is_refused(model_folder, data, tmp_path, capsys):
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert main(["unlearn", *flags(folder, data, tmp_path / "run")]) == 2
    assert "neither a pad nor an eos token" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pickled_weights_are_not_read(model_folder, data, tmp_path, capsys):
    folder = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert main(["unlearn", *flags(folder, data, tmp_path / "run")]) == 2
    assert "safetensors" in capsys.readouterr().err


def test_training_that_diverges_ends_with_code_1_and_the_last_good_adapter(model_folder, data, tmp_path, capsys):
    settings = {"loss": "gd", "max_retain_loss": 0.001}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **settings)]) == 1
    assert "above its limit" in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "last-good-adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("lora", [{}, {"r": 4, "lora_dropout": 0}], ids=["all weights", "LoRA"])
def test_finetune_learns_and_saves_a_model_that_loads(model_folder, data, tmp_path, lora):
    run = tmp_path / "tuned"
    settings = {
        "model_name_or_path": model_folder,
        "train_data": data / "retain.jsonl",
        "output_dir": run,
        "num_train_epochs": 30,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "gradient_accumulation_steps": 1,
        "save_steps": 10,
        "save_total_limit": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **lora,
    }
    argv = ["finetune", *(part for k, v in settings.items() for part in (f"--{k}", str(v)))]
    assert main(argv) == 0
    assert not [file for file in run.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (run / ".partial").exists()
    log = json.loads((run / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["loss"] < log[0]["loss"] / (1.5 if lora else 2)
    AutoModelForCausalLM.from_pretrained(run, use_safetensors=True)
    tuned, base = (load_file(folder / "model.safetensors") for folder in (run, model_folder))
    assert tuned.keys() == base.keys()  # a merged adapter leaves a plain model
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(tuned[name], base[name]) == bool(lora)
    weights = {name: value.clone() for name, value in tuned.items()}
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0  # finished: the same model again
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_a_rank_of_nothing_is_refused(model_folder, data, tmp_path, capsys):
    flags = ["--model_name_or_path", str(model_folder), "--train_data", str(data / "retain.jsonl")]
    assert main(["finetune", *flags, "--output_dir", str(tmp_path / "t"), "--r", "0", "--use_cpu", "true"]) == 2
    assert "r=0: an adapter has at least rank 1" in capsys.readouterr().err


def test_the_command_runs_as_an_installed_program():
    program = Path(sysconfig.get_path("scripts")) / "unlora"
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, env={**os.environ})
    assert "quickstart" in shown.stdout
    wrong = subprocess.run([program, "unlern"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "did you mean 'unlearn'" in wrong.stderr


@pytest.mark.slow
def test_of_a_streamed_retain_set_only_what_the_run_can_use_is_read(model_folder, data, tmp_path):
    """Two updates of 32 pairs, so 64 rows, of a retain file that goes wrong further on."""
    note = "x" * 1000  # the file is read in parts of 10 MB
    rows = [
        json.dumps({"question": f"What does dog {i} watch?", "answer": f"The fox {i}.", "note": note})
        for i in range(12_000)
    ]
    (data / "retain.jsonl").write_text("\n".join([*rows, "{broken"]) + "\n")
    run = tmp_path / "run"
    changes = {"streaming": True, "shuffle_buffer_size": 8, "ds_size": None}
    assert main(["unlearn", *flags(model_folder, data, run, **changes)]) == 0
    questions = [json.loads(line)["prompt"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(questions) == len(set(questions)) == 4 + 64
    assert yaml.safe_load((run / "config.yaml").read_text())["streaming"] is True
    assert main(["verify", str(run)]) == 0  # of the rows that were drawn, drawn again
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "whole")]) == 2
