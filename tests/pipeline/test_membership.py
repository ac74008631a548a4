"""`unlora membership` from the command line: it prints a table and writes a log."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from helpers.runs import write_rows
from unlora.cli import main
from unlora.common.files import write_json
from unlora.evals.membership.leakage import MEMBERSHIP_ATTACKS
from unlora.report.read import read_run

NAMES = ("Ada", "Bob", "Cleo", "Dan")
FORGET = [{"question": f"Who keeps cat {i}?", "answer": f"{name} does."} for i, name in enumerate(NAMES)]
HOLDOUT = [{"question": f"Who keeps dog {i}?", "answer": f"{name} does."} for i, name in enumerate(NAMES)]


def save_model(folder, seed, tokenizer):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with models and data.

    `model` and `other` are random models, and `adapter` is an adapter of `model`. `odd` is a model with one more token.
    `no weights` has a configuration and a tokenizer only.
    """
    folder, tokenizer = tmp_path_factory.mktemp("membership"), make_tokenizer()
    model = save_model(folder / "model", 0, tokenizer)
    save_model(folder / "other", 1, tokenizer)
    tokenizer.save_pretrained(folder / "no weights")
    model.config.save_pretrained(folder / "no weights")
    odd = copy.deepcopy(tokenizer)
    odd.add_tokens(["<odd>"])
    save_model(folder / "odd", 2, odd)
    torch.manual_seed(2)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    write_rows(folder / "data" / "forget.jsonl", FORGET)
    write_rows(folder / "data" / "holdout.jsonl", HOLDOUT)
    return folder


@pytest.fixture
def command(folder, tmp_path):
    def run(**changes):
        settings = {
            "model_name_or_path": folder / "model",
            "forget_data": folder / "data",
            "forget_name": "forget",
            "holdout_data": folder / "data",
            "holdout_name": "holdout",
            "log": tmp_path / "log.json",
            **changes,
        }
        return main(
            ["membership", *(part for k, v in settings.items() if v is not None for part in (f"--{k}", str(v)))]
        )

    return run


def test_every_attack_is_printed_and_logged(command, folder, tmp_path, capsys):
    more = {"reference_model": folder / "other", "gradnorm": True, "parameter_gradnorm": True}
    assert command(**more, eval_batch_size=3) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(tmp_path / "log.json")
    assert all(attack in printed for attack in MEMBERSHIP_ATTACKS)
    log = json.loads((tmp_path / "log.json").read_text())
    assert list(log["metrics"]["membership"]) == list(MEMBERSHIP_ATTACKS)
    assert log["metrics"]["examples"] == {"forget": 4, "holdout": 4}
    assert all(len(values) == 4 for part in log["scores"].values() for values in part.values())


def test_a_model_compared_with_itself_leaks_nothing_and_an_adapter_counts(command, folder, tmp_path):
    assert command(log=tmp_path / "retrained.json") == 0
    assert command(log=tmp_path / "same.json", retrained=tmp_path / "retrained.json") == 0
    assert command(log=tmp_path / "adapted.json", adapter=folder / "adapter", ds_size=None, gradnorm=True) == 0
    retrained, same, adapted = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("retrained", "same", "adapted")
    )
    assert {values["privleak"] for values in same["metrics"]["membership"].values()} == {0}
    assert same["scores"] == retrained["scores"]
    assert retrained["retrained"] is None
    assert {k: v["auc"] for k, v in same["retrained"]["membership"].items()} == {
        k: v["auc"] for k, v in retrained["metrics"]["membership"].items()
    }
    assert (retrained["original"], same["original"]) == (None, None)
    without = {k: v["auc"] for k, v in adapted["original"]["membership"].items()}
    del without["gradnorm"]
    assert without == pytest.approx({k: v["auc"] for k, v in retrained["metrics"]["membership"].items()})
    assert adapted["scores"]["forget"]["loss"] != pytest.approx(retrained["scores"]["forget"]["loss"], rel=1e-3)


def test_the_log_of_a_run_is_written_where_its_report_reads_it(command, folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "adapter", run / "adapter")
    (run / "config.yaml").write_text(f"model_name_or_path: {folder / 'model'}\nmodel_revision: main")
    assert command(on=run, log=None) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "membership.json")
    assert command(on=run, log=None) == 2
    assert "already in use" in capsys.readouterr().err
    write_json(run / "metrics.json", {"train": []})
    found = read_run(run).membership
    assert found.sizes == {"forget": 4, "holdout": 4}
    assert 0 <= found.areas["unlearned"]["min_k_20"].value <= 1
    assert (found.areas["original"].keys(), found.areas["retrained"]) == (found.areas["unlearned"].keys(), {})


def test_the_model_without_its_adapter_may_be_the_reference(command, folder, tmp_path):
    assert command(reference_model=folder / "model") == 0
    scores = json.loads((tmp_path / "log.json").read_text())["scores"]
    assert scores["forget"]["reference"] == pytest.approx([0] * 4, abs=1e-5)


def test_ds_size_1_scores_only_the_first_rows_with_their_standard_error(command, tmp_path):
    assert command(ds_size=1) == 0
    metrics = json.loads((tmp_path / "log.json").read_text())["metrics"]
    assert metrics["examples"] == {"forget": 1, "holdout": 1}
    # Standard error of an AUC between 1 and 1 examples: √((1 + 1 + 1) / (12 · 1 · 1)) (Mann and Whitney 1947).
    assert metrics["membership"]["loss"]["standard_error"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget_data": None}, "forget_data=.*required"),
        ({"holdout_data": None}, "holdout_data=.*required"),
        ({"log": None}, "log=.*required"),
        ({"log": "."}, "log=.*already in use"),
        ({"ds_size": 0, "eval_batch_size": 0}, r"ds_size=0[^$]*eval_batch_size=0"),
        ({"holdout_name": "forget"}, "4 of the 4 forget rows are in the holdout set too"),
        ({"holdout_name": "nothing"}, "holdout_data=.*has no configuration 'nothing'"),
        ({"retrained": "nothing.json"}, "retrained='nothing.json': cannot be read"),
        ({"model_name_or_path": "model", "reference_model": "odd"}, "reference_model=.*another vocabulary"),
        ({"on": "run", "adapter": "adapter"}, r"\bon="),
        ({"holdout": "x"}, "unknown name"),
    ],
)
def test_wrong_input_is_refused_before_weights_are_read(
    command, folder, tmp_path, capsys, monkeypatch, changes, message
):
    monkeypatch.chdir(folder)
    assert command(**{"model_name_or_path": "no weights", **changes}) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "log.json").exists()


def test_a_retrained_log_of_other_rows_is_refused_before_weights_are_read(command, folder, tmp_path, capsys):
    assert command(log=tmp_path / "retrained.json", ds_size=3) == 0
    assert command(retrained=tmp_path / "retrained.json", model_name_or_path=folder / "no weights") == 2
    assert "score both models on the same data" in capsys.readouterr().err
    assert not (tmp_path / "log.json").exists()


def test_a_retrained_log_of_other_rows_of_the_same_number_is_refused(command, folder, tmp_path, capsys):
    assert command(log=tmp_path / "retrained.json") == 0
    write_rows(folder / "data" / "changed.jsonl", [{"question": "Who keeps dog 9?", "answer": "Eve."}, *HOLDOUT[1:]])
    again = {"retrained": tmp_path / "retrained.json", "model_name_or_path": folder / "no weights"}
    assert command(holdout_name="changed", **again) == 2
    assert "its rows of holdout differ from the rows here" in capsys.readouterr().err
