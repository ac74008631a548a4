"""Whole unlearning requests from the command line. They leave an adapter, or fail before anything is written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.runs import FORGET, RETAIN, SECOND, SECOND_ROWS, exported, flags, logits, request, write_rows
from unlora.adapter import reference_model
from unlora.cli import main


@pytest.mark.slow
def test_unlearn_leaves_a_complete_run_and_prints_the_adapter_last(model_folder, plain_run):
    run, printed, _ = plain_run
    assert printed.splitlines()[-1] == str(run / "adapter")
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
        "stages.json",
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


@pytest.mark.slow
def test_a_run_may_evaluate_each_epoch(model_folder, data, tmp_path, capsys):
    """Four forget rows in batches of two make two updates per epoch."""
    own = {"max_steps": None, "num_train_epochs": 2, "eval_strategy": "epoch", "loss": "npo"}
    own |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "forget_weight": 0.5}
    own |= {"prompt_template": "### Instruction: {question}\n### Response:"}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **own)]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    rows = [row for row in metrics["train"] if "eval_model_utility" in row]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 2), (2, 4)]
    assert rows[0]["eval_forget_probability"] != rows[1]["eval_forget_probability"]
    last = metrics["unlearned"]
    assert rows[1]["eval_forget_probability"] == pytest.approx(last["sets"]["forget"]["probability"], rel=1e-4)
    assert rows[1]["eval_model_utility"] == pytest.approx(last["model_utility"], rel=1e-4)
    asked = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    assert "### Instruction: What does dog 0 watch?\n### Response:" in asked


def test_plain_text_cannot_be_evaluated_each_epoch(model_folder, tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("forget", "retain"):
        write_rows(data / f"{name}.jsonl", [{"text": f"The {name} fox {i} jumps."} for i in range(4)])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", eval_strategy="epoch")]) == 2
    assert "eval_strategy='epoch': the sets are plain text" in capsys.readouterr().err


def test_the_base_model_on_disk_is_unchanged(model_folder, plain_run):
    _, _, before = plain_run
    assert (model_folder / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_importance_computed_alone_is_the_one_that_a_run_computes(model_folder, data, tmp_path, plain_run):
    assert main(["importance", *flags(model_folder, data, tmp_path / "imp")]) == 0
    alone, within = (folder / "importance.safetensors" for folder in (tmp_path / "imp", plain_run[0]))
    assert {n: t.tolist() for n, t in load_file(alone).items()} == {n: t.tolist() for n, t in load_file(within).items()}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "b", importance_file=alone)]) == 0
    assert not (tmp_path / "b" / "importance.safetensors").exists()
    runs = (plain_run[0], tmp_path / "b")
    adapters = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]


@pytest.mark.slow
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
    model_folder, data, tmp_path, plain_run, capsys
):
    known = json.loads((plain_run[0] / "eval_original.json").read_text())
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


@pytest.mark.slow
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
    assert ranks == {4 if init == "lora" else 8}  # plain LoRA has no offset, which would double the exported rank
    assert (run / "importance.safetensors").exists() == (init == "fila")


@pytest.mark.slow
def test_an_interrupted_run_resumes(model_folder, data, tmp_path):
    run, steps = tmp_path / "run", {"save_strategy": "steps", "save_steps": 1}
    assert main(["unlearn", *flags(model_folder, data, run, **steps)]) == 0
    for name in ("adapter", "metrics.json", "eval_unlearned.json"):  # as if the run had been killed before the export
        path = run / name
        subprocess.run(["rm", "-r", str(path)], check=True)
    assert main(["unlearn", *flags(model_folder, data, run, resume_from_checkpoint="true", **steps)]) == 0
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def run_request(*args, **settings):
    """Run the request of `flags(...)`, and return its result, which includes the model."""
    from unlora.pipeline.unlearn import unlearn

    return unlearn(request(flags(*args, **settings)))


@pytest.fixture(scope="module")
def second_run(model_folder, tmp_path_factory, first_run):
    """Return the result of a second request, which continues from the first."""
    folder = tmp_path_factory.mktemp("second")
    write_rows(folder / "data" / "second.jsonl", SECOND_ROWS)
    write_rows(folder / "data" / "retain.jsonl", RETAIN)
    return run_request(model_folder, folder / "data", folder / "run", **SECOND, on=first_run)


@pytest.mark.slow
def test_a_second_request_goes_on_from_the_first_and_leaves_one_adapter_for_the_base(
    model_folder, first_run, second_run
):
    result, run = second_run, second_run.folder
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


@pytest.mark.slow
def test_before_the_second_request_is_after_the_first(model_folder, data, tmp_path, first_run, second):
    """Both runs evaluate the same questions. The original model of the second is the unlearned model of the first."""
    settings = {**second, "forget_name": "forget", "on": first_run}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **settings)]) == 0
    old, new = (json.loads((run / "metrics.json").read_text()) for run in (first_run, tmp_path / "run"))
    for name, metrics in old["unlearned"]["sets"].items():
        assert new["original"]["sets"][name]["probability"] == pytest.approx(metrics["probability"], rel=1e-4)


@pytest.mark.slow
def test_the_configuration_of_a_second_request_repeats_it(tmp_path, second_run):
    config = str(second_run.folder / "config.yaml")
    assert main(["unlearn", "--config", config, "--output_dir", str(tmp_path / "b")]) == 0
    runs = (second_run.folder, tmp_path / "b")
    one, other = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs)
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
    ):  # as if the run had been killed after step 1
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


@pytest.mark.slow
def test_a_compressed_export_is_what_is_evaluated_and_its_error_is_told(model_folder, data, tmp_path, capsys):
    settings = {"learning_rate": 1e-2, "max_new_tokens": 4}
    whole = run_request(model_folder, data, tmp_path / "whole", **settings)
    assert "compression" not in whole.metrics
    run = tmp_path / "small"
    assert main(["unlearn", *flags(model_folder, data, run, export_rank=2, **settings)]) == 0
    *lines, page, last = capsys.readouterr().out.splitlines()
    told = next(line for line in lines if line.startswith("exported at rank"))
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
def test_an_export_rank_of_all_ranks_loses_nothing(model_folder, data, tmp_path, plain_run):
    ranked = run_request(model_folder, data, tmp_path / "b", export_rank=8)
    assert ranked.metrics["compression"] == {"rank": 8, "relative_error": 0.0, "largest_relative_error": 0.0}
    files = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in (plain_run[0], ranked.folder)]
    assert files[0] == files[1]
    assert (logits(exported(model_folder, plain_run[0])) - logits(ranked.model)).abs().max() <= 1e-4


def test_training_that_diverges_ends_with_code_1_and_the_last_good_adapter(model_folder, data, tmp_path, capsys):
    settings = {"loss": "gd", "max_retain_loss": 0.001}
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **settings)]) == 1
    assert "above its limit" in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    assert (tmp_path / "run" / "last-good-adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_of_a_streamed_retain_set_only_what_the_run_can_use_is_read(model_folder, data, tmp_path):
    """Two updates of 32 pairs need 64 retain rows. The file has an invalid line far beyond them."""
    note = "x" * 1000  # makes the file longer than 10 MB, the size of the parts in which it is read
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
    assert main(["verify", str(run)]) == 0  # draws the same rows again
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "whole")]) == 2
