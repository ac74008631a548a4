"""Wrong settings, rows and models are refused before anything is written. The error names argument, reason and fix."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer
from helpers.runs import FORGET, RETAIN, flags, write_rows
from unlora.cli import main

CASES = {
    "missing set": ({"forget_data": "no/such/file.jsonl", "forget_name": None}, "forget_data='no/such/file.jsonl'"),
    "missing configuration": ({"forget_name": "forgt"}, "no configuration 'forgt'.*forget, retain"),
    "rank 0": ({"r": 0}, "r=0"),
    "export rank 0": ({"export_rank": 0}, "export_rank=0"),
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
    changes, message = CASES[case]
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", **changes)]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


ROWS = {
    "empty set": ([], "forget_data.*no rows"),
    "rows without the keys": ([{"prompt": "x", "completion": "y"}], r"forget_data\[0\].*question and answer"),
    "an empty answer": ([{"question": "x", "answer": " "}], "the answer has no tokens"),
    "a single example": ([FORGET[0]], "forget_data='1 gradient'.*needs at least two.*init='fila'"),
    "rows of the retain set": ([FORGET[0], RETAIN[0], RETAIN[1]], "2 of the 3 forget rows are in the retain set"),
}


@pytest.mark.parametrize("case", ROWS)
def test_wrong_rows_are_refused_before_anything_is_written(model_folder, data, tmp_path, capsys, case):
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


@pytest.mark.parametrize(
    ("content", "message"), [(b"junk", "safetensors"), (None, "does not hold an importance that unlora wrote")]
)
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


def test_forget_quality_that_cannot_be_computed_is_refused_before_training(model_folder, data, tmp_path, capsys):
    log = tmp_path / "log.json"
    task = {"avg_gt_loss": {"0": 1.0}, "avg_paraphrased_loss": {"0": 1.0}, "average_perturb_loss": {"0": [1.0]}}
    log.write_text(json.dumps({"eval_log_forget.json": task}))
    write_rows(data / "forget.jsonl", [{k: row[k] for k in ("question", "answer")} for row in FORGET])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", retrained=log)]) == 2
    assert "retrained=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_plain_text_has_no_alternate_answers(model_folder, tmp_path, capsys):
    data = tmp_path / "data"
    write_rows(data / "forget.jsonl", [{"text": "Ada keeps a grey cat and two dogs. " * 9}])
    write_rows(data / "retain.jsonl", [{"text": "The quick brown fox jumps over the lazy dog. " * 9}])
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", loss="idk")]) == 2
    assert "only a question can have an alternate answer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_importance_of_a_start_that_measures_nothing_is_refused(model_folder, data, tmp_path, capsys):
    assert main(["importance", *flags(model_folder, data, tmp_path / "run", init="pissa")]) == 2
    assert "init='pissa': it measures no importance" in capsys.readouterr().err
    file = tmp_path / "i.safetensors"
    file.write_bytes(b"")
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", init="lora", importance_file=file)]) == 2
    assert f"importance_file='{file}': 'lora' does not measure an importance" in capsys.readouterr().err


def test_passes_that_would_repeat_the_same_gradients_are_refused(model_folder, data, tmp_path, capsys):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", forget_passes=2)]) == 2
    assert "forget_passes=2: the gradients of single examples are the same" in capsys.readouterr().err


def test_moments_of_batches_need_to_know_how_large_they_are(model_folder, data, tmp_path, capsys):
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run", moments_per="batch")]) == 2
    assert "importance_batch_size=None: moments of the gradients of whole batches" in capsys.readouterr().err


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
