"""The steps of the quickstart, with models too small to learn anything. Its real results are in docs/results.md."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import datasets
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState
from transformers.utils import logging

from unlora import InputError
from unlora.bench.quickstart import Report, quickstart
from unlora.benchmarks.builtin.persona_data import generate
from unlora.benchmarks.builtin.persona_models import persona_models, training_arguments
from unlora.benchmarks.builtin.persona_trainings import CORPORA, start_persona
from unlora.benchmarks.builtin.recipe import Recipe
from unlora.cli.output import Answer, Mode
from unlora.cli.quickstart import run
from unlora.evals import read_log, summarise
from unlora.settings import QuickstartConfig
from unlora.training.callbacks import TrainingBar

TINY = Recipe(vocab_size=400, hidden_size=16, intermediate_size=16, layers=1, heads=2, epochs=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
def test_models_are_trained_once_and_differ_only_in_what_they_were_taught(cache):
    folders = persona_models(TINY, cache)
    assert folders.keys() == CORPORA.keys()
    stamps = {kind: (folder / "model.safetensors").stat().st_mtime_ns for kind, folder in folders.items()}
    assert persona_models(TINY, cache) == folders
    assert stamps == {kind: (folder / "model.safetensors").stat().st_mtime_ns for kind, folder in folders.items()}
    one, other = (folders[kind] / "tokenizer.json" for kind in CORPORA)
    assert one.read_bytes() == other.read_bytes()
    one, other = (folders[kind] / "model.safetensors" for kind in CORPORA)
    assert one.read_bytes() != other.read_bytes()
    assert persona_models(replace(TINY, seed=1), cache) != folders


def test_a_training_that_fails_leaves_nothing_behind(tmp_path, capfd):
    with pytest.raises(RuntimeError, match="original and the retrained"):
        persona_models(replace(TINY, heads=3), tmp_path)  # the hidden size 16 is not a multiple of 3
    capfd.readouterr()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.partial"))


@dataclass(frozen=True)
class Course:
    folder: Path
    report: Report
    answer: Answer
    said: str


@pytest.fixture(scope="module")
def course(cache, tmp_path_factory):
    """Run the command once, and return its folder, its results and its output."""
    folder, reports = tmp_path_factory.mktemp("quickstart") / "out", []

    def noted(*args):
        reports.append(quickstart(*args))
        return reports[0]

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as said:
        patch.setenv("UNLORA_CACHE", str(cache))
        patch.setattr(
            "unlora.bench.quickstart.start_persona",
            lambda recipe: start_persona(replace(TINY, seed=recipe.seed)),
        )
        patch.setattr("unlora.bench.quickstart.quickstart", noted)
        try:
            answer = run(QuickstartConfig(output_dir=folder))
        finally:  # the command switches off the progress bars of the whole process
            datasets.enable_progress_bars()
            logging.enable_progress_bar()
    return Course(folder, reports[0], answer, said.getvalue())


@pytest.mark.slow
def test_quickstart_leaves_an_adapter_logs_and_metrics_of_three_models(cache, course):
    report = course.report
    assert re.findall(r"^\[ *\d+ s\] (\d/4)", course.said, re.MULTILINE) == ["1/4", "2/4", "3/4", "4/4"]
    assert report.metrics.keys() == report.answers.keys() == {"original", "unlearned", "retrained"}
    for summary in report.metrics.values():
        assert len(summary["utility_terms"]) == 6
        assert 0 <= summary["forget_quality"] <= 1
    assert report.metrics["retrained"]["forget_quality"] == 1
    log = read_log(course.folder / "run" / "eval_unlearned.json")
    assert summarise(log, report.answers["retrained"]) == report.metrics["unlearned"]
    assert read_log(course.folder / "run" / "eval_retrained.json") == report.answers["retrained"]
    written = [json.loads(line) for line in (course.folder / "data" / "forget.jsonl").read_text().splitlines()]
    assert written == generate(0)["forget"]
    PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(persona_models(TINY, cache)["original"]), report.adapter
    )


@pytest.mark.slow
def test_the_command_tells_table_answers_page_and_adapter_for_people_and_as_json(course, capsys):
    folder = course.folder / "run"
    Mode(quiet=False, json=False).tell(course.answer)
    shown = capsys.readouterr().out
    assert "lora + distil" in course.said
    assert all(text in shown for text in ("log10 forget quality", "retrained's"))
    assert shown.splitlines()[-2:] == [str(folder / "report.html"), str(folder / "adapter")]
    assert "Forget quality (p)" in (folder / "report.html").read_text()
    Mode(quiet=False, json=True).tell(course.answer)
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {"path", "report", "original", "unlearned", "retrained"}
    assert (document["path"], document["report"]) == (str(folder / "adapter"), str(folder / "report.html"))


def test_the_progress_of_two_trainings_side_by_side_is_told_apart(tmp_path):
    names = {}
    for kind in ("original", "retrained"):
        shown = TrainingBar()
        shown.on_train_begin(training_arguments(TINY, tmp_path, kind), TrainerState(max_steps=1), TrainerControl())
        names[kind] = shown.bar.desc
        shown.bar.close()
    assert names == {"original": "training original", "retrained": "training retrained"}


def test_quickstart_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="already in use"):
        quickstart(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
