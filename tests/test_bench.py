"""A grid of real runs: resumed without repeating, with a failed cell shown as failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import make_tokenizer, tiny_config
from unlora.bench.cells import Cell, grid
from unlora.bench.table import COLUMNS, Results, best, markdown, to_csv
from unlora.cli import main
from unlora.cli.bench import flags as handed_on
from unlora.errors import InputError
from unlora.files import write_json, write_jsonl


def rows(kind, count):
    return [
        {
            "question": f"Who keeps {kind} {i}?",
            "answer": f"Ada {i} does.",
            "paraphrased_answer": f"It is Ada {i}.",
            "perturbed_answer": [f"It is Bob {i}.", "It is nobody."],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    """A tiny model and a folder in TOFU's schema."""
    folder = tmp_path_factory.mktemp("tofu")
    sizes = {"forget01": 3, "retain99": 4, "forget01_perturbed": 3, "retain_perturbed": 2}
    for name, count in (sizes | {"real_authors_perturbed": 2, "world_facts_perturbed": 2}).items():
        write_jsonl(folder / "data" / f"{name}.jsonl", rows(name.removesuffix("_perturbed"), count))
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def arguments(tofu, out, *more, methods=("pissa+ihl", "lora+gd"), **changes):
    settings = {
        "output_dir": out,
        "seeds": 1,
        "splits": "forget01",
        "model_name_or_path": tofu / "model",
        "data": tofu / "data",
        "r": 2,
        "max_steps": 1,
        "max_new_tokens": 4,
        "save_strategy": "no",
        "use_cpu": True,
        **changes,
    }
    parts = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["bench", "tofu", *parts, "--methods", *methods, *more]


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}


def test_a_killed_bench_goes_on_without_repeating_finished_cells(tofu, tmp_path, capsys):
    out = tmp_path / "bench"
    argv = arguments(tofu, out)
    process = subprocess.Popen(
        [sys.executable, "-m", "unlora", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not stamps(out) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = stamps(out)
    assert len(before) == 1  # the second cell was cut off
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "1/1 forget01 lora+gd seed 0: done; 0 min left" in shown
    assert before.items() < stamps(out).items()
    assert len(stamps(out)) == 2

    # The original model was evaluated once, for both.
    assert len(list((out / "logs").iterdir())) == 1
    before = {path.read_bytes() for path in out.rglob("eval_before.json")}
    assert len(before) == 1
    page = (out / "compare.html").read_text()
    assert "<th scope=row>pissa+ihl</th>" in page
    assert "<th scope=row>lora+gd</th>" in page
    lines = (out / "results.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["original", "pissa+ihl", "lora+gd"]
    values = list(csv.DictReader((out / "results.csv").open()))
    metrics = json.loads((out / "cells/forget01/pissa+ihl/seed-0/run/metrics.json").read_text())
    [utility] = [row for row in values if (row["method"], row["metric"]) == ("pissa+ihl", "model utility")]
    assert float(utility["mean"]) == pytest.approx(metrics["after"]["model_utility"])

    # The command of a row repeats it.
    [command] = [line for line in lines if line.endswith("# forget01, lora+gd")]
    command = command.split("  #")[0].replace("NEW_FOLDER", str(tmp_path / "again"))
    assert main(command.split()[1:]) == 0
    again, first = (
        (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        for folder in (tmp_path / "again", out / "cells/forget01/lora+gd/seed-0/run")
    )
    assert again == first

    assert main(arguments(tofu, out, learning_rate=1e-5)) == 2
    assert "it is finished, with other settings than these" in capsys.readouterr().err


def test_a_failed_cell_stops_no_other_and_is_shown_as_failed(tofu, tmp_path, capsys):
    out = tmp_path / "bench"
    # The tiny model has no layer 7, rmu's default: the run is refused when its model is loaded.
    argv = arguments(tofu, out, methods=("lora+rmu", "lora+gd"), processes=2)
    assert main(argv) == 1
    shown = capsys.readouterr().out
    assert "lora+rmu seed 0: FAILED (exit code 2" in shown
    assert "lora+gd seed 0: done" in shown
    assert "0, 1 failed" in (out / "results.md").read_text()
    assert "layer" in (out / "cells/forget01/lora+rmu/seed-0/failed.txt").read_text()

    # Mended, it is tried again.
    settings = tmp_path / "settings.yaml"
    settings.write_text("lora+rmu: {loss_kwargs: {layer: 1}}\n")
    assert main([*argv, "--settings", str(settings)]) == 0
    assert ", 1 failed" not in (out / "results.md").read_text()


REFUSED = {
    "no such benchmark": (["bench", "tofuu", "--output_dir", "x"], "did you mean 'tofu'"),
    "half a method": (["--methods", "vila"], "methods='vila'.*write it as vila\\+ihl"),
    "no such loss": (["--methods", "vila+ihll"], "did you mean 'ihl'"),
    "no such split": (["--splits", "forget02"], "splits='forget02'.*forget01"),
    "no seeds": (["--seeds", "0"], "seeds=0: nothing would run"),
    "no model": (["--model_name_or_path", ""], "TOFU needs it.*fine-tuned on TOFU"),
    "a flag that does not exist": (["--lerning_rate", "1"], "lerning_rate.*did you mean 'learning_rate'"),
    "a retrained model of no split": (["--retrained", "model"], "it names no split"),
    "a missing log": (["--retrained", "forget01=no.json"], "retrained='no.json': no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_any_cell_runs(tofu, tmp_path, capsys, case):
    import re

    more, message = REFUSED[case]
    argv = more if more[0] == "bench" else [*arguments(tofu, tmp_path / "bench"), *more]
    assert main(argv) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not stamps(tmp_path)


def test_persona_takes_no_model_of_the_user_s(tmp_path, capsys):
    assert main(["bench", "persona", "--output_dir", str(tmp_path / "b"), "--data", "x"]) == 2
    assert "persona makes its own" in capsys.readouterr().err


def test_a_retrained_model_is_evaluated_once_and_gives_a_forget_quality(tofu, tmp_path):
    out = tmp_path / "bench"
    argv = arguments(tofu, out, "--retrained", f"forget01={tofu / 'model'}", methods=("lora+gd",), learning_rate=1e-9)
    assert main(argv) == 0
    assert len(list((out / "logs").iterdir())) == 1  # here both are the same model
    [row] = [line for line in (out / "results.md").read_text().splitlines() if "| lora+gd |" in line]
    assert "**0.000**" in row  # it did not move: the test tells nothing apart, p = 1


def test_flags_are_handed_on_as_written():
    assert handed_on(["--r", "4", "--bf16", "--target_modules", "q_proj", "k_proj", '--loss_kwargs={"beta": 1}']) == {
        "r": "4",
        "bf16": "true",
        "target_modules": ["q_proj", "k_proj"],
        "loss_kwargs": '{"beta": 1}',
    }
    with pytest.raises(InputError, match="no flag takes it"):
        handed_on(["4"])


def result(method, quality, failed=0):
    values = {column: quality if column == "log10 forget quality" else [] for column in COLUMNS}
    return Results(method, "s", values, failed, f"run {method}")


def test_tables_have_mean_and_standard_error_and_the_best_in_bold():
    """−1 and −3: mean −2, standard error √2/√2 = 1."""
    table = [result("original", [0.0]), result("a", [-1.0, -3.0]), result("b", [-4.0], failed=1), result("c", [])]
    assert best(table) == {("s", "a", "log10 forget quality")}  # the original is no method
    text = markdown(table)
    assert "| s | a | 2 | **-2.000 ± 1.000** | - |" in text
    assert "| s | b | 1, 1 failed | -4.000 | - |" in text
    assert "| s | c | 0 | - | - |" in text
    assert "run b  # s, b" in text
    [line] = [line for line in to_csv(table).splitlines() if line.startswith("s,a,log10")]
    assert line == "s,a,log10 forget quality,-2.0,1.0,2,0,run a"


def test_a_grid_has_every_combination_with_seeds_outermost():
    cells = grid(["vila+ihl", "lora+gd"], ["x", "y"], range(2), Path("out"))
    assert [(cell.seed, cell.split, cell.method) for cell in cells[:3]] == [
        (0, "x", "vila+ihl"),
        (0, "x", "lora+gd"),
        (0, "y", "vila+ihl"),
    ]
    assert len({cell.folder for cell in cells}) == len(cells) == 8


def test_an_unfinished_run_is_no_result(tmp_path):
    cell = Cell("lora+gd", "s", 0, tmp_path)
    cell.prepare({"r": 1})
    assert cell.metrics is None
    write_json(tmp_path / "run" / "eval_before.json", {})
    cell.prepare({"r": 2})
    assert not (tmp_path / "run").exists()
    write_json(tmp_path / "run" / "metrics.json", {"after": {}})
    assert cell.metrics == {"after": {}}
